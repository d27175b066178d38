//! `cargo xtask web` as a child that ends with this process, however that ends: it would go on for minutes, and other
//! cargos of the checkout would wait for it.

use crate::terminal::{self, tell};
use doppler::{Error, Result};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

/// How often it is asked whether anybody still waits for the build.
const LOOK: Duration = Duration::from_millis(100);

/// Builds the files for browsers in the checkout at `root`; returns its target folder, `None` without Cargo.
///
/// # Errors
/// `Kind::Io` when the build fails, with its last lines.
pub fn build(root: &Path) -> Result<Option<PathBuf>> {
    let failed = |text: String| Error::io("the files for browsers", text);
    let has_cargo =
        Command::new("cargo").arg("--version").current_dir(root).stdin(Stdio::null()).output().is_ok_and(|output| output.status.success());
    if !has_cargo {
        return Ok(None);
    }
    tell("building the page (cargo xtask web), which takes minutes the first time …");
    let mut command = ended_with_us();
    command.current_dir(root).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Those of the cargo that may run us are not meant for another.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_") && name != "CARGO_HOME" && name != "CARGO_TARGET_DIR") {
            command.env_remove(name);
        }
    }
    let mut child = command.spawn().map_err(|e| failed(format!("cargo, which builds them: {e}")))?;
    // While this is open, the child lives.
    let alive = child.stdin.take();
    let (lines, mut said) = (lines(child.stderr.take()), Vec::new());
    let (done, built) = mpsc::channel();
    // Who waits no longer has ended.
    std::thread::spawn(move || drop(done.send(child.wait_with_output())));
    let output = loop {
        said.extend(lines.try_iter().inspect(|line| pass_on(line)));
        match built.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) if terminal::client().is_some_and(|client| client.gone()) => {
                return Err(failed("the build was ended, because nobody waits for it any more".into()));
            }
            Err(RecvTimeoutError::Timeout) => {}
            output => break output.map_err(|_| failed("cargo, which builds them, could not be waited for".into()))?,
        }
    };
    drop(alive);
    let output = output.map_err(|e| failed(format!("cargo, which builds them: {e}")))?;
    if !output.status.success() {
        said.extend(lines.iter());
        return Err(failed(format!("`cargo xtask web` failed:\n{}", said[said.len().saturating_sub(12)..].join("\n"))));
    }
    // It prints the package's folder.
    let package = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    match package.parent() {
        Some(target) if package.is_dir() => Ok(Some(target.to_path_buf())),
        _ => Err(failed(format!("`cargo xtask web` made no folder {}", package.display()))),
    }
}

/// The lines of what a child says, as they come.
fn lines(from: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (line, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let Some(from) = from else { return };
        let texts = BufReader::new(from).split(b'\n').map_while(|text| text.ok());
        // Who hears no longer has ended.
        texts.map(|text| String::from_utf8_lossy(&text).trim_end().to_string()).all(|text| line.send(text).is_ok());
    });
    lines
}

/// Says what Cargo waits for: another cargo of the checkout may take minutes.
fn pass_on(line: &str) {
    if line.contains("waiting for file lock") {
        tell(&format!("cargo: {}", line.trim()));
    }
}

/// The command, in a process group of its own. When its stdin comes to an end, a shell in the group ends the group:
/// Cargo, what it builds and what it runs.
#[cfg(unix)]
fn ended_with_us() -> Command {
    let script = "exec 3<&0 </dev/null; (cat <&3; kill -KILL 0) >/dev/null 2>&1 & exec 3<&-; exec \"$@\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh", "cargo", "xtask", "web"]);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
}

#[cfg(not(unix))]
fn ended_with_us() -> Command {
    let mut command = Command::new("cargo");
    command.args(["xtask", "web"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_as_they_are_said() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let heard = lines(Some(reader));
        std::io::Write::write_all(&mut writer, b"    Blocking waiting for file lock\r\nhalf a").unwrap();
        assert_eq!(heard.recv().unwrap(), "    Blocking waiting for file lock");
        assert!(heard.try_recv().is_err());
        drop(writer);
        assert_eq!(heard.iter().collect::<Vec<_>>(), ["half a"]);
        assert_eq!(lines(None::<std::io::Empty>).iter().count(), 0);
    }
}
