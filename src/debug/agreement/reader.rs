//! One side of a comparison: reads windows in steps and gives the final logits of each step's tokens.

use super::Window;
use crate::error::{Error, Result};
use crate::exec::{Content, Executor, Read, Request, Rows, Step, Tokens, Want};
use crate::plan::Stage;
use crate::tensor::Tensor;

/// An executor with a cache for the longest window.
pub struct Reader<'e, E: Executor> {
    executor: &'e E,
    cache: E::Cache,
    longest: usize,
    step: usize,
    requests: [Request; 1],
}

impl<'e, E: Executor> Reader<'e, E> {
    /// Reads with `executor`, `step` tokens at a time.
    ///
    /// # Errors
    /// What the executor says when it makes the cache.
    pub fn new(executor: &'e E, windows: &[Window], step: usize) -> Result<Self> {
        let longest = windows.iter().map(|w| w.ids.len()).max().unwrap_or(1);
        let step = step.min(longest);
        let requests = [Request { stage: Stage::LogitsFinal, layers: None, want: Want::Full }];
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
        let long_rope = self.executor.plan().longrope_limit().is_some_and(|limit| window.ids.len() > limit);
        let step = Step { tokens, rows: Rows::All, pick: None, read: Read::Nothing, long_rope, requests: &self.requests };
        self.executor.submit(&mut self.cache, &step)
    }
    /// The logits of a started step [tokens, head rows].
    ///
    /// # Errors
    /// What the executor reports.
    pub async fn rows(&self, pending: E::Pending) -> Result<Tensor> {
        let output = self.executor.finish(pending).await?;
        let full = output.values.into_iter().find_map(|v| match v.content {
            Content::Full(logits) if v.at.stage == Stage::LogitsFinal => Some(logits),
            _ => None,
        });
        full.ok_or_else(|| Error::plan("the plan computes no logits_final"))
    }
}
