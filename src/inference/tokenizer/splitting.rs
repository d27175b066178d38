//! Whether a tokenizer's patterns can split a text to its end. The `tokenizers` crate stops splitting without a word when
//! `fancy-regex` gives up after a million steps, and what follows would get other ids than in Python; so the patterns are
//! tried first, and a text that they cannot split is an error. What all matches of a text cost together is bounded too.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use fancy_regex::{Regex, RegexBuilder};

use crate::error::{Error, Result};

/// Steps that one match may take. A match that takes more than one limit is tried again under the next. The last is that of
/// the `tokenizers` crate; matches within the first, as nearly all are, are not counted.
const LIMITS: [usize; 4] = [128, 2048, 32_768, 1_000_000];
/// Steps of the counted matches of one text: so many, and so many more for each byte.
const STEPS: usize = 4_000_000;
const STEPS_OF_BYTE: usize = 100;

/// A pattern, compiled for each of `LIMITS` once that is needed.
struct Pattern {
    text: String,
    compiled: [OnceLock<Option<Regex>>; LIMITS.len()],
}

/// The patterns of a tokenizer.
#[derive(Default)]
pub(super) struct Splitting {
    patterns: Vec<Pattern>,
}

impl Splitting {
    /// Compiles `patterns` as the crate does.
    pub fn new(patterns: Vec<String>) -> Result<Self> {
        let pattern = |text: String| {
            let regex = compile(&text, LIMITS[0])
                .map_err(|e| Error::tokenizer(format!("tokenizer.json: the pattern {text:?} cannot be read: {e}")))?;
            let pattern = Pattern { text, compiled: Default::default() };
            let _ = pattern.compiled[0].set(Some(regex));
            Ok(pattern)
        };
        Ok(Self { patterns: patterns.into_iter().map(pattern).collect::<Result<_>>()? })
    }

    /// Tries every pattern on `text`, a part of what `steps` are for.
    ///
    /// # Errors
    /// `Kind::Tokenizer` where a match takes more steps than the crate allows, or all take more than a text of this length may.
    pub fn check(&self, text: &str, steps: &Steps) -> Result<()> {
        let mut taken = steps.taken.load(Ordering::Relaxed);
        let found = self.patterns.iter().try_for_each(|pattern| pattern.check(text, steps.most, &mut taken));
        steps.taken.store(taken, Ordering::Relaxed);
        found
    }
}

/// What the counted matches of a text may take, in all its parts together.
pub(super) struct Steps {
    most: usize,
    taken: AtomicUsize,
}

impl Steps {
    /// For `text`.
    pub fn of(text: &str) -> Self {
        Self { most: text.len().saturating_mul(STEPS_OF_BYTE).saturating_add(STEPS), taken: AtomicUsize::new(0) }
    }
}

impl Pattern {
    /// Finds every match in `text`. `steps` are those that were counted, `most` how many may be.
    fn check(&self, text: &str, most: usize, steps: &mut usize) -> Result<()> {
        let mut at = 0;
        while at <= text.len() {
            let Some((start, end)) = self.find(text, at, most, steps)? else { break };
            // After an empty match the search goes on one character later.
            at = if end > start { end } else { end + text.get(end..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8) };
        }
        Ok(())
    }

    /// The first match from byte `at` on.
    fn find(&self, text: &str, at: usize, most: usize, steps: &mut usize) -> Result<Option<(usize, usize)>> {
        for (i, limit) in LIMITS.into_iter().enumerate() {
            if i > 0 {
                *steps = steps.saturating_add(limit);
            }
            if *steps > most {
                return Err(Error::tokenizer(format!(
                    "the tokenizer's pattern {:?} takes more than {most} steps for a text of {} bytes, at byte {at}: a pattern that tries so much is broken or hostile; check tokenizer.json, or shorten runs of like characters",
                    self.text,
                    text.len()
                )));
            }
            let regex = self.compiled[i].get_or_init(|| compile(&self.text, limit).ok());
            if let Some(Ok(found)) = regex.as_ref().map(|regex| regex.find_from_pos(text, at)) {
                return Ok(found.map(|found| (found.start(), found.end())));
            }
        }
        Err(Error::tokenizer(format!(
            "the tokenizer's pattern cannot split the text after byte {at} of {}: a run of like characters (spaces, line breaks) is too long there; shorten it",
            text.len()
        )))
    }
}

fn compile(pattern: &str, limit: usize) -> std::result::Result<Regex, fancy_regex::Error> {
    RegexBuilder::new(pattern).backtrack_limit(limit).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What GPT-2, Llama 3 and Qwen split by, in one.
    const USUAL: &str = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    #[test]
    fn usual_texts_are_split_to_their_end() {
        let splitting = Splitting::new(vec![USUAL.into(), "(?=x)|".into()]).unwrap();
        let code = format!("fn f() {{\n{}let x = 1;\n}}\n\n", " ".repeat(300));
        for text in ["", "é", "a b  c", &code.repeat(200), &"word ".repeat(20_000), &" ".repeat(20_000), &"\n ".repeat(9_000)] {
            splitting.check(text, &Steps::of(text)).unwrap_or_else(|e| panic!("{} bytes: {e}", text.len()));
        }
        let text = format!("a{}b", " ".repeat(2_000_000));
        let error = splitting.check(&text, &Steps::of(&text)).unwrap_err();
        assert!(error.message.contains("too long there"), "{error}");
    }

    /// Each match takes hundreds of thousands of steps, which the crate allows, and there is one for every character.
    #[test]
    fn all_matches_together_are_bounded() {
        let splitting = Splitting::new(vec![r"(?:(?=a)a?){17}(?=b)b|a".into()]).unwrap();
        let text = "a".repeat(10_000);
        let error = splitting.check(&text, &Steps::of(&text)).unwrap_err();
        assert!(error.message.contains("takes more than 5000000 steps for a text of 10000 bytes, at byte "), "{error}");
        // Also where it comes in parts.
        let steps = Steps::of(&text);
        assert!((0..1000).any(|_| splitting.check(&text[..100], &steps).is_err()));
        splitting.check("aab", &Steps::of("aab")).unwrap();
        assert!(Splitting::new(vec!["(".into()]).is_err());
    }
}
