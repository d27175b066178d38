//! From `-m MODEL` to a model that is understood. Its weights are not read yet.

use doppler::config::ResolveOptions;
use doppler::formats::gguf::split_files;
use doppler::formats::text::{MAX_TEXT, read_text};
use doppler::formats::{InMemory, Local, LocalFile, ModelTexts, manifest};
use doppler::loader::{ModelFiles, model_folder, open_directory};
use doppler::open::manifest::open_folder;
use doppler::open::{Opened, open_gguf};
use doppler::{Error, Result};
use pollster::block_on;
use std::path::{Path, PathBuf};

/// The built-in model's name.
pub const DEMO: &str = "demo";

/// The built-in model's files, put here by build.rs.
mod demo {
    include!(concat!(env!("OUT_DIR"), "/demo.rs"));
}
pub use demo::FILES as DEMO_FILES;

/// A model of this machine.
pub type Model = Opened<Local>;

/// Opens the model that `-m` names.
///
/// # Errors
/// Those of `open_directory` and `Opened::new`.
pub fn open(spec: &str, allow_unknown: bool) -> Result<Model> {
    let files = match () {
        () if spec == DEMO => built_in(DEMO_FILES)?,
        () if is_gguf(spec) => gguf(Path::new(spec))?,
        () if is_manifest(spec) => open_folder(Path::new(spec))?,
        () => open_directory(&folder(spec)?)?,
    };
    Opened::new(name(&files.path), files, ResolveOptions { allow_unknown })
}

/// As [`open`], but weights need not be there: reads the folder's config.json, or `spec` itself when it is a JSON file.
pub fn open_config(spec: &str, allow_unknown: bool) -> Result<Model> {
    if spec == DEMO || is_gguf(spec) || is_manifest(spec) {
        return open(spec, allow_unknown);
    }
    let given = Path::new(spec);
    let is_config = given.extension().is_some_and(|e| e == "json") && given.is_file();
    let path = if is_config { given.to_path_buf() } else { model_folder(&folder(spec)?)?.0 };
    let file = if is_config { given.to_path_buf() } else { path.join("config.json") };
    let generation = path.join("generation_config.json");
    let generation_config = generation.is_file().then(|| read_text(&generation, MAX_TEXT)).transpose()?;
    let texts = ModelTexts { config: read_text(&file, MAX_TEXT)?, generation_config, ..ModelTexts::default() };
    let files = ModelFiles::new(path, texts, Vec::new(), None);
    Opened::new(name(&files.path), files, ResolveOptions { allow_unknown })
}

/// The folder that `spec` names, or what to do when it names something else.
fn folder(spec: &str) -> Result<PathBuf> {
    let path = PathBuf::from(spec);
    if path.is_dir() {
        return Ok(path);
    }
    let wrong = |message: &str| Err(Error::io(spec, message));
    if path.is_file() {
        return wrong("expected a model folder, found a file; give the folder that holds config.json and *.safetensors");
    }
    let parts: Vec<&str> = spec.split('/').collect();
    if parts.len() == 2 && parts.iter().all(|part| !part.is_empty() && !part.starts_with('.')) {
        let hint = "no such folder; models cannot be downloaded from the Hub yet: download it (`hf download ORG/NAME --local-dir DIR`) and give the folder";
        return wrong(hint);
    }
    wrong("no such folder; give one with config.json and *.safetensors, or `demo`")
}

/// Whether `spec` names a GGUF file rather than a folder.
fn is_gguf(spec: &str) -> bool {
    let path = Path::new(spec);
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) && !path.is_dir()
}

/// Whether `spec` names a folder with a manifest.
fn is_manifest(spec: &str) -> bool {
    Path::new(spec).join(manifest::FILE).is_file()
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
    block_on(open_gguf(path.to_path_buf(), sources))
}

/// Name of the folder or file at `path`.
fn name(path: &Path) -> String {
    let whole = path.canonicalize();
    let name = whole.as_deref().unwrap_or(path).file_name();
    name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// A model made of embedded files.
fn built_in(files: &[(&str, &'static [u8])]) -> Result<ModelFiles> {
    let bytes = |name: &str| files.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes);
    let text = |name: &str| {
        let text = bytes(name).map(|bytes| String::from_utf8(bytes.to_vec()));
        text.transpose().map_err(|e| Error::format(format!("{DEMO}/{name}"), e))
    };
    const WEIGHTS: &str = "model.safetensors";
    let (Some(texts), Some(weights)) = (ModelTexts::read(text)?, bytes(WEIGHTS)) else {
        let hint = "this binary was built without the built-in model; give a model folder with -m DIR";
        return Err(Error::io(DEMO, hint));
    };
    let sources = vec![Local::Memory(InMemory::new(format!("{DEMO}/{WEIGHTS}"), weights))];
    Ok(ModelFiles::new(PathBuf::from(DEMO), texts, sources, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! golden {
        ($($name:literal)*) => { &[$(($name, include_bytes!(concat!("../../tests/data/gemma2/", $name)) as &[u8])),*] };
    }

    #[test]
    fn embedded_files_are_a_model() {
        let files = built_in(golden!("config.json" "generation_config.json" "tokenizer.json" "model.safetensors")).unwrap();
        let model = Opened::new(name(&files.path), files, ResolveOptions::default()).unwrap();
        assert_eq!(model.name, DEMO);
        assert_eq!(pollster::block_on(model.weights()).unwrap().matched.weights.len(), model.plan.weights.len());
        assert!(built_in(&[]).unwrap_err().message.contains("-m DIR"));
    }

    #[test]
    fn what_is_no_folder_is_explained() {
        let message = |spec| folder(spec).unwrap_err().message;
        assert!(message("google/gemma-2-2b-it").contains("Hub"));
        assert!(message("no/such/folder").contains("no such folder"));
        assert!(open("model.gguf", false).unwrap_err().message.contains("no such file"));
        assert!(message(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).contains("found a file"));
    }
}
