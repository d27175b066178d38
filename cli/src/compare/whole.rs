//! Comparisons beyond two runs of some tokens: over a text, tensor by tensor, of a tokenizer, of a run that was packed.

use super::sides::{Side, Tokens, side};
use super::{Args, attribution, replay, run_free, text, tokens};
use crate::end::{Ended, Stop};
use crate::model::{self, Model};
use crate::output;
use doppler::debug::bundle::Bundle;
use doppler::debug::compare::Choice;
use doppler::debug::dump::{Dump, DumpObserver};
use doppler::exec::Executor;
use doppler::formats::InMemory;
use doppler::{Error, Result};
use serde_json::Value;
use std::io::Write;
use std::path::Path;

/// Does what `args` ask for beyond two runs; `None` if that is nothing.
///
/// # Errors
/// `Kind::Invalid` for options that do not fit together; those of what is compared.
pub fn run(args: &Args) -> Result<Option<Ended>, Stop> {
    let asked = [
        ("--replay", args.replay.replay.is_some()),
        ("--tokens", args.tokens.tokens.is_some()),
        ("--text", args.text.text.is_some()),
        ("--attribute", args.attribution.attribute && args.text.text.is_none()),
    ];
    let mut asked = asked.iter().filter(|(_, given)| *given).map(|(option, _)| *option);
    let Some(option) = asked.next() else {
        return match args.reference {
            Some(_) => Err(Error::invalid("--reference", "it says what --text and --attribute compare with: add one of them").into()),
            None => Ok(None),
        };
    };
    if let Some(other) = asked.next() {
        return Err(Error::invalid(option, format!("this and {other} are two comparisons: give one of them")).into());
    }
    let foreign = [
        ("DUMP", !args.dumps.is_empty()),
        ("--isolated", args.isolated),
        ("--html", args.html.is_some() && option != "--replay"),
        ("--prompt", args.prompt.is_some()),
        ("--token-ids", args.token_ids.is_some()),
        ("--reference", args.reference.is_some() && matches!(option, "--replay" | "--tokens")),
        ("--a", args.a.is_some() && option != "--text"),
        ("--b", args.b.is_some() && matches!(option, "--tokens" | "--attribute")),
    ];
    if let Some((other, _)) = foreign.iter().find(|(_, given)| *given) {
        return Err(Error::invalid(*other, format!("it says nothing to {option}")).into());
    }
    let mut out =
        output::PipeWriter::new(if args.json.as_deref() == Some("-") { Box::new(std::io::sink()) } else { Box::new(std::io::stdout()) });
    let compared = match option {
        "--replay" => again(args, &mut out),
        "--tokens" => tokens::run(&args.tokens, &open(args, args.model.as_deref())?, &mut out),
        "--text" => read(args, &mut out),
        _ => weights(args, &mut out),
    };
    if out.closed() {
        return Err(Stop::Closed);
    }
    let (ended, document) = compared?;
    if let Some(path) = &args.json {
        output::document(path, &document)?;
    }
    Ok(Some(ended))
}

fn open(args: &Args, spec: Option<&str>) -> Result<Model> {
    model::open(spec.unwrap_or(model::DEMO), args.allow_unknown_config)
}

/// Two sides over a text; with `--attribute`, what each tensor has to do with it.
fn read(args: &Args, out: &mut dyn Write) -> Result<(Ended, Value), Stop> {
    if args.reference.is_none() && args.a.is_none() && args.b.is_none() {
        let message = "both sides are the same: name the model that is right with --reference, or say with --a and --b how they differ";
        return Err(Error::invalid("--text", message).into());
    }
    let mut b_model = open(args, args.model.as_deref())?;
    let mut a_model = open(args, args.reference.as_deref().or(args.model.as_deref()))?;
    let words = b_model.needed_words("a text needs one")?;
    // A text that cannot be read is told before anything is loaded.
    let reading = text::read(&args.text, &[&a_model.plan, &b_model.plan], &words)?;
    let longest = reading.windows.iter().map(|w| w.ids.len()).max().unwrap_or(1);
    let room = Tokens { prompt: vec![0], forced: Vec::new(), steps: longest };
    let a = side(args, args.a.as_deref(), &mut a_model, &room)?;
    let mut b = side(args, args.b.as_deref(), &mut b_model, &room)?;
    if args.attribution.attribute {
        return attribution::run(&args.attribution, &reading, (&a_model, &a.engine), (&b_model, &mut b.engine), out);
    }
    let named = |side: &'_ Side, model: &Model| (model.name.clone(), side.non_finite.len());
    let ((a_name, a_bad), (b_name, b_bad)) = (named(&a, &a_model), named(&b, &b_model));
    for (name, count) in [(&a_name, a_bad), (&b_name, b_bad)].into_iter().filter(|(_, count)| *count > 0) {
        writeln!(out, "Note {count} tensors of {name} hold weights that are no numbers")?;
    }
    let (a, b) = (text::Side { name: &a_name, engine: &a.engine }, text::Side { name: &b_name, engine: &b.engine });
    text::run(&args.text, &a, &b, &words, out)
}

/// The stored tensors of two copies of a model.
fn weights(args: &Args, out: &mut dyn Write) -> Result<(Ended, Value), Stop> {
    let Some(reference) = &args.reference else {
        return Err(Error::invalid("--attribute", "name the model with the right weights with --reference MODEL").into());
    };
    attribution::run_noise(&open(args, Some(reference))?, &open(args, args.model.as_deref())?, out)
}

/// A packed run again: files, ids, logits, and the values that the bundle holds.
fn again(args: &Args, out: &mut dyn Write) -> Result<(Ended, Value), Stop> {
    let path = args.replay.replay.as_deref().unwrap_or(Path::new(""));
    let bundle = Bundle::open(path)?;
    let contents = &bundle.contents;
    let spec = replay::model_of(&bundle, args.model.as_deref())?;
    let mut model = model::open(spec, args.allow_unknown_config || contents.allow_unknown_config)?;
    let ids = bundle.input_ids()?;
    let room = Tokens { prompt: ids, forced: Vec::new(), steps: contents.run.max_tokens };
    // What the bundle's run was asked, under what this command line asks.
    let stored = format!("dtype={}", contents.dtype);
    let side = side(args, args.b.as_deref().or((args.machine.dtype.is_none()).then_some(&stored)), &mut model, &room)?;
    let held: Vec<_> = bundle.dump.stages().iter().copied().filter(|at| model.plan.find(*at).is_some()).collect();
    let mut observer = (!held.is_empty()).then(|| DumpObserver::of(&model.plan, &held)).transpose()?;
    let seen = observer.as_mut().map(|o| o as &mut dyn doppler::exec::Observer);
    let (ended, mut document) = replay::run(&bundle, &model, &side.engine, seen, out)?;
    let Some(observer) = observer else { return Ok((ended, document)) };
    let (device, dtype) = (side.engine.describe(), side.engine.storage().activations.to_string());
    let mut bytes = Vec::new();
    observer.write(&mut bytes, &[("model", &model.name), ("dtype", &dtype), ("device", &device)])?;
    let now = Dump::read(InMemory::new("this run", bytes))?;
    let names = [path.display().to_string(), side.name.clone()];
    drop(side);
    let report = run_free(args, [&bundle.dump, &now], names, &model, &Choice::default(), None)?;
    super::show(args, &report, out)?;
    document["compared"] = serde_json::to_value(&report).map_err(|e| Error::io("--json", e))?;
    let ended = match ended {
        Ended::Fine if report.finding() => Ended::Finding,
        ended => ended,
    };
    Ok((ended, document))
}
