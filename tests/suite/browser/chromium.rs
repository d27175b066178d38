//! Headless Chromium on its software adapter: started for one address, ended with everything it left.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Without an adapter to choose from, and quiet: no sync, no updates, no first-run questions.
const SWITCHES: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-logging=stderr",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-default-browser-check",
    "--no-first-run",
    "--password-store=basic",
    "--use-mock-keychain",
];

/// A browser and its profile, both gone when this is dropped.
pub struct Browser {
    pub child: Child,
    profile: PathBuf,
}

impl Browser {
    /// Opens `address`.
    pub fn start(program: &Path, address: &str) -> Self {
        let profile = std::env::temp_dir().join(format!("doppler-browser-{}", std::process::id()));
        std::fs::create_dir_all(&profile).expect("a folder for the browser's profile");
        let log = std::fs::File::create(profile.join("stderr.log")).expect("a file for the browser's messages");
        let mut command = Command::new(program);
        command.args(SWITCHES).arg(format!("--user-data-dir={}", profile.display())).arg(address);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // A group of its own, so that its processes end with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        Self { child, profile }
    }
    /// The last lines that it wrote.
    pub fn messages(&self) -> String {
        let log = std::fs::read(self.profile.join("stderr.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        #[cfg(unix)]
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.child.id())]).stderr(Stdio::null()).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Its processes may still be writing for a moment.
        for _ in 0..20 {
            if std::fs::remove_dir_all(&self.profile).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
