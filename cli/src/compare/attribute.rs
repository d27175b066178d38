//! Which tensors of a copy differ from the reference's, and which of them the divergence over a text comes from.

use super::agree::{self, Reading, ReadingArgs, Source};
use super::sides::{SideArgs, reported};
use crate::args::AllowArgs;
use crate::device::Engine;
use crate::end::{Ended, Stop};
use crate::interrupt;
use crate::model::{self, Model};
use crate::progress::Steps;
use doppler::debug::attribution::{Attribution, Progress, Text, attribute, noise, same_weights};
use doppler::debug::weight_source::Stored;
use doppler::formats::Local;
use doppler::open::Weights;
use doppler::{Error, Result};
use pollster::block_on;
use serde_json::Value;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model with the right weights, A
    #[arg(long, value_name = "MODEL")]
    reference: String,
    /// The model that is judged, B
    #[arg(short, long, value_name = "MODEL", default_value = model::DEMO)]
    model: String,
    #[command(flatten)]
    allow: AllowArgs,
    /// Write what was found as JSON; `-` is stdout, in place of the lines
    #[arg(long, value_name = "FILE")]
    json: Option<String>,

    /// Let both read this text (- for stdin): how much divergence goes away when a tensor is A's
    #[arg(long, value_name = "FILE", help_heading = "Reading")]
    text: Option<PathBuf>,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Tensors to try, those with the worst signal-to-noise ratio first; each takes a reading of the text
    #[arg(long, value_name = "N|all", default_value = "10", value_parser = parse_restore, requires = "text", help_heading = "Reading")]
    restore: Restore,
    /// How side A runs: device=, dtype=, limits=, kernels=; the rest as the options below say
    #[arg(long, value_name = "KEY=VALUE,…", requires = "text", help_heading = "Reading")]
    a: Option<String>,
    /// How side B runs, likewise
    #[arg(long, value_name = "KEY=VALUE,…", requires = "text", help_heading = "Reading")]
    b: Option<String>,
    #[command(flatten)]
    how: SideArgs,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    if let Some(ended) = args.how.show()? {
        return Ok(ended);
    }
    args.reading.check(args.text.is_some())?;
    let (mut right, mut judged) = (args.allow.open(&args.reference)?, args.allow.open(&args.model)?);
    let Some(path) = &args.text else {
        return reported(args.json.as_deref(), None, |out| run_noise(&right, &judged, out));
    };
    let words = judged.needed_words("a text needs one")?;
    let (specs, models) = ([args.a.as_deref(), args.b.as_deref()], [&mut right, &mut judged]);
    let (reading, [a, mut b]) = agree::loaded(&Source::open(path)?, &args.reading, &words, &args.how, specs, models)?;
    reported(args.json.as_deref(), None, |out| run_text(args.restore, &reading, (&right, &a.engine), (&judged, &mut b.engine), out))
}

/// `--restore`: `None` is all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restore(pub Option<usize>);

fn parse_restore(text: &str) -> Result<Restore, String> {
    match text {
        "all" => Ok(Restore(None)),
        _ => text.parse().map(|n| Restore(Some(n))).map_err(|_| format!("expected a number or `all`, found `{text}`")),
    }
}

/// The noise of `other`'s tensors against `reference`'s. Nothing runs.
///
/// # Errors
/// `Kind::Invalid` when they are not copies of one model; those of reading the weights.
fn run_noise(reference: &Model, other: &Model, out: &mut dyn Write) -> Result<(Ended, Value), Stop> {
    same_weights(&reference.plan, &other.plan)?;
    let (from, own) = (block_on(reference.weights())?, block_on(other.weights())?);
    let (from, own) = (stored(&from), stored(&own));
    let found = with_bar(|heard| block_on(noise([&reference.plan, &other.plan], &from, &own, heard)))?;
    tell(&found, out)
}

/// As [`run_noise`], and over a text, which `reading` is, with the engines that hold both models' weights. `engine` has
/// its own weights again afterwards.
///
/// # Errors
/// As [`run_noise`]; what the engines report.
fn run_text(
    restore: Restore,
    reading: &Reading,
    (reference, exact): (&Model, &Engine),
    (other, engine): (&Model, &mut Engine),
    out: &mut dyn Write,
) -> Result<(Ended, Value), Stop> {
    // Before anything is read: weights that do not fit each other would be errors of another kind.
    same_weights(&reference.plan, &other.plan)?;
    let (from, own) = (block_on(reference.weights())?, block_on(other.weights())?);
    let (from, own) = (stored(&from), stored(&own));
    let text = Text { windows: &reading.windows, valid: reading.valid, most: restore.0 };
    let found = with_bar(|heard| block_on(attribute(exact, engine, &from, &own, text, heard)))?;
    tell(&found, out)
}

/// The weights of a model as a source.
pub(super) fn stored(weights: &Weights) -> Stored<'_, Local> {
    Stored { checkpoint: &weights.checkpoint, matched: &weights.matched }
}

/// Runs `work` with a bar, and ends it early at Ctrl-C.
fn with_bar(work: impl FnOnce(&mut dyn FnMut(Progress<'_>) -> ControlFlow<()>) -> Result<Attribution>) -> Result<Attribution> {
    let bar = Steps::new("reading");
    let _guard = interrupt::guard();
    work(&mut |progress| bar.heard(progress.tensor.unwrap_or("all as stored"), progress.done, progress.of))
}

fn tell(found: &Attribution, out: &mut dyn Write) -> Result<(Ended, Value), Stop> {
    for line in found.lines() {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{}", found.text())?;
    let mut broken = false;
    for tensor in found.tensors.iter().filter(|t| t.noise.non_finite > 0) {
        broken = true;
        writeln!(out, "ANOMALY kind=non_finite_weights tensor={} elements={}", tensor.noise.name, tensor.noise.non_finite)?;
    }
    for line in found.tensors.iter().filter_map(|t| t.noise.anomaly()) {
        broken = true;
        writeln!(out, "{line}")?;
    }
    let ended = match (found.complete, broken) {
        (false, _) => Ended::Interrupted,
        (true, true) => Ended::Finding,
        (true, false) => Ended::Fine,
    };
    Ok((ended, serde_json::to_value(found).map_err(|e| Error::io("--json", e))?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::device::Device;
    use crate::load;
    use clap::Parser;
    use doppler::config::RuntimeConfig;
    use doppler::exec::Storage;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Held by tests that watch for Ctrl-C, whose flag is one for the whole process.
    pub fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oracle with the model's weights.
    pub fn engine(model: &Model, storage: Storage) -> Engine {
        let mut config = RuntimeConfig::defaults().unwrap();
        let dtype = if storage == Storage::F16 { "f16" } else { "f32" };
        config.runtime.inference.dtype = serde_json::from_value(dtype.into()).unwrap();
        load::prepare(model, Device::Cpu, &config.runtime.inference, 64).unwrap().load(false).unwrap().0
    }

    #[test]
    fn a_model_has_no_noise_against_itself_and_others_are_refused() {
        let _alone = alone();
        let demo = model::open(model::DEMO, false).unwrap();
        let mut out = Vec::new();
        let (ended, document) = run_noise(&demo, &demo, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!((ended, text.as_str()), (Ended::Fine, "ATTRIBUTION differing=0 equal=79 restored=0\n"));
        assert_eq!(document["kl"], Value::Null);
        let other = model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/qwen2"), false).unwrap();
        let refused = run_noise(&demo, &other, &mut Vec::new()).map(|_| ());
        assert!(matches!(refused, Err(Stop::Failed(e)) if e.message.contains("two copies of one model")));
    }

    #[test]
    fn engines_are_measured_and_get_their_weights_back() {
        let _alone = alone();
        let demo = model::open(model::DEMO, false).unwrap();
        let (exact, mut rounded) = (engine(&demo, Storage::F32), engine(&demo, Storage::F16));
        let windows = vec![doppler::debug::agreement::Window { ids: vec![2, 7, 8, 9], added: 1, first: 0 }];
        let reading = Reading { windows, valid: demo.plan.vocab_size };
        let mut out = Vec::new();
        let (ended, document) = run_text(Restore(None), &reading, (&demo, &exact), (&demo, &mut rounded), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(ended, Ended::Fine);
        // No tensor differs: what diverges is the storage of activations.
        assert!(text.starts_with("ATTRIBUTION klMean=") && text.contains(" tokens=3 differing=0 equal=79 "), "{text}");
        assert!(document["kl"].as_f64().unwrap() > 0.0);
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_budget_is_a_number_or_all() {
        let parse = |line: &[&str]| Line::try_parse_from(["test", "--reference", "x"].iter().chain(line)).map(|l| l.args.restore.0);
        assert_eq!(parse(&[]).unwrap(), Some(10));
        assert_eq!(parse(&["--text", "t", "--restore", "all"]).unwrap(), None);
        assert_eq!(parse(&["--text", "t", "--restore", "3"]).unwrap(), Some(3));
        assert!(parse(&["--text", "t", "--restore", "-1"]).is_err() && parse(&["--restore", "3"]).is_err());
        assert!(parse(&["--a", "device=cpu"]).is_err());
        let run = |line: &[&str]| super::run(&Line::parse_from(["test", "--reference", "x"].iter().chain(line)).args);
        for option in [&["--documents"][..], &["--window", "9"], &["--text-tokens", "9"]] {
            let refused = run(option).map(|_| ());
            assert!(
                matches!(refused, Err(Stop::Failed(e)) if e.message.starts_with(option[0]) && e.message.contains("--text")),
                "{option:?}"
            );
        }
    }
}
