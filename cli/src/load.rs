//! From a model to an executor that holds its weights: memory forecast and transfer.

use crate::browser;
use crate::device::{Device, Engine};
pub use crate::memory::available as available_memory;
use crate::model::Model;
use crate::progress;
use crate::terminal;
use doppler::config::runtime::Inference;
use doppler::exec::{Editable, Executor, Sequences};
use doppler::formats::ModelTexts;
use doppler::loader::{LoadReport, Progress, load};
use doppler::open::{Room, Weights};
use doppler::{Result, settings};
use pollster::block_on;
use serde_json::{Value, json};
use std::time::Instant;

/// A model that fits on a device; its weights are not read yet.
pub struct Prepared {
    pub engine: Engine,
    pub weights: Weights,
    /// What the web package is told of the model, where that loads it.
    about: Value,
}

/// Matches weights, forecasts memory for `capacity` positions, and makes the executor. Nothing large is allocated.
///
/// # Errors
/// `Kind::Weights`, `Kind::Memory` with the numbers, what the executor says of the plan.
pub fn prepare(model: &Model, device: Device, inference: &Inference, capacity: usize) -> Result<Prepared> {
    prepare_for(model, device, inference, Sequences::one(capacity, settings::chunk(inference, capacity)))
}

/// As [`prepare`], for several sequences.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_for(model: &Model, device: Device, inference: &Inference, sequences: Sequences) -> Result<Prepared> {
    let weights = block_on(model.weights())?;
    let room = room(&device);
    let engine = device.engine(model.plan.clone(), inference)?;
    room.check(&weights.forecast(&model.plan, sequences, engine.storage()))?;
    Ok(Prepared { engine, weights, about: about(model, inference) })
}

/// The model without its words, which stay here.
fn about(model: &Model, inference: &Inference) -> Value {
    let mut inference = inference.clone();
    inference.kvcache.max_tokens = Some(model.plan.max_positions);
    let ModelTexts { config, generation_config, .. } = &model.files.texts;
    let texts = ModelTexts { config: config.clone(), generation_config: generation_config.clone(), ..ModelTexts::default() };
    json!({
        "name": model.name,
        // The headers of GGUF files are read again there, by the same code.
        "texts": model.files.gguf.is_none().then_some(texts),
        "manifest": model.files.manifest.as_ref().map(|manifest| json!(**manifest).to_string()),
        "words": false,
        "runtime": browser::patch(&inference),
        // What is not allowed was refused before this.
        "allowUnknownConfig": true,
        "allowExtraTensors": true,
    })
}

impl Prepared {
    /// Reads the weights; with `scan`, looks for NaN and infinite ones on the way.
    ///
    /// # Errors
    /// Those of `loader::load`.
    pub fn load(self, scan: bool) -> Result<(Engine, LoadReport)> {
        self.weights.notes().iter().for_each(|note| terminal::tell(&format!("note: {note}")));
        self.load_telling(scan, &mut |_| Ok(()))
    }
    /// As [`Self::load`], and tells of every tensor; an error of `on_tensor` is returned in the end.
    ///
    /// # Errors
    /// Those of `loader::load` and of `on_tensor`.
    pub fn load_telling(self, scan: bool, on_tensor: &mut dyn FnMut(&Progress<'_>) -> Result<()>) -> Result<(Engine, LoadReport)> {
        let Self { mut engine, weights: Weights { checkpoint, matched, .. }, about } = self;
        let plan = engine.plan().clone();
        let (bar, started) = (progress::Bytes::new("loading", matched.bytes()), Instant::now());
        let mut told = Ok(());
        let mut progress = |progress: Progress<'_>| {
            bar.set(progress.bytes_done, progress.tensor);
            if progress.complete && told.is_ok() {
                told = on_tensor(&progress);
            }
        };
        let report = match &mut engine {
            // The page makes the model's own plan of its files, and is told afterwards what is changed of it.
            Engine::Remote(executor) => executor
                .link()
                .load(&plan.unedited(), &checkpoint, &matched, about, &mut progress)
                .and_then(|report| executor.set_interventions(&plan.interventions()).map(|()| report)),
            engine => block_on(load(&plan, &checkpoint, &matched, scan, engine, &mut progress)),
        };
        drop(bar);
        let report = report?;
        told?;
        if report.bytes >= progress::SHOWN {
            let (bytes, seconds) = (report.bytes as f64 / 1e9, started.elapsed().as_secs_f64());
            terminal::tell(&format!("loaded {bytes:.2} GB in {seconds:.2} s ({:.2} GB/s)", bytes / seconds));
        }
        Ok((engine, report))
    }
}

/// What is known of the memory of `device`: the host's, where values are kept there and the system says.
fn room(device: &Device) -> Room {
    let caps = device.caps();
    let host = if caps.is_none_or(|caps| caps.software) { available_memory() } else { None };
    Room { total: host, buffer: caps.map(|caps| caps.largest_buffer()) }
}
