//! Chat templates: messages in, the prompt's text out. Templates are Jinja2 as transformers runs it; minijinja renders
//! them, and this file supplies what it lacks (Python's methods, `tojson`, `strftime_now`, `generation` blocks).
//! It must not know tokenizers or models, and it asks no clock: the caller gives the time.

mod clock;
mod filters;
mod json;

use std::collections::BTreeMap;

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Map;

use crate::error::{Error, Result};
pub use clock::Clock;

/// One message of a conversation. All of it reaches the template as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// A text, or what else the template knows (a list of parts, null beside tool calls); may be missing.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub content: Option<serde_json::Value>,
    /// Other keys, such as `tool_calls` or `name`.
    #[serde(flatten)]
    pub other: Map<String, serde_json::Value>,
}

impl Message {
    /// A message with plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into().into()), other: Map::new() }
    }
}

/// Keeps a `null` that is there apart from a key that is not.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(value).map(Some)
}

/// What a template is rendered with besides the model's own tokens.
#[derive(Debug, Clone)]
pub struct ChatInput<'a> {
    /// The conversation, oldest message first.
    pub messages: &'a [Message],
    /// Whether to end with what begins an assistant's answer.
    pub add_generation_prompt: bool,
    /// JSON schemas of tools, a list; `None` leaves the variable undefined.
    pub tools: Option<&'a serde_json::Value>,
    /// Further variables, such as `documents` or `enable_thinking`; they win over variables of the same name.
    pub variables: &'a Map<String, serde_json::Value>,
    /// What `strftime_now` shows.
    pub now: Clock,
}

/// The compiled chat template of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: BTreeMap<String, String>,
}

/// The template's name when no tools are given, and when they are.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Instructions a template may execute: some seconds' worth, thousands of messages. Ends a template that would not.
const FUEL: u64 = 50_000_000;

impl ChatTemplate {
    /// Compiles a model's template. `jinja_file` is the text of chat_template.jinja, which wins over `from_config`, the
    /// `chat_template` of tokenizer_config.json: one text, or a list of texts by name (`default`, `tool_use`).
    /// `tokens` become variables (`bos_token`, …). `None` if the model has no template.
    ///
    /// # Errors
    /// `Kind::Template` if a template is not valid Jinja, or none of several is named `default`.
    pub fn new(
        jinja_file: Option<&str>,
        from_config: Option<&serde_json::Value>,
        tokens: &BTreeMap<String, String>,
    ) -> Result<Option<Self>> {
        let named = match (jinja_file, from_config) {
            (Some(text), _) => vec![(DEFAULT.to_owned(), text.to_owned())],
            (None, Some(value)) => named_templates(value)?,
            (None, None) => return Ok(None),
        };
        let mut environment = environment();
        for (name, source) in named {
            let source = with_generation_blocks(&source);
            environment.add_template_owned(name.clone(), source).map_err(|e| explain(&name, "is not valid", &e))?;
        }
        if environment.get_template(DEFAULT).is_err() {
            let found: Vec<&str> = environment.templates().map(|(name, _)| name).collect();
            return Err(Error::template(format!(
                "tokenizer_config.json: `chat_template` is a list without a template named `{DEFAULT}`; found {found:?}"
            )));
        }
        Ok(Some(Self { environment, tokens: tokens.clone() }))
    }

    /// The prompt's text. It holds the special tokens as text, BOS too where the template writes it, so encode it
    /// without adding special tokens. With tools, the template named `tool_use` is taken if there is one.
    ///
    /// # Errors
    /// `Kind::Template` with the template's own message if it refuses the conversation (`raise_exception`), and with
    /// its line if it fails.
    pub fn render(&self, input: &ChatInput) -> Result<String> {
        let mut variables: BTreeMap<&str, Value> =
            self.tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))).collect();
        variables.insert("messages", Value::from_serialize(input.messages));
        variables.insert("add_generation_prompt", input.add_generation_prompt.into());
        let now = input.now;
        variables.insert("strftime_now", Value::from_function(move |format: &str| now.strftime(format)));
        if let Some(tools) = input.tools {
            variables.insert("tools", Value::from_serialize(tools));
        }
        for (name, value) in input.variables {
            variables.insert(name, Value::from_serialize(value));
        }
        let tool_use = input.tools.and_then(|_| self.environment.get_template(TOOL_USE).ok());
        let template = tool_use.map_or_else(|| self.environment.get_template(DEFAULT), Ok);
        let template = template.map_err(|e| explain(DEFAULT, "is missing", &e))?;
        template.render(variables).map_err(|e| match e.kind() {
            ErrorKind::OutOfFuel => Error::template("the chat template does not come to an end; use another template"),
            _ => explain(template.name(), "cannot render this conversation", &e),
        })
    }
}

/// The templates of `chat_template` by name.
fn named_templates(value: &serde_json::Value) -> Result<Vec<(String, String)>> {
    let text = |entry: &serde_json::Value, key: &str| Some(entry.get(key)?.as_str()?.to_owned());
    let entries = match value {
        serde_json::Value::String(text) => return Ok(vec![(DEFAULT.to_owned(), text.clone())]),
        serde_json::Value::Array(entries) => entries.as_slice(),
        _ => &[],
    };
    let named: Option<Vec<_>> = entries.iter().map(|e| Some((text(e, "name")?, text(e, "template")?))).collect();
    named.filter(|named| !named.is_empty()).ok_or_else(|| {
        Error::template("tokenizer_config.json: `chat_template` is neither a text nor a list of objects with `name` and `template`")
    })
}

/// Jinja as transformers sets it up, on minijinja.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    filters::install(&mut environment);
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, minijinja::Error> {
        Err(filters::invalid(filters::text(message)))
    });
    environment
}

/// Replaces the tags of `{% generation %}` blocks, which mark the assistant's tokens for training, by those of an empty
/// `with` block: the same scope, and whitespace control stays as written. Comments, expressions and raw blocks are left
/// alone.
fn with_generation_blocks(source: &str) -> String {
    const PAIRS: [(&str, &str); 3] = [("{%", "%}"), ("{#", "#}"), ("{{", "}}")];
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    loop {
        let openers = PAIRS.iter().take(if raw { 1 } else { 3 });
        let next = openers.filter_map(|(open, close)| Some((rest.find(open)?, *close))).min();
        let Some((start, close)) = next else { return out + rest };
        let (before, inside) = rest.split_at(start + 2);
        let Some((inside, after)) = inside.split_once(close) else { return out + rest };
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let tag = match (close, word) {
            ("%}", "generation") if !raw => inside.replace(word, "with"),
            ("%}", "endgeneration") if !raw => inside.replace(word, "endwith"),
            _ => inside.to_owned(),
        };
        raw = close == "%}" && (word == "raw" || (raw && word != "endraw"));
        out.extend([before, &tag, close]);
        rest = after;
    }
}

/// An error of minijinja with what it was about.
fn explain(name: &str, what: &str, error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let which = if name == DEFAULT { String::new() } else { format!(" `{name}`") };
    Error::template(format!("the chat template{which} {what}: {detail}{line}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use serde_json::json;

    const NOW: Clock = Clock { unix_seconds: 1_752_148_800, utc_offset: 0 };

    fn template(source: &str) -> Result<ChatTemplate> {
        let tokens = BTreeMap::from([("bos_token".to_owned(), "<bos>".to_owned())]);
        Ok(ChatTemplate::new(Some(source), None, &tokens)?.expect("a source was given"))
    }

    fn render_with(source: &str, messages: serde_json::Value, tools: Option<&serde_json::Value>) -> Result<String> {
        let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
        let variables = Map::from_iter([("enable_thinking".to_owned(), json!(false))]);
        let input = ChatInput { messages: &messages, add_generation_prompt: true, tools, variables: &variables, now: NOW };
        template(source)?.render(&input)
    }

    fn render(source: &str) -> Result<String> {
        render_with(source, json!([{"role": "user", "content": " <b>Hi</b> "}]), None)
    }

    #[test]
    fn a_template_sees_tokens_messages_and_variables() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}\n[{{ m['content'] | trim }}]\n  {% endif %}\n\
                      {% endfor %}{% if add_generation_prompt %}A{{ enable_thinking }}{{ eos_token }}{% endif %}\n";
        assert_eq!(render(source).unwrap(), "<bos>[<b>Hi</b>]\nAFalse");
        assert_eq!(render("{{ strftime_now('%d %b %Y') }} {{ tools is defined }}").unwrap(), "10 Jul 2025 False");
        assert_eq!(
            render(
                "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
            )
            .unwrap(),
            "013"
        );
        let python =
            "{{ 'a</t>b'.split('</t>')[-1] }}{% for k, v in {'x': none}.items() %}{{ k ~ v }}{% endfor %}{{ messages[0].nothing }}";
        assert_eq!(render(python).unwrap(), "bxNone");
    }

    #[test]
    fn messages_keep_what_they_hold() {
        let call = json!([{"role": "assistant", "content": null, "tool_calls": [{"function": {"arguments": {"b": 1, "a": "<é>"}}}]}]);
        let source = "{{ messages[0].content is none }} {{ messages[0].tool_calls[0].function.arguments | tojson }}";
        assert_eq!(render_with(source, call.clone(), None).unwrap(), "True {\"b\": 1, \"a\": \"<é>\"}");
        let source = "{{ messages[0].content is undefined }}";
        assert_eq!(render_with(source, json!([{"role": "assistant"}]), None).unwrap(), "True");
        let messages: Vec<Message> = serde_json::from_value(call.clone()).unwrap();
        assert_eq!(serde_json::to_value(messages).unwrap(), call);
        assert_eq!(serde_json::to_value(Message::new("user", "x")).unwrap(), json!({"role": "user", "content": "x"}));
    }

    #[test]
    fn generation_blocks_pass_through() {
        assert_eq!(render("a {%- generation -%} b {% set x = 1 %}{% endgeneration %} c{{ x }}").unwrap(), "ab  c");
        assert_eq!(render("{% raw %}{% generation %}{% endraw %}").unwrap(), "{% generation %}");
        assert_eq!(render("{# {% generation %} #}{{ '{% generation %}' }}").unwrap(), "{% generation %}");
        assert!(render("{% generation %}").is_err());
    }

    #[test]
    fn named_templates_are_chosen_by_tools() {
        let list = json!([{"name": "default", "template": "D{{ tools }}"}, {"name": "tool_use", "template": "T{{ tools | length }}"}]);
        let template = ChatTemplate::new(None, Some(&list), &BTreeMap::new()).unwrap().unwrap();
        let tools = json!([{"type": "function"}]);
        let variables = Map::new();
        let render = |tools| {
            let input = ChatInput { messages: &[], add_generation_prompt: false, tools, variables: &variables, now: NOW };
            template.render(&input).unwrap()
        };
        assert_eq!(render(None), "D");
        assert_eq!(render(Some(&tools)), "T1");
        assert!(ChatTemplate::new(None, None, &BTreeMap::new()).unwrap().is_none());
        for bad in [json!([{"name": "rag", "template": ""}]), json!([]), json!({"default": "x"}), json!([1]), json!(7)] {
            assert_eq!(ChatTemplate::new(None, Some(&bad), &BTreeMap::new()).unwrap_err().kind, Kind::Template);
        }
    }

    #[test]
    fn refusals_and_mistakes_are_told() {
        let message = |source| {
            let error = render(source).unwrap_err();
            assert_eq!(error.kind, Kind::Template);
            error.message
        };
        assert!(message("{{ raise_exception('System role not supported') }}").contains("System role not supported"));
        assert!(message("a\n{% if %}").contains("line 2"));
        assert!(message("\n{{ nothing.at.all }}").contains("line 2"));
        assert!(message("{{ 1 | nonsense }}").contains("nonsense"));
        assert!(message("{{ tools | tojson }}").contains("undefined"));
        let deep = format!("{{{{ {} }}}}", "(".repeat(100_000));
        assert!(message(&deep).contains("not valid"));
    }

    #[test]
    fn a_template_without_end_is_stopped() {
        let mut endless = template("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}").unwrap();
        endless.environment.set_fuel(Some(10_000));
        let variables = Map::new();
        let input = ChatInput { messages: &[], add_generation_prompt: false, tools: None, variables: &variables, now: NOW };
        assert!(endless.render(&input).unwrap_err().message.contains("does not come to an end"));
    }
}
