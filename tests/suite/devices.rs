//! `doctor` on devices: one that computes rightly is healthy; each kind of fault is named without a reference, in whichever
//! steps it shows. `DOPPLER_FAULTS=FILE` plants more, and appends a line for each, as `cargo xtask faults` counts them.

mod simulated;

use crate::support::*;
use doppler::cpu::CpuExecutor;
use doppler::debug::doctor::{Outcome, Verdict, device};
use doppler::debug::floor::Oracles;
use doppler::exec::{Storage, WeightSink};
use doppler::inference::pipeline;
use doppler::model::*;
use doppler::plan::{At, Plan, Stage, ValueId};
use doppler::quant::Format;
use pollster::block_on;
use simulated::{Plant, Simulated, When};
use std::io::Write;

/// Prompt and lengths that go past the windows.
const PROMPT: usize = 10;
const MOST: u64 = 20_000_000;

/// Models with what may be wrong: windows, layers without RoPE, grouped heads, caps.
fn models() -> Vec<Plan> {
    let layers = |config: &mut ModelConfig, of: &[(Option<usize>, Option<usize>)]| {
        config.layers = vec![config.layers[0].clone(); of.len()];
        config.attentions_mut().zip(of).for_each(|(attention, (window, rope))| (attention.window, attention.rope) = (*window, *rope));
    };
    let mut windows = config(24, 4, 2, 8, 28, 61);
    layers(&mut windows, &[(Some(5), Some(0)), (None, None), (Some(7), Some(0))]);
    let mut plain = config(16, 6, 3, 4, 20, 47);
    for attention in plain.attentions_mut() {
        (attention.softcap, attention.query_key_norm, attention.qkv_bias) = (None, QueryKeyNorm::None, false);
    }
    plain.denses_mut().for_each(|dense| dense.activation = Activation::Silu);
    (plain.final_logit_softcapping, plain.residual_multiplier) = (None, 1.0);
    layers(&mut plain, &[(None, Some(0)), (Some(6), Some(0))]);
    [windows, plain].map(|config| pipeline::build(&config).expect("a plan")).to_vec()
}

fn diagnose(plan: &Plan, seed: u64, plant: Plant, when: When) -> Verdict {
    let mut oracles = Oracles::new(plan, &[Storage::F32]).expect("oracles");
    let mut inner = CpuExecutor::<f32>::new(plan.clone(), Storage::F32).expect("an oracle");
    let sinks: &mut [&mut dyn WeightSink] = &mut [&mut oracles, &mut inner];
    random_weights(plan, Format::F32, seed, sinks);
    let mut device = Simulated::new(inner, plant, when);
    let mut rng = Rng(seed ^ 0x51);
    let prompt: Vec<u32> = (0..PROMPT).map(|_| (rng.next().abs() * plan.vocab_size as f32) as u32).collect();
    block_on(device::examine(&mut device, &oracles, &prompt, MOST, &mut |_, _, _| {})).expect("a verdict")
}

/// A kind of fault: its class, when it shows, and how it is drawn for a plan.
type Kind = (&'static str, &'static str, When, fn(&Plan, &mut Rng) -> Plant);

fn of(rng: &mut Rng, count: usize) -> usize {
    (rng.next().abs() * count as f32) as usize % count.max(1)
}
/// A factor that is at least a tenth away from 1.
fn factor(rng: &mut Rng) -> f32 {
    let x = rng.next();
    1.0 + x.signum() * (0.1 + 0.8 * x.abs())
}
/// The value of a stage in some layer, or the only one.
fn node(plan: &Plan, rng: &mut Rng, stages: &[Stage]) -> ValueId {
    let all: Vec<ValueId> = stages
        .iter()
        .flat_map(|stage| (0..plan.num_layers).map(Some).chain([None]).map(|layer| At { stage: *stage, layer }))
        .filter_map(|at| plan.find(at))
        .collect();
    all[of(rng, all.len())]
}

const MANY: [Stage; 6] = [Stage::EmbedOut, Stage::OProj, Stage::FfnAct, Stage::FfnOut, Stage::PostAttn, Stage::Logits];

const KINDS: &[Kind] = &[
    ("wrong_kernel", "scaled", When::Always, |plan, rng| Plant::Scaled(node(plan, rng, &MANY), factor(rng))),
    ("wrong_kernel", "scaled", When::Decode, |plan, rng| Plant::Scaled(node(plan, rng, &MANY), factor(rng))),
    ("wrong_kernel", "scaled", When::Prompt, |plan, rng| Plant::Scaled(node(plan, rng, &MANY), factor(rng))),
    ("attention_mask", "later", When::Always, |_, _| Plant::Causal(1)),
    ("attention_mask", "later", When::Prompt, |_, _| Plant::Causal(1)),
    ("attention_mask", "earlier", When::Decode, |_, _| Plant::Causal(-1)),
    ("window_off_by_one", "wider", When::Always, |_, _| Plant::Wider(1)),
    ("window_off_by_one", "narrower", When::Decode, |_, _| Plant::Wider(-1)),
    ("window_pattern", "none", When::Always, |_, _| Plant::Windowless),
    ("gqa_mapping", "in turn", When::Always, |_, _| Plant::InTurn),
    ("gqa_mapping", "in turn", When::Decode, |_, _| Plant::InTurn),
    ("rope_position", "later", When::Always, |_, rng| Plant::Turned(1 + of(rng, 7))),
    ("rope_position", "later", When::Decode, |_, rng| Plant::Turned(1 + of(rng, 7))),
    ("kv_position", "slot", When::Always, |_, _| Plant::Slot(1)),
    ("kv_position", "slot", When::Prompt, |_, rng| Plant::Slot(1 + of(rng, 2))),
    ("kv_corruption", "damaged", When::Always, |_, rng| Plant::Damaged(3 + of(rng, 4), factor(rng))),
    ("kv_corruption", "zeros", When::Always, |_, _| Plant::Damaged(1, 0.0)),
    ("kv_corruption", "lost", When::Always, |_, rng| Plant::Lost(of(rng, 4))),
    ("kv_corruption", "kept", When::Always, |_, _| Plant::Kept),
    ("kv_corruption", "crossed", When::Always, |_, _| Plant::Crossed),
    ("softmax_nan", "rows", When::Always, |_, rng| Plant::NotANumber(3 + of(rng, 4))),
    ("softmax_nan", "rows", When::Decode, |_, rng| Plant::NotANumber(3 + of(rng, 4))),
    ("dispatch_size", "short", When::Always, |plan, rng| Plant::Short(node(plan, rng, &MANY), 1 + of(rng, 7))),
    ("dispatch_size", "short", When::Prompt, |plan, rng| Plant::Short(node(plan, rng, &MANY), 1 + of(rng, 7))),
    ("index_misaligned", "late", When::Always, |plan, rng| Plant::Late(node(plan, rng, &MANY), 1 + of(rng, 2))),
    ("index_misaligned", "mixed", When::Always, |_, rng| Plant::Mixed(factor(rng) - 1.0)),
    ("race", "unsteady", When::Always, |_, rng| Plant::Unsteady(1e-7 + 1e-4 * rng.next().abs())),
    ("uninitialised_memory", "leftover", When::Always, |_, rng| Plant::Leftover(1e-7 * (1.0 + rng.next().abs()))),
    ("uninitialised_memory", "times zero", When::Always, |_, _| Plant::TimesZero),
    ("sampler_order", "second", When::Always, |_, _| Plant::Second),
];

/// What became of one.
fn judged(verdict: &Verdict, class: &str) -> &'static str {
    match (verdict.outcome(), verdict.faults.first()) {
        (Outcome::Healthy, _) => "missed",
        (Outcome::Diagnosed, Some(fault)) if fault.cause.id() == class => "named",
        (Outcome::Diagnosed, Some(fault)) if fault.cause.id() == "wrong_kernel" => "kernel only",
        (Outcome::Diagnosed, _) => "wrong name",
        (Outcome::Abstained, _) => "abstained",
    }
}

#[test]
fn a_right_device_is_healthy_and_every_kind_of_fault_is_named_without_a_reference() {
    let models = models();
    for (i, plan) in models.iter().enumerate() {
        let verdict = diagnose(plan, 11 + i as u64, Plant::None, When::Always);
        assert!(verdict.is_healthy(), "{}", verdict.text());
        assert!(verdict.examined.iter().any(|line| line.contains("NaN in every value")), "{}", verdict.text());
    }
    let mut wrong = String::new();
    for (i, (class, variant, when, draw)) in KINDS.iter().enumerate() {
        let plan = &models[i % models.len()];
        let plant = draw(plan, &mut Rng(1000 + i as u64));
        let verdict = diagnose(plan, i as u64, plant, *when);
        let judged = judged(&verdict, class);
        if judged != "named" {
            wrong.push_str(&format!("{class} {variant} {when:?} {plant:?}: {judged}\n{}\n", verdict.text()));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    if let Some(path) = std::env::var_os("DOPPLER_FAULTS") {
        campaign(&models, std::path::Path::new(&path));
    }
}

/// More draws of each kind, and of right devices, on every model.
fn campaign(models: &[Plan], path: &std::path::Path) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a file");
    let mut line = |id: String, judged: &str, cause: Option<&str>, seconds: f64| {
        let class = id.split('/').next().unwrap_or_default();
        let line =
            serde_json::json!({ "id": id, "class": class, "judged": judged, "cause": cause, "seconds": (seconds * 100.0).round() / 100.0 });
        writeln!(file, "{line}").expect("a line");
    };
    for (m, plan) in models.iter().enumerate() {
        for number in 0..30u64 {
            let start = std::time::Instant::now();
            let verdict = diagnose(plan, 7000 + number, Plant::None, When::Always);
            let judged = if verdict.is_healthy() { "clean" } else { "false alarm" };
            line(
                format!("clean/device/simulated-{m}/0/{number}/alone"),
                judged,
                verdict.faults.first().map(|f| f.cause.id()),
                start.elapsed().as_secs_f64(),
            );
        }
        for (i, (class, variant, when, draw)) in KINDS.iter().enumerate() {
            for number in 0..3u64 {
                let seed = 100 * (i as u64 + 1) + number;
                let start = std::time::Instant::now();
                let verdict = diagnose(plan, seed, draw(plan, &mut Rng(seed)), *when);
                let cause = verdict.faults.first().map(|f| f.cause.id());
                line(
                    format!("{class}/{variant} {when:?}/simulated-{m}/0/{number}/alone"),
                    judged(&verdict, class),
                    cause,
                    start.elapsed().as_secs_f64(),
                );
            }
        }
    }
}
