//! `doppler imatrix`: the importance of a model's columns over a calibration text, as a GGUF file that `convert` and other
//! programs read.

use crate::args::ModelArgs;
use crate::compare::agree::{self, ReadingArgs, Source};
use crate::compare::sides::{SideArgs, side};
use crate::end::{Ended, Stop};
use crate::interrupt;
use crate::output;
use crate::progress::Steps;
use crate::terminal::{stdout, tell};
use doppler::Result;
use doppler::debug::agreement::Progress;
use doppler::debug::importance::collect;
use doppler::exec::Executor;
use doppler::formats::gguf::importance;
use doppler::formats::{Local, LocalFile};
use doppler::quant::importance::Importance;
use pollster::block_on;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Calibration text: of the kind that the packed model will read (- for stdin)
    #[arg(long, value_name = "FILE", help_heading = "Reading")]
    text: PathBuf,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Write the importance here
    #[arg(short, long, value_name = "FILE.gguf")]
    output: PathBuf,
    #[command(flatten)]
    how: SideArgs,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    if let Some(ended) = args.how.show()? {
        return Ok(ended);
    }
    output::check(&[("--output", Some(&args.output))])?;
    let mut model = args.model.open()?;
    let words = model.needed_words("a text needs one")?;
    let reading = agree::read(&Source::open(&args.text)?, &args.reading, &[&model.plan], &words)?;
    let engine = side(&args.how, None, &mut model, &reading.room())?.engine;
    let mut out = stdout();
    writeln!(out, "Config model={} {}", model.name, engine.describe())?;
    let bar = Steps::new("reading");
    let _guard = interrupt::guard();
    let mut heard = |progress: Progress| bar.heard("", progress.done, progress.of);
    let text = args.text.display().to_string();
    let found = block_on(collect(&engine, &model.resolved.config.tensors, &reading.windows, &text, &mut heard));
    drop(bar);
    let found = found?;
    if interrupt::requested() {
        tell("note: interrupted, nothing was written");
        return Ok(Ended::Interrupted);
    }
    output::write(&args.output, |out| importance::write(out, &found))?;
    let tokens: usize = reading.windows.iter().map(|w| w.ids.len()).sum();
    writeln!(out, "IMATRIX tensors={} tokens={tokens} windows={} written to {}", found.tensors.len(), found.chunks, args.output.display())?;
    Ok(Ended::Fine)
}

/// The importance in the file at `path`.
///
/// # Errors
/// `Kind::Io`, `Kind::Format` for a file that is no importance in GGUF form.
pub fn read(path: &Path) -> Result<Importance> {
    block_on(importance::read(&Local::File(LocalFile::open(path)?)))
}
