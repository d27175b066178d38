//! A model that is loaded: what a page says of its files, its config, words and weights on the device, what a page is told.

use crate::host::{Files, HostFile, WeightSource};
use crate::watching::Records;
use doppler::config::runtime::{Inference, Runtime};
use doppler::config::{ResolveOptions, RuntimeConfig};
use doppler::debug::categories::Categories;
use doppler::debug::interventions;
use doppler::debug::lines::Line;
use doppler::debug::record::Record;
use doppler::exec::{Executor, Sequences, Storage};
use doppler::forecast::Forecast;
use doppler::formats::manifest::{self, Manifest};
use doppler::formats::shards::ShardIndex;
use doppler::formats::{Local, ModelTexts};
use doppler::gpu::{Gpu, GpuExecutor};
use doppler::inference::words::Words;
use doppler::loader::{ModelFiles, NonFinite, load_in_bands};
use doppler::model::Resolved;
use doppler::open::{CONVERSATION, Opened, Room, Weights, open_gguf, open_manifest};
use doppler::plan::{Plan, Stage};
use doppler::{Error, Kind, Result, settings};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Most bytes of weights that pass through this module's memory at once, unless one row has more.
pub const BAND_BYTES: usize = 16 << 20;

/// What a model is made of, but for the bytes of its weights.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct About {
    name: String,
    /// Null where the weights are GGUF files, which have their own.
    texts: Option<ModelTexts>,
    /// Whether it needs its tokenizer and template here.
    words: bool,
    weights: Vec<WeightFile>,
    shards: Option<Shards>,
    /// The text of manifest.json, where the weights are the shards that it lists, in its order.
    manifest: Option<String>,
    /// A patch of the runtime config.
    runtime: Value,
    allow_unknown_config: bool,
    allow_extra_tensors: bool,
    /// Bytes that the model may need; null is any number.
    memory: Option<f64>,
}

#[derive(Deserialize)]
struct WeightFile {
    name: String,
    size: u64,
    /// A shard that the page compares with its hash itself.
    #[serde(default)]
    checked: bool,
}

#[derive(Deserialize)]
struct Shards {
    name: String,
    text: String,
}

/// What sessions share.
pub struct Loaded {
    pub executor: GpuExecutor,
    pub opened: Opened<WeightSource>,
    pub words: Option<Words>,
    pub inference: Inference,
    pub non_finite: Vec<NonFinite>,
    pub forecast: Forecast,
    /// Where they are, to read them again.
    pub weights: Weights<WeightSource>,
    pub files: Files,
    /// What is changed of its values.
    pub set: Vec<String>,
}

/// A model that is understood and whose weights are found; nothing large is allocated or read.
pub struct Prepared {
    opened: Opened<WeightSource>,
    weights: Weights<WeightSource>,
    runtime: Runtime,
    storage: Storage,
    wants_words: bool,
    pub forecast: Forecast,
}

/// Finds everything of the model and refuses what cannot fit, as far as that is known.
pub async fn prepare(gpu: &Gpu, about: About, files: &Files) -> Result<Prepared> {
    let About { name, texts, words: wants_words, weights, shards, manifest, runtime, .. } = about;
    let About { allow_unknown_config, allow_extra_tensors, memory, .. } = about;
    let runtime = RuntimeConfig::from_patch(runtime)?.runtime;
    let checked: Vec<bool> = weights.iter().map(|file| file.checked).collect();
    let file = |(number, file): (usize, WeightFile)| HostFile { files: files.clone(), number, name: file.name, len: file.size };
    let sources = weights.into_iter().enumerate().map(file);
    let path = PathBuf::from(&name);
    let files = match (texts, manifest) {
        (Some(texts), Some(manifest)) => of_manifest(path, texts, &manifest, sources.collect(), &checked)?,
        (Some(texts), None) => {
            let shards = shards.map(|s| ShardIndex::parse(&s.name, &s.text)).transpose()?;
            ModelFiles::new(path, texts, sources.map(WeightSource::File).collect(), shards)
        }
        (None, _) => open_gguf(path, sources.map(WeightSource::File).collect()).await?,
    };
    let mut opened = Opened::new(name, files, ResolveOptions { allow_unknown: allow_unknown_config })?;
    opened.allow_extra = allow_extra_tensors;
    opened.limit(runtime.inference.kvcache.max_tokens)?;
    let absent = |file: &str| Err::<Local, _>(Error::unsupported(format!("{file}: a page has no files to take values from")));
    opened.plan = interventions::set(&opened.plan, &runtime.debug.set, None, &absent).await?;
    let weights = opened.weights().await?;
    let storage = settings::storage(runtime.inference.dtype, gpu.caps.f16);
    let capacity = opened.plan.max_positions.min(CONVERSATION);
    let forecast = weights.forecast(&opened.plan, Sequences::one(capacity, settings::chunk(&runtime.inference, capacity)), storage);
    // A budget is far below 2^53 bytes; NaN is no budget.
    let room = Room { total: memory.map(|bytes| bytes as u64), buffer: Some(gpu.caps.largest_buffer()) };
    room.check(&forecast).map_err(|e| e.within(&opened.name))?;
    Ok(Prepared { opened, weights, runtime, storage, wants_words, forecast })
}

/// The files of the model of a manifest, whose texts the page has compared with their hashes, as well as the shards that are
/// `checked`.
fn of_manifest(
    path: PathBuf,
    texts: ModelTexts,
    manifest: &str,
    shards: Vec<HostFile>,
    checked: &[bool],
) -> Result<ModelFiles<WeightSource>> {
    let manifest = Manifest::parse(&path.join(manifest::FILE).display().to_string(), manifest)?;
    let files = open_manifest(path, texts, manifest, shards)?;
    if let Some(WeightSource::Shards(shards)) = files.sources.first() {
        checked.iter().enumerate().filter(|(_, checked)| **checked).for_each(|(number, _)| shards.trust(number));
    }
    Ok(files)
}

/// An error about memory, with what is needed.
pub fn with_forecast(error: Error, forecast: &Forecast) -> Error {
    match error.kind {
        // An error about the forecast has its table already.
        Kind::Memory if error.about.is_none() => Error::memory(format!("{}\n{forecast}", error.message)),
        _ => error,
    }
}

pub async fn load(gpu: Gpu, about: &str, files: Files) -> Result<Loaded> {
    let about: About = serde_json::from_str(about).map_err(|e| Error::invalid("model", e))?;
    let Prepared { opened, weights, runtime, storage, wants_words, forecast } = prepare(&gpu, about, &files).await?;
    let Runtime { inference, debug } = runtime;
    let (words, plan) = (if wants_words { opened.words()? } else { None }, &opened.plan);
    let mut executor = GpuExecutor::new(gpu, plan.clone(), storage).map_err(|e| with_forecast(e, &forecast))?;
    announce(&weights, &files);
    let (records, traced) = (Records::new(), Categories::of(&debug.trace)?.has("loader"));
    let mut progress = |p: doppler::loader::Progress<'_>| {
        files.progress(p.bytes_done as f64, p.bytes_total as f64, p.tensor);
        if traced && records.keep(&Record::loading(&p)).is_ok() {
            records.take().iter().for_each(|json| files.records(json));
        }
    };
    let Weights { checkpoint, matched } = &weights;
    let report = load_in_bands(plan, checkpoint, matched, true, BAND_BYTES, &mut executor, &mut progress).await;
    let non_finite = report.map_err(|e| with_forecast(e, &forecast))?.non_finite;
    Ok(Loaded { executor, opened, words, inference, non_finite, forecast, weights, files, set: debug.set })
}

/// A forecast as pages get it.
pub fn memory(forecast: &Forecast) -> Value {
    let rows = forecast.rows().into_iter().map(|(what, detail, bytes)| json!({ "what": what, "detail": detail, "bytes": bytes }));
    json!({
        "rows": rows.collect::<Vec<_>>(),
        "total": forecast.total(),
        "capacity": forecast.sequences.capacity,
        "chunk": forecast.sequences.chunk,
        "text": forecast.to_string(),
    })
}

/// Tells what is going to be read, file by file.
pub fn announce(Weights { checkpoint, matched }: &Weights<WeightSource>, files: &Files) {
    let reads = matched.weights.iter().flat_map(|weight| weight.reads(checkpoint.index.entries()));
    let mut of_files: BTreeMap<usize, BTreeSet<(u64, u64)>> = BTreeMap::new();
    // What there is not is an error of who reads it. Weights that share packed tensors read them each.
    for (file, range) in reads.filter_map(|(source, range)| checkpoint.sources[source].parts(&range).ok()).flatten() {
        of_files.entry(file).or_default().insert((range.start, range.end));
    }
    for (file, ranges) in of_files {
        files.expect(file, ranges.into_iter().flat_map(|(start, end)| [start as f64, end as f64]).collect());
    }
}

impl Loaded {
    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.executor.plan()
    }
    /// The model's words.
    ///
    /// # Errors
    /// `Kind::Tokenizer` if it has none.
    pub fn words(&self) -> Result<&Words> {
        self.words.as_ref().ok_or_else(|| self.opened.without_words("give ids"))
    }
    /// The `Config` line.
    pub fn config_line(&self) -> Line {
        Line::config(&self.opened.name, &self.opened.resolved, &self.executor, &self.weights.types(), None)
    }
    /// The `Config` line, and one for each tensor of which weights are no numbers.
    pub fn lines(&self) -> Vec<Line> {
        std::iter::once(self.config_line()).chain(self.non_finite.iter().map(Line::weights_anomaly)).collect()
    }
    /// What was done otherwise than its files say, and what is changed of its values.
    fn notes(&self) -> Vec<String> {
        let edited = self.plan().edited().into_iter().map(|text| format!("edited: {text}"));
        self.opened.notes(self.words.as_ref(), &self.weights.notes()).into_iter().chain(edited).collect()
    }
    /// What it is, for a page.
    pub fn info(&self) -> Value {
        let Resolved { config, sources, ignored_keys, .. } = &self.opened.resolved;
        let (plan, caps, sources) = (self.plan(), &self.executor.gpu().caps, sources.iter());
        let sources: Vec<Value> =
            sources.map(|(name, value, source)| json!({ "name": name, "value": value, "source": source.to_string() })).collect();
        let stage = |stage: &Stage| {
            let info = stage.info();
            let layers = info.per_layer.then(|| plan.layers_with(*stage));
            json!({ "name": info.name, "about": info.about, "category": info.category, "layers": layers })
        };
        let found = |f: &NonFinite| json!({ "tensor": f.tensor, "shape": f.shape, "nan": f.nan, "inf": f.inf, "first": f.first });
        json!({
            "model": self.opened.name,
            "preset": config.preset,
            "layers": plan.num_layers,
            "hidden": config.hidden_size,
            "vocab": config.vocab_size,
            "weights": self.weights.types(),
            "weightBytes": self.executor.weight_bytes(),
            "memory": memory(&self.forecast),
            "dtype": self.executor.storage().activations.to_string(),
            "context": plan.max_positions,
            "text": self.words.is_some(),
            "chat": self.words.as_ref().is_some_and(|w| w.template().is_some()),
            "device": {
                "description": self.executor.describe(),
                "name": caps.name,
                "driver": caps.driver,
                "software": caps.software,
                "subgroup": caps.subgroup,
                "f16": caps.f16,
                "timestamps": caps.timestamps,
                "maxBinding": caps.max_binding,
                "maxBuffer": caps.max_buffer,
            },
            "stages": plan.stages().iter().map(|s| s.name()).collect::<Vec<_>>(),
            "stageInfo": plan.stages().iter().map(stage).collect::<Vec<_>>(),
            "config": sources,
            "ignoredKeys": ignored_keys,
            "notes": self.notes(),
            "nonFinite": self.non_finite.iter().map(found).collect::<Vec<_>>(),
        })
    }
}
