//! `doppler inspect`: what a model is to Doppler: its config with the source of each number, its plan, its tensors, and
//! the memory that it will need. Nothing is loaded.

use crate::args::AllowArgs;
use crate::end::{Ended, Stop};
use crate::load::available_memory;
use crate::model::{self, Model};
use crate::output;
use doppler::Result;
use doppler::exec::{Sequences, Storage};
use doppler::forecast::{Forecast, size};
use doppler::inference::words::Words;
use doppler::open::{CONVERSATION, Weights};
use doppler::plan::text;
use pollster::block_on;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Tokens per step of the forecast, as the runtime config's default.
const CHUNK: usize = 512;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model as for `run -m`, or a config.json alone (then without tensors)
    #[arg(value_name = "MODEL", default_value = model::DEMO)]
    model: String,
    #[command(flatten)]
    allow: AllowArgs,
    /// Positions to forecast memory for [default: 4096, or what the model allows]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Storage of activations and KV cache to forecast memory for
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "f16"], default_value = "f16")]
    dtype: String,
    /// Write all of it as JSON, in place of the text if FILE is `-` (stdout)
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    output::check(&[("--json", args.json.as_deref().map(Path::new))])?;
    let is_config = args.model.ends_with(".json");
    let model = match is_config {
        true => model::open_config(&args.model, args.allow.allow_unknown_config)?,
        false => args.allow.open(&args.model)?,
    };
    let show_text = args.json.as_deref() != Some("-");
    if show_text {
        print_config(&model)?;
    }
    // Config and plan help to understand why the tensors do not fit, so they are printed first.
    let weights = if is_config { None } else { Some(block_on(model.weights())?) };
    let words = if is_config { Ok(None) } else { model.words() };
    let tokenizer = if is_config { "not looked for".to_string() } else { tokenizer(&words) };
    let notes = model.notes(words.as_ref().ok().and_then(Option::as_ref), &weights.as_ref().map(Weights::notes).unwrap_or_default());
    let memory = weights.as_ref().map(|weights| memory(args, &model, weights));
    if let (true, Some(weights), Some(memory)) = (show_text, &weights, &memory) {
        print_files(&model, weights, &tokenizer, memory, &args.dtype)?;
    }
    if show_text {
        notes.iter().try_for_each(|note| writeln!(crate::terminal::stdout(), "Note {note}"))?;
    }
    if let Some(path) = &args.json {
        let mut document = document(&model, weights.as_ref(), &tokenizer, memory.as_ref())?;
        document["notes"] = notes.into();
        output::document(path, &document)?;
    }
    Ok(Ended::Fine)
}

fn memory(args: &Args, model: &Model, weights: &Weights) -> Forecast {
    let most = model.plan.max_positions;
    let context = args.context.unwrap_or(CONVERSATION).clamp(1, most);
    let storage = if args.dtype == "f16" { Storage::F16 } else { Storage::F32 };
    weights.forecast(&model.plan, Sequences::one(context, CHUNK.min(context)), storage)
}

/// The tokenizer in words, or what is wrong with it.
fn tokenizer(words: &Result<Option<Words>>) -> String {
    let ids = |ids: Vec<u32>| if ids.is_empty() { "none".into() } else { ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ") };
    match words {
        Ok(None) => "none".into(),
        Err(e) => format!("cannot be used: {e}"),
        Ok(Some(text)) => {
            let t = &text.tokenizer;
            let template = if text.template().is_some() { "a chat template" } else { "no chat template" };
            let (bos, eos, pad) = (t.bos().into_iter().collect(), t.eos().to_vec(), t.pad().into_iter().collect());
            format!("{} ids, BOS {}, EOS {}, PAD {}, {template}", t.vocab_size(), ids(bos), ids(eos), ids(pad))
        }
    }
}

fn print_config(model: &Model) -> Result<(), Stop> {
    let mut out = crate::terminal::stdout();
    writeln!(out, "Model {} ({})", model.name, model.files.path.display())?;
    writeln!(out, "\nConfig: field, value, where it comes from")?;
    let sources = &model.resolved.sources;
    let widest = |column: fn(&(String, String, doppler::model::Source)) -> &str, most: usize| {
        sources.iter().map(|row| column(row).chars().count()).filter(|n| *n <= most).max().unwrap_or(0)
    };
    let (fields, values) = (widest(|row| &row.0, 32), widest(|row| &row.1, 24));
    for (field, value, source) in sources {
        writeln!(out, "  {field:<fields$}  {value:<values$}  {source}")?;
    }
    for key in &model.resolved.ignored_keys {
        writeln!(out, "  {key}: not understood and not used (--allow-unknown-config)")?;
    }
    writeln!(out, "\nPlan: {} ops, {} weights", model.plan.nodes.len(), model.plan.weights.len())?;
    Ok(write!(out, "{}", text::print(&model.plan))?)
}

fn print_files(
    model: &Model,
    Weights { checkpoint, matched }: &Weights,
    tokenizer: &str,
    memory: &Forecast,
    dtype: &str,
) -> Result<(), Stop> {
    let mut out = crate::terminal::stdout();
    let entries = checkpoint.index.entries();
    let files = match checkpoint.sources.len() {
        1 => "1 file".to_string(),
        n => format!("{n} files"),
    };
    writeln!(out, "\nTensors: {} in {files}, {} read", entries.len(), size(matched.bytes()))?;
    let widest = entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    for entry in entries {
        let used = if matched.ignored.contains(&entry.name) { "  (not used)" } else { "" };
        let (dtype, shape) = (entry.dtype.to_string(), format!("{:?}", entry.shape));
        writeln!(out, "  {:<widest$}  {dtype:<5} {shape:<16} {:>10}{used}", entry.name, size(entry.bytes()))?;
    }
    writeln!(out, "\nTokenizer: {tokenizer}")?;
    let most = model.plan.max_positions;
    writeln!(out, "\nMemory for {} of at most {most} positions, values stored as {dtype}", memory.sequences.capacity)?;
    for line in memory.to_string().lines() {
        writeln!(out, "  {line}")?;
    }
    if let Some(available) = available_memory() {
        writeln!(out, "  available on this host: {}", size(available))?;
    }
    Ok(())
}

fn document(model: &Model, weights: Option<&Weights>, tokenizer: &str, memory: Option<&Forecast>) -> Result<Value> {
    let source = |(field, value, source): &(String, String, doppler::model::Source)| json!({"field": field, "value": value, "source": source.to_string()});
    let config = serde_json::to_value(&model.resolved.config).map_err(|e| doppler::Error::io("--json", e))?;
    let plan = &model.plan;
    let op = |node: &doppler::plan::Node| {
        let inputs: Vec<String> = node.inputs.iter().map(|id| plan.node(*id).at.key()).collect();
        let (stage, layer) = (node.at.stage.name(), node.at.layer);
        json!({"stage": stage, "layer": layer, "op": text::describe(plan, &node.op), "inputs": inputs, "width": node.width})
    };
    let tensors = weights.map(|Weights { checkpoint, matched }| {
        let tensor = |entry: &doppler::formats::TensorEntry| {
            let file = checkpoint.sources.get(entry.file).map(doppler::formats::ByteSource::name);
            let used = !matched.ignored.contains(&entry.name);
            json!({"name": entry.name, "dtype": entry.dtype.to_string(), "shape": entry.shape, "bytes": entry.bytes(), "file": file, "used": used})
        };
        checkpoint.index.entries().iter().map(tensor).collect::<Vec<Value>>()
    });
    let memory = memory.map(|memory| {
        let rows: Vec<Value> =
            memory.rows().iter().map(|(what, detail, bytes)| json!({"what": what, "detail": detail, "bytes": bytes})).collect();
        json!({"positions": memory.sequences.capacity, "rows": rows, "total": memory.total(), "available": available_memory()})
    });
    Ok(json!({
        "model": model.name,
        "path": model.files.path.display().to_string(),
        "config": config,
        "sources": model.resolved.sources.iter().map(source).collect::<Vec<Value>>(),
        "ignoredKeys": model.resolved.ignored_keys,
        "plan": plan.nodes.iter().map(op).collect::<Vec<Value>>(),
        "tokenizer": tokenizer,
        "tensors": tensors,
        "memory": memory,
    }))
}
