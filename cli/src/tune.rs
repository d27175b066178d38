//! `doppler tune`: which variants of the kernels are fastest on this device, for a model or a shape, measured and kept.

use crate::args::{AllowArgs, Surface, Tune};
use crate::bench::{self, BenchArgs};
use crate::end::{Ended, Stop};
use crate::{output, terminal, tuned};
use doppler::Error;
use doppler::tuned::Tuned;
use std::io::Write;

/// What to tune for.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model: a folder, a GGUF file, a manifest, a name of the Hub, or demo
    #[arg(short, long, value_name = "MODEL", required_unless_present = "synthetic", conflicts_with = "synthetic")]
    model: Option<String>,
    #[command(flatten)]
    allow: AllowArgs,
    /// Shape of a known model, filled with random weights, as `bench` has them
    #[arg(long, value_name = "SHAPE")]
    synthetic: Option<String>,
    /// Matmul inputs and KV cache, and a shape's weights unless --format says otherwise: f16 or f32
    #[arg(long, default_value = "f16", value_parser = ["f16", "f32"])]
    dtype: String,
    /// Weights of a shape: f32, f16, bf16, q8_0, q6_k, q4_k, …
    #[arg(long, value_name = "FORMAT", conflicts_with = "model")]
    format: Option<String>,
    /// Tokens of the prompt; with fewer than 512, products of many rows are left as they are
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Decode steps of a measurement
    #[arg(long, default_value_t = 32)]
    tokens: usize,
    /// Measurements of a variant. It is taken where the slowest of them is faster than the fastest without it
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
    /// Use what the adapter offers (native) or the WebGPU defaults (floor)
    #[arg(long, default_value = "native", value_parser = ["native", "floor"])]
    limits: String,
}

/// Measures, and keeps what was found.
///
/// # Errors
/// Those of [`bench::run`] and [`tuned::keep`].
pub fn run(args: &Args) -> Result<Ended, Stop> {
    let bench = BenchArgs {
        surface: Surface::Native,
        no_native: false,
        model: args.model.clone(),
        allow: args.allow.clone(),
        synthetic: args.synthetic.clone(),
        dtype: args.dtype.clone(),
        format: args.format.clone(),
        depth: 0,
        prompt: args.prompt,
        tokens: args.tokens,
        repeat: args.repeat,
        sequences: 1,
        limits: args.limits.clone(),
        tune: Tune::Off,
        watch: Vec::new(),
        set: Vec::new(),
        no_kernels: true,
        compare: None,
        json: None,
        tuning: true,
    };
    let mut out = output::PipeWriter::new(Box::new(terminal::stdout()));
    let figures = bench::run(&bench, &mut out);
    if out.closed() {
        return Err(Stop::Closed);
    }
    let figures = figures?;
    let table: Tuned = serde_json::from_value(figures["tune"]["table"].clone()).map_err(|e| Error::invalid("tune", e))?;
    let measured: Vec<String> = serde_json::from_value(figures["tune"]["measured"].clone()).map_err(|e| Error::invalid("tune", e))?;
    if measured.is_empty() {
        return Ok(Ended::Fine);
    }
    let path = tuned::keep(table, &measured)?;
    writeln!(out, "kept     {}: runs on this device follow it, unless told --tune off", path.display())
        .map_err(|e| Error::io("output", e))?;
    Ok(Ended::Fine)
}
