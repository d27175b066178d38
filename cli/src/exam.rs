//! `doppler exam`: a model answers held-out questions with exact answers; accuracy per kind, perplexity on held-out
//! text. The built-in model's exam is the default, and the yardstick for gibberish.

use crate::args::{ConfigArgs, MachineArgs, ModelArgs, SamplingArgs};
use crate::compare::agree::Source;
use crate::device;
use crate::device::Engine;
use crate::end::{Ended, Stop};
use crate::output;
use crate::progress::Steps;
use crate::settings::Settings;
use crate::terminal::{self, tell};
use crate::{load, model};
use doppler::debug::exam::{Answer, Item, items, likelihood, sequences, sit, windows};
use doppler::exec::Executor;
use doppler::formats::text::{MAX_STDIN, read_text};
use doppler::inference::words::Words;
use doppler::{Error, Result};
use pollster::block_on;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Questions, one JSON object a line: kind, prompt, chat, answer. Without it, the built-in model's
    #[arg(long, value_name = "FILE", help_heading = "Exam")]
    questions: Option<PathBuf>,
    /// Text for perplexity, documents separated by a line =====. Without it, the built-in model's
    #[arg(long, value_name = "FILE", help_heading = "Exam")]
    text: Option<PathBuf>,
    /// Show every wrong answer
    #[arg(long, help_heading = "Exam")]
    wrong: bool,
    /// Write all outcomes as JSON to FILE (- for stdout)
    #[arg(long, value_name = "FILE", help_heading = "Exam")]
    json: Option<String>,

    #[command(flatten)]
    machine: MachineArgs,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    output::check(&[("--json", args.json.as_deref().map(Path::new))])?;
    let settings = Settings::resolve(&ConfigArgs::default(), &SamplingArgs::default(), &args.machine)?;
    settings.unchanged()?;
    let inference = settings.unseen();
    let (source, questions) = read(args.questions.as_deref(), "exam.jsonl", "--questions")?;
    let questions = items(&questions).map_err(|e| e.within(source))?;
    let Source { name: source, text: heldout } = heldout(args.text.as_deref())?;
    let model = args.model.open()?;
    let text = model.needed_words("an exam is text")?;
    // A text that is too short is said before the questions are asked.
    windows(&model.plan, &text.tokenizer, &heldout).map_err(|e| e.within(source))?;
    model.notes(Some(&text), &[]).iter().for_each(|note| tell(&format!("note: {note}")));
    let device = device::open(&args.machine, inference)?;
    if let Some(caps) = device.caps().filter(|caps| caps.software) {
        tell(&format!("note: {} computes in software; --device cpu is faster", caps.name));
    }
    let asked = sequences(&model.plan, &text.tokenizer, text.template(), &questions)?;
    let (engine, _) = load::prepare_for(&model, device, inference, asked)?.load(false)?;
    examine(args, &model.name, &text, &engine, &questions, &heldout)
}

/// The held-out text: the file of `--text`, or the built-in model's.
///
/// # Errors
/// `Kind::Io` and `Kind::Format` for texts that cannot be read; where the binary has none.
pub fn heldout(given: Option<&Path>) -> Result<Source> {
    let (name, text) = read(given, "heldout.txt", "--text")?;
    Ok(Source { name, text })
}

/// The file of an option, or that of the built-in model; its name, and its text.
fn read(given: Option<&Path>, built_in: &str, option: &str) -> Result<(String, String)> {
    if let Some(path) = given {
        return Ok((path.display().to_string(), read_text(path, MAX_STDIN)?));
    }
    let name = format!("{}/{built_in}", model::DEMO);
    let Some((_, bytes)) = model::DEMO_FILES.iter().find(|(known, _)| *known == built_in) else {
        return Err(Error::io(name, format!("this binary was built without the built-in model's exam; name a file with {option}")));
    };
    let text = std::str::from_utf8(bytes).map_err(|e| Error::format(&name, e))?;
    Ok((name, text.to_string()))
}

fn examine(args: &Args, name: &str, text: &Words, executor: &Engine, questions: &[Item], heldout: &str) -> Result<Ended, Stop> {
    let to_stdout = args.json.as_deref() == Some("-");
    let mut out: Box<dyn Write> = if to_stdout { Box::new(terminal::stderr()) } else { Box::new(terminal::stdout()) };
    writeln!(out, "Config model={name} activations={} {}", executor.storage().activations, executor.describe())?;
    let (counter, mut asked) = (Steps::new("questions"), 0);
    let answers = block_on(sit(executor, &text.tokenizer, text.template(), questions, &mut |_, _| {
        asked += 1;
        counter.set(asked, questions.len());
    }))?;
    let counter = Steps::new("tokens of the text");
    let (nll, tokens) = block_on(likelihood(executor, &text.tokenizer, heldout, &mut |done, of| counter.set(done, of)))?;
    drop(counter);

    let kinds = by_kind(questions, &answers);
    for (kind, right, of) in &kinds {
        writeln!(out, "{kind:<12} {right:>4} of {of:<4} {:>6.1} %", percent(*right, *of))?;
    }
    for (item, answer) in questions.iter().zip(&answers).filter(|(_, a)| args.wrong && !a.right) {
        writeln!(out, "wrong: {} | {:?} | expected {:?}, found {:?}", item.kind, item.prompt, item.answer, answer.text)?;
    }
    let right = answers.iter().filter(|a| a.right).count();
    writeln!(out, "accuracy     {right:>4} of {:<4} {:>6.2} %", answers.len(), percent(right, answers.len()))?;
    writeln!(out, "perplexity   {:.4} over {tokens} tokens", nll.exp())?;
    if let Some(path) = &args.json {
        output::document(path, &document(&kinds, questions, &answers, nll, tokens))?;
    }
    Ok(Ended::Fine)
}

fn percent(part: usize, of: usize) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}

/// (kind, right, all), in the order of the questions.
fn by_kind(questions: &[Item], answers: &[Answer]) -> Vec<(String, usize, usize)> {
    let mut kinds: Vec<(String, usize, usize)> = Vec::new();
    for (item, answer) in questions.iter().zip(answers) {
        let at = kinds.iter().position(|k| k.0 == item.kind).unwrap_or_else(|| {
            kinds.push((item.kind.clone(), 0, 0));
            kinds.len() - 1
        });
        kinds[at].1 += usize::from(answer.right);
        kinds[at].2 += 1;
    }
    kinds
}

fn document(kinds: &[(String, usize, usize)], questions: &[Item], answers: &[Answer], nll: f64, tokens: usize) -> Value {
    let outcome = |(item, answer): (&Item, &Answer)| json!({"kind": item.kind, "prompt": item.prompt, "expected": item.answer, "found": answer.text, "right": answer.right, "ids": answer.ids});
    let kinds: Vec<Value> = kinds.iter().map(|(kind, right, of)| json!({"kind": kind, "right": right, "of": of})).collect();
    let answers: Vec<Value> = questions.iter().zip(answers).map(outcome).collect();
    json!({"kinds": kinds, "perplexity": nll.exp(), "tokens": tokens, "answers": answers})
}
