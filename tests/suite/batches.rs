//! Steps of several sequences together: each sequence's results are those that it has alone, to the bit, whoever its
//! neighbours are, whatever lengths they have, after forks and cut-backs.

use crate::support::*;
use doppler::cpu::CpuExecutor;
use doppler::exec::{Entry, Executor, Pick, Read, Rows, Sequences, Step, StepOutput, Storage, Tokens, Want};
use doppler::gpu::{GpuExecutor, GpuOptions, Limits};
use doppler::inference::pipeline;
use doppler::plan::{Plan, Stage};
use doppler::quant::Format;
use pollster::block_on;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// What a sequence does in a round.
#[derive(Debug, Clone)]
enum Act {
    Nothing,
    /// Reads so many tokens.
    Read(usize),
    /// Reads the token that it picked.
    Picked,
    /// Lets go of so many positions.
    Back(usize),
    /// Is replaced by a fork of another sequence.
    Fork(usize),
}

const CAPACITY: usize = 90;
const CHUNK: usize = 17;

/// What happened to a sequence, so that it can happen again.
#[derive(Debug, Clone)]
enum Event {
    Step(Vec<u32>, bool),
    Back(usize),
}

fn acts() -> impl Strategy<Value = Vec<Vec<Act>>> {
    let act = prop_oneof![
        1 => Just(Act::Nothing),
        3 => (1usize..=4).prop_map(Act::Read),
        2 => (5usize..=CHUNK).prop_map(Act::Read),
        4 => Just(Act::Picked),
        1 => (1usize..8).prop_map(Act::Back),
        1 => (0usize..5).prop_map(Act::Fork),
    ];
    proptest::collection::vec(proptest::collection::vec(act, 5), 4..8)
}

/// A model with windows that wrap, a layer without RoPE, and every pattern of fusion.
fn model() -> Plan {
    let mut config = config(40, 6, 3, 16, 57, 131);
    set_layers(&mut config, &[(Some(5), Some(0)), (None, None), (Some(12), Some(0)), (None, Some(0))]);
    pipeline::build(&config).expect("a plan")
}

fn step(tokens: Tokens<'_>, valid: usize, top: usize) -> Step<'_> {
    let read = if top > 0 { Read::Top(top) } else { Read::Logits };
    Step { tokens, rows: Rows::Last, pick: Some(Pick { valid }), read, long_rope: false, requests: &[] }
}

/// Logits and choices as bits.
fn bits(output: &StepOutput) -> (Option<u32>, Vec<u32>, Vec<(u32, u32)>) {
    let logits = output.logits.iter().flatten().map(|x| x.to_bits()).collect();
    (output.token, logits, output.top.iter().flatten().map(|(id, x)| (*id, x.to_bits())).collect())
}

/// The results of the last step of a sequence to which all of `events` happened, alone in `cache`.
fn alone<E: Executor>(executor: &E, cache: &mut E::Cache, events: &[Event], top: usize) -> Option<StepOutput> {
    assert!(executor.truncate(cache, 0));
    let mut last = None;
    for event in events {
        match event {
            Event::Step(ids, picked) => {
                let tokens = if *picked { Tokens::Picked } else { Tokens::Ids(ids) };
                last = Some(block_on(executor.step(cache, &step(tokens, executor.plan().vocab_size, top))).expect("a step"));
            }
            Event::Back(count) => {
                let len = executor.len(cache) - count;
                assert!(executor.truncate(cache, len), "what the other could");
            }
        }
    }
    last
}

/// Runs rounds of `acts` with all sequences of a round together, and holds each against itself alone.
fn check<E: Executor>(executor: &E, acts: &[Vec<Act>], top: usize) -> std::result::Result<(), TestCaseError> {
    let valid = executor.plan().vocab_size;
    let mut rng = Rng(7);
    let mut caches: Vec<E::Cache> = Vec::new();
    let mut events: Vec<Vec<Event>> = vec![Vec::new(); 5];
    let mut picked = [false; 5];
    let mut spare = executor.new_cache(CAPACITY, CHUNK).expect("a cache");
    for _ in 0..5 {
        caches.push(executor.new_cache(CAPACITY, CHUNK).expect("a cache"));
    }
    for round in acts {
        let mut ids: Vec<Option<(Vec<u32>, bool)>> = vec![None; 5];
        for (i, act) in round.iter().enumerate() {
            let room = CAPACITY - executor.len(&caches[i]);
            match act {
                Act::Nothing => {}
                Act::Read(count) if *count <= room => {
                    ids[i] = Some(((0..*count).map(|_| (rng.next().abs() * 130.0) as u32).collect(), false));
                }
                Act::Picked if picked[i] && room > 0 => ids[i] = Some((Vec::new(), true)),
                Act::Back(count) => {
                    let len = executor.len(&caches[i]);
                    if *count < len && executor.truncate(&mut caches[i], len - count) {
                        events[i].push(Event::Back(*count));
                        picked[i] = false;
                    }
                }
                Act::Fork(from) if *from != i => {
                    caches[i] = executor.fork(&caches[*from]).expect("a fork");
                    events[i] = events[*from].clone();
                    picked[i] = false;
                }
                _ => {}
            }
        }
        let steps = caches.iter_mut().zip(&ids).enumerate().filter_map(|(i, (cache, ids))| {
            let (ids, was_picked) = ids.as_ref()?;
            let tokens = if *was_picked { Tokens::Picked } else { Tokens::Ids(ids) };
            Some((i, Entry { cache, step: step(tokens, valid, top) }))
        });
        let (places, mut batch): (Vec<usize>, Vec<Entry<'_, E::Cache>>) = steps.unzip();
        let pending = executor.submit_batch(&mut batch).expect("a batch");
        prop_assert_eq!(pending.len(), places.len());
        for (i, pending) in places.into_iter().zip(pending) {
            let together = block_on(executor.finish(pending)).expect("results");
            let (list, was_picked) = ids[i].take().expect("a step");
            events[i].push(Event::Step(list, was_picked));
            picked[i] = together.token.is_some();
            let alone = alone(executor, &mut spare, &events[i], top).expect("a step");
            prop_assert_eq!(bits(&together), bits(&alone), "sequence {} after {:?}", i, &events[i]);
        }
    }
    Ok(())
}

fn run<E: Executor>(executor: &E, cases: u32) {
    let mut runner = TestRunner::new_with_rng(
        Config { cases, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    for top in [0, 5] {
        runner.run(&acts(), |acts| check(executor, &acts, top)).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn of_the_oracle_are_what_each_is_alone() {
    let plan = model();
    let mut executor = CpuExecutor::<f32>::new(plan.clone(), Storage::F32).expect("an executor");
    random_weights(&plan, Format::F32, 1, &mut [&mut executor]);
    run(&executor, 6);
}

#[test]
fn of_a_gpu_are_what_each_is_alone() {
    let plan = model();
    let settings = [
        (GpuOptions::default(), Storage::F16, Format::F16),
        (GpuOptions { batched: true, ..Default::default() }, Storage::F16, Format::BF16),
        (GpuOptions { serial: Some(true), ..Default::default() }, Storage::F16, Format::BF16),
        (GpuOptions { no_subgroups: true, ..Default::default() }, Storage::F32, Format::BF16),
        (GpuOptions { limits: Limits::Floor, no_fusion: true, ..Default::default() }, Storage::F32, Format::F32),
    ];
    for (options, storage, format) in settings {
        let Some(gpu) = adapter(options) else { return };
        let mut executor = GpuExecutor::new(gpu, plan.clone(), storage).expect("an executor");
        random_weights(&plan, format, 1, &mut [&mut executor]);
        run(&executor, 4);
    }
}

#[test]
fn of_delta_rules_are_what_each_is_alone() {
    let heads = doppler::model::DeltaHeads { keys: 2, values: 4, key_dim: 12, value_dim: 10 };
    let plan = pipeline::build(&crate::deltas::deltas(heads, 3)).expect("a plan");
    let mut oracle = CpuExecutor::<f32>::new(plan.clone(), Storage::F32).expect("an executor");
    random_weights(&plan, Format::F32, 1, &mut [&mut oracle]);
    run(&oracle, 3);
    for options in [GpuOptions::default(), GpuOptions { limits: Limits::Floor, no_fusion: true, ..Default::default() }] {
        let Some(gpu) = adapter(options) else { return };
        let mut executor = GpuExecutor::new(gpu, plan.clone(), Storage::F16).expect("an executor");
        random_weights(&plan, Format::BF16, 1, &mut [&mut executor]);
        run(&executor, 4);
    }
}

/// Packed rows, biases and a vocabulary of which few rows of logits fit a batch, by many sequences at once.
#[test]
fn of_many_sequences() {
    let mut config = config(256, 4, 2, 64, 512, 131);
    config.layers.truncate(1);
    let mut wide = config.clone();
    wide.vocab_size = 3_000_000;
    for (config, format, count) in [(&config, Format::Q4K, 70), (&config, Format::Q8_0, 9), (&wide, Format::F16, 5)] {
        let plan = pipeline::build(config).expect("a plan");
        let Some(gpu) = adapter(GpuOptions::default()) else { return };
        let mut executor = GpuExecutor::new(gpu, plan.clone(), Storage::F16).expect("an executor");
        random_weights(&plan, format, 1, &mut [&mut executor]);
        let prompts: Vec<Vec<u32>> = (0..count).map(|i| (0..i % 9 + 1).map(|j| ((i * 31 + j * 7) % 131) as u32).collect()).collect();
        let mut caches: Vec<_> = prompts.iter().map(|_| executor.new_cache(16, 9).expect("a cache")).collect();
        let ask = |tokens| step(tokens, plan.vocab_size, 3);
        let mut batch: Vec<_> = caches.iter_mut().zip(&prompts).map(|(cache, ids)| Entry { cache, step: ask(Tokens::Ids(ids)) }).collect();
        let first = executor.submit_batch(&mut batch).expect("a batch");
        let mut batch: Vec<_> = caches.iter_mut().map(|cache| Entry { cache, step: ask(Tokens::Picked) }).collect();
        // The second step runs ahead of the host, which has not read the first.
        let second = executor.submit_batch(&mut batch).expect("a batch");
        let finish = |pending| block_on(executor.finish(pending)).expect("results");
        let together: Vec<_> = first.into_iter().zip(second).map(|(first, second)| [finish(first), finish(second)]).collect();
        drop(caches);
        let mut cache = executor.new_cache(16, 9).expect("a cache");
        for (i, together) in together.into_iter().enumerate() {
            executor.truncate(&mut cache, 0);
            for (tokens, together) in [Tokens::Ids(&prompts[i]), Tokens::Picked].into_iter().zip(together) {
                let alone = block_on(executor.step(&mut cache, &ask(tokens))).expect("a step");
                assert_eq!(bits(&together), bits(&alone), "{format}, sequence {i}");
            }
        }
    }
}

/// A sequence that is watched is a neighbour too: it sees what it sees alone.
#[test]
fn of_a_watched_sequence_and_others() {
    let plan = model();
    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    let mut executor = GpuExecutor::new(gpu, plan.clone(), Storage::F32).expect("an executor");
    random_weights(&plan, Format::F32, 1, &mut [&mut executor]);
    let requests = [
        doppler::exec::Request { stage: Stage::FfnOut, layers: None, want: Want::Full },
        doppler::exec::Request { stage: Stage::AttnProbs, layers: Some(vec![1]), want: Want::Stats },
    ];
    let prompts: [&[u32]; 3] = [&[1, 2, 3], &[4, 5, 6, 7, 8, 9, 10], &[11]];
    let mut caches: Vec<_> = prompts.iter().map(|_| executor.new_cache(16, 9).expect("a cache")).collect();
    let ask = |ids, i| Step { requests: if i == 1 { &[] } else { &requests[..] }, ..step(Tokens::Ids(ids), plan.vocab_size, 0) };
    let mut batch: Vec<_> =
        caches.iter_mut().zip(prompts).enumerate().map(|(i, (cache, ids))| Entry { cache, step: ask(ids, i) }).collect();
    let pending = executor.submit_batch(&mut batch).expect("a batch");
    for (i, pending) in pending.into_iter().enumerate() {
        let together = block_on(executor.finish(pending)).expect("results");
        let mut cache = executor.new_cache(16, 9).expect("a cache");
        let alone = block_on(executor.step(&mut cache, &ask(prompts[i], i))).expect("a step");
        assert_eq!(together, alone, "sequence {i}");
    }
}

/// What sequences begin with is computed once; each goes on by itself, and leaves its room when it ends.
#[test]
fn forks_share_no_slot() {
    let plan = model();
    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    let mut executor = GpuExecutor::new(gpu, plan.clone(), Storage::F32).expect("an executor");
    random_weights(&plan, Format::F32, 1, &mut [&mut executor]);
    let mut first = executor.new_cache(40, 8).expect("a cache");
    let one = executor.caches_bytes();
    block_on(executor.step(&mut first, &step(Tokens::Ids(&[1, 2, 3, 4, 5]), plan.vocab_size, 0))).expect("a step");
    let mut fork = executor.fork(&first).expect("a fork");
    assert_eq!(executor.caches_bytes(), 2 * one);
    let a = block_on(executor.step(&mut fork, &step(Tokens::Ids(&[9]), plan.vocab_size, 0))).expect("a step");
    let b = block_on(executor.step(&mut first, &step(Tokens::Ids(&[8]), plan.vocab_size, 0))).expect("a step");
    let lone = |id| {
        let events = [Event::Step(vec![1, 2, 3, 4, 5], false), Event::Step(vec![id], false)];
        let mut cache = executor.new_cache(CAPACITY, CHUNK).expect("a cache");
        alone(&executor, &mut cache, &events, 0).expect("a step")
    };
    assert_eq!(bits(&a), bits(&lone(9)));
    assert_eq!(bits(&b), bits(&lone(8)));
    // A sequence in between cannot grow where it is: it moves, and goes on as before.
    drop(first);
    let mut first = executor.new_cache(40, 8).expect("a cache");
    block_on(executor.step(&mut first, &step(Tokens::Ids(&[1, 2, 3, 4, 5]), plan.vocab_size, 0))).expect("a step");
    executor.grow(&mut first, 80).expect("room");
    let b = block_on(executor.step(&mut first, &step(Tokens::Ids(&[8]), plan.vocab_size, 0))).expect("a step");
    assert_eq!(bits(&b), bits(&lone(8)));
    drop((first, fork));
    let last = executor.new_cache(40, 8).expect("a cache");
    assert_eq!(executor.caches_bytes(), one, "what is left by sequences that ended is let go");
    drop(last);
}

/// What a server does with one of its places.
#[derive(Debug, Clone)]
enum Turn {
    /// Ends what is there; a sequence of so many positions begins, in steps of so many tokens, with a prompt.
    Begin(usize, usize, usize),
    /// Goes on by a token.
    Go,
    /// Makes room for all that is reserved.
    Grow,
    /// Ends.
    End,
}

/// In reserved room sequences come, grow and go: no buffer is made for them and no step lowered anew, and each has the bits
/// that it has alone.
#[test]
fn of_reserved_sequences_make_nothing_anew() {
    const PLACES: usize = 4;
    let reserved = Sequences { count: PLACES + 1, capacity: 40, chunk: 8 };
    let plan = model();
    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    let mut executor = GpuExecutor::new(gpu, plan.clone(), Storage::F32).expect("an executor");
    random_weights(&plan, Format::F32, 1, &mut [&mut executor]);
    executor.reserve(reserved).expect("room");
    let valid = plan.vocab_size;
    let run = |caches: &mut [Option<(doppler::gpu::GpuCache, Vec<Event>)>], ids: &[Option<Vec<u32>>]| {
        let entries = caches.iter_mut().zip(ids).filter_map(|(place, ids)| {
            let (cache, _) = place.as_mut()?;
            Some(Entry { cache, step: step(Tokens::Ids(ids.as_deref()?), valid, 0) })
        });
        let pending = executor.submit_batch(&mut entries.collect::<Vec<_>>()).expect("a batch");
        pending.into_iter().map(|pending| block_on(executor.finish(pending)).expect("results")).collect::<Vec<_>>()
    };
    // Every program that can be needed, once: a prompt's, and those of one to four rows and of more, together and alone.
    let mut places: Vec<_> = (0..PLACES).map(|_| Some((executor.new_cache(40, 8).expect("a cache"), Vec::new()))).collect();
    for (count, tokens) in [(1, 8), (1, 1), (1, 4), (2, 1), (4, 4)] {
        let ids: Vec<_> = (0..PLACES).map(|i| (i < count).then(|| vec![1; tokens])).collect();
        run(&mut places, &ids);
    }
    places.iter_mut().for_each(|place| *place = None);
    let (programs, bytes) = (executor.programs_made(), executor.caches_bytes());
    let mut spare = executor.new_cache(40, 8).expect("a cache");
    let turn = prop_oneof![
        2 => (9usize..=40, 5usize..=8, 1usize..=8).prop_map(|(capacity, chunk, prompt)| Turn::Begin(capacity, chunk, prompt.min(chunk))),
        4 => Just(Turn::Go),
        1 => Just(Turn::Grow),
        1 => Just(Turn::End),
    ];
    let rounds = proptest::collection::vec(proptest::collection::vec(turn, PLACES), 3..7);
    let config = Config { cases: 6, failure_persistence: None, ..Config::default() };
    let rng = proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let spare = std::cell::RefCell::new(&mut spare);
    let checked = TestRunner::new_with_rng(config, rng).run(&rounds, |rounds| {
        let mut rng = Rng(3);
        let mut places: Vec<Option<(doppler::gpu::GpuCache, Vec<Event>)>> = (0..PLACES).map(|_| None).collect();
        for round in rounds {
            let mut ids: Vec<Option<Vec<u32>>> = vec![None; PLACES];
            for (i, turn) in round.iter().enumerate() {
                let room = places[i].as_ref().map_or(0, |(cache, _)| executor.capacity(cache) - executor.len(cache));
                match turn {
                    Turn::Begin(capacity, chunk, prompt) => {
                        places[i] = None;
                        places[i] = Some((executor.new_cache(*capacity, *chunk).expect("a cache"), Vec::new()));
                        ids[i] = Some((0..*prompt).map(|_| (rng.next().abs() * 130.0) as u32).collect());
                    }
                    Turn::Go if room > 0 => ids[i] = Some(vec![(rng.next().abs() * 130.0) as u32]),
                    Turn::Grow => places[i].iter_mut().for_each(|(cache, _)| executor.grow(cache, 40).expect("room")),
                    Turn::End => places[i] = None,
                    Turn::Go => {}
                }
            }
            let mut found = run(&mut places, &ids).into_iter();
            for (place, ids) in places.iter_mut().zip(ids) {
                let (Some((_, events)), Some(ids)) = (place, ids) else { continue };
                events.push(Event::Step(ids, false));
                let together = found.next().expect("a result");
                let alone = alone(&executor, *spare.borrow_mut(), events, 0).expect("a step");
                prop_assert_eq!(bits(&together), bits(&alone), "after {:?}", events);
            }
        }
        prop_assert_eq!((executor.programs_made(), executor.caches_bytes()), (programs, bytes));
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
}

/// Without a reservation, the room of several sequences grows ahead of them, so that it is made anew a few times only.
#[test]
fn the_room_of_many_sequences_grows_in_few_steps() {
    let plan = model();
    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    let mut executor = GpuExecutor::new(gpu, plan.clone(), Storage::F32).expect("an executor");
    random_weights(&plan, Format::F32, 1, &mut [&mut executor]);
    let (mut caches, mut sizes) = (Vec::new(), std::collections::BTreeSet::new());
    for i in 0..24 {
        caches.push(executor.new_cache(20, 4).expect("a cache"));
        block_on(executor.step(&mut caches[i], &step(Tokens::Ids(&[1]), plan.vocab_size, 0))).expect("a step");
        sizes.insert(executor.caches_bytes());
    }
    assert!(sizes.len() < 12 && executor.programs_made() < 12, "{sizes:?}, {} programs", executor.programs_made());
    drop(caches);
    let one = executor.new_cache(20, 4).expect("a cache");
    assert_eq!(executor.caches_bytes(), *sizes.first().expect("a size"), "what is left by sequences that ended is let go");
    drop(one);
    // What cannot be made is refused, and what there was stays.
    let endless = Sequences { count: 1 << 40, capacity: 1 << 20, chunk: 8 };
    assert_eq!(executor.reserve(endless).map_err(|e| e.kind), Err(doppler::Kind::Memory));
    assert!(executor.reserve(Sequences { count: 1, capacity: 0, chunk: 1 }).is_err());
    let mut cache = executor.new_cache(20, 4).expect("a cache");
    block_on(executor.step(&mut cache, &step(Tokens::Ids(&[1]), plan.vocab_size, 0))).expect("a step");
}
