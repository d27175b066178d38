//! Text and ids: the tokenizer against the reference's ids of the same text, and what the chat template writes.

use super::Cause;
use super::report::{Fault, Fix, Site, Verdict};
use crate::debug::dump::Dump;
use crate::debug::tokenisation::{Comparison, compare};
use crate::error::{Error, Kind, Result};
use crate::inference::chat::{Clock, Message};
use crate::inference::words::{Chat, Words};
use crate::model::ModelConfig;

fn fault(cause: Cause, text: &str, evidence: Vec<String>) -> Fault {
    Fault { cause, site: Site::default(), fix: Some(Fix { text: text.to_string(), ..Fix::default() }), evidence }
}

/// Examines the words of a model, or what kept them from being read.
///
/// # Errors
/// Those of reading the reference.
pub fn check(words: Result<Option<&Words>, &Error>, config: &ModelConfig, reference: Option<&Dump>, verdict: &mut Verdict) -> Result<()> {
    let words = match words {
        Ok(Some(words)) => words,
        Ok(None) => {
            verdict.not_examined.push("text: the model has no tokenizer".into());
            return Ok(());
        }
        Err(error) => {
            let text = format!("the words of the model cannot be read: {}", error.message);
            match error.kind {
                Kind::Template => verdict.faults.push(fault(
                    Cause::ChatTemplate,
                    "mend or fetch again chat_template.jinja, or tokenizer_config.json where it holds the template",
                    vec![text],
                )),
                _ => verdict.unexplained.push(text),
            }
            return Ok(());
        }
    };
    chat(words, verdict);
    let rows = config.vocab_size;
    if words.tokenizer.vocab_size() as usize > rows {
        verdict.evidence.push(format!(
            "the tokenizer has {} ids, and the embedding {rows} rows: ids beyond them cannot be read",
            words.tokenizer.vocab_size()
        ));
    }
    match reference.and_then(|reference| Some((reference, reference.metadata.get("prompt")?))) {
        Some((reference, text)) => ids(words, text, &reference.input_ids()?, verdict)?,
        None => verdict.not_examined.push("ids of a text: there is no reference that says which text its ids are of".into()),
    }
    Ok(())
}

/// What the chat template writes of a plain question.
fn chat(words: &Words, verdict: &mut Verdict) {
    if words.template().is_none() {
        return;
    }
    let chat = Chat { messages: vec![Message::new("user", "Hello")], ..Chat::default() };
    match words.chat(&chat, Clock { unix_seconds: 0, utc_offset: 0 }) {
        Err(error) => {
            let evidence = vec![format!("a conversation of one question cannot be written: {}", error.message)];
            verdict.faults.push(fault(Cause::ChatTemplate, "mend or fetch the chat template again", evidence));
        }
        Ok(ids) => {
            let bos = words.tokenizer.bos();
            if bos.is_some() && ids.first().copied() == bos && ids.get(1).copied() == bos {
                let evidence = vec!["a conversation of one question begins with two BOS tokens".to_string()];
                verdict.faults.push(fault(Cause::BosDoubled, "take one BOS out of the chat template", evidence));
            } else {
                verdict.examined.push("the chat template: a conversation of one question".into());
            }
        }
    }
}

/// Our ids of the reference's text against its own.
fn ids(words: &Words, text: &str, expected: &[u32], verdict: &mut Verdict) -> Result<()> {
    let tokenizer = &words.tokenizer;
    let Comparison { mismatch, ours, .. } = compare(tokenizer, text, true, expected)?;
    let Some(first) = mismatch else {
        verdict.examined.push(format!("the tokenizer: the {ours} ids of the reference's text"));
        return Ok(());
    };
    let token = |token: &Option<crate::debug::tokenisation::Token>| {
        token.as_ref().map_or("the end".to_string(), |t| format!("{} ({})", t.id, t.text))
    };
    let own = tokenizer.encode(text, true)?;
    let bos = tokenizer.bos();
    let doubled = |ids: &[u32]| ids.len() > 1 && Some(ids[0]) == bos && ids[0] == ids[1];
    let special = |ids: &[u32]| ids.iter().filter(|id| tokenizer.is_special(**id)).count();
    let evidence = vec![format!(
        "the reference's text has other ids here: number {} is {} in the reference and {} here; after `{}`",
        first.index,
        token(&first.expected),
        token(&first.ours),
        first.before
    )];
    let (cause, fix) = match () {
        () if doubled(&own) && !doubled(expected) => {
            (Cause::BosDoubled, "BOS is added by the tokenizer and by its post-processor, or stands in the text: add it once")
        }
        () if doubled(expected) && !doubled(&own) => (Cause::ReferenceSuspect, "the reference reads BOS twice: write it again"),
        () if special(&own) != special(expected) => {
            (Cause::MissingSpecialToken, "fetch tokenizer.json and tokenizer_config.json again: a special token is added on one side alone")
        }
        () => (Cause::PreTokenizer, "fetch tokenizer.json again: it splits this text otherwise"),
    };
    verdict.faults.push(fault(cause, fix, evidence));
    Ok(())
}
