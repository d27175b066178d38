//! How long a text becomes on its way to ids, before the `tokenizers` crate makes it so: the crate keeps some hundred bytes for
//! each of its bytes. Normalizers run here one after the other, and what each makes is known before the next begins.

use std::sync::{Mutex, PoisonError};

use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, Tokenizer};

use super::growth;
use super::outline::Outline;
use crate::error::{Error, Result};

/// Bytes that any text may become.
const LONGEST: f64 = (1u64 << 20) as f64;
/// How many times longer a text above that may become. The steps of known models have 11 at most.
const TIMES: f64 = 16.0;

/// What the parts of a tokenizer make of a text at most.
pub(super) struct Length {
    /// How many times longer each normalizer makes a part of a text, and how many bytes more than that, in their order.
    steps: Vec<(f64, usize)>,
    /// How many times longer pre-tokenizer and post-processor make it then.
    after: f64,
}

impl Length {
    /// Of the complete pipeline of `tokenizer`, which `outline` describes.
    pub fn new(tokenizer: &Tokenizer, outline: &Outline) -> Result<Self> {
        let mut steps = Vec::new();
        if outline.growth() > 1.0 {
            for step in tokenizer.get_normalizer().map(flat).unwrap_or_default() {
                let part = serde_json::to_value(step).map_err(|e| Error::tokenizer(format!("tokenizer.json: {e}")))?;
                // What is put before a part comes once, whatever the part's length.
                steps.push(match step {
                    NormalizerWrapper::Prepend(prepend) => (1.0, prepend.prepend.len()),
                    _ => (growth::normalizer(&part), 0),
                });
            }
        }
        Ok(Self { steps, after: outline.added_growth() })
    }

    /// Gives each part of `text`, normalized, to `look`: the parts between added tokens.
    ///
    /// # Errors
    /// `Kind::Tokenizer` where the text may become too long; those of `look`.
    pub fn check(&self, tokenizer: &Tokenizer, text: &str, look: &(dyn Fn(&str) -> Result<()> + Sync)) -> Result<()> {
        let most = LONGEST.max(TIMES * text.len() as f64);
        if self.steps.is_empty() {
            look(text)?;
            return fits(text, text.len() as f64 * self.after, most);
        }
        let steps = tokenizer.get_normalizer().map(flat).unwrap_or_default();
        let walk = Walk { text, steps: &steps, growth: &self.steps, most, made: Mutex::new(Ok(0.0)), look };
        // Added tokens are found first, as the crate does it: what stands at the beginning of each part counts.
        tokenizer.get_added_vocabulary().extract_and_normalize(Some(&walk), text);
        let made = walk.made.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        fits(text, made * self.after, most)
    }
}

/// The normalizers of a sequence, and of those in it.
fn flat(normalizer: &NormalizerWrapper) -> Vec<&NormalizerWrapper> {
    match normalizer {
        NormalizerWrapper::Sequence(sequence) => sequence.as_ref().iter().flat_map(flat).collect(),
        other => vec![other],
    }
}

fn fits(text: &str, bytes: f64, most: f64) -> Result<()> {
    if bytes <= most {
        return Ok(());
    }
    Err(Error::tokenizer(format!(
        "the tokenizer may make {bytes:.0} bytes of a text of {}, expected {most:.0} at most: check tokenizer.json, or shorten the text",
        text.len()
    )))
}

/// A normalizer that stops where a text becomes too long. The crate drops errors of normalizers, so they are kept here.
struct Walk<'a> {
    text: &'a str,
    steps: &'a [&'a NormalizerWrapper],
    growth: &'a [(f64, usize)],
    most: f64,
    /// Bytes of the parts so far. Normalizers are shared between threads, so this is behind a lock.
    made: Mutex<Result<f64>>,
    look: &'a (dyn Fn(&str) -> Result<()> + Sync),
}

impl Walk<'_> {
    /// Bytes of the parts with this one.
    fn part(&self, part: &mut NormalizedString, before: f64) -> Result<f64> {
        for (step, (times, more)) in self.steps.iter().zip(self.growth) {
            fits(self.text, before + part.get().len() as f64 * times + *more as f64, self.most)?;
            step.normalize(part).map_err(super::failed("encoding text"))?;
        }
        (self.look)(part.get())?;
        Ok(before + part.get().len() as f64)
    }
}

impl Normalizer for Walk<'_> {
    fn normalize(&self, part: &mut NormalizedString) -> tokenizers::Result<()> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(before) = *made {
            *made = self.part(part, before);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TokenIds, Tokenizer, TokenizerConfig};
    use serde_json::{Value, json};

    fn tokenizer(normalizer: &Value, splitter: &Value) -> Tokenizer {
        let special = json!({"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        let file = json!({"version": "1.0", "added_tokens": [special], "normalizer": normalizer, "pre_tokenizer": splitter, "decoder": null,
            "post_processor": null, "model": {"type": "BPE", "unk_token": "a", "vocab": {"a": 0}, "merges": []}});
        Tokenizer::from_bytes(&serde_json::to_vec(&file).unwrap(), &TokenizerConfig::default(), &TokenIds::default()).unwrap()
    }

    #[test]
    fn long_texts_are_refused_before_they_are_made() {
        let refused = |normalizer: Value, splitter: Value, text: &str| {
            let error = tokenizer(&normalizer, &splitter).encode(text, true).err();
            error.inspect(|e| assert!(e.message.contains("the tokenizer may make"), "{e}")).is_some()
        };
        let replace = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(4000)});
        assert!(refused(replace.clone(), Value::Null, &"a".repeat(10_000)));
        assert!(!refused(replace.clone(), Value::Null, &"b".repeat(100)));
        // Inside a sequence too.
        let twice = json!({"type": "Sequence", "normalizers": [{"type": "Nmt"}, {"type": "Sequence", "normalizers": [replace]}]});
        assert!(refused(twice, Value::Null, &"a".repeat(10_000)));
        // Put before each part between added tokens.
        let prepend = json!({"type": "Prepend", "prepend": "a".repeat(4000)});
        assert!(refused(prepend.clone(), Value::Null, &"<s>a".repeat(10_000)));
        assert!(!refused(prepend, Value::Null, &"a".repeat(1000)));
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let levels = json!({"type": "Sequence", "pretokenizers": vec![level; 12]});
        assert!(refused(Value::Null, levels.clone(), &"a".repeat(10_000)));
        assert!(!refused(Value::Null, levels, "a"));
    }
}
