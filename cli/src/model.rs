//! From `-m MODEL` to a model that is understood: its files, config and plan. Weights are not read yet.

use doppler::config::{ResolveOptions, resolve};
use doppler::formats::text::{MAX_TEXT, read_text};
use doppler::formats::{InMemory, Local};
use doppler::inference::pipeline;
use doppler::loader::{Checkpoint, Matched, ModelFiles, check_claim, match_slots, model_folder, open_directory};
use doppler::model::Resolved;
use doppler::plan::Plan;
use doppler::{Error, Result};
use pollster::block_on;
use std::path::{Path, PathBuf};

/// The built-in model's name.
pub const DEMO: &str = "demo";

/// The built-in model's files, put here by build.rs.
mod demo {
    include!(concat!(env!("OUT_DIR"), "/demo.rs"));
}

/// A model's config and plan.
pub struct Model {
    /// Name for people: that of its folder.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its config with the source of every number.
    pub resolved: Resolved,
    /// What it computes.
    pub plan: Plan,
    /// Its files; `None` when only config.json was read.
    pub files: Option<ModelFiles>,
    /// Tensors without a place in the model are passed over.
    pub allow_extra: bool,
}

/// Opens the model that `-m` names.
///
/// # Errors
/// Those of `open_directory`, `config::resolve` and `pipeline::build`, with the model's place in front.
pub fn open(spec: &str, allow_unknown: bool) -> Result<Model> {
    let files = if spec == DEMO { built_in(demo::FILES)? } else { open_directory(&folder(spec)?)? };
    let generation = files.generation_config.as_deref();
    let (resolved, plan) = understand(&files.path, &files.config, generation, allow_unknown)?;
    Ok(Model { name: name(&files.path), path: files.path.clone(), resolved, plan, files: Some(files), allow_extra: false })
}

/// As [`open`], but weights need not be there: reads the folder's config.json, or `spec` itself when it is a JSON file.
pub fn open_config(spec: &str, allow_unknown: bool) -> Result<Model> {
    if spec == DEMO {
        return open(spec, allow_unknown);
    }
    let given = Path::new(spec);
    let is_config = given.extension().is_some_and(|e| e == "json") && given.is_file();
    let path = if is_config { given.to_path_buf() } else { model_folder(&folder(spec)?)?.0 };
    let file = if is_config { given.to_path_buf() } else { path.join("config.json") };
    let generation = path.join("generation_config.json");
    let generation = generation.is_file().then(|| read_text(&generation, MAX_TEXT)).transpose()?;
    let (resolved, plan) = understand(&path, &read_text(&file, MAX_TEXT)?, generation.as_deref(), allow_unknown)?;
    Ok(Model { name: name(&path), path, resolved, plan, files: None, allow_extra: false })
}

impl Model {
    /// The headers of its weight files, and where each weight of the plan is.
    ///
    /// # Errors
    /// Those of `Checkpoint::open` and `match_slots`.
    pub fn weights(&self) -> Result<(Checkpoint<Local>, Matched)> {
        let Some(files) = &self.files else {
            return Err(Error::weights(format!("{}: only the config was read", self.path.display())));
        };
        let checkpoint = block_on(Checkpoint::open(files.sources.clone(), files.shards.as_ref()))?;
        check_claim(self.resolved.quantised.as_ref(), &checkpoint.index).map_err(|e| e.within(self.path.display()))?;
        let matched = match_slots(&self.plan, &self.resolved.config.tensors, &checkpoint.index, self.allow_extra);
        Ok((checkpoint, matched.map_err(|e| e.within(self.path.display()))?))
    }
}

/// Config and plan of the model at `path`.
fn understand(path: &Path, config: &str, generation: Option<&str>, allow_unknown: bool) -> Result<(Resolved, Plan)> {
    let about = |e: Error| e.within(path.display());
    let resolved = resolve(config, generation, ResolveOptions { allow_unknown }).map_err(about)?;
    let plan = pipeline::build(&resolved.config).map_err(about)?;
    Ok((resolved, plan))
}

/// The folder that `spec` names, or what to do when it names something else.
fn folder(spec: &str) -> Result<PathBuf> {
    let path = PathBuf::from(spec);
    if path.is_dir() {
        return Ok(path);
    }
    let wrong = |message: &str| Err(Error::io(spec, message));
    if path.extension().is_some_and(|e| e == "gguf") {
        return Err(Error::unsupported(format!("{spec}: GGUF files cannot be read yet; use the safetensors checkpoint of this model")));
    }
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

/// Name of the folder or file at `path`.
fn name(path: &Path) -> String {
    let whole = path.canonicalize();
    let name = whole.as_deref().unwrap_or(path).file_name();
    name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// A model made of embedded files.
fn built_in(files: &[(&str, &'static [u8])]) -> Result<ModelFiles> {
    let text = |name: &str| -> Result<Option<String>> {
        let found = files.iter().find(|(known, _)| *known == name);
        let text = found.map(|(_, bytes)| String::from_utf8(bytes.to_vec()));
        text.transpose().map_err(|e| Error::format(format!("{DEMO}/{name}"), e))
    };
    let weights = files.iter().find(|(name, _)| *name == "model.safetensors");
    let (Some(config), Some((weights_name, weights))) = (text("config.json")?, weights) else {
        return Err(Error::io(DEMO, "this binary was built without the built-in model; give a model folder with -m DIR"));
    };
    Ok(ModelFiles {
        path: PathBuf::from(DEMO),
        config,
        generation_config: text("generation_config.json")?,
        tokenizer: text("tokenizer.json")?,
        tokenizer_config: text("tokenizer_config.json")?,
        special_tokens_map: text("special_tokens_map.json")?,
        added_tokens: text("added_tokens.json")?,
        chat_template: text("chat_template.jinja")?,
        sources: vec![Local::Memory(InMemory::new(format!("{DEMO}/{weights_name}"), *weights))],
        shards: None,
        names: Vec::new(),
        notes: Vec::new(),
    })
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
        let generation = files.generation_config.as_deref();
        let (resolved, plan) = understand(&files.path, &files.config, generation, false).unwrap();
        let model = Model { name: name(&files.path), path: files.path.clone(), resolved, plan, files: Some(files), allow_extra: false };
        assert_eq!(model.name, DEMO);
        assert_eq!(model.weights().unwrap().1.weights.len(), model.plan.weights.len());
        assert!(built_in(&[]).unwrap_err().message.contains("-m DIR"));
    }

    #[test]
    fn what_is_no_folder_is_explained() {
        let message = |spec| folder(spec).unwrap_err().message;
        assert!(message("google/gemma-2-2b-it").contains("Hub"));
        assert!(message("no/such/folder").contains("no such folder"));
        assert!(message("model.gguf").contains("GGUF"));
        assert!(message(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).contains("found a file"));
    }
}
