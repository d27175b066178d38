//! Texts before which an answer ends, found in pieces of it as they come, wherever the pieces' borders are.

/// Looks for stop texts in an answer.
#[derive(Debug, Clone)]
pub struct Stops {
    texts: Vec<String>,
    /// What may be the beginning of a stop text.
    held: String,
}

impl Stops {
    pub fn new(texts: Vec<String>) -> Self {
        Self { texts, held: String::new() }
    }
    /// Adds a piece. What of the answer is certain now, and whether a stop text follows it.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.texts.iter().filter_map(|text| self.held.find(text.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let rest = self.held.split_off(self.held.len() - self.begun());
        (std::mem::replace(&mut self.held, rest), false)
    }
    /// The rest of an answer that ended otherwise.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
    /// Bytes at the end of `held` that a stop text may begin with.
    fn begun(&self) -> usize {
        let of = |text: &String| {
            let most = text.len().saturating_sub(1).min(self.held.len());
            (1..=most).rev().find(|length| text.is_char_boundary(*length) && self.held.ends_with(&text[..*length])).unwrap_or(0)
        };
        self.texts.iter().map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer, whether it was stopped, and what came with each piece.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool, Vec<String>) {
        let mut search = Stops::new(stops.iter().map(|text| text.to_string()).collect());
        let mut shown = Vec::new();
        for piece in pieces {
            let (text, stopped) = search.push(piece);
            shown.push(text);
            if stopped {
                return (shown.concat(), true, shown);
            }
        }
        shown.push(search.finish());
        (shown.concat(), false, shown)
    }

    #[test]
    fn stop_texts_are_found_across_pieces() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".into(), true, vec!["one ".into(), String::new(), String::new()]));
        assert_eq!(
            run(&["END"], &["one E", "N", "E", "N"]),
            ("one ENEN".into(), false, vec!["one ".into(), String::new(), "EN".into(), String::new(), "EN".into()])
        );
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]).0, "a", "a beginning within a beginning");
        assert_eq!(run(&["\n\n", "é!"], &["x\n", "é", "!"]).0, "x\n", "the first of several that is there");
        assert_eq!(run(&["b", "ab"], &["xa", "b"]).0, "x", "the earliest, not the first in the list");
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), false, vec!["a".into(), "b".into(), String::new()]));
        assert_eq!(run(&["é"], &["e", "\u{301}"]).0, "e\u{301}");
    }

    #[test]
    fn no_cut_of_a_text_changes_what_is_found() {
        let text = "abcabcabdéé€abcabd";
        let stops = ["cabd", "é€", "zz"];
        let whole = run(&stops, &[text]).0;
        let borders: Vec<usize> = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).collect();
        for a in &borders {
            for b in borders.iter().filter(|b| *b >= a) {
                assert_eq!(run(&stops, &[&text[..*a], &text[*a..*b], &text[*b..]]).0, whole);
            }
        }
    }
}
