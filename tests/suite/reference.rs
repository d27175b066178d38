//! The Hugging Face scripts of `src/debug/reference`: they parse, their own tests pass where Python has what these need,
//! and the dumps they write are read here. torch is never required.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::golden::goldens;
use crate::support::{distance, length, skipped};
use doppler::debug::dump::Dump;

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/debug/reference")
}

/// `$DOPPLER_PYTHON`, else `python3`, writing no bytecode; `None` after saying that there is none.
fn python() -> Option<impl Fn() -> Command> {
    let name = std::env::var_os("DOPPLER_PYTHON").unwrap_or_else(|| "python3".into());
    let make = move || {
        let mut command = Command::new(&name);
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONIOENCODING", "utf-8");
        command
    };
    let found = make().arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        skipped("no Python was found: set DOPPLER_PYTHON");
    }
    found.then_some(make)
}

fn has(python: &impl Fn() -> Command, packages: &str) -> bool {
    python().args(["-c", &format!("import {packages}")]).output().is_ok_and(|output| output.status.success())
}

/// Runs to success; what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} ended with {}:\n{out}{err}", output.status);
    format!("{out}{err}")
}

/// The binary that the scripts ask for the stage table: `$DOPPLER`, else this workspace's, built if it is not up to date.
fn binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("DOPPLER") {
        return Some(PathBuf::from(path));
    }
    let exe = std::env::current_exe().expect("a test's own path");
    let profile = exe.ancestors().nth(2)?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "doppler-cli", "--target-dir"]).arg(profile.parent()?);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    run(cargo.current_dir(env!("CARGO_MANIFEST_DIR")));
    let path = profile.join(format!("doppler{}", std::env::consts::EXE_SUFFIX));
    path.is_file().then_some(path)
}

#[test]
fn scripts_parse() {
    let Some(python) = python() else { return };
    let folder = std::fs::read_dir(scripts()).expect("the scripts' folder");
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "py"));
    assert!(files.len() > 10, "{files:?}");
    // What `py_compile` does, but nothing is written.
    let parse = "import sys\nfor f in sys.argv[1:]: compile(open(f, encoding='utf-8').read(), f, 'exec')";
    run(python().args(["-c", parse]).args(&files));
}

#[test]
fn scripts_agree_with_goldens_and_the_binary() {
    let Some(python) = python() else { return };
    let tests: &[&str] = if has(&python, "numpy, torch, transformers, safetensors") {
        &[]
    } else if has(&python, "numpy") {
        skipped("Python has no torch, transformers and safetensors: the Hugging Face scripts that need no model run alone");
        &["PlainNumbers", "PlainRows", "PlainWeights"]
    } else {
        return skipped("Python has no numpy, torch, transformers and safetensors, so no Hugging Face script can run");
    };
    let Some(binary) = binary() else { return skipped("the `doppler` binary was not found: set DOPPLER") };
    let shown = run(python().arg(scripts().join("test_reference.py")).args(tests).env("DOPPLER", &binary));
    assert!(shown.contains("\nOK"), "{shown}");
}

/// The engine's reader takes what `hf_dump.py` writes, decode steps included.
#[test]
fn dumps_of_the_scripts_are_read() {
    let Some(python) = python() else { return };
    if !has(&python, "torch, transformers, safetensors") {
        return skipped("Python has no torch, transformers and safetensors: no dump was written");
    }
    let Some(binary) = binary() else { return skipped("the `doppler` binary was not found: set DOPPLER") };
    let golden = goldens().into_iter().find(|g| g.name == "gemma2").expect("a golden Gemma 2");
    let path = std::env::temp_dir().join(format!("doppler-reference-{}.safetensors", std::process::id()));
    let ids: Vec<String> = golden.prompt.iter().map(u32::to_string).collect();
    let mut dump = python();
    dump.arg(scripts().join("hf_dump.py")).arg("-m").arg(&golden.folder).args(["--token-ids", &ids.join(","), "--max-tokens", "3", "-o"]);
    run(dump.arg(&path).env("DOPPLER", &binary));
    let dump = Dump::open(&path).expect("a dump of the scripts");
    std::fs::remove_file(&path).expect("a file that is there");
    assert_eq!((dump.input_ids().unwrap(), &dump.unknown), (golden.prompt.clone(), &Vec::new()));
    assert_eq!(dump.generated_ids().unwrap().unwrap(), golden.generated[..3]);
    assert_eq!(dump.stages().len(), golden.values.len());
    for at in dump.stages() {
        let (mut found, expected) = (dump.value(*at).unwrap().unwrap(), &golden.values[&at.key()]);
        if expected.shape.len() == 2 {
            assert_eq!(found.shape[0], expected.shape[0] + 2, "{at}: two decode steps follow the prompt");
            found.data.truncate(expected.data.len());
            found.shape[0] = expected.shape[0];
        } else {
            let step = dump.step_value(2, *at).unwrap().unwrap();
            assert_eq!(step.shape[1..], [1, golden.prompt.len() + 2], "{at}");
        }
        // As in `test_reference.py`: ten times what was measured.
        assert!(distance(&found, expected) <= 3e-6 * length(expected), "{at}");
    }
}
