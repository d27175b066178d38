//! `doppler exam`: a model answers held-out questions with exact answers; accuracy per kind, perplexity on held-out
//! text. The built-in model's exam is the default, and the yardstick for gibberish.

use crate::args::{ConfigArgs, MachineArgs, ModelArgs, SamplingArgs};
use crate::device;
use crate::end::{Ended, Stop};
use crate::engine::Engine;
use crate::output;
use crate::settings::Settings;
use crate::terminal::tell;
use crate::{load, model};
use doppler::debug::exam::{Answer, Item, items, likelihood, sit};
use doppler::exec::Executor;
use doppler::inference::words::Words;
use doppler::{Error, Result};
use indicatif::ProgressBar;
use pollster::block_on;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Questions, one JSON object a line: kind, prompt, chat, answer
    #[arg(long, value_name = "FILE", help_heading = "Exam", default_value = "models/demo/exam.jsonl")]
    questions: PathBuf,
    /// Text for perplexity, documents separated by a line =====
    #[arg(long, value_name = "FILE", help_heading = "Exam", default_value = "models/demo/heldout.txt")]
    text: PathBuf,
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
    let settings = Settings::resolve(&ConfigArgs::default(), &SamplingArgs::default(), &args.machine)?;
    let inference = settings.unseen();
    let (questions, heldout) = (items(&read(&args.questions)?)?, read(&args.text)?);
    let model = model::open(&args.model.model, args.model.allow_unknown_config)?;
    let text = model.needed_words("an exam is text")?;
    model.notes(Some(&text), &[]).iter().for_each(|note| tell(&format!("note: {note}")));
    let device = device::open(&args.machine, inference)?;
    let (engine, _) = load::prepare(&model, device, inference, 512)?.load(false)?;
    examine(args, &model.name, &text, &engine, &questions, &heldout)
}

fn read(path: &Path) -> Result<String> {
    let hint = "run this in the repository, or name the file with --questions and --text";
    std::fs::read_to_string(path).map_err(|e| Error::io(path.display(), format!("{e}; {hint}")))
}

fn examine(args: &Args, name: &str, text: &Words, executor: &Engine, questions: &[Item], heldout: &str) -> Result<Ended, Stop> {
    let to_stdout = args.json.as_deref() == Some("-");
    let mut out: Box<dyn Write> = if to_stdout { Box::new(std::io::stderr()) } else { Box::new(std::io::stdout()) };
    writeln!(out, "Config model={name} activations={} {}", executor.storage().activations, executor.describe())?;
    let bar = ProgressBar::new(questions.len() as u64);
    let answers = block_on(sit(executor, &text.tokenizer, text.template(), questions, &mut |_, _| bar.inc(1)))?;
    bar.finish_and_clear();
    let bar = ProgressBar::no_length();
    let (nll, tokens) = block_on(likelihood(executor, &text.tokenizer, heldout, &mut |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    }))?;
    bar.finish_and_clear();

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
