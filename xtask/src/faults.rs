//! `cargo xtask faults`: plants faults in models from outside, has `doppler doctor` say what is wrong, and counts. The same
//! seed plants the same faults; a run that was ended goes on where it was. `docs/FAULTS.md` describes it.

mod bugs;
mod diagnose;
mod draw;
mod files;
mod mutants;
mod plant;
mod table;

use crate::{Result, cargo, root, run};
use serde_json::Value;
use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// `faults [SEED] [OUT]`: every mutant that OUT has no line of. `faults table OUT` only counts. `DOPPLER_FAULTS_ONLY` has
/// parts that ids must have, or with `$` their end, with commas between; `DOPPLER_FAULTS_PART=1/3` is the second of three processes
/// that share the work. Built elsewhere, `DOPPLER_ROOT` is the folder of the repository and `DOPPLER_BINARY` the program that is run.
pub fn campaign(arguments: &[&str]) -> Result<ExitCode> {
    let default = || root().join("target/faults.jsonl");
    if let ["table", rest @ ..] = arguments {
        let lines = std::fs::read_to_string(rest.first().map_or_else(default, PathBuf::from))?;
        print!("{}\n{}", table::table(&lines), bugs::table(&lines));
        return Ok(ExitCode::SUCCESS);
    }
    let seed = arguments.first().map_or(Ok(1), |text| text.parse::<u64>())?;
    let out = arguments.get(1).map_or_else(default, PathBuf::from);
    let binary = match std::env::var_os("DOPPLER_BINARY") {
        Some(path) => PathBuf::from(path),
        None => {
            run(&mut cargo(&["build", "--locked", "--workspace", "--bin", "doppler"]))?;
            root().join("target/debug/doppler")
        }
    };
    let only = std::env::var("DOPPLER_FAULTS_ONLY").unwrap_or_default();
    let part = std::env::var("DOPPLER_FAULTS_PART").unwrap_or_else(|_| "0/1".into());
    let (number, of) = part.split_once('/').ok_or("DOPPLER_FAULTS_PART: expected NUMBER/OF")?;
    let (number, of) = (number.parse::<usize>()?, of.parse::<usize>()?.max(1));
    let known: HashSet<String> = std::fs::read_to_string(&out).unwrap_or_default().lines().filter_map(id).collect();
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&out)?;
    // Processes that write to different files are not in each other's way.
    let name = out.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let scratch = root().join(format!("target/faults-{name}-{number}"));
    let all = mutants::mutants()?;
    let has = |id: &str, part: &str| part.strip_suffix('$').map_or_else(|| id.contains(part), |end| id.ends_with(end));
    let meant = |id: &str| only.split(',').all(|part| has(id, part));
    for (i, mutant) in all.iter().enumerate() {
        if i % of != number || known.contains(&mutant.id) || !meant(&mutant.id) {
            continue;
        }
        if let Some(result) = diagnose::diagnose(&binary, mutant, seed, &scratch)? {
            println!("{i} of {}: {} {}", all.len(), mutant.id, result["judged"].as_str().unwrap_or_default());
            file.write_all(format!("{result}\n").as_bytes())?;
        }
    }
    let _ = std::fs::remove_dir_all(&scratch);
    for end in ["right", "kernels"] {
        let _ = std::fs::remove_dir_all(scratch.with_extension(end));
    }
    print!("{}", table::table(&std::fs::read_to_string(&out)?));
    Ok(ExitCode::SUCCESS)
}

fn id(line: &str) -> Option<String> {
    Some(serde_json::from_str::<Value>(line).ok()?["id"].as_str()?.to_string())
}
