//! The lines of a run in addition to its records: what was resolved, what was generated and how fast. One line, two
//! spellings: text that people grep, and its JSON twin.

use crate::Result;
use crate::error::About;
use crate::exec::Executor;
use crate::inference::session::{Generated, StopReason};
use crate::inference::tokenizer::escape_line;
use crate::inference::words::Words;
use crate::loader::NonFinite;
use crate::model::Resolved;
use serde::Serialize;
use std::borrow::Cow;
use std::fmt;

/// One line. In JSON, `type` names the variant; keys are camelCase; what does not apply is null.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Line {
    /// What was resolved.
    Config {
        /// The model's name.
        model: String,
        /// The model preset.
        preset: String,
        /// Layers.
        layers: usize,
        /// Width of the residual stream.
        hidden: usize,
        /// Rows of the embedding.
        vocab: usize,
        /// Types of the stored weights, like `bf16+f32`.
        weights: String,
        /// Storage of activations and cache.
        dtype: String,
        /// Longest sequence.
        context: usize,
        /// The runtime config's name, where it has one.
        config: Option<String>,
        /// What is changed of values, in the words of `--set`; left out where nothing is.
        #[serde(skip_serializing_if = "Option::is_none")]
        edited: Option<String>,
        /// Device, in words.
        device: String,
        /// Keys of config.json that were not understood and, as allowed, not used.
        ignored_keys: Vec<String>,
    },
    /// What had to change so that something could be done.
    Note {
        /// What there is to say.
        text: String,
    },
    /// What the model reads.
    Prompt {
        /// The prompt's ids as text, with special tokens; `None` without a tokenizer.
        text: Option<String>,
        /// How many ids.
        tokens: usize,
    },
    /// Something found where no value is watched.
    Anomaly {
        /// The rule's name.
        kind: &'static str,
        /// The stage.
        stage: Option<&'static str>,
        /// The layer.
        layer: Option<usize>,
        /// What there is to say, as `key=value`.
        details: String,
    },
    /// What was generated.
    Output {
        /// `None` without a tokenizer.
        text: Option<String>,
        /// The prompt.
        input_ids: Vec<u32>,
        /// What was generated.
        ids: Vec<u32>,
    },
    /// The end.
    Done {
        /// Generated tokens.
        tokens: usize,
        /// From the start of the prompt to the last token.
        milliseconds: f64,
        /// From the start to the first token, compiling kernels included where that was still to be done.
        first_token_milliseconds: f64,
        /// Tokens of the prompt that were computed.
        prefill_tokens: usize,
        /// Those over the time to the first token.
        prefill_tokens_per_second: Option<f64>,
        /// All tokens but the first over the time since.
        decode_tokens_per_second: Option<f64>,
        /// XXH64 of the logits that tokens were chosen from, in hex, where they were read.
        logits: Option<String>,
        /// Why generation ended.
        stop: &'static str,
    },
    /// Why the work could not be done.
    Error {
        /// The error's kind, one lower-case word.
        kind: String,
        /// What there is to say.
        message: String,
        /// What it is about, where a program could act on that; left out elsewhere.
        #[serde(skip_serializing_if = "Option::is_none")]
        about: Option<Box<About>>,
    },
}

/// How long a generation took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    /// To the first token.
    pub prefill: f64,
    /// In all.
    pub total: f64,
}

impl Line {
    /// The `Config` line of `model` on `executor`. `weights` names the types of the stored weights, `config` the runtime
    /// config.
    pub fn config(model: &str, resolved: &Resolved, executor: &impl Executor, weights: &str, config: Option<&str>) -> Self {
        let (of, plan) = (&resolved.config, executor.plan());
        Self::Config {
            model: model.into(),
            preset: of.preset.clone(),
            layers: plan.num_layers,
            hidden: of.hidden_size,
            vocab: of.vocab_size,
            weights: weights.into(),
            dtype: executor.storage().activations.to_string(),
            context: plan.max_positions,
            config: config.map(str::to_string),
            edited: (!plan.edited().is_empty()).then(|| plan.edited().join("; ")),
            device: executor.describe(),
            ignored_keys: resolved.ignored_keys.clone(),
        }
    }
    /// What a dump's metadata say of the run: of a `Config` line, its model, storage and device.
    pub fn metadata(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::Config { model, dtype, device, edited, .. } => {
                let edited = edited.as_deref().map(|edited| ("edited", edited));
                [("model", &**model), ("dtype", &**dtype), ("device", &**device)].into_iter().chain(edited).collect()
            }
            _ => Vec::new(),
        }
    }
    /// The `Note` line.
    pub fn note(text: impl Into<String>) -> Self {
        Self::Note { text: text.into() }
    }
    /// The `Prompt` line: what became of the prompt, as the model's words spell it.
    ///
    /// # Errors
    /// `Kind::Tokenizer`.
    pub fn prompt(ids: &[u32], words: Option<&Words>) -> Result<Self> {
        let text = words.map(|words| words.tokenizer.decode(ids, false)).transpose()?;
        Ok(Self::Prompt { text, tokens: ids.len() })
    }
    /// A tensor of which some weights are NaN or Inf.
    pub fn weights_anomaly(found: &NonFinite) -> Self {
        let NonFinite { tensor, shape, nan, inf, first } = found;
        let details = format!("tensor={tensor} shape={shape:?} nan={nan} inf={inf} first={first}");
        Self::Anomaly { kind: "non_finite_weights", stage: None, layer: None, details }
    }
    /// Logits of which no token could be chosen, as `details` say.
    pub fn logits_anomaly(details: &str) -> Self {
        Self::Anomaly { kind: "non_finite_logits", stage: Some("logits_final"), layer: None, details: details.into() }
    }
    /// The `Done` line.
    pub fn done(generated: &Generated, times: Times) -> Self {
        let rate = |count: usize, milliseconds: f64| (count > 0 && milliseconds > 0.0).then(|| count as f64 / milliseconds * 1e3);
        // The first token belongs to the prompt's time.
        let decoded = generated.ids.len().saturating_sub(1);
        Self::Done {
            tokens: generated.ids.len(),
            milliseconds: times.total,
            first_token_milliseconds: times.prefill,
            prefill_tokens: generated.prefill_tokens,
            prefill_tokens_per_second: rate(generated.prefill_tokens, times.prefill),
            decode_tokens_per_second: rate(decoded, times.total - times.prefill),
            logits: generated.logits_hash.map(|hash| format!("{hash:016x}")),
            stop: match generated.stop {
                StopReason::MaxTokens => "maxTokens",
                StopReason::Eos => "eos",
                StopReason::Capacity => "context",
                StopReason::Interrupted => "interrupted",
            },
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Config { model, preset, layers, hidden, vocab, weights, dtype, context, config, edited, device, ignored_keys } => {
                write!(f, "Config model={model} preset={preset} layers={layers} hidden={hidden} vocab={vocab} weights={weights}")?;
                write!(f, " dtype={dtype} context={context}")?;
                config.as_ref().map_or(Ok(()), |config| write!(f, " config={config}"))?;
                if !ignored_keys.is_empty() {
                    write!(f, " ignored={}", ignored_keys.join(","))?;
                }
                edited.as_ref().map_or(Ok(()), |edited| write!(f, " edited={edited:?}"))?;
                write!(f, " device={device}")
            }
            Line::Note { text } => write!(f, "Note {text}"),
            Line::Prompt { text, tokens } => {
                let plural = if *tokens == 1 { "" } else { "s" };
                write!(f, "Prompt {tokens} token{plural}")?;
                text.as_ref().map_or(Ok(()), |text| write!(f, ": {}", ends(&escape_line(text))))
            }
            Line::Anomaly { kind, stage, layer, details } => {
                write!(f, "ANOMALY kind={kind}")?;
                stage.map_or(Ok(()), |stage| write!(f, " stage={stage}"))?;
                layer.map_or(Ok(()), |layer| write!(f, " layer={layer}"))?;
                write!(f, " {details}")
            }
            Line::Output { text: Some(text), .. } => write!(f, "Output {}", escape_line(text)),
            Line::Output { text: None, ids, .. } => {
                let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
                write!(f, "Output ids {}", ids.join(","))
            }
            Line::Done {
                tokens,
                milliseconds,
                first_token_milliseconds: first,
                prefill_tokens_per_second,
                decode_tokens_per_second,
                logits,
                ..
            } => {
                let rate = |rate: &Option<f64>| rate.map_or("-".to_string(), |rate| format!("{rate:.1}"));
                let (prefill, decode) = (rate(prefill_tokens_per_second), rate(decode_tokens_per_second));
                write!(f, "Done {tokens} tokens in {milliseconds:.1} ms (prefill {prefill} tok/s, decode {decode} tok/s, ")?;
                write!(f, "first token after {first:.1} ms)")?;
                logits.as_ref().map_or(Ok(()), |hash| write!(f, " logits={hash}"))
            }
            Line::Error { message, .. } => write!(f, "Error {message}"),
        }
    }
}

/// Characters of a prompt that its line shows at most.
const SHOWN: usize = 400;

/// A long text's beginning and end.
fn ends(text: &str) -> Cow<'_, str> {
    let count = text.chars().count();
    if count <= SHOWN {
        return text.into();
    }
    let at = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(at, _)| at);
    format!("{} … {}", &text[..at(SHOWN / 2)], &text[at(count - SHOWN / 2)..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_shown_as_the_model_reads_it() {
        let line = |text: Option<&str>, tokens| Line::Prompt { text: text.map(str::to_string), tokens }.to_string();
        assert_eq!(line(Some("<bos>a\nb"), 3), "Prompt 3 tokens: <bos>a\\nb");
        assert_eq!(line(None, 1), "Prompt 1 token");
        let long = line(Some(&format!("{}é{}", "a".repeat(399), "b".repeat(300))), 700);
        assert_eq!(long, format!("Prompt 700 tokens: {} … {}", "a".repeat(200), "b".repeat(200)));
    }

    #[test]
    fn a_line_is_one_line_and_rates_are_numbers_or_absent() {
        let output = Line::Output { text: Some(" a\nb\u{1b}".into()), input_ids: vec![2], ids: vec![3, 4] };
        assert_eq!(output.to_string(), "Output  a\\nb\\u{1b}");
        let ids = Line::Output { text: None, input_ids: vec![2], ids: vec![3, 4] };
        assert_eq!(ids.to_string(), "Output ids 3,4");
        let generated = Generated { ids: vec![7], prefill_tokens: 2, logits_hash: Some(10), stop: StopReason::Eos, notes: Vec::new() };
        let done = Line::done(&generated, Times { prefill: 10.0, total: 12.34 });
        assert_eq!(
            done.to_string(),
            "Done 1 tokens in 12.3 ms (prefill 200.0 tok/s, decode - tok/s, first token after 10.0 ms) logits=000000000000000a"
        );
        let json = serde_json::to_value(&done).unwrap();
        assert_eq!((&json["type"], &json["decodeTokensPerSecond"]), (&"done".into(), &serde_json::Value::Null));
    }

    #[test]
    fn anomalies_name_their_rule_first() {
        let found = NonFinite { tensor: "w".into(), shape: vec![2], nan: 1, inf: 0, first: 1 };
        let line = Line::weights_anomaly(&found).to_string();
        assert_eq!(line, "ANOMALY kind=non_finite_weights tensor=w shape=[2] nan=1 inf=0 first=1");
        let line = Line::logits_anomaly("step=0").to_string();
        assert_eq!(line, "ANOMALY kind=non_finite_logits stage=logits_final step=0");
    }
}
