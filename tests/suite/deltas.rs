//! Gated delta rules from outside: random models at awkward shapes, and what is kept of a sequence: over chunks and single tokens,
//! in forks, after a cut, where sequences share steps, and in sessions of several turns.

use crate::gpu::{check, last_logits, settings, two};
use crate::support::*;
use doppler::exec::{Entry, Executor, Read, Rows, Step, Storage, Tokens};
use doppler::gpu::{GpuCache, GpuExecutor, GpuOptions};
use doppler::inference::pipeline;
use doppler::inference::session::{GenerateOptions, Session, SessionOptions};
use doppler::model::*;
use doppler::quant::Format;
use pollster::block_on;
use std::ops::ControlFlow;

/// A model whose first and last layers have delta rules, and the one between them attention with a gate.
pub fn deltas(heads: DeltaHeads, taps: usize) -> ModelConfig {
    let mut config = config(40, 6, 3, 16, 57, 131);
    set_layers(&mut config, &[(None, Some(0)), (None, Some(0)), (None, Some(0))]);
    let scale = (heads.key_dim as f64).powf(-0.5);
    let mixer = Mixer::GatedDelta(GatedDeltaConfig { heads, taps, activation: Activation::Silu, unit_eps: 1e-6, scale });
    config.layers[0].mixer = mixer.clone();
    config.layers[2].mixer = mixer;
    config.attentions_mut().for_each(|attention| attention.gated = true);
    config
}

const HEADS: DeltaHeads = DeltaHeads { keys: 2, values: 4, key_dim: 12, value_dim: 10 };

#[test]
fn at_awkward_shapes() {
    let other = [
        (HEADS, 4),
        (DeltaHeads { keys: 3, values: 3, key_dim: 40, value_dim: 6 }, 1),
        (DeltaHeads { keys: 1, values: 5, key_dim: 130, value_dim: 4 }, 3),
    ];
    for (heads, taps) in other {
        let config = deltas(heads, taps);
        let name = format!("{heads:?}, {taps} taps");
        for (tokens, storage) in [(1, Storage::F16), (3, Storage::F32), (21, Storage::F16), (21, Storage::F32)] {
            check(&name, &config, tokens, storage, Format::F32, &two());
        }
    }
    check("delta rules", &deltas(HEADS, 4), 9, Storage::F16, Format::BF16, &settings());
}

fn step<'a>(ids: &'a [u32]) -> Step<'a> {
    Step { tokens: Tokens::Ids(ids), rows: Rows::Last, pick: None, read: Read::Logits, long_rope: false, requests: &[] }
}

fn read(executor: &GpuExecutor, cache: &mut GpuCache, ids: &[u32]) -> Vec<f32> {
    block_on(executor.step(cache, &step(ids))).expect("a step").logits.expect("logits")
}

fn near(a: &[f32], b: &[f32], tolerance: f32) {
    let size = b.iter().map(|x| x * x).sum::<f32>().sqrt();
    let off = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    assert!(off <= tolerance * size, "{off} of {size}");
}

#[test]
fn matrices_continue_and_come_back() {
    let plan = pipeline::build(&deltas(HEADS, 4)).expect("a plan");
    for storage in [Storage::F32, Storage::F16] {
        let Some(gpu) = adapter(GpuOptions::default()) else { return };
        let mut executor = GpuExecutor::new(gpu, plan.clone(), storage).expect("an executor");
        let (mut exact, mut model) = oracles(&plan, storage);
        random_weights(&plan, Format::F32, 1, &mut [&mut exact, &mut model, &mut executor]);
        let (_, lines) = beyond_floor(&last_logits(&exact), &last_logits(&model), &last_logits(&executor), 3.0);
        assert!(lines.is_empty(), "{storage:?}: {lines:?}");

        let ids: Vec<u32> = (0..60).map(|i| i * 37 % 131).collect();
        let tolerance = if storage == Storage::F32 { 1e-5 } else { 1e-2 };
        let mut cache = executor.new_cache(64, 8).expect("a cache");
        ids[..24].chunks(8).for_each(|chunk| drop(read(&executor, &mut cache, chunk)));
        let mut fork = executor.fork(&cache).expect("a fork");
        let after = read(&executor, &mut cache, &ids[24..25]);
        assert_eq!(after, read(&executor, &mut fork, &ids[24..25]), "a fork has the matrices");
        // A step that ran ahead is taken back, to the bit; what is two steps back is not there any more.
        drop(read(&executor, &mut cache, &[7]));
        assert!(executor.truncate(&mut cache, 25));
        let next = read(&executor, &mut cache, &ids[25..26]);
        assert_eq!(next, read(&executor, &mut fork, &ids[25..26]), "as if it had not been read");
        assert!(!executor.truncate(&mut cache, 24) && executor.len(&cache) == 26, "nothing was done");
        assert_eq!(read(&executor, &mut cache, &ids[26..27]), read(&executor, &mut fork, &ids[26..27]));
        // Within the last chunk positions are taken again from the matrices before it.
        let mut whole = executor.new_cache(64, 8).expect("a cache");
        [&ids[..8], &ids[8..13]].into_iter().for_each(|chunk| drop(read(&executor, &mut whole, chunk)));
        let expected = read(&executor, &mut whole, &ids[13..20]);
        let mut cut = executor.new_cache(64, 8).expect("a cache");
        ids[..16].chunks(8).for_each(|chunk| drop(read(&executor, &mut cut, chunk)));
        assert!(executor.truncate(&mut cut, 13));
        near(&read(&executor, &mut cut, &ids[13..20]), &expected, tolerance);
        assert_eq!(read(&executor, &mut cut, &ids[20..21]).len(), 131);
        // From the beginning, in a cache that held another sequence; and in single tokens.
        assert!(executor.truncate(&mut cut, 0));
        let mut again = Vec::new();
        [&ids[..8], &ids[8..13], &ids[13..20]].into_iter().for_each(|chunk| again = read(&executor, &mut cut, chunk));
        assert_eq!(again, expected, "as in a new cache");
        let mut single = executor.new_cache(64, 8).expect("a cache");
        let mut last = Vec::new();
        ids[..20].chunks(1).for_each(|chunk| last = read(&executor, &mut single, chunk));
        near(&last, &expected, tolerance);
        // Sequences that grow keep them.
        executor.grow(&mut single, 200).expect("room");
        assert_eq!(read(&executor, &mut single, &ids[20..21]), {
            let mut other = executor.new_cache(64, 8).expect("a cache");
            ids[..20].chunks(1).for_each(|chunk| drop(read(&executor, &mut other, chunk)));
            read(&executor, &mut other, &ids[20..21])
        });
        // Steps of two sequences, one of them of several tokens.
        let (mut a, mut b) = (executor.fork(&cut).expect("a fork"), executor.fork(&single).expect("a fork"));
        let mut batch = [Entry { cache: &mut a, step: step(&ids[20..23]) }, Entry { cache: &mut b, step: step(&ids[30..31]) }];
        let pending = executor.submit_batch(&mut batch).expect("a step of two");
        let together: Vec<Vec<f32>> =
            pending.into_iter().map(|one| block_on(executor.finish(one)).expect("its results").logits.expect("logits")).collect();
        assert_eq!(together, [read(&executor, &mut cut, &ids[20..23]), read(&executor, &mut single, &ids[30..31])]);
    }
}

/// What a session generates in turns is what each turn gives in a new one.
fn turns<E: Executor>(executor: &E) -> Vec<Vec<u32>> {
    let options = SessionOptions { capacity: 32, chunk: 8, valid_vocab: 131, pad: None };
    let prompts: [Vec<u32>; 3] = [(3..22).collect(), vec![90, 91], (40..53).collect()];
    let generate = |session: &mut Session<'_, E>, prompt: &[u32], most: usize, stop: &[u32]| {
        let options = GenerateOptions { max_tokens: most, stop_ids: stop, ..GenerateOptions::default() };
        block_on(session.generate(prompt, &options, None, &mut |_| ControlFlow::Continue(()))).expect("tokens").ids
    };
    let mut session = Session::new(executor, options).expect("a session");
    let mut found = Vec::new();
    for prompt in &prompts {
        let mut fresh = Session::new(executor, options).expect("a session");
        let before: Vec<u32> = session.ids().iter().chain(prompt).copied().collect();
        // It ends at a token in its middle, after which a step runs ahead.
        let expected = generate(&mut fresh, &before, 9, &[]);
        let stop = expected[4];
        let ids = generate(&mut session, prompt, 9, &[stop]);
        let end = expected.iter().position(|id| *id == stop).expect("the stop") + 1;
        assert_eq!(ids, expected[..end]);
        assert_eq!(session.cached(), session.ids().len() - 1, "nothing is read again");
        found.push(ids);
    }
    // Another beginning: what is not there any more is read again.
    session.set_prompt(&(3..12).collect::<Vec<u32>>()).expect("a prompt");
    let mut fresh = Session::new(executor, options).expect("a session");
    let expected = generate(&mut fresh, &(3..12).collect::<Vec<u32>>(), 5, &[]);
    assert_eq!(generate(&mut session, &[], 5, &[]), expected);
    found
}

#[test]
fn sessions_of_several_turns() {
    let plan = pipeline::build(&deltas(HEADS, 4)).expect("a plan");
    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    let mut executor = GpuExecutor::new(gpu, plan.clone(), Storage::F32).expect("an executor");
    let (mut exact, mut model) = oracles(&plan, Storage::F32);
    random_weights(&plan, Format::F32, 1, &mut [&mut exact, &mut model, &mut executor]);
    assert_eq!(turns(&executor), turns(&model));
}
