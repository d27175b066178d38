//! From the edits that mend a model to what its files would have to say: a patch of config.json that was resolved again, or
//! elements of tensors.

use super::report::Fix;
use crate::config::{ResolveOptions, resolve};
use crate::formats::ModelTexts;
use crate::model::{Activation, LayerConfig, ModelConfig, Resolved, RopeScaling, Source};
use crate::plan::edit::weight::{Change, Half};
use crate::plan::edit::{ConfigEdit, Edit};
use serde_json::{Map, Value, json};

/// Texts for a fix.
pub struct Files<'a> {
    /// config.json and generation_config.json; `None` where the model has another form.
    pub texts: Option<&'a ModelTexts>,
    /// The config as it is.
    pub resolved: &'a Resolved,
}

/// How `edits` are made in the files. `before` are edits of faults that were found before.
pub fn fix(files: &Files<'_>, edits: &[Edit], before: &[Edit], tensors: &[String]) -> Option<(Fix, Option<String>)> {
    if edits.is_empty() {
        return None;
    }
    let weights = edits.iter().any(|edit| matches!(edit, Edit::Weight(..)));
    if weights {
        let list = tensors.join(", ");
        let plain = files.texts.is_some() && files.resolved.config.tensors.packing.is_none();
        let applicable = plain && edits.iter().all(|edit| matches!(edit, Edit::Weight(..)));
        return Some((Fix { text: format!("{}: {list}", weights_text(edits)), config: Map::new(), applicable }, None));
    }
    let config: Vec<&ConfigEdit> = edits.iter().filter_map(|edit| if let Edit::Config(edit) = edit { Some(edit) } else { None }).collect();
    let text: Vec<String> = config.iter().map(|edit| edit.to_string()).collect();
    let text = text.join(", ");
    let mut wanted = files.resolved.config.clone();
    let earlier = before.iter().filter_map(|edit| if let Edit::Config(edit) = edit { Some(edit) } else { None });
    let earlier: Vec<&ConfigEdit> = earlier.collect();
    earlier.iter().chain(&config).for_each(|edit| edit.apply(&mut wanted));
    let mut key = None;
    for edit in &config {
        for patch in patches(edit, files.resolved) {
            key = key.or_else(|| patch.keys().next().cloned());
            let mut all = Map::new();
            for edit in &earlier {
                all.extend(patches(edit, files.resolved).into_iter().next().unwrap_or_default());
            }
            all.extend(patch.clone());
            if config.len() == 1 && files.texts.is_some_and(|texts| resolves(texts, &all, &wanted)) {
                let says: Vec<String> = patch.iter().map(|(key, value)| format!("`{key}` to {value}")).collect();
                let key = patch.keys().next().cloned();
                return Some((Fix { text: format!("in config.json, set {}", says.join(" and ")), config: patch, applicable: true }, key));
            }
        }
    }
    let text = format!("what the model's files should lead to: {text} (`doppler inspect` shows where each number comes from)");
    Some((Fix { text, config: Map::new(), applicable: false }, key))
}

fn weights_text(edits: &[Edit]) -> &'static str {
    match edits.iter().find_map(|edit| if let Edit::Weight(_, change) = edit { Some(change) } else { None }) {
        Some(Change::From(_)) => "exchange the contents of these tensors",
        Some(Change::Rows(_)) => "put the rows of these tensors into the order of the reference",
        Some(Change::Transposed) => "transpose these tensors",
        Some(Change::OfReference) => "take these tensors from the right copy",
        Some(Change::ReadAs(Half::F16)) => "read the 16 bits of each element as f16, which they are; tensors",
        Some(Change::ReadAs(Half::Bf16)) => "read the 16 bits of each element as bf16, which they are; tensors",
        Some(Change::Add(_)) => "store these tensors without what was added to them",
        Some(Change::Scale(_)) => "store these tensors without the factor",
        _ => "replace the elements that differ, or fetch the file again; tensors",
    }
}

/// Patches of config.json that might make `edit`, by dotted path; which of them does, resolving tells.
fn patches(edit: &ConfigEdit, resolved: &Resolved) -> Vec<Map<String, Value>> {
    let source = |field: &str| resolved.sources.iter().find(|(name, ..)| name == field).map(|(.., source)| source);
    let stated = match source(&edit.field()) {
        Some(Source::Config(key)) => Some(key.clone()),
        _ => None,
    };
    let mut keys: Vec<String> = stated.into_iter().collect();
    let mut known = |names: &[&str]| {
        for name in names {
            keys.push((*name).to_string());
            keys.push(format!("text_config.{name}"));
        }
    };
    let value = match edit {
        ConfigEdit::NormEps(x) => {
            known(&["rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon"]);
            json!(x)
        }
        ConfigEdit::NormOffset(_) => return Vec::new(),
        ConfigEdit::EmbeddingScale(x) => {
            known(&["embedding_multiplier"]);
            json!(x)
        }
        ConfigEdit::ResidualMultiplier(x) => {
            known(&["residual_multiplier"]);
            json!(x)
        }
        ConfigEdit::LogitsScaling(x) => {
            known(&["logits_scaling"]);
            let mut all: Vec<Map<String, Value>> = keys.iter().map(|key| one(key, json!(x))).collect();
            all.push(one("logit_scale", json!(super::numbers::snap(1.0 / x, 1e-9))));
            return all;
        }
        ConfigEdit::AttentionScale(x) => {
            let scalar = super::numbers::snap(1.0 / (x * x), 1e-9);
            let scalar = if scalar.fract() == 0.0 && scalar < 1e9 { json!(scalar as u64) } else { json!(scalar) };
            let mut all = Vec::new();
            for prefix in ["", "text_config."] {
                all.push(one(&format!("{prefix}query_pre_attn_scalar"), scalar.clone()));
                all.push(one(&format!("{prefix}attention_multiplier"), json!(x)));
            }
            return all;
        }
        ConfigEdit::AttnSoftcap(x) => {
            known(&["attn_logit_softcapping"]);
            json!(x)
        }
        ConfigEdit::FinalSoftcap(x) => {
            known(&["final_logit_softcapping"]);
            json!(x)
        }
        ConfigEdit::Activation(x) => {
            known(&["hidden_act", "hidden_activation"]);
            match x {
                Activation::Silu => json!("silu"),
                Activation::GeluTanh => json!("gelu_pytorch_tanh"),
                Activation::Gelu => json!("gelu"),
                Activation::Clamped { alpha, limit } => {
                    // Only what is another number now.
                    let own = resolved.config.activations().next();
                    let differs = |of: fn(Activation) -> Option<f64>, x: f64| own.and_then(of) != Some(x);
                    let own_alpha = |a| if let Activation::Clamped { alpha, .. } = a { Some(alpha) } else { None };
                    let own_limit = |a| if let Activation::Clamped { limit, .. } = a { Some(limit) } else { None };
                    let all = [("swiglu_alpha", differs(own_alpha, *alpha), alpha), ("swiglu_limit", differs(own_limit, *limit), limit)];
                    return vec![all.iter().filter(|(_, differs, _)| *differs).map(|(key, _, x)| ((*key).into(), json!(x))).collect()];
                }
            }
        }
        ConfigEdit::Router(router) => {
            // What a score function is, the family says.
            let (divided, chosen) = (json!(router.renormalise.is_some()), json!(router.chosen));
            let both = Map::from_iter([("norm_topk_prob".into(), divided.clone()), ("num_experts_per_tok".into(), chosen.clone())]);
            return vec![one("norm_topk_prob", divided), one("num_experts_per_tok", chosen), both];
        }
        ConfigEdit::Theta(rope, x) => {
            let part = ["full_attention", "sliding_attention"][(*rope).min(1)];
            known(&[if *rope == 0 { "rope_theta" } else { "rope_local_base_freq" }, "rope_parameters.rope_theta"]);
            known(&[&format!("rope_parameters.{part}.rope_theta")]);
            json!(x)
        }
        ConfigEdit::Scaling(rope, scaling) => {
            return scalings(*rope, scaling, resolved.config.ropes.get(*rope).map_or(0, |rope| rope.rotary_dim));
        }
        ConfigEdit::RotaryDim(_, dim) => {
            known(&["partial_rotary_factor", "rope_parameters.partial_rotary_factor"]);
            let factor = *dim as f64 / resolved.config.attentions().next().map_or(1, |a| a.head_dim) as f64;
            return keys.into_iter().filter(|key| key.contains("partial")).map(|key| one(&key, json!(factor))).collect();
        }
        ConfigEdit::LayerRope(..) | ConfigEdit::Windows(_) => return layers(edit, resolved),
        ConfigEdit::Tied(x) => {
            known(&["tie_word_embeddings"]);
            json!(x)
        }
    };
    keys.iter().map(|key| one(key, value.clone())).collect()
}

fn one(key: &str, value: Value) -> Map<String, Value> {
    std::iter::once((key.to_string(), value)).collect()
}

/// Ways to write a scaling of `dim` elements.
fn scalings(rope: usize, scaling: &RopeScaling, dim: usize) -> Vec<Map<String, Value>> {
    let parts: &[(&str, Value)] = &match scaling {
        RopeScaling::None => vec![("rope_type", json!("default"))],
        RopeScaling::Proportional { rotated, factor } => {
            let part = (2 * rotated) as f64 / dim.max(1) as f64;
            let mut all = vec![("rope_type", json!("proportional")), ("partial_rotary_factor", json!(part))];
            all.extend((*factor != 1.0).then(|| ("factor", json!(factor))));
            all
        }
        RopeScaling::Linear { factor } => vec![("rope_type", json!("linear")), ("factor", json!(factor))],
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => vec![
            ("factor", json!(factor)),
            ("low_freq_factor", json!(low_freq_factor)),
            ("high_freq_factor", json!(high_freq_factor)),
            ("original_max_position_embeddings", json!(original_max_positions)),
        ],
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, .. } => vec![
            ("factor", json!(factor)),
            ("beta_fast", json!(beta_fast)),
            ("beta_slow", json!(beta_slow)),
            ("original_max_position_embeddings", json!(original_max_positions)),
        ],
        RopeScaling::LongRope { short_factor, long_factor, .. } => {
            vec![("short_factor", json!(short_factor)), ("long_factor", json!(long_factor))]
        }
    };
    let part = ["full_attention", "sliding_attention"][rope.min(1)];
    let places = ["rope_scaling", "rope_parameters", "text_config.rope_scaling", "text_config.rope_parameters"].map(str::to_string);
    let inner = ["rope_parameters", "text_config.rope_parameters"].map(|place| format!("{place}.{part}"));
    // What is usual need not be stated, and is not in every family's files.
    let mut ways = vec![parts.to_vec()];
    if let RopeScaling::Yarn { truncate, .. } = scaling {
        ways.push([parts, &[("truncate", json!(truncate))]].concat());
    }
    let mut all: Vec<Map<String, Value>> = Vec::new();
    for (parts, place) in ways.iter().flat_map(|parts| places.iter().chain(&inner).map(move |place| (parts, place))) {
        all.push(parts.iter().map(|(key, value)| (format!("{place}.{key}"), value.clone())).collect());
    }
    if *scaling == RopeScaling::None {
        all.splice(0..0, [one("rope_scaling", Value::Null), one("text_config.rope_scaling", Value::Null)]);
    }
    all
}

/// Ways to write which layers have a window or RoPE.
fn layers(edit: &ConfigEdit, resolved: &Resolved) -> Vec<Map<String, Value>> {
    let mut config = resolved.config.clone();
    edit.apply(&mut config);
    let widths: std::collections::BTreeSet<usize> = config.layers.iter().filter_map(LayerConfig::window).collect();
    let types: Vec<&str> =
        config.layers.iter().map(|layer| if layer.window().is_some() { "sliding_attention" } else { "full_attention" }).collect();
    let rotated: Vec<u8> = config.layers.iter().map(|layer| u8::from(layer.rope().is_some())).collect();
    let mut all = Vec::new();
    for prefix in ["", "text_config."] {
        let key = |name: &str| format!("{prefix}{name}");
        if let Some(width) = widths.first() {
            all.push(one(&key("sliding_window"), json!(width)));
            all.push([(key("sliding_window"), json!(width)), (key("layer_types"), json!(types))].into_iter().collect());
        } else {
            all.push(one(&key("sliding_window"), Value::Null));
            all.push(one(&key("use_sliding_window"), json!(false)));
        }
        all.push(one(&key("layer_types"), json!(types)));
        all.push(one(&key("no_rope_layers"), json!(rotated)));
        for n in 1..=12 {
            all.push(one(&key("sliding_window_pattern"), json!(n)));
        }
    }
    all
}

/// Whether config.json with `patch` resolves to `wanted`.
fn resolves(texts: &ModelTexts, patch: &Map<String, Value>, wanted: &ModelConfig) -> bool {
    let Some(text) = patched(&texts.config, patch) else { return false };
    let found = resolve(&text, texts.generation_config.as_deref(), ResolveOptions { allow_unknown: true });
    found.is_ok_and(|found| alike(&found.config, wanted))
}

/// A JSON text with values at dotted paths changed; `None` where that is no object or has no such place.
pub fn patched(text: &str, patch: &Map<String, Value>) -> Option<String> {
    let mut config: Value = serde_json::from_str(text).ok()?;
    for (path, value) in patch {
        let (place, key) = path.rsplit_once('.').map_or((None, path.as_str()), |(place, key)| (Some(place), key));
        let mut inside = config.as_object_mut()?;
        for part in place.into_iter().flat_map(|place| place.split('.')) {
            inside = inside.get_mut(part)?.as_object_mut()?;
        }
        if value.is_null() && !inside.contains_key(key) {
            return None;
        }
        inside.insert(key.to_string(), value.clone());
    }
    serde_json::to_string_pretty(&config).ok()
}

/// Configs that compute the same, up to the rounding of a number.
fn alike(a: &ModelConfig, b: &ModelConfig) -> bool {
    let (Ok(a), Ok(b)) = (serde_json::to_value(a), serde_json::to_value(b)) else { return false };
    near(&a, &b)
}

fn near(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap_or(f64::NAN), b.as_f64().unwrap_or(f64::NAN));
            a == b || (a - b).abs() <= 1e-6 * a.abs().max(b.abs())
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b)),
        (Value::Object(a), Value::Object(b)) => a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| near(a, b))),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_reach_inside_and_refuse_what_is_not_there() {
        let text = r#"{"a": 1, "b": {"c": 2}}"#;
        let of = |key: &str, value: Value| patched(text, &one(key, value)).map(|text| serde_json::from_str::<Value>(&text).unwrap());
        assert_eq!(of("b.c", json!(3)).unwrap(), json!({"a": 1, "b": {"c": 3}}));
        assert_eq!(of("x.c", json!(3)), None);
        assert_eq!(of("x", Value::Null), None);
        assert_eq!(of("a", Value::Null).unwrap(), json!({"a": null, "b": {"c": 2}}));
    }
}
