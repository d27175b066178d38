//! What lies in people's model folders in addition to a model, or in place of one: adapters, unfinished downloads, the
//! Hub's cache, other tokenizers. It says what it is and what to do; it opens no weights.

use super::links::check_within;
use crate::error::{Error, Result};
use crate::formats::text::{MAX_TEXT, read_text};
use std::path::{Path, PathBuf};

const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: [&str; 3] = ["adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"];

/// Names of what is in a folder, sorted.
pub(super) fn list(path: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io(path.display(), e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// At most a dozen names.
pub(super) fn listed(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(12).map(String::as_str).collect();
    match names.len() {
        0 => "nothing".to_string(),
        n if n > 12 => format!("{}, … ({n} files)", shown.join(", ")),
        _ => shown.join(", "),
    }
}

/// The safetensors files that may be a model's weights: no adapters; no copy in the layout of the original release where
/// there is another one.
pub(super) fn weight_files(names: &[String]) -> Vec<String> {
    let mut found: Vec<String> =
        names.iter().filter(|n| n.ends_with(".safetensors") && !ADAPTER_WEIGHTS.contains(&n.as_str())).cloned().collect();
    if found.iter().any(|n| !n.starts_with("consolidated")) {
        found.retain(|n| !n.starts_with("consolidated"));
    }
    found
}

/// What there is to say of an adapter in the folder at `path`.
///
/// # Errors
/// `Kind::Unsupported` when there is nothing but the adapter.
pub(super) fn adapter(path: &Path, names: &[String]) -> Result<Option<String>> {
    let has = |name: &str| names.iter().any(|n| n == name);
    let weights = ADAPTER_WEIGHTS.into_iter().find(|name| has(name));
    let Some(file) = weights.or(Some(ADAPTER_CONFIG).filter(|name| has(name))) else { return Ok(None) };
    // What it says only makes the message better, so that a broken one is no error of its own.
    let config = Some(path.join(ADAPTER_CONFIG)).filter(|file| has(ADAPTER_CONFIG) && check_within(path, file).is_ok());
    let config = config.and_then(|file| read_text(&file, MAX_TEXT).ok());
    let config = config.and_then(|text| crate::json::parse(ADAPTER_CONFIG, &text).ok()).unwrap_or_default();
    let kind = config["peft_type"].as_str().filter(|kind| *kind != "LORA").unwrap_or("LoRA");
    let base = config["base_model_name_or_path"].as_str().filter(|base| !base.is_empty());
    let base = base.map_or_else(String::new, |base| format!(" for `{base}`"));
    let others = |n: &String| [".bin", ".pt", ".pth", ".gguf"].iter().any(|e| n.ends_with(e)) && !ADAPTER_WEIGHTS.contains(&n.as_str());
    if weight_files(names).is_empty() && !has("model.safetensors.index.json") && !names.iter().any(others) {
        return Err(Error::unsupported(format!(
            "{}: this folder holds a {kind} adapter{base} ({file}) and not a model; adapters are not applied: merge it into the base (`merge_and_unload` of peft) and give the merged model's folder",
            path.display()
        )));
    }
    let there = if has(ADAPTER_CONFIG) { "; transformers applies it where peft is installed" } else { "" };
    Ok(Some(format!("{file}: a {kind} adapter{base} lies in the model's folder and is not applied{there}")))
}

/// The snapshot to use, and a sentence about it, where `path` is the Hub's cache folder of one model.
///
/// # Errors
/// `Kind::Io` when there are several snapshots and no `refs/main`, none, or the caches of several models.
pub(super) fn snapshot(path: &Path) -> Result<Option<(PathBuf, String)>> {
    let names = list(path)?;
    let is = |name: &str| names.iter().any(|n| n == name);
    if is("config.json") {
        return Ok(None);
    }
    let models: Vec<String> = names.iter().filter(|n| n.starts_with("models--")).cloned().collect();
    if !models.is_empty() {
        return Err(Error::io(path.display(), format!("the Hub's cache of several models; give the folder of one: {}", listed(&models))));
    }
    if !is("snapshots") {
        return Ok(None);
    }
    let folder = path.join("snapshots");
    let snapshots = list(&folder)?;
    let main = read_text(&path.join("refs").join("main"), 1024).ok().map(|text| text.trim().to_string());
    let main = main.filter(|name| snapshots.contains(name));
    let (name, why) = match (&main, &snapshots[..]) {
        (Some(name), _) => (name, "which refs/main names"),
        (None, [only]) => (only, "the only one"),
        (None, []) => return Err(Error::io(path.display(), format!("no snapshot is in this cache folder{}", unfinished(path)))),
        (None, _) => {
            let message =
                format!("there are several snapshots and no refs/main to say which counts; give one of snapshots/: {}", listed(&snapshots));
            return Err(Error::io(path.display(), message));
        }
    };
    Ok(Some((folder.join(name), format!("of the Hub's cache, snapshot {name} is used, {why}"))))
}

/// Refuses a link to a file that is not there.
pub(super) fn check_link(file: &Path) -> Result<()> {
    match std::fs::read_link(file) {
        Ok(target) if !file.exists() => {
            let hint = file.parent().map_or_else(String::new, unfinished);
            let message = format!("a link to {}, which is not there{hint}", target.display());
            Err(Error::io(file.display(), message))
        }
        _ => Ok(()),
    }
}

/// Says so, after a semicolon, where the download into `folder` did not finish: partial files of the Hub's client, in the
/// folder or in the cache that it belongs to, and links to files that are not there.
pub(super) fn unfinished(folder: &Path) -> String {
    let here = list(folder).unwrap_or_default();
    let partial = |path: PathBuf| list(&path).unwrap_or_default().into_iter().find(|n| n.ends_with(".incomplete"));
    // A snapshot's files are links into `blobs` of the model's cache folder.
    let cache = [folder.join("blobs"), folder.join("../../blobs"), folder.join(".cache/huggingface/download")];
    let found = std::iter::once(folder.to_path_buf()).chain(cache).find_map(partial);
    let broken = || here.iter().find(|n| folder.join(n).is_symlink() && !folder.join(n).exists()).cloned();
    match found.or_else(broken) {
        Some(file) => format!("; the download did not finish ({file}): run it again (`hf download ORG/NAME`)"),
        None => String::new(),
    }
}

/// Which tokenizer a folder without tokenizer.json has, and what makes one of it; for messages.
pub(super) fn other_tokenizer(names: &[String]) -> Option<String> {
    let all = |wanted: &[&str]| wanted.iter().all(|w| names.iter().any(|n| n == w)).then(|| wanted.join(" and "));
    let ending = |end: &str| names.iter().find(|n| n.ends_with(end)).cloned();
    let found = all(&["tokenizer.model"])
        .or_else(|| all(&["tekken.json"]))
        .or_else(|| all(&["vocab.json", "merges.txt"]))
        .or_else(|| ending(".tiktoken"))
        .or_else(|| names.iter().find(|n| n.starts_with("tokenizer.model.")).cloned())
        .or_else(|| all(&["spiece.model"]).or_else(|| ending(".spm")).or_else(|| all(&["vocab.txt"])).or_else(|| all(&["vocab.json"])));
    let hint = "make tokenizer.json of it with transformers (`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`)";
    found.map(|files| format!("there is {files}, which is not read: {hint}"))
}
