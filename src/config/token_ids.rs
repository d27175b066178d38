//! Token ids that matter to generation, from the files that `generate` of transformers reads.

use serde_json::Value;

use super::keys::{Keys, Object};
use super::values::{Scalar, Sourced};
use crate::error::{Error, Result};
use crate::model::Source;

/// Token ids from `generation_config.json`, the outer config and the language model's own, in that order: the first
/// file that has the key decides, a null there being "none".
pub(super) struct TokenIds<'a, 'k> {
    pub generation: &'a Object,
    pub outer: &'a mut Keys<'k>,
    pub keys: &'a mut Keys<'k>,
    pub vocab_size: usize,
}

impl TokenIds<'_, '_> {
    /// The raw value of `key` with its path and source.
    fn find(&mut self, key: &str) -> Option<(Value, String, Source)> {
        let (outside, inside) = (self.outer.raw(key), self.keys.raw(key));
        if let Some(value) = self.generation.get(key) {
            return Some((value.clone(), format!("generation_config.json {key}"), Source::GenerationConfig));
        }
        if let Some(value) = outside {
            return Some((value.clone(), key.to_string(), Source::Config(key.to_string())));
        }
        let path = self.keys.path(key);
        inside.map(|value| (value.clone(), path.clone(), Source::Config(path)))
    }

    /// At most one id. A negative number, which some files write for "none", is none.
    pub fn one(&mut self, key: &str) -> Result<Sourced<Option<u32>>> {
        let Some((value, path, source)) = self.find(key) else { return Ok(Sourced::new(None, not_stated())) };
        if value.is_null() || is_negative(&value) {
            return Ok(Sourced::new(None, source));
        }
        let id = u32::read(&value).map_err(|e| Error::config(path, e))?;
        let found = self.drop_beyond(vec![id], source);
        Ok(Sourced::new(found.value.first().copied(), found.source))
    }

    /// A number or a list of them, without repetitions and negative ones, which no token has.
    pub fn list(&mut self, key: &str) -> Result<Sourced<Vec<u32>>> {
        let Some((value, path, source)) = self.find(key) else { return Ok(Sourced::new(Vec::new(), not_stated())) };
        let ids = match &value {
            Value::Null => Ok(Vec::new()),
            Value::Array(list) => Vec::<u32>::read(&Value::Array(list.iter().filter(|id| !is_negative(id)).cloned().collect())),
            id if is_negative(id) => Ok(Vec::new()),
            _ => u32::read(&value).map(|id| vec![id]),
        };
        let mut unique = Vec::new();
        for id in ids.map_err(|e| Error::config(path, e))? {
            if !unique.contains(&id) {
                unique.push(id);
            }
        }
        Ok(self.drop_beyond(unique, source))
    }

    /// Ids that exist; the source says when some do not.
    fn drop_beyond(&self, ids: Vec<u32>, source: Source) -> Sourced<Vec<u32>> {
        let (inside, beyond): (Vec<u32>, Vec<u32>) = ids.into_iter().partition(|id| (*id as usize) < self.vocab_size);
        if beyond.is_empty() {
            return Sourced::new(inside, source);
        }
        Sourced::derived(inside, format!("{source}, without {beyond:?} beyond the vocabulary"))
    }
}

fn is_negative(id: &Value) -> bool {
    id.as_i64().is_some_and(|id| id < 0)
}

fn not_stated() -> Source {
    Source::Derived("not stated".to_string())
}
