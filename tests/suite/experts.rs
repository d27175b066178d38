//! Experts from outside: the forms in which files keep their weights, a routing that is put in, choices that rounding turns around.

use crate::golden::{Golden, goldens};
use crate::support::*;
use doppler::cpu::CpuExecutor;
use doppler::debug::compare::run::Tokens;
use doppler::debug::compare::{Choice, Floors, NotJudged, Report, align, cumulative, text};
use doppler::exec::{Storage, WeightSink};
use doppler::formats::safetensors::{Output, read_header, write};
use doppler::formats::{InMemory, Local};
use doppler::gpu::{GpuExecutor, GpuOptions};
use doppler::inference::pipeline;
use doppler::loader::{Checkpoint, load, match_slots};
use doppler::model::*;
use doppler::plan::edit::{Edit, apply};
use doppler::plan::intervention::{Change, Given, Intervention};
use doppler::plan::{At, Plan, Stage};
use doppler::quant::Format;
use doppler::tensor::{Tensor, to_f32};
use doppler::{Kind, Result};
use pollster::block_on;
use std::collections::BTreeMap;
use std::sync::Arc;

fn golden(name: &str) -> Golden {
    goldens().into_iter().find(|golden| golden.name == name).unwrap_or_else(|| panic!("no golden model {name}"))
}

/// Tensors of a file by name, in f32.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors(golden: &Golden) -> Tensors {
    let source = InMemory::open(&golden.folder.join("model.safetensors")).expect("weights");
    let header = block_on(read_header(&source)).expect("a header");
    let one = |entry: &doppler::formats::TensorEntry| {
        let bytes = source.slice(entry.range.clone()).expect("a tensor's bytes");
        (entry.name.clone(), (entry.shape.clone(), to_f32(&bytes, entry.dtype.known().expect("plain numbers"))))
    };
    header.tensors.iter().map(one).collect()
}

/// The model of `golden` with these tensors in an oracle: its final logits.
fn logits(golden: &Golden, tensors: &Tensors) -> Result<Tensor> {
    let outputs: Vec<Output> = tensors.iter().map(|(name, (shape, values))| Output::f32(name, shape.clone(), values)).collect();
    let mut bytes = Vec::new();
    write(&mut bytes, &BTreeMap::new(), &outputs).expect("memory takes bytes");
    let source = Local::Memory(InMemory::new("model.safetensors", bytes));
    let mut oracle = CpuExecutor::<f32>::new(golden.plan.clone(), Storage::F32)?;
    block_on(async {
        let checkpoint = Checkpoint::open(vec![source], None).await?;
        let matched = match_slots(&golden.plan, &golden.config.tensors, &checkpoint.index, false)?;
        load(&golden.plan, &checkpoint, &matched, true, &mut oracle, &mut |_| {}).await
    })?;
    Ok(golden.stages(&oracle).remove("logits_final").expect("logits"))
}

/// `tensors` with those of `parts` of all experts in one under `name`: rows of the parts of each expert after the other.
fn joined(tensors: &mut Tensors, experts: usize, block: &str, parts: &[&str], name: &str) {
    let (mut rows, mut columns, mut all) = (0, 0, Vec::new());
    for expert in 0..experts {
        rows = 0;
        for part in parts {
            let (shape, values) = tensors.remove(&format!("{block}.experts.{expert}.{part}.weight")).expect("an expert's tensor");
            (rows, columns) = (rows + shape[0], shape[1]);
            all.extend(values);
        }
    }
    tensors.insert(format!("{block}.experts.{name}"), (vec![experts, rows, columns], all));
}

#[test]
fn experts_in_one_tensor_are_those_that_have_one_each() {
    let golden = golden("qwen3-moe");
    let apart = tensors(&golden);
    let expected = logits(&golden, &apart).expect("a model");
    let mut together = apart.clone();
    for layer in [1, 2] {
        let block = format!("model.layers.{layer}.mlp");
        joined(&mut together, 6, &block, &["gate_proj", "up_proj"], "gate_up_proj");
        joined(&mut together, 6, &block, &["down_proj"], "down_proj");
    }
    assert!(together.len() < apart.len());
    assert_eq!(logits(&golden, &together), Ok(expected));
}

#[test]
fn what_experts_lack_is_named() {
    let golden = golden("qwen3-moe");
    let of = |change: &dyn Fn(&mut Tensors)| {
        let mut changed = tensors(&golden);
        change(&mut changed);
        let error = logits(&golden, &changed).expect_err("tensors that do not fit");
        assert_eq!(error.kind, Kind::Weights, "{error}");
        error.message
    };
    let name = "model.layers.2.mlp.experts.4.up_proj.weight";
    let missing = of(&|tensors| drop(tensors.remove(name)));
    assert!(missing.contains("missing: 1 tensor") && missing.contains(name), "{missing}");
    let shape = of(&|tensors| drop(tensors.insert(name.into(), (vec![40, 24], vec![0.0; 960]))));
    assert!(shape.contains(name) && shape.contains("expected [24, 40], found [40, 24]"), "{shape}");
    let extra = of(&|tensors| drop(tensors.insert(name.replace("experts.4", "experts.6"), (vec![24, 40], vec![0.0; 960]))));
    assert!(extra.contains("without a place") && extra.contains("experts.6"), "{extra}");
}

/// A layer of experts, its plan with `value` put in at `stage`, for all tokens or one.
fn with(plan: &Plan, stage: Stage, token: Option<usize>, values: &[f32]) -> Plan {
    let tensor = Arc::new(Tensor::new(vec![values.len()], values.to_vec()).expect("a row"));
    let given = Given { name: "from:test".into(), first: 0, tensor };
    let tokens = token.map(|token| vec![(token, token)]);
    let with = Intervention { tokens, heads: None, dims: None, change: Change::Set(given) };
    apply(plan, &[Edit::Intervene { at: At { stage, layer: Some(0) }, with }]).expect("an edited plan")
}

fn model() -> Plan {
    let mut config = config(64, 4, 2, 16, 96, 131);
    config.layers[0].ffn = Ffn::Experts(ExpertsConfig {
        router: router(6, 2),
        router_bias: false,
        intermediate_size: 40,
        activation: Activation::Silu,
        bias: true,
        shared: None,
    });
    pipeline::build(&config).expect("a plan")
}

/// Weights that somebody sets are the routing: the experts that have one are computed, and no other.
#[test]
fn a_routing_that_is_put_in_is_followed() {
    let ids = [3, 77, 12, 5, 99];
    for (weights, numbers) in [([0.0, 0.25, 0.0, 0.0, 0.0, 1.5], [1.0, 5.0]), ([0.0, 0.0, 0.0, -2.0, 0.0, 0.0], [3.0, -1.0])] {
        let plan = with(&model(), Stage::RouterWeights, None, &weights);
        let requests = everything(&plan);
        for storage in [Storage::F32, Storage::F16] {
            let (mut exact, mut rounded) = oracles(&plan, storage);
            random_weights(&plan, Format::F32, 1, &mut [&mut exact, &mut rounded]);
            let (exact, rounded) = (observe(&exact, &ids, &requests, false), observe(&rounded, &ids, &requests, false));
            assert_eq!(exact["layer.0.chosen_experts"].data, numbers.repeat(ids.len()), "{numbers:?}");
            if numbers[1] < 0.0 {
                let out = &exact["layer.0.expert_out"];
                assert!((0..ids.len()).all(|token| out.row(token)[64..].iter().all(|x| *x == 0.0)), "no expert gives zeros");
            }
            let Some(gpu) = adapter(GpuOptions::default()) else { return };
            let mut executor = GpuExecutor::new(gpu, plan.clone(), storage).expect("an executor");
            random_weights(&plan, Format::F32, 1, &mut [&mut executor]);
            for count in [1, ids.len()] {
                let found = observe(&executor, &ids[..count], &requests, false);
                if count == ids.len() {
                    let (_, lines) = beyond_floor(&exact, &rounded, &found, 3.0);
                    assert!(lines.is_empty(), "{numbers:?} {storage:?}:\n{}", lines.join("\n"));
                }
                assert_eq!(found["layer.0.chosen_experts"].data, numbers.repeat(count), "{storage:?}");
            }
        }
    }
}

/// Two runs of a model, the logits of a router at token 3 being those that are given.
fn compared(a: &[f32], b: &[f32]) -> Report {
    let tokens = Tokens { prompt: vec![3, 77, 12, 5, 99, 44], forced: Vec::new(), steps: 2 };
    let run = |name: &str, logits: &[f32]| {
        let plan = with(&model(), Stage::RouterLogits, Some(3), logits);
        let mut oracle = CpuExecutor::<f32>::new(plan, Storage::F32).expect("an oracle");
        let sinks: &mut [&mut dyn WeightSink] = &mut [&mut oracle];
        random_weights(&model(), Format::F32, 1, sinks);
        block_on(tokens.record(&oracle, 64, &Choice::default(), name, &mut |_, _| {})).expect("a run")
    };
    let (a, b) = (run("a", a), run("b", b));
    let (plan, choice) = (model(), Choice::default());
    let aligned = align(&a, &b, ["a".into(), "b".into()], Some(&plan), &choice).expect("aligned");
    cumulative(&a, &b, &aligned, Floors::Brought, Some(&plan), &mut |_, _| {}).expect("a report")
}

#[test]
fn a_choice_that_rounding_turns_around_is_said_and_is_no_divergence() {
    // Far enough apart for a softmax to tell them.
    let near = 1.0 + 8.0 * f32::EPSILON;
    let report = compared(&[0.0, 2.0, -1.0, 1.0, near, 0.5], &[0.0, 2.0, -1.0, near, 1.0, 0.5]);
    let shown = text(&report, false);
    assert!(report.first_divergence.is_none() && report.finding(), "{shown}");
    let tied = report.not_judged.iter().find_map(|left| match left {
        NotJudged::NearTie { at, token, experts, .. } => Some((at.stage, *token, *experts)),
        _ => None,
    });
    assert!(matches!(tied, Some((Stage::RouterWeights | Stage::ChosenExperts, 3, [4, 3]))), "{tied:?}\n{shown}");
    assert!(shown.contains("A chooses expert 4 and B expert 3"), "{shown}");
    // Logits that are not near are another choice, and a divergence.
    let far = compared(&[0.0, 2.0, -1.0, 1.0, 1.01, 0.5], &[0.0, 2.0, -1.0, 1.01, 1.0, 0.5]);
    assert!(far.first_divergence.is_some(), "{}", text(&far, false));
}
