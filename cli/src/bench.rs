//! `doppler bench`: speed of a model, or of a model's shape with random weights made on the device, natively or in a browser.

use crate::args::{AllowArgs, Surface, Tune};
use crate::browser::Tab;
use crate::device::{Device, Engine};
use crate::load;
use crate::model::Model;
use doppler::bench::{Loaded, Options, Task, measure, measure_loaded};
use doppler::config::RuntimeConfig;
use doppler::config::runtime::Inference;
use doppler::formats::text::{MAX_TEXT, read_text};
use doppler::gpu::Gpu;
use doppler::quant::Format;
use doppler::tensor::DType;
use doppler::{Error, Kind, Result, settings};
use pollster::block_on;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// browser: in headless Chromium, and natively before, for comparison
    #[arg(long, value_enum, default_value_t)]
    pub surface: Surface,
    /// With --surface browser: measure nothing natively
    #[arg(long)]
    pub no_native: bool,
    /// Model: a folder, a GGUF file, a manifest, a name of the Hub, or demo
    #[arg(short, long, value_name = "MODEL", required_unless_present = "synthetic", conflicts_with = "synthetic")]
    pub model: Option<String>,
    #[command(flatten)]
    pub allow: AllowArgs,
    /// Shape of a known model, filled with random weights: qwen3-0.6b, gemma3-1b, llama3.2-1b, gemma2-2b,
    /// qwen3.5-2b, qwen3-8b, qwen3-30b-a3b, gemma4-e2b, gpt-oss-20b, llama3.1-8b, demo
    #[arg(long, value_name = "SHAPE")]
    pub synthetic: Option<String>,
    /// Matmul inputs and KV cache, and a shape's weights unless --format says otherwise: f16 or f32
    #[arg(long, default_value = "f16", value_parser = ["f16", "f32"])]
    pub dtype: String,
    /// Weights of a shape: f32, f16, bf16, q8_0, q6_k, q4_k, …
    #[arg(long, value_name = "FORMAT", conflicts_with = "model")]
    pub format: Option<String>,
    /// Tokens that the sequence has before the prompt
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub depth: usize,
    /// Prompt tokens
    #[arg(long, default_value_t = 512)]
    pub prompt: usize,
    /// Generated tokens
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// How often prefill and decode are measured; the median counts, and the spread is shown
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repeat: usize,
    /// Also decode so many sequences together
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub sequences: usize,
    /// Use what the adapter offers (native) or the WebGPU defaults (floor)
    #[arg(long, default_value = "native", value_parser = ["native", "floor"])]
    pub limits: String,
    /// Follow what `doppler tune` measured on this device, or not
    #[arg(long, value_enum, default_value_t)]
    pub tune: Tune,
    /// Also decode while statistics are taken, as for the rules of `debug` (rules) or a trace category (all, attn, ffn, …;
    /// repeatable); the cost is said against a run that nobody watches, and against one that computes the same kernels
    #[arg(long, value_name = "rules|CATEGORY")]
    pub watch: Vec<String>,
    /// Also decode while a value is changed, as `run --set` does it: zero or scale:F (repeatable); the cost is said against a run that
    /// changes nothing, and against one that computes the same kernels
    #[arg(long, value_name = "STAGE@LAYERS=CHANGE")]
    pub set: Vec<String>,
    /// Leave out the table of GPU time per kernel
    #[arg(long)]
    pub no_kernels: bool,
    /// Compare with the figures of an earlier run, written by --json: rates and kernels, before and after
    #[arg(long, value_name = "OLD.json")]
    pub compare: Option<PathBuf>,
    /// Write the figures as JSON to FILE (- for stdout)
    #[arg(long, value_name = "FILE")]
    pub json: Option<String>,
    /// Measure first which variants are fastest: `doppler tune`.
    #[arg(skip)]
    pub tuning: bool,
}

/// Runs the benchmark; lines go to `out`, the figures come back. With `--compare`, what changed is told at the end.
pub fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<Value> {
    // Told before the work, not after it.
    let model = args.model.as_deref().map(|spec| opened(args, spec)).transpose()?;
    let old = args.compare.as_deref().map(|path| earlier(path, args, model.as_ref())).transpose()?;
    let mut figures = measured(args, model.as_ref(), out)?;
    figures["limits"] = json!(args.limits);
    if let Some(old) = old {
        let lines = changes(&old, &figures);
        lines.iter().try_for_each(|line| writeln!(out, "{line}")).map_err(|e| Error::io("output", e))?;
    }
    Ok(figures)
}

/// The model that is to be measured.
fn opened(args: &BenchArgs, spec: &str) -> Result<Model> {
    if args.surface == Surface::Browser {
        let text = "in a browser, shapes are measured, with random weights: --synthetic in place of -m";
        return Err(Error::invalid("--model", text));
    }
    args.allow.open(spec)
}

/// The figures of an earlier run of the same task.
fn earlier(path: &Path, args: &BenchArgs, model: Option<&Model>) -> Result<Value> {
    let name = path.display().to_string();
    let old: Value = serde_json::from_str(&read_text(path, MAX_TEXT)?).map_err(|e| Error::format(name.as_str(), e))?;
    let format = args.format.as_ref().unwrap_or(&args.dtype);
    let mut task = vec![
        ("synthetic", json!(args.synthetic)),
        ("model", json!(model.map(|model| &model.name))),
        ("dtype", json!(args.dtype)),
        ("depth", json!(args.depth)),
        ("promptTokens", json!(args.prompt)),
        ("tokens", json!(args.tokens)),
        ("limits", json!(args.limits)),
    ];
    // A model's own are what its files have.
    task.extend(args.synthetic.is_some().then(|| ("format", json!(format))));
    for (key, now) in task {
        if old[key] != now {
            let text = format!("{name}: {key} was {}, now it is {now}: figures of different tasks cannot be compared", old[key]);
            return Err(Error::invalid("--compare", text));
        }
    }
    Ok(old)
}

/// Rates and kernels, before and now.
fn changes(old: &Value, new: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    if old["device"] != new["device"] {
        lines.push(format!("Note     the earlier figures are of another device: {}", old["device"].as_str().unwrap_or("unknown")));
    }
    if let (Some(before), Some(now)) = (old["firstTokenSeconds"].as_f64(), new["firstTokenSeconds"].as_f64()) {
        lines.push(format!("change   first token, cold: {:.0} -> {:.0} ms", before * 1e3, now * 1e3));
    }
    for (name, key, spread) in [("prefill", "prefillTokensPerSecond", "prefillSpread"), ("decode", "decodeTokensPerSecond", "decodeSpread")]
    {
        if let (Some(before), Some(now)) = (old[key].as_f64(), new[key].as_f64()) {
            let range = |figures: &Value| Some((figures[spread][0].as_f64()?, figures[spread][1].as_f64()?));
            let apart = match (range(old), range(new)) {
                (Some((low, high)), Some((least, most))) if least <= high && low <= most => ", within the spread of both",
                _ => "",
            };
            lines.push(format!("change   {name}: {before:.1} -> {now:.1} tok/s, {:+.1} %{apart}", (now / before - 1.0) * 100.0));
        }
    }
    for key in ["kernels", "prefillKernels"] {
        let step = if key == "kernels" { "decode" } else { "prefill" };
        let list = |figures: &Value| figures[key].as_array().cloned().unwrap_or_default();
        let (before, now) = (list(old), list(new));
        let time = |kernel: Option<&Value>| kernel.and_then(|kernel| kernel["microseconds"].as_f64());
        let find = |kernels: &[Value], name: &Value| time(kernels.iter().find(|kernel| kernel["kernel"] == *name));
        for kernel in &now {
            let name = kernel["kernel"].as_str().unwrap_or_default();
            let Some(after) = time(Some(kernel)) else { continue };
            let change = match find(&before, &kernel["kernel"]) {
                Some(before) => format!("{before:.0} -> {after:.0} us, {:+.1} %", (after / before - 1.0) * 100.0),
                None => format!("{after:.0} us, new"),
            };
            lines.push(format!("         {step} {name:<28} {change}"));
        }
        let gone = before.iter().filter(|kernel| find(&now, &kernel["kernel"]).is_none());
        lines.extend(gone.map(|kernel| {
            let (name, before) = (kernel["kernel"].as_str().unwrap_or_default(), time(Some(kernel)).unwrap_or(f64::NAN));
            format!("         {step} {name:<28} {before:.0} us, gone")
        }));
    }
    lines
}

fn measured(args: &BenchArgs, model: Option<&Model>, out: &mut dyn Write) -> Result<Value> {
    let task = Task {
        depth: args.depth,
        prompt: args.prompt,
        tokens: args.tokens,
        watch: args.watch.clone(),
        set: args.set.clone(),
        kernels: !args.no_kernels,
        repeat: args.repeat,
        sequences: args.sequences,
        tune: args.tuning,
    };
    let mut say = |text: String| writeln!(out, "{text}").map_err(|e| Error::io("output", e));
    if let Some(model) = model {
        return of_model(args, model, &task, &mut say);
    }
    let shape = args.synthetic.clone().unwrap_or_default();
    let format = Format::try_from(args.format.as_ref().unwrap_or(&args.dtype).clone()).map_err(|e| Error::invalid("--format", e))?;
    let dtype = if args.dtype == "f16" { DType::F16 } else { DType::F32 };
    let options = Options { synthetic: shape, dtype, format, task };
    if args.surface == Surface::Native {
        return native(args, &options, &mut say);
    }
    if !args.set.is_empty() {
        return Err(Error::invalid("--set", "what a change costs is measured natively: --surface native"));
    }
    let alone = match args.no_native {
        true => None,
        false => quick(args, &options, &mut say).map(Some).or_else(|e| match e.kind {
            Kind::Device => say(format!("native   not measured: {e}")).map(|()| None),
            _ => Err(e),
        })?,
    };
    let tab = Tab::open(&inference(args)?, Vec::new())?;
    say(format!("browser  {}", tab.describe()))?;
    let mut figures = tab.command("bench", json!(options), &mut |told| say(told.as_str().unwrap_or_default().to_string()))?;
    figures["device"] = tab.describe().into();
    if let Some(native) = alone {
        for (name, key) in [("decode", "decodeTokensPerSecond"), ("prefill", "prefillTokensPerSecond")] {
            let rate = |figures: &Value| figures[key].as_f64().unwrap_or(f64::NAN);
            let (here, there) = (rate(&figures), rate(&native));
            say(format!("share    {name}: {:.0} % of native ({here:.1} of {there:.1} tok/s)", here / there * 100.0))?;
            figures["native"][key] = there.into();
        }
    }
    Ok(figures)
}

/// What `args` say of the device.
fn inference(args: &BenchArgs) -> Result<Inference> {
    let inference = json!({ "limits": args.limits, "dtype": args.dtype });
    let runtime = RuntimeConfig::from_patch(json!({ "runtime": { "inference": inference } }))?;
    Ok(Inference { tuned: if args.tuning { Vec::new() } else { args.tune.tables()? }, ..runtime.runtime.inference })
}

/// Measures a model with its own weights.
fn of_model(args: &BenchArgs, model: &Model, task: &Task, say: &mut dyn FnMut(String) -> Result<()>) -> Result<Value> {
    let (sequence, inference) = (task.sequence()?, inference(args)?);
    let (needed, most) = (task.depth + task.prompt + task.tokens, model.plan.max_positions);
    if needed > most {
        let text = format!("depth, prompt and generated tokens: the model has {most} positions, these are {needed}");
        return Err(Error::invalid("bench", text));
    }
    let gpu = block_on(Gpu::open(settings::gpu_options(&inference)))?;
    let prepared = load::prepare(model, Device::Gpu(Box::new(gpu)), &inference, sequence.capacity)?;
    let (formats, clock) = (prepared.weights.matched.formats(), Instant::now());
    let (Engine::Gpu(executor), _) = prepared.load(false)? else {
        return Err(Error::device("a model is measured on a GPU, and there is none"));
    };
    let loaded = Loaded { executor: *executor, formats, name: ("model", model.name.clone()), seconds: clock.elapsed().as_secs_f64() };
    block_on(measure_loaded(loaded, task, &|| clock.elapsed().as_secs_f64(), say))
}

fn native(args: &BenchArgs, options: &Options, say: &mut dyn FnMut(String) -> Result<()>) -> Result<Value> {
    let clock = Instant::now();
    let gpu = block_on(Gpu::open(settings::gpu_options(&inference(args)?)))?;
    block_on(measure(gpu, options, &|| clock.elapsed().as_secs_f64(), say))
}

/// The native speeds, to compare with.
fn quick(args: &BenchArgs, options: &Options, say: &mut dyn FnMut(String) -> Result<()>) -> Result<Value> {
    let task = Task { watch: Vec::new(), set: Vec::new(), kernels: false, tune: false, ..options.task.clone() };
    let options = Options { task, ..options.clone() };
    native(args, &options, &mut |text| say(format!("native   {text}")))
}
