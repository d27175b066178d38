//! Reading the metadata of one architecture: which were read, what config they make, and that none is left that could
//! change the maths.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::config::values::brief;
use crate::error::{Error, Result};

/// Metadata of an architecture that change no logit, or say what tensors say better.
const HARMLESS: [&str; 4] = ["vocab_size", "tensor_data_layout", "leading_dense_block_count", "pooling_type"];
/// Those that are harmless at a value: no experts, causal attention.
const ACCEPTED: [(&str, f64); 4] =
    [("expert_count", 0.0), ("expert_used_count", 0.0), ("attention.causal", 1.0), ("use_parallel_residual", 0.0)];

/// Metadata being read, and the config that they make.
pub(super) struct Keys<'a> {
    metadata: &'a Map<String, Value>,
    architecture: &'a str,
    read: BTreeSet<String>,
    /// The config that was made.
    pub config: Map<String, Value>,
    /// Where each of its keys comes from.
    pub sources: Vec<(String, String)>,
    /// What there is to say.
    pub notes: Vec<String>,
    /// Beginnings of names of tensors that are not used.
    pub ignored: Vec<String>,
}

impl<'a> Keys<'a> {
    pub fn new(metadata: &'a Map<String, Value>, architecture: &'a str) -> Self {
        let (config, sources) = (Map::new(), Vec::new());
        Self { metadata, architecture, read: BTreeSet::new(), config, sources, notes: Vec::new(), ignored: Vec::new() }
    }
    /// The whole key of the architecture's `key`.
    pub fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }
    pub fn wrong(&self, key: &str, problem: impl std::fmt::Display) -> Error {
        Error::config(self.path(key), problem)
    }
    pub fn unsupported(&self, key: &str, problem: impl std::fmt::Display) -> Error {
        Error::unsupported(format!("metadata `{}`: {problem}", self.path(key)))
    }
    /// The architecture's `key` counts as read.
    pub fn note_read(&mut self, key: &str) {
        self.read.insert(self.path(key));
    }
    /// The value of the architecture's `key`.
    pub fn get(&mut self, key: &str) -> Option<&'a Value> {
        self.note_read(key);
        self.metadata.get(&self.path(key))
    }
    /// Sets a key of the config.
    pub fn set(&mut self, key: &str, value: Value, source: &str) {
        self.config.insert(key.to_owned(), value);
        self.sources.push((key.to_owned(), source.to_owned()));
    }
    /// Says where llama.cpp would compute something else.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
    /// Takes a key out of the config again.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.sources.retain(|(known, _)| known != key);
        self.config.remove(key)
    }
    /// Sets a key of the config from the architecture's key `from`.
    pub fn set_from(&mut self, key: &str, value: Value, from: &str) {
        let source = self.path(from);
        self.set(key, value, &source);
    }
    /// What the config has under `key`; null if nothing.
    pub fn config(&self, key: &str) -> Value {
        self.config.get(key).cloned().unwrap_or(Value::Null)
    }
    /// A whole number, which must be there, as `name` of the config. One for each layer must be the same for all.
    pub fn count(&mut self, key: &str, name: &str) -> Result<u64> {
        let count = self.optional_count(key)?.ok_or_else(|| self.wrong(key, "is missing"))?;
        self.set_from(name, count.into(), key);
        Ok(count)
    }
    /// A whole number.
    pub fn optional_count(&mut self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let single = match value {
            Value::Array(list) => {
                let first = list.first().unwrap_or(value);
                if list.iter().any(|other| other != first) {
                    return Err(self.unsupported(key, "layers differ in it, which is not supported"));
                }
                first
            }
            single => single,
        };
        let count = single.as_u64();
        count.map(Some).ok_or_else(|| self.wrong(key, format!("expected a whole number from 0, found {}", brief(value))))
    }
    /// The same, unless somebody read it before.
    pub fn unread_count(&mut self, key: &str) -> Result<Option<u64>> {
        if self.read.contains(&self.path(key)) { Ok(None) } else { self.optional_count(key) }
    }
    /// A whole number under a key that is not the architecture's.
    pub fn whole(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let number = value.as_u64();
        number.map(Some).ok_or_else(|| Error::config(key, format!("expected a whole number from 0, found {}", brief(value))))
    }
    /// A finite number.
    pub fn number(&mut self, key: &str) -> Result<Option<Value>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Number(_) => Ok(Some(value.clone())),
            _ => Err(self.wrong(key, format!("expected a number, found {}", brief(value)))),
        }
    }
    /// A finite number that must be there.
    pub fn required(&mut self, key: &str) -> Result<Value> {
        self.number(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }
    /// True or false.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, format!("expected true or false, found {}", brief(value))))
    }
    /// A text.
    pub fn text(&mut self, key: &str) -> Result<Option<String>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = value.as_str().map(str::to_owned);
        text.map(Some).ok_or_else(|| self.wrong(key, format!("expected a text, found {}", brief(value))))
    }
    /// Which of `layers` have a window: a flag for each, or a number n for all but each n-th.
    pub fn pattern(&mut self, key: &str, layers: u64) -> Result<Option<Vec<bool>>> {
        let windowed = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array(list)) if list.len() as u64 == layers => list.iter().map(Value::as_bool).collect(),
            Some(value) => value.as_u64().filter(|n| *n > 0).map(|n| (0..layers).map(|i| n == 1 || (i + 1) % n != 0).collect()),
        };
        windowed.map(Some).ok_or_else(|| self.wrong(key, format!("expected a flag for each of {layers} layers, or a period")))
    }
    /// Refuses metadata of the architecture that nobody read.
    pub fn finish(&self) -> Result<()> {
        let start = format!("{}.", self.architecture);
        for (key, value) in self.metadata.iter().filter(|(key, _)| key.starts_with(&start) && !self.read.contains(*key)) {
            let name = &key[start.len()..];
            let number = value.as_f64().or(value.as_bool().map(|flag| f64::from(u8::from(flag))));
            let accepted = ACCEPTED.iter().any(|(known, at)| *known == name && number == Some(*at));
            if !accepted && !HARMLESS.contains(&name) {
                let message = format!("{} is not known in this architecture and could change its results", brief(value));
                return Err(Error::config(key, message));
            }
        }
        Ok(())
    }
}
