//! Sequences of many requests over one executor. A step takes one chunk of one prompt, that of the sequence that waited
//! longest for its turn, and one token of each sequence that decodes, together. What a sequence gets does not depend on its
//! neighbours (docs/decisions/0013). What prompts have in common is read once (`prefix`). It knows no text, no HTTP and no clock.

mod prefix;

use doppler::exec::{Entry, Executor, Read, Rows, Sequences, Step, StepOutput, Tokens};
use doppler::inference::choose::{Chooser, ChooserOptions};
use doppler::inference::decode::{Decoding, Next, Reading};
use doppler::inference::sampling::SamplingConfig;
use doppler::inference::session::StopReason;
use doppler::model::GenerationRules;
use doppler::{Error, Result};
use pollster::block_on;
use prefix::Ended;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc::UnboundedSender;

/// One sequence to generate.
#[derive(Debug)]
pub struct Job {
    /// Its ids, at least one, all of the vocabulary, and no more than the context.
    pub prompt: Vec<u32>,
    pub max_tokens: usize,
    pub sampling: SamplingConfig,
    pub rules: GenerationRules,
    pub stop_ids: Vec<u32>,
    /// Hash the logits that tokens are chosen from.
    pub hash: bool,
    /// Tell how likely each token was, and so many of the likeliest ones.
    pub alternatives: Option<usize>,
    pub client: Client,
}

/// Who asked for a job.
#[derive(Debug, Clone)]
pub struct Client {
    /// Where events go, each with the number of the job within its request.
    pub events: UnboundedSender<(usize, Event)>,
    pub number: usize,
    /// It has enough of this job.
    pub done: Arc<AtomicBool>,
}

impl Client {
    /// Whether nobody waits for more.
    pub fn is_gone(&self) -> bool {
        self.events.is_closed() || self.done.load(Ordering::Relaxed)
    }
    /// Sends an event. One that nobody takes is lost: the job ends before the next step.
    pub fn send(&self, event: Event) {
        let _ = self.events.send((self.number, event));
    }
}

/// What a job gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Its prompt has been read: its tokens, of which `cached` were there before.
    Prompt {
        tokens: usize,
        cached: usize,
    },
    Token(Token),
    /// A record of watching, as JSON.
    Record(serde_json::Value),
    End(StopReason),
    Failed(Error),
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    /// Natural logarithms of probabilities, of the model's own logits: its own, and those of the likeliest.
    pub likelihood: Option<Likelihood>,
    /// The hash of the logits up to this token's.
    pub hash: Option<u64>,
}

/// How likely a token was.
#[derive(Debug, Clone, PartialEq)]
pub struct Likelihood {
    pub chosen: f64,
    /// The likeliest first.
    pub top: Vec<(u32, f64)>,
}

/// Sequences under way. Every call is about the same executor.
pub struct Batch<E: Executor> {
    room: Sequences,
    valid_vocab: usize,
    running: Vec<Sequence<E>>,
    /// Sequences that ended, whose places nobody needs yet; the oldest first.
    ended: VecDeque<Ended<E::Cache>>,
    /// Whether prompts begin with what others have read.
    shares: bool,
    /// Steps so far.
    steps: u64,
}

struct Sequence<E: Executor> {
    job: Job,
    /// None before its first turn.
    cache: Option<E::Cache>,
    /// Positions that it will have at most.
    capacity: usize,
    /// Tokens of its prompt that it did not read itself.
    cached: usize,
    ids: Vec<u32>,
    decoding: Decoding,
    chooser: Chooser<'static>,
    generated: usize,
    /// Tokens of its largest step.
    chunk: usize,
    /// The last step that read a chunk of it, or before which it began: who comes later waits its turn, too.
    turn: u64,
}

impl<E: Executor> Batch<E> {
    /// No sequence, with room for `room` of them.
    pub fn new(room: Sequences, valid_vocab: usize, shares: bool) -> Self {
        Self { room, valid_vocab, running: Vec::new(), ended: VecDeque::new(), shares, steps: 0 }
    }
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
    pub fn is_full(&self) -> bool {
        self.running.len() >= self.room.count
    }
    /// Sequences under way, and the positions that they have read.
    pub fn load(&self) -> (usize, usize) {
        (self.running.len(), self.running.iter().map(|sequence| sequence.decoding.read()).sum())
    }
    /// Begins a job. Where that fails, its client is told.
    pub fn begin(&mut self, executor: &E, job: Job) {
        let client = job.client.clone();
        match self.sequence(executor, job) {
            Ok(sequence) => self.running.push(sequence),
            Err(error) => client.send(Event::Failed(error)),
        }
    }
    fn sequence(&self, executor: &E, job: Job) -> Result<Sequence<E>> {
        let plan = executor.plan();
        let (prompt, most) = (job.prompt.len(), plan.max_positions.min(self.room.capacity));
        if prompt == 0 || prompt > most || job.max_tokens == 0 {
            let found = format!("expected a prompt of 1 to {most} tokens and an answer, found {prompt} and {} tokens", job.max_tokens);
            return Err(Error::invalid("prompt", found));
        }
        if let Some(id) = job.prompt.iter().find(|id| **id as usize >= plan.vocab_size) {
            let last = plan.vocab_size.saturating_sub(1);
            return Err(Error::invalid("token id", format!("{id} is out of range: the model has ids 0 to {last}")));
        }
        let chooser = Chooser::new(ChooserOptions {
            sampling: job.sampling.clone(),
            valid_vocab: self.valid_vocab,
            rules: Some(Cow::Owned(job.rules.clone())),
            hash: job.hash,
            whole_rows: job.alternatives.is_some(),
            prompt,
            max_tokens: job.max_tokens,
        })?;
        let capacity = prompt.saturating_add(job.max_tokens).min(most);
        let chunk = self.room.chunk.min(capacity);
        let decoding = Decoding::new(plan, prompt, 0, chunk, job.max_tokens);
        let ids = job.prompt.clone();
        Ok(Sequence { ids, job, cache: None, capacity, cached: 0, decoding, chooser, generated: 0, chunk, turn: self.steps })
    }
    /// One step of the sequences whose clients are still there; those that end leave. Errors go to the clients that they
    /// concern, and the first of a whole step comes back, too.
    ///
    /// # Errors
    /// What the executor reports of a step as a whole, which ended all sequences in it.
    pub fn step(&mut self, executor: &E) -> Result<()> {
        self.running.retain(|sequence| !sequence.job.client.is_gone());
        self.steps += 1;
        let readings = self.readings(executor);
        let submitted = self.submit(executor, &readings);
        let pending = match submitted {
            Ok(pending) => pending,
            Err(error) => {
                self.fail(|place| readings.iter().any(|(taken, _)| *taken == place), &error);
                self.ended.clear();
                return Err(error);
            }
        };
        let (mut failed, mut ended) = (Vec::new(), Vec::new());
        // All are finished, whatever one of them says.
        for ((place, reading), pending) in readings.iter().zip(pending) {
            let output = block_on(executor.finish(pending));
            for (place, output) in self.with_twins(executor, *place, reading, output) {
                let Some(sequence) = self.running.get_mut(place) else { continue };
                let event = match output.and_then(|output| sequence.take(reading, &output, executor.plan().max_positions)) {
                    Ok(None) => continue,
                    Ok(Some(reason)) => {
                        ended.push(place);
                        Event::End(reason)
                    }
                    Err(error) => {
                        failed.push(place);
                        Event::Failed(error)
                    }
                };
                sequence.job.client.send(event);
            }
        }
        self.retire(&ended);
        self.remove(|place| ended.contains(&place) || failed.contains(&place));
        Ok(())
    }
    /// The places of the sequences that take part in this step, in their order, and what each reads.
    fn readings(&mut self, executor: &E) -> Vec<(usize, Reading)> {
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        for (place, sequence) in self.running.iter_mut().enumerate() {
            match sequence.next(executor) {
                Ok(Some(reading)) => found.push((place, reading)),
                Ok(None) => failed.push((place, Event::End(StopReason::Capacity))),
                Err(error) => failed.push((place, Event::Failed(error))),
            }
        }
        let turn = |(place, _): &(usize, Reading)| self.running.get(*place).map_or(0, |sequence| sequence.turn);
        let is_candidate = |(place, reading): &&(usize, Reading)| reading.decode_step == 0 && !self.waits_for_twin(*place);
        let first = found.iter().filter(is_candidate).min_by_key(|of| turn(of)).map(|(place, _)| *place);
        found.retain(|(place, reading)| reading.decode_step > 0 || Some(*place) == first);
        if let Some(sequence) = first.and_then(|place| self.running.get_mut(place)) {
            sequence.turn = self.steps;
        }
        // It may begin where another one's prompt has been read to.
        if let Some(place) = first
            && self.running.get(place).is_some_and(|sequence| sequence.cache.is_none())
        {
            let begun =
                self.begin_cache(executor, place).and_then(|()| self.running.get_mut(place).map_or(Ok(None), |of| of.next(executor)));
            match begun {
                Ok(Some(next)) => found.iter_mut().filter(|(other, _)| *other == place).for_each(|(_, reading)| *reading = next),
                Ok(None) => failed.push((place, Event::End(StopReason::Capacity))),
                Err(error) => failed.push((place, Event::Failed(error))),
            }
        }
        failed.sort_by_key(|(place, _)| *place);
        found.retain(|(place, _)| failed.iter().all(|(gone, _)| gone != place));
        // Whoever ends here has no reading; places count on.
        for (place, event) in failed.into_iter().rev() {
            self.running.remove(place).job.client.send(event);
            found.iter_mut().filter(|(other, _)| *other > place).for_each(|(other, _)| *other -= 1);
        }
        found
    }
    fn submit(&mut self, executor: &E, readings: &[(usize, Reading)]) -> Result<Vec<E::Pending>> {
        let mut entries = Vec::with_capacity(readings.len());
        let mut readings = readings.iter().peekable();
        for (place, sequence) in self.running.iter_mut().enumerate() {
            if let Some((_, reading)) = readings.next_if(|(taken, _)| *taken == place) {
                entries.push(sequence.entry(reading)?);
            }
        }
        if entries.is_empty() { Ok(Vec::new()) } else { executor.submit_batch(&mut entries) }
    }
    /// Tells the clients of all sequences that `which` names what ended them.
    fn fail(&mut self, which: impl Fn(usize) -> bool, error: &Error) {
        for (place, sequence) in self.running.iter().enumerate() {
            if which(place) {
                sequence.job.client.send(Event::Failed(error.clone()));
            }
        }
        self.remove(which);
    }
    fn remove(&mut self, which: impl Fn(usize) -> bool) {
        let mut place = 0;
        self.running.retain(|_| {
            place += 1;
            !which(place - 1)
        });
    }
}

impl<E: Executor> Sequence<E> {
    /// What it reads next; `None` when nothing is left.
    fn next(&mut self, executor: &E) -> Result<Option<Reading>> {
        loop {
            match self.decoding.next() {
                Next::Step(reading) => return Ok(Some(reading)),
                Next::End => return Ok(None),
                // Nothing of it is under way between two steps.
                Next::StartOver => {
                    if !self.cache.as_mut().is_some_and(|cache| executor.truncate(cache, 0)) {
                        // Its place is free before it takes another.
                        self.cache = None;
                        self.cache = Some(executor.new_cache(self.capacity, self.chunk)?);
                    }
                    self.decoding.start_over();
                }
            }
        }
    }
    fn entry(&mut self, reading: &Reading) -> Result<Entry<'_, E::Cache>> {
        let ids = self.ids.get(reading.first..reading.first + reading.count);
        let ids = ids.ok_or_else(|| Error::invalid("sequence", format!("it has no {} tokens from {} on", reading.count, reading.first)))?;
        let step = Step {
            tokens: Tokens::Ids(ids),
            rows: if reading.chooses { Rows::Last } else { Rows::None },
            pick: self.chooser.pick().filter(|_| reading.chooses),
            read: if reading.chooses { self.chooser.read() } else { Read::Nothing },
            long_rope: self.decoding.long_rope(),
            requests: &[],
        };
        let cache = self.cache.as_mut().ok_or_else(|| Error::invalid("sequence", "it has no cache yet"))?;
        Ok(Entry { cache, step })
    }
    /// Takes in what a step gave; the reason to stop, if there is one.
    fn take(&mut self, reading: &Reading, output: &StepOutput, max_positions: usize) -> Result<Option<StopReason>> {
        self.decoding.started(reading);
        if !reading.chooses {
            return Ok(None);
        }
        let id = self.chooser.choose(output, &self.ids)?;
        self.chooser.accept(output);
        let row = output.logits.as_deref().zip(self.job.alternatives);
        if reading.decode_step == 0 {
            self.job.client.send(Event::Prompt { tokens: self.job.prompt.len(), cached: self.cached });
        }
        let likelihood = row.map(|(row, count)| likelihood(row, self.chooser.valid_vocab(), id, count));
        self.ids.push(id);
        self.generated += 1;
        self.job.client.send(Event::Token(Token { id, likelihood, hash: self.chooser.hash() }));
        Ok(match () {
            () if self.job.stop_ids.contains(&id) => Some(StopReason::Eos),
            () if self.generated >= self.job.max_tokens => Some(StopReason::MaxTokens),
            () if self.ids.len() > max_positions => Some(StopReason::Capacity),
            () => None,
        })
    }
}

/// How likely `id` was by the `row` of logits, of which `valid` are tokens, and the `count` likeliest: the logarithms of the
/// softmax, in f64.
fn likelihood(row: &[f32], valid: usize, id: u32, count: usize) -> Likelihood {
    let row = &row[..valid.min(row.len())];
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| (f64::from(*x) - f64::from(most)).exp()).sum();
    let log = |x: f32| f64::from(x) - f64::from(most) - sum.ln();
    let mut all: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count > 0 && count < all.len() {
        all.select_nth_unstable_by(count - 1, order);
    }
    all.truncate(count);
    all.sort_unstable_by(order);
    let chosen = row.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    Likelihood { chosen: log(chosen), top: all.into_iter().map(|(id, x)| (id, log(x))).collect() }
}

#[cfg(test)]
mod tests;
