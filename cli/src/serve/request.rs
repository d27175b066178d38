//! From the checked fields of a request to what is to be computed: prompts as ids, sampling, rules, limits. It runs in a thread
//! that may take its time, as texts become ids here.

use super::fields::{Fields, UNSHOWN};
use super::problem::Problem;
use super::worker::Hosted;
use crate::chat;
use doppler::config::RuntimeConfig;
use doppler::config::runtime::Debug;
use doppler::inference::chat::{ChatInput, Message};
use doppler::inference::sampling::SamplingConfig;
use doppler::inference::words::Chat;
use doppler::model::GenerationRules;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Map, Value, json};

/// Tokens of an answer to a bare text, where the request does not say.
const USUAL_TOKENS: usize = 16;

/// What is to be computed.
#[derive(Debug)]
pub struct Ask {
    pub prompts: Vec<Vec<u32>>,
    /// Answers to each prompt.
    pub n: usize,
    /// Tokens of an answer at most, as asked for.
    pub max_tokens: Option<usize>,
    pub sampling: SamplingConfig,
    pub rules: GenerationRules,
    pub stops: Vec<String>,
    /// Tell how likely each token was, and so many of the likeliest ones.
    pub alternatives: Option<usize>,
    pub stream: bool,
    pub usage: bool,
    /// What to see of the run, where something is.
    pub watch: Option<Debug>,
}

impl Ask {
    /// What a request for a conversation asks.
    ///
    /// # Errors
    /// A problem of the request's.
    pub fn chat(fields: &Fields, hosted: &Hosted, debug: bool) -> Result<Self, Problem> {
        let ids = hosted.words.tokenizer.encode(&template(fields, hosted, true)?, false)?;
        let likely = fields.flag("logprobs").unwrap_or_default();
        let top = fields.count("top_logprobs");
        if top.is_some_and(|top| top > 0) && !likely {
            return Err(Problem::field("top_logprobs", "expected `logprobs` true with it"));
        }
        let max_tokens = fields.count("max_completion_tokens").or_else(|| fields.count("max_tokens"));
        Self::new(fields, hosted, debug, vec![ids], max_tokens, likely.then_some(top.unwrap_or(0)))
    }
    /// What a request for a response asks: `instructions` are its system message.
    ///
    /// # Errors
    /// A problem of the request's.
    pub fn response(fields: &Fields, hosted: &Hosted) -> Result<Self, Problem> {
        let mut messages: Vec<Value> =
            fields.text("instructions").map(|text| json!({"role": "system", "content": text})).into_iter().collect();
        match fields.get("input") {
            Some(Value::Array(items)) => messages.extend(items.iter().map(|item| {
                // The newer name of the same role, which templates do not know.
                let role = item["role"].as_str().map(|role| if role == "developer" { "system" } else { role });
                json!({"role": role, "content": item["content"]})
            })),
            text => messages.push(json!({"role": "user", "content": text})),
        }
        let text = rendered(&messages, Map::new(), hosted, true, "input")?;
        let ids = hosted.words.tokenizer.encode(&text, false)?;
        Self::new(fields, hosted, false, vec![ids], fields.count("max_output_tokens"), None)
    }
    /// What a request to continue texts asks.
    ///
    /// # Errors
    /// A problem of the request's.
    pub fn text(fields: &Fields, hosted: &Hosted, debug: bool) -> Result<Self, Problem> {
        let n = fields.count("n").unwrap_or(1);
        if fields.count("best_of").is_some_and(|best| best != n) {
            return Err(Problem::field("best_of", format!("expected {n}, as n: no answer is thrown away")));
        }
        let prompts = prompts(fields, "prompt", hosted)?;
        let max_tokens = fields.count("max_tokens").or(Some(USUAL_TOKENS));
        Self::new(fields, hosted, debug, prompts, max_tokens, fields.count("logprobs"))
    }
    fn new(
        fields: &Fields,
        hosted: &Hosted,
        debug: bool,
        prompts: Vec<Vec<u32>>,
        max_tokens: Option<usize>,
        alternatives: Option<usize>,
    ) -> Result<Self, Problem> {
        prompts.iter().try_for_each(|ids| is_fitting(ids, "prompt", hosted))?;
        let sampling = sampling(fields, hosted)?;
        let mut rules = hosted.rules.clone();
        // One of 1 that the request states switches the model's off.
        if sampling.repeat_penalty != 1.0 || fields.number("repetition_penalty").is_some() {
            rules.repetition_penalty = None;
        }
        let factor = |name: &str| fields.number(name).unwrap_or(0.0) as f32;
        (rules.presence_penalty, rules.frequency_penalty) = (factor("presence_penalty"), factor("frequency_penalty"));
        let biases = fields.object("logit_bias").into_iter().flatten();
        let biases: Vec<(u32, f32)> = biases.filter_map(|(id, bias)| Some((id.parse().ok()?, bias.as_f64()? as f32))).collect();
        if let Some((id, _)) = biases.iter().find(|(id, _)| *id as usize >= hosted.vocab) {
            return Err(Problem::field("logit_bias", beyond(id, hosted)));
        }
        let biases = biases.into_iter().map(|(id, bias)| (vec![id], bias));
        rules.sequence_bias.extend(biases.filter(|(_, bias)| *bias != 0.0));
        let n = fields.count("n").unwrap_or(1);
        let watch = fields.object("doppler").map(|asked| watch(asked, debug)).transpose()?.flatten();
        let stops = fields.texts("stop");
        if watch.is_some() && (n * prompts.len() > 1 || alternatives.is_some() || !stops.is_empty()) {
            return Err(Problem::field("doppler", "a run that is watched has one prompt, one answer, no logprobs and no `stop`"));
        }
        // A whole answer has its usage anyway.
        let usage = fields.object("stream_options").and_then(|options| options.get("include_usage")?.as_bool());
        let stream = fields.flag("stream").unwrap_or_default();
        let usage = usage.unwrap_or_default();
        Ok(Self { prompts, n, max_tokens, sampling, rules, stops, alternatives, stream, usage, watch })
    }
    /// Tokens of an answer to a prompt of `prompt` tokens, at most.
    pub fn most(&self, prompt: usize, context: usize) -> usize {
        let room = (context + 1).saturating_sub(prompt).max(1);
        self.max_tokens.map_or(room, |most| most.min(room))
    }
}

/// The ids of the texts, or the ids, that the field `name` holds.
///
/// # Errors
/// A problem where one has ids that the model does not have, none, or more than fit.
pub fn prompts(fields: &Fields, name: &str, hosted: &Hosted) -> Result<Vec<Vec<u32>>, Problem> {
    let one = |value: &Value| {
        let ids = match value {
            Value::String(text) => {
                short(text, hosted)?;
                hosted.words.raw(text)?
            }
            ids => ids_of(ids, hosted)?,
        };
        is_fitting(&ids, name, hosted).map(|()| ids)
    };
    match fields.get(name) {
        Some(Value::Array(list)) if list.iter().all(|item| item.is_string() || item.is_array()) => list.iter().map(one).collect(),
        Some(prompt) => Ok(vec![one(prompt)?]),
        None => Ok(Vec::new()),
    }
}

fn is_fitting(ids: &[u32], name: &str, hosted: &Hosted) -> Result<(), Problem> {
    let context = hosted.room.capacity;
    if ids.len() > context {
        let text = format!("the prompt's {} tokens are longer than the context of {context} tokens", ids.len());
        return Err(Problem::invalid(text).about(name).code("context_length_exceeded"));
    }
    if ids.is_empty() { Err(Problem::field(name, "it has no token")) } else { Ok(()) }
}

/// How tokens are chosen: as the request says, else as the server was started.
fn sampling(fields: &Fields, hosted: &Hosted) -> Result<SamplingConfig, Problem> {
    let usual = &hosted.sampling;
    let found = SamplingConfig {
        temperature: fields.number("temperature").unwrap_or(usual.temperature),
        top_k: fields.count("top_k").and_then(|k| u32::try_from(k).ok()).unwrap_or(usual.top_k),
        top_p: fields.number("top_p").unwrap_or(usual.top_p),
        min_p: fields.number("min_p").unwrap_or(usual.min_p),
        repeat_penalty: fields.number("repetition_penalty").unwrap_or(usual.repeat_penalty),
        // A server that was told no seed has 0.
        seed: fields.bits("seed").or(Some(usual.seed).filter(|seed| *seed != 0)).map_or_else(random, Ok)?,
    };
    found.validate()?;
    Ok(found)
}

fn random() -> Result<u64, Problem> {
    let mut bytes = [0; 8];
    let none = |_| Problem::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "this system gives no random numbers; give a `seed`");
    SystemRandom::new().fill(&mut bytes).map_err(none)?;
    // As many bits as every JSON reader keeps.
    Ok(u64::from_le_bytes(bytes) >> 11)
}

/// What to see, of a request's `doppler` object, whose members are those of a runtime config's `debug`. An empty one asks for
/// nothing more than the hash.
fn watch(asked: &Map<String, Value>, allowed: bool) -> Result<Option<Debug>, Problem> {
    if !allowed {
        let text = "this server does not show runs: it was not started with --allow-debug";
        return Err(Problem::field("doppler", text).code("debug_not_allowed"));
    }
    if asked.is_empty() {
        return Ok(None);
    }
    let (categories, layers) = (asked.get("trace"), asked.get("layers"));
    let named = |name: &&&str| categories.and_then(Value::as_array).is_some_and(|list| list.iter().any(|item| item == **name));
    if let Some(name) = UNSHOWN.iter().find(named) {
        return Err(Problem::field("doppler", format!("`{name}` is shown by `doppler debug`, not here")));
    }
    let mut debug = json!({"trace": {"enabled": categories.is_some() || layers.is_some()}});
    if let Some(categories) = categories {
        debug["trace"]["categories"] = categories.clone();
    }
    if let Some(layers) = layers {
        debug["trace"]["layers"] = layers.clone();
    }
    if let Some(probes) = asked.get("probes") {
        debug["probes"] = probes.clone();
    }
    if let Some(set) = asked.get("set") {
        debug["set"] = set.clone();
    }
    let config = RuntimeConfig::from_patch(json!({"runtime": {"debug": debug}}));
    let config = config.map_err(|e| Problem::field("doppler", e.message))?;
    Ok(Some(config.runtime.debug))
}

/// The text of a conversation, as the model's template makes it.
///
/// # Errors
/// Those of the template; a problem of the request's.
pub fn template(fields: &Fields, hosted: &Hosted, answer: bool) -> Result<String, Problem> {
    let list = fields.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    rendered(list, fields.object("chat_template_kwargs").cloned().unwrap_or_default(), hosted, answer, "messages")
}

/// The text of the messages in `list`, which came in the field `name`.
fn rendered(list: &[Value], variables: Map<String, Value>, hosted: &Hosted, answer: bool, name: &str) -> Result<String, Problem> {
    let messages = list.iter().enumerate().map(|(at, value)| message(at, value, name)).collect::<Result<Vec<_>, Problem>>()?;
    let chat = Chat { messages, tools: None, variables };
    let size: usize = chat.messages.iter().filter_map(|m| m.content.as_ref()?.as_str()).map(str::len).sum();
    fits(size, hosted)?;
    let Some(template) = hosted.words.template() else {
        let text = "this model has no chat template; use /v1/completions";
        return Err(Problem::field(name, text).code("no_chat_template"));
    };
    let (messages, variables) = (&chat.messages, &chat.variables);
    Ok(template.render(&ChatInput { messages, add_generation_prompt: answer, tools: None, variables, now: chat::now() })?)
}

/// A message with its parts joined: templates take texts.
fn message(at: usize, value: &Value, name: &str) -> Result<Message, Problem> {
    let mut message: Message = serde_json::from_value(value.clone()).map_err(|e| Problem::field(name, format!("message {at}: {e}")))?;
    if let Some(Value::Array(parts)) = &message.content {
        let text: String = parts.iter().filter_map(|part| part["text"].as_str()).collect();
        message.content = Some(text.into());
    }
    Ok(message)
}

/// Refuses a text that cannot fit before it is made into ids, which takes over a hundred bytes of memory for each of its.
///
/// # Errors
/// The problem.
pub fn short(text: &str, hosted: &Hosted) -> Result<(), Problem> {
    fits(text.len(), hosted)
}

fn fits(bytes: usize, hosted: &Hosted) -> Result<(), Problem> {
    match hosted.most_bytes.filter(|most| bytes as u64 > *most) {
        Some(most) => {
            let context = hosted.room.capacity;
            let text =
                format!("the prompt's {bytes} bytes are longer than the context of {context} tokens, which holds at most {most} bytes");
            Err(Problem::invalid(text).about("prompt").code("context_length_exceeded"))
        }
        None => Ok(()),
    }
}

/// Token ids that the model has.
///
/// # Errors
/// The problem.
pub fn ids_of(list: &Value, hosted: &Hosted) -> Result<Vec<u32>, Problem> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let one = |value: &Value| {
        let id = value.as_f64().filter(|id| *id < hosted.vocab as f64).map(|id| id as u32);
        id.ok_or_else(|| Problem::field("token ids", beyond(value, hosted)))
    };
    list.iter().map(one).collect()
}

fn beyond(id: impl std::fmt::Display, hosted: &Hosted) -> String {
    format!("{id} is out of range: the model has ids 0 to {}", hosted.vocab.saturating_sub(1))
}
