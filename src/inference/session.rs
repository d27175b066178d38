//! A session: one sequence of tokens, its cache, and generation over any executor. Prompts are prefilled in chunks,
//! turns continue what is cached, and answers depend neither on chunks nor on where a token is chosen.
//! It knows no text, no clock and no device; who wants to see values passes an observer.

mod run;

use super::choose::{Chooser, ChooserOptions};
use super::sampling::SamplingConfig;
use crate::error::{Error, Result};
use crate::exec::{Executor, Observer};
use crate::model::GenerationRules;
use crate::plan::Plan;
use std::borrow::Cow;
use std::ops::ControlFlow;

/// How a session is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// Positions to make room for at first; grows up to the plan's `max_positions`.
    pub capacity: usize,
    /// Tokens per step while a prompt is read.
    pub chunk: usize,
    /// Ids from here on are padding of the head and are never chosen. The plan's `vocab_size` masks nothing.
    pub valid_vocab: usize,
    /// PAD, whose choice is a finding. It is chosen all the same, as in transformers.
    pub pad: Option<u32>,
}

/// What one call generates.
#[derive(Debug, Clone)]
pub struct GenerateOptions<'a> {
    /// Tokens to generate at most; 0 only reads the prompt.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingConfig,
    /// Ids that end the generation; none for raw runs.
    pub stop_ids: &'a [u32],
    /// Hash the logits that tokens are chosen from, which brings every row to the host.
    pub hash_logits: bool,
    /// What the model's files say of the choice of tokens. Where any rule can change a choice, whole rows are read and tokens
    /// are chosen here, on every executor; hashes are of the logits before the rules.
    pub rules: Option<&'a GenerationRules>,
    /// Start a greedy step before the one before it has been read. Gains nothing, and delays each token by a step, on
    /// executors that compute while a step is started (the oracle). Answers are the same.
    pub pipelined: bool,
}

impl Default for GenerateOptions<'_> {
    /// Reads the prompt and generates nothing.
    fn default() -> Self {
        Self { max_tokens: 0, sampling: SamplingConfig::default(), stop_ids: &[], hash_logits: false, rules: None, pipelined: true }
    }
}

/// Progress of a generation, as it happens. Breaking ends the generation with `StopReason::Interrupted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Tokens of the prompt that are read. With `done == total` the first token is chosen too, and follows at once:
    /// here prefill time ends and decode time begins.
    Prefill {
        /// Tokens read by this call.
        done: usize,
        /// Tokens that it has to read; those that were cached are not among them.
        total: usize,
    },
    /// The next token, end-of-sequence ids included.
    Token(u32),
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// As many tokens as asked for.
    MaxTokens,
    /// One of the stop ids.
    Eos,
    /// The model's context is full.
    Capacity,
    /// The caller broke off.
    Interrupted,
}

/// What a call generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The new ids, the end-of-sequence id included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// XXH64 (seed 0) of the little-endian f32 `logits_final` rows `[vocab_size]` that tokens were chosen from, in order.
    pub logits_hash: Option<u64>,
    /// Tokens of the prompt that were read, those that were cached not counted.
    pub prefill_tokens: usize,
    /// What had to change on the way, each note once: dropped fusions, a prompt that was read again.
    pub notes: Vec<String>,
}

/// One sequence on one executor.
pub struct Session<'e, E: Executor> {
    executor: &'e E,
    cache: E::Cache,
    options: SessionOptions,
    /// The sequence so far, the last generated token included.
    ids: Vec<u32>,
    /// `ids[..cached]` are in the cache.
    cached: usize,
    /// The longrope list that the cache was filled with.
    long_rope: bool,
    /// The cache holds something else (a step failed, or could not be taken back): to be filled anew.
    stale: bool,
}

impl<'e, E: Executor> Session<'e, E> {
    /// An empty session.
    ///
    /// # Errors
    /// `Kind::Invalid` for a chunk, capacity or vocabulary of 0; what the executor says when it makes the cache.
    pub fn new(executor: &'e E, options: SessionOptions) -> Result<Self> {
        for (what, value) in [("chunk", options.chunk), ("capacity", options.capacity), ("valid_vocab", options.valid_vocab)] {
            if value == 0 {
                return Err(Error::invalid(what, "expected at least 1, found 0"));
            }
        }
        let most = executor.plan().max_positions;
        let (capacity, chunk) = (options.capacity.min(most), options.chunk.min(most));
        let cache = executor.new_cache(capacity, chunk)?;
        let options = SessionOptions { capacity, chunk, ..options };
        Ok(Self { executor, cache, options, ids: Vec::new(), cached: 0, long_rope: false, stale: false })
    }
    /// The sequence so far: prompts and answers.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
    /// How many of them need not be read again.
    pub fn cached(&self) -> usize {
        if self.stale { 0 } else { self.cached }
    }
    /// Replaces the sequence by `ids`, keeping what is cached of their common beginning. `generate` with an empty
    /// prompt then continues them.
    ///
    /// # Errors
    /// `Kind::Invalid` as for `generate`; the session is then as it was.
    pub fn set_prompt(&mut self, ids: &[u32]) -> Result<()> {
        admit(self.executor.plan(), &[], ids)?;
        let common = self.ids[..self.cached()].iter().zip(ids).take_while(|(a, b)| a == b).count();
        self.ids = ids.to_vec();
        // The last token is always read, for its logits.
        self.rewind(common.min(ids.len() - 1));
        Ok(())
    }
    /// Appends `prompt` to the sequence and generates. The observer sees what is computed, not what was cached.
    ///
    /// # Errors
    /// `Kind::Invalid` for an empty sequence, ids that the vocabulary lacks, a prompt longer than the context or a bad
    /// sampling config, all before anything changes; `Kind::Finding` when no token can be chosen; what the executor
    /// and the observer report. After an error the session can go on; it then reads its sequence again.
    pub async fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions<'_>,
        observer: Option<&mut dyn Observer>,
        on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Generated> {
        admit(self.executor.plan(), &self.ids, prompt)?;
        let chooser = Chooser::new(ChooserOptions {
            sampling: options.sampling.clone(),
            valid_vocab: self.options.valid_vocab,
            rules: options.rules.map(Cow::Borrowed),
            hash: options.hash_logits,
            whole_rows: false,
            prompt: self.ids.len() + prompt.len(),
            max_tokens: options.max_tokens,
        })?;
        self.ids.extend_from_slice(prompt);
        let mut notes = Vec::new();
        self.prepare(&mut notes)?;
        // Whatever ends the run early, an error or a dropped future, leaves this set.
        self.stale = true;
        let generated = run::run(self, options, chooser, observer, on_event, notes).await?;
        self.stale = false;
        // The last token's keys and values are not kept, so that every continuation begins in the same way.
        self.rewind(self.ids.len() - 1);
        Ok(generated)
    }

    /// Makes the cache fit the sequence that is about to be read.
    fn prepare(&mut self, notes: &mut Vec<String>) -> Result<()> {
        self.rewind(self.ids.len() - 1);
        let long_rope = self.executor.plan().is_long(self.ids.len());
        if self.stale || (self.cached > 0 && self.long_rope != long_rope) {
            if !self.stale {
                notes.push(crossing(self.executor.plan().longrope_limit()));
            }
            self.start_over()?;
        }
        self.long_rope = long_rope;
        Ok(())
    }
    /// Drops cached positions from `len` on; where the executor cannot, the next call starts over.
    fn rewind(&mut self, len: usize) {
        if len < self.cached {
            self.stale |= !self.executor.truncate(&mut self.cache, len);
            self.cached = len;
        }
    }
    /// Empties the cache.
    fn start_over(&mut self) -> Result<()> {
        if !self.executor.truncate(&mut self.cache, 0) {
            let capacity = self.executor.capacity(&self.cache);
            self.cache = self.executor.new_cache(capacity, self.options.chunk)?;
        }
        (self.cached, self.stale) = (0, false);
        Ok(())
    }
    /// Makes room for `len` positions, and more to come.
    fn reserve(&mut self, len: usize) -> Result<()> {
        let capacity = self.executor.capacity(&self.cache);
        if len <= capacity {
            return Ok(());
        }
        let wanted = len.max(2 * capacity).min(self.executor.plan().max_positions);
        self.executor.grow(&mut self.cache, wanted)
    }
}

/// Whether `prompt` can follow `before`.
pub(crate) fn admit(plan: &Plan, before: &[u32], prompt: &[u32]) -> Result<()> {
    let total = before.len() + prompt.len();
    if total == 0 {
        return Err(Error::invalid("prompt", "expected at least one token, found none"));
    }
    if let Some((i, id)) = prompt.iter().enumerate().find(|(_, id)| **id as usize >= plan.vocab_size) {
        let most = plan.vocab_size.saturating_sub(1);
        return Err(Error::invalid(
            "token id",
            format!("{id} at position {} is out of range: the model has ids 0 to {most}", before.len() + i),
        ));
    }
    if total > plan.max_positions {
        let turns = if before.is_empty() { String::new() } else { format!(" with the {} of the turns before", before.len()) };
        let (count, most) = (prompt.len(), plan.max_positions);
        return Err(Error::invalid("prompt", format!("its {count} tokens{turns} are longer than the model's context of {most}")));
    }
    Ok(())
}

/// Why a sequence was read again.
fn crossing(limit: Option<usize>) -> String {
    let limit = limit.unwrap_or_default();
    format!("the sequence crossed {limit} tokens, where longrope's factors change: it was read again with the others")
}

#[cfg(test)]
mod tests;
