//! `config.json` and a preset become a `ModelConfig` in which every number has a source.
//! It knows the keys that all families share; what a family does differently is in its preset.

use serde_json::Value;

use super::keys::{Keys, Object, unsupported};
use super::preset::{self, Preset};
use super::setting::Setting;
use super::token_ids::TokenIds;
use super::values::{Lines, Sourced, brief};
use super::{layers, rope};
use crate::error::{Error, Result};
use crate::model::{Activation, ModelConfig, Resolved, Source};

/// How strictly a config is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResolveOptions {
    /// Keys that are not understood are listed in `Resolved::ignored_keys` instead of refused.
    pub allow_unknown: bool,
}

/// Resolves a model's `config.json` (its text), with `generation_config.json` where the model has one.
///
/// The family is found by `architectures`, else by `model_type`. An absent key takes the default of its transformers
/// class; an explicit null is off where null has a meaning for that key.
///
/// Token ids are those that `generate` of transformers uses: stated in `generation_config.json`, else in
/// `config.json`. Class defaults of ids are not used, as there; ids beyond the vocabulary are dropped.
///
/// Errors are `Kind::Format` (no JSON object), `Kind::Unsupported` (another family, a quantised checkpoint, an option
/// that Doppler does not run) and `Kind::Config` (a key that is missing, unknown or has a bad value, named by path).
pub fn resolve(config_json: &str, generation_config_json: Option<&str>, options: ResolveOptions) -> Result<Resolved> {
    let config = object(config_json, "config.json")?;
    let generation = match generation_config_json {
        Some(text) => object(text, "generation_config.json")?,
        None => Object::new(),
    };
    let (preset, matched) = preset::select(&config)?;
    resolve_with(preset, &matched, &config, &generation, options)
}

/// The JSON object in `text`.
fn object(text: &str, file: &str) -> Result<Object> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Error::format(file, format!("should hold an object, found {}", brief(&other)))),
        Err(e) => Err(Error::format(file, e)),
    }
}

fn resolve_with(preset: &Preset, matched: &str, config: &Object, generation: &Object, options: ResolveOptions) -> Result<Resolved> {
    let (text, prefix) = preset.text_part(config, matched)?;
    let nested = preset.text_config.as_ref().filter(|_| !prefix.is_empty());
    let mut outer = Keys::new(config, "", None, &[]);
    let mut keys = Keys::new(text, prefix, Some(&preset.class_defaults), &preset.nullable);
    for part in [&outer, &keys] {
        part.check_quantised()?;
    }
    keys.check_supported(&preset.supported_values)?;
    if let Some(nested) = nested {
        keys.check_supported(&nested.supported_values)?;
        outer.raw(&nested.key);
    }
    let keys = &mut keys;
    let mut lines = Lines::default();
    let lines = &mut lines;

    lines.put("preset", Sourced::derived(preset.name.clone(), format!("chosen by {matched}")));
    let vocab_size = lines.put("vocabSize", keys.required("vocab_size")?);
    let hidden_size = lines.put("hiddenSize", keys.required("hidden_size")?);
    let intermediate_size = lines.put("intermediateSize", keys.required("intermediate_size")?);
    let num_heads = lines.put("numHeads", keys.required("num_attention_heads")?);
    let num_kv_heads = lines.put("numKvHeads", kv_heads(keys, num_heads)?);
    let head_dim = lines.put("headDim", head_dim(keys, hidden_size, num_heads)?);
    let max_positions = keys.required::<usize>("max_position_embeddings")?;
    lines.put("maxPositions", max_positions.clone());

    let mut rope_lines = Lines::default();
    let model = rope::Model { preset: &preset.rope, head_dim, max_positions: &max_positions, allow_unknown: options.allow_unknown };
    let ropes = rope::read(keys, &model, &mut rope_lines)?;
    let layers = layers::read(keys, preset, &ropes, lines)?;
    lines.0.append(&mut rope_lines.0);

    let rms_norm_eps = lines.put("rmsNormEps", keys.required("rms_norm_eps")?);
    let rms_norm_weight_offset = lines.put("rmsNormWeightOffset", Sourced::preset(preset.rms_norm_weight_offset));
    lines.text("norms", norms_text(preset), Source::Preset);
    let query_key_norm = lines.put("queryKeyNorm", Sourced::preset(preset.query_key_norm));
    let attention_scale = lines.put("attentionScale", attention_scale(keys, preset, head_dim)?);
    let cap = keys.optional_setting(&preset.attn_logit_softcapping)?;
    let attn_logit_softcapping = lines.put("attnLogitSoftcapping", cap);
    let cap = keys.optional_setting(&preset.final_logit_softcapping)?;
    let final_logit_softcapping = lines.put("finalLogitSoftcapping", cap);
    let qkv_bias = lines.put("qkvBias", keys.setting(&preset.qkv_bias)?);
    let o_bias = lines.put("oBias", keys.setting(&preset.o_bias)?);
    let mlp_bias = lines.put("mlpBias", keys.setting(&preset.mlp_bias)?);
    let activation = lines.put("activation", activation(keys, preset)?);
    let embedding_scale = lines.put("embeddingScale", embedding_scale(keys, preset, hidden_size)?);
    let residual_multiplier = lines.put("residualMultiplier", keys.setting(&preset.residual_multiplier)?);
    let logits_scaling = lines.put("logitsScaling", keys.setting(&preset.logits_scaling)?);
    let tied = tied(keys, &mut outer, nested.map(|n| n.ties_head_by_default))?;
    let tie_word_embeddings = lines.put("tieWordEmbeddings", tied);
    let tensors = preset.tensor_names()?;
    let printed = format!("{} roles, prefixes {:?}", tensors.names.len(), tensors.prefixes);
    lines.text("tensors", printed, Source::Preset);

    let mut ids = TokenIds { generation, outer: &mut outer, keys, vocab_size };
    let bos_token_id = lines.put("bosTokenId", ids.one("bos_token_id")?);
    let eos_token_ids = lines.put("eosTokenIds", ids.list("eos_token_id")?);
    let pad_token_id = lines.put("padTokenId", ids.one("pad_token_id")?);

    let family = [&preset.accepted_values, &preset.supported_values];
    let unknown = keys.unknown(&preset.harmless_keys, &family)?;
    let mut ignored_keys = keys.refuse(unknown, options.allow_unknown)?;
    if let Some(nested) = nested {
        let unknown = outer.unknown(&nested.harmless_keys, &[])?;
        ignored_keys.extend(outer.refuse(unknown, options.allow_unknown)?);
    }
    ignored_keys.extend(ropes.ignored);

    let config = ModelConfig {
        preset: preset.name.clone(),
        vocab_size,
        hidden_size,
        intermediate_size,
        num_heads,
        num_kv_heads,
        head_dim,
        max_positions: max_positions.value,
        layers,
        ropes: ropes.list,
        rms_norm_eps,
        rms_norm_weight_offset,
        norms: preset.norms,
        query_key_norm,
        attention_scale,
        attn_logit_softcapping,
        final_logit_softcapping,
        qkv_bias,
        o_bias,
        mlp_bias,
        activation,
        embedding_scale,
        residual_multiplier,
        logits_scaling,
        tie_word_embeddings,
        tensors,
        bos_token_id,
        eos_token_ids,
        pad_token_id,
    };
    Ok(Resolved { config, sources: std::mem::take(&mut lines.0), ignored_keys })
}

/// Key/value heads; absent or null is one per query head where the class says so.
fn kv_heads(keys: &mut Keys, num_heads: usize) -> Result<Sourced<usize>> {
    const KEY: &str = "num_key_value_heads";
    let found = keys.optional::<usize>(KEY)?;
    let heads = match found.value {
        Some(value) => Sourced::new(value, found.source),
        None => Sourced::derived(num_heads, "num_attention_heads"),
    };
    if !num_heads.is_multiple_of(heads.value) {
        let message = format!("{} does not divide num_attention_heads, {num_heads}", heads.value);
        return Err(Error::config(keys.path(KEY), message));
    }
    Ok(heads)
}

/// Width of a head: stated, the class default, or hidden_size / num_attention_heads.
fn head_dim(keys: &mut Keys, hidden_size: usize, num_heads: usize) -> Result<Sourced<usize>> {
    let found = keys.optional::<usize>("head_dim")?;
    let dim = match found.value {
        Some(value) => Sourced::new(value, found.source),
        None if hidden_size.is_multiple_of(num_heads) => Sourced::derived(hidden_size / num_heads, "hidden_size / num_attention_heads"),
        None => {
            let message = format!("is not stated, and hidden_size {hidden_size} is no multiple of {num_heads} heads");
            return Err(Error::config(keys.path("head_dim"), message));
        }
    };
    if dim.value.checked_mul(num_heads).is_none_or(|width| width > i32::MAX as usize) {
        let message = format!("{num_heads} heads of {} elements are too wide", dim.value);
        return Err(Error::config(keys.path("head_dim"), message));
    }
    Ok(dim)
}

/// Factor on q·k: s^-1/2 of `query_pre_attn_scalar`, a multiplier as it stands, or head_dim^-1/2.
fn attention_scale(keys: &mut Keys, preset: &Preset, head_dim: usize) -> Result<Sourced<f64>> {
    if let Some(setting) = &preset.attention_multiplier {
        return keys.setting(setting);
    }
    let Some(setting) = &preset.query_pre_attn_scalar else {
        return Ok(Sourced::derived(inverse_root(head_dim as f64), "head_dim^-1/2"));
    };
    let scalar = keys.setting(setting)?;
    let how = format!("query_pre_attn_scalar^-1/2 = {:?}^-1/2 ({})", scalar.value, scalar.source);
    Ok(Sourced::derived(inverse_root(scalar.value), how))
}

/// Factor on embeddings.
fn embedding_scale(keys: &mut Keys, preset: &Preset, hidden_size: usize) -> Result<Sourced<f64>> {
    if preset.scale_embeddings {
        return Ok(Sourced::derived((hidden_size as f64).sqrt(), "hidden_size^1/2 (preset)"));
    }
    keys.setting(&preset.embedding_multiplier)
}

/// The activation by its transformers name. A family's class may read a name as another one: Gemma 1 files say
/// "gelu" and mean the tanh approximation, and transformers 5 replaces the name when it loads them.
fn activation(keys: &mut Keys, preset: &Preset) -> Result<Sourced<Activation>> {
    let found = keys.setting(&preset.activation)?;
    let alias = preset.activation_aliases.get(&found.value);
    let activation = match alias.unwrap_or(&found.value).as_str() {
        "silu" | "swish" => Activation::Silu,
        "gelu_pytorch_tanh" | "gelu_new" => Activation::GeluTanh,
        "gelu" => Activation::Gelu,
        _ => {
            let key = match &preset.activation {
                Setting::Key(reference) => keys.path(&reference.key),
                Setting::Value(_) => "activation".to_string(),
            };
            let message = format!("{:.40} is not supported (supported: silu, gelu_pytorch_tanh, gelu)", found.value);
            return Err(unsupported(key, message));
        }
    };
    let source = match alias {
        Some(name) => {
            let how = format!("{} says {}, which transformers reads as {name} in this family", found.source, found.value);
            Source::Derived(how)
        }
        None => found.source,
    };
    Ok(Sourced::new(activation, source))
}

/// Whether the head is the embedding table. In a multimodal config the outer key decides (`nested` is its default),
/// and an inner one may only agree.
fn tied(keys: &mut Keys, outer: &mut Keys, nested: Option<bool>) -> Result<Sourced<bool>> {
    const KEY: &str = "tie_word_embeddings";
    let Some(default) = nested else { return keys.required(KEY) };
    let outside = outer.stated::<bool>(KEY)?.unwrap_or(Sourced::new(default, Source::ClassDefault));
    match keys.stated::<bool>(KEY)? {
        Some(inside) if inside.value != outside.value => {
            let message = format!("{}, but outside it is {} ({})", inside.value, outside.value, outside.source);
            Err(Error::config(keys.path(KEY), message))
        }
        _ => Ok(outside),
    }
}

/// The norms of a layer in words.
fn norms_text(preset: &Preset) -> String {
    let norms = preset.norms;
    let places = [
        (norms.before_attention, "before attention"),
        (norms.after_attention, "after attention"),
        (norms.before_ffn, "before ffn"),
        (norms.after_ffn, "after ffn"),
    ];
    let present: Vec<&str> = places.into_iter().filter(|(on, _)| *on).map(|(_, place)| place).collect();
    present.join(", ")
}

/// x^−½, by operations that round alike on every machine, browsers included.
fn inverse_root(x: f64) -> f64 {
    (1.0 / x).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::model::{LayerConfig, RopeScaling};
    use serde_json::json;

    fn resolved(config: Value) -> Result<Resolved> {
        resolve(&config.to_string(), None, ResolveOptions::default())
    }

    fn config(config: Value) -> ModelConfig {
        resolved(config).unwrap().config
    }

    fn with(base: &Value, changes: Value) -> Value {
        crate::config::runtime::merge(base.clone(), changes)
    }

    /// The source of a line.
    fn source(resolved: &Resolved, field: &str) -> Source {
        resolved.sources.iter().find(|(name, _, _)| name == field).unwrap().2.clone()
    }

    fn llama() -> Value {
        json!({"model_type": "llama", "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3,
               "vocab_size": 131, "max_position_embeddings": 256})
    }

    fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
        config.layers.iter().map(|l| l.window).collect()
    }

    #[test]
    fn every_field_has_its_line_in_order() {
        for preset in preset::presets() {
            let resolved = resolved(json!({"architectures": [preset.architectures()[0]]})).unwrap();
            let fields = serde_json::to_value(&resolved.config).unwrap();
            let fields: Vec<String> = fields.as_object().unwrap().keys().cloned().collect();
            let stem = |name: &String| name.split(['[', '.']).next().unwrap().to_string();
            let mut lines: Vec<String> = resolved.sources.iter().map(|(name, _, _)| stem(name)).collect();
            lines.dedup();
            assert_eq!(lines, fields, "{}", preset.name());
        }
    }

    #[test]
    fn sources_say_where_numbers_come_from() {
        let resolved = resolved(llama()).unwrap();
        assert_eq!(source(&resolved, "hiddenSize"), Source::Config("hidden_size".into()));
        assert_eq!(source(&resolved, "rmsNormEps"), Source::ClassDefault);
        assert_eq!(source(&resolved, "numKvHeads"), Source::Derived("num_attention_heads".into()));
        assert_eq!(source(&resolved, "attentionScale"), Source::Derived("head_dim^-1/2".into()));
        assert_eq!(source(&resolved, "ropes[0].theta"), Source::ClassDefault);
        assert_eq!(source(&resolved, "embeddingScale"), Source::Preset);
        let c = resolved.config;
        assert_eq!((c.num_kv_heads, c.head_dim, c.rms_norm_eps, c.tie_word_embeddings), (6, 8, 1e-6, false));
        assert_eq!(c.layers, vec![LayerConfig { window: None, rope: Some(0) }; 3]);
    }

    #[test]
    fn both_rope_dialects_agree() {
        let scaling = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 32});
        let old = with(&llama(), json!({"rope_theta": 5e5, "rope_scaling": with(&scaling, json!({"type": "llama3"}))}));
        let new = with(&scaling, json!({"rope_type": "llama3", "rope_theta": 5e5}));
        let new = with(&llama(), json!({"rope_parameters": new}));
        assert_eq!(config(old.clone()), config(new.clone()));
        assert_eq!(config(with(&old, new.clone())), config(new.clone()));
        assert!(matches!(config(old.clone()).ropes[0].scaling, RopeScaling::Llama3 { original_max_positions: 32, .. }));
        for (changes, key) in
            [(json!({"rope_parameters": {"factor": 4.0}}), "rope_parameters"), (json!({"rope_theta": 1e4}), "rope_scaling.rope_theta")]
        {
            let both = with(&with(&old, new.clone()), json!({"rope_scaling": {"rope_theta": 5e5}}));
            let error = resolved(with(&both, changes)).unwrap_err();
            assert!(error.message.contains(key), "{error}");
        }
    }

    #[test]
    fn yarn_and_longrope_have_a_factor_on_cos_and_sin() {
        let yarn = |changes: Value| {
            let scaling = with(&json!({"rope_type": "yarn", "factor": 4.0}), changes);
            config(with(&llama(), json!({"rope_scaling": scaling}))).ropes.remove(0).scaling
        };
        let RopeScaling::Yarn { attention_factor, original_max_positions, beta_fast, beta_slow, truncate, .. } = yarn(json!({})) else {
            panic!("not yarn");
        };
        assert!((attention_factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-15);
        assert_eq!((original_max_positions, beta_fast, beta_slow, truncate), (256, 32.0, 1.0, true));
        let RopeScaling::Yarn { attention_factor, truncate, .. } = yarn(json!({"mscale": 0.7, "mscale_all_dim": 1.0, "truncate": false}))
        else {
            panic!("not yarn");
        };
        assert!((attention_factor - (0.07 * 4f64.ln() + 1.0) / (0.1 * 4f64.ln() + 1.0)).abs() < 1e-15);
        assert!(!truncate);

        let phi = json!({"architectures": ["Phi3ForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
            "num_hidden_layers": 1, "max_position_embeddings": 512, "original_max_position_embeddings": 64,
            "partial_rotary_factor": 0.75, "rope_scaling": {"type": "su", "short_factor": [1, 1, 1, 1, 1, 1],
            "long_factor": [1, 2, 3, 4, 6, 8]}});
        let rope = config(phi.clone()).ropes.remove(0);
        let RopeScaling::LongRope { attention_factor, long_factor, .. } = rope.scaling else { panic!("not longrope") };
        assert_eq!((rope.rotary_dim, long_factor[5]), (12, 8.0));
        assert!((attention_factor - (1.0 + 8f64.ln() / 64f64.ln()).sqrt()).abs() < 1e-15);
        for (changes, key) in [
            (json!({"partial_rotary_factor": 0.7}), "partial_rotary_factor"),
            (json!({"partial_rotary_factor": 0.5}), "rope_scaling.short_factor"),
            (json!({"rope_scaling": {"long_factor": [1, 2, 3, 4, 6, 0]}}), "rope_scaling.long_factor"),
            (json!({"rope_scaling": {"original_max_position_embeddings": 32}}), "original_max_position_embeddings"),
            (json!({"rope_scaling": {"long_mscale": 1.2}}), "rope_scaling.long_mscale"),
            (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.rope_type"),
            (json!({"original_max_position_embeddings": 1}), "original_max_position_embeddings"),
        ] {
            let error = resolved(with(&phi, changes)).unwrap_err();
            assert!(error.message.contains(key), "{key}: {error}");
        }
    }

    #[test]
    fn layer_kinds_follow_patterns_lists_and_switches() {
        let small = |kind: &str, changes: Value| {
            let base = json!({"model_type": kind, "num_hidden_layers": 4, "sliding_window": 7});
            resolved(with(&base, changes)).map(|r| r.config)
        };
        let (w, o) = (Some(7), None);
        assert_eq!(windows(&small("gemma2", json!({})).unwrap()), [w, o, w, o]);
        let gemma3 = small("gemma3_text", json!({"sliding_window_pattern": 3})).unwrap();
        assert_eq!(windows(&gemma3), [w, w, o, w]);
        assert_eq!(gemma3.layers.iter().map(|l| l.rope).collect::<Vec<_>>(), [Some(1), Some(1), Some(0), Some(1)]);
        assert_eq!((gemma3.ropes[0].theta, gemma3.ropes[1].theta), (1e6, 1e4));
        assert_eq!(windows(&small("mistral", json!({})).unwrap()), [w; 4]);
        assert_eq!(windows(&small("mistral", json!({"sliding_window": null})).unwrap()), [o; 4]);
        assert_eq!(windows(&small("qwen2", json!({})).unwrap()), [o; 4]);
        let on = json!({"use_sliding_window": true, "max_window_layers": 1});
        assert_eq!(windows(&small("qwen2", on.clone()).unwrap()), [o, w, w, w]);
        let listed = json!({"layer_types": ["full_attention", "full_attention", "full_attention", "sliding_attention"]});
        assert_eq!(windows(&small("qwen3", with(&on, listed.clone())).unwrap()), [o, o, o, w]);
        assert!(small("qwen3", listed).unwrap_err().message.contains("layer_types"));
        let smollm3 = small("smollm3", json!({"no_rope_layers": [1, 0, 1, 0], "use_sliding_window": true})).unwrap();
        assert_eq!(windows(&smollm3), [o, w, o, w]);
        assert_eq!(smollm3.layers.iter().map(|l| l.rope).collect::<Vec<_>>(), [Some(0), None, Some(0), None]);
        let every_third = small("smollm3", json!({"no_rope_layer_interval": 3})).unwrap();
        assert_eq!(every_third.layers.iter().map(|l| l.rope.is_some()).collect::<Vec<_>>(), [true, true, false, true]);
        for (kind, changes, key) in [
            ("gemma2", json!({"sliding_window": null}), "sliding_window"),
            ("gemma2", json!({"layer_types": ["full_attention"]}), "layer_types"),
            ("gemma2", json!({"layer_types": ["conv", "conv", "conv", "conv"]}), "layer_types"),
            ("gemma3_text", json!({"sliding_window_pattern": 0}), "sliding_window_pattern"),
            ("smollm3", json!({"no_rope_layers": [1, 0]}), "no_rope_layers"),
            ("smollm3", json!({"no_rope_layers": [1, 0, 2, 1]}), "no_rope_layers"),
            ("llama", json!({}), "sliding_window"),
        ] {
            let error = small(kind, changes).unwrap_err();
            assert!(error.message.contains(key), "{kind}: {error}");
        }
    }

    #[test]
    fn scales_and_biases() {
        let gemma2 = config(json!({"model_type": "gemma2", "query_pre_attn_scalar": 144, "hidden_size": 4608}));
        assert_eq!((gemma2.attention_scale, gemma2.embedding_scale), (1.0 / 12.0, 4608f64.sqrt()));
        assert_eq!(gemma2.activation, Activation::GeluTanh);
        let granite = config(json!({"model_type": "granite", "attention_multiplier": 0.5, "embedding_multiplier": 12,
            "residual_multiplier": 0.22, "logits_scaling": 8.0}));
        let multipliers = (granite.attention_scale, granite.embedding_scale, granite.residual_multiplier);
        assert_eq!((multipliers, granite.logits_scaling), ((0.5, 12.0, 0.22), 8.0));
        let biases = |c: ModelConfig| (c.qkv_bias, c.o_bias, c.mlp_bias);
        assert_eq!(biases(config(json!({"model_type": "qwen2"}))), (true, false, false));
        assert_eq!(biases(config(with(&llama(), json!({"attention_bias": true})))), (true, true, false));
        let gemma = resolved(json!({"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": null})).unwrap();
        assert_eq!(gemma.config.activation, Activation::GeluTanh);
        assert!(source(&gemma, "activation").to_string().contains("gelu_pytorch_tanh"));
        let exact = config(json!({"model_type": "gemma2", "hidden_activation": "gelu"}));
        assert_eq!(exact.activation, Activation::Gelu);
    }

    #[test]
    fn a_text_config_is_read_in_its_place() {
        let base = json!({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
            "eos_token_id": [1, 106], "vision_config": {"hidden_size": 1152},
            "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "bos_token_id": 2,
                            "rope_scaling": {"rope_type": "linear", "factor": 8.0}}});
        let resolved_base = resolved(base.clone()).unwrap();
        assert_eq!(source(&resolved_base, "hiddenSize"), Source::Config("text_config.hidden_size".into()));
        let c = resolved_base.config;
        assert_eq!((c.eos_token_ids.clone(), c.bos_token_id, c.tie_word_embeddings), (vec![1, 106], Some(2), true));
        assert_eq!(c.ropes[0].scaling, RopeScaling::Linear { factor: 8.0 });
        assert_eq!(c.ropes[1].scaling, RopeScaling::None);
        for (changes, key) in [
            (json!({"text_config": null}), "text_config"),
            (json!({"text_config": {"hiden": 1}}), "text_config.hiden"),
            (json!({"audio_config": {}}), "audio_config"),
            (json!({"text_config": {"tie_word_embeddings": false}}), "text_config.tie_word_embeddings"),
            (json!({"text_config": {"final_logit_softcapping": 30.0}}), "text_config.final_logit_softcapping"),
            (json!({"text_config": {"model_type": "gemma4_text"}}), "gemma4_text"),
            (json!({"text_config": {"rope_theta": -1}}), "text_config.rope_theta"),
            (json!({"text_config": {"rope_scaling": {"rope_type": null, "type": "yarn"}}}), "rope_scaling.type"),
        ] {
            let error = resolved(with(&base, changes)).unwrap_err();
            assert!(error.message.contains(key), "{key}: {error}");
        }
    }

    #[test]
    fn token_ids_come_from_the_files_only() {
        let ids = |config: Value, generation: Option<Value>| {
            let generation = generation.map(|g| g.to_string());
            let r = resolve(&config.to_string(), generation.as_deref(), ResolveOptions::default()).unwrap();
            let c = &r.config;
            (c.bos_token_id, c.eos_token_ids.clone(), c.pad_token_id, source(&r, "eosTokenIds"))
        };
        let none = ids(llama(), None);
        assert_eq!((none.0, none.1, none.2), (None, vec![], None));
        let stated = with(&llama(), json!({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1}));
        assert_eq!(ids(stated.clone(), None), (Some(1), vec![2], None, Source::Config("eos_token_id".into())));
        let generation = json!({"eos_token_id": [3, 4, 3, 900], "do_sample": true});
        let found = ids(stated.clone(), Some(generation));
        assert_eq!((found.0, found.1), (Some(1), vec![3, 4]));
        assert!(found.3.to_string().contains("[900] beyond the vocabulary"), "{}", found.3);
        assert_eq!(ids(stated.clone(), Some(json!({}))).1, [2]);
        for bad in [json!("2"), json!(-1), json!([1, -1]), json!(1e30), json!(1.5), json!({})] {
            let error = resolved(with(&stated, json!({"eos_token_id": bad}))).unwrap_err();
            assert!(error.message.contains("`eos_token_id`"), "{error}");
        }
        let broken = resolve(&stated.to_string(), Some("[]"), ResolveOptions::default()).unwrap_err();
        assert!(broken.message.contains("generation_config.json"));
    }

    #[test]
    fn bad_values_name_their_key() {
        for (key, value) in [
            ("hidden_size", json!("48")),
            ("hidden_size", json!(1u64 << 40)),
            ("num_attention_heads", json!(0)),
            ("num_key_value_heads", json!(4)),
            ("num_hidden_layers", json!(1e9)),
            ("head_dim", json!(7)),
            ("head_dim", json!(1 << 30)),
            ("vocab_size", json!(null)),
            ("vocab_size", json!([])),
            ("rms_norm_eps", json!(-1e-5)),
            ("rope_theta", json!(0.5)),
            ("rope_theta", json!(null)),
            ("rope_scaling", json!("llama3")),
            ("hidden_act", json!("relu")),
            ("hidden_act", json!(1)),
            ("tie_word_embeddings", json!(null)),
            ("attention_bias", json!("yes")),
            ("partial_rotary_factor", json!(0.5)),
            ("num_experts", json!(8)),
            ("quantization_config", json!({"bits": 4})),
            ("lm_head_bias", json!(true)),
        ] {
            let error = resolved(with(&llama(), json!({ key: value }))).unwrap_err();
            assert!(error.message.contains(&format!("`{key}`")), "{key}: {error}");
        }
        let dynamic = json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}});
        let error = resolved(with(&llama(), dynamic)).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.message.contains("dynamic") && error.message.contains("yarn"), "{error}");
        assert!(resolved(with(&llama(), json!({"num_attention_heads": 7}))).unwrap_err().message.contains("head_dim"));
    }

    #[test]
    fn unknown_keys_can_be_allowed() {
        let file = with(&llama(), json!({"logit_scale": 2.0, "rope_scaling": {"rope_type": "linear", "factor": 2, "x": 1}}));
        let options = ResolveOptions { allow_unknown: true };
        let resolved = resolve(&file.to_string(), None, options).unwrap();
        assert_eq!(resolved.ignored_keys, ["logit_scale", "rope_scaling.x"]);
        let error = resolve(&file.to_string(), None, ResolveOptions::default()).unwrap_err();
        assert!(error.message.contains("`rope_scaling.x` = 1"), "{error}");
    }
}
