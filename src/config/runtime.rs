//! The runtime config (`--config`): what to observe and how to run, merged from a preset or JSON text over the
//! defaults. It knows neither models nor stages: names are texts here, and what a model lacks is found later.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result, nearest};
use crate::tuned::Tuned;

/// The presets: a name and what it changes in the defaults. The first is the defaults themselves and names every key.
const PRESETS: &[(&str, &str)] = &[
    ("default", include_str!("presets/runtime/default.json")),
    ("debug", include_str!("presets/runtime/debug.json")),
    ("gemma2-debug", include_str!("presets/runtime/gemma2-debug.json")),
    ("bench", include_str!("presets/runtime/bench.json")),
    ("floor", include_str!("presets/runtime/floor.json")),
];

/// A whole runtime config: `{"runtime": {…}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Everything in it.
    pub runtime: Runtime,
}

/// What to observe and how to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Runtime {
    /// What to observe.
    pub debug: Debug,
    /// How to run.
    pub inference: Inference,
}

/// What to observe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Debug {
    /// Lines about whole values.
    pub trace: Trace,
    /// Single numbers of values.
    pub probes: Vec<Probe>,
    /// Rules over everything that is computed.
    pub anomalies: Anomalies,
    /// What is changed of values while they are computed, as `--set` says it.
    pub set: Vec<String>,
}

/// What is looked for in a run, and from where on it counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anomalies {
    /// Off: nothing is looked for.
    pub enabled: bool,
    /// Growth of a stage from the layers before to the next that is an explosion, and its inverse a collapse; above 1.
    pub factor: f64,
    /// Likewise against a recorded profile; above 1.
    pub profile_factor: f64,
    /// So many repetitions of the same tokens are a finding; at least 2.
    pub repetitions: usize,
}

/// Trace lines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Trace {
    /// Off: no line, whatever else is set here.
    pub enabled: bool,
    /// Category names; `all`, and `-name` to take one out again.
    pub categories: Vec<String>,
    /// Layers to trace; absent is every layer.
    #[serde(default, deserialize_with = "one_or_more")]
    pub layers: Option<Vec<Position>>,
}

/// Numbers to print of one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// Name in `PROBE[id]` lines: letters, digits, `_`, `-`, `.`; no two alike.
    pub id: String,
    /// Stage name.
    pub stage: String,
    /// Layers; absent is every layer that has the stage.
    #[serde(default, deserialize_with = "one_or_more")]
    pub layers: Option<Vec<Position>>,
    /// Tokens; absent is every token.
    #[serde(default, deserialize_with = "one_or_more")]
    pub tokens: Option<Vec<Position>>,
    /// What to print of each token's row; absent is its statistics.
    #[serde(default)]
    pub dims: Dims,
}

/// A layer or token: an index, negative from the end, or the middle one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// `n` is the n-th from the start, `-n` the n-th from the end (−1 is the last).
    At(i64),
    /// `"mid"`: count / 2.
    Mid,
}

impl Position {
    /// The index among `count` things; `None` when there is no such one.
    pub fn index(self, count: usize) -> Option<usize> {
        let signed = i64::try_from(count).ok()?;
        let index = match self {
            Position::At(n) if n < 0 => signed.checked_add(n)?,
            Position::At(n) => n,
            Position::Mid => signed / 2,
        };
        usize::try_from(index).ok().filter(|i| *i < count)
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Position::At(n) => write!(f, "{n}"),
            Position::Mid => f.write_str("mid"),
        }
    }
}

impl Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Position::At(n) => serializer.serialize_i64(*n),
            Position::Mid => serializer.serialize_str("mid"),
        }
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match (value.as_i64(), value.as_str()) {
            (Some(n), _) => Ok(Position::At(n)),
            (_, Some("mid")) => Ok(Position::Mid),
            _ => Err(D::Error::custom(format!("{value} should be a whole number or \"mid\""))),
        }
    }
}

/// A list of positions, a single one without brackets, or null.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Position>>, D::Error> {
    let list = match Value::deserialize(deserializer)? {
        Value::Null => return Ok(None),
        Value::Array(list) => list,
        single => vec![single],
    };
    let positions: Result<Vec<Position>, _> = list.into_iter().map(serde_json::from_value).collect();
    positions.map(Some).map_err(D::Error::custom)
}

/// What a probe prints of a row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Dims {
    /// `"stats"`: its statistics.
    #[default]
    Stats,
    /// These elements.
    List(Vec<usize>),
}

impl Serialize for Dims {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Dims::Stats => serializer.serialize_str("stats"),
            Dims::List(list) => list.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Dims::Stats),
            Value::String(word) if word == "stats" => Ok(Dims::Stats),
            Value::Array(list) if list.is_empty() => Err(D::Error::custom("dims should not be empty")),
            Value::Array(list) => serde_json::from_value(Value::Array(list)).map(Dims::List).map_err(D::Error::custom),
            other => Err(D::Error::custom(format!("{other} should be a list of element indices or \"stats\""))),
        }
    }
}

/// How to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Inference {
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Keys and values of past tokens.
    pub kvcache: KvCache,
    /// Type of activations and of the KV cache.
    pub dtype: Dtype,
    /// What of the adapter may be used.
    pub limits: Limits,
    /// Prompt tokens computed in one pass, at least 1.
    pub prefill_chunk: usize,
    /// Kernels that compute several ops at once; false runs each op by itself, as observed ones are.
    pub fusion: bool,
    /// Matrix units, where they are, compute the products of decode, which is best for many sequences and slower for one. A
    /// sequence's bits depend on this and on no neighbour, so that one alone repeats what a server gave.
    pub batched: bool,
    /// What was measured to be fastest, device by device (`doppler tune`); that of the device that runs is followed.
    pub tuned: Vec<Tuned>,
}

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sampling {
    /// Divisor of the logits; 0 takes the largest (greedy).
    pub temperature: f64,
    /// Only the k most likely tokens; 0 is off.
    pub top_k: u32,
    /// Only the most likely tokens that together reach this probability, in (0, 1]; 1 is off.
    pub top_p: f64,
    /// Only tokens with at least this share of the largest probability, in [0, 1]; 0 is off.
    pub min_p: f64,
    /// Logits of tokens seen before are divided (positive) or multiplied (negative) by this; 1 is off.
    pub repeat_penalty: f64,
    /// Seed of the random numbers. The same seed gives the same tokens with the same build, device and dtype.
    pub seed: u64,
}

/// Keys and values of past tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KvCache {
    /// Positions to have room for, at least 1; absent is as many as the model allows and memory holds.
    pub max_tokens: Option<usize>,
}

/// Type of activations and of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Dtype {
    /// f16 where the adapter has it.
    Auto,
    /// Single precision.
    F32,
    /// Half precision for matmul inputs and the KV cache, on every adapter: storage needs no feature.
    F16,
}

/// What of the adapter may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Limits {
    /// All it has.
    Native,
    /// The WebGPU defaults and no optional feature: what every browser has.
    Floor,
}

/// Names of the runtime presets.
pub fn runtime_presets() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The JSON of a runtime preset: what it changes in the defaults.
pub fn runtime_preset(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

impl RuntimeConfig {
    /// The defaults. An error says that the built-in preset is broken; a test sees to it that it is not.
    pub fn defaults() -> Result<Self> {
        Self::from_patch(json!({}))
    }

    /// A config from the argument of `--config`: a preset's name or JSON text, merged over the defaults. (Reading a
    /// file is the caller's part.) Errors name the path of an unknown or bad key, with the nearest known ones.
    pub fn parse(argument: &str) -> Result<Self> {
        if let Some(text) = runtime_preset(argument) {
            return Self::from_patch(json_object(text, argument)?);
        }
        if argument.trim_start().starts_with('{') {
            return Self::from_patch(json_object(argument, "--config")?);
        }
        let known: Vec<&str> = runtime_presets().collect();
        let message = format!("`{argument}` is no preset ({}), no file and no JSON object", known.join(", "));
        Err(Error::invalid("--config", message))
    }

    /// A config from JSON that states only what differs from the defaults.
    pub fn from_patch(patch: Value) -> Result<Self> {
        let defaults = json_object(PRESETS[0].1, PRESETS[0].0)?;
        check_keys(&patch, &defaults, "")?;
        let merged = merge(defaults.clone(), patch);
        let config: RuntimeConfig = typed(&merged, &defaults)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks ranges; errors name the path.
    // The sampler scales f32 logits, so a number must be one in f32.
    fn validate(&self) -> Result<()> {
        let Inference { sampling, kvcache, prefill_chunk, .. } = &self.runtime.inference;
        let inference = [
            (sampling.temperature >= 0.0, "sampling.temperature", "0 or more"),
            (sampling.top_p > 0.0 && sampling.top_p <= 1.0, "sampling.topP", "above 0 and at most 1"),
            (sampling.min_p >= 0.0 && sampling.min_p <= 1.0, "sampling.minP", "from 0 to 1"),
            (sampling.repeat_penalty as f32 > 0.0, "sampling.repeatPenalty", "above 0"),
            ((sampling.temperature as f32).is_finite(), "sampling.temperature", "finite"),
            ((sampling.repeat_penalty as f32).is_finite(), "sampling.repeatPenalty", "finite"),
            (kvcache.max_tokens != Some(0), "kvcache.maxTokens", "1 or more"),
            (*prefill_chunk > 0, "prefillChunk", "1 or more"),
        ];
        if let Some((_, key, range)) = inference.iter().find(|(good, _, _)| !good) {
            return Err(Error::config(format!("runtime.inference.{key}"), format!("should be {range}")));
        }
        let Anomalies { factor, profile_factor, repetitions, .. } = self.runtime.debug.anomalies;
        let anomalies = [
            (factor > 1.0 && factor.is_finite(), "factor", "above 1"),
            (profile_factor > 1.0 && profile_factor.is_finite(), "profileFactor", "above 1"),
            (repetitions > 1, "repetitions", "2 or more"),
        ];
        if let Some((_, key, range)) = anomalies.iter().find(|(good, _, _)| !good) {
            return Err(Error::config(format!("runtime.debug.anomalies.{key}"), format!("should be {range}")));
        }
        let probes = &self.runtime.debug.probes;
        for (i, probe) in probes.iter().enumerate() {
            let path = |key: &str| format!("runtime.debug.probes[{i}].{key}");
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            if probe.id.is_empty() || !probe.id.chars().all(plain) {
                let message = "should be letters, digits, `_`, `-` and `.`";
                return Err(Error::config(path("id"), message));
            }
            if probes[..i].iter().any(|p| p.id == probe.id) {
                return Err(Error::config(path("id"), format!("`{}` is used twice", probe.id)));
            }
            for (key, list) in [("layers", &probe.layers), ("tokens", &probe.tokens)] {
                if list.as_ref().is_some_and(Vec::is_empty) {
                    return Err(Error::config(path(key), "should not be empty; leave it out for all"));
                }
            }
        }
        Ok(())
    }
}

/// `base` with `patch` laid over it: objects are merged key by key, anything else is replaced.
pub fn merge(base: Value, patch: Value) -> Value {
    match (base, patch) {
        (Value::Object(mut base), Value::Object(patch)) => {
            for (key, value) in patch {
                let slot = base.entry(key).or_insert(Value::Null);
                *slot = merge(slot.take(), value);
            }
            Value::Object(base)
        }
        (_, patch) => patch,
    }
}

/// A JSON object from text.
fn json_object(text: &str, name: &str) -> Result<Value> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Error::format(format!("config {name}"), "should hold an object")),
        Err(e) => Err(Error::format(format!("config {name}"), e)),
    }
}

/// Refuses keys of `patch` that `known` lacks.
fn check_keys(patch: &Value, known: &Value, path: &str) -> Result<()> {
    let (Value::Object(patch), Value::Object(known)) = (patch, known) else { return Ok(()) };
    for (key, value) in patch {
        let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let Some(inner) = known.get(key) else {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            let near = nearest(key, names.iter().copied());
            let hint = if near.is_empty() { format!("known: {}", names.join(", ")) } else { format!("nearest: {}", near.join(", ")) };
            return Err(Error::config(here, format!("is unknown ({hint})")));
        };
        check_keys(value, inner, &here)?;
    }
    Ok(())
}

/// Turns merged JSON into `T`. When that fails, leaves of `defaults` are replaced one by one to find the culprit.
fn typed<T: DeserializeOwned>(merged: &Value, defaults: &Value) -> Result<T> {
    let error = match serde_json::from_value(merged.clone()) {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    let mut leaves = Vec::new();
    collect_leaves(merged, defaults, &mut Vec::new(), &mut leaves);
    for path in leaves {
        let alone = with_leaf(defaults, merged, &path);
        if let Err(error) = serde_json::from_value::<T>(alone) {
            return Err(Error::config(path.join("."), error));
        }
    }
    Err(Error::config("runtime", error))
}

/// Paths of the values of `merged` that are no objects in `defaults`.
fn collect_leaves(merged: &Value, defaults: &Value, path: &mut Vec<String>, leaves: &mut Vec<Vec<String>>) {
    match (merged, defaults) {
        (Value::Object(merged), Value::Object(defaults)) => {
            for (key, value) in merged {
                path.push(key.clone());
                collect_leaves(value, defaults.get(key).unwrap_or(&Value::Null), path, leaves);
                path.pop();
            }
        }
        _ => leaves.push(path.clone()),
    }
}

/// `defaults` with the value at `path` taken from `merged`.
fn with_leaf(defaults: &Value, merged: &Value, path: &[String]) -> Value {
    let leaf = path.iter().fold(merged, |value, key| &value[key.as_str()]).clone();
    let nest = |value: Value, key: &String| Value::Object(Map::from_iter([(key.clone(), value)]));
    merge(defaults.clone(), path.iter().rev().fold(leaf, nest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        RuntimeConfig::parse(text).unwrap_err().message
    }

    #[test]
    fn presets_parse_and_defaults_name_every_key() {
        for name in runtime_presets() {
            RuntimeConfig::parse(name).unwrap();
        }
        let defaults = RuntimeConfig::defaults().unwrap();
        let text: Value = serde_json::from_str(runtime_preset("default").unwrap()).unwrap();
        assert_eq!(serde_json::to_value(&defaults).unwrap().to_string().len(), text.to_string().len());
        assert_eq!(defaults.runtime.inference.sampling.temperature, 0.0);
        assert!(!defaults.runtime.debug.trace.enabled);
        assert_eq!(RuntimeConfig::parse("floor").unwrap().runtime.inference.limits, Limits::Floor);
    }

    #[test]
    fn the_documented_example_parses() {
        let text = r#"{"runtime":{"debug":{"trace":{"enabled":true,"categories":["ffn"],"layers":[0,12]},
            "probes":[{"id":"dim334","stage":"layer_out","layers":[0,"mid",25],"tokens":[0,-1],"dims":[334]},
                      {"id":"s","stage":"q_rope","layers":"mid","dims":"stats"}]},
            "inference":{"sampling":{"topK":40},"kvcache":{"maxTokens":64},"dtype":"f16"}}}"#;
        let Runtime { debug, inference } = RuntimeConfig::parse(text).unwrap().runtime;
        assert_eq!(debug.trace.layers, Some(vec![Position::At(0), Position::At(12)]));
        assert_eq!(debug.probes[0].layers, Some(vec![Position::At(0), Position::Mid, Position::At(25)]));
        assert_eq!(debug.probes[0].dims, Dims::List(vec![334]));
        assert_eq!(debug.probes[1].layers, Some(vec![Position::Mid]));
        assert_eq!((debug.probes[1].tokens.clone(), debug.probes[1].dims.clone()), (None, Dims::Stats));
        assert_eq!((inference.sampling.top_k, inference.sampling.top_p), (40, 1.0));
        assert_eq!((inference.kvcache.max_tokens, inference.dtype), (Some(64), Dtype::F16));
        let again = serde_json::to_string(&RuntimeConfig::parse(text).unwrap()).unwrap();
        assert_eq!(RuntimeConfig::parse(&again).unwrap(), RuntimeConfig::parse(text).unwrap());
    }

    #[test]
    fn bad_keys_and_values_are_named() {
        let error = refused(r#"{"runtime":{"inference":{"sampling":{"topk":4}}}}"#);
        assert!(error.contains("`runtime.inference.sampling.topk`") && error.contains("topK"), "{error}");
        assert!(refused(r#"{"runtim":{}}"#).contains("nearest: runtime"));
        for (text, path) in [
            (r#"{"runtime":{"inference":{"sampling":{"temperature":"hot"}}}}"#, "runtime.inference.sampling.temperature"),
            (r#"{"runtime":{"inference":{"sampling":{"temperature":-1}}}}"#, "runtime.inference.sampling.temperature"),
            (r#"{"runtime":{"inference":{"sampling":{"topP":0}}}}"#, "runtime.inference.sampling.topP"),
            (r#"{"runtime":{"inference":{"sampling":{"repeatPenalty":1e300}}}}"#, "runtime.inference.sampling.repeatPenalty"),
            (r#"{"runtime":{"inference":{"sampling":3}}}"#, "runtime.inference.sampling"),
            (r#"{"runtime":{"inference":{"dtype":"bf16"}}}"#, "runtime.inference.dtype"),
            (r#"{"runtime":{"inference":{"limits":null}}}"#, "runtime.inference.limits"),
            (r#"{"runtime":{"inference":{"prefillChunk":0}}}"#, "runtime.inference.prefillChunk"),
            (r#"{"runtime":{"inference":{"kvcache":{"maxTokens":0}}}}"#, "runtime.inference.kvcache.maxTokens"),
            (r#"{"runtime":{"debug":{"trace":{"layers":["last"]}}}}"#, "runtime.debug.trace.layers"),
            (r#"{"runtime":{"debug":{"anomalies":{"factor":1}}}}"#, "runtime.debug.anomalies.factor"),
            (r#"{"runtime":{"debug":{"anomalies":{"repetitions":1}}}}"#, "runtime.debug.anomalies.repetitions"),
            (r#"{"runtime":{"debug":{"probes":[{"id":"a","stge":"x"}]}}}"#, "runtime.debug.probes"),
            (r#"{"runtime":{"debug":{"probes":[{"id":"a b","stage":"x"}]}}}"#, "runtime.debug.probes[0].id"),
            (r#"{"runtime":{"debug":{"probes":[{"id":"a","stage":"x","dims":[]}]}}}"#, "runtime.debug.probes"),
            (r#"{"runtime":{"debug":{"probes":[{"id":"a","stage":"x"},{"id":"a","stage":"y"}]}}}"#, "probes[1].id"),
        ] {
            let error = refused(text);
            assert!(error.contains(path), "{path}: {error}");
        }
        assert!(refused("{").contains("--config"));
        assert!(refused("defalt").contains("gemma2-debug"));
    }

    #[test]
    fn positions_count_from_both_ends() {
        let index = |p: Position| p.index(26);
        assert_eq!(index(Position::At(0)), Some(0));
        assert_eq!(index(Position::At(-1)), Some(25));
        assert_eq!(index(Position::Mid), Some(13));
        assert_eq!(index(Position::At(26)), None);
        assert_eq!(index(Position::At(-27)), None);
        assert_eq!(index(Position::At(i64::MIN)), None);
        assert_eq!(Position::Mid.index(0), None);
    }
}
