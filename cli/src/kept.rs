//! What one run leaves for the next in the resident process: the model on its device, and its words. A run may use it
//! only when everything that went into it is the same; what is not the same is said.

use crate::args::{self, MachineArgs};
use crate::device;
use crate::device::Engine;
use crate::load;
use crate::model::Model;
use doppler::config::runtime::{Dtype, Inference, Limits};
use doppler::exec::{Editable, Executor};
use doppler::formats::{ByteSource, FileState, Local, ModelTexts};
use doppler::inference::words::Words;
use doppler::loader::{ModelFiles, NonFinite, Progress};
use doppler::plan::Plan;
use doppler::tuned::Tuned;
use doppler::{Error, Result};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// ModelCache by the resident process; empty in all others.
#[derive(Default)]
pub struct ModelCache {
    loaded: Option<(Key, Loaded)>,
    words: Option<(TokenizerKey, Rc<Words>)>,
}

/// A model on its device.
pub struct Loaded {
    pub engine: Engine,
    /// Types of its stored weights, in words.
    pub weight_types: String,
    /// Weights that are NaN or infinite.
    pub non_finite: Vec<NonFinite>,
    /// What of the weight files was not used as they say.
    pub notes: Vec<String>,
}

/// Everything that goes into a [`Loaded`].
#[derive(PartialEq)]
pub struct Key {
    path: PathBuf,
    /// Weight files: name, size, and what else tells one state of a file from another.
    files: Vec<(String, u64, Option<FileState>)>,
    /// Without `max_positions`, which is a session's, and interventions, which are a run's.
    plan: Plan,
    surface: args::Surface,
    device: args::Device,
    limits: Limits,
    dtype: Dtype,
    fusion: bool,
    batched: bool,
    tuned: Vec<Tuned>,
    kernels: Vec<(String, String)>,
}

/// Everything that goes into [`Words`].
#[derive(PartialEq)]
struct TokenizerKey {
    texts: ModelTexts,
    ids: (Option<u32>, Vec<u32>, Option<u32>),
}

/// How a run comes by its model.
pub enum Lookup {
    /// It is there.
    Ready,
    /// It has to be loaded, as this key says; why, where the caller hoped for better.
    Absent(Box<Key>, Option<String>),
}

impl ModelCache {
    /// Whether a model is kept, by its folder.
    pub fn model(&self) -> Option<&Path> {
        self.loaded.as_ref().map(|(key, _)| &*key.path)
    }
    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
    /// The model's words; `None` if it has none.
    ///
    /// # Errors
    /// Those of `Opened::words`.
    pub fn words(&mut self, model: &Model) -> Result<Option<Rc<Words>>> {
        let key = TokenizerKey::of(model);
        if let Some((_, words)) = self.words.as_ref().filter(|(known, _)| *known == key) {
            return Ok(Some(words.clone()));
        }
        let words = model.words()?.map(Rc::new);
        self.words = words.clone().map(|words| (key, words));
        Ok(words)
    }
    /// Looks whether `model` is here as `machine` and `inference` want it. What is not wanted is let go before
    /// something else is loaded. `reuse` false lets everything go.
    ///
    /// # Errors
    /// What reading `--kernels` reports.
    pub fn find(&mut self, model: &Model, machine: &MachineArgs, inference: &Inference, reuse: bool) -> Result<Lookup> {
        let key = Key::of(model, machine, inference)?;
        let why = match &self.loaded {
            _ if !reuse => None,
            None => Some("nothing is resident".into()),
            Some((known, _)) => match known.differs(&key) {
                None => return Ok(Lookup::Ready),
                why => why,
            },
        };
        self.loaded = None;
        Ok(Lookup::Absent(Box::new(key), why))
    }
    /// The device of a model that is to be loaded, opened, and what is needed to load it.
    ///
    /// # Errors
    /// Those of `device::open` and `load::prepare`.
    pub fn prepare(model: &Model, machine: &MachineArgs, inference: &Inference, capacity: usize) -> Result<load::Prepared> {
        let device = device::open(machine, inference)?;
        load::prepare(model, device, inference, capacity)
    }
    /// Loads what was prepared, and keeps it.
    ///
    /// # Errors
    /// Those of `Prepared::load`.
    pub fn load(&mut self, prepared: load::Prepared, key: Key, on_tensor: &mut dyn FnMut(&Progress<'_>) -> Result<()>) -> Result<()> {
        let (weight_types, notes) = (prepared.weights.types(), prepared.weights.notes());
        let (engine, report) = prepared.load_telling(true, on_tensor)?;
        self.loaded = Some((key, Loaded { engine, weight_types, non_finite: report.non_finite, notes }));
        Ok(())
    }
    /// The model, for sequences as long as `plan` allows, with its interventions.
    ///
    /// # Errors
    /// `Kind::Invalid` when there is none, which would be a mistake of the caller.
    pub fn loaded(&mut self, plan: &Plan) -> Result<&Loaded> {
        let Some((_, loaded)) = &mut self.loaded else { return Err(Error::invalid("model", "it was not loaded")) };
        loaded.engine.set_max_positions(plan.max_positions)?;
        let interventions = plan.interventions();
        if loaded.engine.plan().interventions() != interventions {
            loaded.engine.set_interventions(&interventions)?;
        }
        Ok(loaded)
    }
}

impl Key {
    fn of(model: &Model, machine: &MachineArgs, inference: &Inference) -> Result<Self> {
        let ModelFiles { path, sources, .. } = &model.files;
        let file = |source: &Local| {
            // By its name alone: folders are spelled in many ways, and `path` has the one that counts.
            let (path, bytes) = (Path::new(source.name()), source.len());
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            (name, bytes, source.state())
        };
        Ok(Self {
            path: path.canonicalize().unwrap_or_else(|_| path.clone()),
            files: sources.iter().map(file).collect(),
            plan: Plan { max_positions: 0, ..model.plan.unedited() },
            surface: machine.surface,
            device: machine.device,
            limits: inference.limits,
            dtype: inference.dtype,
            fusion: inference.fusion,
            batched: inference.batched,
            tuned: inference.tuned.clone(),
            kernels: machine.kernels.as_deref().map(device::read_kernels).transpose()?.unwrap_or_default(),
        })
    }
    fn machine(&self) -> (args::Surface, args::Device, Limits, Dtype, [bool; 2]) {
        (self.surface, self.device, self.limits, self.dtype, [self.fusion, self.batched])
    }
    /// What another run wants otherwise, in words.
    fn differs(&self, other: &Key) -> Option<String> {
        if self.path != other.path {
            return Some(format!("another model is resident ({})", self.path.display()));
        }
        let file = self.files.iter().zip(&other.files).find(|(a, b)| a != b).map(|(_, changed)| changed.0.clone());
        let same_files = self.files.len() == other.files.len() && file.is_none();
        let what = match () {
            () if !same_files => format!("the weight files changed ({})", file.unwrap_or_else(|| "their number".into())),
            () if self.plan != other.plan => "the model's config changed".into(),
            () if self.kernels != other.kernels => "the kernels changed".into(),
            () if self.tuned != other.tuned => "other variants were measured to be fastest".into(),
            () if self.machine() != other.machine() => {
                "it was loaded for another surface, device, dtype or limits, other fusions or another kind of decode".into()
            }
            () => return None,
        };
        Some(what)
    }
}

impl TokenizerKey {
    fn of(model: &Model) -> Self {
        let config = &model.resolved.config;
        // What else stands in the config's texts goes into no words.
        let texts = ModelTexts { config: String::new(), generation_config: None, ..model.files.texts.clone() };
        Self { texts, ids: (config.bos_token_id, config.eos_token_ids.clone(), config.pad_token_id) }
    }
}
