//! How the next token of a sequence comes from what a step gives: by the executor, among its highest candidates, or from the
//! whole row after the model's rules; and the hash of the rows that tokens were chosen from. Sessions and batches use it. It
//! holds no executor.

use crate::error::{Error, Result};
use crate::exec::{Pick, Read, StepOutput};
use crate::inference::rules::{self, Place};
use crate::inference::sampling::{Sampler, SamplingConfig, TokenMask};
use crate::model::GenerationRules;
use crate::plan::{At, Stage};
use std::borrow::Cow;
use xxhash_rust::xxh64::Xxh64;

/// Most candidates that are read back instead of the whole row.
const MAX_TOP: u32 = 64;

/// Where tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// By the executor.
    Pick,
    /// Here, among its highest candidates.
    Top(usize),
    /// Here, from the whole row.
    Logits,
}

/// What is asked of the choice of tokens.
#[derive(Debug, Clone)]
pub struct ChooserOptions<'r> {
    /// How tokens are sampled.
    pub sampling: SamplingConfig,
    /// Ids from here on are padding of the head and are never chosen.
    pub valid_vocab: usize,
    /// Rules that change a row before it is sampled from; those that can change nothing cost nothing.
    pub rules: Option<Cow<'r, GenerationRules>>,
    /// Hash the rows, which brings every one to the host.
    pub hash: bool,
    /// Bring every row to the host for the caller, too.
    pub whole_rows: bool,
    /// Tokens of the sequence before anything is generated.
    pub prompt: usize,
    /// New tokens at most.
    pub max_tokens: usize,
}

/// Chooses the tokens of one generation.
#[derive(Clone)]
pub struct Chooser<'r> {
    sampler: Sampler,
    rules: Option<Cow<'r, GenerationRules>>,
    choice: Choice,
    hash: Option<Xxh64>,
    whole_rows: bool,
    valid_vocab: usize,
    prompt: usize,
    max_tokens: usize,
}

impl<'r> Chooser<'r> {
    /// A chooser.
    ///
    /// # Errors
    /// Those of `SamplingConfig::validate`.
    pub fn new(options: ChooserOptions<'r>) -> Result<Self> {
        let ChooserOptions { sampling, valid_vocab, rules, hash, whole_rows, prompt, max_tokens } = options;
        let valid = u32::try_from(valid_vocab).unwrap_or(u32::MAX);
        let sampler = Sampler::new(sampling, TokenMask::new(std::iter::once(valid..u32::MAX)))?;
        let rules = rules.filter(|rules| rules.any());
        let choice = match sampler.candidates() {
            _ if rules.is_some() => Choice::Logits,
            Some(_) if sampler.config().temperature == 0.0 => Choice::Pick,
            Some(k) if k <= MAX_TOP && !hash && !whole_rows => Choice::Top(k as usize),
            _ => Choice::Logits,
        };
        let hash = hash.then(|| Xxh64::new(0));
        Ok(Self { sampler, rules, choice, hash, whole_rows, valid_vocab, prompt, max_tokens })
    }
    /// Whether the executor chooses, so that the next step can be started before this one was read.
    pub fn is_picked(&self) -> bool {
        self.choice == Choice::Pick
    }
    /// The choice of the executor in a step after which a token is chosen, where it has one.
    pub fn pick(&self) -> Option<Pick> {
        (self.choice != Choice::Logits).then_some(Pick { valid: self.valid_vocab })
    }
    /// What is to be read of such a step.
    pub fn read(&self) -> Read {
        match self.choice {
            _ if self.hash.is_some() || self.whole_rows => Read::Logits,
            Choice::Pick => Read::Nothing,
            Choice::Top(k) => Read::Top(k),
            Choice::Logits => Read::Logits,
        }
    }
    /// The token after `ids`, the sequence so far. Random numbers belong to positions, so they do not depend on earlier calls.
    ///
    /// # Errors
    /// `Kind::Finding` where no token can be chosen; `Kind::Device` where the executor gave less than was to be read.
    pub fn choose(&self, output: &StepOutput, ids: &[u32]) -> Result<u32> {
        let position = ids.len();
        let absent = |what: &str| Error::device(format!("the executor returned no {what} for position {position}"));
        if self.read() == Read::Logits && output.logits.is_none() {
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
                .on(At { stage: Stage::LogitsFinal, layer: None }.about())
            }),
            Choice::Top(_) => {
                let top = output.top.as_ref().ok_or_else(|| absent("candidates"))?;
                self.sampler.sample_candidates(top, position as u64).map_err(at)
            }
            Choice::Logits => {
                let logits = output.logits.as_ref().ok_or_else(|| absent("logits"))?;
                let Some(rules) = &self.rules else { return self.sampler.sample(logits, ids, position as u64).map_err(at) };
                let mut row = logits.clone();
                rules::apply(rules, &mut row, Place { ids, prompt: self.prompt, max_tokens: self.max_tokens });
                self.sampler.sample(&row, ids, position as u64).map_err(at)
            }
        }
    }
    /// Takes the row of an accepted token into the hash.
    pub fn accept(&mut self, output: &StepOutput) {
        if let (Some(hash), Some(logits)) = (&mut self.hash, &output.logits) {
            let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
            hash.update(&bytes);
        }
    }
    /// Ids from here on are never chosen.
    pub fn valid_vocab(&self) -> usize {
        self.valid_vocab
    }
    /// The hash of the rows so far, if one was asked for: `Generated::logits_hash`.
    pub fn hash(&self) -> Option<u64> {
        self.hash.as_ref().map(Xxh64::digest)
    }
}
