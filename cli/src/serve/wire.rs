//! Answers as the OpenAI API has them: objects of conversations and of texts, whole and in pieces. Data in, JSON out.

use super::answer::{Answers, End, TokenNote, Update};
use super::worker::Hosted;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Chat,
    Text,
}

/// What all objects of one answer say.
pub struct Frame {
    pub form: Form,
    pub id: String,
    pub created: u64,
    pub hosted: Arc<Hosted>,
    /// The seed of the first answer.
    pub seed: u64,
    /// Answers to each prompt; each has the seed after the one before.
    pub n: usize,
    /// Hashes and seeds are told.
    pub debug: bool,
}

/// An answer that is put together.
#[derive(Default)]
pub struct Whole {
    text: String,
    tokens: Vec<TokenNote>,
    records: Vec<Value>,
    end: Option<End>,
}

impl Whole {
    pub fn add(&mut self, update: Update) {
        self.text += &update.text;
        self.tokens.extend(update.token);
        self.records.extend(update.record);
        self.end = self.end.or(update.end);
    }
}

impl Frame {
    /// The whole answer.
    pub fn whole(&self, wholes: Vec<Whole>, logprobs: bool, answers: &Answers) -> Value {
        let choices = wholes.into_iter().enumerate().map(|(index, whole)| {
            let likely = if logprobs { self.logprobs(&whole.tokens, &mut 0) } else { Value::Null };
            let reason = whole.end.map(|end| end.reason);
            let mut choice = match self.form {
                Form::Chat => {
                    let message = json!({"role": "assistant", "content": whole.text, "refusal": null});
                    json!({"index": index, "message": message, "logprobs": likely, "finish_reason": reason})
                }
                Form::Text => json!({"index": index, "text": whole.text, "logprobs": likely, "finish_reason": reason}),
            };
            self.explain(&mut choice, index, whole.end, whole.records);
            choice
        });
        let choices: Vec<Value> = choices.collect();
        let mut object = self.object(choices, false);
        object["usage"] = usage(answers);
        object
    }
    /// The first piece of an answer to a conversation: who speaks.
    pub fn opening(&self, index: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": "", "refusal": null});
        let choice = json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
        (self.form == Form::Chat).then(|| self.object(vec![choice], true))
    }
    /// A piece; `None` where an update shows nothing. `offset` counts the characters of the choice's text.
    pub fn piece(&self, update: Update, logprobs: bool, offset: &mut usize) -> Option<Value> {
        let Update { choice: index, text, token, record, end } = update;
        if text.is_empty() && token.is_none() && record.is_none() && end.is_none() {
            return None;
        }
        let likely = match &token {
            Some(token) if logprobs => self.logprobs(std::slice::from_ref(token), offset),
            _ => Value::Null,
        };
        let reason = end.map(|end| end.reason);
        let mut choice = match self.form {
            Form::Chat => {
                let delta = if text.is_empty() { json!({}) } else { json!({"content": text}) };
                json!({"index": index, "delta": delta, "logprobs": likely, "finish_reason": reason})
            }
            Form::Text => json!({"index": index, "text": text, "logprobs": likely, "finish_reason": reason}),
        };
        self.explain(&mut choice, index, end, record.into_iter().collect());
        Some(self.object(vec![choice], true))
    }
    /// The last piece where usage was asked for.
    pub fn counted(&self, answers: &Answers) -> Value {
        let mut object = self.object(Vec::new(), true);
        object["usage"] = usage(answers);
        object
    }
    fn object(&self, choices: Vec<Value>, piece: bool) -> Value {
        let kind = match (self.form, piece) {
            (Form::Chat, false) => "chat.completion",
            (Form::Chat, true) => "chat.completion.chunk",
            (Form::Text, _) => "text_completion",
        };
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.hosted.id,
            "system_fingerprint": concat!("doppler-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }
    /// Adds what `--allow-debug` tells of an answer, once it ended, and records.
    fn explain(&self, choice: &mut Value, index: usize, end: Option<End>, records: Vec<Value>) {
        if !self.debug {
            return;
        }
        let mut told = Map::new();
        if let Some(End { hash, .. }) = end {
            told.insert("logits_hash".into(), json!(hash.map(|hash| format!("{hash:016x}"))));
            told.insert("seed".into(), json!(self.seed.wrapping_add((index % self.n.max(1)) as u64)));
        }
        if !records.is_empty() {
            told.insert("records".into(), records.into());
        }
        if !told.is_empty() {
            choice["doppler"] = told.into();
        }
    }
    fn logprobs(&self, tokens: &[TokenNote], offset: &mut usize) -> Value {
        let tokenizer = &self.hosted.words.tokenizer;
        let text = |id: u32| tokenizer.piece(id).unwrap_or_else(|| tokenizer.spelling(id));
        let one = |id: u32, likely: f64| json!({"token": text(id), "logprob": number(likely), "bytes": tokenizer.bytes(id)});
        match self.form {
            Form::Chat => {
                let content = tokens.iter().map(|TokenNote { id, likelihood }| {
                    let mut told = one(*id, likelihood.chosen);
                    told["top_logprobs"] = likelihood.top.iter().map(|(id, x)| one(*id, *x)).collect();
                    told
                });
                json!({"content": content.collect::<Vec<Value>>(), "refusal": null})
            }
            Form::Text => {
                let texts: Vec<String> = tokens.iter().map(|token| text(token.id)).collect();
                // Special tokens are not in the text.
                let bytes = |id: u32| if tokenizer.is_special(id) { Some(Vec::new()) } else { tokenizer.bytes(id) };
                let bytes = tokens.iter().zip(&texts).map(|(token, text)| bytes(token.id).unwrap_or_else(|| text.clone().into_bytes()));
                let offsets: Vec<usize> = bytes.map(|bytes| placed(&bytes, offset)).collect();
                let top = tokens.iter().map(|token| {
                    let of = token.likelihood.top.iter().map(|(id, x)| (text(*id), number(*x)));
                    of.collect::<Map<String, Value>>()
                });
                let top: Vec<Map<String, Value>> = top.collect();
                let likely: Vec<Value> = tokens.iter().map(|token| number(token.likelihood.chosen)).collect();
                json!({"tokens": texts, "token_logprobs": likely, "top_logprobs": top, "text_offset": offsets})
            }
        }
    }
}

/// Where in a text, in characters, a token of `bytes` begins; `offset` is how many characters have begun before it, and then
/// after it. A token that continues a character begins with that character.
fn placed(bytes: &[u8], offset: &mut usize) -> usize {
    let continues = |byte: &u8| byte & 0xc0 == 0x80;
    let at = offset.saturating_sub(usize::from(bytes.first().is_some_and(continues)));
    *offset += bytes.iter().filter(|byte| !continues(byte)).count();
    at
}

/// A logarithm of a probability; of one that is 0, as the API has it.
fn number(x: f64) -> Value {
    if x.is_finite() { json!(x) } else { json!(-9999.0) }
}

fn usage(answers: &Answers) -> Value {
    let (prompt, answer) = (answers.prompt_tokens, answers.tokens());
    let cached = json!({"cached_tokens": answers.cached_tokens()});
    json!({"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer, "prompt_tokens_details": cached})
}

#[cfg(test)]
mod tests {
    use super::placed;

    #[test]
    fn offsets_are_those_in_the_text() {
        let mut offset = 0;
        let tokens: [&[u8]; 6] = [b"a", &[0xf0, 0x9f], &[0x98], &[0x80], b" b", b""];
        assert_eq!(tokens.map(|bytes| placed(bytes, &mut offset)), [0, 1, 1, 1, 2, 4]);
    }
}
