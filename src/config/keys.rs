//! Reading one `config.json` object strictly: typed values with their sources, class defaults for what is absent,
//! and an error for every key that nobody read and that is not known to be harmless.
//! It knows the table of harmless keys (`presets/keys.json`) and no family.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::packing;
use super::setting::Setting;
use super::values::{Scalar, Sourced, brief, is_off, same};
use crate::error::{Error, Kind, Result, nearest};
use crate::model::{Packing, Quantised, Source};

/// A JSON object.
pub(super) type Object = Map<String, Value>;
/// Keys with the values at which they are acceptable.
pub(super) type Values = BTreeMap<String, Vec<Value>>;

/// The table of keys that every family treats alike.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CommonKeys {
    /// Keys that change no logit; `*` at one end stands for any text.
    harmless: Vec<String>,
    /// Keys that the transformers classes do not read: harmless at these values.
    accepted_values: Values,
    /// Keys of quantised checkpoints.
    quantised: Vec<String>,
}

static COMMON: LazyLock<Result<CommonKeys>> = LazyLock::new(|| {
    let text = include_str!("presets/keys.json");
    serde_json::from_str(text).map_err(|e| Error::format("presets/keys.json", e))
});

fn common() -> Result<&'static CommonKeys> {
    COMMON.as_ref().map_err(Clone::clone)
}

/// An error about a value that transformers knows and Doppler does not run.
pub(super) fn unsupported(key: impl std::fmt::Display, message: impl std::fmt::Display) -> Error {
    Error::unsupported(format!("config key `{key}`: {message}"))
}

/// One object of a config being read.
pub(super) struct Keys<'a> {
    object: &'a Object,
    /// Path in front of key names in messages and sources, such as `text_config.`.
    prefix: String,
    defaults: Option<&'a Object>,
    nullable: &'a [String],
    /// Other names of keys, which count where the file has them.
    aliases: Option<&'a BTreeMap<String, String>>,
    read: BTreeSet<String>,
}

impl<'a> Keys<'a> {
    /// Reads `object`. `prefix` stands before key names in messages. Absent keys take their value from `defaults`;
    /// an explicit null is accepted for keys whose default is null and for those in `nullable`.
    pub fn new(object: &'a Object, prefix: impl Into<String>, defaults: Option<&'a Object>, nullable: &'a [String]) -> Self {
        Self { object, prefix: prefix.into(), defaults, nullable, aliases: None, read: BTreeSet::new() }
    }

    /// The same, where keys have these other names.
    pub fn with_aliases(self, aliases: &'a BTreeMap<String, String>) -> Self {
        Self { aliases: Some(aliases), ..self }
    }

    /// The name under which the file has `key`.
    fn name<'k>(&self, key: &'k str) -> &'k str
    where
        'a: 'k,
    {
        let stated = |name: &str| self.object.get(name).is_some_and(|value| !value.is_null());
        let other = self.aliases.and_then(|all| all.iter().find(|(name, of)| *of == key && stated(name)));
        other.map_or(key, |(name, _)| name)
    }

    /// A key's name with its path, as the file has it.
    pub fn path(&self, key: &str) -> String {
        format!("{}{}", self.prefix, self.name(key))
    }

    /// The object itself, in which nothing counts as read.
    pub fn whole(&self) -> &'a Object {
        self.object
    }

    /// The value as the file has it, null included; the key counts as read.
    pub fn raw(&mut self, key: &str) -> Option<&'a Value> {
        let name = self.name(key);
        self.read.extend([key.to_string(), name.to_string()]);
        self.object.get(name)
    }

    /// The file's own value; absent and null are `None`.
    pub fn stated<T: Scalar>(&mut self, key: &str) -> Result<Option<Sourced<T>>> {
        let Some(value) = self.raw(key).filter(|v| !v.is_null()) else { return Ok(None) };
        let path = self.path(key);
        let value = T::read(value).map_err(|e| Error::config(&path, e))?;
        Ok(Some(Sourced::new(value, Source::Config(path))))
    }

    /// A value that may be off: absent takes the class default, null is off where the class allows it.
    pub fn optional<T: Scalar>(&mut self, key: &str) -> Result<Sourced<Option<T>>> {
        let default = self.defaults.and_then(|d| d.get(key));
        match self.raw(key) {
            Some(Value::Null) => {
                let allowed = default.is_some_and(Value::is_null) || self.nullable.iter().any(|k| k == key);
                if !allowed {
                    return Err(Error::config(self.path(key), "null has no meaning here; state a value or leave it out"));
                }
                Ok(Sourced::new(None, Source::Config(self.path(key))))
            }
            Some(_) => {
                let source = Source::Config(self.path(key));
                Ok(Sourced::new(self.stated(key)?.map(|found| found.value), source))
            }
            None => {
                let value = default.filter(|v| !v.is_null()).map(T::read).transpose();
                let value = value.map_err(|e| Error::config(self.path(key), format!("the preset's default {e}")))?;
                Ok(Sourced::new(value, Source::ClassDefault))
            }
        }
    }

    /// A value that must be there, in the file or as the class default.
    pub fn required<T: Scalar>(&mut self, key: &str) -> Result<Sourced<T>> {
        let found = self.optional(key)?;
        match found.value {
            Some(value) => Ok(Sourced::new(value, found.source)),
            None => Err(Error::config(self.path(key), "is missing, and its class has no default")),
        }
    }

    /// A preset's setting: its own value, or that of the key it names.
    pub fn setting<T: Scalar + Clone>(&mut self, setting: &Setting<T>) -> Result<Sourced<T>> {
        match setting {
            Setting::Key(reference) => self.required(&reference.key),
            Setting::Value(value) => Ok(Sourced::preset(value.clone())),
        }
    }

    /// The same for a setting that may be off.
    pub fn optional_setting<T: Scalar + Clone>(&mut self, setting: &Setting<Option<T>>) -> Result<Sourced<Option<T>>> {
        match setting {
            Setting::Key(reference) => self.optional(&reference.key),
            Setting::Value(value) => Ok(Sourced::preset(value.clone())),
        }
    }

    /// Refuses values that the model class reads but Doppler supports only as listed.
    pub fn check_supported(&self, supported: &Values) -> Result<()> {
        for (key, values) in supported {
            let found = self.object.get(key).filter(|v| !is_off(v));
            if let Some(found) = found.filter(|f| !values.iter().any(|v| same(v, f))) {
                let known: Vec<String> = values.iter().map(brief).collect();
                let message = format!("{} is not supported, only {}", brief(found), known.join(", "));
                return Err(unsupported(self.path(key), message));
            }
        }
        Ok(())
    }

    /// Refuses two names of one key with different values, of which transformers takes the last.
    pub fn check_aliases(&self) -> Result<()> {
        for (alias, key) in self.aliases.into_iter().flatten() {
            if let (Some(a), Some(b)) = (self.object.get(key), self.object.get(alias))
                && !same(a, b)
            {
                let message = format!("{}, but `{}{alias}`, another name of it, is {}", brief(a), self.prefix, brief(b));
                return Err(Error::config(format!("{}{key}", self.prefix), message));
            }
        }
        Ok(())
    }

    /// Refuses features that are on, by the file or as the class has them by default.
    pub fn check_off(&mut self, keys: &[String]) -> Result<()> {
        for key in keys {
            let found = self.raw(key);
            if !found.is_some_and(is_off) {
                let default = self.defaults.and_then(|d| d.get(key)).map_or_else(String::new, brief);
                let found = found.map_or_else(|| format!("{default}, the class default,"), brief);
                return Err(unsupported(self.path(key), format!("{found} is not supported, only 0")));
            }
        }
        Ok(())
    }

    /// What is claimed of packed weights, or a note where a key of packed weights claims nothing. With `allow`, keys within
    /// it that are not known are passed over, and the claim may be wrong.
    pub fn quantised(&self, allow: bool) -> Result<Claim> {
        let stated = |key: &&String| self.object.get(*key).is_some_and(|v| !v.is_null());
        let Some(key) = common()?.quantised.iter().find(stated) else { return Ok(Claim::default()) };
        let (path, value) = (self.path(key), &self.object[key]);
        let get = |name: &str| value.get(name).filter(|v| !is_off(v));
        let stated = get("quant_method").and_then(Value::as_str);
        let method = stated.unwrap_or("quantised");
        let loads = ["load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"];
        let asked = || loads.iter().any(|name| get(name).is_some());
        // Transformers takes `none` for a method that it does not know, and goes on without.
        if is_off(value) || stated == Some("none") || (method == "bitsandbytes" && !asked()) {
            let note = format!("config.json: `{path}` asks for no quantisation, and is passed over");
            return Ok(Claim { notes: vec![note], ..Claim::default() });
        }
        let of_load = || get("load_in_4bit").or_else(|| get("_load_in_4bit")).map(|_| 4).or_else(|| asked().then_some(8));
        let bits = ["bits", "w_bit", "num_bits"].into_iter().find_map(|name| get(name)?.as_u64()).or_else(of_load);
        let method = bits.map_or_else(|| method.to_string(), |bits| format!("{bits}-bit {method}"));
        let claim = |problem| Some(Quantised { key: path.clone(), method: method.clone(), problem, allowed: allow });
        match packing::read(&path, value, allow) {
            Ok(read) => Ok(Claim { quantised: claim(None), packing: Some(read.packing), ignored: read.ignored, notes: read.notes }),
            // It cannot be read, and the caller allows that.
            Err(_) if allow => Ok(Claim { ignored: vec![path], ..Claim::default() }),
            // Where all weights are plain it does not matter, so it is no error yet.
            Err(error) => Ok(Claim { quantised: claim(Some(error.message)), ..Claim::default() }),
        }
    }

    /// The paths of those of `keys` that the file has and nobody read.
    pub fn unread(&self, keys: &[&str]) -> Vec<String> {
        let found = keys.iter().filter(|key| !self.read.contains(**key) && self.object.get(**key).is_some_and(|v| !is_off(v)));
        found.map(|key| format!("`{}`", self.path(key))).collect()
    }

    /// Keys that nobody read and that could change the maths. `harmless` and `accepted` are the family's own tables
    /// in addition to the common one. What is off (null, false, 0, empty) is never listed: transformers does not read keys
    /// that its class does not have, and off is what they mean then.
    pub fn unknown(&self, harmless: &[String], accepted: &[&Values]) -> Result<Vec<Unknown>> {
        let common = common()?;
        let mut unknown = Vec::new();
        for (key, value) in self.object {
            let harmless = || harmless.iter().chain(&common.harmless).any(|pattern| matches(pattern, key));
            if self.read.contains(key) || is_off(value) || harmless() || common.quantised.contains(key) {
                continue;
            }
            let tables = accepted.iter().copied().chain([&common.accepted_values]);
            let values = tables.into_iter().find_map(|table| table.get(key));
            if !values.is_some_and(|values| values.iter().any(|v| same(v, value))) {
                unknown.push(Unknown { key: key.clone(), accepted: values.cloned() });
            }
        }
        Ok(unknown)
    }

    /// Turns unknown keys into an error, unless they are allowed: then their paths are returned.
    pub fn refuse(&self, unknown: Vec<Unknown>, allow: bool) -> Result<Vec<String>> {
        if unknown.is_empty() || allow {
            return Ok(unknown.iter().map(|u| self.path(&u.key)).collect());
        }
        let known = || self.read.iter().chain(self.defaults.iter().flat_map(|d| d.keys())).map(String::as_str);
        let describe = |u: &Unknown| {
            let value = self.object.get(&u.key).map_or_else(String::new, brief);
            let near = nearest(&u.key, known()).into_iter().find(|n| n.len().abs_diff(u.key.len()) <= 1);
            let hint = match (&u.accepted, near) {
                (Some(values), _) => {
                    let values: Vec<String> = values.iter().map(brief).collect();
                    format!(" (only {} is harmless)", values.join(" or "))
                }
                (None, Some(near)) => format!(" (nearest known: `{near}`)"),
                (None, None) => String::new(),
            };
            format!("`{}` = {value}{hint}", self.path(&u.key))
        };
        let list: Vec<String> = unknown.iter().map(describe).collect();
        let message = "not known in this kind of model and could change its results; \
                       `--allow-unknown-config` loads the model without";
        Err(Error::new(Kind::Config, format!("config key {}: {message}", list.join(", "))))
    }
}

/// What a config says of packed weights.
#[derive(Debug, Default)]
pub(super) struct Claim {
    /// That they are packed.
    pub quantised: Option<Quantised>,
    /// How.
    pub packing: Option<Packing>,
    /// Paths of keys that are passed over.
    pub ignored: Vec<String>,
    /// What is not done as it says.
    pub notes: Vec<String>,
}

/// A key that is not understood.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unknown {
    pub key: String,
    /// The values at which it would be harmless.
    pub accepted: Option<Vec<Value>>,
}

/// `pattern` with `*` at one end against `key`.
fn matches(pattern: &str, key: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => key.ends_with(end),
        (_, Some(start)) => key.starts_with(start),
        _ => pattern == key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn absent_null_and_missing_differ() {
        let file = object(json!({"a": 3, "off": null, "bad": null}));
        let defaults = object(json!({"a": 1, "b": 2, "off": 5, "never": null}));
        let nullable = ["off".to_string()];
        let mut keys = Keys::new(&file, "", Some(&defaults), &nullable);
        assert_eq!(keys.required::<usize>("a").unwrap(), Sourced::new(3, Source::Config("a".into())));
        assert_eq!(keys.required::<usize>("b").unwrap(), Sourced::new(2, Source::ClassDefault));
        assert_eq!(keys.optional::<usize>("off").unwrap().value, None);
        assert_eq!(keys.optional::<usize>("never").unwrap(), Sourced::new(None, Source::ClassDefault));
        assert!(keys.optional::<usize>("bad").unwrap_err().message.contains("`bad`"));
        let missing = keys.required::<usize>("nowhere").unwrap_err();
        assert!(missing.message.contains("`nowhere`") && missing.message.contains("missing"), "{missing}");
    }

    #[test]
    fn unknown_keys_are_named_and_harmless_ones_are_not() {
        let file = object(json!({
            "hiden_size": 4, "torch_dtype": "bfloat16", "a_note": "x", "clip_qkv": null,
            "lm_head_bias": true, "mlp_bias": false
        }));
        let mut keys = Keys::new(&file, "text_config.", None, &[]);
        let _ = keys.raw("hidden_size");
        let unknown = keys.unknown(&[], &[]).unwrap();
        let names: Vec<&str> = unknown.iter().map(|u| u.key.as_str()).collect();
        assert_eq!(names, ["hiden_size", "lm_head_bias"]);
        let error = keys.refuse(unknown.clone(), false).unwrap_err();
        assert!(error.message.contains("`text_config.hiden_size` = 4 (nearest known: `hidden_size`)"), "{error}");
        assert!(error.message.contains("`text_config.lm_head_bias` = true (only false is harmless)"), "{error}");
        assert_eq!(keys.refuse(unknown, true).unwrap(), ["text_config.hiden_size", "text_config.lm_head_bias"]);
    }
}
