//! A text as windows of tokens. Each window is read from an empty cache; together they predict every token of the text
//! once, but for the first of each document where the tokenizer puts nothing in front of it.

use crate::error::{Error, Result};
use crate::inference::tokenizer::Tokenizer;

/// Line between the documents of a text.
const SEPARATOR: &str = "\n=====\n";

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Most tokens of a window, what the tokenizer adds included: at most the model's context.
    pub window: usize,
    /// The text is several documents with a line `=====` between them; each begins a window.
    pub documents: bool,
}

/// Tokens that are read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Ids, with what the tokenizer adds in front.
    pub ids: Vec<u32>,
    /// How many of them the tokenizer added.
    pub added: usize,
    /// Index of the first other one among all tokens of the text.
    pub first: usize,
}

impl Window {
    /// Index of `ids[place]` among all tokens of the text; of added ids, that of the token after them.
    pub fn token(&self, place: usize) -> usize {
        self.first + place.saturating_sub(self.added)
    }
}

/// Cuts `text`. Windows begin with BOS where the tokenizer puts it before a text. Without it, a window begins with the
/// last token of the one before, so that the token after it is predicted too.
///
/// # Errors
/// `Kind::Invalid` for a window of less than two tokens; what the tokenizer reports.
pub fn cut(tokenizer: &Tokenizer, text: &str, how: Cut) -> Result<Vec<Window>> {
    if how.window < 2 {
        return Err(Error::invalid("window", format!("expected at least 2 tokens, found {}", how.window)));
    }
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let documents: Vec<&str> = if how.documents { text.trim_end_matches('\n').split(SEPARATOR).collect() } else { vec![text] };
    let (mut windows, mut first) = (Vec::new(), 0);
    for document in documents {
        let ids = tokenizer.encode(document, false)?;
        // A text that brings its own BOS has it once.
        let own = usize::from(bos.is_some() && ids.first().copied() == bos);
        windows.extend(cut_ids(&ids[own..], bos, how.window).into_iter().map(|w| Window { first: w.first + first + own, ..w }));
        first += ids.len();
    }
    Ok(windows)
}

/// Cuts the ids of one document.
fn cut_ids(ids: &[u32], bos: Option<u32>, window: usize) -> Vec<Window> {
    let added = usize::from(bos.is_some());
    // Either way one token of each window is predicted by nothing.
    (0..ids.len())
        .step_by(window - 1)
        .map(|first| {
            let end = ids.len().min(first + window - added);
            Window { ids: bos.iter().chain(&ids[first..end]).copied().collect(), added, first }
        })
        .filter(|w| w.ids.len() > 1)
        .collect()
}

/// Tokens that `windows` predict.
pub fn predicted(windows: &[Window]) -> usize {
    windows.iter().map(|w| w.ids.len().saturating_sub(1)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every id but the document's first (that too, after BOS) is predicted once, from what stands before it.
    #[test]
    fn every_token_is_predicted_once() {
        for bos in [None, Some(99)] {
            for length in [0, 1, 2, 7, 8, 9, 15, 16, 17] {
                let ids: Vec<u32> = (0..length).collect();
                for window in [2, 3, 8, 100] {
                    let mut seen = Vec::new();
                    for w in cut_ids(&ids, bos, window) {
                        assert!(w.ids.len() <= window && w.ids.len() > 1);
                        assert_eq!(bos.is_some(), w.ids[0] == 99);
                        seen.extend((1..w.ids.len()).map(|place| (w.token(place), w.ids[place])));
                        assert_eq!(w.token(0), w.first);
                    }
                    let from = usize::from(bos.is_none());
                    let expected: Vec<(usize, u32)> = (from..length as usize).map(|i| (i, i as u32)).collect();
                    assert_eq!(seen, expected, "{bos:?} {length} {window}");
                }
            }
        }
    }
}
