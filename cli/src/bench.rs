//! `doppler bench`: speed of a model's shape with random weights made on the device, natively or in a browser.

use crate::args::Surface;
use crate::browser::Tab;
use doppler::bench::{Options, measure};
use doppler::config::RuntimeConfig;
use doppler::config::runtime::Inference;
use doppler::gpu::Gpu;
use doppler::quant::Format;
use doppler::tensor::DType;
use doppler::{Error, Kind, Result, settings};
use pollster::block_on;
use serde_json::{Value, json};
use std::io::Write;
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
    /// Shape of a known model, filled with random weights: llama3.2-1b, gemma2-2b, qwen3-8b, demo
    #[arg(long, value_name = "SHAPE")]
    pub synthetic: String,
    /// Matmul inputs and KV cache, and weights unless --format says otherwise: f16 or f32
    #[arg(long, default_value = "f16", value_parser = ["f16", "f32"])]
    pub dtype: String,
    /// Weights: f32, f16, bf16, q8_0, q6_k, q4_k, …
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Prompt tokens
    #[arg(long, default_value_t = 512)]
    pub prompt: usize,
    /// Generated tokens
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// Use what the adapter offers (native) or the WebGPU defaults (floor)
    #[arg(long, default_value = "native", value_parser = ["native", "floor"])]
    pub limits: String,
    /// Also decode while statistics of these trace categories are taken (all, attn, ffn, …; repeatable)
    #[arg(long, value_name = "CATEGORY")]
    pub watch: Vec<String>,
    /// Leave out the table of GPU time per kernel
    #[arg(long)]
    pub no_kernels: bool,
    /// Write the figures as JSON to FILE (- for stdout)
    #[arg(long, value_name = "FILE")]
    pub json: Option<String>,
}

/// Runs the benchmark; lines go to `out`, the figures come back.
pub fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<Value> {
    let format = Format::try_from(args.format.as_ref().unwrap_or(&args.dtype).clone()).map_err(|e| Error::invalid("--format", e))?;
    let options = Options {
        format,
        synthetic: args.synthetic.clone(),
        dtype: if args.dtype == "f16" { DType::F16 } else { DType::F32 },
        prompt: args.prompt,
        tokens: args.tokens,
        watch: args.watch.clone(),
        kernels: !args.no_kernels,
    };
    let mut say = |text: String| writeln!(out, "{text}").map_err(|e| Error::io("output", e));
    if args.surface == Surface::Native {
        return native(args, &options, &mut say);
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
    let runtime = RuntimeConfig::from_patch(json!({ "runtime": { "inference": { "limits": args.limits } } }))?;
    Ok(runtime.runtime.inference)
}

fn native(args: &BenchArgs, options: &Options, say: &mut dyn FnMut(String) -> Result<()>) -> Result<Value> {
    let clock = Instant::now();
    let gpu = block_on(Gpu::open(settings::gpu_options(&inference(args)?)))?;
    block_on(measure(gpu, options, &|| clock.elapsed().as_secs_f64(), say))
}

/// The native speeds, to compare with.
fn quick(args: &BenchArgs, options: &Options, say: &mut dyn FnMut(String) -> Result<()>) -> Result<Value> {
    let options = Options { watch: Vec::new(), kernels: false, ..options.clone() };
    native(args, &options, &mut |text| say(format!("native   {text}")))
}
