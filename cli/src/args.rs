//! The command line: the commands, and the options that several of them share. Options of one command are in its file.
//! Only what works is here: an option that is accepted does something.

use crate::{bench, compare, debug, devices, exam, inspect, resident, run, stages, web};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// An LLM inference engine on WebGPU whose numbers can be seen, compared and explained.
#[derive(Debug, Parser)]
#[command(
    name = "doppler",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 fine, 1 something was found (an anomaly, a divergence), 2 could not run, 130 interrupted, 143 ended by SIGTERM."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate text: to stdout, everything else to stderr
    Run(run::Args),
    /// Run a prompt and show what was resolved, generated and hashed; dump any intermediate value
    Debug(Box<debug::Args>),
    /// Tell where two runs part, in units of rounding: two dumps, a dump and a run, or two runs
    Compare(Box<compare::Args>),
    /// Show a model: its config with the source of each number, plan, tensors, memory
    Inspect(inspect::Args),
    /// List the stages: the names of all values that a model computes
    Stages(stages::Args),
    /// List the adapters of this machine and test each against the CPU oracle
    Devices(devices::Args),
    /// Measure speed: load, prefill, decode, bandwidth, GPU time per kernel
    Bench(bench::BenchArgs),
    /// Serve the page: a chat in the browser, and what its model computes
    Web(web::Args),
    /// Let a model answer held-out questions: accuracy per kind, perplexity
    Exam(exam::Args),
    /// The background process that keeps the model of `debug` loaded: what it holds; end it
    Resident(resident::Args),
}

/// Which model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A folder with config.json and *.safetensors (as on the Hugging Face Hub), or `demo`, the built-in model
    #[arg(short, long, value_name = "MODEL", default_value = crate::model::DEMO)]
    pub model: String,
    /// Run although config.json has keys that are not understood; they are listed
    #[arg(long)]
    pub allow_unknown_config: bool,
}

/// How tokens are chosen. What is absent is as `--config` says.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Divide logits by T; 0 takes the most likely token (greedy)
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = finite)]
    pub temperature: Option<f64>,
    /// Choose among the K most likely tokens; 0 is off
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Choose among the most likely tokens that together reach probability P; 1 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = finite)]
    pub top_p: Option<f64>,
    /// Choose among tokens at least P times as likely as the most likely one; 0 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = finite)]
    pub min_p: Option<f64>,
    /// Make tokens that occurred before less likely by this factor on their logits; 1 is off
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = finite)]
    pub repeat_penalty: Option<f64>,
    /// The same seed gives the same tokens with the same build, device and dtype; others round differently, and where two
    /// tokens are nearly as likely, the choice may differ
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// Where and how to compute.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// browser: on WebGPU in headless Chromium or Chrome ($DOPPLER_BROWSER, or the one that is installed), which is started
    /// for it with further switches from $DOPPLER_BROWSER_SWITCHES; everything else stays as it is
    #[arg(long, value_enum, default_value_t)]
    pub surface: Surface,
    /// auto: the GPU, or the CPU oracle where there is none or only a software adapter, which is slower (said on stderr).
    /// gpu: any adapter. cpu: the oracle, exact and slow
    #[arg(long, value_enum, default_value_t)]
    pub device: Device,
    /// Storage of activations and KV cache: auto is f16 where the GPU has it, else f32
    #[arg(long, value_name = "TYPE", value_parser = ["auto", "f32", "f16"])]
    pub dtype: Option<String>,
    /// How much of the GPU to use: floor is what every browser has
    #[arg(long, value_name = "LIMITS", value_parser = ["native", "floor"])]
    pub limits: Option<String>,
    /// Use KERNEL.wgsl from this folder in place of the built-in kernel of that name
    #[arg(long, value_name = "DIR")]
    pub kernels: Option<PathBuf>,
    /// Positions to make room for; prompt and answer cannot be longer. Without it, what the model allows
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Prompt tokens to compute in one pass
    #[arg(long, value_name = "N")]
    pub prefill_chunk: Option<usize>,
}

/// `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Device {
    #[default]
    Auto,
    Gpu,
    Cpu,
}

/// `--surface`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Surface {
    #[default]
    Native,
    Browser,
}

/// Layers as options name them: a number, or a range like `3-5`.
pub fn layers(text: &str) -> Result<RangeInclusive<usize>, String> {
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| format!("`{text}` is no layer; expected numbers like 0,3-5"));
    let Some((first, last)) = text.split_once('-') else { return number(text).map(|layer| layer..=layer) };
    match (number(first)?, number(last)?) {
        (first, last) if first <= last && last - first < 100_000 => Ok(first..=last),
        _ => Err(format!("`{text}` is no range of layers; expected one like 3-5")),
    }
}

/// A number that is one: JSON, in which configs are merged, has no others.
fn finite(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|e| format!("{e}"))?;
    if number.is_finite() { Ok(number) } else { Err("expected a finite number".into()) }
}

/// The runtime config that the options above are laid over.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Runtime config")]
pub struct ConfigArgs {
    /// A preset's name, a file, or JSON text; options of the command line win over it
    #[arg(long, value_name = "PRESET|FILE|JSON")]
    pub config: Option<String>,
    /// List the presets and what they change, and exit
    #[arg(long)]
    pub list_presets: bool,
    /// Print the whole runtime config that results, as JSON, and exit
    #[arg(long)]
    pub dump_config: bool,
}
