//! The facts about a run that a bundle holds in addition to its ids and values.

use super::{Fingerprint, VERSION};
use crate::config::runtime::RuntimeConfig;
use crate::error::{Error, Result};
use crate::inference::session::{GenerateOptions, SessionOptions};
use crate::model::GenerationRules;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Everything about a run that is neither ids nor values. Keys that this version does not know are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contents {
    /// Version of this record.
    pub version: u32,
    /// The model's name, for people.
    pub model: String,
    /// Text of its `config.json`.
    pub config: String,
    /// Text of its `generation_config.json`, if it has one.
    pub generation_config: Option<String>,
    /// Keys of config.json that were not understood were allowed.
    pub allow_unknown_config: bool,
    /// All of its files that bear on a run, the weights among them.
    pub files: Vec<Fingerprint>,
    /// The whole runtime config: observation, sampling, dtype.
    pub runtime: RuntimeConfig,
    /// The prompt as text, if it was one.
    pub prompt: Option<String>,
    /// How tokens were chosen, as far as the runtime config does not say.
    pub run: Run,
    /// Storage of activations and cache: `f32`, `f16`.
    pub dtype: String,
    /// The device, in words.
    pub device: String,
    /// Versions: `doppler`, `os`, `arch`, drivers, whatever its writer knows.
    pub versions: BTreeMap<String, String>,
    /// XXH64 of the logits that tokens were chosen from, 16 hexadecimal digits, as in the `Done` line.
    pub logits: Option<String>,
    /// What had to change on the way.
    pub notes: Vec<String>,
    /// What was found, as the JSON twins of its lines.
    pub findings: Vec<Value>,
}

/// The settings of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Tokens that were to be generated at most.
    pub max_tokens: usize,
    /// Positions that there was room for.
    pub capacity: usize,
    /// Tokens of the prompt that were read at once.
    pub chunk: usize,
    /// Ids from here on were never chosen.
    pub valid_vocab: usize,
    /// PAD, whose choice was a finding.
    #[serde(alias = "padMasked")]
    pub pad: Option<u32>,
    /// Ids that end the generation.
    pub stop_ids: Vec<u32>,
    /// The model's rules for the choice of tokens, where they were followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<GenerationRules>,
}

impl Contents {
    /// The version that is written.
    pub const VERSION: u32 = VERSION;

    /// Whether the numbers can be used.
    ///
    /// # Errors
    /// `Kind::Format` naming what is wrong.
    pub(super) fn check(&self) -> Result<()> {
        let run = &self.run;
        for (what, value) in [("capacity", run.capacity), ("chunk", run.chunk), ("validVocab", run.valid_vocab)] {
            if value == 0 {
                return Err(Error::format("`bundle`", format!("run.{what}: expected at least 1, found 0")));
            }
        }
        self.hash().map(|_| ())
    }
    /// The logits' hash as a number.
    ///
    /// # Errors
    /// `Kind::Format` when it is invalid.
    pub fn hash(&self) -> Result<Option<u64>> {
        let number = |text: &String| {
            let wrong = |e| Error::format("`bundle`", format!("logits: expected 16 hexadecimal digits, found `{text}`: {e}"));
            u64::from_str_radix(text, 16).map_err(wrong)
        };
        self.logits.as_ref().map(number).transpose()
    }
    /// How a session is set up to repeat the run.
    pub fn session(&self) -> SessionOptions {
        let Run { capacity, chunk, valid_vocab, pad, .. } = self.run;
        SessionOptions { capacity, chunk, valid_vocab, pad }
    }
    /// What it is to generate.
    pub fn generate(&self) -> GenerateOptions<'_> {
        let sampling = crate::settings::sampling(&self.runtime.runtime.inference.sampling);
        let Run { max_tokens, stop_ids, rules, .. } = &self.run;
        GenerateOptions { max_tokens: *max_tokens, sampling, stop_ids, hash_logits: true, rules: rules.as_ref(), pipelined: true }
    }
}
