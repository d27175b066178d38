//! `cargo xtask faults`: plants faults in models from outside, has `doppler doctor` say what is wrong, and counts. The same
//! seed plants the same faults; a run that was ended goes on where it was. `docs/FAULTS.md` describes it.

mod files;
mod plant;

use crate::{Result, cargo, root, run};
use files::Folder;
use plant::{Draw, PLANTS};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// Seconds for one diagnosis.
const LIMIT: &str = "120";

/// One diagnosis that is asked for.
#[derive(Debug, Clone)]
struct Mutant {
    /// Unique: class, variant, model, layer, with or without a reference, number.
    id: String,
    model: String,
    /// Index into `PLANTS`; `None` is a clean run.
    plant: Option<usize>,
    layer: usize,
    reference: bool,
    number: u64,
}

/// `faults [SEED] [REPEATS] [CLEAN] [OUT]`: so many draws of each kind of fault in each model, so many clean runs of each.
pub fn campaign(arguments: &[&str]) -> Result<ExitCode> {
    let number = |at: usize, default: u64| arguments.get(at).map_or(Ok(default), |text| text.parse::<u64>());
    let (seed, repeats, clean) = (number(0, 1)?, number(1, 1)?, number(2, 4)?);
    let out = arguments.get(3).map_or_else(|| root().join("target/faults.jsonl"), PathBuf::from);
    let binary = match std::env::var_os("DOPPLER_BINARY") {
        Some(path) => PathBuf::from(path),
        None => {
            run(&mut cargo(&["build", "--locked", "--workspace", "--bin", "doppler"]))?;
            root().join("target/debug/doppler")
        }
    };
    let mutants = mutants(repeats, clean)?;
    let known: HashSet<String> = std::fs::read_to_string(&out).unwrap_or_default().lines().filter_map(id).collect();
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&out)?;
    let scratch = root().join("target/faults");
    let part = std::env::var("DOPPLER_FAULTS_ONLY").unwrap_or_default();
    for (i, mutant) in mutants.iter().enumerate() {
        if known.contains(&mutant.id) || !mutant.id.contains(&part) {
            continue;
        }
        if let Some(result) = diagnose(&binary, mutant, seed, &scratch)? {
            println!("{i} of {}: {} {}", mutants.len(), mutant.id, result["judged"].as_str().unwrap_or_default());
            writeln!(file, "{result}")?;
        }
    }
    print!("{}", table(&std::fs::read_to_string(&out)?));
    Ok(ExitCode::SUCCESS)
}

fn id(line: &str) -> Option<String> {
    Some(serde_json::from_str::<Value>(line).ok()?["id"].as_str()?.to_string())
}

/// Every fault in every model that may have it: in the first, a middle and the last layer, for those of a layer.
fn mutants(repeats: u64, clean: u64) -> Result<Vec<Mutant>> {
    let mut models: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(root().join("tests/data"))? {
        let path = entry?.path();
        if path.join("golden.safetensors").is_file() {
            models.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    models.sort();
    let mut all = Vec::new();
    for model in models.iter().map(String::as_str).chain(["demo"]) {
        let reference = model != "demo";
        let layers = Folder::read(&folder(model))?.text_config().get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(3) as usize;
        for number in 0..clean {
            all.push(Mutant { id: format!("clean/{model}/{number}"), model: model.into(), plant: None, layer: 0, reference, number });
        }
        for (plant, (class, variant, per_layer, _)) in PLANTS.iter().enumerate() {
            let mut sites = if *per_layer { vec![0, layers / 2, layers - 1] } else { vec![0] };
            sites.dedup();
            for layer in sites {
                for number in 0..repeats {
                    let id = format!("{class}/{variant}/{model}/{layer}/{number}");
                    all.push(Mutant { id, model: model.into(), plant: Some(plant), layer, reference, number });
                }
            }
        }
    }
    Ok(all)
}

fn folder(model: &str) -> PathBuf {
    root().join(if model == "demo" { "models/demo".into() } else { format!("tests/data/{model}") })
}

/// Plants, asks, and judges the answer; `None` where the model cannot have the fault.
fn diagnose(binary: &Path, mutant: &Mutant, seed: u64, scratch: &Path) -> Result<Option<Value>> {
    let mut folder_of = Folder::read(&folder(&mutant.model))?;
    let hash = mutant.id.bytes().fold(seed.wrapping_add(mutant.number), |hash, b| hash.wrapping_mul(0x100_0000_01b3) ^ u64::from(b));
    let mut draw = Draw::new(hash);
    let class = match mutant.plant {
        Some(plant) => {
            let (class, _, _, plant) = PLANTS[plant];
            if !plant(&mut folder_of, mutant.layer, &mut draw) {
                return Ok(None);
            }
            class
        }
        None => "clean",
    };
    folder_of.write(scratch)?;
    let mut command = Command::new("timeout");
    command.arg(LIMIT).arg(binary).args(["doctor", "--device", "cpu", "--json", "-", "-m"]).arg(scratch).env("DOPPLER_RESIDENT", "off");
    if mutant.reference {
        let golden = folder(&mutant.model).join("golden.safetensors");
        match mutant.plant {
            // Clean runs after the first read other tokens, which the right model itself is the reference of.
            None if mutant.number > 0 => {
                let right = folder(&mutant.model);
                let words = ["alpha", "the fox", "model says", "x = 3", "table and egg", "twice", "on the way", "no"];
                let text: Vec<&str> = (0..3 + draw.of(5)).map(|_| words[draw.of(words.len())]).collect();
                command.arg("--reference").arg(copy_without_dump(&right, scratch)?);
                if right.join("tokenizer.json").is_file() {
                    command.arg("--prompt").arg(text.join(" "));
                }
            }
            _ => {
                command.arg("--reference").arg(golden);
            }
        }
    }
    let start = Instant::now();
    let output = command.output()?;
    let seconds = start.elapsed().as_secs_f64();
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    let code = output.status.code().unwrap_or(-1);
    let said = verdict["verdict"].as_str().unwrap_or("none").to_string();
    let cause = verdict["cause"].as_str().unwrap_or_default().to_string();
    let judged = match (class, said.as_str()) {
        (_, "none") => "no answer",
        ("clean", "healthy") => "clean",
        ("clean", _) => "false alarm",
        (_, "healthy") => "missed",
        (_, "abstained") => "abstained",
        (class, _) if class == cause => "named",
        _ => "wrong name",
    };
    let error: String = String::from_utf8_lossy(&output.stderr).lines().filter(|line| line.starts_with("Error")).collect();
    Ok(Some(json!({
        "id": mutant.id, "class": class, "model": mutant.model, "layer": mutant.layer, "reference": mutant.reference, "seed": seed,
        "judged": judged, "verdict": said, "cause": cause, "site": verdict["site"], "fix": verdict["fix"]["text"], "evidence": verdict["evidence"],
        "unexplained": verdict["unexplained"], "suspects": verdict["suspects"].as_array().map_or(0, Vec::len), "exit": code, "seconds": seconds, "error": error,
    })))
}

/// The right model beside the mutant, where a dump does not pass for a weight file.
fn copy_without_dump(from: &Path, scratch: &Path) -> Result<PathBuf> {
    let to = scratch.with_extension("right");
    Folder::read(from)?.write(&to)?;
    Ok(to)
}

/// Counts by class, of diagnoses with and without a reference.
fn table(lines: &str) -> String {
    let mut rows: BTreeMap<(bool, String), BTreeMap<String, usize>> = BTreeMap::new();
    let mut seconds: Vec<f64> = Vec::new();
    for result in lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let class = result["class"].as_str().unwrap_or_default().to_string();
        let judged = result["judged"].as_str().unwrap_or_default().to_string();
        let reference = result["reference"].as_bool().unwrap_or_default();
        seconds.push(result["seconds"].as_f64().unwrap_or_default());
        for key in [class, "all".to_string()] {
            if key == "all" && ["clean", "false alarm"].contains(&judged.as_str()) {
                continue;
            }
            *rows.entry((!reference, key)).or_default().entry(judged.clone()).or_default() += 1;
        }
    }
    let columns = ["named", "wrong name", "abstained", "missed", "no answer", "clean", "false alarm"];
    let mut text = format!("{:<34}", "");
    columns.iter().for_each(|column| text.push_str(&format!(" {column:>11}")));
    text.push('\n');
    for ((without, class), counts) in rows {
        text.push_str(&format!("{:<34}", format!("{class}{}", if without { " (no reference)" } else { "" })));
        columns.iter().for_each(|column| text.push_str(&format!(" {:>11}", counts.get(*column).copied().unwrap_or(0))));
        text.push('\n');
    }
    seconds.sort_by(f64::total_cmp);
    if let (Some(median), Some(worst)) = (seconds.get(seconds.len() / 2), seconds.last()) {
        text.push_str(&format!("{} diagnoses, median {median:.2} s, worst {worst:.2} s\n", seconds.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted() {
        let line = |class: &str, judged: &str| json!({"class": class, "judged": judged, "reference": true, "seconds": 1.0}).to_string();
        let text = table(&[line("norm_eps", "named"), line("clean", "clean")].join("\n"));
        assert!(text.contains("2 diagnoses, median 1.00 s"), "{text}");
        assert_eq!(text.lines().find(|line| line.starts_with("all")).and_then(|line| line.split_whitespace().nth(1)), Some("1"), "{text}");
    }
}
