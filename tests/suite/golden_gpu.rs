//! The GPU on the golden models: every stage within three times the measured rounding floor of the exact oracle, in f32
//! and in f16, with every adapter setting, and the greedy ids of transformers.

use crate::golden::{Golden, goldens};
use crate::support::*;
use doppler::exec::Storage;
use doppler::gpu::{GpuExecutor, GpuOptions, Limits};

fn executor(golden: &Golden, options: &GpuOptions, storage: Storage) -> Option<GpuExecutor> {
    let gpu = adapter(options.clone())?;
    Some(golden.filled(GpuExecutor::new(gpu, golden.plan.clone(), storage).expect("an executor")))
}

#[test]
#[expect(clippy::print_stdout, reason = "the table is the point of --nocapture")]
fn every_stage_is_within_three_floors() {
    let settings = [
        ("native", GpuOptions::default()),
        ("floor", GpuOptions { limits: Limits::Floor, ..Default::default() }),
        ("serial", GpuOptions { serial: Some(true), ..Default::default() }),
    ];
    let mut failures = Vec::new();
    for golden in goldens() {
        let exact = golden.stages(&golden.oracle::<f64>(Storage::F32));
        for storage in [Storage::F32, Storage::F16] {
            let [model, again] =
                [golden.oracle::<f32>(storage), golden.oracle::<f32>(storage).apart()].map(|oracle| golden.stages(&oracle));
            let floors = larger_floors(&exact, [&model, &again]);
            for (setting, options) in &settings {
                let Some(executor) = executor(&golden, options, storage) else { return };
                let found = golden.stages(&executor);
                let (worst, lines) = beyond_floors(&exact, &floors, &found, 3.0);
                failures.extend(lines.into_iter().map(|l| format!("{} {setting} {}: {l}", golden.name, storage.activations)));
                let mut furthest = (0.0, "");
                for (key, value) in &golden.values {
                    let relative = distance(&found[key], value) / length(value);
                    furthest = if relative > furthest.0 { (relative, key) } else { furthest };
                }
                println!(
                    "{:20} {setting:7} {}: worst {worst:.2}x the floor; from transformers {:.2e} at {}",
                    golden.name, storage.activations, furthest.0, furthest.1
                );
                // The bound for f32, about ten times what was measured.
                if storage == Storage::F32 && furthest.0 > 3e-5 {
                    failures.push(format!("{} {setting}: {} is {:.2e} from transformers", golden.name, furthest.1, furthest.0));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn greedy_ids_are_those_of_transformers() {
    for golden in goldens() {
        let Some(executor) = executor(&golden, &GpuOptions::default(), Storage::F32) else { return };
        for chunk in [golden.prompt.len() + golden.generated.len(), 7, 1] {
            assert_eq!(golden.greedy(&executor, chunk), golden.generated, "{}, prompt in steps of {chunk}", golden.name);
        }
    }
}
