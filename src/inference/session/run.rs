//! One generation: drives a `Decoding` and takes in what each step gives. Greedy decoding keeps two steps under way, the
//! second fed by the first's choice wherever that is: what the host reads, hashes and shows of a step it does while the next
//! one runs.

use super::{Event, GenerateOptions, Generated, Session, StopReason, crossing};
use crate::error::{About, Result};
use crate::exec::{Executor, Observer, Read, Request, Step, StepInfo, StepOutput, Tokens, rows_of_logits};
use crate::inference::choose::Chooser;
use crate::inference::decode::{Decoding, Next, Reading};
use std::collections::VecDeque;
use std::ops::ControlFlow;

/// A step that was started.
struct UnderWay<P> {
    pending: P,
    reading: Reading,
    observed: bool,
}

/// A step to be started.
struct Start {
    reading: Reading,
    /// Its token is the one that the step before picks, which is not known yet.
    picked: bool,
    requests: Vec<Request>,
}

struct Run<'r, 'e, 'o, E: Executor> {
    session: &'r mut Session<'e, E>,
    options: &'r GenerateOptions<'r>,
    chooser: Chooser<'r>,
    observer: Option<&'o mut dyn Observer>,
    on_event: &'r mut dyn FnMut(Event) -> ControlFlow<()>,
    under_way: VecDeque<UnderWay<E::Pending>>,
    /// Length of the sequence before anything is generated.
    prompt: usize,
    /// Cached positions at the beginning.
    reused: usize,
    decoding: Decoding,
    generated: Vec<u32>,
    notes: Vec<String>,
}

/// Generates after `session.ids`, which the cache is prepared for.
pub(super) async fn run<'r, E: Executor>(
    session: &'r mut Session<'_, E>,
    options: &'r GenerateOptions<'_>,
    chooser: Chooser<'r>,
    observer: Option<&mut dyn Observer>,
    on_event: &'r mut dyn FnMut(Event) -> ControlFlow<()>,
    notes: Vec<String>,
) -> Result<Generated> {
    let (prompt, reused) = (session.ids.len(), session.cached);
    let decoding = Decoding::new(session.executor.plan(), prompt, reused, session.options.chunk, options.max_tokens);
    let mut run = Run {
        session,
        options,
        chooser,
        observer,
        on_event,
        under_way: VecDeque::new(),
        prompt,
        reused,
        decoding,
        generated: Vec::new(),
        notes,
    };
    let mut stop = StopReason::MaxTokens;
    loop {
        while let Some(start) = run.next()? {
            match run.start(&start) {
                // The step before picked nothing. Its results are taken in first, and report that.
                Err(e) if e.about.as_deref() == Some(&About::NothingPicked) => break,
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
    let logits_hash = run.chooser.hash();
    Ok(Generated { ids: run.generated, stop, logits_hash, prefill_tokens: prompt - reused, notes: run.notes })
}

impl<E: Executor> Run<'_, '_, '_, E> {
    /// The step to start now, if one can be.
    fn next(&mut self) -> Result<Option<Start>> {
        let depth = if self.options.pipelined { 2 } else { 1 };
        // A part of a prompt that is to be observed runs alone: its values may be large.
        let alone = |step: &UnderWay<E::Pending>| step.observed && step.reading.decode_step == 0;
        if self.under_way.len() >= depth || self.under_way.back().is_some_and(alone) {
            return Ok(None);
        }
        let reading = loop {
            match self.decoding.next() {
                Next::End => return Ok(None),
                Next::StartOver if !self.under_way.is_empty() => return Ok(None),
                Next::StartOver => {
                    note(&mut self.notes, crossing(self.session.executor.plan().longrope_limit()));
                    self.session.start_over()?;
                    self.decoding.start_over();
                }
                Next::Step(reading) => break reading,
            }
        };
        // The token is known, unless the step before is still under way.
        let picked = reading.first >= self.session.ids.len();
        if picked && !self.chooser.is_picked() {
            return Ok(None);
        }
        let requests = if reading.again { Vec::new() } else { self.requests(reading.decode_step) };
        let alone = !requests.is_empty() && reading.decode_step == 0;
        Ok((!alone || self.under_way.is_empty()).then_some(Start { reading, picked, requests }))
    }
    fn requests(&self, decode_step: usize) -> Vec<Request> {
        self.observer.as_ref().map(|o| o.requests(decode_step)).unwrap_or_default()
    }
    fn start(&mut self, start: &Start) -> Result<()> {
        let session = &mut *self.session;
        let (executor, reading) = (session.executor, start.reading);
        session.reserve(self.decoding.room(&reading))?;
        let read = if reading.chooses { self.chooser.read() } else { Read::Nothing };
        let ids = reading.first..reading.first + reading.count;
        let step = Step {
            tokens: if start.picked { Tokens::Picked } else { Tokens::Ids(&session.ids[ids]) },
            rows: rows_of_logits(executor.plan(), &start.requests, reading.chooses),
            pick: self.chooser.pick().filter(|_| reading.chooses),
            read,
            long_rope: self.decoding.long_rope(),
            requests: &start.requests,
        };
        let pending = executor.submit(&mut session.cache, &step)?;
        self.decoding.started(&reading);
        (session.cached, session.long_rope) = (self.decoding.read(), self.decoding.long_rope());
        self.under_way.push_back(UnderWay { pending, reading, observed: !start.requests.is_empty() });
        Ok(())
    }
    /// Takes in a step's results; the reason to stop, if there is one.
    async fn finish(&mut self, step: UnderWay<E::Pending>) -> Result<Option<StopReason>> {
        let mut output = self.session.executor.finish(step.pending).await?;
        for text in &output.notes {
            note(&mut self.notes, text.clone());
        }
        // Values that explain why nothing can be chosen are shown before that ends the run.
        let Reading { first, count, decode_step, chooses, again } = step.reading;
        let chosen = chooses.then(|| self.chooser.choose(&output, &self.session.ids)).transpose();
        if let (true, Some(observer)) = (step.observed, &mut self.observer) {
            let tokens = self.session.ids.get(first..first + count).unwrap_or_default();
            let chosen = chosen.as_ref().ok().copied().flatten();
            let info = StepInfo { decode_step, first_token: first, tokens, chosen, notes: &output.notes };
            observer.observe(info, std::mem::take(&mut output.values))?;
        }
        let chosen = chosen?;
        if decode_step == 0 && !again {
            let (done, total) = (first + count - self.reused, self.prompt - self.reused);
            if (self.on_event)(Event::Prefill { done, total }).is_break() {
                return Ok(Some(StopReason::Interrupted));
            }
        }
        Ok(chosen.and_then(|token| self.accept(token, &output)))
    }
    /// Appends a token; the reason to stop, if there is one.
    fn accept(&mut self, token: u32, output: &StepOutput) -> Option<StopReason> {
        self.chooser.accept(output);
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
}

fn note(notes: &mut Vec<String>, text: String) {
    if !notes.contains(&text) {
        notes.push(text);
    }
}
