//! One diagnosis: the fault is planted in a copy of the model, the doctor is asked in a process of its own, and its answer is
//! judged.

use super::draw::Draw;
use super::files::Folder;
use super::mutants::{Kind, Mutant, Setting, class, folder};
use super::plant::PLANTS;
use super::plant::formulas::{FORMULA_PLANTS, reference};
use super::plant::gguf::{GGUF_PLANTS, Gguf};
use super::plant::kernels::{KERNEL_PLANTS, planted};
use crate::{Result, root};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Seconds for one diagnosis. What ends it is said in the result.
const LIMIT: &str = "600";
/// Words for prompts and texts.
const WORDS: [&str; 12] =
    ["alpha", "the fox", "model says", "x = 3", "table and egg", "twice", "on the way", "no", "a river", "seven", "(left)", "who?"];

/// Plants, asks, and judges the answer; `None` where the model cannot have the fault.
pub fn diagnose(binary: &Path, mutant: &Mutant, seed: u64, scratch: &Path) -> Result<Option<Value>> {
    let mut draw = Draw::new(mutant.id.bytes().fold(seed, |hash, b| hash.wrapping_mul(0x100_0000_01b3) ^ u64::from(b)));
    let Some(model) = spoiled(binary, mutant, &mut draw, scratch)? else { return Ok(None) };
    let mut command = Command::new("timeout");
    command.arg(LIMIT).arg(binary).args(["doctor", "--json", "-", "-m"]).arg(&model).env("DOPPLER_RESIDENT", "off");
    let right = folder(&mutant.model);
    match mutant.setting {
        Setting::Golden => {
            command.args(["--device", "cpu", "--reference"]).arg(right.join("golden.safetensors"));
        }
        Setting::Right { long } => {
            command.args(["--device", "cpu", "--reference"]).arg(copy_without_dump(&right, scratch)?);
            if right.join("tokenizer.json").is_file() {
                command.arg("--prompt").arg(text(&mut draw, if long { 40 } else { 5 }));
            }
        }
        Setting::Formula => {
            let to = scratch.with_extension("formula.safetensors");
            let Kind::Formula(plant) = mutant.kind else { return Ok(None) };
            if !otherwise(binary, plant, mutant, &draw, (&model, &to))? {
                return Ok(None);
            }
            command.args(["--device", "cpu", "--reference"]).arg(to);
        }
        Setting::Packed(_) => {
            command.args(["--device", "cpu", "--reference"]).arg(scratch.with_extension("right.gguf"));
            if right.join("tokenizer.json").is_file() {
                command.arg("--prompt").arg(text(&mut draw, 25));
            }
        }
        Setting::Alone { f16 } | Setting::Gpu { f16 } => {
            let device = if matches!(mutant.setting, Setting::Gpu { .. }) { "gpu" } else { "cpu" };
            command.args(["--device", device, "--dtype", if f16 { "f16" } else { "f32" }]);
            if mutant.kind == Kind::Clean && mutant.number > 0 {
                let path = scratch.with_extension("txt");
                std::fs::write(&path, known_text(&mutant.model, &mut draw)?)?;
                command.arg("--text").arg(path);
            }
        }
    }
    if let Kind::Kernel(plant) = mutant.kind {
        let (plant, kernels) = (&KERNEL_PLANTS[plant], scratch.with_extension("kernels"));
        let _ = std::fs::remove_dir_all(&kernels);
        std::fs::create_dir_all(kernels.join("shared"))?;
        let (own, name) = (root().join("src/gpu/kernels"), format!("{}.wgsl", plant.2));
        let to = if own.join(&name).is_file() { kernels.join(&name) } else { kernels.join("shared").join(&name) };
        std::fs::write(to, planted(plant, &own, &mut draw)?)?;
        command.arg("--kernels").arg(kernels);
    }
    let start = Instant::now();
    let output = command.output()?;
    let seconds = start.elapsed().as_secs_f64();
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Ok(Some(result(mutant, &verdict, seconds, &output)))
}

/// What is kept of an answer.
fn result(mutant: &Mutant, verdict: &Value, seconds: f64, output: &std::process::Output) -> Value {
    let (class, _) = class(mutant.kind);
    let mut causes: Vec<&str> = verdict["cause"].as_str().into_iter().collect();
    causes.extend(verdict["also"].as_array().into_iter().flatten().filter_map(|fault| fault["cause"].as_str()));
    let judged = judged(mutant.kind, &class, verdict["verdict"].as_str(), &causes);
    let mut result = json!({ "id": mutant.id, "class": class, "judged": judged, "cause": causes.join("+"), "seconds": (seconds * 100.0).round() / 100.0 });
    let gains = "no change makes it likelier by more than ";
    let gain = verdict["evidence"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|line| line.as_str()?.strip_prefix(gains)?.split(' ').next()?.parse::<f64>().ok());
    if let Some(gain) = gain {
        result["gain"] = json!(gain);
    }
    if !["named", "clean"].contains(&judged) {
        let first = |key: &str| verdict[key][0].as_str().map(|text| text.chars().take(160).collect::<String>());
        let error: String = String::from_utf8_lossy(&output.stderr).lines().filter(|line| line.starts_with("Error")).collect();
        result["why"] = json!(first("unexplained").or_else(|| first("evidence")).unwrap_or(error));
    }
    result
}

fn judged(kind: Kind, class: &str, verdict: Option<&str>, causes: &[&str]) -> &'static str {
    match (class, verdict) {
        (_, None) => "no answer",
        ("clean", Some("healthy")) => "clean",
        ("clean", _) => "false alarm",
        (_, Some("healthy")) => "missed",
        (_, Some("abstained")) => "abstained",
        ("two", _) => {
            let Kind::Two(a, b) = kind else { return "no answer" };
            let planted = [PLANTS[a].0, PLANTS[b].0];
            match causes.iter().filter(|cause| planted.contains(cause)).count() {
                2.. if causes.iter().all(|cause| planted.contains(cause)) => "named",
                _ if causes.iter().all(|cause| planted.contains(cause)) => "one of two",
                _ => "wrong name",
            }
        }
        (class, _) if causes.first() == Some(&class) => "named",
        // The kernel and its op are named, and not what is wrong with them.
        _ if matches!(kind, Kind::Kernel(_)) && causes.first() == Some(&"wrong_kernel") => "kernel only",
        _ => "wrong name",
    }
}

/// The model with its fault, as a folder or as a GGUF file.
fn spoiled(binary: &Path, mutant: &Mutant, draw: &mut Draw, scratch: &Path) -> Result<Option<PathBuf>> {
    let mut model = Folder::read(&folder(&mutant.model))?;
    let plants: Vec<usize> = match mutant.kind {
        Kind::Folder(plant) => vec![plant],
        Kind::Two(a, b) => vec![a, b],
        _ => Vec::new(),
    };
    for plant in plants {
        let (_, _, _, plant) = PLANTS[plant];
        if !plant(&mut model, mutant.layer, draw) {
            return Ok(None);
        }
    }
    model.write(scratch)?;
    let Setting::Packed(format) = mutant.setting else { return Ok(Some(scratch.to_path_buf())) };
    let right = scratch.with_extension("right.gguf");
    let _ = std::fs::remove_file(&right);
    let mut convert = Command::new(binary);
    convert.arg("convert").arg(scratch).args(["--quantize", format, "-o"]).arg(&right).env("DOPPLER_RESIDENT", "off");
    // Some models have no form in GGUF, and rows that are no whole blocks none in the format.
    if !convert.output()?.status.success() || !right.is_file() {
        return Ok(None);
    }
    let mut file = Gguf::read(std::fs::read(&right)?)?;
    if let Kind::Gguf(plant) = mutant.kind
        && !GGUF_PLANTS[plant].3(&mut file, mutant.layer, draw)
    {
        return Ok(None);
    }
    let to = scratch.with_extension("gguf");
    std::fs::write(&to, &file.bytes)?;
    Ok(Some(to))
}

/// Writes a run of `model` in which an op computes otherwise; false where the model has no such op.
fn otherwise(binary: &Path, plant: usize, mutant: &Mutant, draw: &Draw, (model, to): (&Path, &Path)) -> Result<bool> {
    let golden = super::plant::formulas::values(&std::fs::read(folder(&mutant.model).join("golden.safetensors"))?)?;
    let ids: Vec<String> = golden["input_ids"].0.values.iter().map(f32::to_string).collect();
    let run = |sets: &[String], to: &Path| -> Result {
        let mut command = Command::new(binary);
        command
            .args(["debug", "--no-resident", "--device", "cpu", "--max-tokens", "0", "-m"])
            .arg(model)
            .arg("--token-ids")
            .arg(ids.join(","));
        for set in sets {
            command.arg("--set").arg(set);
        }
        let _ = std::fs::remove_file(to);
        let output = command.arg("--dump").arg(to).output()?;
        let error = || format!("{}: {}", mutant.id, String::from_utf8_lossy(&output.stderr));
        // A rule may fire on what the fault makes of the values, which ends the command with 1.
        if to.is_file() { Ok(()) } else { Err(error().into()) }
    };
    reference(&FORMULA_PLANTS[plant], &Folder::read(&folder(&mutant.model))?, draw, to, &run)
}

/// A text of so many words.
fn text(draw: &mut Draw, words: usize) -> String {
    (0..words).map(|_| WORDS[draw.of(WORDS.len())]).collect::<Vec<_>>().join(" ")
}

/// Another part of the text that the built-in model should know, or for other models words.
fn known_text(model: &str, draw: &mut Draw) -> Result<String> {
    if model != "demo" {
        return Ok(text(draw, 160));
    }
    let whole = std::fs::read_to_string(folder(model).join("heldout.txt"))?;
    let lines: Vec<&str> = whole.lines().collect();
    let first = draw.of(lines.len() / 2);
    Ok(lines[first..].join("\n"))
}

/// The right model beside the mutant, where a dump does not pass for a weight file.
fn copy_without_dump(from: &Path, scratch: &Path) -> Result<PathBuf> {
    let to = scratch.with_extension("right");
    Folder::read(from)?.write(&to)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged() {
        let two = Kind::Two(0, 1);
        let planted = [PLANTS[0].0, PLANTS[1].0];
        assert_eq!(judged(Kind::Clean, "clean", Some("diagnosed"), &["race"]), "false alarm");
        assert_eq!(judged(Kind::Kernel(0), "race", Some("diagnosed"), &["wrong_kernel"]), "kernel only");
        assert_eq!(judged(Kind::Folder(0), planted[0], Some("diagnosed"), &["wrong_kernel"]), "wrong name");
        assert_eq!(judged(two, "two", Some("diagnosed"), &planted), "named");
        assert_eq!(judged(two, "two", Some("diagnosed"), &planted[..1]), "one of two");
        assert_eq!(judged(two, "two", Some("diagnosed"), &[planted[0], "race"]), "wrong name");
        assert_eq!(judged(two, "two", None, &[]), "no answer");
    }
}
