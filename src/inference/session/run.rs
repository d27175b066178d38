//! One generation: which step to start next, and what to do with each that is finished. Greedy decoding keeps two
//! steps under way, the second fed by the first's choice wherever that is: what the host reads, hashes and shows of a
//! step it does while the next one runs.

use super::{Event, GenerateOptions, Generated, Session, StopReason, crossing};
use crate::error::{Error, Kind, Result};
use crate::exec::{Executor, Observer, Read, Request, Rows, Step, StepInfo, StepOutput, Tokens, Want};
use crate::inference::rules::{self, Place};
use crate::inference::sampling::Sampler;
use crate::model::GenerationRules;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use xxhash_rust::xxh64::Xxh64;

/// Most candidates that are read back instead of the whole row.
const MAX_TOP: u32 = 64;

/// Where tokens are chosen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// By the executor.
    Pick,
    /// Here, among its highest candidates.
    Top(usize),
    /// Here, from the whole row.
    Logits,
}

/// A step that was started.
struct UnderWay<P> {
    pending: P,
    /// Position of its first token.
    first: usize,
    /// Its tokens.
    count: usize,
    /// As in `StepInfo`.
    decode_step: usize,
    /// A token is chosen after it.
    sampled: bool,
    observed: bool,
    /// Reads again what was read before.
    again: bool,
}

/// A step to be started: `count` tokens from the first that is not cached.
struct Next {
    count: usize,
    /// The token that the step before picks, not one that is known.
    picked: bool,
    decode_step: usize,
    sampled: bool,
    again: bool,
    requests: Vec<Request>,
}

struct Run<'r, 'e, 'o, E: Executor> {
    session: &'r mut Session<'e, E>,
    options: &'r GenerateOptions<'r>,
    sampler: Sampler,
    rules: Option<&'r GenerationRules>,
    choice: Choice,
    observer: Option<&'o mut dyn Observer>,
    on_event: &'r mut dyn FnMut(Event) -> ControlFlow<()>,
    under_way: VecDeque<UnderWay<E::Pending>>,
    /// Length of the sequence before anything is generated.
    prompt: usize,
    /// Cached positions at the beginning.
    reused: usize,
    /// Positions to be read before decoding goes on.
    read_to: usize,
    /// Steps started after which a token is chosen.
    sampled_steps: usize,
    generated: Vec<u32>,
    hash: Option<Xxh64>,
    notes: Vec<String>,
}

/// Generates after `session.ids`, which the cache is prepared for.
pub(super) async fn run<E: Executor>(
    session: &mut Session<'_, E>,
    options: &GenerateOptions<'_>,
    sampler: Sampler,
    observer: Option<&mut dyn Observer>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
    notes: Vec<String>,
) -> Result<Generated> {
    let rules = options.rules.filter(|rules| rules.any());
    let choice = match sampler.candidates() {
        _ if rules.is_some() => Choice::Logits,
        Some(_) if sampler.config().temperature == 0.0 => Choice::Pick,
        Some(k) if k <= MAX_TOP && !options.hash_logits => Choice::Top(k as usize),
        _ => Choice::Logits,
    };
    let (prompt, reused) = (session.ids.len(), session.cached);
    let mut run = Run {
        session,
        options,
        sampler,
        rules,
        choice,
        observer,
        on_event,
        under_way: VecDeque::new(),
        prompt,
        reused,
        read_to: prompt,
        sampled_steps: 0,
        generated: Vec::new(),
        hash: options.hash_logits.then(|| Xxh64::new(0)),
        notes,
    };
    let mut stop = StopReason::MaxTokens;
    loop {
        while let Some(next) = run.next()? {
            match run.start(&next) {
                // The step before picked nothing, perhaps; it is seen first, and says so.
                Err(e) if next.picked && e.kind == Kind::Invalid => break,
                started => started?,
            }
        }
        let Some(step) = run.under_way.pop_front() else { break };
        if let Some(reason) = run.finish(step).await? {
            stop = reason;
            break;
        }
    }
    // Steps beyond the end were started in good faith; the session takes their positions back.
    while let Some(step) = run.under_way.pop_front() {
        run.session.executor.finish(step.pending).await?;
    }
    let logits_hash = run.hash.map(|hash| hash.digest());
    Ok(Generated { ids: run.generated, stop, logits_hash, prefill_tokens: prompt - reused, notes: run.notes })
}

impl<E: Executor> Run<'_, '_, '_, E> {
    /// The step to start now, if one can be.
    fn next(&mut self) -> Result<Option<Next>> {
        let depth = if self.options.pipelined { 2 } else { 1 };
        let alone = |step: &UnderWay<E::Pending>| step.observed && step.decode_step == 0;
        if self.under_way.len() >= depth || self.under_way.back().is_some_and(alone) {
            return Ok(None);
        }
        let cached = self.session.cached;
        let next = if cached < self.read_to { self.next_chunk(cached) } else { self.next_token(cached)? };
        // A part of a prompt that is to be observed runs alone: its values may be large.
        let alone = |next: &Next| !next.requests.is_empty() && next.decode_step == 0;
        Ok(next.filter(|next| !alone(next) || self.under_way.is_empty()))
    }
    /// The next chunk of what is to be read.
    fn next_chunk(&self, cached: usize) -> Option<Next> {
        let count = self.session.options.chunk.min(self.read_to - cached);
        let again = self.sampled_steps > 0;
        let sampled = !again && cached + count == self.prompt && self.options.max_tokens > 0;
        let requests = if again { Vec::new() } else { self.requests(0) };
        Some(Next { count, picked: false, decode_step: 0, sampled, again, requests })
    }
    /// The next decode step.
    fn next_token(&mut self, cached: usize) -> Result<Option<Next>> {
        let max_positions = self.session.executor.plan().max_positions;
        if self.sampled_steps == 0 || self.sampled_steps >= self.options.max_tokens || cached >= max_positions {
            return Ok(None);
        }
        if self.session.needs_long_rope(cached + 1) && !self.session.long_rope {
            if !self.under_way.is_empty() {
                return Ok(None);
            }
            // Everything before the newest token is read again, unseen; then decoding goes on where it was.
            note(&mut self.notes, crossing(self.session.executor.plan().longrope_limit()));
            self.session.start_over()?;
            self.session.long_rope = true;
            self.read_to = self.session.ids.len() - 1;
            if self.read_to > 0 {
                return Ok(self.next_chunk(0));
            }
        }
        // The token is known, unless the step before is still under way.
        let (cached, known) = (self.session.cached, self.session.ids.len() > self.session.cached);
        let decode_step = cached + 1 - self.prompt;
        let requests = self.requests(decode_step);
        if !known && self.choice != Choice::Pick {
            return Ok(None);
        }
        Ok(Some(Next { count: 1, picked: !known, decode_step, sampled: true, again: false, requests }))
    }
    fn requests(&self, decode_step: usize) -> Vec<Request> {
        self.observer.as_ref().map(|o| o.requests(decode_step)).unwrap_or_default()
    }
    fn start(&mut self, next: &Next) -> Result<()> {
        let session = &mut *self.session;
        let (executor, first) = (session.executor, session.cached);
        let end = first + next.count;
        session.reserve(end.max(self.read_to))?;
        let read = match self.choice {
            _ if !next.sampled => Read::Nothing,
            _ if self.hash.is_some() => Read::Logits,
            Choice::Pick => Read::Nothing,
            Choice::Top(k) => Read::Top(k),
            Choice::Logits => Read::Logits,
        };
        let wants_rows = wants_rows_of_logits(executor, &next.requests);
        let rows = match (wants_rows, next.sampled) {
            (true, _) => Rows::All,
            (false, true) => Rows::Last,
            (false, false) => Rows::None,
        };
        let step = Step {
            tokens: if next.picked { Tokens::Picked } else { Tokens::Ids(&session.ids[first..end]) },
            rows,
            pick: (next.sampled && self.choice != Choice::Logits).then(|| session.pick()),
            read,
            long_rope: session.long_rope,
            requests: &next.requests,
        };
        let pending = executor.submit(&mut session.cache, &step)?;
        session.cached = end;
        self.sampled_steps += usize::from(next.sampled);
        self.under_way.push_back(UnderWay {
            pending,
            first,
            count: next.count,
            decode_step: next.decode_step,
            sampled: next.sampled,
            observed: !next.requests.is_empty(),
            again: next.again,
        });
        Ok(())
    }
    /// Takes in a step's results; the reason to stop, if there is one.
    async fn finish(&mut self, step: UnderWay<E::Pending>) -> Result<Option<StopReason>> {
        let mut output = self.session.executor.finish(step.pending).await?;
        for text in &output.notes {
            note(&mut self.notes, text.clone());
        }
        // Values that explain why nothing can be chosen are shown before that ends the run.
        let chosen = step.sampled.then(|| self.choose(&output)).transpose();
        if let (true, Some(observer)) = (step.observed, &mut self.observer) {
            let tokens = self.session.ids.get(step.first..step.first + step.count).unwrap_or_default();
            let chosen = chosen.as_ref().ok().copied().flatten();
            let info = StepInfo { decode_step: step.decode_step, first_token: step.first, tokens, chosen, notes: &output.notes };
            observer.observe(info, std::mem::take(&mut output.values))?;
        }
        let chosen = chosen?;
        if step.decode_step == 0 && !step.again {
            let (done, total) = (step.first + step.count - self.reused, self.prompt - self.reused);
            if (self.on_event)(Event::Prefill { done, total }).is_break() {
                return Ok(Some(StopReason::Interrupted));
            }
        }
        Ok(chosen.and_then(|token| self.accept(token, &output)))
    }
    /// Appends a token; the reason to stop, if there is one.
    fn accept(&mut self, token: u32, output: &StepOutput) -> Option<StopReason> {
        if let (Some(hash), Some(logits)) = (&mut self.hash, &output.logits) {
            let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
            hash.update(&bytes);
        }
        self.session.ids.push(token);
        self.generated.push(token);
        if (self.on_event)(Event::Token(token)).is_break() {
            Some(StopReason::Interrupted)
        } else if self.options.stop_ids.contains(&token) {
            Some(StopReason::Eos)
        } else if self.generated.len() >= self.options.max_tokens {
            Some(StopReason::MaxTokens)
        } else if self.session.ids.len() > self.session.executor.plan().max_positions {
            Some(StopReason::Capacity)
        } else {
            None
        }
    }
    /// The token after the sequence so far. Random numbers belong to positions, so they do not depend on earlier calls.
    fn choose(&self, output: &StepOutput) -> Result<u32> {
        let (ids, position) = (&self.session.ids, self.session.ids.len());
        let absent = |what: &str| Error::device(format!("the executor returned no {what} for position {position}"));
        if self.hash.is_some() && output.logits.is_none() {
            return Err(absent("logits"));
        }
        let at = |e: Error| e.within(format!("position {position}"));
        // Where the row is here, it says best what is wrong with it.
        if let Some(logits) = &output.logits {
            self.sampler.check(logits).map_err(at)?;
        }
        match self.choice {
            Choice::Pick => output.token.ok_or_else(|| {
                Error::finding(format!(
                    "no token can be chosen for position {position}: a logit is NaN or Inf, or none is a number; trace the layers to find where this begins"
                ))
            }),
            Choice::Top(_) => {
                let top = output.top.as_ref().ok_or_else(|| absent("candidates"))?;
                self.sampler.sample_candidates(top, position as u64).map_err(at)
            }
            Choice::Logits => {
                let logits = output.logits.as_ref().ok_or_else(|| absent("logits"))?;
                let Some(rules) = self.rules else { return self.sampler.sample(logits, ids, position as u64).map_err(at) };
                let mut row = logits.clone();
                rules::apply(rules, &mut row, Place { ids, prompt: self.prompt, max_tokens: self.options.max_tokens });
                self.sampler.sample(&row, ids, position as u64).map_err(at)
            }
        }
    }
}

/// Whether whole values behind the head's input are wanted: these then exist for every token. Chosen elements bring
/// their own rows.
fn wants_rows_of_logits(executor: &impl Executor, requests: &[Request]) -> bool {
    let plan = executor.plan();
    let head = plan.head_input().map_or(usize::MAX, |id| id.0);
    let behind = |r: &Request| plan.nodes.iter().position(|n| n.at.stage == r.stage).is_some_and(|i| i > head);
    requests.iter().any(|r| !matches!(r.want, Want::Gather { .. }) && behind(r))
}

fn note(notes: &mut Vec<String>, text: String) {
    if !notes.contains(&text) {
        notes.push(text);
    }
}
