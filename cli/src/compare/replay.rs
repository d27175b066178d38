//! Repeats the run of a replay bundle: the model's files against their fingerprints, then the same ids with the same
//! settings. The bundle's values are those of a dump, for whatever compares dumps.

use super::sides::{SideArgs, Tokens, edited_side, reported};
use super::{run_free, show};
use crate::args::{AllowArgs, SetArgs};
use crate::device::Engine;
use crate::end::{Ended, Stop};
use crate::interrupt;
use crate::model::{self, Model};
use crate::progress;
use doppler::debug::bundle::{Bundle, Difference, Replayed, differences, fingerprints, replay};
use doppler::debug::compare::Choice;
use doppler::debug::dump::{Dump, DumpObserver};
use doppler::exec::{Executor, Observer};
use doppler::formats::InMemory;
use doppler::inference::session::Event;
use doppler::{Error, Kind, Result};
use pollster::block_on;
use serde_json::{Value, json};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A bundle that `doppler debug --bundle FILE` wrote
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// The model's folder on this machine; not needed for the built-in model
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    allow: AllowArgs,
    /// How to run: device=, dtype=, limits=, kernels=; the rest as the options below say
    #[arg(long, value_name = "KEY=VALUE,…")]
    b: Option<String>,
    /// Where rounding floors come from: measured with the CPU oracle, or estimated
    #[arg(long, value_name = "FROM", value_parser = ["measured", "dumps"])]
    floor: Option<String>,
    /// Show every value, not only those that differ
    #[arg(long)]
    all: bool,
    /// Write what was found as JSON; `-` is stdout, in place of the text
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Write the report as an HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    how: SideArgs,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    if let Some(ended) = args.how.show()? {
        return Ok(ended);
    }
    reported(args.json.as_deref(), args.html.as_deref(), |out| again(args, &Bundle::open(&args.bundle)?, out))
}

/// A packed run again: files, ids, logits, and the values that the bundle holds.
fn again(args: &Args, bundle: &Bundle, out: &mut dyn Write) -> Result<(Ended, Value), Stop> {
    let contents = &bundle.contents;
    let spec = model_of(bundle, args.model.as_deref())?;
    let allow_unknown_config = args.allow.allow_unknown_config || contents.allow_unknown_config;
    let mut model = AllowArgs { allow_unknown_config, ..args.allow }.open(spec)?;
    let ids = bundle.input_ids()?;
    let room = Tokens { prompt: ids, forced: Vec::new(), steps: contents.run.max_tokens };
    // What the bundle's run was asked, under what this command line asks.
    let stored = format!("dtype={}", contents.dtype);
    let how = args.b.as_deref().or((args.how.machine.dtype.is_none()).then_some(&*stored));
    let set = SetArgs { set: contents.runtime.runtime.debug.set.clone() };
    let side = edited_side(&args.how, how, &mut model, &room, &set)?;
    let held: Vec<_> = bundle.dump.stages().iter().copied().filter(|at| model.plan.find(*at).is_some()).collect();
    let mut observer = (!held.is_empty()).then(|| DumpObserver::of(&model.plan, &held)).transpose()?;
    let seen = observer.as_mut().map(|o| o as &mut dyn Observer);
    let (ended, mut document) = compare(bundle, &model, &side.engine, seen, out)?;
    let Some(observer) = observer else { return Ok((ended, document)) };
    let (device, dtype) = (side.engine.describe(), side.engine.storage().activations.to_string());
    let mut bytes = Vec::new();
    observer.write(&mut bytes, &[("model", &model.name), ("dtype", &dtype), ("device", &device)])?;
    let now = Dump::read(InMemory::new("this run", bytes))?;
    let names = [args.bundle.display().to_string(), side.name.clone()];
    drop(side);
    let report = run_free(args.floor.as_deref(), [&bundle.dump, &now], names, &model, &Choice::default(), None, None)?;
    show(args.html.as_deref(), args.all, &report, out)?;
    document["compared"] = serde_json::to_value(&report).map_err(|e| Error::io("--json", e))?;
    let ended = match ended {
        Ended::Fine if report.finding() => Ended::Finding,
        ended => ended,
    };
    Ok((ended, document))
}

/// The model to open for a bundle: `given`, or the built-in one where the bundle is of that.
///
/// # Errors
/// `Kind::Invalid` when it must be said which.
fn model_of<'b>(bundle: &'b Bundle, given: Option<&'b str>) -> Result<&'b str> {
    let name = &bundle.contents.model;
    given.or_else(|| (name == model::DEMO).then_some(name.as_str())).ok_or_else(|| {
        let files: Vec<&str> = bundle.contents.files.iter().map(|f| f.name.as_str()).collect();
        Error::invalid("compare replay", format!("this bundle is of `{name}` ({}): give its folder with -m DIR", files.join(", ")))
    })
}

/// Files of `model` that are not as they were when the bundle was written; each is told on `out`.
///
/// # Errors
/// `Kind::Io`.
fn check(bundle: &Bundle, model: &Model, out: &mut dyn Write) -> Result<Vec<Difference>, Stop> {
    let files = &model.files;
    // The sum is of numbers of a file.
    let bytes = bundle.contents.files.iter().fold(0u64, |sum, f| sum.saturating_add(f.bytes));
    let (bar, mut done) = (progress::Bytes::new("checking files", bytes), 0);
    let now = block_on(fingerprints(files, &mut |bytes| {
        done += bytes;
        bar.set(done, "");
    }));
    drop(bar);
    let found = differences(&bundle.contents.files, &now?);
    for difference in &found {
        writeln!(out, "{}", difference.text())?;
    }
    if found.is_empty() {
        writeln!(out, "FILES {} as in the bundle", bundle.contents.files.len())?;
    }
    Ok(found)
}

/// Repeats the run on `engine`, which holds the weights of `model`. `observer` sees the values, for a comparison with
/// those of `bundle.dump`. Other files, other ids, and on the same device other logits are findings.
///
/// # Errors
/// Those of [`check`] and of running.
fn compare(
    bundle: &Bundle,
    model: &Model,
    engine: &Engine,
    observer: Option<&mut dyn Observer>,
    out: &mut dyn Write,
) -> Result<(Ended, Value), Stop> {
    let contents = &bundle.contents;
    let changed = check(bundle, model, out)?;
    let dtype = engine.storage().activations.name();
    let same_place = contents.device == engine.describe() && contents.dtype == dtype;
    if !same_place {
        let (device, now) = (&contents.device, engine.describe());
        writeln!(out, "Note the bundle is of {device} in {}, this is {now} in {dtype}: logits may differ by rounding", contents.dtype)?;
    }
    for text in &contents.notes {
        writeln!(out, "Note then: {text}")?;
    }
    let found = match repeat(engine, bundle, observer) {
        // It ended without a token then too, or only now. Its values are compared in either case.
        Err(error) if error.kind == Kind::Finding => {
            let verdict = if contents.logits.is_none() { "same failure" } else { "fails now" };
            writeln!(out, "REPLAY verdict=\"{verdict}\" ({})", error.message)?;
            let ended = if contents.logits.is_none() && changed.is_empty() { Ended::Fine } else { Ended::Finding };
            return Ok((ended, json!({"files": changed, "samePlace": same_place, "replay": null, "failure": error.message})));
        }
        found => found?,
    };
    for text in &found.notes {
        writeln!(out, "Note now: {text}")?;
    }
    writeln!(out, "{}", found.text(contents.logits.as_deref()))?;
    let other = found.first_other_id.is_some() || (same_place && found.same_logits == Some(false));
    let ended = match (found.complete, other || !changed.is_empty()) {
        (false, _) => Ended::Interrupted,
        (true, true) => Ended::Finding,
        (true, false) => Ended::Fine,
    };
    Ok((ended, json!({"files": changed, "samePlace": same_place, "replay": found, "findingsThen": contents.findings})))
}

fn repeat(executor: &Engine, bundle: &Bundle, observer: Option<&mut dyn Observer>) -> Result<Replayed> {
    let _guard = interrupt::guard();
    let mut heard = |_: Event| if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    block_on(replay(executor, bundle, observer, &mut heard))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{Told, contents};
    use crate::compare::attribute::tests::{alone, engine};
    use doppler::config::RuntimeConfig;
    use doppler::debug::bundle::values;
    use doppler::exec::Storage;
    use doppler::inference::session::{GenerateOptions, Session, SessionOptions};

    /// Packed as `debug` packs, opened and repeated: the same here, other bits in f16, findings where files changed.
    #[test]
    fn a_packed_run_is_repeated() {
        let _alone = alone();
        let demo = model::open(model::DEMO, false).unwrap();
        let exact = engine(&demo, Storage::F32);
        let Engine::Cpu(executor) = &exact else { panic!("the oracle") };
        let runtime = RuntimeConfig::defaults().unwrap();
        let session = SessionOptions { capacity: 64, chunk: 32, valid_vocab: demo.plan.vocab_size, pad: None };
        let mut observer = DumpObserver::of(&demo.plan, &values(&demo.plan, None)).unwrap();
        let options = GenerateOptions { max_tokens: 5, hash_logits: true, ..GenerateOptions::default() };
        let mut running = Session::new(executor.as_ref(), session).unwrap();
        let generated =
            block_on(running.generate(&[2, 7, 8, 9], &options, Some(&mut observer), &mut |_| ControlFlow::Continue(()))).unwrap();
        let told = Told {
            rules: None,
            model: &demo,
            allow_unknown_config: false,
            runtime: &runtime,
            prompt: None,
            session,
            max_tokens: 5,
            stop_ids: &[],
            engine: &exact,
            logits_hash: generated.logits_hash,
            notes: &generated.notes,
            findings: vec![json!({"kind": "made_up"})],
        };
        let mut contents = contents(&told).unwrap();
        let pack = |contents: &doppler::debug::bundle::Contents| {
            let mut file = Vec::new();
            contents.write(&observer, &mut file).unwrap();
            Bundle::of(Dump::read(InMemory::new("b", file)).unwrap()).unwrap()
        };
        let repeat = |bundle: &Bundle, engine: &Engine| {
            let mut out = Vec::new();
            let (ended, document) = compare(bundle, &demo, engine, None, &mut out).unwrap();
            (ended, document, String::from_utf8(out).unwrap())
        };
        let bundle = pack(&contents);
        assert_eq!(model_of(&bundle, None).unwrap(), "demo");
        let (ended, document, text) = repeat(&bundle, &exact);
        assert_eq!(ended, Ended::Fine);
        assert!(text.starts_with("FILES 5 as in the bundle\n") && text.contains("REPLAY verdict=\"same\" ids=5 "), "{text}");
        assert_eq!((&document["samePlace"], &document["findingsThen"][0]["kind"]), (&json!(true), &json!("made_up")));
        let (_, document, text) = repeat(&bundle, &engine(&demo, Storage::F16));
        assert!(text.contains("Note the bundle is of ") && document["replay"]["sameLogits"] == false, "{text}");

        contents.files[0].xxh64 = "0".repeat(16);
        contents.model = "other".into();
        let bundle = pack(&contents);
        let (ended, _, text) = repeat(&bundle, &exact);
        assert!(ended == Ended::Finding && text.contains("ANOMALY kind=other_file file=config.json"), "{text}");
        assert!(model_of(&bundle, None).unwrap_err().message.contains("-m DIR"));
        assert_eq!(model_of(&bundle, Some("x")).unwrap(), "x");
    }
}
