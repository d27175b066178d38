//! Whether a tokenizer's patterns can split a text to its end. The `tokenizers` crate stops splitting without a word when
//! `fancy-regex` gives up after a million steps, and what follows would get other ids than in Python; so the patterns are
//! tried first, and a text that they cannot split is an error.

use fancy_regex::Regex;

use crate::error::{Error, Result};

/// The patterns of a tokenizer.
#[derive(Default)]
pub(super) struct Splitting {
    patterns: Vec<Regex>,
}

impl Splitting {
    /// Compiles `patterns` as the crate does.
    pub fn new(patterns: Vec<String>) -> Result<Self> {
        let compile = |pattern: &String| {
            Regex::new(pattern).map_err(|e| Error::tokenizer(format!("tokenizer.json: the pattern {pattern:?} cannot be read: {e}")))
        };
        Ok(Self { patterns: patterns.iter().map(compile).collect::<Result<_>>()? })
    }

    /// Tries every pattern on `text`.
    pub fn check(&self, text: &str) -> Result<()> {
        for pattern in &self.patterns {
            let mut at = 0;
            for found in pattern.find_iter(text) {
                match found {
                    Ok(found) => at = found.end(),
                    Err(_) => {
                        return Err(Error::tokenizer(format!(
                            "the tokenizer's pattern cannot split the text after byte {at} of {}: a run of like characters (spaces, line breaks) is too long there; shorten it",
                            text.len()
                        )));
                    }
                }
            }
        }
        Ok(())
    }
}
