//! What plants have in common: numbers of a config by their path, tensors by the end of their name, rows in another order.

use crate::faults::draw::Draw;
use crate::faults::files::{Folder, Tensor};
use serde_json::{Map, Value, json};

/// Changes the chat template, wherever it is.
pub fn template(f: &mut Folder, change: impl FnOnce(&str) -> Option<String>) -> bool {
    if let Some(text) = f.texts.get_mut("chat_template.jinja") {
        return change(text).is_some_and(|new| {
            *text = new;
            true
        });
    }
    let Some(text) = f.texts.get_mut("tokenizer_config.json") else { return false };
    let Ok(mut json) = serde_json::from_str::<Value>(text) else { return false };
    let Some(new) = json["chat_template"].as_str().and_then(change) else { return false };
    json["chat_template"] = json!(new);
    *text = json.to_string();
    true
}

/// Puts the rows of queries and keys of every layer into the order that `from` says, by row and width of a head.
pub fn permuted(f: &mut Folder, from: impl Fn(usize, usize) -> usize) -> bool {
    let is_meant = |name: &String| ["q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias"].iter().any(|end| name.ends_with(end));
    let names: Vec<String> = f.tensors.keys().filter(|name| is_meant(name) && !name.contains("vision")).cloned().collect();
    for name in &names {
        let width = head_dim(f, layer_of(name));
        f.tensor(name).into_iter().for_each(|tensor| reorder(tensor, |row| from(row, width)));
    }
    !names.is_empty()
}

/// Whether the prompts of the references are longer than the original context of longrope.
pub fn crosses(text: &Map<String, Value>) -> bool {
    let of = |of: &Map<String, Value>| of.get("original_max_position_embeddings").and_then(Value::as_u64);
    of(text).is_some_and(|original| original < 15)
}

pub fn has_lists(of: &Value) -> bool {
    of.get("short_factor").is_some()
}

pub fn kind(of: &Value) -> &str {
    of.get("rope_type").or_else(|| of.get("type")).and_then(Value::as_str).unwrap_or_default()
}

/// The layer that a tensor's name says.
pub fn layer_of(name: &str) -> usize {
    name.split_once("layers.").and_then(|(_, rest)| rest.split('.').next()?.parse().ok()).unwrap_or(0)
}

/// Width of a head of a layer.
pub fn head_dim(f: &mut Folder, layer: usize) -> usize {
    let config = f.text_config();
    let of = |key: &str| config.get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
    let own = config.get("per_layer_config").and_then(|all| all.get(layer.to_string())?.get("head_dim")?.as_u64());
    match own {
        Some(own) => own as usize,
        None if of("head_dim") > 0 => of("head_dim"),
        None => of("hidden_size") / of("num_attention_heads").max(1),
    }
}

/// Gives a tensor, and those of other experts that it lies with, elements of 32 bits: all of them have one type.
pub fn widen(f: &mut Folder, name: &str) {
    let Some((before, after)) = name.split_once("experts.").and_then(|(before, rest)| Some((before, rest.split_once('.')?.1))) else {
        f.tensor(name).into_iter().for_each(|tensor| tensor.dtype = "F32".into());
        return;
    };
    let begin = format!("{before}experts.");
    let names: Vec<String> = f.tensors.keys().filter(|name| name.starts_with(&begin) && name.ends_with(after)).cloned().collect();
    names.iter().for_each(|name| f.tensor(name).into_iter().for_each(|tensor| tensor.dtype = "F32".into()));
}

/// Elements of a tensor of a layer, changed; false where the layer has none.
pub fn changed(f: &mut Folder, layer: usize, end: &str, change: impl FnOnce(&mut Tensor)) -> bool {
    let Some(name) = full(f, &format!("layers.{layer}.{end}")) else { return false };
    f.tensor(&name).is_some_and(|tensor| {
        tensor.dtype = "F32".into();
        change(tensor);
        true
    })
}

pub fn windowed(f: &mut Folder) -> bool {
    has_number(f, "sliding_window") && f.text_config().get("use_sliding_window") != Some(&json!(false))
}

pub fn no_list(f: &mut Folder) -> bool {
    !["rope_scaling", "rope_parameters"].iter().any(|place| f.text_config().get(*place).is_some_and(has_lists))
}

pub fn has_number(f: &mut Folder, key: &str) -> bool {
    f.text_config().get(key).is_some_and(Value::is_number)
}

pub fn set(f: &mut Folder, key: &str, value: Value) -> bool {
    f.text_config().insert(key.to_string(), value);
    true
}

/// Changes the first of `paths` that holds a number.
pub fn number(f: &mut Folder, paths: &[&str], change: impl FnOnce(f64) -> f64) -> bool {
    let config = Value::Object(f.text_config().clone());
    let pointer = |path: &str| format!("/{}", path.replace('.', "/"));
    let Some(path) = paths.iter().find(|path| config.pointer(&pointer(path)).is_some_and(Value::is_number)) else { return false };
    let mut all = config.clone();
    let Some(place) = all.pointer_mut(&pointer(path)) else { return false };
    let whole = place.is_u64();
    let value = change(place.as_f64().unwrap_or(0.0));
    *place = if whole && (value.fract() == 0.0) { json!(value as u64) } else { json!(value) };
    if let Value::Object(all) = all {
        *f.text_config() = all;
    }
    true
}

/// The whole name of a tensor that ends so.
pub fn full(f: &Folder, end: &str) -> Option<String> {
    f.tensors.keys().find(|name| name.ends_with(end) && !name.contains("vision")).cloned()
}

/// One of the tensors of a layer.
pub fn pick(f: &Folder, layer: usize, d: &mut Draw, is: impl Fn(&str, &Tensor) -> bool) -> Option<String> {
    let part = format!("layers.{layer}.");
    let names: Vec<&String> = f
        .tensors
        .iter()
        .filter(|(name, t)| name.contains(&part) && !name.contains("vision") && f.is_used(name) && is(name, t))
        .map(|(name, _)| name)
        .collect();
    names.get(d.of(names.len())).map(|name| (*name).clone())
}

/// Exchanges two tensors of one shape.
pub fn swap(f: &mut Folder, a: &str, b: &str) -> bool {
    let (Some(a), Some(b)) = (full(f, a), full(f, b)) else { return false };
    let (first, second) = (f.tensors[&a].clone(), f.tensors[&b].clone());
    if first.shape != second.shape || first.values == second.values {
        return false;
    }
    f.tensor(&a).into_iter().for_each(|t| *t = second.clone());
    f.tensor(&b).into_iter().for_each(|t| *t = first.clone());
    true
}

/// Row `i` becomes what row `from(i)` was.
pub fn reorder(tensor: &mut Tensor, from: impl Fn(usize) -> usize) {
    let columns = tensor.columns().max(1);
    let old = tensor.values.clone();
    for row in 0..old.len() / columns {
        let source = from(row) * columns;
        tensor.values[row * columns..(row + 1) * columns].copy_from_slice(&old[source..source + columns]);
    }
}
