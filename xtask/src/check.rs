//! `cargo xtask check`: the stages, each with its time; tests last, so that their result is what remains on the screen.

use crate::{Result, cargo, licences, run, setup, suite, web};
use std::process::ExitCode;
use std::time::Instant;

/// Runs every stage, also after one failed, and fails if one did. Nothing is printed after the tests' counts.
pub fn check() -> Result<ExitCode> {
    let mut failed = Vec::new();
    let mut stage = |name: &'static str, work: &dyn Fn() -> Result| {
        println!("== {name}");
        let start = Instant::now();
        let done = work();
        let seconds = start.elapsed().as_secs_f64();
        match done {
            Ok(()) => println!("== {name}: {seconds:.1} s"),
            Err(error) => {
                println!("== {name} FAILED after {seconds:.1} s: {error}");
                failed.push(name);
            }
        }
    };
    stage("set-up", &setup::setup);
    stage("formatting", &|| run(&mut cargo(&["fmt", "--all", "--", "--check", "-l"])));
    stage("clippy, native", &|| {
        run(&mut cargo(&["clippy", "--locked", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    });
    stage("clippy, wasm32", &|| {
        run(&mut cargo(&[
            "clippy",
            "--locked",
            "--quiet",
            "-p",
            "doppler",
            "-p",
            "doppler-web",
            "--target",
            web::TARGET,
            "--",
            "-D",
            "warnings",
        ]))
    });
    stage("licences", &licences::check);
    stage("wasm build", &|| web::build().map(drop));
    let passed = suite::run(&failed)?;
    Ok(if passed && failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
