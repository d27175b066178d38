//! How fast a model's shape runs on a device, with random weights made there: load, prefill, decode, share of the
//! measured copy bandwidth, dispatches, GPU time per kernel. The clock is the caller's, who may be a browser.

mod sequences;

use crate::config::{self, ResolveOptions};
use crate::debug::categories::Categories;
use crate::debug::record::Sink;
use crate::debug::trace::{TraceObserver, TraceOptions};
use crate::error::{Error, Result};
use crate::exec::{DECODE_TOKENS, Entry, Executor, Observer, Pick, Read, Request, Rows, Sequences, Step, Storage, Tokens, rows_of_logits};
use crate::forecast::forecast;
use crate::geometry::weight_bytes;
use crate::gpu::{Gpu, GpuCache, GpuExecutor, KernelSum, Log, StepLog};
use crate::groups::{Question, groups};
use crate::inference::decode::{Decoding, Next};
use crate::inference::pipeline;
use crate::plan::{Op, Plan, Stage};
use crate::quant::Format;
use crate::tensor::{DType, product};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Options {
    /// Name of a known shape.
    pub synthetic: String,
    /// Matmul inputs and KV cache: f16 or f32.
    pub dtype: DType,
    /// Weights.
    pub format: Format,
    /// Tokens that the sequence has before the prompt.
    pub depth: usize,
    /// Prompt tokens.
    pub prompt: usize,
    /// Generated tokens.
    pub tokens: usize,
    /// Trace categories whose statistics are also taken, one after the other.
    pub watch: Vec<String>,
    /// Whether to time kernels.
    pub kernels: bool,
    /// How often prefill and decode are measured: the median counts.
    pub repeat: usize,
    /// Sequences that decode together, measured where there is more than one.
    pub sequences: usize,
}

/// Most tokens of a prompt and what is generated.
pub const MOST_POSITIONS: usize = 1 << 20;

/// Most sequences together.
pub const MOST_SEQUENCES: usize = 1024;

/// Most measurements of each rate.
pub const MOST_REPEATS: usize = 1000;

/// Measures on `gpu`. `now` gives seconds, `say` takes lines as they become known; the figures come back as JSON.
///
/// # Errors
/// `Kind::Invalid` for unknown shapes and categories, and for nothing to measure; what the device reports; those of
/// `say`.
pub async fn measure(gpu: Gpu, options: &Options, now: &dyn Fn() -> f64, say: &mut dyn FnMut(String) -> Result<()>) -> Result<Value> {
    if options.prompt == 0 || options.tokens == 0 {
        return Err(Error::invalid("bench", "the prompt and what is generated must have at least one token"));
    }
    if options.repeat == 0 || options.repeat > MOST_REPEATS {
        return Err(Error::invalid("bench", format!("repeat: expected 1 to {MOST_REPEATS}, found {}", options.repeat)));
    }
    if options.sequences == 0 || options.sequences > MOST_SEQUENCES {
        return Err(Error::invalid("bench", format!("sequences: expected 1 to {MOST_SEQUENCES}, found {}", options.sequences)));
    }
    let positions = options.depth.saturating_add(options.prompt).saturating_add(options.tokens);
    if positions > MOST_POSITIONS {
        let message = format!("depth, prompt and generated tokens: expected at most {MOST_POSITIONS} together, found {positions}");
        return Err(Error::invalid("bench", message));
    }
    let resolved = config::resolve(config::synthetic_shape(&options.synthetic)?, None, ResolveOptions { allow_unknown: false })?;
    let plan = &pipeline::build(&resolved.config)?;
    let args = options;
    let (storage, format) = (if options.dtype == DType::F16 { Storage::F16 } else { Storage::F32 }, options.format);
    let chunk = options.prompt.max(options.depth).min(512);
    let capacity = positions + 64;
    let needed = forecast(plan, &vec![format; plan.weights.len()], Sequences::one(capacity, chunk), storage);
    needed.check_buffers(gpu.caps.largest_buffer())?;
    let mut executor = GpuExecutor::new(gpu, plan.clone(), storage)?;
    say(format!("Config synthetic={} format={format} dtype={} {}", args.synthetic, args.dtype, executor.describe()))?;

    let start = now();
    executor.fill_random(format)?;
    executor.wait().await?;
    let load = now() - start;
    let bytes = executor.weight_bytes();
    say(format!("load     {:.2} GB of random weights made in {load:.2} s", bytes as f64 / 1e9))?;
    let bandwidth = executor.copy_bandwidth(now).await?;
    say(format!("copy     {:.0} GB/s, read and written", bandwidth / 1e9))?;

    let mut cache = executor.new_cache(capacity, chunk)?;
    let pick = Pick { valid: plan.vocab_size };
    let ids: Vec<u32> = (0..args.depth + args.prompt).map(|i| (i * 7919 % plan.vocab_size) as u32).collect();
    let prompt = Prompt { ids: &ids, depth: args.depth, chunk, pick };

    // Once more than is counted: the first compiles pipelines.
    let mut seconds = Vec::new();
    for _ in 0..=args.repeat {
        prompt.rewind(&executor, &mut cache).await?;
        let start = now();
        prompt.read(&executor, &mut cache, ids.len()).await?;
        seconds.push(now() - start);
    }
    let prefill = Rate::of(args.prompt as f64, &seconds[1..]);
    say(format!("prefill  {prefill} ({} tokens in {:.1} ms)", args.prompt, args.prompt as f64 / prefill.median * 1e3))?;

    let step = Step { tokens: Tokens::Picked, rows: Rows::Last, pick: Some(pick), read: Read::Nothing, long_rope: false, requests: &[] };
    let start = ids.len() + 8;
    while executor.len(&cache) < start {
        executor.step(&mut cache, &step).await?;
    }
    let (mut times, mut recordings) = (Vec::new(), Vec::new());
    for _ in 0..args.repeat {
        prompt.back(&executor, &mut cache, &step, start).await?;
        let (seconds, of_host) = decode(&executor, std::slice::from_mut(&mut cache), &step, args.tokens, now).await?;
        times.push(seconds);
        recordings.push(of_host);
    }
    let (rate, recording) = (Rate::of(1.0, &times), median(&mut recordings));
    let read = bytes_per_token(plan, format, storage, ids.len() + args.tokens / 2);
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

    let together = match args.sequences {
        1 => Value::Null,
        count => {
            executor.truncate(&mut cache, start);
            let mut all = Vec::new();
            for batched in [false, true] {
                executor.set_batched(batched);
                say(format!("together decode as is best for {}", if batched { "many sequences" } else { "one sequence" }))?;
                for count in [1, count] {
                    let task = sequences::Task { step, count, tokens: args.tokens, repeat: args.repeat, alone: rate.median };
                    all.push(sequences::measure(&executor, &cache, task, now, say).await?);
                }
            }
            executor.set_batched(false);
            Value::Array(all)
        }
    };
    let work = Work::of(plan, format, bandwidth);
    let mut watched = Vec::new();
    for category in &args.watch {
        let requests = requests(plan, category)?;
        // like with like: the same positions and the same fusions, without anyone watching
        let unfused = requests.iter().any(|r| r.stage.layout().is_scores());
        executor.set_fusion(!unfused);
        prompt.back(&executor, &mut cache, &step, start).await?;
        let (plain, _) = decode(&executor, std::slice::from_mut(&mut cache), &step, args.tokens, now).await?;
        prompt.back(&executor, &mut cache, &step, start).await?;
        let step = Step { requests: &requests, ..step };
        executor.step(&mut cache, &step).await?;
        prompt.back(&executor, &mut cache, &step, start).await?;
        let (seen, _) = decode(&executor, std::slice::from_mut(&mut cache), &step, args.tokens, now).await?;
        let cost = seen / plain - 1.0;
        let fusion = if unfused { ", both without fusion" } else { "" };
        say(format!("watched  {category}: {:.1} tok/s, {:+.1} % a token{fusion}", 1.0 / seen, cost * 100.0))?;
        let kernels = if args.kernels { kernels(&executor, &mut cache, &step, None, say).await? } else { Vec::new() };
        executor.set_fusion(true);
        watched.push(json!({
            "categories": category, "decodeTokensPerSecond": 1.0 / seen, "unwatchedTokensPerSecond": 1.0 / plain, "kernels": kernels,
        }));
    }
    let (mut of_decode, mut of_prefill) = (Vec::new(), Vec::new());
    if args.kernels {
        of_decode = kernels(&executor, &mut cache, &step, Some(&work), say).await?;
        // Of a prompt its last chunk, as deep as it lies.
        let last = ids.len() - ids.len().min(chunk).min(args.prompt);
        let chunk = Step { tokens: Tokens::Ids(&ids[last..]), rows: Rows::None, pick: None, ..step };
        prompt.rewind(&executor, &mut cache).await?;
        prompt.read(&executor, &mut cache, last).await?;
        of_prefill = kernels(&executor, &mut cache, &chunk, Some(&work), say).await?;
    }
    let buffers = bytes + executor.cache_bytes(&cache).iter().map(|(_, bytes)| bytes).sum::<u64>();
    say(format!("memory   {:.2} GB on the device: weights {:.2}, the sequence {:.2}", gb(buffers), gb(bytes), gb(buffers - bytes)))?;
    Ok(json!({
        "synthetic": args.synthetic, "format": format, "dtype": args.dtype, "device": executor.describe(), "loadSeconds": load, "weightBytes": bytes,
        "deviceBytes": buffers, "copyBytesPerSecond": bandwidth, "depth": args.depth, "promptTokens": args.prompt, "tokens": args.tokens,
        "repeat": args.repeat, "prefillTokensPerSecond": prefill.median, "prefillSpread": prefill.spread, "decodeTokensPerSecond": rate.median,
        "decodeSpread": rate.spread, "recordingSeconds": recording, "decodeBytesPerToken": read, "bandwidthShare": share,
        "together": together, "dispatchesPerToken": dispatches.len(), "submitsPerToken": 1, "watched": watched, "kernels": of_decode, "prefillKernels": of_prefill,
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

/// What the kernels of unwatched steps have to do, and what the device can.
struct Work {
    /// Of steps of few tokens, then of many: bytes of weights that the products of a group read, and their multiplications and
    /// additions for each token, by the stage at which the group ends.
    products: [BTreeMap<Stage, (u64, u64)>; 2],
    /// Bytes per second of a copy.
    bandwidth: f64,
}

impl Work {
    fn of(plan: &Plan, format: Format, bandwidth: f64) -> Self {
        let of_steps = |few: bool| {
            let mut products = BTreeMap::new();
            for group in groups(plan, Question::unwatched(few)) {
                let matrices = group.nodes.iter().filter_map(|id| match plan.node(*id).op {
                    Op::Linear { weight, .. } => Some(&plan.weights[weight.0]),
                    _ => None,
                });
                let (mut bytes, mut operations) = (0, 0);
                for slot in matrices {
                    bytes += weight_bytes(slot, format);
                    operations += 2 * product(slot.shape.iter().copied());
                }
                if let (Some(end), true) = (group.nodes.last(), bytes > 0) {
                    products.insert(plan.node(*end).at.stage, (bytes, operations));
                }
            }
            products
        };
        Self { products: [of_steps(true), of_steps(false)], bandwidth }
    }
    /// How near the device's limit a kernel of a step of `tokens` comes, in words and as figures.
    fn judged(&self, sum: &KernelSum, tokens: usize) -> Option<(String, Value)> {
        let products = &self.products[usize::from(tokens > DECODE_TOKENS)];
        let (bytes, operations) = products.get(&sum.stage).filter(|_| sum.kernel.starts_with("linear"))?;
        let seconds = sum.nanoseconds / 1e9 / sum.count as f64;
        if tokens == 1 {
            let share = *bytes as f64 / seconds / self.bandwidth;
            let text = format!("{:.1} MB, {:.0} % of copy", *bytes as f64 / 1e6, share * 100.0);
            return Some((text, json!({"bytes": bytes, "bandwidthShare": share})));
        }
        let rate = (*operations * tokens as u64) as f64 / seconds;
        Some((format!("{:.1} TFLOP/s", rate / 1e12), json!({"operations": operations * tokens as u64, "operationsPerSecond": rate})))
    }
}

/// GPU time of the kernels of `step`, where the device reports times, judged by `work`. Of a chunk of a prompt, the sequence stands
/// at its begin.
async fn kernels(
    executor: &GpuExecutor,
    cache: &mut GpuCache,
    step: &Step<'_>,
    work: Option<&Work>,
    say: &mut dyn FnMut(String) -> Result<()>,
) -> Result<Vec<Value>> {
    if !executor.gpu().caps.timestamps {
        return Ok(Vec::new());
    }
    let tokens = if let Tokens::Ids(ids) = step.tokens { ids.len() } else { 1 };
    executor.set_log(Log::Times)?;
    let begin = executor.len(cache);
    // The first compiles pipelines.
    for _ in 0..2 {
        executor.take_log();
        if tokens > 1 {
            executor.truncate(cache, begin);
        }
        executor.step(cache, step).await?;
    }
    let sums = StepLog::sums(&executor.take_log());
    executor.set_log(Log::Off)?;
    let total: f64 = sums.iter().map(|sum| sum.nanoseconds).sum();
    let what = if tokens > 1 { format!("a step of {tokens} tokens") } else { "one decode step".into() };
    say(format!("kernels  {:.3} ms of GPU time in {what} at position {begin}, each dispatch timed alone", total / 1e6))?;
    let mut figures = Vec::new();
    for sum in sums {
        let judged = work.and_then(|work| work.judged(&sum, tokens));
        let KernelSum { kernel, stage, count, nanoseconds: time } = sum;
        let (name, each) = (format!("{kernel} {stage}"), time / count as f64 / 1e3);
        let (text, limits) = judged.unwrap_or_default();
        let line =
            format!("         {name:<28} {count:>4} x {each:>8.2} us = {:>8.3} ms {:>5.1} %  {text}", time / 1e6, time / total * 100.0);
        say(line.trim_end().to_string())?;
        let mut figure = json!({"kernel": name, "count": count, "microseconds": time / 1e3});
        if let (Some(figure), Value::Object(limits)) = (figure.as_object_mut(), limits) {
            figure.extend(limits);
        }
        figures.push(figure);
    }
    Ok(figures)
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

/// What `debug --trace CATEGORY` asks of a decode step.
fn requests(plan: &Plan, category: &str) -> Result<Vec<Request>> {
    let categories = Categories::parse([category]).map_err(|e| e.within("watch"))?;
    let options = TraceOptions { categories, layers: None, prompt_end: 1, text: None };
    let found = TraceObserver::new(plan, options, Sink::new(|_| Ok(())))?.requests(1);
    if found.is_empty() { Err(Error::invalid("watch", format!("this model has no stage of category `{category}`"))) } else { Ok(found) }
}

/// Bytes that a decode step must read: every matrix once (the embedding only where it is the head), and the cache.
fn bytes_per_token(plan: &Plan, format: Format, storage: Storage, positions: usize) -> u64 {
    let matrices = plan
        .nodes
        .iter()
        .filter_map(|n| if let Op::Linear { weight, .. } = &n.op { Some(weight_bytes(&plan.weights[weight.0], format)) } else { None });
    let caches = plan.caches.iter().map(|c| product([2, c.window.map_or(positions, |w| w.min(positions)), c.kv_heads, c.head_dim]));
    matrices.sum::<u64>() + caches.sum::<u64>() * storage.cache.size() as u64
}
