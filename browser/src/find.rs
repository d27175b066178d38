//! Where browsers are.

use crate::Result;
use std::path::PathBuf;

/// Where browsers are found after `$DOPPLER_BROWSER`: names on the PATH, then paths of macOS and Windows.
const BROWSERS: &[&str] = &[
    "chromium",
    "google-chrome",
    "google-chrome-stable",
    "chromium-browser",
    "microsoft-edge",
    "chromium-headless-shell",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
];

/// The browser to start.
///
/// # Errors
/// Where there is none, what to install; where `$DOPPLER_BROWSER` names nothing, that.
pub fn find() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("DOPPLER_BROWSER") {
        let path = PathBuf::from(named);
        return match path.is_file() {
            true => Ok(path),
            false => Err(format!("$DOPPLER_BROWSER names {}, where there is no browser", path.display())),
        };
    }
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    // Joining an absolute path gives that path.
    let found = BROWSERS.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file());
    found.ok_or_else(|| "no browser with WebGPU was found: install Chromium or Google Chrome, or name one in $DOPPLER_BROWSER".into())
}
