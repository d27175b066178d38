//! A model folder in Hugging Face's layout, on a native file system: its texts are read, its weights mapped.
//! It interprets neither.

use super::ModelFiles;
use crate::error::{Error, Result};
use crate::formats::shards::ShardIndex;
use crate::formats::{InMemory, ModelTexts};
use std::path::Path;

/// Opens the model folder at `path`. Weights are not read yet, only mapped.
///
/// # Errors
/// `Kind::Io` when `path` is no readable folder, has no `config.json` or no safetensors files (saying what is there);
/// `Kind::Format` for empty texts and texts that are not UTF-8; `Kind::Weights` listing all missing shards.
pub fn open_directory(path: &Path) -> Result<ModelFiles> {
    let names = list(path)?;
    let Some(texts) = ModelTexts::read(|name| read_text(path, &names, name))? else {
        return Err(Error::io(path.display(), format!("no config.json in this folder; it holds {}", told(&names))));
    };
    let (sources, shards) = weights(path, &names)?;
    Ok(ModelFiles { path: path.to_path_buf(), texts, sources, shards, notes: Vec::new() })
}

/// Names of the files in a folder, sorted.
fn list(path: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io(path.display(), e);
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_dir() {
        let hint = "expected a model folder (config.json, *.safetensors), found a file";
        return Err(Error::io(path.display(), hint));
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn read_text(path: &Path, names: &[String], name: &str) -> Result<Option<String>> {
    if !names.iter().any(|n| n == name) {
        return Ok(None);
    }
    let file = path.join(name);
    let bytes = std::fs::read(&file).map_err(|e| Error::io(file.display(), e))?;
    let text = String::from_utf8(bytes).map_err(|e| Error::format(file.display(), format!("not UTF-8: {}", e.utf8_error())))?;
    if text.trim().is_empty() && name != "chat_template.jinja" {
        return Err(Error::format(file.display(), format!("empty ({} bytes); download it again", text.len())));
    }
    if text.starts_with("version https://git-lfs") {
        return Err(Error::format(file.display(), "a Git LFS pointer: the file itself was not downloaded (try `git lfs pull`)"));
    }
    Ok(Some(text))
}

/// The weight files as transformers finds them: `model.safetensors`, else the files of its index, else whatever
/// single or completely numbered safetensors files there are.
fn weights(path: &Path, names: &[String]) -> Result<(Vec<InMemory>, Option<ShardIndex>)> {
    const INDEX: &str = "model.safetensors.index.json";
    let open = |files: &[String]| files.iter().map(|f| InMemory::open(&path.join(f))).collect::<Result<Vec<_>>>();
    if names.iter().any(|n| n == "model.safetensors") {
        return Ok((open(&["model.safetensors".to_string()])?, None));
    }
    if let Some(text) = read_text(path, names, INDEX)? {
        let shards = ShardIndex::parse(&path.join(INDEX).display().to_string(), &text)?;
        let absent: Vec<&String> = shards.files.iter().filter(|f| !path.join(f).is_file()).collect();
        missing_shards(path, &absent, shards.files.len())?;
        return Ok((open(&shards.files)?, Some(shards)));
    }
    let found: Vec<String> = names.iter().filter(|n| n.ends_with(".safetensors")).cloned().collect();
    match &found[..] {
        [] => Err(Error::io(path.display(), without_weights(names))),
        [_] => Ok((open(&found)?, None)),
        [first, ..] => {
            let all = numbered(first).filter(|all| found.iter().all(|f| all.contains(f)));
            let Some(all) = all else {
                let text = format!("several safetensors files and no {INDEX} to say which belong together: {}", told(&found));
                return Err(Error::io(path.display(), text));
            };
            missing_shards(path, &all.iter().filter(|f| !found.contains(f)).collect::<Vec<_>>(), all.len())?;
            Ok((open(&found)?, None))
        }
    }
}

fn missing_shards(path: &Path, absent: &[&String], all: usize) -> Result<()> {
    if absent.is_empty() {
        return Ok(());
    }
    let list = absent.iter().map(|f| format!("\n  {f}")).collect::<String>();
    Err(Error::weights(format!("{}: {} of {all} weight files are missing:{list}", path.display(), absent.len())))
}

/// All names of the set that `NAME-00001-of-00003.safetensors` belongs to.
fn numbered(name: &str) -> Option<Vec<String>> {
    let stem = name.strip_suffix(".safetensors")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (start, number) = rest.rsplit_once('-')?;
    let (of, digits): (usize, usize) = (count.parse().ok()?, number.len());
    (of <= 10_000).then(|| (1..=of).map(|i| format!("{start}-{i:0digits$}-of-{count}.safetensors")).collect())
}

/// Why a folder without safetensors cannot be loaded, and what to do.
fn without_weights(names: &[String]) -> String {
    let has = |endings: &[&str]| names.iter().any(|n| endings.iter().any(|e| n.ends_with(e)));
    let hint = if has(&[".bin", ".pt", ".pth"]) {
        "; its weights are PyTorch files: save the model again with transformers' `save_pretrained`, which writes safetensors"
    } else if has(&[".gguf"]) {
        "; it holds GGUF files, which are not read from a folder"
    } else if has(&[".h5", ".msgpack", ".onnx"]) {
        "; its weights are for another framework"
    } else {
        ""
    };
    format!("no safetensors files in this folder; it holds {}{hint}", told(names))
}

/// At most a dozen names.
fn told(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(12).map(String::as_str).collect();
    match names.len() {
        0 => "nothing".to_string(),
        n if n > 12 => format!("{}, … ({n} files)", shown.join(", ")),
        _ => shown.join(", "),
    }
}
