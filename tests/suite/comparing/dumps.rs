//! Two dumps without a model: floors that they bring, floors that are estimated, sketches, and what cannot be compared.

use super::{complaint, names, oracles, reference, run, said};
use crate::golden::{Golden, goldens};
use crate::support::adapter;
use doppler::debug::compare::run::Tokens;
use doppler::debug::compare::{Choice, Floors, Report, align, cumulative, isolated, live, text};
use doppler::debug::dump::{Dump, DumpObserver};
use doppler::exec::{Executor, Storage};
use doppler::formats::InMemory;
use doppler::formats::safetensors::{Output, write};
use doppler::gpu::{GpuExecutor, GpuOptions};
use doppler::plan::{At, Stage};
use doppler::{Kind, Result};
use pollster::block_on;
use std::collections::BTreeMap;

/// Parts of a dump to write again.
#[derive(Clone)]
struct Written {
    metadata: BTreeMap<String, String>,
    ids: BTreeMap<String, Vec<u32>>,
    values: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

fn taken(dump: &Dump) -> Written {
    let mut ids = BTreeMap::from([("input_ids".to_string(), dump.input_ids().expect("ids"))]);
    if let Some(generated) = dump.generated_ids().expect("ids") {
        ids.insert("generated_ids".into(), generated);
    }
    let value = |at: &At| dump.value(*at).expect("a value").expect("a value");
    let values = dump.stages().iter().map(|at| (at.key(), (value(at).shape, value(at).data))).collect();
    Written { metadata: dump.metadata.clone(), ids, values }
}

impl Written {
    fn bytes(&self) -> Vec<u8> {
        let ids = self.ids.iter().map(|(key, ids)| Output::ids(key, ids));
        let values = self.values.iter().map(|(key, (shape, data))| Output::f32(key, shape.clone(), data));
        let mut file = Vec::new();
        write(&mut file, &self.metadata, &ids.chain(values).collect::<Vec<_>>()).expect("a dump");
        file
    }
    fn dump(&self) -> Dump {
        Dump::read(InMemory::new("written", self.bytes())).expect("a dump")
    }
    fn at(&mut self, key: &str) -> &mut Vec<f32> {
        &mut self.values.get_mut(key).expect("a value").1
    }
}

#[test]
fn what_a_run_keeps_is_forecast_to_the_byte() {
    let (golden, reference) = model("gemma2");
    let executor = golden.oracle::<f32>(Storage::F32);
    let few = Choice { stages: Some(vec![Stage::AttnScores, Stage::LayerOut]), layers: Some(vec![1]) };
    for (steps, choice) in [(0, Choice::default()), (3, Choice::default()), (2, few)] {
        let tokens = Tokens { steps, ..Tokens::of(&reference, true).expect("ids") };
        let kept = block_on(tokens.record(&executor, 4, &choice, "run", &mut |_, _| {})).expect("a run");
        let parts = kept.held().into_iter().flat_map(|at| kept.parts(at).to_vec());
        let bytes: usize = parts.map(|part| part.rows() * part.width * 4).sum();
        assert_eq!(tokens.bytes(&golden.plan, &choice), bytes as u64, "{steps} steps");
    }
}

fn two(a: &Dump, b: &Dump) -> Result<Report> {
    let aligned = align(a, b, ["first".into(), "second".into()], None, &Choice::default())?;
    cumulative(a, b, &aligned, Floors::Brought, None, &mut |_, _| {})
}

fn model(name: &str) -> (Golden, Dump) {
    let golden = goldens().into_iter().find(|g| g.name == name).expect("a golden model");
    let dump = reference(&golden);
    (golden, dump)
}

fn key(stage: Stage, layer: usize) -> At {
    At { stage, layer: Some(layer) }
}

#[test]
fn estimated_floors_hold_and_are_said() {
    let mut failures = Vec::new();
    for golden in goldens() {
        let a = reference(&golden);
        let mut runs = vec![run(&golden.oracle::<f32>(Storage::F32), &a, "f32"), run(&golden.oracle::<f32>(Storage::F16), &a, "f16")];
        if let Some(gpu) = adapter(GpuOptions::default()) {
            let executor = GpuExecutor::new(gpu, golden.plan.clone(), Storage::F16).expect("an executor");
            runs.push(run(&golden.filled(executor), &a, "gpu f16"));
        }
        for b in runs {
            let report = two(&a, &b).expect("a report");
            let what = format!("{} estimated, {}", golden.name, b.name());
            said(&what, &report);
            failures.extend(complaint(&what, &report));
            assert!(report.floor.contains("ESTIMATED") && report.stages.iter().all(|l| l.estimated), "{}", report.floor);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The up projection of a layer's feed-forward block: of experts, what the chosen ones make.
fn up(golden: &Golden, layer: usize) -> At {
    let of = [Stage::FfnUp, Stage::ExpertUp].map(|stage| key(stage, layer));
    of.into_iter().find(|at| golden.plan.find(*at).is_some()).expect("a feed-forward block")
}

#[test]
fn floors_that_a_dump_brings_are_used() {
    let mut failures = Vec::new();
    for golden in goldens() {
        let a = reference(&golden);
        let oracles = oracles(&golden, &[Storage::F32]);
        let (exact, rounded) = (run(&oracles.exact, &a, "f64"), run(&oracles.rounded[0], &a, "f32"));
        let mut with = taken(&a);
        for at in a.stages() {
            let (x, y) = (exact.value(*at).unwrap().unwrap(), rounded.value(*at).unwrap().unwrap());
            let square = |(x, y): (&f32, &f32)| (f64::from(*x) - f64::from(*y)).powi(2);
            let floor = |row| x.row(row).iter().zip(y.row(row)).map(square).sum::<f64>().sqrt() as f32;
            let shape = x.shape[..x.shape.len() - 1].to_vec();
            with.values.insert(format!("floor.{}", at.key()), (shape, (0..x.rows()).map(floor).collect()));
        }
        let with = with.dump();
        assert!(with.unknown.is_empty(), "{:?}", with.unknown);
        let report = two(&with, &rounded).expect("a report");
        said(&format!("{} brought floors", golden.name), &report);
        failures.extend(complaint(&golden.name, &report));
        assert!(report.stages.iter().all(|line| !line.estimated) && !report.floor.contains("ESTIMATED"), "{}", report.floor);
        // One element of one row, ten floors off by itself.
        let (mut wrong, at) = (taken(&rounded), up(&golden, golden.plan.num_layers - 1));
        let floor = with.floors(at, 0).unwrap().unwrap()[3];
        let width = rounded.value(at).unwrap().unwrap().width();
        wrong.at(&at.key())[3 * width + 5] += 30.0 * floor;
        let found =
            two(&with, &wrong.dump()).expect("a report").first_divergence.unwrap_or_else(|| panic!("{}: a divergence", golden.name));
        assert_eq!((found.at, found.token, found.dim), (at, Some(3), Some(5)), "{}", golden.name);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// One dim of every token, by so little that no row shows it.
#[test]
fn one_dim_of_all_tokens_stands_out() {
    let (golden, a) = model("llama3");
    let oracles = oracles(&golden, &[Storage::F32]);
    let (exact, rounded) = (run(&oracles.exact, &a, "f64"), run(&oracles.rounded[0], &a, "f32"));
    let at = key(Stage::QProj, 1);
    let (x, y) = (exact.value(at).unwrap().unwrap(), rounded.value(at).unwrap().unwrap());
    let floor =
        x.data.iter().zip(&y.data).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>().sqrt() / (x.rows() as f64).sqrt();
    let mut wrong = taken(&rounded);
    for token in 0..x.rows() {
        wrong.at(&at.key())[token * x.width() + 17] += 2.5 * floor as f32;
    }
    let wrong = wrong.dump();
    let aligned = align(&a, &wrong, names(&golden), Some(&golden.plan), &Choice::default()).expect("aligned");
    let report = cumulative(
        &a,
        &wrong,
        &aligned,
        Floors::Measured([&exact, &rounded, &rounded, &rounded, &rounded]),
        Some(&golden.plan),
        &mut |_, _| {},
    );
    let report = report.expect("a report");
    let line = report.stages.iter().find(|line| line.diverged).expect("a divergence");
    let head_dim = golden.config.attentions().next().expect("attention").head_dim;
    assert!(line.one_dim && (line.at, line.dim, line.head) == (at, Some(17), Some(17 / head_dim)), "{}", text(&report, true));
}

#[test]
fn sketches_show_the_same_place() {
    for golden in goldens() {
        let a = reference(&golden);
        let executor = golden.oracle::<f32>(Storage::F32);
        let (prompt, forced, steps) = live::of_dump(&a).expect("ids");
        let observer = DumpObserver::new(executor.plan(), ["all"], None).expect("stages").sketching();
        let task = live::Task { prompt: &prompt, forced: &forced, steps, chunk: 7 };
        let sketch = block_on(live::record(&executor, task, observer, "sketch", &mut |_, _| {})).expect("a run");
        assert_eq!((sketch.stages().len(), sketch.held().len(), sketch.unknown.len()), (0, golden.plan.nodes.len(), 0));
        assert_eq!(sketch.metadata["sketch"], "64");
        let report = two(&a, &sketch).expect("a report");
        said(&format!("{} sketch", golden.name), &report);
        assert_eq!(complaint(&golden.name, &report), None);

        let whole = run(&executor, &a, "whole");
        let (mut wrong, at) = (taken(&whole), up(&golden, 0));
        let width = whole.value(at).unwrap().unwrap().width();
        wrong.at(&at.key())[2 * width..3 * width].iter_mut().for_each(|x| *x *= 1.01);
        let wrong = wrong.dump();
        let (exact, estimate) = (two(&a, &wrong).expect("a report"), two(&sketch, &wrong).expect("a report"));
        let found = estimate.first_divergence.as_ref().expect("a divergence");
        assert_eq!((found.at, found.token, found.dim), (at, Some(2), None), "{}", golden.name);
        let line = |report: &Report| report.stages.iter().find(|l| l.at == at).expect("a line").relative_l2;
        let ratio = line(&estimate) / line(&exact);
        assert!((0.65..1.35).contains(&ratio), "{}: {ratio}", golden.name);
    }
}

#[test]
fn what_is_not_finite() {
    let (_, a) = model("qwen3");
    let (name, at) = ("layer.1.ffn_out", key(Stage::FfnOut, 1));
    let mut odd = taken(&a);
    odd.at(name)[41] = f32::NAN;
    let found = two(&a, &odd.dump()).expect("a report").first_divergence.expect("a divergence");
    assert_eq!((found.at, found.token, found.dim), (at, Some(1), Some(1)));
    assert!(found.times_floor.is_infinite());
    // The same on both sides is no difference, but it is said.
    let report = two(&odd.dump(), &odd.dump()).expect("a report");
    assert!(!report.finding() && report.notes.iter().any(|n| n.contains("L1 ffn_out (1)")), "{}", text(&report, false));
    let mut other = odd.clone();
    other.at(name)[41] = f32::INFINITY;
    let report = two(&odd.dump(), &other.dump()).expect("a report");
    assert_eq!(report.first_divergence.as_ref().map(|d| d.at), Some(at));
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["first_divergence"]["times_floor"], "Inf");
    assert_eq!(json["first_divergence"]["stage"], "ffn_out");
}

#[test]
fn a_missing_stage_is_a_finding() {
    let (_, a) = model("qwen3");
    let mut fewer = taken(&a);
    fewer.values.retain(|key, _| !key.ends_with("q_norm") && key != "final_norm");
    let report = two(&a, &fewer.dump()).expect("a report");
    let found: Vec<_> = report.missing.iter().map(|m| (m.stage, m.layers.len(), m.side)).collect();
    assert_eq!(found, [("q_norm", report.stages.iter().filter_map(|l| l.at.layer).max().unwrap() + 1, "B"), ("final_norm", 0, "B")]);
    assert!(report.finding() && report.first_divergence.is_none());
    assert!(text(&report, false).contains("MISSING stage=q_norm layers=0-"), "{}", text(&report, false));
    assert_eq!(two(&fewer.dump(), &a).expect("a report").missing[0].side, "A");
}

#[test]
fn what_cannot_be_compared_is_explained() {
    let (_, a) = model("qwen3");
    let message = |b: &Written| {
        let error = two(&a, &b.dump()).expect_err("no report");
        assert_eq!(error.kind, Kind::Invalid, "{error}");
        error.message
    };
    let mut other = taken(&a);
    other.ids.get_mut("input_ids").unwrap()[4] += 1;
    assert!(message(&other).contains("token 4 is id"), "{}", message(&other));
    let mut other = taken(&a);
    let (shape, data) = other.values.get_mut("layer.0.q_proj").unwrap();
    *shape = vec![shape[0], shape[1] - 1];
    data.truncate(shape[0] * shape[1]);
    assert!(message(&other).contains("`layer.0.q_proj` has"), "{}", message(&other));
    let mut other = taken(&a);
    other.values.retain(|key, _| !key.starts_with("layer.2."));
    assert!(message(&other).contains("layers up to 2"), "{}", message(&other));
    let mut other = taken(&a);
    other.metadata.insert("dtype".into(), "fp4".into());
    assert!(message(&other).contains("`fp4`"), "{}", message(&other));
    let mut other = taken(&a);
    other.values.retain(|key, _| key == "embed_out");
    let mut only = taken(&a);
    only.values.retain(|key, _| key == "logits");
    let error = two(&only.dump(), &other.dump()).expect_err("no report");
    assert!(error.message.contains("no value that both sides have"), "{error}");

    // Rows that are not there are not right.
    let mut other = taken(&a);
    let (shape, data) = other.values.get_mut("layer.1.ffn_act").unwrap();
    data.truncate((shape[0] - 1) * shape[1]);
    shape[0] -= 1;
    assert!(message(&other).contains("`layer.1.ffn_act` has values of"), "{}", message(&other));

    // What was named is not left out silently.
    for (choice, expected) in [
        (Choice { stages: Some(vec![Stage::LayerOut, Stage::PostFfnNorm]), layers: None }, "neither side has `post_ffn_norm`"),
        (Choice { stages: None, layers: Some(vec![0, 77]) }, "neither side has a layer 77"),
    ] {
        let error = align(&a, &a, [String::new(), String::new()], None, &choice).expect_err("a name that nobody has");
        assert!(error.message.contains(expected), "{error}");
    }

    // Other continuations are compared as far as they are the same.
    let mut other = taken(&a);
    other.ids.get_mut("generated_ids").unwrap()[2] += 1;
    let report = two(&a, &other.dump()).expect("a report");
    assert!(!report.finding() && report.notes.iter().any(|n| n.contains("generated tokens differ from position")), "{:?}", report.notes);
}

/// What the reference lacks is computed from what it has, and said where it has it in other layers; sketches have no values.
#[test]
fn single_ops_need_whole_values() {
    let (golden, a) = model("gemma3");
    let (oracles, executor) = (oracles(&golden, &[Storage::F32]), golden.oracle::<f32>(Storage::F32));
    let refused = |dump: &Dump, choice: &Choice| {
        let report = block_on(isolated(dump, &executor, &oracles, names(&golden), choice, &mut |_, _| {}));
        report.map(|report| report.stages.len()).map_err(|e| e.message)
    };
    let mut fewer = taken(&a);
    fewer.values.retain(|key, _| !key.ends_with("q_norm") && key != "layer.1.attn_probs");
    let fewer = fewer.dump();
    let report = block_on(isolated(&fewer, &executor, &oracles, names(&golden), &Choice::default(), &mut |_, _| {})).expect("a report");
    assert!(report.first_divergence.is_none() && report.finding(), "{}", text(&report, true));
    let missing: Vec<_> = report.missing.iter().map(|m| (m.stage, &m.layers[..], m.side)).collect();
    assert_eq!(missing, [("attn_probs", &[1][..], "A")]);
    let has = |label: &str| report.stages.iter().any(|line| line.label() == label);
    assert!(has("L0 q_rope [since.q_proj.prompt]") && has("L0 attn_probs") && !has("L1 attn_probs"), "{}", text(&report, true));
    let named = Choice { stages: Some(vec![Stage::QNorm]), layers: None };
    assert!(refused(&fewer, &named).is_err_and(|message| message.contains("no values of `q_norm`")));
    let few = Choice { stages: Some(vec![Stage::FfnAct]), layers: Some(vec![0, 2]) };
    assert_eq!(refused(&fewer, &few), Ok(2));

    let (prompt, forced, steps) = live::of_dump(&a).expect("ids");
    let observer = DumpObserver::new(executor.plan(), ["all"], None).expect("stages").sketching();
    let task = live::Task { prompt: &prompt, forced: &forced, steps, chunk: 64 };
    let sketch = block_on(live::record(&executor, task, observer, "sketch", &mut |_, _| {})).expect("a run");
    let message = refused(&sketch, &Choice::default()).expect_err("sketches");
    assert!(message.contains("sketches, not values") && message.contains("logits_final"), "{message}");
}

/// Runs in which everything is stored in 16 bits are held to an estimate, even with a model at hand.
#[test]
fn types_that_no_oracle_computes_in() {
    for (dtype, round) in
        [("bfloat16", (|x| half::bf16::from_f32(x).to_f32()) as fn(f32) -> f32), ("float16", |x| half::f16::from_f32(x).to_f32())]
    {
        let (golden, a) = model("llama2");
        let (oracles, executor) = (oracles(&golden, &[Storage::F32]), golden.oracle::<f32>(Storage::F32));
        let mut rounded = taken(&a);
        rounded.values.values_mut().for_each(|(_, data)| data.iter_mut().for_each(|x| *x = round(*x)));
        rounded.metadata.insert("dtype".into(), dtype.into());
        let rounded = rounded.dump();
        for report in [super::free(&golden, &rounded, &executor, &oracles), super::alone(&golden, &rounded, &executor, &oracles)] {
            assert!(report.floor.contains("ESTIMATED") && report.stages.iter().all(|line| line.estimated), "{}", report.floor);
            assert_eq!(complaint(dtype, &report), None);
        }
    }
}

#[test]
fn wrong_shapes_of_what_is_beside_values() {
    let (_, a) = model("qwen3");
    for (key, shape) in [("floor.layer.0.q_proj", vec![1, 1]), ("sketch.logits", vec![2, 63]), ("stats.layer.0.attn_probs", vec![2, 10])] {
        let mut other = taken(&a);
        other.values.insert(key.into(), (shape.clone(), vec![0.0; shape.iter().product()]));
        let error = Dump::read(InMemory::new("d", other.bytes())).expect_err("a wrong shape");
        assert!(error.kind == Kind::Format && error.message.contains(key), "{error}");
    }
}
