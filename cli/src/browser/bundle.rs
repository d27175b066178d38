//! The files that browsers run. In a checkout they are built when they are missing or older than their sources; a binary
//! elsewhere looks for them beside itself.

use crate::terminal::tell;
use doppler::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The engine and its JavaScript.
pub const PACKAGE: &str = "web";
/// The page, with the package and the built-in model.
pub const SITE: &str = "site";

/// How long building may take before it is told.
const SHORT: Duration = Duration::from_secs(3);

/// The folder of `what`, up to date.
///
/// # Errors
/// `Kind::Io` where there is none and none can be built, saying what to do.
pub fn find(what: &str) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("DOPPLER_WEB").map(PathBuf::from) {
        return usable(folder.join(what)).ok_or_else(|| Error::io(folder.display(), format!("$DOPPLER_WEB has no folder {what} in it")));
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let why = match sources.join("xtask/Cargo.toml").is_file() {
        false => "there are no sources to build them from".to_string(),
        true => match build(&sources, what)? {
            Some(folder) => return Ok(folder),
            None => "there is no cargo to build them".to_string(),
        },
    };
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("..").join(what)));
    if let Some(folder) = beside.and_then(usable) {
        tell(&format!("the files for browsers in {} are used as they are: {why}", folder.display()));
        return Ok(folder);
    }
    let hint = "build them in a checkout with `cargo xtask web`, and name the folder that holds web and site in $DOPPLER_WEB";
    Err(Error::io("the files for browsers", format!("{why}; {hint}")))
}

fn usable(folder: PathBuf) -> Option<PathBuf> {
    let marks = ["index.js", "index.html"];
    if marks.iter().any(|mark| folder.join(mark).is_file()) { folder.canonicalize().ok() } else { None }
}

/// Builds what is missing or stale, which Cargo knows; `None` without Cargo.
fn build(sources: &Path, what: &str) -> Result<Option<PathBuf>> {
    let mut command = Command::new("cargo");
    command.args(["xtask", "web"]).current_dir(sources).stdin(Stdio::null());
    // Those of the cargo that may run us are not meant for another.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_") && name != "CARGO_HOME" && name != "CARGO_TARGET_DIR") {
            command.env_remove(name);
        }
    }
    let failed = |text: String| Error::io("the files for browsers", text);
    let (done, built) = mpsc::channel();
    // Who waits no longer has ended.
    std::thread::spawn(move || drop(done.send(command.output())));
    let output = built.recv_timeout(SHORT).or_else(|_| {
        tell("building the files for browsers (`cargo xtask web`), which takes minutes the first time");
        built.recv()
    });
    let output = match output.map_err(|_| failed("cargo, which builds them, could not be waited for".into()))? {
        Ok(output) => output,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(format!("cargo, which builds them: {e}"))),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let last: Vec<&str> = said.lines().rev().take(12).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        return Err(failed(format!("`cargo xtask web` failed:\n{}", last.join("\n"))));
    }
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let made = usable(folder.with_file_name(what));
    made.map(Some).ok_or_else(|| failed(format!("`cargo xtask web` made no {what} beside {}", folder.display())))
}
