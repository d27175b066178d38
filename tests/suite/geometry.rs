//! What the GPU executor allocates is what `geometry` says, to the byte, and so what the forecast adds up.

use crate::golden::goldens;
use crate::support::*;
use doppler::exec::{Executor, Pick, Read, Rows, Sequences, Step, Storage, Tokens};
use doppler::forecast::forecast;
use doppler::geometry::{geometry, weight_bytes};
use doppler::gpu::{Gpu, GpuCache, GpuExecutor, GpuOptions};
use doppler::inference::pipeline;
use doppler::model::*;
use doppler::plan::Plan;
use doppler::quant::Format;
use pollster::block_on;

/// Holds the buffers of `cache` against the geometry.
fn check(name: &str, executor: &GpuExecutor, cache: &GpuCache, capacity: usize, chunk: usize) {
    let expected = geometry(executor.plan(), executor.storage(), Sequences::one(capacity, chunk));
    let parts = executor.plan().states.iter().map(|state| state.kind.parts().len() as u64).zip(&expected.caches);
    let sum = |bytes: &[u64]| bytes.iter().sum::<u64>();
    let expected = [
        ("kv", parts.map(|(parts, ring)| parts * ring.bytes).sum()),
        ("values", sum(&expected.values.buffers) + expected.expert_order),
        ("decode", sum(&expected.decode.buffers) + expected.partials),
        ("ropes", sum(&expected.ropes)),
        ("step", expected.step()),
        ("ids", expected.room.ids()),
    ];
    assert_eq!(executor.cache_bytes(cache), expected, "{name}: capacity {capacity}, chunk {chunk}");
}

/// A step of `tokens` tokens that picks the next.
fn run(executor: &GpuExecutor, cache: &mut GpuCache, tokens: Tokens<'_>) {
    let pick = Some(Pick { valid: executor.plan().vocab_size });
    let step = Step { tokens, rows: Rows::Last, pick, read: Read::Nothing, long_rope: false, requests: &[] };
    block_on(executor.step(cache, &step)).expect("a step");
}

/// Caches of several sizes, before and after steps and growing; the whole against the forecast.
fn check_all(name: &str, gpu: Gpu, plan: &Plan, storage: Storage, fill: impl FnOnce(&mut GpuExecutor) -> Vec<Format>) {
    let mut executor = GpuExecutor::new(gpu, plan.clone(), storage).expect("an executor");
    let formats = fill(&mut executor);
    let weights: u64 = plan.weights.iter().zip(&formats).map(|(slot, format)| weight_bytes(slot, *format)).sum();
    assert_eq!(executor.weight_bytes(), weights, "{name}");
    for (capacity, chunk) in [(40, 7), (9, 64), (3, 1)] {
        let mut cache = executor.new_cache(capacity, chunk).expect("a cache");
        check(name, &executor, &cache, capacity, chunk);
        let total = executor.cache_bytes(&cache).iter().map(|(_, bytes)| bytes).sum::<u64>() + weights;
        assert_eq!(forecast(plan, &formats, Sequences::one(capacity, chunk), storage).total(), total, "{name}");
        let ids: Vec<u32> = (0..chunk.min(capacity - 1) as u32).collect();
        run(&executor, &mut cache, Tokens::Ids(&ids));
        run(&executor, &mut cache, Tokens::Picked);
        check(name, &executor, &cache, capacity, chunk);
    }
    // Of several sequences, as the device has them.
    let sequences = Sequences { count: 3, capacity: 20, chunk: 6 };
    executor.reserve(sequences).expect("room");
    let caches: Vec<_> = (0..3).map(|i| executor.new_cache(20 - i, 6).expect("a cache")).collect();
    let [_, shared @ ..] = executor.cache_bytes(&caches[0]);
    let total = executor.caches_bytes() + shared.iter().map(|(_, bytes)| bytes).sum::<u64>() + weights;
    assert_eq!(forecast(plan, &formats, sequences, storage).total(), total, "{name}");
    drop(caches);
    executor.reserve(Sequences { count: 0, ..sequences }).expect("room");
    let mut cache = executor.new_cache(5, 4).expect("a cache");
    executor.grow(&mut cache, 33).expect("room");
    // The chunk stays that of the cache.
    check(name, &executor, &cache, 33, 4);
}

#[test]
fn of_golden_models() {
    for golden in goldens() {
        let Some(gpu) = adapter(GpuOptions::default()) else { return };
        check_all(&golden.name, gpu, &golden.plan, Storage::F32, |executor| golden.fill(executor));
    }
}

#[test]
fn of_random_models() {
    let mut longrope = config(40, 6, 3, 16, 57, 131);
    set_layers(&mut longrope, &[(Some(5), Some(0)), (None, None), (Some(12), Some(0))]);
    longrope.ropes[0].rotary_dim = 12;
    longrope.ropes[0].scaling =
        RopeScaling::LongRope { short_factor: vec![1.0; 6], long_factor: vec![2.0; 6], attention_factor: 1.0, original_max_positions: 16 };
    // A vocabulary of which two rows of logits fill a batch.
    let mut wide = config(24, 2, 1, 16, 40, 3_000_000);
    wide.tie_word_embeddings = true;
    for (name, config) in [("longrope", longrope), ("wide", wide)] {
        let plan = pipeline::build(&config).expect("a plan");
        for (storage, format) in [(Storage::F32, Format::BF16), (Storage::F16, Format::F16)] {
            for options in [GpuOptions::default(), GpuOptions { max_binding: Some(40_000_000), ..Default::default() }] {
                let Some(gpu) = adapter(options) else { return };
                check_all(name, gpu, &plan, storage, |executor| {
                    random_weights(&plan, format, 1, &mut [executor]);
                    vec![format; plan.weights.len()]
                });
            }
        }
    }
}
