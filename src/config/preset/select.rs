//! Which preset a config is read over: by its architecture, or by its model type.

use super::{PRESETS, Preset};
use crate::config::keys::Object;
use crate::config::values::brief;
use crate::error::{Error, Result};
use serde_json::Value;

/// The preset for a config, the architecture or model type by which it was found, and what is to be said of that.
/// Unsupported ones are refused with a list of what is supported.
///
/// Where the architecture is not known, or is another one than the model type's, the model is what its model type says:
/// transformers' `AutoModelForCausalLM` asks for that alone.
pub(in crate::config) fn select(config: &Object) -> Result<(&'static Preset, String, Option<String>)> {
    let presets = PRESETS.as_deref().map_err(Clone::clone)?;
    let architectures = names(config, "architectures")?;
    let model_type = names(config, "model_type")?.into_iter().next();
    let takes = |names: &[String], name: &str| names.iter().any(|n| n == name);
    let found = match (architectures.first(), &model_type) {
        (None, None) => {
            let message = "neither `architectures` nor `model_type` is stated, so the kind of model is unknown";
            return Err(Error::config("architectures", message));
        }
        (Some(name), _) => presets.iter().find(|p| takes(&p.architectures, name)).map(|p| (p, name.clone())),
        (None, Some(name)) => presets.iter().find(|p| takes(&p.model_types, name)).map(|p| (p, name.clone())),
    };
    let fits = |p: &Preset| model_type.as_ref().is_none_or(|t| takes(&p.model_types, t));
    let found = found.filter(|(p, _)| fits(p));
    if let (Some(name), Some(kind), None) = (architectures.first(), &model_type, &found)
        && let Some(preset) = presets.iter().find(|p| takes(&p.model_types, kind))
    {
        let note = format!(
            "config.json: architecture {name:.60} is none that is known for `model_type` {kind}; the model is taken for the causal language model of that type, as transformers' AutoModelForCausalLM does"
        );
        return Ok((preset, kind.clone(), Some(note)));
    }
    found.map(|(p, name)| (p, name, None)).ok_or_else(|| {
        let architecture = architectures.first().map(|a| format!("architecture {a}"));
        let kind = model_type.as_ref().map(|t| format!("model_type {t}"));
        let stated: Vec<String> = architecture.into_iter().chain(kind).collect();
        let supported: Vec<&str> = presets.iter().flat_map(|p| p.architectures.iter().map(String::as_str)).collect();
        Error::unsupported(format!("{} is not supported (supported: {})", stated.join(" with "), supported.join(", ")))
    })
}

/// The texts under `key`: one or a list; absent and null are none.
fn names(config: &Object, key: &str) -> Result<Vec<String>> {
    let text = |v: &Value| {
        let wrong = || Error::config(key, format!("should be a name, found {}", brief(v)));
        v.as_str().map(str::to_string).ok_or_else(wrong)
    };
    match config.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        Some(one) => Ok(vec![text(one)?]),
    }
}
