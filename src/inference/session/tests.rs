//! Sessions over a made-up executor whose logits are a function of the whole sequence and of nothing else, so that
//! every path must give the answer of one plain loop.

use super::*;
use crate::error::{About, Kind};
use crate::exec::{Content, Observed, Pick, Read, Request, Rows, Step, StepInfo, StepOutput, Storage, Tokens, Want};
use crate::inference::sampling::{Sampler, TokenMask};
use crate::model::{RopeConfig, RopeScaling};
use crate::plan::builder::Builder;
use crate::plan::{At, Op, Plan, Stage, ValueId};
use crate::tensor::Tensor;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use xxhash_rust::xxh64::xxh64;

const VOCAB: usize = 50;

/// One submitted step: token count (0 for a picked one), rows, what is read, the long list, steps under way.
type Submitted = (usize, Rows, Read, bool, usize);

struct Fake {
    plan: Plan,
    /// Positions that can be taken back at most; not counted for an empty cache.
    slack: usize,
    log: RefCell<Vec<Submitted>>,
    under_way: Cell<usize>,
    finished: Cell<usize>,
    fail_at: Cell<Option<usize>>,
    fail_with: Cell<Kind>,
    nan_from: usize,
}

struct Cache {
    entries: Vec<(u32, bool)>,
    capacity: usize,
    chunk: usize,
    picked: Option<u32>,
}

impl Fake {
    fn new(max_positions: usize, longrope: Option<usize>) -> Self {
        let scaling = longrope.map_or(RopeScaling::None, |original_max_positions| RopeScaling::LongRope {
            short_factor: vec![1.0],
            long_factor: vec![2.0],
            original_max_positions,
            attention_factor: 1.0,
        });
        let ropes = vec![RopeConfig { scaling, ..RopeConfig::plain(1e4, 2) }];
        let builder = Builder::new(ropes, 0, VOCAB, max_positions);
        let mut plan = builder.finish().unwrap();
        for stage in [Stage::EmbedOut, Stage::FinalNorm, Stage::LogitsFinal] {
            let inputs = plan.nodes.len().checked_sub(1).map(ValueId).into_iter().collect();
            plan.nodes.push(crate::plan::Node {
                op: Op::Same,
                inputs,
                at: At { stage, layer: None },
                width: VOCAB,
                interventions: Vec::new(),
            });
        }
        plan.head = plan.find(At { stage: Stage::FinalNorm, layer: None });
        Self {
            plan,
            slack: usize::MAX,
            log: RefCell::default(),
            under_way: Cell::new(0),
            finished: Cell::new(0),
            fail_at: Cell::new(None),
            fail_with: Cell::new(Kind::Device),
            nan_from: usize::MAX,
        }
    }
    /// The row after `entries`: small multiples of a quarter, so that ties are common.
    fn logits(&self, entries: &[(u32, bool)]) -> Vec<f32> {
        if entries.len() >= self.nan_from {
            return vec![f32::NAN; VOCAB];
        }
        let bytes: Vec<u8> = entries.iter().flat_map(|(id, long)| [*id as u8, u8::from(*long)]).collect();
        (0..VOCAB).map(|i| (xxh64(&bytes, i as u64) % 64) as f32 / 4.0 - 6.0).collect()
    }
}

fn best(logits: &[f32], pick: Pick, k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    all.retain(|(id, x)| x.is_finite() && (*id as usize) < pick.valid);
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(k);
    all
}

impl Executor for Fake {
    type Cache = Cache;
    type Pending = (usize, StepOutput);

    fn plan(&self) -> &Plan {
        &self.plan
    }
    fn describe(&self) -> String {
        "fake".into()
    }
    fn storage(&self) -> Storage {
        Storage::F32
    }
    fn new_cache(&self, capacity: usize, chunk: usize) -> Result<Cache> {
        Ok(Cache { entries: vec![], capacity, chunk, picked: None })
    }
    fn grow(&self, cache: &mut Cache, capacity: usize) -> Result<()> {
        assert!(capacity > cache.capacity && capacity <= self.plan.max_positions);
        cache.capacity = capacity;
        Ok(())
    }
    fn len(&self, cache: &Cache) -> usize {
        cache.entries.len()
    }
    fn capacity(&self, cache: &Cache) -> usize {
        cache.capacity
    }
    fn truncate(&self, cache: &mut Cache, len: usize) -> bool {
        assert_eq!(self.under_way.get(), 0, "steps are under way");
        let can = len == 0 || cache.entries.len() - len <= self.slack;
        if can {
            cache.entries.truncate(len);
        }
        can
    }
    fn submit(&self, cache: &mut Cache, step: &Step<'_>) -> Result<(usize, StepOutput)> {
        let ids = match step.tokens {
            Tokens::Ids(ids) => ids.to_vec(),
            Tokens::Picked => vec![cache.picked.ok_or_else(|| Error::invalid("tokens", "none picked").on(About::NothingPicked))?],
        };
        let number = self.log.borrow().len();
        if self.fail_at.get() == Some(number) {
            self.fail_at.set(None);
            return Err(Error::new(self.fail_with.get(), "lost"));
        }
        let count = if step.tokens == Tokens::Picked { 0 } else { ids.len() };
        self.log.borrow_mut().push((count, step.rows, step.read, step.long_rope, self.under_way.get()));
        self.under_way.set(self.under_way.get() + 1);
        let first = cache.entries.len();
        cache.entries.extend(ids.iter().map(|id| (*id, step.long_rope)));
        assert!(!ids.is_empty() && ids.len() <= cache.chunk && cache.entries.len() <= cache.capacity);

        let mut output = StepOutput { notes: vec!["fused less".into()], ..StepOutput::default() };
        let row = self.logits(&cache.entries);
        if let Some(pick) = step.pick {
            output.token = best(&row, pick, 1).first().map(|b| b.0);
            if let Read::Top(k) = step.read {
                output.top = Some(best(&row, pick, k));
            }
        }
        cache.picked = output.token;
        for request in step.requests {
            assert!(request.stage != Stage::LogitsFinal || step.rows == Rows::All);
            let rows = (1..=ids.len()).flat_map(|n| self.logits(&cache.entries[..first + n])).collect();
            let tensor = Tensor::new(vec![ids.len(), VOCAB], rows).unwrap();
            output.values.push(Observed {
                at: At { stage: request.stage, layer: None },
                first_token: first,
                content: Content::Full(tensor),
            });
        }
        if step.read == Read::Logits {
            output.logits = Some(row);
        }
        Ok((number, output))
    }
    async fn finish(&self, (number, output): (usize, StepOutput)) -> Result<StepOutput> {
        assert!(number >= self.finished.get(), "steps finish in order");
        self.finished.set(number);
        self.under_way.set(self.under_way.get() - 1);
        Ok(output)
    }
    async fn eval(&self, _: ValueId, _: &[Tensor], _: usize, _: bool) -> Result<Tensor> {
        Err(Error::unsupported("eval"))
    }
    fn groups(&self) -> Result<Vec<crate::exec::Group>> {
        Ok(Vec::new())
    }
}

const PLAIN: SessionOptions = SessionOptions { capacity: 64, chunk: 4, valid_vocab: 45, pad: Some(7) };
const PROMPT: [u32; 6] = [3, 1, 4, 1, 5, 9];

/// The definition: one token after the other from the whole sequence.
fn plain(fake: &Fake, prompt: &[u32], options: &GenerateOptions<'_>, session: SessionOptions) -> (Vec<u32>, u64) {
    let mask = TokenMask::new(std::iter::once(session.valid_vocab as u32..u32::MAX));
    let sampler = Sampler::new(options.sampling.clone(), mask).unwrap();
    let (mut ids, mut bytes) = (prompt.to_vec(), Vec::new());
    while ids.len() < prompt.len() + options.max_tokens {
        let long = fake.plan.longrope_limit().is_some_and(|limit| ids.len() > limit);
        let row = fake.logits(&ids.iter().map(|id| (*id, long)).collect::<Vec<_>>());
        let token = sampler.sample(&row, &ids, ids.len() as u64).unwrap();
        bytes.extend(row.iter().flat_map(|x| x.to_le_bytes()));
        ids.push(token);
        if options.stop_ids.contains(&token) {
            break;
        }
    }
    (ids.split_off(prompt.len()), xxh64(&bytes, 0))
}

fn generate(session: &mut Session<'_, Fake>, prompt: &[u32], options: &GenerateOptions<'_>) -> Result<Generated> {
    pollster::block_on(session.generate(prompt, options, None, &mut |_| ControlFlow::Continue(())))
}

fn greedy(max_tokens: usize) -> GenerateOptions<'static> {
    GenerateOptions { max_tokens, ..Default::default() }
}

#[derive(Default)]
struct Watch {
    stages: Vec<Stage>,
    steps: Vec<(usize, usize, Vec<u32>, Option<u32>)>,
    rows: Vec<Vec<f32>>,
}

impl Observer for Watch {
    fn requests(&self, _: usize) -> Vec<Request> {
        self.stages.iter().map(|stage| Request { stage: *stage, layers: None, want: Want::Full }).collect()
    }
    fn observe(&mut self, step: StepInfo<'_>, values: Vec<Observed>) -> Result<()> {
        assert_eq!(values.len(), self.stages.len());
        self.steps.push((step.decode_step, step.first_token, step.tokens.to_vec(), step.chosen));
        for value in values {
            assert_eq!(value.first_token, step.first_token);
            let Content::Full(tensor) = value.content else { panic!("full") };
            self.rows.extend((0..tensor.rows()).map(|i| tensor.row(i).to_vec()));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    /// Chunks, turns, longrope, sampling, hashing, stop ids, what can be taken back: the answer is that of the loop.
    #[test]
    fn every_path_gives_the_plain_answer(
        turns in prop::collection::vec(prop::collection::vec(0u32..50, 1..9), 1..4), chunk in 1usize..9, capacity in 1usize..40,
        longrope in prop::option::of(1usize..40), mode in 0usize..5, hash_logits: bool, slack in 0usize..3, observed: bool, raw: bool, pipelined: bool,
        max_tokens in 0usize..9, stop in 0u32..50,
    ) {
        let fake = Fake { slack, ..Fake::new(100, longrope) };
        let sampling = match mode {
            0 | 1 => SamplingConfig::default(),
            2 => SamplingConfig { temperature: 0.7, top_k: 5, top_p: 0.9, seed: 3, ..Default::default() },
            3 => SamplingConfig { temperature: 1.1, min_p: 0.05, seed: 4, ..Default::default() },
            _ => SamplingConfig { repeat_penalty: 1.5, ..Default::default() },
        };
        let (valid_vocab, pad) = if raw { (VOCAB, None) } else { (45, Some(7)) };
        let setup = SessionOptions { capacity, chunk, valid_vocab, pad };
        let stops = [stop, stop / 2];
        let options = GenerateOptions { max_tokens, sampling, stop_ids: if raw { &[] } else { &stops }, hash_logits, rules: None, pipelined };
        let mut session = Session::new(&fake, setup).unwrap();
        let mut sequence = Vec::new();
        for turn in &turns {
            sequence.extend(turn);
            let (expected, hash) = plain(&fake, &sequence, &options, setup);
            let mut watch = Watch { stages: vec![Stage::EmbedOut], ..Watch::default() };
            let observer: Option<&mut dyn Observer> = if observed { Some(&mut watch) } else { None };
            let mut told = Vec::new();
            let mut on_event = |event| {
                told.extend(match event { Event::Token(id) => Some(id), Event::Prefill { .. } => None });
                ControlFlow::Continue(())
            };
            let found = pollster::block_on(session.generate(turn, &options, observer, &mut on_event)).unwrap();
            prop_assert_eq!(&found.ids, &expected);
            prop_assert_eq!(&told, &expected);
            prop_assert_eq!(found.logits_hash, hash_logits.then_some(hash));
            let ended = expected.last().is_some_and(|id| options.stop_ids.contains(id));
            prop_assert_eq!(found.stop, if ended { StopReason::Eos } else { StopReason::MaxTokens });
            if observed {
                let chosen: Vec<u32> = watch.steps.iter().filter_map(|s| s.3).collect();
                prop_assert_eq!(&chosen, &expected);
                let read: usize = watch.steps.iter().map(|s| s.2.len()).sum();
                prop_assert_eq!(read, found.prefill_tokens + expected.len().saturating_sub(1));
            }
            sequence.extend(&expected);
            prop_assert_eq!(session.ids(), &sequence[..]);
        }
    }
}

#[test]
fn prompts_come_in_chunks_and_greedy_decoding_keeps_two_steps_under_way() {
    let fake = Fake::new(100, None);
    let mut session = Session::new(&fake, PLAIN).unwrap();
    let found = generate(&mut session, &PROMPT, &greedy(4)).unwrap();
    assert_eq!((found.prefill_tokens, found.stop, &found.notes[..]), (6, StopReason::MaxTokens, &["fused less".to_string()][..]));
    let nothing = Read::Nothing;
    let expected = [
        (4, Rows::None, nothing, false, 0),
        (2, Rows::Last, nothing, false, 1),
        (0, Rows::Last, nothing, false, 1),
        (0, Rows::Last, nothing, false, 1),
        (0, Rows::Last, nothing, false, 1),
    ];
    assert_eq!(fake.log.borrow()[..], expected);

    fake.log.borrow_mut().clear();
    fake.finished.set(0);
    let alone = GenerateOptions { pipelined: false, ..greedy(4) };
    assert_eq!(generate(&mut Session::new(&fake, PLAIN).unwrap(), &PROMPT, &alone).unwrap(), found);
    assert!(fake.log.borrow().iter().all(|(count, .., under_way)| *count > 0 && *under_way == 0));
}

#[test]
fn host_side_choices_run_one_step_at_a_time_and_read_as_little_as_they_can() {
    let fake = Fake::new(100, None);
    let sampling = SamplingConfig { temperature: 0.8, top_k: 20, ..Default::default() };
    for (top_k, hash_logits, read) in [(20, false, Read::Top(20)), (20, true, Read::Logits), (65, false, Read::Logits)] {
        fake.log.borrow_mut().clear();
        let options =
            GenerateOptions { max_tokens: 3, hash_logits, sampling: SamplingConfig { top_k, ..sampling.clone() }, ..Default::default() };
        fake.finished.set(0);
        generate(&mut Session::new(&fake, PLAIN).unwrap(), &PROMPT[..3], &options).unwrap();
        let expected = [(3, Rows::Last, read, false, 0), (1, Rows::Last, read, false, 0), (1, Rows::Last, read, false, 0)];
        assert_eq!(fake.log.borrow()[..], expected);
    }
}

#[test]
fn a_step_beyond_the_end_is_taken_back_or_the_next_turn_starts_over() {
    for slack in [usize::MAX, 0] {
        let fake = Fake { slack, ..Fake::new(100, None) };
        let (answer, _) = plain(&fake, &PROMPT, &greedy(8), PLAIN);
        let stop_ids = &answer[2..3];
        let mut session = Session::new(&fake, PLAIN).unwrap();
        let found = generate(&mut session, &PROMPT, &GenerateOptions { stop_ids, ..greedy(8) }).unwrap();
        assert_eq!((&found.ids[..], found.stop), (&answer[..3], StopReason::Eos));
        assert_eq!(session.cached(), if slack == 0 { 0 } else { PROMPT.len() + 2 });
        let next = generate(&mut session, &[2, 2], &greedy(3)).unwrap();
        assert_eq!(next.prefill_tokens, if slack == 0 { 11 } else { 3 });
        let whole = [&PROMPT[..], &answer[..3], &[2, 2]].concat();
        assert_eq!(next.ids, plain(&fake, &whole, &greedy(3), PLAIN).0);
    }
}

#[test]
fn crossing_longropes_limit_reads_everything_again_and_says_so() {
    let fake = Fake::new(100, Some(8));
    let mut session = Session::new(&fake, PLAIN).unwrap();
    let mut watch = Watch { stages: vec![Stage::EmbedOut], ..Watch::default() };
    let found = pollster::block_on(session.generate(&PROMPT, &greedy(6), Some(&mut watch), &mut |_| ControlFlow::Continue(()))).unwrap();
    assert_eq!(found.ids, plain(&fake, &PROMPT, &greedy(6), PLAIN).0);
    assert!(found.notes.iter().any(|n| n.contains("crossed 8 tokens")), "{:?}", found.notes);
    // Read again unseen: the observer gets every token once, in order.
    let firsts: Vec<usize> = watch.steps.iter().map(|s| s.1).collect();
    assert_eq!(firsts, [0, 4, 6, 7, 8, 9, 10]);
    // And back: a shorter prompt is read with the short list.
    session.set_prompt(&PROMPT[..5]).unwrap();
    assert_eq!(generate(&mut session, &[], &greedy(2)).unwrap().ids, plain(&fake, &PROMPT[..5], &greedy(2), PLAIN).0);
}

#[test]
fn a_new_prompt_keeps_the_common_beginning() {
    let fake = Fake::new(100, None);
    let mut session = Session::new(&fake, PLAIN).unwrap();
    generate(&mut session, &PROMPT, &greedy(3)).unwrap();
    let other = [3, 1, 4, 1, 8];
    session.set_prompt(&other).unwrap();
    assert_eq!(session.cached(), 4);
    let found = generate(&mut session, &[], &greedy(3)).unwrap();
    assert_eq!((found.prefill_tokens, found.ids), (1, plain(&fake, &other, &greedy(3), PLAIN).0));
    session.set_prompt(&other).unwrap();
    assert_eq!(session.cached(), 4, "the last token is read for its logits");
}

#[test]
fn bad_input_is_refused_before_anything_changes() {
    let fake = Fake::new(10, None);
    let mut session = Session::new(&fake, PLAIN).unwrap();
    let bad = SamplingConfig { temperature: -1.0, ..Default::default() };
    let cases = [
        (&[][..], greedy(2), "found none"),
        (&[3, 50], greedy(2), "50 at position 1 is out of range: the model has ids 0 to 49"),
        (&[1; 11], greedy(2), "its 11 tokens are longer than the model's context of 10"),
        (&[1], GenerateOptions { sampling: bad, ..greedy(2) }, "temperature"),
    ];
    for (prompt, options, expected) in cases {
        let error = generate(&mut session, prompt, &options).unwrap_err();
        assert!(error.kind == Kind::Invalid && error.message.contains(expected), "{error}");
        assert!(session.ids().is_empty() && fake.log.borrow().is_empty());
    }
    generate(&mut session, &PROMPT, &greedy(2)).unwrap();
    let error = generate(&mut session, &[1; 4], &greedy(2)).unwrap_err();
    assert!(error.message.contains("its 4 tokens with the 8 of the turns before"), "{error}");
    assert!(session.set_prompt(&[]).is_err() && session.set_prompt(&[99]).is_err());
    assert!(Session::new(&fake, SessionOptions { chunk: 0, ..PLAIN }).is_err());
}

#[test]
fn generation_ends_where_the_context_does() {
    let fake = Fake::new(10, None);
    let mut session = Session::new(&fake, SessionOptions { capacity: 2, ..PLAIN }).unwrap();
    let found = generate(&mut session, &PROMPT, &greedy(50)).unwrap();
    // Ten positions hold the prompt and four tokens; a fifth is chosen after the last of them.
    assert_eq!((found.ids.len(), found.stop), (5, StopReason::Capacity));
    assert_eq!(found.ids, plain(&fake, &PROMPT, &greedy(5), PLAIN).0);
}

#[test]
fn callers_can_break_off_and_go_on() {
    let fake = Fake::new(100, None);
    let (answer, _) = plain(&fake, &PROMPT, &greedy(6), PLAIN);
    for at in 0..4 {
        let mut session = Session::new(&fake, PLAIN).unwrap();
        let mut events = 0;
        let mut on_event = |_| {
            events += 1;
            if events > at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let found = pollster::block_on(session.generate(&PROMPT, &greedy(6), None, &mut on_event)).unwrap();
        // Two events of the prompt, then tokens.
        let count = usize::saturating_sub(at + 1, 2);
        assert_eq!((&found.ids[..], found.stop), (&answer[..count], StopReason::Interrupted));
        let rest = generate(&mut session, &[], &greedy(6 - count)).unwrap();
        assert_eq!(rest.ids, answer[count..]);
    }
}

#[test]
fn after_a_failed_step_the_sequence_is_read_again() {
    // An error is an error, whatever its kind: only a step after one that picked nothing may fail in silence.
    for (failing, kind) in (0..5).flat_map(|step| [(step, Kind::Device), (step, Kind::Invalid)]) {
        let fake = Fake::new(100, None);
        fake.fail_at.set(Some(failing));
        fake.fail_with.set(kind);
        let mut session = Session::new(&fake, PLAIN).unwrap();
        assert_eq!(generate(&mut session, &PROMPT, &greedy(4)).unwrap_err().kind, kind);
        fake.under_way.set(0);
        let (sequence, mut rest) = (session.ids().to_vec(), greedy(4));
        rest.max_tokens -= sequence.len() - PROMPT.len();
        assert_eq!(session.cached(), 0);
        assert_eq!(generate(&mut session, &[], &rest).unwrap().ids, plain(&fake, &sequence, &rest, PLAIN).0);
    }
}

#[test]
fn without_a_finite_logit_values_are_shown_and_then_it_is_a_finding() {
    for sampling in [SamplingConfig::default(), SamplingConfig { temperature: 1.0, ..Default::default() }] {
        let fake = Fake { nan_from: 8, ..Fake::new(100, None) };
        let mut session = Session::new(&fake, PLAIN).unwrap();
        let mut watch = Watch { stages: vec![Stage::LogitsFinal], ..Watch::default() };
        let options = GenerateOptions { sampling, ..greedy(9) };
        let error = pollster::block_on(session.generate(&PROMPT, &options, Some(&mut watch), &mut |_| ControlFlow::Continue(())));
        assert_eq!(error.unwrap_err().kind, Kind::Finding);
        assert!(watch.rows.last().unwrap()[0].is_nan());
        assert_eq!(watch.steps.last().unwrap().3, None);
    }
}

#[test]
fn observed_logits_cover_every_token() {
    let fake = Fake::new(100, None);
    let mut session = Session::new(&fake, PLAIN).unwrap();
    let mut watch = Watch { stages: vec![Stage::LogitsFinal], ..Watch::default() };
    let found = pollster::block_on(session.generate(&PROMPT, &greedy(3), Some(&mut watch), &mut |_| ControlFlow::Continue(()))).unwrap();
    assert_eq!(watch.rows.len(), PROMPT.len() + 2);
    let steps: Vec<(usize, usize, Option<u32>)> = watch.steps.iter().map(|s| (s.0, s.1, s.3)).collect();
    let [a, b, c] = found.ids[..] else { panic!("three tokens") };
    assert_eq!(steps, [(0, 0, None), (0, 4, Some(a)), (1, 6, Some(b)), (2, 7, Some(c))]);
}

#[test]
fn rules_of_a_model_choose_alike_whatever_is_read_and_leave_the_hash() {
    let fake = Fake::new(100, None);
    let rules = GenerationRules { repetition_penalty: Some(1.7), no_repeat_ngram: 1, suppress: (0..20).collect(), ..Default::default() };
    // One plain loop over the rules.
    let (mut ids, mut bytes) = (PROMPT.to_vec(), Vec::new());
    for _ in 0..8 {
        let mut row = fake.logits(&ids.iter().map(|id| (*id, false)).collect::<Vec<_>>());
        bytes.extend(row.iter().flat_map(|x| x.to_le_bytes()));
        crate::inference::rules::apply(&rules, &mut row, crate::inference::rules::Place { ids: &ids, prompt: PROMPT.len(), max_tokens: 8 });
        ids.push(best(&row, Pick { valid: 45 }, 1)[0].0);
    }
    for (hash_logits, pipelined) in [(false, true), (true, false)] {
        let mut session = Session::new(&fake, PLAIN).unwrap();
        let options = GenerateOptions { rules: Some(&rules), hash_logits, pipelined, ..greedy(8) };
        let found = generate(&mut session, &PROMPT, &options).unwrap();
        assert_eq!((&found.ids[..], found.logits_hash), (&ids[PROMPT.len()..], hash_logits.then(|| xxh64(&bytes, 0))));
    }
    // Rules that change nothing leave the choice where it was.
    let idle = GenerationRules { eos: vec![1], ..Default::default() };
    let fake = Fake::new(100, None);
    let mut session = Session::new(&fake, PLAIN).unwrap();
    generate(&mut session, &PROMPT, &GenerateOptions { rules: Some(&idle), ..greedy(2) }).unwrap();
    assert!(fake.log.borrow().iter().all(|(_, _, read, _, _)| *read == Read::Nothing));
}
