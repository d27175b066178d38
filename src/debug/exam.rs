//! The exam: held-out questions with exact answers, and perplexity on held-out text. It is the yardstick for
//! "gibberish": a model that passed it in one setting must pass it in another.

use crate::debug::agreement::{self, Window};
use crate::error::{Error, Result};
use crate::exec::{Entry, Executor, Pick, Read, Rows, Sequences, Step, Tokens};
use crate::inference::chat::{ChatInput, ChatTemplate, Clock, Message};
use crate::inference::decode::{Decoding, Next, Reading};
use crate::inference::session::admit;
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

/// Questions that are answered at the same time: what a device reads of the weights for one, it has for all.
const TOGETHER: usize = 16;
/// Tokens of a step while a prompt is read.
const CHUNK: usize = 256;

/// The sequences in which `items` are answered.
///
/// # Errors
/// As [`sit`].
pub fn sequences(plan: &Plan, tokenizer: &Tokenizer, template: Option<&ChatTemplate>, items: &[Item]) -> Result<Sequences> {
    Ok(sequences_of(plan, &prompts(plan, tokenizer, template, items)?))
}

fn sequences_of(plan: &Plan, prompts: &[Vec<u32>]) -> Sequences {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let capacity = (longest + ANSWER_TOKENS).min(plan.max_positions);
    Sequences { count: TOGETHER.min(prompts.len()), capacity, chunk: CHUNK.min(longest) }
}

/// A question that is being answered.
struct Asked<C> {
    /// Its place among all.
    item: usize,
    cache: C,
    decoding: Decoding,
    /// The prompt and the answer so far.
    ids: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
}

impl<C> Asked<C> {
    /// The step that it needs next; `None` at its end.
    fn next<E: Executor<Cache = C>>(&mut self, executor: &E, sequences: Sequences) -> Result<Option<Reading>> {
        loop {
            match self.decoding.next() {
                Next::End => return Ok(None),
                Next::Step(reading) => return Ok(Some(reading)),
                Next::StartOver => {
                    if !executor.truncate(&mut self.cache, 0) {
                        self.cache = executor.new_cache(sequences.capacity, sequences.chunk)?;
                    }
                    self.decoding.start_over();
                }
            }
        }
    }
}

/// Answers every item greedily, several at the same time, each as it would be answered alone; `progress` hears each outcome.
///
/// # Errors
/// `Kind::Template` when an item needs a chat template and there is none; `Kind::Finding` where no token can be chosen; what
/// tokenizer and executor report.
pub async fn sit<E: Executor>(
    executor: &E,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    items: &[Item],
    progress: &mut dyn FnMut(&Item, &Answer),
) -> Result<Vec<Answer>> {
    let plan = executor.plan();
    let pick = Pick { valid: plan.vocab_size.min(tokenizer.vocab_size() as usize) };
    let prompts = prompts(plan, tokenizer, template, items)?;
    let sequences = sequences_of(plan, &prompts);
    executor.reserve(sequences)?;
    let mut answers: Vec<Option<Answer>> = vec![None; items.len()];
    let mut waiting = prompts.into_iter().enumerate();
    let mut asked: Vec<Asked<E::Cache>> = Vec::new();
    loop {
        for (item, ids) in waiting.by_ref().take(sequences.count - asked.len()) {
            let cache = executor.new_cache(sequences.capacity, sequences.chunk)?;
            let decoding = Decoding::new(plan, ids.len(), 0, sequences.chunk, ANSWER_TOKENS);
            asked.push(Asked { item, cache, decoding, prompt: ids.len(), ids });
        }
        let (mut readings, mut batch) = (Vec::new(), Vec::new());
        for (place, asked) in asked.iter_mut().enumerate() {
            let Some(reading) = asked.next(executor, sequences)? else { continue };
            let chooses = reading.chooses;
            let step = Step {
                tokens: Tokens::Ids(&asked.ids[reading.first..reading.first + reading.count]),
                rows: if chooses { Rows::Last } else { Rows::None },
                pick: chooses.then_some(pick),
                read: Read::Nothing,
                long_rope: asked.decoding.long_rope(),
                requests: &[],
            };
            asked.decoding.started(&reading);
            readings.push((place, reading));
            batch.push(Entry { cache: &mut asked.cache, step });
        }
        let under_way = executor.submit_batch(&mut batch)?;
        for ((place, reading), pending) in readings.into_iter().zip(under_way) {
            let output = executor.finish(pending).await?;
            let Asked { item, ids, .. } = &mut asked[place];
            let none =
                || Error::finding(format!("question {}: no token can be chosen: a logit is NaN or Inf, or none is a number", *item + 1));
            if reading.chooses {
                ids.push(output.token.ok_or_else(none)?);
            }
        }
        let stops = |id: &u32| tokenizer.eos().contains(id);
        let ended = |asked: &mut Asked<E::Cache>| {
            let answer = &asked.ids[asked.prompt..];
            answer.last().is_some_and(stops) || asked.decoding.next() == Next::End
        };
        for Asked { item, prompt, mut ids, .. } in asked.extract_if(.., ended) {
            let answer = ids.split_off(prompt);
            let text = tokenizer.decode(&answer, true)?.trim().to_string();
            let answer = Answer { right: text == items[item].answer, prompt: ids, ids: answer, text };
            progress(&items[item], &answer);
            answers[item] = Some(answer);
        }
        if asked.is_empty() && waiting.len() == 0 {
            break;
        }
    }
    executor.reserve(Sequences { count: 0, ..sequences })?;
    Ok(answers.into_iter().flatten().collect())
}

/// The ids of every item's prompt.
fn prompts(plan: &Plan, tokenizer: &Tokenizer, template: Option<&ChatTemplate>, items: &[Item]) -> Result<Vec<Vec<u32>>> {
    let ids = |item: &Item| prompt_ids(tokenizer, template, item).and_then(|ids| admit(plan, &[], &ids).map(|()| ids));
    items.iter().map(ids).collect()
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
