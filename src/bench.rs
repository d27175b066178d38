//! How fast a model's shape runs on a device, with random weights made there: load, prefill, decode, share of the
//! measured copy bandwidth, dispatches, GPU time per kernel. The clock is the caller's, who may be a browser.

mod kernels;
mod sequences;
#[cfg(not(target_arch = "wasm32"))]
mod setting;
mod tune;
mod watching;

pub use watching::RULES;

use crate::config::{self, ResolveOptions};
use crate::error::{Error, Result};
use crate::exec::{Entry, Executor, Pick, Read, Rows, Sequences, Step, Storage, Tokens, rows_of_logits};
use crate::forecast::forecast;
use crate::geometry::weight_bytes;
use crate::gpu::{Gpu, GpuCache, GpuExecutor};
use crate::inference::decode::{Decoding, Next};
use crate::inference::pipeline;
use crate::plan::Plan;
use crate::quant::Format;
use crate::tensor::{DType, product};
use kernels::{Work, kernels};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A known shape with random weights, and what to measure of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Options {
    /// Name of a known shape.
    pub synthetic: String,
    /// Matmul inputs and KV cache: f16 or f32.
    pub dtype: DType,
    /// Weights.
    pub format: Format,
    /// What to measure.
    pub task: Task,
}

/// What to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Task {
    /// Tokens that the sequence has before the prompt.
    pub depth: usize,
    /// Prompt tokens.
    pub prompt: usize,
    /// Generated tokens.
    pub tokens: usize,
    /// What is watched meanwhile, one after the other: trace categories, or the rules.
    pub watch: Vec<String>,
    /// What is changed meanwhile, one after the other, as `--set` says it; not in browsers.
    #[serde(default)]
    pub set: Vec<String>,
    /// Whether to time kernels.
    pub kernels: bool,
    /// How often prefill and decode are measured: the median counts.
    pub repeat: usize,
    /// Sequences that decode together, measured where there is more than one.
    pub sequences: usize,
    /// Whether to measure first which variants of products are fastest; the figures are then of those.
    pub tune: bool,
}

/// A model that is on its device.
pub struct Loaded {
    /// With its weights.
    pub executor: GpuExecutor,
    /// Of each weight of the plan.
    pub formats: Vec<Format>,
    /// How its figures name it: `synthetic` or `model`, and the name.
    pub name: (&'static str, String),
    /// Seconds that loading took.
    pub seconds: f64,
}

/// Most tokens of a prompt and what is generated.
pub const MOST_POSITIONS: usize = 1 << 20;

/// Most sequences together.
pub const MOST_SEQUENCES: usize = 1024;

/// Most measurements of each rate.
pub const MOST_REPEATS: usize = 1000;

impl Task {
    /// The sequence that is measured.
    ///
    /// # Errors
    /// `Kind::Invalid` for nothing to measure, and for too much.
    pub fn sequence(&self) -> Result<Sequences> {
        if self.prompt == 0 || self.tokens == 0 {
            return Err(Error::invalid("bench", "the prompt and what is generated must have at least one token"));
        }
        if self.repeat == 0 || self.repeat > MOST_REPEATS {
            return Err(Error::invalid("bench", format!("repeat: expected 1 to {MOST_REPEATS}, found {}", self.repeat)));
        }
        if self.sequences == 0 || self.sequences > MOST_SEQUENCES {
            return Err(Error::invalid("bench", format!("sequences: expected 1 to {MOST_SEQUENCES}, found {}", self.sequences)));
        }
        let positions = self.depth.saturating_add(self.prompt).saturating_add(self.tokens);
        if positions > MOST_POSITIONS {
            let message = format!("depth, prompt and generated tokens: expected at most {MOST_POSITIONS} together, found {positions}");
            return Err(Error::invalid("bench", message));
        }
        Ok(Sequences::one(positions + 64, self.prompt.max(self.depth).min(512)))
    }
}

/// Measures a shape on `gpu`. `now` gives seconds, `say` takes lines as they become known; the figures come back as JSON.
///
/// # Errors
/// Those of `Task::sequence`; `Kind::Invalid` for unknown shapes and categories; what the device reports; those of `say`.
pub async fn measure(gpu: Gpu, options: &Options, now: &dyn Fn() -> f64, say: &mut dyn FnMut(String) -> Result<()>) -> Result<Value> {
    let Options { synthetic, dtype, format, task } = options;
    let sequence = task.sequence()?;
    let resolved = config::resolve(config::synthetic_shape(synthetic)?, None, ResolveOptions { allow_unknown: false })?;
    let plan = pipeline::build(&resolved.config)?;
    let storage = if *dtype == DType::F16 { Storage::F16 } else { Storage::F32 };
    let formats = vec![*format; plan.weights.len()];
    forecast(&plan, &formats, sequence, storage).check_buffers(gpu.caps.largest_buffer())?;
    let mut executor = GpuExecutor::new(gpu, plan, storage)?;
    let start = now();
    executor.fill_random(*format)?;
    executor.wait().await?;
    let loaded = Loaded { executor, formats, name: ("synthetic", synthetic.clone()), seconds: now() - start };
    measure_loaded(loaded, task, now, say).await
}

/// Likewise, a model that is loaded.
///
/// # Errors
/// As [`measure`].
pub async fn measure_loaded(
    loaded: Loaded,
    task: &Task,
    now: &dyn Fn() -> f64,
    say: &mut dyn FnMut(String) -> Result<()>,
) -> Result<Value> {
    let Sequences { capacity, chunk, .. } = task.sequence()?;
    let Loaded { mut executor, formats, name: (kind, name), seconds: load } = loaded;
    let (plan, storage) = (executor.plan().clone(), executor.storage());
    let types = in_words(&plan, &formats);
    say(format!("Config {kind}={name} format={types} dtype={} {}", storage.activations, executor.describe()))?;
    let bytes = executor.weight_bytes();
    let what = if kind == "synthetic" { "random weights made" } else { "weights loaded" };
    say(format!("load     {:.2} GB of {what} in {load:.2} s", gb(bytes)))?;
    let bandwidth = executor.copy_bandwidth(now).await?;
    say(format!("copy     {:.0} GB/s, read and written", bandwidth / 1e9))?;

    let mut cache = executor.new_cache(capacity, chunk)?;
    let pick = Pick { valid: plan.vocab_size };
    let ids: Vec<u32> = (0..task.depth + task.prompt).map(|i| (i * 7919 % plan.vocab_size) as u32).collect();
    let prompt = Prompt { ids: &ids, depth: task.depth, chunk, pick };

    let step = Step { tokens: Tokens::Picked, rows: Rows::Last, pick: Some(pick), read: Read::Nothing, long_rope: false, requests: &[] };
    let start = ids.len() + 8;
    let tuned = match task.tune {
        false => Value::Null,
        true => {
            let task = tune::Task { prompt: &prompt, step, start, tokens: task.tokens, repeat: task.repeat };
            tune::measure(&mut executor, &mut cache, task, now, say).await?
        }
    };

    // Once more than is counted: the first compiles pipelines, as a cold start does.
    let mut seconds = Vec::new();
    for _ in 0..=task.repeat {
        prompt.rewind(&executor, &mut cache).await?;
        let start = now();
        prompt.read(&executor, &mut cache, ids.len()).await?;
        seconds.push(now() - start);
    }
    let prefill = Rate::of(task.prompt as f64, &seconds[1..]);
    let (cold, warm) = (seconds[0] * 1e3, task.prompt as f64 / prefill.median * 1e3);
    if task.depth == 0 {
        say(format!("first    token after {cold:.1} ms, {:.1} more than when its pipelines are compiled", cold - warm))?;
    }
    say(format!("prefill  {prefill} ({} tokens in {:.1} ms)", task.prompt, warm))?;

    while executor.len(&cache) < start {
        executor.step(&mut cache, &step).await?;
    }
    let (mut times, mut recordings) = (Vec::new(), Vec::new());
    for _ in 0..task.repeat {
        prompt.back(&executor, &mut cache, &step, start).await?;
        let (seconds, of_host) = decode(&executor, std::slice::from_mut(&mut cache), &step, task.tokens, now).await?;
        times.push(seconds);
        recordings.push(of_host);
    }
    let (rate, recording) = (Rate::of(1.0, &times), median(&mut recordings));
    let read = bytes_per_token(&plan, &formats, storage, ids.len() + task.tokens / 2);
    let dispatches = executor.decode_dispatches(&cache, pick)?;
    let share = read as f64 * rate.median / bandwidth;
    say(format!(
        "decode   {rate} ({:.3} ms a token, of which {:.3} ms recording), {:.2} GB read a token = {:.0} % of the copy bandwidth",
        1e3 / rate.median,
        recording * 1e3,
        read as f64 / 1e9,
        share * 100.0
    ))?;
    say(format!("         {} dispatches and 1 submit a token, nothing read back but the token", dispatches.len()))?;

    let together = match task.sequences {
        1 => Value::Null,
        count => {
            executor.truncate(&mut cache, start);
            let mut all = Vec::new();
            for batched in [false, true] {
                executor.set_batched(batched);
                say(format!("together decode as is best for {}", if batched { "many sequences" } else { "one sequence" }))?;
                for count in [1, count] {
                    let together = sequences::Task { step, count, tokens: task.tokens, repeat: task.repeat, alone: rate.median };
                    all.push(sequences::measure(&executor, &cache, together, now, say).await?);
                }
            }
            executor.set_batched(false);
            Value::Array(all)
        }
    };
    let work = Work::of(&plan, &formats, bandwidth);
    let mut watched = Vec::new();
    for what in &task.watch {
        let seen = watching::Task { what, prompt: &prompt, step, start, tokens: task.tokens, repeat: task.repeat, kernels: task.kernels };
        watched.push(watching::measure(&mut executor, &mut cache, seen, now, say).await?);
    }
    #[cfg(target_arch = "wasm32")]
    let changed: Vec<Value> = Vec::new();
    #[cfg(not(target_arch = "wasm32"))]
    let mut changed = Vec::new();
    #[cfg(not(target_arch = "wasm32"))]
    for what in &task.set {
        let set = watching::Task { what, prompt: &prompt, step, start, tokens: task.tokens, repeat: task.repeat, kernels: false };
        changed.push(setting::measure(&mut executor, &mut cache, set, now, say).await?);
    }
    let (mut of_decode, mut of_prefill) = (Vec::new(), Vec::new());
    if task.kernels {
        of_decode = kernels(&executor, &mut cache, &step, Some(&work), say).await?;
        // Of a prompt its last chunk, as deep as it lies.
        let last = ids.len() - ids.len().min(chunk).min(task.prompt);
        let chunk = Step { tokens: Tokens::Ids(&ids[last..]), rows: Rows::None, pick: None, ..step };
        prompt.rewind(&executor, &mut cache).await?;
        prompt.read(&executor, &mut cache, last).await?;
        of_prefill = kernels(&executor, &mut cache, &chunk, Some(&work), say).await?;
    }
    let buffers = bytes + executor.cache_bytes(&cache).iter().map(|(_, bytes)| bytes).sum::<u64>();
    say(format!("memory   {:.2} GB on the device: weights {:.2}, the sequence {:.2}", gb(buffers), gb(bytes), gb(buffers - bytes)))?;
    Ok(json!({
        (kind): name, "format": types, "dtype": storage.activations, "device": executor.describe(), "loadSeconds": load, "weightBytes": bytes,
        "deviceBytes": buffers, "copyBytesPerSecond": bandwidth, "depth": task.depth, "promptTokens": task.prompt, "tokens": task.tokens,
        "repeat": task.repeat, "firstTokenSeconds": (task.depth == 0).then_some(cold / 1e3), "prefillTokensPerSecond": prefill.median, "prefillSpread": prefill.spread, "decodeTokensPerSecond": rate.median,
        "decodeSpread": rate.spread, "recordingSeconds": recording, "decodeBytesPerToken": read, "bandwidthShare": share,
        "tune": tuned, "together": together, "dispatchesPerToken": dispatches.len(), "submitsPerToken": 1, "watched": watched, "changed": changed, "kernels": of_decode, "prefillKernels": of_prefill,
    }))
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// What is read before tokens are generated.
struct Prompt<'a> {
    /// Of what lies before it, too.
    ids: &'a [u32],
    /// Where it begins.
    depth: usize,
    chunk: usize,
    pick: Pick,
}

impl Prompt<'_> {
    /// Brings the sequence to where the prompt begins.
    async fn rewind(&self, executor: &GpuExecutor, cache: &mut GpuCache) -> Result<()> {
        if executor.len(cache) < self.depth || !executor.truncate(cache, self.depth) {
            executor.truncate(cache, 0);
            self.read(executor, cache, self.depth).await?;
        }
        executor.wait().await
    }
    /// Takes the sequence back to `len` tokens; where a window was overwritten, reads and generates again until there.
    async fn back(&self, executor: &GpuExecutor, cache: &mut GpuCache, step: &Step<'_>, len: usize) -> Result<()> {
        if !executor.truncate(cache, len) {
            self.rewind(executor, cache).await?;
            self.read(executor, cache, self.ids.len()).await?;
            while executor.len(cache) < len {
                executor.step(cache, step).await?;
            }
        }
        Ok(())
    }
    /// Reads on until there are `end` tokens. The last chooses a token where it is the prompt's.
    async fn read(&self, executor: &GpuExecutor, cache: &mut GpuCache, end: usize) -> Result<()> {
        let begin = executor.len(cache);
        let mut decoding = Decoding::new(executor.plan(), end, begin, self.chunk, usize::from(end == self.ids.len()));
        while let Next::Step(reading) = decoding.next() {
            let step = Step {
                tokens: Tokens::Ids(&self.ids[reading.first..reading.first + reading.count]),
                rows: rows_of_logits(executor.plan(), &[], reading.chooses),
                pick: reading.chooses.then_some(self.pick),
                read: Read::Nothing,
                long_rope: decoding.long_rope(),
                requests: &[],
            };
            executor.step(cache, &step).await?;
            decoding.started(&reading);
        }
        Ok(())
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (at(middle.wrapping_sub(1)) + at(middle)) / 2.0 } else { at(middle) }
}

/// A rate that was measured several times.
struct Rate {
    median: f64,
    /// The lowest and the highest.
    spread: [f64; 2],
}

impl Rate {
    /// Of `count` things in each of `seconds`.
    fn of(count: f64, seconds: &[f64]) -> Self {
        let mut rates: Vec<f64> = seconds.iter().map(|seconds| count / seconds).collect();
        let median = median(&mut rates);
        let end = |rate: Option<&f64>| rate.copied().unwrap_or(f64::NAN);
        Self { median, spread: [end(rates.first()), end(rates.last())] }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { median, spread: [low, high] } = self;
        write!(f, "{median:.1} tok/s, {low:.1} to {high:.1}")
    }
}

/// Seconds a step over `tokens` greedy steps of all of `caches` together, of which up to three are under way at a time, and
/// seconds a step spent recording.
async fn decode(
    executor: &GpuExecutor,
    caches: &mut [GpuCache],
    step: &Step<'_>,
    tokens: usize,
    now: &dyn Fn() -> f64,
) -> Result<(f64, f64)> {
    let start = now();
    let mut recording = 0.0;
    let mut waiting = std::collections::VecDeque::new();
    for _ in 0..tokens {
        let begin = now();
        let mut batch: Vec<_> = caches.iter_mut().map(|cache| Entry { cache, step: *step }).collect();
        waiting.push_back(executor.submit_batch(&mut batch)?);
        recording += now() - begin;
        if waiting.len() > 2 {
            for pending in waiting.pop_front().into_iter().flatten() {
                executor.finish(pending).await?;
            }
        }
    }
    for pending in waiting.into_iter().flatten() {
        executor.finish(pending).await?;
    }
    Ok(((now() - start) / tokens as f64, recording / tokens as f64))
}

/// Bytes that a decode step must read: every matrix once (the embedding only where it is the head; of experts the chosen ones), and
/// the states.
fn bytes_per_token(plan: &Plan, formats: &[Format], storage: Storage, positions: usize) -> u64 {
    let matrices = plan.nodes.iter().filter_map(|n| {
        let (weight, part) = n.op.matrix()?;
        Some((weight_bytes(&plan.weights[weight.0], formats[weight.0]) as f64 * part).round() as u64)
    });
    let caches = plan.states.iter().map(|state| {
        // Matrices are as one position.
        let positions = state.kind.window().map_or(positions, |w| w.clamp(1, positions.max(1)));
        product([state.kind.parts().len(), positions, state.kind.width(), storage.of(&state.kind).size()])
    });
    matrices.sum::<u64>() + caches.sum::<u64>()
}

/// The formats of a model's matrices, in words: `q4_k+q6_k`.
fn in_words(plan: &Plan, formats: &[Format]) -> String {
    let matrices = plan.weights.iter().zip(formats).filter(|(slot, _)| slot.shape.len() > 1);
    let mut found: Vec<Format> = matrices.map(|(_, format)| *format).collect();
    found.sort_unstable();
    found.dedup();
    found.into_iter().map(Format::name).collect::<Vec<_>>().join("+")
}
