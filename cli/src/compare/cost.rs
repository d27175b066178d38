//! What packing a model costs over a text, beside the floor of f16; and the recipe that a budget of bits is best spent on.

use super::agree::{self, Reading, ReadingArgs, Source, shorten};
use super::attribute::stored;
use super::sides::{self, SideArgs, reported, side};
use crate::args::AllowArgs;
use crate::device::Engine;
use crate::end::{Ended, Stop};
use crate::exam;
use crate::imatrix;
use crate::interrupt;
use crate::model::Model;
use crate::progress::Steps;
use doppler::debug::agreement::{Progress, predicted};
use doppler::debug::attribution::same_weights;
use doppler::debug::budget::{Ask, FORMATS, Suggestion, suggest};
use doppler::debug::cost::{Cost, after, cost, f16_formats};
use doppler::debug::importance::of_weights;
use doppler::debug::weight_source::{Encoded, put};
use doppler::exec::Executor;
use doppler::inference::words::Words;
use doppler::model::ModelConfig;
use doppler::plan::WeightId;
use doppler::quant::Format;
use doppler::quant::recipe::ModelFacts;
use doppler::{Error, Result};
use pollster::block_on;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Tokens that a budget reads where nothing is said.
const BUDGET_TOKENS: usize = 2048;
/// Tokens of its windows where nothing is said.
const BUDGET_WINDOW: usize = 256;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model as it was before it was packed
    #[arg(value_name = "ORIGINAL")]
    original: String,
    /// The packed model: what it costs
    #[arg(short, long, value_name = "PACKED", required_unless_present = "budget")]
    model: Option<String>,
    #[command(flatten)]
    allow: AllowArgs,
    /// End with exit code 1 if the mean divergence, in nats, is above KL
    #[arg(long, value_name = "KL", allow_negative_numbers = true, requires = "model")]
    max_kl: Option<f64>,
    /// Write what was found as JSON; `-` is stdout, in place of the lines
    #[arg(long, value_name = "FILE")]
    json: Option<String>,

    /// Text that both read [default: the built-in model's held-out text, in documents]
    #[arg(long, value_name = "FILE", help_heading = "Reading")]
    text: Option<PathBuf>,
    #[command(flatten)]
    reading: ReadingArgs,

    /// Suggest the options of `convert` for at most BITS per weight; half of the text is read to choose, half to judge
    #[arg(long, value_name = "BITS", allow_negative_numbers = true, help_heading = "Budget")]
    budget: Option<f64>,
    /// Formats that matrices may get [default: q2_k,q3_k,iq4_xs,q4_k,q5_k,q6_k,q8_0,f16]
    #[arg(long, value_name = "FORMAT,…", value_delimiter = ',', value_parser = parse_format, requires = "budget", help_heading = "Budget")]
    formats: Vec<Format>,
    /// Importance of columns, as `doppler imatrix` writes it; give it to `convert` too
    #[arg(long, value_name = "FILE", requires = "budget", help_heading = "Budget")]
    imatrix: Option<PathBuf>,

    /// How the original runs: device=, dtype=, limits=, kernels=; the rest as the options below say
    #[arg(long, value_name = "KEY=VALUE,…", help_heading = "Sides")]
    a: Option<String>,
    /// How the packed model and the floor run, likewise
    #[arg(long, value_name = "KEY=VALUE,…", help_heading = "Sides")]
    b: Option<String>,
    #[command(flatten)]
    how: SideArgs,
}

fn parse_format(name: &str) -> Result<Format, String> {
    Format::try_from(name.trim().to_string())
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    if let Some(ended) = args.how.show()? {
        return Ok(ended);
    }
    if let Some(most) = args.max_kl.filter(|most| most.is_nan() || *most < 0.0) {
        return Err(Error::invalid("--max-kl", format!("expected a divergence in nats, 0 or above, found {most}")).into());
    }
    let source = match &args.text {
        Some(path) => Source::open(path)?,
        None => exam::heldout(None)?,
    };
    let mut original = args.allow.open(&args.original)?;
    let words = original.needed_words("a text needs one")?;
    reported(args.json.as_deref(), None, |out| {
        let (mut ended, mut document) = (Ended::Fine, json!({}));
        if let Some(spec) = &args.model {
            let mut packed = args.allow.open(spec)?;
            let found = of_packed(args, &source, &words, &mut original, &mut packed, out)?;
            (ended, document["cost"]) = found;
        }
        if let Some(bits) = args.budget.filter(|_| ended != Ended::Interrupted) {
            let (found, of_budget) = of_budget(args, bits, &source, &words, &mut original, out)?;
            document["budget"] = of_budget;
            ended = if found == Ended::Fine { ended } else { found };
        }
        Ok((ended, document))
    })
}

impl Args {
    /// How the text is read: the built-in one in documents.
    fn reading(&self) -> ReadingArgs {
        let ReadingArgs { window, documents, text_tokens } = self.reading;
        ReadingArgs { window, documents: documents || self.text.is_none(), text_tokens }
    }
}

/// What `packed` costs.
fn of_packed(
    args: &Args,
    source: &Source,
    words: &Words,
    original: &mut Model,
    packed: &mut Model,
    out: &mut dyn Write,
) -> Result<(Ended, Value), Stop> {
    let (specs, models) = ([args.a.as_deref(), args.b.as_deref()], [&mut *original, &mut *packed]);
    let reading = args.reading();
    same_weights(&models[0].plan, &models[1].plan)?;
    same_ids(source, &reading, words, models[0], models[1])?;
    let (reading, [a, b]) = agree::loaded(source, &reading, words, &args.how, specs, models)?;
    for (name, side) in [("original", &a), ("packed", &b)] {
        writeln!(out, "Config {name}={}", side.name)?;
        if !side.non_finite.is_empty() {
            writeln!(out, "Note {} tensors of the {name} model contain NaN or Inf weights", side.non_finite.len())?;
        }
    }
    let formats = block_on(packed.weights())?.matched.formats();
    let found = {
        let bar = Steps::new("reading");
        let _guard = interrupt::guard();
        let mut heard = |progress: Progress| bar.heard("", progress.done, progress.of);
        let floor = || rounded(args, original, &reading);
        block_on(cost(&a.engine, (b.engine, &formats), floor, &reading.windows, reading.valid, &mut heard))?
    };
    tell_cost(args, &found, out)
}

/// A model whose tokenizer reads the text otherwise is no copy of the original.
fn same_ids(source: &Source, reading: &ReadingArgs, words: &Words, original: &Model, packed: &Model) -> Result<()> {
    let Some(others) = packed.words()? else { return Ok(()) };
    let plans = [&original.plan, &packed.plan];
    let (ours, theirs) = (agree::read(source, reading, &plans, words)?, agree::read(source, reading, &plans, &others)?);
    if ours.windows == theirs.windows {
        return Ok(());
    }
    let hint =
        "the two models' tokenizers give other ids for this text, so they are no copies of one model; `doppler compare tokens` says where";
    Err(Error::invalid("compare cost", hint))
}

/// The original with its matrices in f16.
fn rounded(args: &Args, original: &mut Model, reading: &Reading) -> Result<(Engine, Vec<Format>)> {
    let sides::Side { mut engine, .. } = side(&args.how, args.b.as_deref(), original, &reading.room())?;
    let weights = block_on(original.weights())?;
    let (plan, formats) = (original.plan.clone(), f16_formats(&original.plan));
    let rounded = after(&weights.matched.formats(), &formats);
    let source = stored(&weights);
    let source = Encoded::new(&source, &plan, formats, &[]);
    for id in (0..plan.weights.len()).map(WeightId) {
        block_on(put(&plan, &source, id, &mut engine))?;
    }
    Ok((engine, rounded))
}

fn tell_cost(args: &Args, found: &Cost, out: &mut dyn Write) -> Result<(Ended, Value), Stop> {
    let figures = &found.packed.agreement;
    if let Some(line) = figures.anomaly() {
        writeln!(out, "{line}")?;
    }
    let above = args.max_kl.filter(|most| figures.kl.mean.is_nan() || figures.kl.mean > *most);
    if let Some(most) = above {
        writeln!(out, "ANOMALY kind=divergence value={} (mean KL is above --max-kl {most})", figures.kl.mean)?;
    }
    if found.floor.is_some() && found.times_floor.is_none() {
        writeln!(out, "Note in f16 the original loses nothing that could be measured, so there is no floor to divide by")?;
    }
    for line in found.lines() {
        writeln!(out, "{line}")?;
    }
    let ended = match (found.is_complete(), figures.non_finite.first.is_some() || above.is_some()) {
        (false, _) => Ended::Interrupted,
        (true, true) => Ended::Finding,
        (true, false) => Ended::Fine,
    };
    Ok((ended, serde_json::to_value(found).map_err(|e| Error::io("--json", e))?))
}

/// A recipe of at most `bits` per weight.
fn of_budget(
    args: &Args,
    bits: f64,
    source: &Source,
    words: &Words,
    original: &mut Model,
    out: &mut dyn Write,
) -> Result<(Ended, Value), Stop> {
    let mut reading = args.reading();
    reading.window = reading.window.or(Some(BUDGET_WINDOW.min(original.plan.max_positions)));
    let tokens = reading.text_tokens.take().unwrap_or(BUDGET_TOKENS);
    let mut reading = agree::read(source, &reading, &[&original.plan], words)?;
    shorten(&mut reading.windows, tokens);
    // By turns, so that both halves are of all parts of the text.
    let half = |odd: usize| reading.windows.iter().skip(odd).step_by(2).cloned().collect::<Vec<_>>();
    let (choosing, judging) = (half(0), half(1));
    if predicted(&judging) == 0 {
        let message = "a budget reads one half of a text to choose and the other to judge: give a longer text or a smaller --window";
        return Err(Error::invalid(&source.name, message).into());
    }
    let weights = block_on(original.weights())?;
    let importance = match &args.imatrix {
        Some(path) => of_weights(&imatrix::read(path)?, &original.plan)?,
        None => Vec::new(),
    };
    let exact = side(&args.how, args.a.as_deref(), original, &reading.room())?.engine;
    let mut engine = side(&args.how, args.b.as_deref(), original, &reading.room())?.engine;
    writeln!(out, "Config original={} on {}", original.name, engine.describe())?;
    let formats = if args.formats.is_empty() { &FORMATS[..] } else { &args.formats };
    let facts = facts(&original.resolved.config);
    let ask = Ask { bits, formats, facts, importance: &importance, choosing: &choosing, judging: &judging, valid: reading.valid };
    let found = {
        let bar = Steps::new("reading");
        let _guard = interrupt::guard();
        let mut heard = |what: &str, done: usize, of: usize| bar.heard(what, done, of);
        block_on(suggest(&exact, &mut engine, &stored(&weights), &weights.matched.formats(), &ask, &mut heard))?
    };
    tell_budget(args, &found, out)
}

/// What mixtures ask of a model.
fn facts(config: &ModelConfig) -> ModelFacts {
    ModelFacts::of(config)
}

fn tell_budget(args: &Args, found: &Suggestion, out: &mut dyn Write) -> Result<(Ended, Value), Stop> {
    for line in found.lines() {
        writeln!(out, "{line}")?;
    }
    match found.is_better() {
        Some(false) => writeln!(out, "Note the plain recipe {} is no worse: take it", found.plain.name)?,
        Some(true) => {
            let imatrix = args.imatrix.as_ref().map_or(String::new(), |path| format!(" --imatrix {}", path.display()));
            writeln!(out, "CONVERT doppler convert {} -o OUT.gguf {}{imatrix}", args.original, found.options())?;
        }
        None => {}
    }
    let ended = if found.complete { Ended::Fine } else { Ended::Interrupted };
    Ok((ended, serde_json::to_value(found).map_err(|e| Error::io("--json", e))?))
}
