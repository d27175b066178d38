//! From `-m MODEL` to a model that is understood. Its weights are not read yet.

use crate::hub::{self, HubId, Need};
use doppler::config::ResolveOptions;
use doppler::debug::interventions;
use doppler::formats::gguf::is_gguf;
use doppler::formats::text::{MAX_TEXT, read_text};
use doppler::formats::{InMemory, Local, LocalFile, ModelTexts};
use doppler::loader::{ModelFiles, model_folder};
use doppler::open::Opened;
use doppler::open::place::{self, Form, name};
use doppler::{Error, Result};
use pollster::block_on;
use serde::{Deserialize, Serialize};
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

/// Where a model is on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    kind: PlaceKind,
    path: PathBuf,
    /// Name for people.
    name: String,
    /// What was done otherwise than asked.
    notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum PlaceKind {
    BuiltIn,
    /// In a folder or file.
    Local(Form),
    /// A config.json alone.
    Config,
}

impl Place {
    fn new(kind: PlaceKind, path: &Path) -> Self {
        Self { kind, path: path.to_path_buf(), name: name(path), notes: Vec::new() }
    }
    /// Opens the model that is here.
    ///
    /// # Errors
    /// Those of `open_directory`, `open_gguf` and `Opened::new`.
    pub fn open(&self, allow_unknown: bool) -> Result<Model> {
        let files = match self.kind {
            PlaceKind::BuiltIn => built_in(DEMO_FILES)?,
            PlaceKind::Local(form) => place::files(form, &self.path)?,
            PlaceKind::Config => self.config()?,
        };
        self.opened(files, allow_unknown)
    }
    fn opened(&self, mut files: ModelFiles, allow_unknown: bool) -> Result<Model> {
        files.notes.splice(0..0, self.notes.iter().cloned());
        // What a folder's reader chose on the way may have the better name.
        let name = if self.name.is_empty() { name(&files.path) } else { self.name.clone() };
        Opened::new(name, files, ResolveOptions { allow_unknown })
    }
    /// The texts of the config alone.
    fn config(&self) -> Result<ModelFiles> {
        let (path, file) = match self.kind {
            PlaceKind::Config => (self.path.clone(), self.path.clone()),
            _ => model_folder(&self.path).map(|(path, _)| (path.clone(), path.join("config.json")))?,
        };
        let generation = path.join("generation_config.json");
        let generation_config = generation.is_file().then(|| read_text(&generation, MAX_TEXT)).transpose()?;
        let texts = ModelTexts { config: read_text(&file, MAX_TEXT)?, generation_config, ..ModelTexts::default() };
        Ok(ModelFiles::new(path, texts, Vec::new(), None))
    }
}

/// Opens the model that `-m` names.
///
/// # Errors
/// Those of [`locate`] and [`Place::open`].
pub fn open(spec: &str, allow_unknown: bool) -> Result<Model> {
    locate(spec, Need::Everything)?.open(allow_unknown)
}

/// As [`open`], but weights need not be there: reads the folder's config.json, or `spec` itself when it is a JSON file.
///
/// # Errors
/// Those of [`locate`] and [`Place::open`].
pub fn open_config(spec: &str, allow_unknown: bool) -> Result<Model> {
    let given = Path::new(spec);
    if given.extension().is_some_and(|e| e == "json") && given.is_file() {
        return Place::new(PlaceKind::Config, given).open(allow_unknown);
    }
    let place = locate(spec, Need::Config)?;
    match place.kind {
        PlaceKind::Local(Form::Folder) => place.opened(place.config()?, allow_unknown),
        _ => place.open(allow_unknown),
    }
}

/// Changes values of `model` as `texts` say, and no other, for a prompt of `prompt` tokens, where that is known.
///
/// # Errors
/// Those of `interventions::set`, and of opening the files that are named.
pub fn set(model: &mut Model, texts: &[String], prompt: Option<usize>) -> Result<()> {
    let open = |file: &str| LocalFile::open(Path::new(file)).map(Local::File);
    model.plan = block_on(interventions::set(&model.plan.unedited(), texts, prompt, &open))?;
    Ok(())
}

/// Where the model that `spec` names is. One of the Hub is downloaded, as far as it is needed and not here.
///
/// # Errors
/// `Kind::Io` saying what `spec` may be; those of `hub::fetch`.
pub fn locate(spec: &str, need: Need) -> Result<Place> {
    if let Some(place) = downloaded(spec, need)? {
        return Ok(place);
    }
    if spec == DEMO {
        return Ok(Place { name: DEMO.into(), ..Place::new(PlaceKind::BuiltIn, Path::new(DEMO)) });
    }
    local(spec)
}

/// Where the model of the Hub that `spec` names is; `None` where it names something of this machine.
///
/// # Errors
/// Those of `hub::fetch`.
pub fn downloaded(spec: &str, need: Need) -> Result<Option<Place>> {
    let path = Path::new(spec);
    if path.exists() || (is_gguf(spec) && !spec.contains(':')) {
        return Ok(None);
    }
    let Some(id) = HubId::parse(spec)? else { return Ok(None) };
    let found = hub::fetch(&id, need)?;
    let kind = PlaceKind::Local(if found.is_gguf { Form::Gguf } else { Form::Folder });
    Ok(Some(Place { kind, path: found.path, name: found.name, notes: found.notes }))
}

/// Where the model of this machine is that `spec` names, or what to do when it names something else.
fn local(spec: &str) -> Result<Place> {
    let path = Path::new(spec);
    if !path.exists() && !is_gguf(spec) {
        let hint = "with config.json and *.safetensors, a GGUF file, org/name of the Hub, or `demo`";
        return Err(Error::io(spec, format!("{} {hint}", place::no_such(path))));
    }
    let (form, found) = place::find(path, "-m ")?;
    let mut place = Place::new(PlaceKind::Local(form), &found);
    if form == Form::Folder {
        // Its name is that of the folder which holds the files.
        place.name.clear();
    }
    if path.is_dir() && form != Form::Manifest && HubId::parse(spec).is_ok_and(|id| id.is_some()) {
        place.notes.push(format!("the folder {spec} is opened, not the Hub's model of that name (write ./{spec} to say so)"));
    }
    Ok(place)
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
        let message = |spec| open(spec, false).unwrap_err().message;
        assert!(message("no/such/folder").contains("no such folder"));
        assert!(message("model.gguf").contains("no such file"));
        assert!(message("models/model.gguf").contains("no such file"));
        assert!(message(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).contains("found another file"));
        assert!(message("org/name:../x.gguf").contains("org/name[@revision][:FILE]"));
    }
}
