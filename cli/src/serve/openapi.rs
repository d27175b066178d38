//! `/openapi.json`: what the server answers, from the table of fields. A test asks each path of it.

use super::fields::{CHAT, DETOKENIZE, EMBED, RESPONSE, TEMPLATE, TEXT, TOKENIZE, schema};
use serde_json::{Map, Value, json};

/// A path that takes an object.
pub struct Path {
    pub path: &'static str,
    /// The kind of request.
    pub of: u8,
    about: &'static str,
}

pub const POSTS: [Path; 7] = [
    Path { path: "/v1/chat/completions", of: CHAT, about: "Answer a conversation" },
    Path { path: "/v1/completions", of: TEXT, about: "Continue texts" },
    Path { path: "/v1/responses", of: RESPONSE, about: "Answer a conversation, in the form of OpenAI's newer API; nothing is stored" },
    Path {
        path: "/v1/embeddings",
        of: EMBED,
        about: "Vectors of texts: the mean of the final hidden states of their tokens, or the last one (`pooling`), of length 1",
    },
    Path { path: "/tokenize", of: TOKENIZE, about: "Token ids of a text" },
    Path { path: "/detokenize", of: DETOKENIZE, about: "The text of token ids" },
    Path { path: "/apply-template", of: TEMPLATE, about: "The text that a conversation is for the model" },
];

const GETS: [(&str, &str, &str); 4] = [
    ("/v1/models", "application/json", "The models that are served"),
    ("/health", "application/json", "Whether every model can compute"),
    ("/metrics", "text/plain", "Numbers for Prometheus"),
    ("/openapi.json", "application/json", "This document"),
];

/// The document.
pub fn document() -> Value {
    let refusal = json!({"description": "What is wrong with the request", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}});
    let refusals = |codes: &[&str]| codes.iter().map(|code| (code.to_string(), refusal.clone())).collect::<Map<String, Value>>();
    let mut paths = Map::new();
    for Path { path, of, about } in &POSTS {
        let mut answers = refusals(&["400", "401", "403", "404", "408", "413", "429", "500", "503"]);
        let mut content = json!({"application/json": {"schema": {"type": "object"}}});
        if of & (CHAT | TEXT | RESPONSE) != 0 {
            // Where `stream` is true: an event for each piece, then, but for responses, `[DONE]`.
            content["text/event-stream"] = json!({});
        }
        answers.insert("200".into(), json!({"description": "The answer", "content": content}));
        let body = json!({"required": true, "content": {"application/json": {"schema": schema(*of)}}});
        paths.insert(path.to_string(), json!({"post": {"summary": about, "requestBody": body, "responses": answers}}));
    }
    for (path, kind, about) in GETS {
        let mut answers = refusals(&["401", "403", "503"]);
        answers.insert("200".into(), json!({"description": about, "content": {kind: {"schema": if kind == "text/plain" { json!({"type": "string"}) } else { json!({"type": "object"}) }}}}));
        paths.insert(path.into(), json!({"get": {"summary": about, "responses": answers}}));
    }
    let mut answers = refusals(&["401", "403", "404"]);
    answers.insert("200".into(), json!({"description": "A model", "content": {"application/json": {"schema": {"type": "object"}}}}));
    let id = json!([{"name": "id", "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}]);
    paths.insert("/v1/models/{id}".into(), json!({"get": {"summary": "One model", "parameters": id, "responses": answers}}));
    let text = json!({"type": ["string", "null"]});
    let error = json!({"type": "object", "required": ["message", "type", "param", "code"],
        "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": text, "code": text}});
    json!({
        "openapi": "3.1.0",
        "info": {"title": "doppler serve", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {
            "schemas": {"Error": {"type": "object", "required": ["error"], "properties": {"error": error}}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    })
}
