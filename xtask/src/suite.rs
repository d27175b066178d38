//! `cargo test` over the workspace, its output passed through, its counts summed in the last line.

use crate::{Result, cargo};
use std::io::{BufRead, BufReader, Write};
use std::process::{ExitCode, Stdio};
use std::time::Instant;

/// Counts of tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
    /// Tests that said `skipped: …` and passed in the eyes of the test runner.
    skipped: usize,
}

impl Counts {
    /// Reads a line of output, if it says something.
    fn read(&mut self, line: &str) {
        if line.contains("skipped: ") {
            self.skipped += 1;
        }
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        let count = |what: &str| counts.split([';', '.']).find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok()).unwrap_or(0);
        self.passed += count("passed");
        self.failed += count("failed");
        self.ignored += count("ignored");
    }
}

/// Runs every test; false when one failed. `failed` are stages that failed before, told once more at the end.
pub fn run(failed: &[&str]) -> Result<bool> {
    println!("== tests");
    let start = Instant::now();
    let mut command = cargo(&["test", "--locked", "--workspace", "--no-fail-fast"]);
    if std::env::var("CI").as_deref() == Ok("true") {
        command.env("DOPPLER_REQUIRE_GPU", "1").env("DOPPLER_REQUIRE_BROWSER", "1");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| format!("cargo test: {e}"))?;
    let mut counts = Counts::default();
    let mut out = std::io::stdout();
    for line in child.stdout.take().into_iter().flat_map(|pipe| BufReader::new(pipe).split(b'\n')) {
        let line = line?;
        out.write_all(&line)?;
        out.write_all(b"\n")?;
        counts.read(&String::from_utf8_lossy(&line));
    }
    let status = child.wait()?;
    println!("== tests: {:.1} s", start.elapsed().as_secs_f64());
    if !status.success() && counts.failed == 0 {
        println!("== cargo test FAILED before or between tests: {status}");
    }
    if !failed.is_empty() {
        println!("== stages that FAILED before: {}", failed.join(", "));
    }
    let Counts { passed, failed, ignored, skipped } = counts;
    println!("{} passed, {failed} failed, {} skipped", passed.saturating_sub(skipped), ignored + skipped);
    Ok(status.success())
}

/// `cargo xtask fuzz`: the target, how many inputs, the seed, the most seconds; what is not told is the test's to choose.
pub fn fuzz(told: &[&str]) -> Result<ExitCode> {
    if told.first().is_some_and(|word| word.starts_with('-')) {
        return Err("usage: cargo xtask fuzz [TARGET|all] [INPUTS] [SEED] [SECONDS]".into());
    }
    let mut command =
        cargo(&["test", "--locked", "--workspace", "--test", "suite", "--", "fuzz::at_length", "--exact", "--ignored", "--nocapture"]);
    for (name, value) in ["DOPPLER_FUZZ_TARGET", "DOPPLER_FUZZ_INPUTS", "DOPPLER_FUZZ_SEED", "DOPPLER_FUZZ_SECONDS"].iter().zip(told) {
        command.env(name, value);
    }
    let status = command.status().map_err(|e| format!("cargo test: {e}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_what_test_binaries_say() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "skipped: no browser",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.30s",
        ] {
            counts.read(line);
        }
        assert_eq!(counts, Counts { passed: 13, failed: 2, ignored: 1, skipped: 1 });
    }
}
