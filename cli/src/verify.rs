//! `doppler verify`: whether a model is whole: its hashes where its format has them, its config, every tensor read, NaN and
//! Inf counted, its tokenizer. Everything that is wrong is said, not the first thing alone.

use crate::args::AllowArgs;
use crate::end::{Ended, Stop};
use crate::model::{self, Model};
use crate::progress;
use crate::terminal::{self, tell};
use doppler::exec::WeightSink;
use doppler::forecast::size;
use doppler::formats::{ByteSource, Local};
use doppler::loader::{NonFinite, load};
use doppler::open::Weights;
use doppler::plan::WeightId;
use doppler::quant::Format;
use doppler::{Error, Kind, Result};
use pollster::block_on;
use std::io::Write;

/// Bytes that are read at once of tensors without a place in the model.
const PIECE: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model as -m takes it: a folder, a GGUF file, or `demo`, the built-in model
    #[arg(value_name = "MODEL", default_value = model::DEMO)]
    model: String,
    #[command(flatten)]
    allow: AllowArgs,
}

/// What is said, line by line.
struct Lines {
    out: Box<dyn Write>,
    faults: usize,
}

impl Lines {
    fn say(&mut self, what: &str, text: &str) -> Result<(), Stop> {
        Ok(writeln!(self.out, "{what:<10} {text}")?)
    }
    fn fault(&mut self, what: &str, text: &str) -> Result<(), Stop> {
        self.faults += 1;
        self.say(what, &format!("WRONG {text}"))
    }
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    let mut lines = Lines { out: Box::new(terminal::stdout()), faults: 0 };
    let model = match args.allow.open(&args.model) {
        // What is not there is no model that could be wrong.
        Err(e) if e.kind == Kind::Io => return Err(e.into()),
        Err(e) => {
            lines.fault("config", &e.message)?;
            return end(lines);
        }
        Ok(model) => model,
    };
    let config = &model.resolved.config;
    lines.say(
        "config",
        &format!("a {} of {} layers, {} numbers with their sources", config.preset, config.layers.len(), model.resolved.sources.len()),
    )?;
    hashes(&model, &mut lines)?;
    match block_on(model.weights()) {
        Err(e) => lines.fault("tensors", &e.message)?,
        Ok(weights) => tensors(&model, &weights, &mut lines)?,
    }
    match model.words() {
        Err(e) => lines.fault("tokenizer", &e.message)?,
        Ok(None) => lines.say("tokenizer", "none, so text can be neither read nor written")?,
        Ok(Some(words)) => {
            let template = if words.template().is_some() { "a chat template" } else { "no chat template" };
            lines.say("tokenizer", &format!("{} ids, {template}", words.tokenizer.vocab_size()))?;
        }
    }
    end(lines)
}

fn end(mut lines: Lines) -> Result<Ended, Stop> {
    let faults = lines.faults;
    let verdict = match faults {
        0 => "nothing is wrong with it, as far as this can be seen".to_owned(),
        1 => "1 thing is wrong".to_owned(),
        n => format!("{n} things are wrong"),
    };
    lines.say("verdict", &verdict)?;
    Ok(if faults == 0 { Ended::Fine } else { Ended::Finding })
}

/// Holds shards against their hashes, where there are any.
fn hashes(model: &Model, lines: &mut Lines) -> Result<(), Stop> {
    let Some(Local::Sharded(shards)) = model.files.sources.first() else {
        return lines.say("hashes", "none in this format: what was changed without breaking it is not seen");
    };
    let (bar, mut done) = (progress::Bytes::new("hashing", shards.len()), 0);
    let found = block_on(shards.verify(&mut |bytes| {
        done += bytes;
        bar.set(done, "");
    }));
    drop(bar);
    let found = found?;
    found.iter().try_for_each(|wrong| lines.fault("hashes", &wrong.message))?;
    let texts = model.files.manifest.as_ref().map_or(0, |manifest| manifest.texts.len());
    lines.say(
        "hashes",
        &format!("{} of {} shards and {texts} texts are as listed", shards.shards().len() - found.len(), shards.shards().len()),
    )
}

/// Reads every tensor.
fn tensors(model: &Model, weights: &Weights, lines: &mut Lines) -> Result<(), Stop> {
    let Weights { checkpoint, matched } = weights;
    weights.notes().iter().for_each(|note| tell(&format!("note: {note}")));
    let bar = progress::Bytes::new("reading", matched.bytes());
    let report = block_on(load(&model.plan, checkpoint, matched, true, &mut Nowhere, &mut |progress| {
        bar.set(progress.bytes_done, progress.tensor);
    }));
    drop(bar);
    let report = match report {
        Err(e) => return lines.fault("tensors", &e.message),
        Ok(report) => report,
    };
    let (used, unused) = (model.plan.weights.len(), &matched.ignored);
    lines.say("tensors", &format!("{used} weights found and read: {} of {}", size(report.bytes), weights.types()))?;
    for name in unused {
        let Some(entry) = checkpoint.index.get(name) else { continue };
        for start in (entry.range.start..entry.range.end).step_by(PIECE as usize) {
            let end = (start + PIECE).min(entry.range.end);
            if let Err(e) = checkpoint.sources.get(entry.file).map_or(Ok(()), |source| source.slice(start..end).map(drop)) {
                lines.fault("tensors", &Error::new(e.kind, format!("{name}: {}", e.message)).message)?;
                break;
            }
        }
    }
    if let Some(first) = unused.first() {
        lines.say("tensors", &format!("{} more that the model does not use, first {first}", unused.len()))?;
    }
    for found in &report.non_finite {
        let NonFinite { tensor, shape, nan, inf, first } = found;
        let format = checkpoint.index.get(tensor).and_then(|entry| entry.dtype.format());
        let blocks = match format.filter(|format| !format.is_plain()) {
            Some(format) => format!(": a scale of {format} blocks is not finite"),
            None => String::new(),
        };
        lines.fault("values", &format!("{tensor} {shape:?} has {nan} NaN and {inf} Inf, the first at element {first}{blocks}"))?;
    }
    if report.non_finite.is_empty() {
        lines.say("values", "no NaN, no Inf, no scale of a block that is not finite")?;
    }
    Ok(())
}

/// Takes weights, and keeps none.
struct Nowhere;

impl WeightSink for Nowhere {
    fn put(&mut self, _: WeightId, _: Format, _: usize, _: bytes::Bytes) -> Result<()> {
        Ok(())
    }
}
