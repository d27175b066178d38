//! Watching whole models: every stage of every family fires in a trace, what is printed equals what is dumped, and
//! logits are the same bits with and without observers. `watching::broken` has models that are broken on purpose.

mod broken;

use crate::golden::{Golden, goldens};
use crate::support::adapter;
use doppler::Result;
use doppler::config::runtime::{Position, RuntimeConfig};
use doppler::cpu::CpuExecutor;
use doppler::cpu::stats::stats;
use doppler::debug::anomaly::{AnomalyObserver, AnomalyOptions};
use doppler::debug::categories::{CATEGORIES, Categories};
use doppler::debug::dump::{Dump, DumpObserver};
use doppler::debug::html::{ConfigRow, Report, TokenCell};
use doppler::debug::lens::{self, LensObserver};
use doppler::debug::logits_view::LogitsObserver;
use doppler::debug::number::significant;
use doppler::debug::observers::Observers;
use doppler::debug::probe::ProbeObserver;
use doppler::debug::record::{ProbeRecord, Record, Sink, TokenText, TraceRecord};
use doppler::debug::trace::{TraceObserver, TraceOptions};
use doppler::exec::{Executor, Observer, Storage};
use doppler::formats::InMemory;
use doppler::gpu::{GpuExecutor, GpuOptions};
use doppler::inference::session::{GenerateOptions, Generated, Session, SessionOptions};
use doppler::plan::{At, Plan, Stage};
use doppler::tensor::Tensor;
use pollster::block_on;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::rc::Rc;

/// Continues `ids` by `max_tokens` greedy tokens, the prompt in steps of `chunk`.
fn generate<E: Executor>(
    executor: &E,
    ids: &[u32],
    chunk: usize,
    max_tokens: usize,
    stop_ids: &[u32],
    observer: Option<&mut dyn Observer>,
) -> Result<Generated> {
    let options = SessionOptions { capacity: ids.len() + max_tokens, chunk, valid_vocab: executor.plan().vocab_size, pad: None };
    let generate = GenerateOptions { max_tokens, stop_ids, hash_logits: true, ..Default::default() };
    let mut session = Session::new(executor, options)?;
    block_on(session.generate(ids, &generate, observer, &mut |_| ControlFlow::Continue(())))
}

/// Records of a run.
fn collecting<'a>(records: &'a RefCell<Vec<Record>>) -> Sink<'a> {
    Sink::new(|record| {
        records.borrow_mut().push(record);
        Ok(())
    })
}

fn trace<'a>(plan: &Plan, categories: &str, layers: Option<Vec<Position>>, prompt_end: usize, sink: Sink<'a>) -> TraceObserver<'a> {
    let categories = Categories::parse([categories]).expect("categories");
    TraceObserver::new(plan, TraceOptions { categories, layers, prompt_end, text: None }, sink).expect("layers that are there")
}

fn gpu(golden: &Golden, storage: Storage) -> Option<GpuExecutor> {
    let gpu = adapter(GpuOptions::default())?;
    Some(golden.filled(GpuExecutor::new(gpu, golden.plan.clone(), storage).expect("an executor")))
}

const TOKENS: usize = 4;

/// Probes of rows, of logits, of scores and of statistics, in every model.
fn probes<'a>(golden: &Golden, sink: Sink<'a>) -> ProbeObserver<'a> {
    let (hidden, vocab) = (golden.config.hidden_size - 1, golden.config.vocab_size - 1);
    // Layers that mix otherwise than by attention have no scores.
    let scores = |layer: &usize| golden.plan.find(At { stage: Stage::AttnScores, layer: Some(*layer) }).is_some();
    let layers = 0..golden.plan.num_layers;
    let (first, last) = (layers.clone().find(scores).expect("attention"), layers.rev().find(scores).expect("attention"));
    let text = format!(
        r#"{{"runtime":{{"debug":{{"probes":[
            {{"id":"rows","stage":"layer_out","layers":[0,"mid",-1],"tokens":[0,-1],"dims":[{hidden},0]}},
            {{"id":"logits","stage":"logits_final","tokens":[-1],"dims":[{vocab},3]}},
            {{"id":"probs","stage":"attn_probs","layers":[{last}],"tokens":[1,-1],"dims":[0,2]}},
            {{"id":"row","stage":"ffn_out","layers":[0],"tokens":[1,-1],"dims":"stats"}},
            {{"id":"heads","stage":"attn_scores","layers":[{first}],"dims":"stats"}}]}}}}}}"#
    );
    let config = RuntimeConfig::parse(&text).expect("a config");
    ProbeObserver::new(&golden.plan, &config.runtime.debug.probes, golden.prompt.len(), sink).expect("probes of what is there")
}

/// The number behind `key` in a line.
fn printed(line: &str, key: &str) -> f32 {
    let (_, rest) = line.split_once(key).unwrap_or_else(|| panic!("no {key} in {line}"));
    let number = rest.split([' ', '@', ',', ']']).next().expect("a word");
    number.parse().unwrap_or_else(|_| panic!("{key} in {line}"))
}

/// Row `token` of a dumped value; of scores the rows of all heads, side by side.
fn row(dump: &Dump, prompt: usize, at: At, token: usize) -> Vec<Vec<f32>> {
    let value = || dump.value(at).expect("a dump").unwrap_or_else(|| panic!("the dump has {at}"));
    let of = |t: &Tensor, row: usize| (0..t.shape[0]).map(|head| t.row(head * t.shape[1] + row).to_vec()).collect();
    match at.stage.layout().is_scores() {
        true if token < prompt => of(&value(), token),
        true => of(&dump.step_value(token + 1 - prompt, at).expect("a dump").expect("the step"), 0),
        false => vec![value().row(token).to_vec()],
    }
}

/// Every traced number against the dump's rows of the same tokens.
fn trace_equals(dump: &Dump, prompt: usize, record: &TraceRecord) {
    let TraceRecord { at, stats: seen, first_token, tokens, .. } = record;
    let line = Record::Trace(record.clone()).line(0.0);
    let scores = at.stage.layout().is_scores();
    let rows: Vec<Vec<Vec<f32>>> = (*first_token..first_token + tokens).map(|t| row(dump, prompt, *at, t)).collect();
    let positions = if scores { first_token + tokens } else { rows[0][0].len() };
    let heads = rows[0].len();
    let all: Vec<f32> = (0..heads).flat_map(|h| rows.iter().flat_map(move |r| r[h][..positions].to_vec())).collect();
    let expected = stats(&all, positions);
    assert_eq!(printed(&line, "maxAbs=").to_bits(), expected.max_abs.to_bits(), "{line}");
    assert_eq!((printed(&line, "min="), printed(&line, " max=")), (expected.min, expected.max), "{line}");
    assert_eq!((seen.count, seen.nan, seen.inf, seen.zero), (expected.count, 0, 0, expected.zero), "{line}");
    let place = rows[seen.token - first_token][if scores { seen.head.expect("a head") } else { 0 }][seen.dim];
    assert_eq!(place.abs().to_bits(), expected.max_abs.to_bits(), "{line}");
    for (found, expected) in [(seen.rms, expected.rms), (seen.mean, expected.mean)] {
        let (found, expected) = (f64::from(found), f64::from(expected));
        assert!((found - expected).abs() <= 2e-6 * f64::from(seen.rms), "{line}: {found} for {expected}");
    }
}

fn probe_equals(dump: &Dump, prompt: usize, record: &ProbeRecord) {
    let line = record.text();
    let rows = row(dump, prompt, record.at, record.token);
    for value in record.values.iter().flatten() {
        let name = value.head.map_or(format!("{}=", value.dim), |head| format!("h{head}.{}=", value.dim));
        let expected = rows[value.head.unwrap_or(0)].get(value.dim).copied().unwrap_or(0.0);
        let shown = line.split_once("values=").expect("values").1;
        assert_eq!(printed(&shown.replace('[', " ").replace(", ", "  "), &format!(" {name}")).to_bits(), expected.to_bits(), "{line}");
    }
    if let Some(seen) = record.stats {
        let visible = if record.at.stage.layout().is_scores() { record.token + 1 } else { rows[0].len() };
        let all: Vec<f32> = rows.iter().flat_map(|row| row[..visible].to_vec()).collect();
        let expected = stats(&all, visible);
        assert_eq!((seen.max_abs, seen.min, seen.max, seen.zero), (expected.max_abs, expected.min, expected.max, expected.zero), "{line}");
        assert_eq!(seen.count, expected.count, "{line}");
    }
}

/// Traces, probes and dumps a model at once, and holds one against the other.
fn check_watched<E: Executor>(golden: &Golden, executor: &E, chunk: usize, what: &str) {
    let (plan, prompt) = (executor.plan(), golden.prompt.len());
    let records = RefCell::new(Vec::new());
    let mut dump = DumpObserver::new(plan, ["all"], None).expect("stages");
    let mut trace = trace(plan, "all", None, prompt, collecting(&records));
    let mut probe = probes(golden, collecting(&records));
    let mut all = Observers::new(plan, vec![&mut dump, &mut trace, &mut probe]);
    let generated = generate(executor, &golden.prompt, chunk, TOKENS, &[], Some(&mut all)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut file = Vec::new();
    dump.write(&mut file, &[]).expect("a dump in memory");
    let dump = Dump::read(InMemory::new("dump", file)).expect("a dump");

    let (mut fired, mut sampled, mut layer_out, mut probed) = (BTreeSet::new(), Vec::new(), 0, 0);
    for record in records.borrow().iter() {
        match record {
            Record::Trace(record) => {
                fired.insert((record.at, record.step > 0));
                trace_equals(&dump, prompt, record);
            }
            Record::Probe(record) => {
                probed += 1;
                probe_equals(&dump, prompt, record);
            }
            Record::LayerOut(record) => {
                layer_out += 1;
                let (line, at) = (record.text(), At { stage: Stage::LayerOut, layer: Some(record.layer) });
                let tokens = if record.step == 0 { 0..prompt } else { prompt + record.step - 1..prompt + record.step };
                let rows: Vec<f32> = tokens.clone().flat_map(|t| row(&dump, prompt, at, t).remove(0)).collect();
                let last = row(&dump, prompt, at, tokens.end - 1).remove(0);
                let expected = stats(&rows, last.len());
                assert_eq!(printed(&line, "maxAbs=").to_bits(), expected.max_abs.to_bits(), "{what}: {line}");
                assert!(
                    (printed(&line, "rms=") - expected.rms).abs() <= 1e-5 * expected.rms,
                    "{what}: {line}, {}",
                    significant(expected.rms.into())
                );
                let (_, first) = line.split_once("first=[").expect("first");
                let first: Vec<f32> = first.trim_end_matches(']').split(", ").map(|x| x.parse().expect("a number")).collect();
                assert_eq!(first, last[..8], "{what}: {line}");
            }
            Record::Sample(record) => {
                let logits = row(&dump, prompt, At { stage: Stage::LogitsFinal, layer: None }, record.token).remove(0);
                let chosen = record.chosen.as_ref().expect("a chosen token");
                assert_eq!(chosen.logit.to_bits(), logits[chosen.id as usize].to_bits(), "{what}");
                assert_eq!((chosen, record.top.len()), (&record.top[0], 5), "{what}: greedy");
                sampled.push(chosen.id);
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    assert_eq!(sampled, generated.ids, "{what}");
    assert_eq!(generated.ids, golden.generated[..TOKENS], "{what}");
    let expected: BTreeSet<(At, bool)> = plan.nodes.iter().flat_map(|n| [(n.at, false), (n.at, true)]).collect();
    assert_eq!(fired, expected, "{what}: every stage fires, in the prompt and in decode");
    assert_eq!(layer_out, plan.num_layers * TOKENS, "{what}");
    assert!(probed > 3 * TOKENS, "{what}: {probed}");
}

#[test]
fn every_stage_fires_and_what_is_printed_is_what_is_dumped() {
    for golden in goldens() {
        let executor: CpuExecutor<f32> = golden.oracle(Storage::F32);
        for chunk in [golden.prompt.len(), 7] {
            check_watched(&golden, &executor, chunk, &format!("{} on the oracle in steps of {chunk}", golden.name));
        }
    }
}

#[test]
fn what_the_gpu_prints_is_what_it_dumps() {
    for golden in goldens() {
        let Some(executor) = gpu(&golden, Storage::F32) else { return };
        check_watched(&golden, &executor, 7, &format!("{} on the GPU", golden.name));
    }
}

/// Runs with each observer alone; `hash` is that of the unobserved run. `unfused` tells which observers see the inside
/// of attention; they agree among themselves.
fn check_hashes<E: Executor>(golden: &Golden, executor: &E, what: &str) {
    let (plan, prompt) = (executor.plan(), golden.prompt.len());
    let nowhere = || Sink::new(|_| Ok(()));
    let run = |observer: Option<&mut dyn Observer>| {
        let generated = generate(executor, &golden.prompt, 7, TOKENS, &[], observer).unwrap_or_else(|e| panic!("{what}: {e}"));
        (generated.logits_hash.expect("asked for"), generated.ids, generated.notes.iter().any(|n| n.contains("fusion dropped")))
    };
    let (plain, unfused) = (run(None), {
        let mut dump = DumpObserver::new(plan, ["attn_probs"], None).expect("a stage");
        run(Some(&mut dump))
    });
    for (category, _) in CATEGORIES {
        let seen = run(Some(&mut trace(plan, category, None, prompt, nowhere())));
        assert_eq!(seen, if *category == "attn" { unfused.clone() } else { plain.clone() }, "{what}: trace of {category}");
    }
    assert_eq!(run(Some(&mut trace(plan, "all", None, prompt, nowhere()))), unfused, "{what}: trace of all");
    let layers = Some(vec![Position::At(-1)]);
    assert_eq!(run(Some(&mut trace(plan, "loader", layers, prompt, nowhere()))), plain, "{what}: LAYER_OUT");
    assert_eq!(run(Some(&mut LogitsObserver::new(plan, prompt, 10, None, nowhere()))), plain, "{what}: logits");
    assert_eq!(run(Some(&mut LensObserver::new(plan, None, prompt).expect("layers"))), plain, "{what}: lens");
    let options = AnomalyOptions::new(prompt, plan.vocab_size);
    assert_eq!(run(Some(&mut AnomalyObserver::new(plan, options, nowhere()))), plain, "{what}: anomalies");
    let mut probe = probes(golden, nowhere());
    let first_and_last = run(Some(&mut probe));
    assert_eq!((&first_and_last.1, first_and_last.2), (&plain.1, unfused.2), "{what}: probes of two layers' scores");
}

#[test]
fn logits_are_the_same_bits_with_every_observer() {
    for golden in goldens() {
        check_hashes(&golden, &golden.oracle::<f32>(Storage::F32), &golden.name);
        if ["gemma2", "qwen3"].contains(&golden.name.as_str()) {
            check_hashes(&golden, &golden.oracle::<f32>(Storage::F16), &format!("{} in f16", golden.name));
        }
    }
}

#[test]
fn the_gpus_logits_are_the_same_bits_with_every_observer() {
    for golden in goldens().iter().filter(|g| ["gemma2", "phi3", "qwen3"].contains(&g.name.as_str())) {
        for storage in [Storage::F32, Storage::F16] {
            let Some(executor) = gpu(golden, storage) else { return };
            check_hashes(golden, &executor, &format!("{} on the GPU, {}", golden.name, storage.activations));
        }
    }
}

/// One report of everything: every stage and token is in it, and it says where every number of the config came from.
#[test]
fn a_report_shows_the_whole_run() {
    let golden = goldens().into_iter().find(|g| g.name == "gemma2").expect("a golden model");
    let (executor, prompt) = (golden.oracle::<f32>(Storage::F32), golden.prompt.len());
    let report = RefCell::new(Report { title: golden.name.clone(), ..Report::default() });
    let sink = Sink::new(|record| {
        report.borrow_mut().take(&record);
        Ok(())
    });
    let text: TokenText<'_> = Rc::new(|id| format!("<{id}>"));
    let mut trace = trace(&golden.plan, "all", None, prompt, sink.clone());
    let mut logits = LogitsObserver::new(&golden.plan, prompt, 10, Some(text.clone()), sink.clone());
    let mut lens = LensObserver::new(&golden.plan, None, prompt).expect("layers");
    let mut probe = probes(&golden, sink.clone());
    let mut all = Observers::new(&golden.plan, vec![&mut trace, &mut logits, &mut lens, &mut probe]);
    let generated = generate(&executor, &golden.prompt, 64, TOKENS, &[], Some(&mut all)).expect("a run");
    for record in block_on(lens::read(&executor, lens.inputs(), 5, Some(&text))).expect("a lens") {
        sink.put(Record::Lens(record)).expect("a place for it");
    }
    let ids = golden.prompt.iter().map(|id| (*id, false)).chain(generated.ids.iter().map(|id| (*id, true)));
    report.borrow_mut().tokens = ids.map(|(id, generated)| TokenCell { id, text: Some(text(id)), generated }).collect();
    report.borrow_mut().config =
        vec![ConfigRow { name: "norm.eps".into(), value: "1e-6".into(), source: "config.json rms_norm_eps".into() }];
    let page = report.borrow().render();
    for node in &golden.plan.nodes {
        assert!(page.contains(&format!("\"{}\":[", node.at.key())), "{}", node.at);
    }
    let shown = |id: &u32| page.contains(&format!("&lt;{id}&gt;"));
    assert!(golden.prompt.iter().chain(&generated.ids).all(shown) && page.contains("config.json rms_norm_eps"));
}

/// The lens of the last layer is the model itself. `tolerance` is relative to the largest logit.
fn check_lens<E: Executor>(golden: &Golden, executor: &E, tolerance: f32) {
    let (plan, prompt) = (executor.plan(), golden.prompt.len());
    let records = RefCell::new(Vec::new());
    let mut lens = LensObserver::new(plan, None, prompt).expect("layers");
    let mut logits = LogitsObserver::new(plan, prompt, 3, None, collecting(&records));
    let mut both = Observers::new(plan, vec![&mut lens, &mut logits]);
    generate(executor, &golden.prompt, 7, TOKENS, &[], Some(&mut both)).unwrap_or_else(|e| panic!("{}: {e}", golden.name));
    let seen = block_on(lens::read(executor, lens.inputs(), 3, None)).expect("a lens");
    assert_eq!(seen.len(), TOKENS * plan.num_layers);
    for record in records.borrow().iter() {
        let Record::Sample(sample) = record else { continue };
        let last = seen.iter().find(|l| l.step == sample.step && l.layer == plan.num_layers - 1).expect("the last layer");
        assert_eq!(last.token, sample.token);
        for (a, b) in last.top.iter().zip(&sample.top) {
            assert!((a.logit - b.logit).abs() <= tolerance * sample.top[0].logit.abs(), "{}: {} for {}", golden.name, a.logit, b.logit);
        }
        assert_eq!(last.top[0].id, sample.top[0].id, "{}", golden.name);
        assert_eq!(last.chosen.as_ref().map(|c| c.id), sample.chosen.as_ref().map(|c| c.id));
    }
}

#[test]
fn the_lens_of_the_last_layer_is_the_model() {
    for golden in goldens() {
        check_lens(&golden, &golden.oracle::<f32>(Storage::F32), 0.0);
    }
    for golden in goldens().iter().filter(|g| ["gemma2", "granite", "qwen3"].contains(&g.name.as_str())) {
        for storage in [Storage::F32, Storage::F16] {
            let Some(executor) = gpu(golden, storage) else { return };
            // One op alone and the same op within a step may sum in another order: a few f32 roundings.
            check_lens(golden, &executor, 1e-5);
        }
    }
}
