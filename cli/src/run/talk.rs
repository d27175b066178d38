//! A conversation: one message and one answer after the other, and what its user says to the program itself.

use super::Speaker;
use super::commands::{Command, HELP, Line};
use super::reader::{Read, Reader};
use crate::end::{Ended, Stop};
use crate::terminal::tell;
use crate::{chat, output};
use doppler::config::RuntimeConfig;
use doppler::config::runtime::Sampling;
use doppler::exec::Executor;
use doppler::inference::chat::Message;
use doppler::inference::session::Session;
use doppler::inference::words::Chat;
use doppler::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// One message and one answer after the other; what is cached of the conversation is not read again. `asked`: the
/// conversation so far ends with what is to be answered.
///
/// # Errors
/// What answering reports, but where somebody types: there it is told, and the message is taken back.
pub fn talk<E: Executor>(speaker: &mut Speaker<'_>, executor: &E, mut chat: Chat, mut asked: bool) -> Result<Ended, Stop> {
    let mut session = Session::new(executor, speaker.options)?;
    let mut reader = Reader::new();
    let typed = reader.is_typed();
    loop {
        if !asked {
            let Read::Line(line) = reader.next()? else { return Ok(Ended::Fine) };
            if line.trim().is_empty() {
                continue;
            }
            match Line::read(&line, typed) {
                Line::Message(text) => chat.messages.push(Message::new("user", text)),
                Line::Command(Command::Exit) => return Ok(Ended::Fine),
                Line::Command(command) => {
                    obey(command, speaker, &mut chat).unwrap_or_else(|e| tell(&format!("Error {e}")));
                    continue;
                }
                Line::Mistake(why) => {
                    tell(&why);
                    continue;
                }
            }
        }
        asked = false;
        let answered = chat::ids(speaker.text, &chat)
            .and_then(|ids| session.set_prompt(&ids))
            .map_err(Stop::from)
            .and_then(|()| speaker.answer(&mut session));
        match answered {
            // At a terminal, Ctrl-C ends an answer; elsewhere, the conversation.
            Ok((_, Ended::Interrupted)) if !typed => return Ok(Ended::Interrupted),
            Ok((answer, _)) => chat.messages.push(Message::new("assistant", answer)),
            Err(Stop::Failed(e)) if typed => {
                tell(&format!("Error {e}"));
                tell("(the message was taken back; /clear begins a new conversation)");
                chat.messages.pop();
            }
            Err(stop) => return Err(stop),
        }
    }
}

/// Does what was said to the program.
fn obey(command: Command, speaker: &mut Speaker<'_>, chat: &mut Chat) -> Result<()> {
    match command {
        Command::Help => tell(HELP),
        Command::System(text) => system(speaker, chat, text)?,
        Command::Set(None) => tell(&settings(speaker)?),
        Command::Set(Some((name, value))) => {
            set(speaker, &name, &value).map_err(|e| e.within("/set"))?;
            tell(&settings(speaker)?);
        }
        Command::Clear => {
            chat.messages.retain(|message| message.role == "system");
            tell("(a new conversation)");
        }
        Command::Save(path) => save(&path, chat)?,
        Command::Exit => {}
    }
    Ok(())
}

/// Changes the system message, if the model's template can have it.
fn system(speaker: &Speaker<'_>, chat: &mut Chat, text: Option<String>) -> Result<()> {
    let mut changed = chat.clone();
    changed.messages.retain(|message| message.role != "system");
    if let Some(text) = &text {
        changed.messages.insert(0, Message::new("system", text.as_str()));
    }
    let mut tried = changed.clone();
    tried.messages.push(Message::new("user", "x"));
    chat::ids(speaker.text, &tried)?;
    *chat = changed;
    tell(if text.is_some() { "(from now on with this system message)" } else { "(without a system message)" });
    Ok(())
}

/// Writes the conversation as `--messages` reads it.
fn save(path: &Path, chat: &Chat) -> Result<()> {
    let text = serde_json::to_string_pretty(&chat.messages).map_err(|e| Error::io(path.display(), e))?;
    output::file(path, &(text + "\n"))?;
    tell(&format!("wrote {} messages to {}", chat.messages.len(), path.display()));
    Ok(())
}

/// The settings by name.
fn named(speaker: &Speaker<'_>) -> Result<Vec<(String, Value)>> {
    let failed = |e: serde_json::Error| Error::invalid("/set", e);
    let Value::Object(sampling) = serde_json::to_value(&speaker.sampling).map_err(failed)? else { return Ok(Vec::new()) };
    let mut all: Vec<_> = sampling.into_iter().collect();
    all.push(("maxTokens".into(), json!(speaker.max_tokens)));
    Ok(all)
}

/// A setting's name as options spell it: `topK` is `top-k`.
fn spelled(key: &str) -> String {
    let one = |c: char| if c.is_ascii_uppercase() { format!("-{}", c.to_ascii_lowercase()) } else { c.to_string() };
    key.chars().map(one).collect()
}

fn settings(speaker: &Speaker<'_>) -> Result<String> {
    let all = named(speaker)?;
    Ok(all.iter().map(|(key, value)| format!("{} {value}", spelled(key))).collect::<Vec<_>>().join(", "))
}

/// Changes a setting, within the bounds that the runtime config has for it.
fn set(speaker: &mut Speaker<'_>, name: &str, value: &str) -> Result<()> {
    let plain = |name: &str| name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let all = named(speaker)?;
    let Some((key, _)) = all.iter().find(|(key, _)| plain(key) == plain(name)) else {
        let names: Vec<String> = all.iter().map(|(key, _)| spelled(key)).collect();
        return Err(Error::invalid(name, format!("expected one of {}", names.join(", "))));
    };
    let number: Value = serde_json::from_str(value).unwrap_or_default();
    if !number.is_number() {
        return Err(Error::invalid(spelled(key), format!("expected a number, found `{value}`")));
    }
    if key == "maxTokens" {
        let most = number.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
        speaker.max_tokens =
            most.ok_or_else(|| Error::invalid("max-tokens", format!("expected a whole number above 0, found `{value}`")))?;
        return Ok(());
    }
    let mut sampling = serde_json::to_value(&speaker.sampling).map_err(|e| Error::invalid("/set", e))?;
    sampling[key] = number;
    let runtime = RuntimeConfig::from_patch(json!({"runtime": {"inference": {"sampling": sampling}}}))?;
    let changed: Sampling = runtime.runtime.inference.sampling;
    speaker.sampling = changed;
    Ok(())
}
