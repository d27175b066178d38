//! Watching changes nothing: logits are the same bits with and without observers, whole values, statistics and
//! chosen elements agree, and windowed caches hold what their layers need.

use crate::golden::goldens;
use crate::support::*;
use doppler::exec::{Content, Executor, Pick, Read, Request, Rows, Step, Storage, Tokens, Want};
use doppler::gpu::{GpuExecutor, GpuOptions, Limits, Log};
use doppler::inference::pipeline;
use doppler::model::*;
use doppler::plan::{At, Plan, Stage, StateId, StatePart};
use doppler::quant::Format;

fn windowed() -> ModelConfig {
    let mut config = config(40, 4, 2, 16, 56, 131);
    set_layers(&mut config, &[(Some(6), Some(0)), (None, Some(0)), (Some(9), Some(0))]);
    config
}

fn executor(plan: &Plan, storage: Storage) -> Option<GpuExecutor> {
    let mut executor = GpuExecutor::new(adapter(GpuOptions::default())?, plan.clone(), storage).expect("an executor");
    random_weights(plan, Format::F16, 5, &mut [&mut executor]);
    Some(executor)
}

fn step<'a>(tokens: Tokens<'a>, requests: &'a [Request]) -> Step<'a> {
    let pick = Some(Pick { valid: 131 });
    Step { tokens, rows: Rows::Last, pick, read: Read::Logits, long_rope: false, requests }
}

#[test]
fn logits_are_the_same_bits_when_watched() {
    let plan = pipeline::build(&windowed()).expect("a plan");
    let ids: Vec<u32> = (0..21).map(|i| i * 5 % 131).collect();
    for storage in [Storage::F32, Storage::F16] {
        let Some(executor) = executor(&plan, storage) else { return };
        let run = |requests: &[Request]| {
            let mut cache = executor.new_cache(64, 32).expect("a cache");
            let mut logits = Vec::new();
            let mut notes = Vec::new();
            for tokens in [Tokens::Ids(&ids), Tokens::Picked, Tokens::Picked] {
                let output = pollster::block_on(executor.step(&mut cache, &step(tokens, requests))).expect("a step");
                logits.push(output.logits.expect("logits were asked for"));
                notes.extend(output.notes);
            }
            (logits, notes)
        };
        let (plain, _) = run(&[]);
        for stage in plan.stages() {
            for want in [Want::Full, Want::Stats] {
                let (watched, notes) = run(&[Request { stage, layers: None, want: want.clone() }]);
                let unfused = stage.layout().is_scores();
                assert_eq!(notes.iter().any(|n| n.contains("fusion dropped")), unfused, "{stage}");
                assert!(unfused || watched == plain, "{stage} {want:?} changed the logits");
            }
        }
    }
}

/// What is watched of a cache is what lies in it: of prompts and decode steps, beyond a window's ring, and as it is rounded.
#[test]
fn cached_keys_and_values_are_those_in_the_cache() {
    let plan = pipeline::build(&windowed()).expect("a plan");
    let ids: Vec<u32> = (0..23).map(|i| i * 7 % 131).collect();
    let requests = [Stage::KRope, Stage::KCache, Stage::VCache].map(|stage| Request { stage, layers: None, want: Want::Full });
    for storage in [Storage::F32, Storage::F16] {
        let Some(executor) = executor(&plan, storage) else { return };
        let mut cache = executor.new_cache(64, 23).expect("a cache");
        let mut seen = 0;
        for tokens in [Tokens::Ids(&ids), Tokens::Ids(&ids[..21]), Tokens::Picked, Tokens::Ids(&ids[..3])] {
            let output = pollster::block_on(executor.step(&mut cache, &step(tokens, &requests[1..]))).expect("a step");
            for (state, spec) in plan.states.iter().enumerate() {
                let held = pollster::block_on(executor.cached(&cache, StateId(state))).expect("what the cache holds");
                for (stage, part) in [(Stage::KCache, StatePart::Keys), (Stage::VCache, StatePart::Values)] {
                    let at = At { stage, layer: Some(spec.layer) };
                    let value = output.values.iter().find(|value| value.at == at).expect("a wanted value");
                    let Content::Full(found) = &value.content else { panic!("all of it was asked for") };
                    let (rows, first) = (held.part(part).expect("keys and values"), value.first_token - held.first);
                    assert_eq!(found.data[..], rows.data[first * found.width()..], "{at} {storage:?}");
                    seen += found.rows();
                }
            }
        }
        assert_eq!(seen, 2 * 3 * (23 + 21 + 1 + 3));
        let mut cache = executor.new_cache(64, 23).expect("a cache");
        let output = pollster::block_on(executor.step(&mut cache, &step(Tokens::Ids(&ids), &requests[..2]))).expect("a step");
        let full = |stage| {
            let value = output.values.iter().find(|value| value.at.stage == stage).expect("a wanted value");
            let Content::Full(found) = &value.content else { panic!("all of it was asked for") };
            found.data.clone()
        };
        let rounded = |x: f32| if storage == Storage::F16 { half::f16::from_f32(x).to_f32() } else { x };
        assert_eq!(full(Stage::KCache), full(Stage::KRope).into_iter().map(rounded).collect::<Vec<f32>>(), "{storage:?}");
    }
}

#[test]
fn statistics_and_chosen_elements_equal_the_whole_value() {
    let plan = pipeline::build(&windowed()).expect("a plan");
    let ids: Vec<u32> = (0..21).map(|i| i * 7 % 131).collect();
    let Some(executor) = executor(&plan, Storage::F16) else { return };
    for stage in plan.stages() {
        let mut requests = vec![Request { stage, layers: None, want: Want::Full }, Request { stage, layers: None, want: Want::Stats }];
        let scores = stage.layout().is_scores();
        if !scores {
            requests.push(Request { stage, layers: None, want: Want::Gather { tokens: vec![0, 20, 99], dims: vec![3, 0, 31] } });
        }
        if scores || stage.is_headed() {
            requests.push(Request { stage, layers: None, want: Want::HeadStats });
        }
        let mut cache = executor.new_cache(64, 32).expect("a cache");
        let output = pollster::block_on(executor.step(&mut cache, &step(Tokens::Ids(&ids), &requests))).expect("a step");
        let headed = scores || stage.is_headed();
        let per = 2 + usize::from(!scores) + usize::from(headed);
        assert!(output.values.len() >= per, "{stage}");
        for group in output.values.chunks(per) {
            let Content::Full(full) = &group[0].content else { panic!("{stage}: the whole value comes first") };
            let Content::Stats(stats) = &group[1].content else { panic!("{stage}: then its statistics") };
            let expected = doppler::cpu::stats::stats(&full.data, full.width());
            assert_eq!(
                (stats.count, stats.nan, stats.inf, stats.zero),
                (expected.count, expected.nan, expected.inf, expected.zero),
                "{stage}"
            );
            assert_eq!((stats.max_abs, stats.min, stats.max), (expected.max_abs, expected.min, expected.max), "{stage}");
            assert_eq!((stats.max_row, stats.max_dim), (expected.max_row, expected.max_dim), "{stage}");
            assert!((stats.rms - expected.rms).abs() <= 1e-5 * expected.rms, "{stage}: {} and {}", stats.rms, expected.rms);
            if headed {
                let Content::HeadStats(heads) = &group[per - 1].content else { panic!("{stage}: then the heads") };
                let expected = doppler::cpu::stats::head_stats(&full.data, &full.shape, heads.len());
                let id = plan.find(group[0].at).expect("its node");
                assert_eq!(Some(heads.len()), plan.heads(id), "{stage}");
                for (found, expected) in heads.iter().zip(&expected) {
                    assert_eq!(
                        (found.count, found.max_abs, found.min, found.max),
                        (expected.count, expected.max_abs, expected.min, expected.max)
                    );
                    assert_eq!((found.max_row, found.max_dim, found.zero), (expected.max_row, expected.max_dim, expected.zero), "{stage}");
                    assert!((found.rms - expected.rms).abs() <= 1e-5 * expected.rms, "{stage}");
                }
            }
            if !scores {
                let Content::Gather(chosen) = &group[2].content else { panic!("{stage}: then the chosen elements") };
                assert_eq!(chosen.len(), 6);
                for (token, dim, value) in chosen {
                    assert_eq!(value.to_bits(), full.row(*token)[*dim].to_bits(), "{stage} {token} {dim}");
                }
            }
        }
    }
}

/// A prompt in chunks and a decode far past the windows give the oracle's logits, also after taking tokens back.
#[test]
fn windowed_caches_hold_what_their_layers_need() {
    let plan = pipeline::build(&windowed()).expect("a plan");
    let ids: Vec<u32> = (0..60).map(|i| i * 11 % 131).collect();
    let (mut exact, mut model) = oracles(&plan, Storage::F32);
    random_weights(&plan, Format::F16, 5, &mut [&mut exact, &mut model]);
    let whole = |len: usize| {
        let mut cache = exact.new_cache(64, 64).expect("a cache");
        pollster::block_on(exact.step(&mut cache, &step(Tokens::Ids(&ids[..len]), &[]))).expect("a step").logits.expect("logits")
    };
    let Some(executor) = executor(&plan, Storage::F32) else { return };
    let close = |found: &[f32], expected: &[f32], what: &str| {
        let error: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        let size: f64 = expected.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>().sqrt();
        assert!(error <= 3e-5 * size, "{what}: relative L2 {:.2e}", error / size);
    };
    let mut cache = executor.new_cache(40, 7).expect("a cache");
    let mut at = 0;
    for len in [7, 14, 21, 22, 23, 30, 33] {
        let output = pollster::block_on(executor.step(&mut cache, &step(Tokens::Ids(&ids[at..len]), &[]))).expect("a step");
        close(&output.logits.expect("logits"), &whole(len), &format!("{len} tokens"));
        at = len;
    }
    assert!(executor.truncate(&mut cache, 31));
    let output = pollster::block_on(executor.step(&mut cache, &step(Tokens::Ids(&ids[31..36]), &[]))).expect("a step");
    close(&output.logits.expect("logits"), &whole(36), "after taking two back");
    executor.grow(&mut cache, 64).expect("room");
    for len in [43, 50, 51, 58, 60] {
        let from = executor.len(&cache);
        let output = pollster::block_on(executor.step(&mut cache, &step(Tokens::Ids(&ids[from..len]), &[]))).expect("a step");
        close(&output.logits.expect("logits"), &whole(len), &format!("{len} tokens after growing"));
    }
    assert!(!executor.truncate(&mut cache, 20), "a window that has moved on cannot come back");
    assert!(executor.truncate(&mut cache, 0));
    assert!(executor.new_cache(0, 1).is_err());
}

/// Stages, layers and dims that a model lacks.
#[test]
fn unknown_requests_are_refused_by_name() {
    let plan = pipeline::build(&windowed()).expect("a plan");
    let Some(executor) = executor(&plan, Storage::F32) else { return };
    let mut cache = executor.new_cache(8, 8).expect("a cache");
    let mut refused = |request: Request| {
        pollster::block_on(executor.step(&mut cache, &step(Tokens::Ids(&[1]), &[request]))).expect_err("refused").to_string()
    };
    let text = refused(Request { stage: Stage::LayerOut, layers: Some(vec![3]), want: Want::Full });
    assert!(text.contains("layers 0 to 2"), "{text}");
    let text = refused(Request { stage: Stage::RouterLogits, layers: None, want: Want::Full });
    assert!(text.contains("router_logits"), "{text}");
    let text = refused(Request { stage: Stage::LayerOut, layers: None, want: Want::Gather { tokens: vec![0], dims: vec![40] } });
    assert!(text.contains("no dim 40"), "{text}");
}

/// What is noted of a step is what ran, whether anyone watches or not; being timed changes no bit.
#[test]
fn the_log_names_and_times_every_dispatch() {
    let plan = pipeline::build(&windowed()).expect("a plan");
    let ids: Vec<u32> = (0..21).map(|i| i * 7 % 131).collect();
    let Some(executor) = executor(&plan, Storage::F32) else { return };
    let run = |log: Log| {
        executor.set_log(log).expect("a log");
        let mut cache = executor.new_cache(64, 32).expect("a cache");
        let mut logits = Vec::new();
        for tokens in [Tokens::Ids(&ids), Tokens::Picked] {
            logits.push(pollster::block_on(executor.step(&mut cache, &step(tokens, &[]))).expect("a step").logits);
        }
        executor.set_log(Log::Off).expect("a log");
        let pick = Pick { valid: plan.vocab_size };
        (logits, executor.take_log(), executor.decode_dispatches(&cache, pick).expect("dispatches"))
    };
    let (plain, nothing, expected) = run(Log::Off);
    assert!(nothing.is_empty());
    for log in [Log::Names, Log::Times] {
        if log == Log::Times && !executor.gpu().caps.timestamps {
            continue;
        }
        let (logits, steps, _) = run(log);
        assert_eq!(logits, plain, "{log:?}");
        assert_eq!(steps.iter().map(|s| (s.first_token, s.tokens)).collect::<Vec<_>>(), [(0, 21), (21, 1)]);
        let names: Vec<String> = steps[1].dispatches.iter().map(|d| format!("{} {}", d.kernel, d.at)).collect();
        assert_eq!(names, expected, "{log:?}");
        let timed = steps.iter().flat_map(|s| &s.dispatches).filter(|d| d.time.is_some_and(|(start, _)| start > 0.0)).count();
        assert_eq!(timed, if log == Log::Times { steps.iter().map(|s| s.dispatches.len()).sum() } else { 0 });
    }
}

/// With observation off, a decode step is exactly these dispatches. `DOPPLER_BLESS=1` writes them anew.
#[test]
fn unobserved_dispatches_are_those_of_the_snapshot() {
    let golden = goldens().into_iter().find(|g| g.name == "gemma2").expect("a golden model");
    for (name, no_fusion) in [("fused", false), ("unfused", true)] {
        let options = GpuOptions { limits: Limits::Floor, no_subgroups: true, no_fusion, ..GpuOptions::default() };
        let Some(gpu) = adapter(options) else { return };
        let executor = golden.filled(GpuExecutor::new(gpu, golden.plan.clone(), Storage::F32).expect("an executor"));
        let mut cache = executor.new_cache(32, 8).expect("a cache");
        let pick = Pick { valid: golden.plan.vocab_size };
        let first = Step { pick: Some(pick), ..step(Tokens::Ids(&[2, 10, 7]), &[]) };
        pollster::block_on(executor.step(&mut cache, &first)).expect("a step");
        let found = executor.decode_dispatches(&cache, pick).expect("dispatches").join("\n") + "\n";
        let path = format!("{}/tests/data/dispatches.{name}.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("DOPPLER_BLESS").is_some() {
            std::fs::write(&path, &found).expect("a snapshot");
        }
        let expected = std::fs::read_to_string(&path).expect("a snapshot; DOPPLER_BLESS=1 writes it");
        assert_eq!(found, expected, "{name}: other dispatches than in {path}");
        // An observer that wants nothing is none: no dispatch is added, no value is kept.
        executor.set_log(Log::Names).expect("a log");
        pollster::block_on(executor.step(&mut cache, &Step { pick: Some(pick), read: Read::Nothing, ..step(Tokens::Picked, &[]) }))
            .expect("a step");
        let ran: Vec<String> = executor.take_log().iter().flat_map(|s| &s.dispatches).map(|d| format!("{} {}", d.kernel, d.at)).collect();
        assert_eq!(ran.join("\n") + "\n", expected, "{name}");
    }
}
