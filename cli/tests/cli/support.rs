//! Running the binary, folders to spoil, and what transformers computed.

use doppler::debug::dump::Dump;
use doppler::tensor::Tensor;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What a run of the binary left.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The JSON lines on stdout.
    pub fn records(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}\n{}", self.stderr))).collect()
    }
    /// The record of a type.
    pub fn record(&self, kind: &str) -> Value {
        let found = self.records().into_iter().find(|r| r["type"] == kind);
        found.unwrap_or_else(|| panic!("no {kind} in:\n{}{}", self.stdout, self.stderr))
    }
    /// The run must have gone well.
    #[track_caller]
    pub fn fine(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self
    }
    /// The run must have ended with one `Error` line that holds `parts`, exit code 2 and no panic.
    #[track_caller]
    pub fn refused(self, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(2), "{}\n{}", self.stdout, self.stderr);
        let errors = self.stderr.lines().filter(|line| line.starts_with("Error ")).count();
        assert_eq!(errors, 1, "{}", self.stderr);
        assert!(!self.stderr.contains("panic") && !self.stderr.contains("bug in Doppler"), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "expected `{part}` in: {}", self.stderr);
        }
        self
    }
}

/// The binary, its stdin closed, without a resident process.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doppler"));
    command.args(args).stdin(Stdio::null()).env("DOPPLER_RESIDENT", "off");
    command
}

pub fn finish(command: &mut Command) -> Ran {
    let output = command.output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

pub fn doppler(args: &[&str]) -> Ran {
    finish(&mut command(args))
}

/// The folder of a golden model, as an argument.
pub fn data(name: &str) -> String {
    format!("{}/../tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Names of all golden models.
pub fn models() -> Vec<String> {
    let folders = std::fs::read_dir(data("")).expect("tests/data");
    let mut names: Vec<String> = folders.map(|f| f.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| Path::new(&data(name)).join("golden.safetensors").is_file());
    names.sort();
    assert!(!names.is_empty(), "no golden models");
    names
}

/// What transformers computed for a model.
pub fn golden(name: &str) -> Dump {
    Dump::open(&Path::new(&data(name)).join("golden.safetensors")).expect("a golden file")
}

/// Ids as an argument.
pub fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// A JSON list of ids.
pub fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("a list of ids")
}

/// A place for a test's files.
pub fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("a folder for the test");
    path
}

/// A copy of a golden model's folder that a test may spoil.
pub fn copy(model: &str, name: &str) -> PathBuf {
    let to = scratch(name);
    for entry in std::fs::read_dir(data(model)).expect("a golden model") {
        let entry = entry.expect("an entry");
        if entry.file_name() == "golden.safetensors" {
            continue; // would pass for a weight file
        }
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
    to
}

/// Changes keys of a copy's config.json; null takes a key out.
pub fn change_config(folder: &Path, changes: Value) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect("config.json")).expect("JSON");
    for (key, value) in changes.as_object().expect("an object") {
        config[key] = value.clone();
        if value.is_null() {
            config.as_object_mut().expect("an object").remove(key);
        }
    }
    std::fs::write(&path, config.to_string()).expect("a changed config");
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Devices to test on: the oracle, and the GPU if there is one. `DOPPLER_REQUIRE_GPU=1` makes its lack a failure.
pub fn devices() -> &'static [&'static str] {
    static FOUND: OnceLock<Vec<&str>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let listed = doppler(&["devices", "--no-self-test", "--json", "-"]).fine();
        let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
        let has = listed["adapters"].as_array().is_some_and(|a| !a.is_empty());
        assert!(has || std::env::var("DOPPLER_REQUIRE_GPU").as_deref() != Ok("1"), "an adapter is required, and there is none");
        if has {
            return vec!["cpu", "gpu"];
        }
        eprintln!("skipped on the GPU: there is no adapter");
        vec!["cpu"]
    })
}

/// ‖a − b‖ / ‖b‖ over the leading rows that `b` has.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let sum = |f: fn(f64, f64) -> f64| a.data.iter().zip(&b.data).map(|(x, y)| f(f64::from(*x), f64::from(*y))).sum::<f64>();
    let (difference, length) = (sum(|x, y| (x - y).powi(2)).sqrt(), sum(|_, y| y * y).sqrt());
    if difference == 0.0 { 0.0 } else { difference / length }
}
