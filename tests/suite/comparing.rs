//! Comparing runs: right models agree with transformers at every stage, whatever computes them; a model that is broken in
//! one place is said to differ there first.

mod dumps;
mod faults;
mod inject;
mod unwatched;

use crate::golden::{Golden, goldens};
use crate::support::{adapter, config, random_weights};
use doppler::debug::compare::{Choice, Floors, Report, align, cumulative, isolated, live, text};
use doppler::debug::dump::{Dump, DumpObserver};
use doppler::debug::floor::{Oracles, of_storage};
use doppler::exec::{Executor, Storage};
use doppler::gpu::{GpuExecutor, GpuOptions, Limits};
use doppler::inference::pipeline;
use doppler::quant::Format;
use pollster::block_on;

/// What transformers computed.
fn reference(golden: &Golden) -> Dump {
    Dump::open(&golden.folder.join("golden.safetensors")).expect("a golden dump")
}

fn oracles(golden: &Golden, storages: &[Storage]) -> Oracles {
    golden.filled(Oracles::new(&golden.plan, storages).expect("a verified plan"))
}

/// A run of the tokens of `of`, all stages.
fn run<E: Executor>(executor: &E, of: &Dump, name: &str) -> Dump {
    let (prompt, forced, steps) = live::of_dump(of).expect("ids");
    let observer = DumpObserver::new(executor.plan(), ["all"], None).expect("stages");
    let task = live::Task { prompt: &prompt, forced: &forced, steps, chunk: 64 };
    block_on(live::record(executor, task, observer, name, &mut |_, _| {})).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn names(golden: &Golden) -> [String; 2] {
    ["golden".into(), golden.name.clone()]
}

/// The free run of `executor` against `a`.
fn free<E: Executor>(golden: &Golden, a: &Dump, executor: &E, oracles: &Oracles) -> Report {
    let b = run(executor, a, &golden.name);
    let exact = run(&oracles.exact, a, "oracle in f64");
    let rounded: Vec<Dump> = oracles.rounded.iter().map(|oracle| run(oracle, a, "oracle")).collect();
    let of = |storage| of_storage(&oracles.rounded, storage).map(|i| &rounded[i]);
    let floors = {
        let ([a, a_again], [b, b_again]) = (of(Storage::F32), of(executor.storage()));
        Floors::Measured([&exact, a, b, a_again, b_again])
    };
    let plan = Some(executor.plan());
    let aligned = align(a, &b, names(golden), plan, &Choice::default()).unwrap_or_else(|e| panic!("{}: {e}", golden.name));
    cumulative(a, &b, &aligned, floors, plan, &mut |_, _| {}).unwrap_or_else(|e| panic!("{}: {e}", golden.name))
}

/// Each op of `executor` on the values of `a`.
fn alone<E: Executor>(golden: &Golden, a: &Dump, executor: &E, oracles: &Oracles) -> Report {
    let report = block_on(isolated(a, executor, oracles, names(golden), &Choice::default(), &mut |_, _| {}));
    report.unwrap_or_else(|e| panic!("{}: {e}", golden.name))
}

/// What a run that is right must not have.
fn complaint(what: &str, report: &Report) -> Option<String> {
    report.finding().then(|| format!("{what}:\n{}", text(report, false)))
}

#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn said(what: &str, report: &Report) {
    let worst = report.worst().expect("values");
    println!("{what:44} worst {:5.2}x at {}{}", worst.times_floor, worst.at, if worst.one_dim { ", one dim" } else { "" });
}

#[test]
fn every_family_agrees_with_transformers() {
    let mut failures = Vec::new();
    for golden in goldens() {
        let a = reference(&golden);
        let oracles = oracles(&golden, &[Storage::F32]);
        let executor = golden.oracle::<f32>(Storage::F32);
        for (mode, report) in [("free", free(&golden, &a, &executor, &oracles)), ("alone", alone(&golden, &a, &executor, &oracles))] {
            let what = format!("{} {mode}, oracle f32", golden.name);
            // What its cache holds, transformers does not show: alone it is held against what was appended.
            let shown = if mode == "free" { golden.values.len() } else { golden.plan.nodes.len() };
            assert_eq!(report.stages.len(), shown, "{what}");
            said(&what, &report);
            failures.extend(complaint(&what, &report));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Sums as long as in real models: a kernel that adds in another order than the oracle loses more in them.
#[test]
fn widths_of_real_models_agree_on_the_gpu() {
    let mut failures = Vec::new();
    for (hidden, heads, inner, tokens) in [(2304, 8, 9216, 1), (1152, 4, 6912, 5)] {
        let config = config(hidden, heads, heads / 2, 256, inner, 301);
        let plan = pipeline::build(&config).expect("a plan");
        let ids: Vec<u32> = (0..tokens).map(|i| (i * 37 + 5) % 301).collect();
        let mut oracles = Oracles::new(&plan, &[Storage::F32, Storage::F16]).expect("oracles");
        random_weights(&plan, Format::BF16, 1, &mut [&mut oracles]);
        let task = live::Task { prompt: &ids, forced: &[], steps: 0, chunk: 64 };
        let kept = |name: &str| (DumpObserver::new(&plan, ["all"], None).expect("stages"), name.to_string());
        let (observer, name) = kept("reference");
        let a = block_on(live::record(&oracles.rounded[0], task, observer, &name, &mut |_, _| {})).expect("a run");
        let settings = [("native", GpuOptions::default()), ("floor", GpuOptions { limits: Limits::Floor, ..Default::default() })];
        for (setting, options) in settings {
            for storage in [Storage::F32, Storage::F16].into_iter().take(if tokens == 1 { 2 } else { 1 }) {
                let Some(gpu) = adapter(options.clone()) else { return };
                let mut executor = GpuExecutor::new(gpu, plan.clone(), storage).expect("an executor");
                random_weights(&plan, Format::BF16, 1, &mut [&mut executor]);
                let names = ["reference".to_string(), setting.to_string()];
                let report = block_on(isolated(&a, &executor, &oracles, names, &Choice::default(), &mut |_, _| {}));
                let what = format!("{hidden} by {inner}, {tokens} tokens alone, {setting} {}", storage.activations);
                let report = report.unwrap_or_else(|e| panic!("{what}: {e}"));
                said(&what, &report);
                failures.extend(complaint(&what, &report));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_family_agrees_on_the_gpu() {
    let mut failures = Vec::new();
    for golden in goldens() {
        let a = reference(&golden);
        for storage in [Storage::F32, Storage::F16] {
            let Some(gpu) = adapter(GpuOptions::default()) else { return };
            let oracles = oracles(&golden, &[Storage::F32, storage]);
            let executor = golden.filled(GpuExecutor::new(gpu, golden.plan.clone(), storage).expect("an executor"));
            for (mode, report) in [("free", free(&golden, &a, &executor, &oracles)), ("alone", alone(&golden, &a, &executor, &oracles))] {
                let what = format!("{} {mode}, GPU {}", golden.name, storage.activations);
                said(&what, &report);
                failures.extend(complaint(&what, &report));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
