//! A model of another format as a GGUF file: metadata, words, tensors by the conventions of its architecture. What was put
//! together is read back as any such file, and must be the same model: what GGUF cannot say is an error, never left out.

use super::encode::{Item, Part};
use super::items::{Items, Wishes, of_plan};
use crate::config::{GgufModel, GgufTensors, ResolveOptions, gguf_config, gguf_model, resolve};
use crate::error::{Error, Result};
use crate::formats::ModelTexts;
use crate::formats::gguf::{Array, Metadata, Scalar, Value};
use crate::inference::chat::named_templates;
use crate::inference::tokenizer::TokenizerConfig;
use crate::inference::words::Words;
use crate::model::{AttentionConfig, ModelConfig, QueryKeyNorm, RopeConfig, RopeScaling, TensorNames};
use crate::open::{Opened, Weights, tensor_names};
use crate::plan::rope::frequencies;
use crate::quant::Format;
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// Where a GGUF file has the chat template.
const TEMPLATE: &str = "tokenizer.chat_template";
/// What to try instead.
const INSTEAD: &str = "convert to a manifest (`--to manifest`), which keeps the model's own config and tokenizer";

/// Rounding of numbers of 32 bits, relative.
const ROUNDING: f64 = 2e-7;
/// As much of RoPE frequencies, which are quotients of such numbers.
const OF_FREQUENCIES: f64 = 1e-6;

/// Metadata and tensors of `model`.
pub(super) fn plan(model: &Opened, weights: &Weights, wishes: &Wishes) -> Result<(Metadata, Items)> {
    let config = &model.resolved.config;
    let within = |e: Error| Error::new(e.kind, format!("{}; {INSTEAD}", e.message));
    let GgufModel { metadata, neighbouring_pairs, tiled_values, norms_hold_offset, fused, factors, other_names, notes: of_others } =
        gguf_model(config).map_err(within)?;
    let factors = filled(factors, config);
    let queries = check(config, &metadata, &factors).map_err(within)?;
    if queries != 1.0 && !fused.is_empty() {
        return Err(within(Error::unsupported("the factor on q·k has no key in GGUF, and q shares its tensor")));
    }
    let mut header = Metadata::default();
    for (key, value) in &metadata {
        header.set(key.as_str(), typed(value)?);
    }
    header.set("general.name", model.name.as_str());
    let notes = words(model, config.vocab_size, &mut header).map_err(within)?;

    let wishes = Wishes {
        flat: true,
        pairs: config.attentions().next().map(|a| a.head_dim).filter(|_| neighbouring_pairs),
        // Of a file that has the added 1 in its norms, the model adds nothing.
        norms: if norms_hold_offset { config.norm.weight_offset() as f32 } else { 0.0 },
        queries: queries as f32,
        ..*wishes
    };
    let matched = &weights.matched;
    // A shared tensor is there, and so the names of its parts are not.
    let has = |name: &str| other_names.contains(&name) || fused.iter().any(|shared| shared.replace("{layer}", "0") + ".weight" == name);
    let names = tensor_names(config, tiled_values, has);
    let names = TensorNames { prefixes: vec![String::new()], names, ignored: Vec::new(), neighbours: None, packing: None };
    let mut items = of_plan(&model.plan, &names, "", matched, &wishes)?;
    items.notes.extend(notes.into_iter().chain(of_others));
    if queries != 1.0 {
        items.notes.push(format!("a GGUF file of this architecture has no key for the factor on q·k: queries are multiplied by {queries:.6}, in their norm or projection, which comes to the same"));
    }
    for (name, values) in factors {
        let (role, shape, parts) = ("rope factors".into(), vec![values.len()], vec![Part::Values(values)]);
        let (format, name) = (Format::F32, name.to_owned());
        items.items.push(Item { name, role, layer: None, format, shape, parts, pairs: None, add: 0.0, factor: 1.0, importance: None });
    }
    Ok((header, items))
}

/// The divisors of a scaling that has them in a tensor, where they are not stated.
fn filled(factors: Vec<(&'static str, Vec<f32>)>, config: &ModelConfig) -> Vec<(&'static str, Vec<f32>)> {
    let divisors = |rope: &RopeConfig| {
        let plain = RopeConfig { scaling: RopeScaling::None, ..rope.clone() };
        let (before, after) = (frequencies(&plain, false).0, frequencies(rope, false).0);
        before.iter().zip(after).map(|(before, after)| (f64::from(*before) / f64::from(after)) as f32).collect()
    };
    let fill = |(name, values): (&'static str, Vec<f32>)| match config.ropes.first() {
        Some(rope) if values.is_empty() => (name, divisors(rope)),
        _ => (name, values),
    };
    factors.into_iter().map(fill).collect()
}

/// Reads the metadata back and compares the model that they describe with `config`. What queries must be multiplied by, as
/// some architectures have no key for the factor on q·k.
fn check(config: &ModelConfig, metadata: &serde_json::Map<String, Json>, factors: &[(&'static str, Vec<f32>)]) -> Result<f64> {
    let (hidden, rows) = (config.hidden_size, config.vocab_size);
    let mut shapes = BTreeMap::from([("token_embd.weight".to_owned(), vec![rows, hidden])]);
    let mut has = |name: &str, there: bool| {
        if there {
            shapes.insert(name.to_owned(), vec![1]);
        }
    };
    has("output.weight", !config.tie_word_embeddings);
    // The first that stands for all, wherever it is.
    has("blk.0.attn_k.weight", true);
    for (i, layer) in config.layers.iter().enumerate() {
        has(&format!("blk.{i}.attn_v.weight"), layer.attention().is_some_and(|attention| !attention.values_from_keys));
        has(&format!("blk.{i}.exp_probs_b.bias"), layer.experts().is_some_and(|experts| experts.router.choice_bias));
    }
    let first = config.attentions().next();
    let biases = |of: fn(&AttentionConfig) -> bool| first.is_some_and(of);
    ["attn_q", "attn_k", "attn_v"].iter().for_each(|name| has(&format!("blk.0.{name}.bias"), biases(|a| a.qkv_bias)));
    has("blk.0.attn_output.bias", biases(|a| a.o_bias));
    has("blk.0.ffn_gate.bias", config.denses().next().is_some_and(|dense| dense.bias && dense.gated));
    has("blk.0.ffn_up.bias", config.denses().next().is_some_and(|dense| dense.bias));
    has("blk.0.attn_q_norm.weight", first.is_some_and(|a| a.query_key_norm != QueryKeyNorm::None));
    factors.iter().for_each(|(name, _)| has(name, true));
    let factors = factors.iter().map(|(name, values)| ((*name).to_owned(), values.clone())).collect();
    // As the file will have them: numbers with a point have 32 bits.
    let mut stored = Metadata::default();
    for (key, value) in metadata {
        stored.set(key.as_str(), typed(value)?);
    }
    let read = gguf_config(&stored.to_json(), &GgufTensors { shapes: &shapes, factors: &factors })?;
    let text = serde_json::to_string(&read.config).map_err(|e| Error::format("GGUF", e))?;
    let mut read = resolve(&text, None, ResolveOptions::default())?.config;
    let differs = |what: &str, found: String, expected: String| {
        let message =
            format!("a GGUF file of this architecture cannot say `{what}`: it would be read as {found}, the model has {expected}");
        Error::unsupported(message)
    };
    for (i, (found, expected)) in read.ropes.iter().zip(&config.ropes).enumerate() {
        if read.ropes.len() != config.ropes.len() || !same_rope(found, expected) {
            return Err(differs(&format!("ropes[{i}]"), brief(found), brief(expected)));
        }
    }
    let scale = |config: &ModelConfig| config.attentions().next().map_or(1.0, |a| a.scale);
    let queries = scale(config) / scale(&read);
    // The offset of norms is in the weights, and so is the factor on q·k.
    read.norm = read.norm.with_weight_offset(config.norm.weight_offset());
    read.attentions_mut().for_each(|a| a.scale *= queries);
    let json = |config: &ModelConfig| serde_json::to_value(config).map_err(|e| Error::format("GGUF", e));
    let (found, expected) = (json(&read)?, json(config)?);
    for (key, expected) in expected.as_object().into_iter().flatten() {
        // Words and names are compared elsewhere, or are those of the format.
        let skipped = ["preset", "ropes", "tensors", "bosTokenId", "eosTokenIds", "padTokenId"];
        if skipped.contains(&key.as_str()) {
            continue;
        }
        if let Some((path, found, expected)) = difference(key, &found[key.as_str()], expected) {
            let hint = if path.ends_with(".window") { " (a window that is not needed can be taken out of config.json)" } else { "" };
            return Err(differs(&format!("{path}{hint}"), brief(found), brief(expected)));
        }
    }
    Ok(if (queries - 1.0).abs() <= ROUNDING { 1.0 } else { queries })
}

/// The first place, from `path` on, at which two values differ by more than rounding, and both there.
fn difference<'j>(path: &str, a: &'j Json, b: &'j Json) -> Option<(String, &'j Json, &'j Json)> {
    match (a, b) {
        (Json::Object(x), Json::Object(y)) if x.keys().eq(y.keys()) => {
            x.iter().zip(y.values()).find_map(|((key, a), b)| difference(&format!("{path}.{key}"), a, b))
        }
        (Json::Array(x), Json::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().find_map(|(i, (a, b))| difference(&format!("{path}[{i}]"), a, b))
        }
        _ => (!near(a, b)).then(|| (path.to_owned(), a, b)),
    }
}

/// A value on a line.
fn brief(value: &impl serde::Serialize) -> String {
    let text = serde_json::to_string(value).unwrap_or_default();
    if text.chars().count() <= 200 { text } else { text.chars().take(200).chain("…".chars()).collect() }
}

/// Equal but for rounding to 32 bits.
fn near(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap_or(f64::NAN), b.as_f64().unwrap_or(f64::NAN));
            a == b || (a - b).abs() <= ROUNDING * b.abs()
        }
        _ => a == b,
    }
}

/// Equal rotations at every position.
fn same_rope(a: &RopeConfig, b: &RopeConfig) -> bool {
    let close = |a: f64, b: f64| (a - b).abs() <= OF_FREQUENCIES * b.abs();
    let same = |long| {
        let ((a, x), (b, y)) = (frequencies(a, long), frequencies(b, long));
        a.len() == b.len() && close(x, y) && a.iter().zip(&b).all(|(a, b)| close(f64::from(*a), f64::from(*b)))
    };
    let changes = |rope: &RopeConfig| match &rope.scaling {
        RopeScaling::LongRope { short_factor, long_factor, original_max_positions, .. } if short_factor != long_factor => {
            Some(*original_max_positions)
        }
        _ => None,
    };
    a.rotary_dim == b.rotary_dim && changes(a) == changes(b) && same(false) && same(true)
}

/// A metadatum in the type that it has in files.
fn typed(value: &Json) -> Result<Value> {
    Ok(match value {
        Json::Bool(flag) => Value::Bool(*flag),
        Json::String(text) => Value::Text(text.clone()),
        Json::Number(n) => match n.as_u64() {
            Some(n) => Value::Unsigned(n),
            None => Value::F32(n.as_f64().unwrap_or(f64::NAN) as f32),
        },
        Json::Array(list) if list.iter().all(Json::is_boolean) => {
            Value::Array(Array::Scalars(Scalar::Bool, list.iter().map(|flag| u8::from(*flag == Json::Bool(true))).collect()))
        }
        Json::Array(list) if list.iter().all(|n| n.as_u64().is_some_and(|n| n <= u64::from(u32::MAX))) => {
            let bytes = list.iter().filter_map(Json::as_u64).flat_map(|n| (n as u32).to_le_bytes());
            Value::Array(Array::Scalars(Scalar::U32, bytes.collect()))
        }
        other => return Err(Error::invalid("metadata", format!("{other} has no type in GGUF"))),
    })
}

/// Tokenizer and chat template of `model`, whose table has `rows` rows; what is to be said of them.
fn words(model: &Opened, rows: usize, header: &mut Metadata) -> Result<Vec<String>> {
    let Some(words) = model.words()? else {
        header.set("tokenizer.ggml.model", "no_vocab");
        return Ok(vec!["the model has no tokenizer, so the file has none either".into()]);
    };
    let architecture = header.text("general.architecture")?.unwrap_or_default().to_owned();
    for (key, value) in words.tokenizer.to_gguf(rows, &architecture)?.iter() {
        header.set(key, value.clone());
    }
    let mut named = Vec::new();
    for (name, text) in templates(&model.files.texts)? {
        if name == "default" {
            header.set(TEMPLATE, text.as_str());
        } else {
            header.set(format!("{TEMPLATE}.{name}"), text.as_str());
            named.push(name);
        }
    }
    if !named.is_empty() {
        header.set("tokenizer.chat_templates", named);
    }
    // What was written must be what is read.
    let back = Words::of_gguf(header)?.ok_or_else(|| Error::tokenizer("the vocabulary was lost on the way to GGUF"))?;
    words.tokenizer.compare(&back.tokenizer)
}

/// Chat templates by name.
fn templates(texts: &ModelTexts) -> Result<Vec<(String, String)>> {
    if let Some(text) = &texts.chat_template {
        return Ok(vec![("default".into(), text.clone())]);
    }
    let files = [&texts.tokenizer_config, &texts.special_tokens_map, &texts.added_tokens].map(|text| text.as_deref());
    TokenizerConfig::from_files(files)?.chat_template.map_or(Ok(Vec::new()), |value| named_templates(&value))
}

/// llama.cpp's number for files whose matrices are in `recipe`, a format or a mixture by name.
pub(super) fn file_type(recipe: &str) -> Option<u32> {
    const TYPES: [(&str, u32); 22] = [
        ("f32", 0),
        ("f16", 1),
        ("q4_0", 2),
        ("q4_1", 3),
        ("q8_0", 7),
        ("q5_0", 8),
        ("q5_1", 9),
        ("q2_k", 10),
        ("q3_k_s", 11),
        ("q3_k", 11),
        ("q3_k_m", 12),
        ("q3_k_l", 13),
        ("q4_k_s", 14),
        ("q4_k", 14),
        ("q4_k_m", 15),
        ("q5_k_s", 16),
        ("q5_k", 16),
        ("q5_k_m", 17),
        ("q6_k", 18),
        ("iq4_nl", 25),
        ("iq4_xs", 30),
        ("bf16", 32),
    ];
    TYPES.iter().find(|(name, _)| *name == recipe).map(|(_, number)| *number)
}
