//! Reads windows in steps and gives values of each step's tokens: of one side of a comparison the final logits.

use super::{Window, step_tokens};
use crate::error::{Error, Result};
use crate::exec::{Content, Executor, Observed, Read, Request, Rows, Step, Tokens, Want};
use crate::plan::{Plan, Stage};
use crate::tensor::Tensor;

/// Most bytes of logits that are kept of a reference.
const KEPT_BYTES: usize = 1 << 30;

/// An executor with a cache for the longest window.
pub struct Reader<'e, E: Executor> {
    executor: &'e E,
    cache: E::Cache,
    longest: usize,
    step: usize,
    requests: Vec<Request>,
}

impl<'e, E: Executor> Reader<'e, E> {
    /// Reads the final logits with `executor`, `step` tokens at a time.
    ///
    /// # Errors
    /// What the executor says when it makes the cache.
    pub fn new(executor: &'e E, windows: &[Window], step: usize) -> Result<Self> {
        Self::of(executor, windows, step, vec![Request { stage: Stage::LogitsFinal, layers: None, want: Want::Full }])
    }
    /// Reads what `requests` ask for.
    ///
    /// # Errors
    /// What the executor says when it makes the cache.
    pub fn of(executor: &'e E, windows: &[Window], step: usize, requests: Vec<Request>) -> Result<Self> {
        let longest = windows.iter().map(|w| w.ids.len()).max().unwrap_or(1);
        let step = step.min(longest);
        Ok(Self { executor, cache: executor.new_cache(longest, step)?, longest, step, requests })
    }
    /// Starts the step that reads `window` from place `first` on; places come in order, from 0.
    ///
    /// # Errors
    /// What the executor reports.
    pub fn start(&mut self, window: &Window, first: usize) -> Result<E::Pending> {
        if first == 0 && !self.executor.truncate(&mut self.cache, 0) {
            self.cache = self.executor.new_cache(self.longest, self.step)?;
        }
        let tokens = Tokens::Ids(&window.ids[first..window.ids.len().min(first + self.step)]);
        // As a model that is given the whole window at once.
        let long_rope = self.executor.plan().is_long(window.ids.len());
        let step = Step { tokens, rows: Rows::All, pick: None, read: Read::Nothing, long_rope, requests: &self.requests };
        self.executor.submit(&mut self.cache, &step)
    }
    /// The values of a started step.
    ///
    /// # Errors
    /// What the executor reports.
    pub async fn values(&self, pending: E::Pending) -> Result<Vec<Observed>> {
        Ok(self.executor.finish(pending).await?.values)
    }
    /// The logits of a started step [tokens, head rows].
    ///
    /// # Errors
    /// What the executor reports.
    pub async fn rows(&self, pending: E::Pending) -> Result<Tensor> {
        let full = self.values(pending).await?.into_iter().find_map(|v| match v.content {
            Content::Full(logits) if v.at.stage == Stage::LogitsFinal => Some(logits),
            _ => None,
        });
        full.ok_or_else(|| Error::plan("the plan computes no logits_final"))
    }
}

/// The side that another is measured against, several times perhaps: what it said is kept where that is not too much.
pub struct Reference<'e, E: Executor> {
    reader: Reader<'e, E>,
    step: usize,
    keep: bool,
    /// Logits of steps: all so far, or the last one's.
    logits: Vec<Tensor>,
}

impl<'e, E: Executor> Reference<'e, E> {
    /// Reads with `executor` in steps that suit a model of plan `other` too. With `again`, windows will be asked for
    /// several times, from the first on.
    ///
    /// # Errors
    /// What the executor says when it makes the cache.
    pub fn new(executor: &'e E, other: &Plan, windows: &[Window], again: bool) -> Result<Self> {
        let vocab = executor.plan().vocab_size;
        let step = step_tokens(vocab.max(other.vocab_size));
        let bytes = windows.iter().map(|w| w.ids.len()).sum::<usize>().saturating_mul(4 * vocab);
        let reader = Reader::new(executor, windows, step)?;
        Ok(Self { reader, step, keep: again && bytes <= KEPT_BYTES, logits: Vec::new() })
    }
    /// Its plan.
    pub fn plan(&self) -> &Plan {
        self.reader.executor.plan()
    }
    /// Tokens of a step.
    pub fn step(&self) -> usize {
        self.step
    }
    /// Starts step `number` of all, which reads `window` from place `first` on; nothing where its logits are known.
    ///
    /// # Errors
    /// What the executor reports.
    pub fn start(&mut self, number: usize, window: &Window, first: usize) -> Result<Option<E::Pending>> {
        if self.keep && number < self.logits.len() { Ok(None) } else { self.reader.start(window, first).map(Some) }
    }
    /// The logits of step `number` [tokens, head rows].
    ///
    /// # Errors
    /// What the executor reports.
    pub async fn rows(&mut self, number: usize, started: Option<E::Pending>) -> Result<&Tensor> {
        if let Some(started) = started {
            let rows = self.reader.rows(started).await?;
            if !self.keep {
                self.logits.clear();
            }
            self.logits.push(rows);
        }
        let place = if self.keep { number } else { 0 };
        self.logits.get(place).ok_or_else(|| Error::plan(format!("step {number} of the reference was not read")))
    }
}
