//! A text's ids against those of another tokenizer: where they part first, in the text and in both lists.

use crate::error::{Error, Result};
use crate::inference::tokenizer::{Tokenizer, escape_line};
use serde::Serialize;
use std::ops::Range;

/// Bytes of text that are shown before a mismatch, and after it.
const AROUND: usize = 32;

/// How two lists of ids compare.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Ids of ours.
    pub ours: usize,
    /// Ids that were expected.
    pub expected: usize,
    /// Where they part; `None` when they are equal.
    pub mismatch: Option<Mismatch>,
}

/// The first place where two lists differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mismatch {
    /// Index in both lists.
    pub index: usize,
    /// Our token there; `None` when ours end.
    pub ours: Option<Token>,
    /// The expected token; `None` when those end.
    pub expected: Option<Token>,
    /// Bytes of the text that our token stands for, whole characters; empty at its end and for tokens that were added.
    pub span: Range<usize>,
    /// The text before, on one line.
    pub before: String,
    /// The text of the span.
    pub at: String,
    /// The text after.
    pub after: String,
    /// Ids from `index` on, of ours and of the expected, before both lists are equal again up to their ends.
    pub differing: [usize; 2],
    /// What that looks like, where it looks like something.
    pub hint: Option<&'static str>,
}

/// An id and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// The id.
    pub id: u32,
    /// Its text by our tokenizer, on one line.
    pub text: String,
}

/// Compares our ids of `text` with `expected`. With `add_special`, ours have what the tokenizer adds (BOS).
///
/// # Errors
/// `Kind::Tokenizer` if the tokenizer refuses the text.
pub fn compare(tokenizer: &Tokenizer, text: &str, add_special: bool, expected: &[u32]) -> Result<Comparison> {
    let ours = tokenizer.encode_spans(text, add_special)?;
    let ids: Vec<u32> = ours.iter().map(|(id, _)| *id).collect();
    let mut found = Comparison { ours: ids.len(), expected: expected.len(), mismatch: None };
    let index = common(ids.iter(), expected.iter());
    if index == ids.len().max(expected.len()) {
        return Ok(found);
    }
    let (rest_a, rest_b) = (&ids[index..], &expected[index..]);
    let tail = common(rest_a.iter().rev(), rest_b.iter().rev());
    let token = |id: Option<&u32>| id.map(|id| Token { id: *id, text: tokenizer.token_text(*id) });
    // Added tokens stand nowhere in the text: they are put where the text before them ends.
    let reached = ours[..index].iter().map(|(_, span)| span.end).max().unwrap_or(0);
    let span = ours.get(index).map_or(text.len()..text.len(), |(_, span)| if span.is_empty() { reached..reached } else { span.clone() });
    let span = floor(text, span.start)..ceiling(text, span.end);
    let start = floor(text, span.start.saturating_sub(AROUND));
    let end = floor(text, (span.end + AROUND).min(text.len()));
    let part = |range: Range<usize>| escape_line(text.get(range).unwrap_or_default());
    found.mismatch = Some(Mismatch {
        index,
        ours: token(rest_a.first()),
        expected: token(rest_b.first()),
        before: part(start..span.start),
        at: part(span.clone()),
        after: part(span.end..end),
        span,
        differing: [rest_a.len() - tail, rest_b.len() - tail],
        hint: hint(tokenizer, &ids, expected),
    });
    Ok(found)
}

/// Ids of a text: a JSON list, or numbers with commas or white space between them.
///
/// # Errors
/// `Kind::Format` for what is no id, saying which entry.
pub fn parse_ids(name: &str, text: &str) -> Result<Vec<u32>> {
    let text = text.trim();
    if text.starts_with('[') {
        let hint = "expected a JSON list of ids, as `[2, 651, 235265]`";
        return serde_json::from_str(text).map_err(|e| Error::format(name, format!("{hint}: {e}")));
    }
    let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    let id = |(i, part): (usize, &str)| {
        part.parse().map_err(|_| {
            let shown: String = escape_line(part).chars().take(40).collect();
            Error::format(
                name,
                format!(
                    "entry {}: expected an id, found `{shown}`; ids are a JSON list, or numbers with commas or blanks between them",
                    i + 1
                ),
            )
        })
    };
    parts.enumerate().map(id).collect()
}

impl Comparison {
    /// `TOKENS 12 equal`, or `TOKENS mismatch index=3 ours=17(" sea") expected=18(" see") bytes=10..14 text="by the« sea» shore" …`.
    pub fn text(&self) -> String {
        let Some(m) = &self.mismatch else { return format!("TOKENS {} equal", self.ours) };
        let token = |t: &Option<Token>| t.as_ref().map_or("end".to_string(), |t| format!("{}(\"{}\")", t.id, t.text));
        let (ours, expected) = (token(&m.ours), token(&m.expected));
        let [a, b] = m.differing;
        let hint = m.hint.map_or(String::new(), |hint| format!(" ({hint})"));
        format!(
            "TOKENS mismatch index={} ours={ours} expected={expected} bytes={}..{} text=\"{}«{}»{}\" differing={a}/{b} length={}/{}{hint}",
            m.index, m.span.start, m.span.end, m.before, m.at, m.after, self.ours, self.expected
        )
    }
}

/// Leading items that two lists share.
fn common<'a>(a: impl Iterator<Item = &'a u32>, b: impl Iterator<Item = &'a u32>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).count()
}

/// The start of the character that byte `at` of `text` belongs to.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

/// The end of the character that ends at byte `at` of `text` or goes on there.
fn ceiling(text: &str, at: usize) -> usize {
    (at.min(text.len())..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len())
}

/// Differences that are seen often.
fn hint(tokenizer: &Tokenizer, ours: &[u32], expected: &[u32]) -> Option<&'static str> {
    let bos = |ids: &[u32]| tokenizer.bos().is_some() && ids.first().copied() == tokenizer.bos();
    let eos = |ids: &[u32]| ids.last().is_some_and(|id| tokenizer.is_eos(*id));
    let count = tokenizer.vocab_size();
    match (ours, expected) {
        (_, []) => Some("no ids were expected: is the file the right one?"),
        (_, [_, rest @ ..]) if bos(expected) && rest == ours => Some("only BOS differs: the expected ids begin with it, ours do not"),
        ([_, rest @ ..], _) if bos(ours) && rest == expected => Some("only BOS differs: ours begin with it, the expected ids do not"),
        (_, [rest @ .., _]) if eos(expected) && rest == ours => Some("only the last id differs: an end-of-sequence id that ours lack"),
        _ if expected.iter().any(|id| *id >= count) => Some("the expected ids hold some that this tokenizer lacks: of another model?"),
        _ => None,
    }
}
