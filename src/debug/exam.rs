//! The exam: held-out questions with exact answers, and perplexity on held-out text. It is the yardstick for
//! "gibberish": a model that passed it in one setting must pass it in another.

use crate::debug::agreement::{self, Window};
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::inference::chat::{ChatInput, ChatTemplate, Clock, Message};
use crate::inference::session::{Event, GenerateOptions, Session, SessionOptions};
use crate::inference::tokenizer::Tokenizer;
use crate::plan::Plan;
use serde::Deserialize;
use std::ops::ControlFlow;

/// Tokens that an answer may have.
const ANSWER_TOKENS: usize = 24;

/// One question.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Its kind; accuracy is counted per kind.
    pub kind: String,
    /// Raw text, or a user's message.
    pub prompt: String,
    /// Apply the chat template.
    pub chat: bool,
    /// The answer, exactly.
    pub answer: String,
}

/// A question's outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Ids of the prompt.
    pub prompt: Vec<u32>,
    /// Greedy ids, the closing one included.
    pub ids: Vec<u32>,
    /// Their text, special tokens left out and blanks around it dropped.
    pub text: String,
    /// Equal to the expected answer.
    pub right: bool,
}

/// Items of an `exam.jsonl`.
///
/// # Errors
/// `Kind::Format` naming the line; `Kind::Invalid` where there is no question.
pub fn items(text: &str) -> Result<Vec<Item>> {
    let line = |(i, line): (usize, &str)| serde_json::from_str(line).map_err(|e| Error::format(format!("exam line {}", i + 1), e));
    let items: Vec<Item> = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()).map(line).collect::<Result<_>>()?;
    if items.is_empty() {
        return Err(Error::invalid("exam", "expected at least one question, one JSON object a line; found none"));
    }
    Ok(items)
}

/// Answers every item greedily; `progress` hears each outcome.
///
/// # Errors
/// `Kind::Template` when an item needs a chat template and there is none; what tokenizer and executor report.
pub async fn sit<E: Executor>(
    executor: &E,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    items: &[Item],
    progress: &mut dyn FnMut(&Item, &Answer),
) -> Result<Vec<Answer>> {
    let plan = executor.plan();
    let pad = tokenizer.idle_pad();
    let valid_vocab = plan.vocab_size.min(tokenizer.vocab_size() as usize);
    let options = SessionOptions { capacity: 512, chunk: 256, valid_vocab, pad };
    let mut session = Session::new(executor, options)?;
    let generate = GenerateOptions { max_tokens: ANSWER_TOKENS, stop_ids: tokenizer.eos(), ..Default::default() };
    let mut answers = Vec::with_capacity(items.len());
    for item in items {
        let prompt = prompt_ids(tokenizer, template, item)?;
        session.set_prompt(&prompt)?;
        let generated = session.generate(&[], &generate, None, &mut |_: Event| ControlFlow::Continue(())).await?;
        let text = tokenizer.decode(&generated.ids, true)?.trim().to_string();
        let answer = Answer { right: text == item.answer, prompt, ids: generated.ids, text };
        progress(item, &answer);
        answers.push(answer);
    }
    Ok(answers)
}

fn prompt_ids(tokenizer: &Tokenizer, template: Option<&ChatTemplate>, item: &Item) -> Result<Vec<u32>> {
    if !item.chat {
        return tokenizer.encode(&item.prompt, true);
    }
    let template = template.ok_or_else(|| Error::template("the exam has chat questions, and this model has no chat template"))?;
    let messages = [Message::new("user", item.prompt.as_str())];
    let variables = serde_json::Map::new();
    let now = Clock { unix_seconds: 0, utc_offset: 0 };
    let text = template.render(&ChatInput { messages: &messages, add_generation_prompt: true, tools: None, variables: &variables, now })?;
    tokenizer.encode(&text, false)
}

/// Mean negative log-likelihood in nats of a held-out text's tokens, and how many there are. Perplexity is its exp.
/// Documents are separated by a line `=====`; each begins anew with the tokenizer's BOS, which is not counted, and is cut
/// where it is longer than the model's context.
///
/// # Errors
/// What tokenizer and executor report; `Kind::Invalid` for a text as [`windows`] refuses it; `Kind::Finding` for logits
/// that are not finite.
pub async fn likelihood<E: Executor>(
    executor: &E,
    tokenizer: &Tokenizer,
    text: &str,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(f64, usize)> {
    let plan = executor.plan();
    let valid = plan.vocab_size.min(tokenizer.vocab_size() as usize);
    let windows = windows(plan, tokenizer, text)?;
    let mut heard = |p: agreement::Progress| {
        progress(p.done, p.of);
        ControlFlow::Continue(())
    };
    let found = agreement::likelihood(executor, &windows, valid, &mut heard).await?;
    Ok((found.nll, found.tokens))
}

/// Fewest tokens that a held-out text must have to predict: of fewer, a perplexity says nothing.
pub const LEAST_TOKENS: usize = 64;

/// A held-out text as [`likelihood`] reads it.
///
/// # Errors
/// What the tokenizer reports; `Kind::Invalid` for less than [`LEAST_TOKENS`] to predict.
pub fn windows(plan: &Plan, tokenizer: &Tokenizer, text: &str) -> Result<Vec<Window>> {
    let windows = agreement::cut(tokenizer, text, agreement::Cut { window: plan.max_positions, documents: true })?;
    let found = agreement::predicted(&windows);
    if found < LEAST_TOKENS {
        let message = format!("expected a held-out text with at least {LEAST_TOKENS} tokens to predict, found {found}");
        return Err(Error::invalid("exam", message));
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_parsed_strictly() {
        let text = "{\"kind\":\"sum\",\"prompt\":\"1 + 1 =\",\"chat\":false,\"answer\":\"2.\"}\n";
        assert_eq!(items(text).unwrap()[0].answer, "2.");
        let error = items("{\"kind\":1}").unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        assert!(items("\n\n{\"kind\":1}").unwrap_err().to_string().contains("line 3"));
        for nothing in ["", "\n \n"] {
            assert!(items(nothing).unwrap_err().to_string().contains("at least one question"));
        }
    }
}
