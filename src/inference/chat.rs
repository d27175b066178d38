//! Chat templates: messages in, the prompt's text out. Templates are Jinja2 as transformers runs it: `parser` reads one,
//! `eval` renders it, `limits` bounds what it may cost (docs/decisions/0006 says why this is not a library).
//! It must not know tokenizers or models, and it asks no clock: the caller gives the time.

mod access;
mod arguments;
mod ast;
mod calls;
mod checks;
mod clock;
mod eval;
mod expressions;
mod filters;
mod floats;
mod format;
mod json;
mod lexer;
mod limits;
mod math;
mod methods;
mod names;
mod numbers;
mod parser;
mod rare_filters;
mod value;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Map;

use crate::error::{Error, Result};
use ast::Template;
pub use clock::Clock;
use limits::{Fault, Meter};
use value::Value;

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
    /// JSON schemas of tools, a list; `None` makes the variable none.
    pub tools: Option<&'a serde_json::Value>,
    /// Further variables, such as `documents` or `enable_thinking`; they win over variables of the same name.
    pub variables: &'a Map<String, serde_json::Value>,
    /// What `strftime_now` shows.
    pub now: Clock,
}

/// The compiled chat template of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    /// By name: `default`, and perhaps others. One that is not valid is a fault only where it is used, as in transformers.
    templates: Vec<(String, Result<Template, Fault>)>,
    tokens: BTreeMap<String, String>,
}

/// The template's name when no tools are given, and when they are.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
/// Names of templates that a message lists.
const NAMES: usize = 8;
/// Characters of a template's own message that are shown.
const MESSAGE: usize = 2000;

impl ChatTemplate {
    /// Compiles a model's template. `jinja_file` is the text of chat_template.jinja, which wins over `from_config`, the
    /// `chat_template` of tokenizer_config.json: one text, or a list of texts by name (`default`, `tool_use`).
    /// `tokens` become variables (`bos_token`, …). `None` if the model has no template.
    ///
    /// A template that is not valid Jinja, or missing where several have names, is an error only when it is rendered.
    ///
    /// # Errors
    /// `Kind::Template` if `from_config` is nothing that holds templates.
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
        let templates = named.into_iter().map(|(name, source)| (name, parser::parse(&source))).collect();
        Ok(Some(Self { templates, tokens: tokens.clone() }))
    }

    fn named(&self, name: &str) -> Option<(&str, &Result<Template, Fault>)> {
        self.templates.iter().rev().find(|(known, _)| known == name).map(|(name, template)| (name.as_str(), template))
    }

    /// The template for a conversation, with tools or without.
    fn chosen(&self, tools: bool) -> Result<(&str, &Template)> {
        let Some((name, parsed)) = self.named(TOOL_USE).filter(|_| tools).or_else(|| self.named(DEFAULT)) else {
            let names: Vec<String> = self.templates.iter().take(NAMES).map(|(name, _)| format!("{name:.40?}")).collect();
            let more = self.templates.len() - names.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Err(Error::template(format!(
                "tokenizer_config.json: `chat_template` is a list without a template named `{DEFAULT}`, which a conversation needs; found {}{more}",
                names.join(", ")
            )));
        };
        parsed.as_ref().map(|template| (name, template)).map_err(|fault| explain(name, "is not valid", fault))
    }

    /// Why no conversation without tools can be rendered, if that is known of the template alone.
    pub fn problem(&self) -> Option<Error> {
        self.chosen(false).err()
    }

    /// Whether the template for a conversation with tools names the variable `tools`; true where there is no such template.
    pub fn reads_tools(&self) -> bool {
        self.chosen(true).map_or(true, |(_, template)| template.names.iter().any(|name| &**name == "tools"))
    }

    /// The prompt's text. It holds the special tokens as text, BOS too where the template writes it, so encode it
    /// without adding special tokens. With tools, the template named `tool_use` is taken if there is one.
    ///
    /// # Errors
    /// `Kind::Template` with the template's own message if it refuses the conversation (`raise_exception`), and with
    /// its line if it fails, is not valid, or is missing.
    pub fn render(&self, input: &ChatInput) -> Result<String> {
        let (name, template) = self.chosen(input.tools.is_some())?;
        let messages: Vec<serde_json::Value> = input.messages.iter().map(prepared).collect();
        let json = serde_json::json!([messages, input.tools, input.variables]);
        let meter = Meter::new(json.to_string().len());
        let value = |json: &serde_json::Value| Value::from_json(json, &meter);
        let rendered = |without: Option<Value>| {
            let mut variables: Vec<(&str, Value)> =
                self.tokens.iter().map(|(name, text)| (name.as_str(), Value::Str(text.as_str().into()))).collect();
            variables.push(("messages", value(&json[0])?));
            variables.push(("add_generation_prompt", input.add_generation_prompt.into()));
            let tools = input.tools.map(value).transpose()?.or(without.clone());
            variables.extend(tools.map(|tools| ("tools", tools)));
            variables.extend(without.map(|documents| ("documents", documents)));
            for (name, given) in input.variables {
                variables.push((name, value(given)?));
            }
            eval::render(template, &variables, input.now, &meter)
        };
        // As in transformers, `tools` and `documents` are none where nobody gives them. Some templates fail on that,
        // there too, and were written for engines that leave them undefined.
        let result = rendered(Some(Value::None)).or_else(|fault| rendered(None).map_err(|_| fault));
        result.map_err(|fault| explain(name, "cannot render this conversation", &fault))
    }
}

/// A message as transformers hands it to templates: without keys that are null, and reasoning under each of its names
/// that templates read.
fn prepared(message: &Message) -> serde_json::Value {
    let keys = [("role", Some(serde_json::Value::from(message.role.as_str()))), ("content", message.content.clone())];
    let keys = keys.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let mut keys: Map<String, serde_json::Value> = keys.chain(message.other.clone()).filter(|(_, value)| !value.is_null()).collect();
    let reasoning = ["reasoning_content", "thinking", "reasoning"].iter().find_map(|key| keys.get(*key)).cloned();
    if let Some(reasoning) = reasoning {
        let mut aliased = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
        aliased.extend(keys);
        aliased.insert("reasoning_content".into(), reasoning);
        keys = aliased;
    }
    keys.into()
}

/// The templates of `chat_template` of tokenizer_config.json by name; one text is `default`.
///
/// # Errors
/// `Kind::Template` for what holds no templates.
pub fn named_templates(value: &serde_json::Value) -> Result<Vec<(String, String)>> {
    let text = |entry: &serde_json::Value, key: &str| Some(entry.get(key)?.as_str()?.to_owned());
    let named: Option<Vec<_>> = match value {
        serde_json::Value::String(text) => return Ok(vec![(DEFAULT.to_owned(), text.clone())]),
        serde_json::Value::Array(entries) => entries.iter().map(|e| Some((text(e, "name")?, text(e, "template")?))).collect(),
        serde_json::Value::Object(pairs) => {
            pairs.iter().map(|(name, template)| Some((name.clone(), template.as_str()?.to_owned()))).collect()
        }
        _ => None,
    };
    named.ok_or_else(|| {
        Error::template(
            "tokenizer_config.json: `chat_template` is neither a text, a list of objects with `name` and `template`, nor an object of texts by name",
        )
    })
}

/// What stopped a template, with its line.
fn explain(name: &str, what: &str, fault: &Fault) -> Error {
    let line = if fault.line > 0 { format!(" (line {} of the template)", fault.line) } else { String::new() };
    let which = if name == DEFAULT { String::new() } else { format!(" `{name}`") };
    let mut message = fault.message.clone();
    if let Some((at, _)) = message.char_indices().nth(MESSAGE) {
        let more = message.len() - at;
        message.truncate(at);
        message.push_str(&format!("… ({more} bytes more)"));
    }
    Error::template(format!("the chat template{which} {what}: {message}{line}"))
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
        assert_eq!(render("{{ strftime_now('%d %b %Y') }} {{ tools is none }}").unwrap(), "10 Jul 2025 True");
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
        let source = "{{ messages[0].content is undefined }} {{ messages[0].tool_calls[0].function.arguments | tojson }}";
        assert_eq!(render_with(source, call.clone(), None).unwrap(), "True {\"b\": 1, \"a\": \"<é>\"}");
        let thought = json!([{"role": "assistant", "content": "x", "reasoning": "why"}]);
        let source = "{{ messages[0].thinking }} {{ messages[0] | list }}";
        assert_eq!(render_with(source, thought, None).unwrap(), "why ['thinking', 'role', 'content', 'reasoning', 'reasoning_content']");
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
        assert_eq!(render(None), "DNone");
        assert_eq!(render(Some(&tools)), "T1");
        assert!(ChatTemplate::new(None, None, &BTreeMap::new()).unwrap().is_none());
        for bad in [json!([1]), json!(7), json!({"default": 1})] {
            assert_eq!(ChatTemplate::new(None, Some(&bad), &BTreeMap::new()).unwrap_err().kind, Kind::Template);
        }
    }

    /// As in transformers, which reads a template when it needs one.
    #[test]
    fn a_template_is_at_fault_only_when_it_is_used() {
        let of = |value: serde_json::Value| ChatTemplate::new(None, Some(&value), &BTreeMap::new()).unwrap().unwrap();
        let render = |template: &ChatTemplate, tools: Option<&serde_json::Value>| {
            let input = ChatInput { messages: &[], add_generation_prompt: false, tools, variables: &Map::new(), now: NOW };
            template.render(&input).map_err(|e| e.message)
        };
        let rag = of(json!([{"name": "rag", "template": ""}]));
        assert!(render(&rag, None).unwrap_err().contains("without a template named `default`"));
        assert_eq!(rag.problem().unwrap().kind, Kind::Template);
        assert!(render(&of(json!([])), None).is_err() && render(&of(json!("{% if")), None).unwrap_err().contains("is not valid"));
        let many: Vec<_> = (0..100_000).map(|i| json!({"name": format!("name {i}"), "template": ""})).collect();
        let message = render(&of(many.into()), None).unwrap_err();
        assert!(message.contains(r#""name 7" and 99992 more"#) && message.len() < 1000, "{message:.200}");
        let by_name = of(json!({"default": "D", "tool_use": "{% if"}));
        assert_eq!(render(&by_name, None).unwrap(), "D");
        assert!(by_name.problem().is_none() && render(&by_name, Some(&json!([]))).unwrap_err().contains("`tool_use` is not valid"));
        assert!(!of(json!("{{ messages }}")).reads_tools() && of(json!("{% for t in tools %}{% endfor %}")).reads_tools());
    }

    #[test]
    fn messages_of_templates_are_cut() {
        let message = render("{{ raise_exception('é' * 1000000) }}").unwrap_err().message;
        assert!(message.contains("é… (1996000 bytes more)") && message.len() < 5000, "{} bytes", message.len());
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
        assert!(message("{{ nothing | tojson }}").contains("Undefined"));
        let deep = format!("{{{{ {} }}}}", "(".repeat(100_000));
        assert!(message(&deep).contains("not valid"));
    }

    /// Renders `source` on a small stack; the error's text, whatever else it is. (A stack overflow would end the tests.)
    fn attacked(source: String) -> String {
        let run = move || match template(&source).map(|template| {
            let messages = [Message::new("user", "hi")];
            let input = ChatInput { messages: &messages, add_generation_prompt: true, tools: None, variables: &Map::new(), now: NOW };
            template.render(&input)
        }) {
            Ok(Ok(text)) => format!("{} bytes", text.len()),
            Ok(Err(error)) | Err(error) => error.message,
        };
        std::thread::Builder::new().stack_size(768 << 10).spawn(run).unwrap().join().unwrap()
    }

    #[test]
    fn hostile_nesting_is_an_error() {
        let many = 100_000;
        for (open, middle, close) in [
            ("(", "1", ")"),
            ("[", "", "]"),
            ("{1:", "1", "}"),
            ("-", "1", ""),
            ("not ", "1", ""),
            ("f(", "1", ")"),
            ("x[", "1", "]"),
            ("1 if 1 else (", "1", ")"),
            ("x|f(", "1", ")"),
            ("x is f(", "1", ")"),
        ] {
            let source = format!("{{{{ {}{middle}{} }}}}", open.repeat(many / 2), close.repeat(many / 2));
            let found = attacked(source);
            assert!(found.contains("levels deep") || found.contains("bytes; a chat"), "{open}: {found}");
            // As deep as it may be, parsed and evaluated.
            let source = format!("{{{{ {}{middle}{} }}}}", open.repeat(60), close.repeat(60));
            assert!(!attacked(source).contains("levels deep"), "{open}");
        }
        for (open, close) in [("{% if 1 %}", "{% endif %}"), ("{% for i in [1] %}", "{% endfor %}"), ("{% macro m() %}", "{% endmacro %}")]
        {
            assert!(attacked(open.repeat(9000) + &close.repeat(9000)).contains("levels deep"));
            assert!(attacked(open.repeat(60) + &close.repeat(60)).ends_with(" bytes"), "{open}");
        }
        // Chains cost no stack.
        for part in ["+1", "~1", " and 1", " or 0", "|abs", ".x", "[0]", " if 1 else 2", " < 2"] {
            attacked(format!("{{{{ 1{} }}}}", part.repeat(many / part.len())));
        }
        attacked(format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(30_000)));
        for source in [
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% macro m() %}{{ caller() }}{% endmacro %}{% macro n() %}{% call m() %}{{ n() }}{% endcall %}{% endmacro %}{{ n() }}",
            "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
            "{% macro m(a) %}{{ [[[[[[m(-(-(-(-a))))]]]]]] }}{% endmacro %}{{ m(1) }}",
        ] {
            assert!(attacked(source.into()).contains("calls itself"), "{source}");
        }
        let nested = "{% set ns = namespace(a=[]) %}{% for i in range(100000) %}{% set ns.a = [ns.a] %}{% endfor %}";
        assert!(attacked(nested.into()).contains("levels deep"));
        let chained = "{% set ns = namespace(a=0) %}{% for i in range(20000) %}{% set ns.a = namespace(a=ns.a) %}{% endfor %}";
        assert!(attacked(chained.into()).ends_with(" bytes"), "namespaces in namespaces are dropped one by one");
        assert!(attacked(format!("{chained}{{{{ ns }}}}")).contains("levels deep"));
        assert!(attacked("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}".into()).contains("levels deep"));
        assert!(attacked("{{ 'a' | map(*(['map'] * 10000)) | list }}".into()).contains("too many filters"));
    }

    #[test]
    fn hostile_growth_and_time_are_errors() {
        let doubled = |part: &str| {
            format!(
                "{{% set ns = namespace(s='aaaaaaaa', t=[1], u=[1]) %}}{{% for i in range(60) %}}{part}{{% endfor %}}{{{{ ns.s | length }}}}"
            )
        };
        let sources = [
            doubled("{% set ns.s = ns.s ~ ns.s %}"),
            doubled("{% set ns.s = ns.s + ns.s %}"),
            doubled("{% set ns.s = ns.s * 2 %}"),
            doubled("{% set ns.s = ns.s.replace('a', 'aa') %}"),
            doubled("{% set ns.s = ns.s | replace('a', 'aa') %}"),
            doubled("{% set ns.s = '%s%s' % (ns.s, ns.s) %}"),
            doubled("{% set ns.s = '{0}{0}'.format(ns.s) %}"),
            doubled("{% set ns.s = [ns.s, ns.s] | join %}"),
            doubled("{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
            doubled("{% set ns.s = ns.s | e ~ '<' * (ns.s | length) %}"),
            doubled("{% set ns.t = ns.t + ns.t %}"),
            doubled("{% set ns.t = ns.t * 2 %}"),
            doubled("{% set ns.t = [ns.t, ns.t] %}") + "{{ ns.t }}",
            doubled("{% set ns.t = [ns.t, ns.t] %}") + "{{ ns.t | tojson }}",
            doubled("{% set ns.t = [ns.t, ns.t] %}{% set ns.u = [ns.u, ns.u] %}") + "{{ ns.t == ns.u }}",
            doubled("{% set ns.t = [ns.t, ns.t] %}{% set ns.u = [ns.u, ns.u] %}") + "{{ [ns.t, ns.u] | sort }}",
            doubled("{% set ns.t = (ns.t, ns.t) %}{% set ns.u = ((1,), 2) %}") + "{{ [ns.t, ns.u] | unique | list }}",
            doubled("{% set ns.t = (ns.t, ns.t) %}").replace("t=[1]", "t=(1,)") + "{{ {ns.t: 1} }}",
            doubled("{% set ns.t = (ns.t, ns.t) %}").replace("t=[1]", "t=(1,)") + "{{ ns.t in {1: 2} }}",
            doubled("{% set ns.t = (ns.t, ns.t) %}").replace("t=[1]", "t=(1,)") + "{{ {1: 2}.get(ns.t) }}",
            doubled("{% set ns.t = (ns.t, ns.t) %}").replace("t=[1]", "t=(1,)") + "{{ [ns.t] | unique | list }}",
            "{{ ('\\n' * 8000000).splitlines() | length }}".into(),
            "{{ (' a' * 4000000).split() | length }}".into(),
            "{{ (' a' * 4000000).rsplit('a') | length }}".into(),
            "{{ 'a' * 10 ** 9 }}".into(),
            "{{ [0] * 10 ** 12 }}".into(),
            "{{ 'a' * 10 ** 30 }}".into(),
            "{{ 'a'.center(10 ** 9) }}".into(),
            "{{ 'a'.ljust(10 ** 18) }}".into(),
            "{{ 'a' | center(10 ** 18) }}".into(),
            "{{ '1'.zfill(10 ** 10) }}".into(),
            "{{ '%999999999d' % 1 }}".into(),
            "{{ '%.999999999d' % 1 }}".into(),
            "{{ '%*d' % (10 ** 18, 1) }}".into(),
            "{{ '{:999999999}'.format(1) }}".into(),
            "{{ '\t'.expandtabs(10 ** 12) }}".into(),
            "{{ ('a\n' * 1000) | indent(10 ** 6) }}".into(),
            "{{ [[1]] | tojson(indent=10 ** 12) }}".into(),
            "{{ [1] | batch(10 ** 12, 0) | list }}".into(),
            "{{ [1] | slice(10 ** 12) | list }}".into(),
            "{{ strftime_now('%c' * 10 ** 7) }}".into(),
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".into(),
            "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}".into(),
            "{% set s = 'a' * 10 ** 6 %}{% for i in range(100000) %}{{ s == s ~ '' }}{% endfor %}".into(),
            "{% set s = 'a' * 10 ** 6 %}{% for i in range(100000) %}{{ 'b' in s }}{% endfor %}".into(),
            "{% set s = 'a' * 10 ** 6 %}{% for i in range(100000) %}{{ s | length }}{% endfor %}".into(),
            "{% set s = 'ab' * 10 ** 6 %}{{ s.split('a') | map('replace', 'b', s) | list }}".into(),
            "{{ range(10 ** 12) | list }}".into(),
        ];
        for source in sources {
            let start = std::time::Instant::now();
            let found = attacked(source.clone());
            assert!(!found.ends_with(" bytes"), "{source}: {found}");
            // Far more than it takes, as tests run beside each other and other work.
            assert!(start.elapsed().as_secs() < 20, "{source}: {:?}", start.elapsed());
        }
        let tags = attacked("{% generation %}{% endgeneration %}".repeat(10_000) + &"{#".repeat(20_000));
        assert!(tags.contains("no end"), "{tags}");
    }
}
