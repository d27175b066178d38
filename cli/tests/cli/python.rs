//! The Python door (`python/`), tested by its own tests with this binary. Where Python lacks NumPy, that
//! is installed once, into a folder below `target`.

use super::support::text;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder of NumPy, where Python has none of its own, or why there is none. Installed once.
fn numpy() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let has_numpy = || python(&folder).args(["-c", "import numpy"]).output().is_ok_and(|output| output.status.success());
    if !has_numpy() {
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--retries", "1"];
        let mut install = python(&folder);
        install.args(pip).args(["--only-binary", ":all:", "--upgrade", "--target", text(&folder), "numpy"]);
        let output = install.output().map_err(|e| format!("python3: {e}"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        if !has_numpy() {
            return Err(format!("pip install numpy: {}", said.lines().last().unwrap_or("it failed")));
        }
    }
    Ok(folder)
}

/// Python, which finds packages in `folder` too.
fn python(folder: &Path) -> Command {
    let mut python = Command::new("python3");
    python.arg("-B").env("PYTHONPATH", folder).stdin(Stdio::null());
    python
}

#[test]
fn the_python_door_s_own_tests_pass() {
    let numpy = match numpy() {
        Ok(folder) => folder,
        Err(why) => {
            eprintln!("skipped: no Python with NumPy ({why})");
            return;
        }
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python");
    let mut tests = python(&numpy);
    tests.args(["-m", "unittest", "discover", "-s", "tests", "-v"]).current_dir(folder);
    let output = tests.env("DOPPLER", env!("CARGO_BIN_EXE_doppler")).output().expect("Python starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // That they were found is said too.
    assert!(said.contains("test_the_notebook_runs") && said.contains("\nOK"), "{said}");
}
