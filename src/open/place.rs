//! What lies at a path of this machine: a folder in Hugging Face's layout, one with a manifest, a GGUF file. It knows no Hub
//! and no built-in model.

use super::manifest::open_folder;
use super::{Opened, open_gguf};
use crate::config::ResolveOptions;
use crate::error::{Error, Result};
use crate::formats::gguf::{Sizes, choose, is_gguf, split_files};
use crate::formats::{Local, LocalFile, manifest};
use crate::loader::{ModelFiles, model_folder, open_directory};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The form in which a model lies on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// config.json and what lies around it.
    Folder,
    /// A GGUF file, the first where there are several.
    Gguf,
    /// A folder with a manifest.
    Manifest,
}

/// The form of the model at `path`, and where exactly it is: a folder may hold a GGUF file and nothing else. `option` stands
/// before a path where an error says how one of several models is chosen: `-m `.
///
/// # Errors
/// `Kind::Io` saying what is there in place of a model, or between which models to choose.
pub fn find(path: &Path, option: &str) -> Result<(Form, PathBuf)> {
    let wrong = |message: &str| Err(Error::io(path.display(), message));
    match () {
        () if is_gguf(&path.to_string_lossy()) && !path.is_dir() => Ok((Form::Gguf, path.to_path_buf())),
        () if path.join(manifest::FILE).is_file() => Ok((Form::Manifest, path.to_path_buf())),
        () if path.is_file() => {
            wrong("expected a model folder or a GGUF file, found another file; give the folder that holds config.json and *.safetensors")
        }
        () if !path.is_dir() => wrong(&format!("{} with config.json and *.safetensors, or a GGUF file", no_such(path))),
        () => Ok(match only_gguf(path, option)? {
            Some(file) => (Form::Gguf, file),
            None => (Form::Folder, path.to_path_buf()),
        }),
    }
}

/// That there is nothing at `path`, a file's or a folder's by what its name ends with, up to what to give in place of it.
pub fn no_such(path: &Path) -> &'static str {
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending {
        Some("safetensors" | "json" | "bin" | "pt" | "pth") => "no such file; give a folder",
        _ => "no such folder; give one",
    }
}

/// The files of the model of this form at `path`. Of weights, only headers are read.
///
/// # Errors
/// Those of `open_directory`, `open_gguf` and `manifest::open_folder`; `Kind::Io` for files that are missing.
pub fn files(form: Form, path: &Path) -> Result<ModelFiles> {
    match form {
        Form::Folder => open_directory(path),
        Form::Gguf => gguf(path),
        Form::Manifest => open_folder(path),
    }
}

/// The model at `path`.
///
/// # Errors
/// Those of [`find`], [`files`] and `Opened::new`.
pub fn open(path: &Path, options: ResolveOptions) -> Result<Opened> {
    let (form, path) = find(path, "")?;
    let files = files(form, &path)?;
    Opened::new(name(&files.path), files, options)
}

/// Name of the folder or file at `path`.
pub fn name(path: &Path) -> String {
    let whole = path.canonicalize();
    let name = whole.as_deref().unwrap_or(path).file_name();
    name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The first file of the GGUF model in a folder without safetensors; `None` where the folder is something else.
fn only_gguf(path: &Path, option: &str) -> Result<Option<PathBuf>> {
    let (folder, _) = model_folder(path)?;
    let failed = |e| Error::io(folder.display(), e);
    let mut files = Sizes::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Of a link, the size of what it leads to.
        let size = std::fs::metadata(entry.path()).ok().map(|about| about.len());
        files.insert(entry.file_name().to_string_lossy().into_owned(), size);
    }
    if files.keys().any(|name| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")) {
        return Ok(None);
    }
    let place = folder.display().to_string();
    let names = choose(&place, &format!("{option}{}", folder.join("FILE").display()), None, &files)?;
    Ok(names.and_then(|names| Some(folder.join(names.first()?))))
}

/// The model in the GGUF file at `path`, with the other files of its set where it is one of several.
fn gguf(path: &Path) -> Result<ModelFiles> {
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let all = split_files(&file).map_or_else(|| vec![path.to_path_buf()], |names| names.iter().map(|n| path.with_file_name(n)).collect());
    let absent: Vec<String> = all.iter().filter(|file| !file.is_file()).map(|file| file.display().to_string()).collect();
    if let [first, ..] = &absent[..] {
        let others = if absent.len() > 1 { format!(", and {} more files of this model", absent.len() - 1) } else { String::new() };
        return Err(Error::io(first, format!("no such file{others}")));
    }
    let sources = all.iter().map(|file| LocalFile::open(file).map(Local::File)).collect::<Result<Vec<_>>>()?;
    pollster::block_on(open_gguf(path.to_path_buf(), sources))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_model_is_explained() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let message = |path: &Path| open(path, ResolveOptions::default()).map(|_| ()).unwrap_err().message;
        assert!(message(&root.join("no/such/folder")).contains("no such folder; give one with config.json"));
        assert!(message(&root.join("missing.safetensors")).contains("no such file; give a folder"));
        assert!(message(&root.join("model.gguf")).contains("no such file"));
        assert!(message(&root.join("Cargo.toml")).contains("found another file"));
        assert!(message(&root.join("src")).contains("no config.json"));
        let of_folder = open(&root.join("tests/data/gemma2"), ResolveOptions::default()).unwrap();
        assert_eq!(of_folder.name, "gemma2");
    }
}
