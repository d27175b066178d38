//! Two models, or one on two devices, over a text: divergence, the same likeliest token, perplexity.

use super::sides::{self, SideArgs, Tokens, reported, side};
use crate::args::AllowArgs;
use crate::device::Engine;
use crate::end::{Ended, Stop};
use crate::interrupt;
use crate::model::{self, Model};
use crate::progress::Steps;
use doppler::debug::agreement::{Agreement, Cut, Progress, Window, agree, cut, predicted};
use doppler::exec::Executor;
use doppler::formats::text::{MAX_STDIN, read_text, text_of};
use doppler::inference::tokenizer::escape_line;
use doppler::inference::words::Words;
use doppler::plan::Plan;
use doppler::{Error, Result};
use pollster::block_on;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Tokens of a window when none are given, or the context if that is shorter.
const WINDOW: usize = 2048;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The text that both sides read (- for stdin)
    #[arg(value_name = "TEXT")]
    text: PathBuf,
    #[command(flatten)]
    reading: ReadingArgs,
    /// End with exit code 1 if the mean divergence, in nats, is above KL
    #[arg(long, value_name = "KL", allow_negative_numbers = true)]
    max_kl: Option<f64>,
    /// Write what was found as JSON; `-` is stdout, in place of the lines
    #[arg(long, value_name = "FILE")]
    json: Option<String>,

    /// The model that is judged, B
    #[arg(short, long, value_name = "MODEL", default_value = model::DEMO, help_heading = "Sides")]
    model: String,
    /// The model that is right, A [default: MODEL, run as --a says]
    #[arg(long, value_name = "MODEL", help_heading = "Sides")]
    reference: Option<String>,
    #[command(flatten)]
    allow: AllowArgs,
    /// How side A runs: device=, dtype=, limits=, kernels=; the rest as the options below say
    #[arg(long, value_name = "KEY=VALUE,…", help_heading = "Sides")]
    a: Option<String>,
    /// How side B runs, likewise
    #[arg(long, value_name = "KEY=VALUE,…", help_heading = "Sides")]
    b: Option<String>,
    #[command(flatten)]
    how: SideArgs,
}

/// How a text is read.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Reading")]
pub struct ReadingArgs {
    /// Tokens read together, from an empty cache each time [default: the model's context, at most 2048]
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,
    /// The text is several documents with a line ===== between them: none sees another
    #[arg(long)]
    pub documents: bool,
    /// Read the first N tokens of the text only
    #[arg(long, value_name = "N")]
    pub text_tokens: Option<usize>,
}

impl ReadingArgs {
    /// Refuses options of a text that is not given.
    ///
    /// # Errors
    /// `Kind::Invalid` naming the option.
    pub fn check(&self, has_text: bool) -> Result<()> {
        let given = [("--window", self.window.is_some()), ("--documents", self.documents), ("--text-tokens", self.text_tokens.is_some())];
        match given.iter().find(|(_, given)| *given && !has_text) {
            Some((option, _)) => Err(Error::invalid(option, "it is about a text: add --text FILE")),
            None => Ok(()),
        }
    }
}

/// A text, with its name for messages.
pub struct Source {
    pub name: String,
    pub text: String,
}

impl Source {
    /// The file at `path`, or stdin.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Format` for what cannot be read or is not UTF-8.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { name: path.display().to_string(), text: text(path)? })
    }
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    if let Some(ended) = args.how.show()? {
        return Ok(ended);
    }
    if args.reference.is_none() && args.a.is_none() && args.b.is_none() {
        let message = "both sides are the same: name the model that is right with --reference, or say with --a and --b how they differ";
        return Err(Error::invalid("compare agree", message).into());
    }
    if let Some(most) = args.max_kl.filter(|most| most.is_nan() || *most < 0.0) {
        return Err(Error::invalid("--max-kl", format!("expected a divergence in nats, 0 or above, found {most}")).into());
    }
    let mut judged = args.allow.open(&args.model)?;
    let mut right = args.reference.as_ref().map_or_else(|| Ok(judged.clone()), |spec| args.allow.open(spec))?;
    let words = judged.needed_words("a text needs one")?;
    let (specs, models) = ([args.a.as_deref(), args.b.as_deref()], [&mut right, &mut judged]);
    let (reading, [a, b]) = loaded(&Source::open(&args.text)?, &args.reading, &words, &args.how, specs, models)?;
    reported(args.json.as_deref(), None, |out| {
        for (side, model) in [(&a, &right), (&b, &judged)].into_iter().filter(|(side, _)| !side.non_finite.is_empty()) {
            writeln!(out, "Note {} tensors of {} contain NaN or Inf weights", side.non_finite.len(), model.name)?;
        }
        let (a, b) = (Side { name: &right.name, engine: &a.engine }, Side { name: &judged.name, engine: &b.engine });
        agreement(&reading, args.max_kl, &a, &b, &words, out)
    })
}

/// `text` as `args` read it, and both models on their devices, as `specs` say.
///
/// # Errors
/// Those of [`read`], before anything is loaded, and of loading.
pub fn loaded(
    text: &Source,
    args: &ReadingArgs,
    words: &Words,
    how: &SideArgs,
    [a_spec, b_spec]: [Option<&str>; 2],
    [a, b]: [&mut Model; 2],
) -> Result<(Reading, [sides::Side; 2])> {
    let reading = read(text, args, &[&a.plan, &b.plan], words)?;
    let room = reading.room();
    let sides = [side(how, a_spec, a, &room)?, side(how, b_spec, b, &room)?];
    Ok((reading, sides))
}

/// One side of a comparison.
pub struct Side<'s> {
    /// What to call it.
    pub name: &'s str,
    /// What computes.
    pub engine: &'s Engine,
}

/// A text as windows, and the size of the vocabulary that both sides and the tokenizer share.
pub struct Reading {
    pub windows: Vec<Window>,
    pub valid: usize,
}

impl Reading {
    /// What a side must have room for.
    pub fn room(&self) -> Tokens {
        let longest = self.windows.iter().map(|w| w.ids.len()).max().unwrap_or(1);
        Tokens { prompt: vec![0], forced: Vec::new(), steps: longest }
    }
}

/// Measures `b` against the reference `a`; `words` is the tokenizer of both.
///
/// # Errors
/// Those of `agree`.
fn agreement(
    reading: &Reading,
    max_kl: Option<f64>,
    a: &Side<'_>,
    b: &Side<'_>,
    words: &Words,
    out: &mut dyn Write,
) -> Result<(Ended, Value), Stop> {
    for (side, name) in [(a, "A"), (b, "B")] {
        let storage = side.engine.storage();
        writeln!(out, "Config {name}={} dtype={} device={}", side.name, storage.activations, side.engine.describe())?;
    }
    let found = measure(a.engine, b.engine, reading)?;
    for line in found.worst_lines(&|ids| shown(words, ids)) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{}", found.text())?;
    if let Some(line) = found.anomaly() {
        writeln!(out, "{line}")?;
    }
    let above = max_kl.filter(|most| found.kl.mean.is_nan() || found.kl.mean > *most);
    if let Some(most) = above {
        writeln!(out, "ANOMALY kind=divergence value={} (mean KL is above --max-kl {most})", found.kl.mean)?;
    }
    let mut document = serde_json::to_value(&found).map_err(|e| Error::io("--json", e))?;
    document["names"] = json!({"a": a.name, "b": b.name});
    let ended = match (found.complete, found.non_finite.first.is_some() || above.is_some()) {
        (false, _) => Ended::Interrupted,
        (true, true) => Ended::Finding,
        (true, false) => Ended::Fine,
    };
    Ok((ended, document))
}

/// Cuts `text` for models of these `plans`.
///
/// # Errors
/// `Kind::Invalid` for bad options and texts without a token to predict; what the tokenizer reports.
pub fn read(text: &Source, args: &ReadingArgs, plans: &[&Plan], words: &Words) -> Result<Reading> {
    let least = |f: fn(&Plan) -> usize| plans.iter().map(|p| f(p)).min().unwrap_or(0);
    let context = least(|p| p.max_positions);
    let window = args.window.unwrap_or(WINDOW.min(context));
    if window > context {
        return Err(Error::invalid("--window", format!("{window} tokens are longer than the model's context of {context}")));
    }
    let mut windows = cut(&words.tokenizer, &text.text, Cut { window, documents: args.documents }).map_err(|e| e.within(&text.name))?;
    if let Some(most) = args.text_tokens {
        shorten(&mut windows, most);
    }
    if predicted(&windows) == 0 {
        return Err(Error::invalid(&text.name, "no token to predict: expected a text of at least two tokens"));
    }
    Ok(Reading { windows, valid: least(|p| p.vocab_size).min(words.tokenizer.vocab_size() as usize) })
}

/// A text file, or stdin.
pub(super) fn text(path: &Path) -> Result<String> {
    match path == Path::new("-") {
        true => text_of("stdin", std::io::stdin().lock(), MAX_STDIN),
        false => read_text(path, MAX_STDIN),
    }
}

/// Keeps windows that predict `most` tokens, the last of them in part.
pub(super) fn shorten(windows: &mut Vec<Window>, most: usize) {
    let mut left = most;
    for window in windows.iter_mut() {
        window.ids.truncate(left.saturating_add(1));
        left -= window.ids.len().saturating_sub(1);
    }
    windows.retain(|w| w.ids.len() > 1);
}

fn measure(a: &Engine, b: &Engine, reading: &Reading) -> Result<Agreement> {
    let bar = Steps::new("reading");
    let _guard = interrupt::guard();
    let mut heard = |progress: Progress| bar.heard("", progress.done, progress.of);
    block_on(agree(a, b, &reading.windows, reading.valid, &mut heard))
}

/// The text of some ids in a row, on one line; special tokens are shown.
fn shown(words: &Words, ids: &[u32]) -> String {
    match ids {
        [id] => words.tokenizer.token_text(*id),
        _ => escape_line(&words.tokenizer.decode(ids, false).unwrap_or_else(|e| format!("<{e}>"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::attribute::tests::{alone, engine};
    use doppler::Kind;
    use doppler::exec::Storage;

    pub fn demo() -> (Model, Words) {
        let model = model::open(model::DEMO, false).unwrap();
        let words = model.needed_words("-").unwrap();
        (model, words)
    }

    fn file(name: &str, text: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("doppler-text-{name}-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_text_is_read_by_both_and_told() {
        let _alone = alone();
        let (model, words) = demo();
        let path = file("both", "Once upon a time a cat lived near the sea.\n=====\nOnce upon a time.".as_bytes());
        let args = ReadingArgs { documents: true, ..ReadingArgs::default() };
        let source = Source::open(&path).unwrap();
        let reading = |args: &ReadingArgs| read(&source, args, &[&model.plan], &words).unwrap();
        let (exact, rounded) = (engine(&model, Storage::F32), engine(&model, Storage::F16));
        let (a, b) = (Side { name: "x", engine: &exact }, Side { name: "y", engine: &rounded });
        let mut out = Vec::new();
        let (ended, document) = agreement(&reading(&args), None, &a, &b, &words, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(ended, Ended::Fine);
        let line = text.lines().last().unwrap();
        assert!(line.starts_with("AGREEMENT tokens=") && line.contains(" windows=2 "), "{text}");
        assert!(text.contains("Config A=x dtype=f32") && text.contains("WORST 1 kl="), "{text}");
        assert!(!["Error", "NaN", "Inf", "ANOMALY"].iter().any(|word| text.contains(word)), "{text}");
        assert_eq!((&document["names"]["b"], &document["complete"]), (&json!("y"), &json!(true)));

        let short = ReadingArgs { text_tokens: Some(4), ..args };
        let mut out = Vec::new();
        let (ended, document) = agreement(&reading(&short), Some(0.0), &a, &b, &words, &mut out).unwrap();
        assert_eq!((ended, &document["tokens"]), (Ended::Finding, &json!(4)));
        assert!(String::from_utf8(out).unwrap().contains("ANOMALY kind=divergence"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn bad_texts_and_options_are_explained() {
        let (model, words) = demo();
        let of = |path: &Path, args: &ReadingArgs| read(&Source::open(path)?, args, &[&model.plan], &words).map(|_| ());
        let error = |path: &Path, args: &ReadingArgs| of(path, args).unwrap_err();
        let (empty, foreign) = (file("empty", b""), file("foreign", &[0xff, 0xfe]));
        let plain = ReadingArgs::default();
        assert!(error(&empty, &plain).message.contains("at least two tokens"));
        assert!(error(&foreign, &plain).message.contains("UTF-8"));
        assert_eq!(error(Path::new("no/such"), &plain).kind, Kind::Io);
        let window = |tokens| ReadingArgs { window: Some(tokens), ..ReadingArgs::default() };
        assert!(error(&empty, &window(4096)).message.contains("context of 1024"));
        assert!(error(&empty, &window(1)).message.contains("at least 2"));
        for path in [empty, foreign] {
            std::fs::remove_file(path).unwrap();
        }
    }
}
