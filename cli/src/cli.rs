//! The command line: the commands. Options of one command are in its file, those of several in `args`. Only what works is
//! here: an option that is accepted does something.

use crate::{
    bench, compare, completions, convert, debug, devices, doctor, exam, imatrix, inspect, patch, pull, resident, run, serve, stages, tune,
    verify, web,
};
use clap::{Parser, Subcommand};

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
    Run(Box<run::Args>),
    /// Run a prompt and show what was resolved, generated and hashed; dump any intermediate value
    Debug(Box<debug::Args>),
    /// Tell where two runs part, in units of rounding: two dumps, a dump and a run, or two runs
    Compare(Box<compare::Args>),
    /// Say what is wrong with a model on this machine, where, and the fix; or that nothing is in what was examined
    Doctor(Box<doctor::Args>),
    /// Tell where in a model the difference between two prompts is decided: values of one run put into the other
    Patch(Box<patch::Args>),
    /// Show a model: its config with the source of each number, plan, tensors, memory
    Inspect(inspect::Args),
    /// List the stages: the names of all values that a model computes
    Stages(stages::Args),
    /// List the adapters of this machine and test each against the CPU oracle
    Devices(devices::Args),
    /// Measure speed: load, prefill, decode, bandwidth, GPU time per kernel
    Bench(bench::BenchArgs),
    /// Measure which variants of the kernels are fastest on this device, and keep that for the runs to come
    Tune(tune::Args),
    /// Serve models over HTTP, as the OpenAI API has it: many requests at a time, each with the bits that it has alone
    Serve(Box<serve::Args>),
    /// Serve the page: a chat in the browser, and what its model computes
    Web(web::Args),
    /// Convert a model: to GGUF, safetensors or a manifest, its weights in the formats asked for
    Convert(Box<convert::Args>),
    /// Check a model: hashes, every tensor, NaN and Inf, config, tokenizer
    Verify(verify::Args),
    /// Let a model answer held-out questions: accuracy per kind, perplexity
    Exam(exam::Args),
    /// Download a model from the Hugging Face Hub into its cache, and print where it is
    Pull(pull::Args),
    /// Measure over a calibration text which columns of a model matter, for `convert` and `compare cost --budget`
    Imatrix(Box<imatrix::Args>),
    /// Write what a shell completes after `doppler`, for bash, zsh, fish, elvish or powershell
    Completions(completions::Args),
    /// Write manual pages: this command's to stdout, or one for each command into a folder
    Man(completions::ManArgs),
    /// The background process that keeps the model of `debug` loaded: what it holds; end it
    Resident(resident::Args),
}
