//! A model folder in Hugging Face's layout, on a native file system: its texts are read, its weight files opened.
//! It interprets neither. Other things that lie in people's folders are known to `leftovers`.

use super::ModelFiles;
use super::leftovers::{self, list, listed};
use super::links::leads_out;
use crate::error::{Error, Result};
use crate::formats::shards::ShardIndex;
use crate::formats::text::{MAX_INDEX, MAX_TEXT, MAX_TOKENIZER, read_text, read_verbatim};
use crate::formats::{Local, LocalFile, ModelTexts};
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const TEMPLATE: &str = "chat_template.jinja";

/// Opens the model folder at `path`, or the snapshot in the Hub's cache folder of one model. No weights are read yet.
///
/// # Errors
/// `Kind::Io` when `path` is no readable folder, has no `config.json` or no safetensors files (saying what is there), or a
/// download did not finish; `Kind::Unsupported` for an adapter without its model; `Kind::Format` for empty texts and
/// texts that are not UTF-8; `Kind::Weights` listing all missing shards.
pub fn open_directory(path: &Path) -> Result<ModelFiles> {
    let (path, snapshot) = model_folder(path)?;
    let names = list(&path)?;
    let mut notes: Vec<String> = snapshot.into_iter().collect();
    notes.extend(leftovers::adapter(&path, &names)?);
    let Some(texts) = ModelTexts::read(|name| {
        let limit = if name == "tokenizer.json" { MAX_TOKENIZER } else { MAX_TEXT };
        folder_text(&path, &names, name, limit)
    })?
    else {
        let hint = leftovers::unfinished(&path);
        return Err(Error::io(path.display(), format!("no config.json in this folder; it holds {}{hint}", listed(&names))));
    };
    if texts.chat_template.as_ref().is_some_and(|text| text.starts_with('\u{feff}')) {
        notes.push(format!("{TEMPLATE} begins with a byte-order mark, which becomes part of every prompt, as in transformers"));
    }
    let mut linked = Vec::new();
    for (name, _) in texts.iter() {
        if let Some(target) = leads_out(&path, &path.join(name))? {
            notes.push(format!(
                "{name} is a link out of the model's folder, to {}: it is read, and goes into nothing that is made of it",
                target.display()
            ));
            linked.push(name.to_string());
        }
    }
    let (sources, shards) = weights(&path, &names, &mut notes)?;
    let other_tokenizer = leftovers::other_tokenizer(&names).filter(|_| texts.tokenizer.is_none());
    Ok(ModelFiles { other_tokenizer, notes, linked, ..ModelFiles::new(path, texts, sources, shards) })
}

/// The folder that holds the files of the model at `path`, and what was chosen on the way to it: of the Hub's cache
/// folder of one model, the snapshot that `refs/main` names, or the only one.
///
/// # Errors
/// `Kind::Io` when `path` is no folder, or is the cache of several models or snapshots.
pub fn model_folder(path: &Path) -> Result<(PathBuf, Option<String>)> {
    let about = std::fs::metadata(path).map_err(|e| Error::io(path.display(), e))?;
    if !about.is_dir() {
        return Err(Error::io(path.display(), "expected a model folder (config.json, *.safetensors), found a file"));
    }
    Ok(leftovers::snapshot(path)?.map_or_else(|| (path.to_path_buf(), None), |(folder, note)| (folder, Some(note))))
}

fn folder_text(path: &Path, names: &[String], name: &str, limit: u64) -> Result<Option<String>> {
    if !names.iter().any(|n| n == name) {
        return Ok(None);
    }
    let file = path.join(name);
    leftovers::check_link(&file)?;
    let text = if name == TEMPLATE { read_verbatim(&file, limit)? } else { read_text(&file, limit)? };
    // Without rules for generation a model is run all the same, with a note.
    if text.trim().is_empty() && ![TEMPLATE, "generation_config.json"].contains(&name) {
        return Err(Error::format(file.display(), format!("empty ({} bytes); download it again", text.len())));
    }
    if text.starts_with("version https://git-lfs") {
        return Err(Error::format(file.display(), "a Git LFS pointer: the file itself was not downloaded (try `git lfs pull`)"));
    }
    Ok(Some(text))
}

/// The weight files as transformers finds them: `model.safetensors`, else the files of its index, else whatever
/// single or completely numbered safetensors files there are.
fn weights(path: &Path, names: &[String], notes: &mut Vec<String>) -> Result<(Vec<Local>, Option<ShardIndex>)> {
    let open = |files: &[String]| files.iter().map(|f| open_file(&path.join(f))).collect::<Result<Vec<_>>>();
    let index = || -> Result<Option<ShardIndex>> {
        let text = folder_text(path, names, INDEX, MAX_INDEX)?;
        text.map(|text| ShardIndex::parse(&path.join(INDEX).display().to_string(), &text)).transpose()
    };
    if names.iter().any(|n| n == SINGLE) {
        if names.iter().any(|n| n == INDEX) {
            notes.push(format!("{SINGLE} is read, as in transformers; {INDEX} and the files that it lists are passed over"));
        }
        return Ok((open(&[SINGLE.to_string()])?, None));
    }
    if let Some(shards) = index()? {
        let absent: Vec<&String> = shards.files.iter().filter(|f| !path.join(f).is_file()).collect();
        missing_shards(path, &absent, shards.files.len())?;
        return Ok((open(&shards.files)?, Some(shards)));
    }
    let found = leftovers::weight_files(names);
    match &found[..] {
        [] => Err(Error::io(path.display(), without_weights(path, names))),
        [_] => Ok((open(&found)?, None)),
        [first, ..] => {
            let all = numbered(first).filter(|all| found.iter().all(|f| all.contains(f)));
            let Some(all) = all else {
                let text = format!("several safetensors files and no {INDEX} to say which belong together: {}", listed(&found));
                return Err(Error::io(path.display(), text));
            };
            missing_shards(path, &all.iter().filter(|f| !found.contains(f)).collect::<Vec<_>>(), all.len())?;
            Ok((open(&found)?, None))
        }
    }
}

fn open_file(path: &Path) -> Result<Local> {
    leftovers::check_link(path)?;
    LocalFile::open(path).map(Local::File)
}

fn missing_shards(path: &Path, absent: &[&String], all: usize) -> Result<()> {
    if absent.is_empty() {
        return Ok(());
    }
    let list = absent.iter().map(|f| format!("\n  {f}")).collect::<String>();
    let hint = leftovers::unfinished(path);
    Err(Error::weights(format!("{}: {} of {all} weight files are missing:{list}{hint}", path.display(), absent.len())))
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
fn without_weights(path: &Path, names: &[String]) -> String {
    let has = |endings: &[&str]| names.iter().any(|n| endings.iter().any(|e| n.ends_with(e)));
    let hint = if has(&[".bin", ".pt", ".pth"]) {
        "; its weights are PyTorch files: save the model again with transformers' `save_pretrained`, which writes safetensors".into()
    } else if has(&[".gguf"]) {
        "; it holds GGUF files: give one of them in place of the folder".into()
    } else if has(&[".h5", ".msgpack", ".onnx"]) {
        "; its weights are for another framework".into()
    } else {
        leftovers::unfinished(path)
    };
    format!("no safetensors files in this folder; it holds {}{hint}", listed(names))
}
