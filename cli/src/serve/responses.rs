//! Answers in the form of OpenAI's newer API, `/v1/responses`: one message of text, whole or as events with names. Data in, JSON
//! out. Nothing is stored, so a conversation is sent whole each time.

use super::answer::{Answers, End, Update};
use super::fields::Fields;
use super::problem::Problem;
use super::request::Ask;
use serde_json::{Value, json};

/// A response, as it comes.
pub struct Reply {
    /// Of the response, and of its message.
    ids: [String; 2],
    created: u64,
    model: String,
    /// What was asked; parts of it are repeated in the response.
    fields: Fields,
    temperature: f64,
    top_p: f64,
    seed: u64,
    /// Its hash and seed are told.
    debug: bool,
    text: String,
    end: Option<End>,
    /// Events so far.
    events: usize,
}

/// Where a response is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Begun,
    Ended,
    Failed,
}

impl Reply {
    pub fn new(ids: [String; 2], created: u64, model: String, fields: Fields, ask: &Ask, debug: bool) -> Self {
        let (temperature, top_p, seed) = (ask.sampling.temperature, ask.sampling.top_p, ask.sampling.seed);
        Self { ids, created, model, fields, temperature, top_p, seed, debug, text: String::new(), end: None, events: 0 }
    }
    /// Takes in what is new; its text.
    pub fn add(&mut self, update: Update) -> String {
        self.text += &update.text;
        self.end = self.end.or(update.end);
        update.text
    }
    /// The whole response, with its usage where `answers` are there.
    pub fn whole(&self, answers: Option<&Answers>) -> Value {
        self.object(Status::Ended, answers, Value::Null)
    }
    /// The events before any text.
    pub fn opening(&mut self) -> Vec<Value> {
        let begun = self.object(Status::Begun, None, Value::Null);
        let (item, part) = (self.message("in_progress", json!([])), part(""));
        vec![
            self.event("response.created", json!({ "response": begun })),
            self.event("response.in_progress", json!({ "response": begun })),
            self.event("response.output_item.added", json!({"output_index": 0, "item": item})),
            self.at_part("response.content_part.added", json!({ "part": part })),
        ]
    }
    /// The event that an update makes, if it has text.
    pub fn piece(&mut self, update: Update) -> Option<Value> {
        let delta = self.add(update);
        (!delta.is_empty()).then(|| self.at_part("response.output_text.delta", json!({"delta": delta, "logprobs": []})))
    }
    /// The events after all text.
    pub fn closing(&mut self, answers: &Answers) -> Vec<Value> {
        let whole = self.whole(Some(answers));
        let (text, part, item) = (self.text.clone(), part(&self.text), whole["output"][0].clone());
        let name = if self.is_cut() { "response.incomplete" } else { "response.completed" };
        vec![
            self.at_part("response.output_text.done", json!({"text": text, "logprobs": []})),
            self.at_part("response.content_part.done", json!({ "part": part })),
            self.event("response.output_item.done", json!({"output_index": 0, "item": item})),
            self.event(name, json!({ "response": whole })),
        ]
    }
    /// The last event where something went wrong.
    pub fn failure(&mut self, problem: &Problem) -> Value {
        let error = json!({"code": "server_error", "message": problem.json()["error"]["message"]});
        let failed = self.object(Status::Failed, None, error);
        self.event("response.failed", json!({ "response": failed }))
    }
    /// Whether the answer ended for want of room.
    fn is_cut(&self) -> bool {
        self.end.is_some_and(|end| end.reason == "length")
    }
    fn event(&mut self, name: &str, mut event: Value) -> Value {
        (event["type"], event["sequence_number"]) = (name.into(), self.events.into());
        self.events += 1;
        event
    }
    /// An event about the text of the message.
    fn at_part(&mut self, name: &str, mut event: Value) -> Value {
        (event["item_id"], event["output_index"], event["content_index"]) = (self.ids[1].clone().into(), 0.into(), 0.into());
        self.event(name, event)
    }
    fn message(&self, status: &str, content: Value) -> Value {
        json!({"id": self.ids[1], "type": "message", "status": status, "role": "assistant", "content": content})
    }
    fn object(&self, status: Status, answers: Option<&Answers>, error: Value) -> Value {
        let told = match status {
            Status::Begun => "in_progress",
            Status::Failed => "failed",
            Status::Ended if self.is_cut() => "incomplete",
            Status::Ended => "completed",
        };
        let output = if status == Status::Ended { vec![self.message(told, json!([part(&self.text)]))] } else { Vec::new() };
        let cut = (status == Status::Ended && self.is_cut()).then(|| json!({"reason": "max_output_tokens"}));
        let given = |name: &str| self.fields.get(name).cloned().unwrap_or(Value::Null);
        let mut object = json!({
            "id": self.ids[0],
            "object": "response",
            "created_at": self.created,
            "status": told,
            "background": false,
            "error": error,
            "incomplete_details": cut,
            "instructions": given("instructions"),
            "max_output_tokens": given("max_output_tokens"),
            "metadata": self.fields.object("metadata").cloned().unwrap_or_default(),
            "model": self.model,
            "output": output,
            "parallel_tool_calls": self.fields.flag("parallel_tool_calls").unwrap_or(true),
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "service_tier": "default",
            "store": false,
            "temperature": self.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": self.fields.text("tool_choice").unwrap_or("auto"),
            "tools": [],
            "top_p": self.top_p,
            "truncation": "disabled",
            "usage": answers.map(usage),
            "user": given("user"),
        });
        if let Some(End { hash, .. }) = self.end.filter(|_| self.debug) {
            object["doppler"] = json!({"logits_hash": hash.map(|hash| format!("{hash:016x}")), "seed": self.seed});
        }
        object
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn usage(answers: &Answers) -> Value {
    let (input, output) = (answers.prompt_tokens, answers.tokens());
    json!({
        "input_tokens": input,
        "input_tokens_details": {"cached_tokens": answers.cached_tokens()},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input + output,
    })
}
