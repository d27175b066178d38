//! Conversations on the command line: the options that say one, and the ids that it is for a model.

use doppler::inference::chat::{Clock, Message};
use doppler::inference::words::{Chat, Words};
use doppler::{Error, Kind, Result};
use serde_json::{Map, Value};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes that a file of messages or tools may have.
const MOST: u64 = 64 << 20;

/// A prompt as a conversation. Every option but --chat implies it.
#[derive(Debug, Default, Clone, clap::Args)]
#[command(next_help_heading = "Chat")]
pub struct ChatArgs {
    /// Put the prompt into the model's chat template, as a user's message
    #[arg(long)]
    pub chat: bool,
    /// A system message, before all others
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// The conversation so far: a JSON list of messages with `role` and `content`, as transformers takes it (- for stdin);
    /// a prompt is the user's message after them, without one they are the whole conversation
    #[arg(long, value_name = "FILE")]
    pub messages: Option<PathBuf>,
    /// Tools that the model may call: a JSON list of schemas (- for stdin)
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,
    /// Further variables of the chat template, a JSON object: {"enable_thinking": false}
    #[arg(long, value_name = "JSON")]
    pub template_kwargs: Option<String>,
}

impl ChatArgs {
    /// Whether the prompt is a conversation.
    pub fn wanted(&self) -> bool {
        let Self { chat, system, messages, tools, template_kwargs } = self;
        *chat || system.is_some() || messages.is_some() || tools.is_some() || template_kwargs.is_some()
    }
    /// The option that reads stdin, if one does.
    pub fn stdin(&self) -> Option<&'static str> {
        let is_stdin = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new("-"));
        if is_stdin(&self.messages) { Some("--messages") } else { is_stdin(&self.tools).then_some("--tools") }
    }
    /// Ids of a prompt, raw or as a conversation. Without one, `messages` are the conversation, or else `default` is the
    /// prompt.
    ///
    /// # Errors
    /// Those of [`Self::read`] and [`ids`]; `Kind::Invalid` for an empty prompt.
    pub fn prompt(&self, words: &Words, prompt: Option<&str>, default: &str) -> Result<Vec<u32>> {
        let prompt = prompt.or(self.messages.is_none().then_some(default));
        if self.wanted() { ids(words, &self.read(prompt)?) } else { words.raw(prompt.unwrap_or_default()) }
    }
    /// The conversation, with `prompt` as the user's last message.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Format` for files that cannot be read or hold something else; `Kind::Invalid` for options that
    /// contradict each other.
    pub fn read(&self, prompt: Option<&str>) -> Result<Chat> {
        if [&self.messages, &self.tools].iter().all(|path| path.as_deref() == Some(Path::new("-"))) {
            return Err(Error::invalid("--tools", "stdin can be read once, but --messages reads it too: give one of them a file"));
        }
        let mut messages = match &self.messages {
            Some(path) => messages(&json(path)?).map_err(|e| e.within(shown(path)))?,
            None => Vec::new(),
        };
        if let Some(system) = &self.system {
            if let Some(at) = messages.iter().position(|m| m.role == "system") {
                let message = format!("the list of --messages has a system message too (message {at}): leave one of them out");
                return Err(Error::invalid("--system", message));
            }
            messages.insert(0, Message::new("system", system));
        }
        messages.extend(prompt.map(|prompt| Message::new("user", prompt)));
        let tools = self.tools.as_ref().map(|path| tools(json(path)?).map_err(|e| e.within(shown(path)))).transpose()?;
        let variables = self.template_kwargs.as_deref().map(variables).transpose()?.unwrap_or_default();
        Ok(Chat { messages, tools, variables })
    }
}

/// Ids of a conversation that the model is to continue.
///
/// # Errors
/// `Kind::Invalid` for no message, and for an empty one of the user at the end; those of `Words::chat`.
pub fn ids(words: &Words, chat: &Chat) -> Result<Vec<u32>> {
    let Some(last) = chat.messages.last() else {
        return Err(Error::invalid("--messages", "the conversation has no message: give a prompt, or messages"));
    };
    if last.role == "user" && last.content.as_ref().and_then(Value::as_str) == Some("") {
        return Err(Error::invalid("prompt", "it is empty"));
    }
    words.chat(chat, now())
}

/// Now, in UTC.
pub fn now() -> Clock {
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    Clock { unix_seconds, utc_offset: 0 }
}

/// What a file is called in messages.
fn shown(path: &Path) -> String {
    if path == Path::new("-") { "stdin".into() } else { path.display().to_string() }
}

/// The JSON in a file, or on stdin.
fn json(path: &Path) -> Result<Value> {
    let text = match path == Path::new("-") {
        true => {
            let mut text = String::new();
            std::io::stdin().lock().take(MOST).read_to_string(&mut text).map_err(|e| Error::io("stdin", e))?;
            text
        }
        false => doppler::formats::text::read_text(path, MOST)?,
    };
    serde_json::from_str(&text).map_err(|e| Error::format(shown(path), format!("expected JSON: {e}")))
}

/// What kind of JSON it is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn messages(value: &Value) -> Result<Vec<Message>> {
    let wrong = |text: String| Error::new(Kind::Format, text);
    let Value::Array(list) = value else {
        return Err(wrong(format!(
            "expected a list of messages, as in [{{\"role\": \"user\", \"content\": \"Hi\"}}], found {}",
            kind(value)
        )));
    };
    let message = |(at, value): (usize, &Value)| {
        serde_json::from_value(value.clone())
            .map_err(|e| wrong(format!("message {at}: expected an object with a text `role`, found {}: {e}", kind(value))))
    };
    list.iter().enumerate().map(message).collect()
}

fn tools(value: Value) -> Result<Value> {
    let bad = value.as_array().map(|list| list.iter().position(|tool| !tool.is_object()));
    let message = match bad {
        Some(None) => return Ok(value),
        Some(Some(at)) => format!("tool {at}: expected an object, a tool's JSON schema, found {}", kind(&value[at])),
        None => format!("expected a list of tools' JSON schemas, found {}", kind(&value)),
    };
    Err(Error::new(Kind::Format, message))
}

fn variables(text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(variables)) => Ok(variables),
        Ok(other) => Err(Error::invalid(
            "--template-kwargs",
            format!("expected a JSON object such as {{\"enable_thinking\": false}}, found {}", kind(&other)),
        )),
        Err(e) => Err(Error::invalid("--template-kwargs", format!("expected a JSON object such as {{\"enable_thinking\": false}}: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(args: &ChatArgs, prompt: Option<&str>) -> std::result::Result<Value, String> {
        let Chat { messages, tools, variables } = args.read(prompt).map_err(|e| e.message)?;
        Ok(json!([messages, tools, variables]))
    }

    #[test]
    fn options_make_a_conversation() {
        let none = ChatArgs::default();
        assert!(!none.wanted() && ChatArgs { chat: true, ..none.clone() }.wanted());
        let args = ChatArgs { system: Some("Be short.".into()), template_kwargs: Some("{\"enable_thinking\":false}".into()), ..none };
        assert!(args.wanted());
        let expected =
            json!([[{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}], null, {"enable_thinking": false}]);
        assert_eq!(read(&args, Some("Hi")).unwrap(), expected);
        assert!(read(&ChatArgs { template_kwargs: Some("[1]".into()), ..args.clone() }, None).unwrap_err().contains("found a list"));
        assert!(read(&ChatArgs { template_kwargs: Some("{".into()), ..args }, None).unwrap_err().starts_with("--template-kwargs: "));
    }

    #[test]
    fn lists_of_messages_and_tools_are_checked() {
        let list = json!([{"role": "system", "content": "S"}, {"role": "tool", "content": null, "name": "f"}]);
        assert_eq!(json!(messages(&list).unwrap()), list);
        let message = |value| messages(&value).unwrap_err().message;
        assert!(message(json!({"role": "user"})).contains("found an object"));
        assert!(message(json!([{"role": "user"}, {"content": "x"}])).starts_with("message 1: "));
        assert!(tools(json!([{}])).is_ok() && tools(json!([{}, 1])).unwrap_err().message.starts_with("tool 1: "));
        assert!(tools(json!({})).unwrap_err().message.contains("found an object"));
        let both = ChatArgs { messages: Some("-".into()), tools: Some("-".into()), ..ChatArgs::default() };
        assert!(read(&both, None).unwrap_err().contains("stdin can be read once") && both.stdin() == Some("--messages"));
    }

    #[test]
    fn a_system_message_is_given_once_and_files_are_named() {
        let file = std::env::temp_dir().join(format!("doppler-messages-{}.json", std::process::id()));
        std::fs::write(&file, "[{\"role\":\"system\",\"content\":\"S\"}]").unwrap();
        let args = ChatArgs { messages: Some(file.clone()), system: Some("T".into()), ..ChatArgs::default() };
        assert!(read(&args, None).unwrap_err().starts_with("--system: "));
        let args = ChatArgs { system: None, ..args };
        assert_eq!(read(&args, Some("Hi")).unwrap()[0].as_array().unwrap().len(), 2);
        std::fs::write(&file, "[1]").unwrap();
        assert!(read(&args, None).unwrap_err().contains(&file.display().to_string()));
        std::fs::remove_file(file).unwrap();
    }
}
