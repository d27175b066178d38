//! Injection: with the reference's values in the place of the first wrong ones, what follows agrees; a second fault behind them
//! is found, and nothing else is judged.

use super::faults::{Fault, down, one_element, weights};
use super::{complaint, names, oracles, reference, run};
use crate::golden::{Golden, goldens};
use crate::support::adapter;
use doppler::cpu::CpuExecutor;
use doppler::debug::compare::{Choice, Floors, Injection, Report, align, cumulative, text};
use doppler::debug::dump::Dump;
use doppler::debug::floor::{Oracles, of_storage};
use doppler::exec::{Editable, Executor, Storage};
use doppler::gpu::{GpuExecutor, GpuOptions};
use doppler::model::WeightRole;
use doppler::plan::{At, Stage};
use doppler::{Kind, Result};

/// The run of `executor` with values of `a` at `places`, against `a`.
///
/// The reference ran freely: what is beyond the floor of a run with the same values must be beyond that of a free one too. (One of
/// 52 right runs was 3.7 of the former.)
fn injected<E: Executor + Editable>(golden: &Golden, a: &Dump, executor: &mut E, places: &[&str]) -> Result<Report> {
    let places: Vec<String> = places.iter().map(|place| (*place).to_string()).collect();
    let (plan, injection) = Injection::new(&golden.plan, &places, a)?;
    let list = plan.interventions();
    executor.set_interventions(&list)?;
    let b = run(executor, a, &golden.name);
    let mut aligned = align(a, &b, names(golden), Some(&plan), &Choice::default())?;
    injection.narrow(&mut aligned)?;
    let mut oracles = oracles(golden, &[Storage::F32, executor.storage()]);
    let judged = |oracles: &Oracles| {
        let exact = run(&oracles.exact, a, "oracle in f64");
        let rounded: Vec<Dump> = oracles.rounded.iter().map(|oracle| run(oracle, a, "oracle")).collect();
        let of = |storage| of_storage(&oracles.rounded, storage).map(|i| &rounded[i]);
        let floors = {
            let ([a, a_again], [b, b_again]) = (of(Storage::F32), of(executor.storage()));
            Floors::Measured([&exact, a, b, a_again, b_again])
        };
        cumulative(a, &b, &aligned, floors, Some(&plan), &mut |_, _| {})
    };
    let freely = judged(&oracles)?;
    oracles.exact.set_interventions(&list)?;
    oracles.rounded.iter_mut().try_for_each(|oracle| oracle.set_interventions(&list))?;
    let report = judged(&oracles)?;
    Ok(if report.finding() { freely } else { report })
}

fn faults(golden: &Golden) -> [Fault; 2] {
    let has_keys = |layer: &usize| golden.plan.find(At { stage: Stage::KProj, layer: Some(*layer) }).is_some();
    let layers = golden.plan.num_layers;
    // Layers that read the keys of others have none.
    let half = layers.saturating_sub(1) / 2;
    let middle = (half..layers).chain((0..half).rev()).find(has_keys).expect("a layer with keys");
    [weights("one weight", Stage::KProj, middle, WeightRole::KProj, one_element), down(golden, layers - 1)]
}

fn place(at: At) -> String {
    at.layer.map_or(at.stage.to_string(), |layer| format!("{}@{layer}", at.stage))
}

#[test]
fn what_follows_the_first_wrong_value_agrees() {
    let mut failures = Vec::new();
    for golden in goldens() {
        let a = reference(&golden);
        for fault in faults(&golden) {
            let mut oracle = fault.filled(&golden, CpuExecutor::<f32>::new(golden.plan.clone(), Storage::F32).expect("an oracle"));
            let wrong = injected(&golden, &a, &mut oracle, &["embed_out"]).expect("a report");
            assert_eq!(wrong.first_divergence.expect("a fault").at, fault.at, "{}", golden.name);
            let report = injected(&golden, &a, &mut oracle, &[&place(fault.at)]).expect("a report");
            failures.extend(complaint(&format!("{}, {} injected", golden.name, fault.at), &report));
            // What was computed before is not judged again, and neither is what was injected.
            let order = |at: At| golden.plan.find(at).expect("a value").0;
            assert!(report.stages.iter().all(|line| order(line.at) > order(fault.at)), "{}", text(&report, true));
            assert_eq!((report.injected.len(), report.stages.last().expect("logits").at.stage), (1, Stage::LogitsFinal));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Keys and values of the prompt and of decode, the input of a layer, and scores, on a device, in f32 and in f16.
#[test]
fn a_device_takes_every_kind_of_value() {
    let golden = goldens().into_iter().find(|golden| golden.name == "gemma2").expect("a golden model");
    let a = reference(&golden);
    let last = golden.plan.num_layers - 1;
    let fault = weights("one weight", Stage::VProj, last, WeightRole::VProj, one_element);
    for storage in [Storage::F32, Storage::F16] {
        let Some(gpu) = adapter(GpuOptions::default()) else { return };
        let mut device = fault.filled(&golden, GpuExecutor::new(gpu, golden.plan.clone(), storage).expect("an executor"));
        let layer_in = format!("layer_in@{last}");
        let found = injected(&golden, &a, &mut device, &[&layer_in]).expect("a report");
        assert_eq!(found.first_divergence.as_ref().expect("a fault").at, fault.at, "{}", text(&found, false));
        for places in [
            vec![format!("v_cache@{last}")],
            vec![format!("k_cache@{last}"), format!("v_cache@{last}")],
            vec![format!("attn_core_out@{last}")],
        ] {
            let places: Vec<&str> = places.iter().map(String::as_str).collect();
            let report = injected(&golden, &a, &mut device, &places).expect("a report");
            assert!(complaint("", &report).is_none(), "{places:?}, {}:\n{}", storage.activations, text(&report, false));
        }
        // Of one token the values are right, and of the others they are what they were.
        let some = injected(&golden, &a, &mut device, &[&format!("v_proj@{last},token=0")]).expect("a report");
        let first = some.first_divergence.expect("other tokens");
        assert!(first.at == fault.at && first.token != Some(0), "{first:?}");
    }
}

#[test]
fn what_cannot_be_injected_is_said() {
    let golden = goldens().into_iter().find(|golden| golden.name == "llama3").expect("a golden model");
    let a = reference(&golden);
    let few = run_of(&golden, &a, &["layer_out"]);
    let refused = |dump: &Dump, place: &str| Injection::new(&golden.plan, &[place.to_string()], dump).expect_err(place);
    for (dump, place, kind, says) in [
        (&few, "ffn_out@0", Kind::Format, "--stages ffn_out"),
        (&a, "ffn_out@99", Kind::Invalid, "layer"),
        (&a, "router_weight@0", Kind::Invalid, "there is no stage"),
        (&a, "ffn_out@0=zero", Kind::Invalid, "those of the reference"),
        (&a, "logits_final", Kind::Invalid, "nothing is left"),
        (&a, "q_norm@0", Kind::Plan, "no such value"),
        (&a, "ffn_out@0,token=500", Kind::Plan, "tokens 0 to"),
    ] {
        let error = refused(dump, place);
        assert!(error.kind == kind && error.message.contains(says), "{place}: {error:?}");
    }
    // A dump that has what enters a layer under the name of what left the layer before.
    assert!(Injection::new(&golden.plan, &["layer_in@1".to_string()], &few).is_ok());
}

/// A run of the tokens of `of` with these stages only.
fn run_of(golden: &Golden, of: &Dump, stages: &[&str]) -> Dump {
    use doppler::debug::compare::live;
    use doppler::debug::dump::DumpObserver;
    let executor = golden.oracle::<f32>(Storage::F32);
    let (prompt, forced, steps) = live::of_dump(of).expect("ids");
    let observer = DumpObserver::new(executor.plan(), stages.iter().copied(), None).expect("stages");
    let task = live::Task { prompt: &prompt, forced: &forced, steps, chunk: 64 };
    pollster::block_on(live::record(&executor, task, observer, "few", &mut |_, _| {})).expect("a run")
}
