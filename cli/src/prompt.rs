//! Prompts before a model is loaded: ids from the command line, and whether a prompt fits model and context.

use crate::args::TextArgs;
use crate::chat::ChatArgs;
use crate::model::Model;
use doppler::formats::text::{MAX_STDIN, text_of};
use doppler::inference::words::Words;
use doppler::{Error, Result};

/// The argument of `--token-ids`.
#[derive(Debug, Clone)]
pub struct Ids(pub Vec<u32>);

/// Ids separated by commas; spaces are allowed.
pub fn parse_ids(text: &str) -> Result<Ids, String> {
    if text.trim().is_empty() {
        return Err("expected at least one id, like 2,10,7".into());
    }
    let one = |id: &str| id.trim().parse().map_err(|_| format!("`{}` is no token id; expected numbers like 2,10,7", id.trim()));
    text.split(',').map(one).collect::<Result<_, _>>().map(Ids)
}

/// The text of a prompt, from the command line or, for `-`, from stdin.
///
/// # Errors
/// `Kind::Io`, `Kind::Format`; `Kind::Invalid` where the conversation is read from stdin too.
pub fn read(text: &TextArgs, chat: &ChatArgs) -> Result<Option<String>> {
    if !text.is_stdin() {
        return Ok(text.given().map(str::to_string));
    }
    if let Some(option) = chat.stdin() {
        return Err(Error::invalid(option, "stdin is read for the prompt: give a file"));
    }
    from_stdin().map(Some)
}

/// All of stdin, without the line break that `echo` adds, which is not meant.
///
/// # Errors
/// `Kind::Io`, `Kind::Format`.
pub fn from_stdin() -> Result<String> {
    let text = text_of("stdin", std::io::stdin().lock(), MAX_STDIN)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_string())
}

/// Refuses a text that cannot fit before it is made into ids, which takes over a hundred bytes of memory for each of its.
///
/// # Errors
/// `Kind::Invalid`.
pub fn check_bytes(model: &Model, words: &Words, prompt: &str, context: Option<usize>) -> Result<()> {
    let positions = context.unwrap_or(model.plan.max_positions).min(model.plan.max_positions);
    match words.tokenizer.most_bytes(positions) {
        Some(most) if prompt.len() as u64 > most => Err(Error::invalid(
            "prompt",
            format!("its {} bytes are longer than the context of {positions} tokens, which holds at most {most} bytes", prompt.len()),
        )),
        _ => Ok(()),
    }
}

/// Checks ids and length before anything is loaded, sets the plan's longest sequence to `--context`, and returns the
/// positions to make room for: the context where one is given, else what prompt and answer need.
///
/// # Errors
/// `Kind::Invalid`.
pub fn fit(model: &mut Model, ids: &[u32], max_tokens: usize, context: Option<usize>) -> Result<usize> {
    let most = model.plan.max_positions;
    if let Some(context) = context.filter(|context| *context > most) {
        return Err(Error::invalid("--context", format!("the model was made for {most} positions, {context} were asked for")));
    }
    model.plan.max_positions = context.unwrap_or(most);
    let rows = model.plan.vocab_size;
    if let Some((i, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= rows) {
        let last = rows.saturating_sub(1);
        return Err(Error::invalid("token id", format!("{id} at position {i} is out of range: the model has ids 0 to {last}")));
    }
    if ids.is_empty() {
        return Err(Error::invalid("prompt", "expected at least one token, found none"));
    }
    if ids.len() > model.plan.max_positions {
        let which = if context.is_some() { "--context" } else { "the model" };
        let (count, most) = (ids.len(), model.plan.max_positions);
        return Err(Error::invalid("prompt", format!("its {count} tokens are longer than the {most} positions that {which} allows")));
    }
    Ok(context.unwrap_or_else(|| ids.len().saturating_add(max_tokens).min(most)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers() {
        assert_eq!(parse_ids("2, 10,7").unwrap().0, [2, 10, 7]);
        for bad in ["", " ", "2,", "2,x", "-1", "4294967296", "1.5"] {
            assert!(parse_ids(bad).is_err(), "{bad}");
        }
    }
}
