//! The text of ids as they come.

use super::Tokenizer;
use crate::error::Result;

/// Text of a growing list of ids, piece by piece. Each piece is whole characters, and all pieces together with
/// [`Self::finish`] are exactly what [`Tokenizer::decode`] of (context and) ids gives after the context's text.
///
/// A run of byte pieces is shown when it ends: one wrong byte turns the whole run into U+FFFD.
#[derive(Debug, Clone)]
pub struct TextStream {
    /// The latest ids, enough to decode the next one in its surroundings. Special tokens that are skipped are not here.
    pub(super) window: Vec<u32>,
    /// Bytes of the window's text that were given out.
    pub(super) shown: usize,
    pub(super) skip_special: bool,
}

impl TextStream {
    /// Ids that decoding the next one can depend on: the rest of a character that began up to three bytes ago.
    const KEPT: usize = 4;

    /// Adds `id` and returns the text that it completes, often a word, perhaps nothing.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        if !tokenizer.has_text(id, self.skip_special) {
            return Ok(String::new());
        }
        self.window.push(id);
        if tokenizer.is_byte_piece(id) {
            return Ok(String::new());
        }
        let text = tokenizer.decode(&self.window, false)?;
        let piece = text.get(self.begin(&text)..whole(&text)).unwrap_or_default().to_owned();
        self.window.drain(..self.window.len().saturating_sub(Self::KEPT));
        self.shift(tokenizer)?;
        Ok(piece)
    }

    /// What is left when no more ids come; unfinished characters come out as U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.window, false)?;
        Ok(text.get(self.begin(&text)..).unwrap_or_default().to_owned())
    }

    /// Where in `text` begins what was not given out. A wrong byte can turn characters before it into others: then at the next one.
    fn begin(&self, text: &str) -> usize {
        (self.shown..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
    }

    /// Counts as shown all of the window's text that is final: of a run of byte pieces at its end, the whole characters.
    pub(super) fn shift(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        let run = self.window.iter().rev().take_while(|id| tokenizer.is_byte_piece(**id)).count();
        // A character has four bytes at most: in more than three cut off there is a wrong one, and then none is final.
        for cut in (0..run.min(Self::KEPT)).chain([run]) {
            let text = tokenizer.decode(&self.window[..self.window.len() - cut], false)?;
            if cut == run || !text.ends_with(char::REPLACEMENT_CHARACTER) {
                self.shown = whole(&text);
                break;
            }
        }
        Ok(())
    }
}

/// Length of `text` without a last U+FFFD: the next id may complete that character.
fn whole(text: &str) -> usize {
    text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(text).len()
}
