//! The fields of requests: one table, which checks what comes and makes the schemas of `/openapi.json`. A field that is not
//! in it is an error that names it; null is as if it were absent. It knows no model.

use super::problem::Problem;
use crate::chat::kind;
use doppler::debug::categories::CATEGORIES;
use doppler::error::nearest;
use serde_json::{Map, Value, json};

/// Kinds of requests, as bits.
pub const CHAT: u8 = 1;
pub const TEXT: u8 = 2;
pub const TOKENIZE: u8 = 4;
pub const DETOKENIZE: u8 = 8;
pub const TEMPLATE: u8 = 16;
pub const EMBED: u8 = 32;
pub const RESPONSE: u8 = 64;

const BOTH: u8 = CHAT | TEXT;
/// All that generate.
const GENERATE: u8 = BOTH | RESPONSE;
const ALL: u8 = GENERATE | TOKENIZE | DETOKENIZE | TEMPLATE | EMBED;

/// Most stop texts, and characters of one.
const STOPS: usize = 16;
const STOP_LENGTH: usize = 256;
/// Most prompts of one request.
const PROMPTS: usize = 128;
/// Most texts of one request for embeddings.
const TEXTS: usize = 2048;
/// Largest token id, and the largest number of tokens that can be asked for: more than any model has.
const LARGE: i64 = i32::MAX as i64;

/// Trace categories that are not of a run but of the device or of loading.
pub const UNSHOWN: [&str; 3] = ["loader", "kernels", "perf"];
/// Members of `doppler`.
const WATCH: [&str; 4] = ["trace", "layers", "probes", "set"];

/// A field.
struct Field {
    name: &'static str,
    /// The kinds of requests that have it.
    of: u8,
    required: bool,
    shape: Shape,
    about: &'static str,
}

/// What a field holds.
enum Shape {
    Text,
    Flag,
    /// From, to; whether the lower bound itself is excluded.
    Number(f64, f64, bool),
    Integer(i64, i64),
    /// Any 64-bit number.
    Seed,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A text, or a list of some.
    Stops,
    Messages,
    /// Items of a conversation with parts of typed text, or a text.
    Items,
    /// A text, ids, or so many of either.
    Prompt(usize),
    Ids,
    /// Numbers by token ids.
    Biases,
    /// An object.
    Object,
    /// An object with these flags.
    Flags(&'static [&'static str]),
    /// What to see of a run: trace categories, layers, probes.
    Watch,
    /// `{"type": "text"}`.
    TextFormat,
    /// `{"format": {"type": "text"}}`.
    TextOptions,
    /// This only: the other cannot be kept.
    Only(bool),
    /// Null: what anything else asks for cannot be kept.
    Absent,
    /// An empty list: what a full one asks for cannot be kept.
    Empty,
    /// Changes no answer.
    Any,
}

use Shape::{
    Absent, Any, Biases, Empty, Flag, Flags, Ids, Integer, Items, Messages, Number, Object, OneOf, Only, Prompt, Seed, Stops, Text,
    TextFormat, TextOptions, Watch,
};

const fn field(name: &'static str, of: u8, shape: Shape, about: &'static str) -> Field {
    Field { name, of, required: false, shape, about }
}

const fn required(name: &'static str, of: u8, shape: Shape, about: &'static str) -> Field {
    Field { name, of, required: true, shape, about }
}

const FIELDS: &[Field] = &[
    field("model", ALL, Text, "Id of the model; may be absent where one is served"),
    required("messages", CHAT | TEMPLATE, Messages, "The conversation, oldest message first"),
    required("prompt", TEXT, Prompt(PROMPTS), "A text, a list of texts, token ids, or a list of such lists"),
    required("prompt", TOKENIZE, Text, "The text"),
    field("add_special_tokens", TOKENIZE, Flag, "Whether to add what the tokenizer adds, such as BOS; true unless said"),
    required("tokens", DETOKENIZE, Ids, "Token ids"),
    field("chat_template_kwargs", CHAT | TEMPLATE, Object, "Further variables of the chat template"),
    field("add_generation_prompt", TEMPLATE, Flag, "Whether to end with what begins an answer; true unless said"),
    required("input", EMBED, Prompt(TEXTS), "A text, a list of texts, token ids, or a list of such lists"),
    field(
        "pooling",
        EMBED,
        OneOf(&["mean", "last"]),
        "How the final hidden states of a text's tokens (stage final_norm) become its vector, which then has length 1: their mean, or that of the last token; mean unless said",
    ),
    field("encoding_format", EMBED, OneOf(&["float", "base64"]), "Numbers, or their little-endian f32 bytes in Base64; float unless said"),
    field("dimensions", EMBED, Integer(1, LARGE), "Must be the model's own: no vector is cut"),
    required("input", RESPONSE, Items, "A text, or the conversation, oldest message first"),
    field("instructions", RESPONSE, Text, "What the model is told before the conversation, as its system message"),
    field("max_output_tokens", RESPONSE, Integer(1, LARGE), "Tokens to generate at most; up to the context unless said"),
    field("previous_response_id", RESPONSE, Absent, "Nothing is stored here: send the whole conversation as `input`"),
    field("conversation", RESPONSE, Absent, "Nothing is stored here: send the whole conversation as `input`"),
    field("store", RESPONSE, Only(false), "Nothing is stored here"),
    field("background", RESPONSE, Only(false), "Answers are computed while the client waits"),
    field("truncation", RESPONSE, OneOf(&["disabled"]), "No conversation is cut"),
    field("text", RESPONSE, TextOptions, "Texts only"),
    field("include", RESPONSE, Empty, "Nothing more can be included"),
    field("max_completion_tokens", CHAT, Integer(1, LARGE), "Tokens to generate at most; up to the context unless said"),
    field("max_tokens", CHAT, Integer(1, LARGE), "As max_completion_tokens, which wins"),
    field("max_tokens", TEXT, Integer(1, LARGE), "Tokens to generate at most; 16 unless said"),
    field("n", BOTH, Integer(1, 128), "Answers to each prompt"),
    field("best_of", TEXT, Integer(1, 128), "Must be n: no answer is thrown away"),
    field("temperature", GENERATE, Number(0.0, 2.0, false), "Logits are divided by this; 0 takes the most likely token"),
    field("top_p", GENERATE, Number(0.0, 1.0, true), "Choose among the most likely tokens that together reach this probability"),
    field("top_k", GENERATE, Integer(0, LARGE), "Choose among so many most likely tokens; 0 is off"),
    field("min_p", GENERATE, Number(0.0, 1.0, false), "Choose among tokens at least so likely, relative to the most likely one; 0 is off"),
    field("repetition_penalty", GENERATE, Number(0.01, 100.0, false), "Factor that makes tokens which occurred less likely; 1 is off"),
    field("presence_penalty", BOTH, Number(-2.0, 2.0, false), "Taken from the logits of tokens that were generated"),
    field("frequency_penalty", BOTH, Number(-2.0, 2.0, false), "Taken from the logit of a token for each time that it was generated"),
    field("logit_bias", BOTH, Biases, "Added to logits, by token id"),
    field("seed", GENERATE, Seed, "The same seed gives the same answer; another one each time unless said. Answer i of n has seed + i"),
    field("stop", BOTH, Stops, "Texts before which an answer ends"),
    field("stream", GENERATE, Flag, "Send the answer as it comes, as server-sent events"),
    field("stream_options", BOTH, Flags(&["include_usage", "include_obfuscation"]), "include_usage: count tokens in a last event"),
    field("stream_options", RESPONSE, Flags(&["include_obfuscation"]), "Nothing: no event is padded"),
    field("logprobs", CHAT, Flag, "Whether to tell how likely each token was"),
    field("top_logprobs", CHAT, Integer(0, 20), "Tell so many of the most likely tokens at each place"),
    field("logprobs", TEXT, Integer(0, 20), "Tell how likely each token was, and so many of the most likely ones"),
    field(
        "doppler",
        BOTH,
        Watch,
        "What to see of the run, and which values to change in it alone (`set`), as in `runtime.debug` of a runtime config; needs --allow-debug",
    ),
    // Accepted where they ask for what is done anyway.
    field("response_format", BOTH, TextFormat, "Texts only"),
    field("tools", CHAT | RESPONSE, Empty, "Tools cannot be called yet"),
    field("functions", CHAT, Empty, "Functions cannot be called yet"),
    field("tool_choice", CHAT | RESPONSE, OneOf(&["none", "auto"]), "Without tools, nothing is called"),
    field("function_call", CHAT, OneOf(&["none", "auto"]), "Without functions, nothing is called"),
    field("modalities", CHAT, OneOf(&["text"]), "Texts only"),
    // They change no answer.
    field("parallel_tool_calls", CHAT | RESPONSE, Flag, "Without tools, nothing"),
    field("user", GENERATE | EMBED, Any, "Ignored"),
    field("metadata", GENERATE, Any, "Ignored"),
    field("store", BOTH, Any, "Ignored: nothing is stored"),
    field("service_tier", GENERATE, Any, "Ignored"),
    field("safety_identifier", GENERATE, Any, "Ignored"),
    field("prompt_cache_key", GENERATE, Any, "Ignored"),
    field("prompt_cache_retention", GENERATE, Any, "Ignored"),
];

/// The fields of a request that were checked. Getters give `None` where a field is absent.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// The fields of the request `body` of kind `of`.
    ///
    /// # Errors
    /// A problem that names the field.
    pub fn read(body: &[u8], of: u8) -> Result<Self, Problem> {
        let value = serde_json::from_slice(body).map_err(|e| Problem::invalid(format!("the body is not JSON: {e}")))?;
        let Value::Object(mut map) = value else {
            return Err(Problem::invalid(format!("the body: expected a JSON object, found {}", kind(&value))));
        };
        map.retain(|_, value| !value.is_null());
        let known = || FIELDS.iter().filter(|field| field.of & of != 0);
        for (name, value) in &map {
            let Some(field) = known().find(|field| field.name == name) else {
                let shown: String = name.chars().take(80).collect();
                let near = nearest(&shown, known().map(|field| field.name)).join(", ");
                let near = if near.is_empty() { near } else { format!(" (nearest: {near})") };
                return Err(Problem::field(&shown, format!("this field is not known here{near}")).code("unknown_parameter"));
            };
            field.shape.check(value).map_err(|expected| {
                let why = if matches!(field.shape, Empty | Absent | Only(_)) { format!(" ({})", field.about) } else { String::new() };
                Problem::field(name, format!("expected {expected}{why}, found {}", shown(value)))
            })?;
        }
        match known().find(|field| field.required && !map.contains_key(field.name)) {
            Some(field) => Err(Problem::field(field.name, format!("missing: {}", field.about)).code("missing_required_parameter")),
            None => Ok(Self(map)),
        }
    }
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }
    pub fn number(&self, name: &str) -> Option<f64> {
        self.get(name)?.as_f64()
    }
    pub fn integer(&self, name: &str) -> Option<i64> {
        whole(self.get(name)?)
    }
    /// A number that counts something.
    pub fn count(&self, name: &str) -> Option<usize> {
        usize::try_from(self.integer(name)?).ok()
    }
    /// A number as 64 bits.
    pub fn bits(&self, name: &str) -> Option<u64> {
        let value = self.get(name)?;
        value.as_u64().or_else(|| whole(value).map(i64::cast_unsigned))
    }
    pub fn object(&self, name: &str) -> Option<&Map<String, Value>> {
        self.get(name)?.as_object()
    }
    /// The texts of a field that holds one or several.
    pub fn texts(&self, name: &str) -> Vec<String> {
        match self.get(name) {
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(list)) => list.iter().filter_map(|text| text.as_str().map(str::to_string)).collect(),
            _ => Vec::new(),
        }
    }
}

impl Shape {
    /// Whether `value` is of this shape; what was expected where it is not.
    fn check(&self, value: &Value) -> Result<(), String> {
        let ok = match self {
            Any => true,
            Text => value.is_string(),
            Flag => value.is_boolean(),
            Number(least, most, above) => value.as_f64().is_some_and(|x| (*least..=*most).contains(&x) && (!above || x > *least)),
            Integer(least, most) => whole(value).is_some_and(|x| (*least..=*most).contains(&x)),
            Seed => value.is_u64() || whole(value).is_some(),
            OneOf(texts) => match value {
                Value::Array(list) => list.iter().all(|text| text.as_str().is_some_and(|text| texts.contains(&text))) && !list.is_empty(),
                text => text.as_str().is_some_and(|text| texts.contains(&text)),
            },
            Stops => match value {
                Value::Array(list) => list.len() <= STOPS && list.iter().all(is_stop),
                text => is_stop(text),
            },
            Messages => value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(is_message)),
            Items => value.is_string() || value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(is_item)),
            Prompt(most) => is_prompt(value, *most),
            Ids => value.as_array().is_some_and(|list| list.iter().all(is_id)),
            Biases => value.as_object().is_some_and(|map| map.iter().all(|(id, bias)| is_bias(id, bias))),
            Object => value.is_object(),
            Flags(names) => value
                .as_object()
                .is_some_and(|map| map.iter().all(|(name, flag)| names.contains(&&**name) && (flag.is_boolean() || flag.is_null()))),
            Watch => value.as_object().is_some_and(|map| map.iter().all(|(name, list)| WATCH.contains(&&**name) && list.is_array())),
            TextFormat => is_text_format(value),
            TextOptions => value.as_object().is_some_and(|map| map.iter().all(|(name, value)| name == "format" && is_text_format(value))),
            Only(flag) => value.as_bool() == Some(*flag),
            // Null is as if it were absent.
            Absent => false,
            Empty => value.as_array().is_some_and(Vec::is_empty),
        };
        if ok { Ok(()) } else { Err(self.expected()) }
    }
    fn expected(&self) -> String {
        match self {
            Any => "anything".into(),
            Text => "a text".into(),
            Flag => "true or false".into(),
            Number(least, most, false) => format!("a number from {least} to {most}"),
            Number(least, most, true) => format!("a number above {least}, at most {most}"),
            Integer(least, most) => format!("a whole number from {least} to {most}"),
            Seed => "a whole number of 64 bits".into(),
            OneOf(texts) => format!("one of {texts:?}"),
            Stops => format!("a text, or at most {STOPS}, none of them empty or longer than {STOP_LENGTH} characters"),
            Messages => {
                "a list of objects with a text `role`, perhaps a `name`, and `content`: a text, null, or a list of parts of type `text`".into()
            }
            Items => {
                "a text, or a list of messages: objects with a text `role`; `content` a text, or a list of parts of type `input_text` or `output_text`"
                    .into()
            }
            Prompt(most) => format!("a text, token ids, or a list of at most {most} of either"),
            Ids => "a list of token ids".into(),
            Biases => "an object of numbers from -100 to 100 by token ids".into(),
            Object => "an object".into(),
            Flags(names) => format!("an object with true or false for some of {names:?}"),
            Watch => format!("an object with lists for some of {WATCH:?}"),
            TextFormat => "{\"type\": \"text\"}".into(),
            TextOptions => "{\"format\": {\"type\": \"text\"}}".into(),
            Only(flag) => flag.to_string(),
            Absent => "no such field".into(),
            Empty => "an empty list".into(),
        }
    }
    /// The JSON schema.
    fn schema(&self) -> Value {
        let id = || json!({"type": "integer", "minimum": 0, "maximum": LARGE});
        let stop = || json!({"type": "string", "minLength": 1, "maxLength": STOP_LENGTH});
        let listed = |item: Value, most: usize| json!({"type": "array", "items": item, "minItems": 1, "maxItems": most});
        match self {
            Any => json!({}),
            Text => json!({"type": "string"}),
            Flag => json!({"type": "boolean"}),
            Number(least, most, false) => json!({"type": "number", "minimum": least, "maximum": most}),
            Number(least, most, true) => json!({"type": "number", "exclusiveMinimum": least, "maximum": most}),
            Integer(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
            Seed => json!({"type": "integer", "minimum": i64::MIN, "maximum": u64::MAX}),
            OneOf(texts) => json!({"enum": texts}),
            Stops => json!({"anyOf": [stop(), {"type": "array", "items": stop(), "maxItems": STOPS}]}),
            Messages => {
                let part = json!({"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": {"type": "string"}}});
                let content = json!({"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": part}]});
                let message =
                    json!({"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}, "content": content}});
                json!({"type": "array", "items": message, "minItems": 1})
            }
            Items => {
                let part = json!({"type": "object", "required": ["type", "text"], "properties": {"type": {"enum": PARTS}, "text": {"type": "string"}}});
                let content = json!({"anyOf": [{"type": "string"}, {"type": "array", "items": part}]});
                let item = json!({"type": "object", "required": ["role", "content"], "properties": {"type": {"const": "message"}, "role": {"type": "string"}, "content": content}});
                json!({"anyOf": [{"type": "string"}, {"type": "array", "items": item, "minItems": 1}]})
            }
            Prompt(most) => {
                let (text, ids) = (json!({"type": "string", "minLength": 1}), json!({"type": "array", "items": id(), "minItems": 1}));
                json!({"anyOf": [text.clone(), ids.clone(), listed(text, *most), listed(ids, *most)]})
            }
            Ids => json!({"type": "array", "items": id()}),
            Biases => {
                let bias = json!({"type": "number", "minimum": -100, "maximum": 100});
                json!({"type": "object", "propertyNames": {"pattern": "^[0-9]{1,9}$"}, "additionalProperties": bias})
            }
            Object => json!({"type": "object"}),
            Flags(names) => {
                let flags: Map<String, Value> = names.iter().map(|name| (name.to_string(), json!({"type": ["boolean", "null"]}))).collect();
                json!({"type": "object", "properties": flags, "additionalProperties": false})
            }
            Watch => {
                let names: Vec<&str> = CATEGORIES.iter().map(|(name, _)| *name).filter(|name| !UNSHOWN.contains(name)).collect();
                let members = json!({
                    "trace": {"type": "array", "items": {"enum": names}},
                    "layers": {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"const": "mid"}]}},
                    "probes": {"type": "array", "items": {"type": "object"}},
                    "set": {"type": "array", "items": {"type": "string"}},
                });
                json!({"type": "object", "properties": members, "additionalProperties": false})
            }
            TextFormat => {
                json!({"type": "object", "properties": {"type": {"const": "text"}}, "required": ["type"], "additionalProperties": false})
            }
            TextOptions => json!({"type": "object", "properties": {"format": TextFormat.schema()}, "additionalProperties": false}),
            Only(flag) => json!({ "const": flag }),
            Absent => json!({"not": {}}),
            Empty => json!({"type": "array", "maxItems": 0}),
        }
    }
}

/// The JSON schema of a request of kind `of`.
pub fn schema(of: u8) -> Value {
    let known = || FIELDS.iter().filter(|field| field.of & of != 0);
    let described = |field: &Field| {
        // Null is as if a field were absent.
        let shape = if field.required { field.shape.schema() } else { json!({"anyOf": [field.shape.schema(), {"type": "null"}]}) };
        let mut schema = shape;
        schema["description"] = field.about.into();
        (field.name.to_string(), schema)
    };
    let properties: Map<String, Value> = known().map(described).collect();
    let required: Vec<&str> = known().filter(|field| field.required).map(|field| field.name).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// A number without a fraction, however it is written.
fn whole(value: &Value) -> Option<i64> {
    let exact = |x: f64| (x.fract() == 0.0 && x.abs() <= 9_007_199_254_740_992.0).then_some(x as i64);
    value.as_i64().or_else(|| value.as_f64().filter(|_| value.is_f64()).and_then(exact))
}

fn is_id(value: &Value) -> bool {
    whole(value).is_some_and(|id| (0..=LARGE).contains(&id))
}

fn is_stop(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty() && text.chars().count() <= STOP_LENGTH)
}

fn is_bias(id: &str, bias: &Value) -> bool {
    id.bytes().all(|b| b.is_ascii_digit()) && id.parse::<u32>().is_ok() && bias.as_f64().is_some_and(|bias| bias.abs() <= 100.0)
}

fn is_message(value: &Value) -> bool {
    let is_part = |part: &Value| part["type"] == "text" && part["text"].is_string();
    let content = match value.get("content") {
        None | Some(Value::Null | Value::String(_)) => true,
        Some(Value::Array(parts)) => parts.iter().all(is_part),
        Some(_) => false,
    };
    value.get("role").is_some_and(Value::is_string) && content && says_no_more(value, &["role", "content", "name"])
}

/// Whether a message has only `known` keys, and others with nothing in them: clients send answers back as they got them.
fn says_no_more(message: &Value, known: &[&str]) -> bool {
    let nothing = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    message.as_object().is_some_and(|map| map.iter().all(|(key, value)| known.contains(&key.as_str()) || nothing(value)))
}

/// Kinds of parts of a message of `/v1/responses`.
const PARTS: [&str; 3] = ["input_text", "output_text", "text"];

fn is_item(value: &Value) -> bool {
    let is_part = |part: &Value| part["type"].as_str().is_some_and(|kind| PARTS.contains(&kind)) && part["text"].is_string();
    let content = match value.get("content") {
        Some(Value::String(_)) => true,
        Some(Value::Array(parts)) => parts.iter().all(is_part),
        _ => false,
    };
    value.get("type").is_none_or(|kind| kind == "message") && value.get("role").is_some_and(Value::is_string) && content
}

fn is_text_format(value: &Value) -> bool {
    value.as_object().is_some_and(|map| map.len() == 1 && map.get("type").is_some_and(|kind| kind == "text"))
}

fn is_prompt(value: &Value, most: usize) -> bool {
    let text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let ids = |value: &Value| value.as_array().is_some_and(|ids| !ids.is_empty() && ids.iter().all(is_id));
    let several = |list: &Vec<Value>| !list.is_empty() && list.len() <= most && (list.iter().all(text) || list.iter().all(ids));
    text(value) || ids(value) || value.as_array().is_some_and(several)
}

/// `value` for a message: short ones as they are.
fn shown(value: &Value) -> String {
    match value {
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.len() <= 40 => value.to_string(),
        other => kind(other).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> String {
        Fields::read(body.as_bytes(), CHAT).unwrap_err().json()["error"]["message"].as_str().unwrap().to_string()
    }

    #[test]
    fn fields_are_checked_by_the_table() {
        let fields = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}],"n":2.0,"temperature":1,"seed":-1,"user":7,
            "stop":"x","tools":[],"response_format":{"type":"text"},"logit_bias":{"5":-100},"stream_options":{"include_usage":true},"top_p":null}"#;
        let fields = Fields::read(fields.as_bytes(), CHAT).unwrap();
        assert_eq!((fields.count("n"), fields.number("temperature"), fields.bits("seed")), (Some(2), Some(1.0), Some(u64::MAX)));
        assert_eq!((fields.texts("stop"), fields.number("top_p")), (vec!["x".to_string()], None));
        let with = |field: &str| refused(&format!(r#"{{"messages":[{{"role":"user","content":"Hi"}}],{field}}}"#));
        for (field, parts) in [
            (r#""temprature":1"#, &["temprature: this field is not known here", "temperature"][..]),
            (r#""temperature":"hot""#, &["temperature: expected a number from 0 to 2, found \"hot\""]),
            (r#""temperature":-0.1"#, &["found -0.1"]),
            (r#""top_p":0"#, &["above 0"]),
            (r#""n":1.5"#, &["n: expected a whole number"]),
            (r#""n":18446744073709551615"#, &["n: expected a whole number"]),
            (r#""max_tokens":0"#, &["max_tokens"]),
            (r#""stop":["a",""]"#, &["stop"]),
            (r#""tools":[{"type":"function"}]"#, &["tools: expected an empty list (Tools cannot be called yet)"]),
            (r#""response_format":{"type":"json_object"}"#, &["response_format"]),
            (r#""logit_bias":{"-1":1}"#, &["logit_bias"]),
            (r#""logit_bias":{"5":1000}"#, &["logit_bias"]),
            (r#""stream_options":{"usage":true}"#, &["stream_options"]),
            (r#""prompt":"x""#, &["prompt: this field is not known here"]),
        ] {
            let message = with(field);
            assert!(parts.iter().all(|part| message.contains(part)), "{field}: {message}");
        }
        for body in [
            "",
            "[]",
            "{",
            "1e999",
            r#"{"messages":[]}"#,
            r#"{"messages":null}"#,
            r#"{"messages":[{"content":"x"}]}"#,
            r#"{"messages":[{"role":"user","contnet":"x"}]}"#,
            &"[".repeat(1000),
        ] {
            assert!(Fields::read(body.as_bytes(), CHAT).is_err(), "{body}");
        }
        assert!(Fields::read(&[0xff, 0xfe], CHAT).is_err());
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let read = |prompt: &str| Fields::read(format!(r#"{{"prompt":{prompt}}}"#).as_bytes(), TEXT).is_ok();
        assert!([r#""a""#, r#"["a","b"]"#, "[1,2]", "[[1],[2,3]]"].into_iter().all(read));
        assert!(![r#""""#, "[]", "[[]]", r#"["a",1]"#, "[-1]", "[1.5]", "[4294967296]", "{}", "7"].into_iter().any(read));
    }

    #[test]
    fn every_kind_has_a_schema() {
        for of in [CHAT, TEXT, TOKENIZE, DETOKENIZE, TEMPLATE, EMBED, RESPONSE] {
            let schema = schema(of);
            assert_eq!((&schema["additionalProperties"], schema["required"].as_array().map(Vec::len)), (&json!(false), Some(1)));
        }
        assert_eq!(schema(CHAT)["properties"]["n"]["anyOf"][0], json!({"type": "integer", "minimum": 1, "maximum": 128}));
    }
}
