//! Batches over the oracle: what a job gets is what it gets alone.

use super::*;
use crate::device::Engine;
use crate::{device, load, model};
use doppler::config::RuntimeConfig;
use std::collections::BTreeMap;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const ROOM: Sequences = Sequences { count: 5, capacity: 40, chunk: 6 };

fn engine() -> (Engine, GenerationRules, usize) {
    of_model(model::DEMO)
}

fn of_model(name: &str) -> (Engine, GenerationRules, usize) {
    let mut model = model::open(name, false).unwrap();
    model.limit(Some(ROOM.capacity)).unwrap();
    let inference = RuntimeConfig::from_patch(serde_json::json!({})).unwrap().runtime.inference;
    let prepared = load::prepare_for(&model, device::Device::Cpu, &inference, ROOM).unwrap();
    let vocab = model.plan.vocab_size;
    (prepared.load(false).unwrap().0, model.resolved.generation, vocab)
}

/// A job of its own kind.
fn job(number: usize, events: &UnboundedSender<(usize, Event)>, rules: &GenerationRules) -> Job {
    let mut rules = rules.clone();
    let mut sampling = SamplingConfig { seed: number as u64, ..SamplingConfig::default() };
    match number % 4 {
        1 => (sampling.temperature, sampling.top_k) = (1.0, 9),
        2 => sampling.temperature = 0.9,
        3 => rules.presence_penalty = 1.5,
        _ => {}
    }
    let client = Client { events: events.clone(), number, done: Arc::default() };
    let prompt = (0..3 + 5 * number).map(|i| ((i * 37 + number * 101) % 1500) as u32).collect();
    Job {
        prompt,
        max_tokens: 3 + number,
        sampling,
        rules,
        stop_ids: Vec::new(),
        hash: true,
        alternatives: (number == 2).then_some(3),
        client,
    }
}

/// All events so far, by job.
fn heard(events: &mut UnboundedReceiver<(usize, Event)>) -> BTreeMap<usize, Vec<Event>> {
    let mut found: BTreeMap<usize, Vec<Event>> = BTreeMap::new();
    while let Ok((number, event)) = events.try_recv() {
        found.entry(number).or_default().push(event);
    }
    found
}

#[test]
fn a_job_gets_what_it_gets_alone() {
    let (engine, rules, vocab) = engine();
    let (to, mut events) = unbounded_channel();
    let alone = |events: &mut UnboundedReceiver<_>, number| {
        let mut batch = Batch::new(ROOM, vocab, true);
        batch.begin(&engine, job(number, &to, &rules));
        while !batch.is_empty() {
            batch.step(&engine).unwrap();
        }
        heard(events).remove(&number).unwrap()
    };
    let expected: Vec<Vec<Event>> = (0..5).map(|number| alone(&mut events, number)).collect();
    for (number, events) in expected.iter().enumerate() {
        assert_eq!(events.len(), 1 + 3 + number + 1, "{events:?}");
        assert_eq!(events.last(), Some(&Event::End(StopReason::MaxTokens)));
    }
    // They come one after the other while others are under way; the second one's client leaves.
    let mut batch = Batch::new(ROOM, vocab, true);
    let left = Client { number: 9, ..job(1, &to, &rules).client };
    batch.begin(&engine, Job { client: left.clone(), max_tokens: 30, ..job(1, &to, &rules) });
    for number in [4, 0, 3, 1, 2] {
        batch.step(&engine).unwrap();
        if number == 2 {
            left.done.store(true, Ordering::Relaxed);
            batch.step(&engine).unwrap();
        }
        batch.begin(&engine, job(number, &to, &rules));
    }
    while !batch.is_empty() {
        batch.step(&engine).unwrap();
    }
    let mut found = heard(&mut events);
    let of_left = found.remove(&9).unwrap();
    assert!(
        !of_left.is_empty() && of_left.iter().all(|event| matches!(event, Event::Prompt { .. } | Event::Token(_))),
        "it ended without a word: {of_left:?}"
    );
    assert_eq!(found.into_values().collect::<Vec<_>>(), expected);
}

#[test]
fn prompts_take_turns_and_tokens_go_on() {
    let (engine, rules, vocab) = engine();
    let (to, mut events) = unbounded_channel();
    let mut batch = Batch::new(ROOM, vocab, true);
    let of = |number: usize, prompt: usize, max_tokens| {
        let job = job(0, &to, &rules);
        Job { prompt: vec![7; prompt], max_tokens, client: Client { number, ..job.client.clone() }, ..job }
    };
    batch.begin(&engine, of(0, 2, 20));
    batch.step(&engine).unwrap();
    // Prompts of three chunks, and of one.
    batch.begin(&engine, of(1, 18, 1));
    batch.begin(&engine, of(2, 6, 1));
    let mut ends = Vec::new();
    for step in 1.. {
        batch.step(&engine).unwrap();
        let found = heard(&mut events);
        assert!(found.get(&0).is_some_and(|events| !events.is_empty()), "a prompt stopped the one that decodes");
        ends.extend(found.keys().filter(|number| **number > 0).map(|number| (*number, step)));
        if ends.len() == 2 {
            break;
        }
    }
    // The short one has its turn after the first chunk of the long one.
    assert_eq!(ends, [(2, 2), (1, 4)]);
    // What cannot be is said, and nobody else notices.
    batch.begin(&engine, of(3, 41, 1));
    batch.begin(&engine, Job { prompt: vec![u32::MAX], ..of(4, 1, 1) });
    batch.begin(&engine, Job { sampling: SamplingConfig { top_p: 9.0, ..SamplingConfig::default() }, ..of(5, 1, 1) });
    let found = heard(&mut events);
    assert!([3, 4, 5].iter().all(|number| matches!(found[number][..], [Event::Failed(_)])), "{found:?}");
    assert_eq!(batch.load().0, 1);
    for number in 6..10 {
        assert!(!batch.is_full());
        batch.begin(&engine, of(number, 1, 1));
    }
    assert!(batch.is_full());
}

#[test]
fn what_prompts_have_in_common_is_read_once() {
    // Windows, too: what they have overwritten is read again.
    for name in [model::DEMO, concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/gemma2")] {
        let (engine, rules, vocab) = of_model(name);
        let room = Sequences { count: 3, ..ROOM };
        let (to, mut events) = unbounded_channel();
        let of = |number: usize, begins: &[u32], prompt: usize, max_tokens| {
            let job = job(4 * number, &to, &rules);
            let rest = (0..prompt - begins.len()).map(|i| ((i * 31 + number * 7) % vocab) as u32);
            let prompt = begins.iter().copied().chain(rest).collect();
            let sampling = SamplingConfig { temperature: 0.8, ..job.sampling.clone() };
            Job { prompt, sampling, max_tokens, client: Client { number, ..job.client.clone() }, ..job }
        };
        let begins: Vec<u32> = (0..13).map(|i| (i * 17 + 5) % 250).collect();
        // One that is under way, one that ended, one that is all of it, one that has nothing in common, a short one;
        // and three that ask the same.
        let twin = |number: usize| {
            let same = of(9, &begins, 20, 4);
            Job {
                sampling: SamplingConfig { seed: number as u64, ..same.sampling.clone() },
                client: Client { number, ..same.client.clone() },
                ..same
            }
        };
        let jobs = |number: usize| match number {
            0 => of(0, &begins, 16, 9),
            1 => of(1, &begins, 30, 6),
            2 => of(2, &begins[..12], 12, 5),
            3 => of(3, &[], 9, 3),
            4 => of(4, &begins[..5], 5, 3),
            _ => twin(number),
        };
        let mut run = |shares: bool| {
            let mut batch = Batch::new(room, vocab, shares);
            for number in 0..8 {
                while batch.is_full() || (number == 5 && !batch.is_empty()) {
                    batch.step(&engine).unwrap();
                }
                batch.begin(&engine, jobs(number));
                if number < 5 {
                    (0..4).for_each(|_| batch.step(&engine).unwrap());
                }
            }
            while !batch.is_empty() {
                batch.step(&engine).unwrap();
                assert!(batch.running.iter().filter(|of| of.cache.is_some()).count() + batch.ended.len() <= room.count);
            }
            let mut cached = Vec::new();
            let mut found = heard(&mut events);
            for events in found.values_mut() {
                events.retain(|event| match event {
                    Event::Prompt { cached: count, .. } => {
                        cached.push(*count);
                        false
                    }
                    _ => true,
                });
            }
            (found, cached)
        };
        let (alone, none) = run(false);
        let (shared, cached) = run(true);
        assert_eq!((alone.len(), none), (8, vec![0; 8]));
        assert_eq!(shared, alone, "{name}");
        assert_eq!(cached, [0, 12, 6, 0, 0, 12, 20, 20], "{name}");
    }
}

#[test]
fn likelihoods_are_those_of_the_softmax() {
    let row = [0.1f32, 0.2, 0.3, 0.4, 99.0].map(f32::ln);
    let found = likelihood(&row, 4, 1, 2);
    assert!((found.chosen.exp() - 0.2).abs() < 1e-6);
    assert_eq!(found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 2]);
    assert!((found.top[0].1.exp() - 0.4).abs() < 1e-6);
    assert_eq!(likelihood(&[1.0, 1.0], 9, 0, 9).top.len(), 2);
    assert!(likelihood(&[1.0, f32::NEG_INFINITY], 2, 1, 0).chosen.is_infinite());
}
