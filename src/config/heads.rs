//! Heads of layers that are not as those of all: widths and key/value heads by layer, values made of keys, layers that read other
//! layers' keys and values, and inputs of layers. It knows keys by their names in the preset, and no family.

use serde_json::Value;

use super::keys::{Keys, unsupported};
use super::layers::by_layer;
use super::preset::{FullHeads, Preset, SharedKv};
use super::values::{Lines, Scalar, Sourced, brief};
use crate::error::{Error, Result};
use crate::model::{Activation, AttentionConfig, LayerConfig, LayerInputsConfig, Mixer, Source, TensorNames};

/// What heads of each layer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heads {
    pub head_dim: usize,
    pub kv_heads: usize,
    values_from_keys: bool,
}

/// Heads of every layer, of which `windowed` have a window and those alike `alike`. Within layers with a window, and within the others,
/// `head_dim` is one, since their RoPE is.
pub(super) fn read(
    keys: &mut Keys,
    preset: &Preset,
    windowed: &[bool],
    alike: Option<&AttentionConfig>,
    lines: &mut Lines,
    notes: &mut Vec<String>,
) -> Result<Vec<Heads>> {
    let usual = Heads { head_dim: alike.map_or(0, |a| a.head_dim), kv_heads: alike.map_or(0, |a| a.num_kv_heads), values_from_keys: false };
    let mut heads = vec![usual; windowed.len()];
    let (Some(of), Some(alike)) = (&preset.full_heads, alike) else { return Ok(heads) };
    let switch = keys.required::<bool>(&of.values_from_keys)?;
    let (full_dim, full_heads) = (keys.required::<usize>(&of.head_dim)?, keys.optional::<usize>(&of.kv_heads)?);
    let source = match keys.raw(&of.by_layer) {
        Some(Value::Object(map)) => {
            for (layer, numbers) in map {
                one_layer(keys, of, layer, numbers, &mut heads)?;
            }
            if [&of.head_dim, &of.kv_heads].into_iter().any(|key| keys.raw(key).is_some()) {
                let [by_layer, dim, kv] = [&of.by_layer, &of.head_dim, &of.kv_heads].map(|key| keys.path(key));
                notes.push(format!("config.json: `{dim}` and `{kv}` mean nothing beside `{by_layer}`, as in transformers"));
            }
            Source::Config(keys.path(&of.by_layer))
        }
        None | Some(Value::Null) => {
            for (heads, _) in heads.iter_mut().zip(windowed).filter(|(_, windowed)| !**windowed) {
                heads.head_dim = full_dim.value;
                heads.kv_heads = full_heads.value.filter(|_| switch.value).unwrap_or(usual.kv_heads);
            }
            Source::Derived(format!(
                "of layers without a window {}: {}, {}: {}",
                of.head_dim, full_dim.source, of.kv_heads, full_heads.source
            ))
        }
        Some(other) => return Err(Error::config(keys.path(&of.by_layer), format!("should be an object, found {}", brief(other)))),
    };
    for (i, (heads, windowed)) in heads.iter_mut().zip(windowed).enumerate() {
        heads.values_from_keys = switch.value && !windowed;
        if heads.head_dim.checked_mul(alike.num_heads).is_none_or(|width| width > i32::MAX as usize) {
            return Err(Error::config(
                keys.path(&of.head_dim),
                format!("{} heads of {} elements are too wide", alike.num_heads, heads.head_dim),
            ));
        }
        if !alike.num_heads.is_multiple_of(heads.kv_heads) {
            let message = format!("{} key/value heads of layer {i} do not divide num_attention_heads, {}", heads.kv_heads, alike.num_heads);
            return Err(Error::config(keys.path(&of.kv_heads), message));
        }
    }
    for kind in [false, true] {
        let mut of_kind = heads.iter().zip(windowed).filter(|(_, windowed)| **windowed == kind).map(|(heads, _)| heads.head_dim);
        if let Some(first) = of_kind.next()
            && let Some(other) = of_kind.find(|dim| *dim != first)
        {
            let message = format!("heads of {first} and of {other} elements in layers of one type are not supported");
            return Err(unsupported(keys.path(&of.by_layer), message));
        }
    }
    // In place of the lines that say it of all layers.
    lines.0.retain(|(field, ..)| !["layers[].mixer.headDim", "layers[].mixer.numKvHeads"].contains(&field.as_str()));
    lines.text("layers[].mixer.headDim", by_layer(heads.iter().map(|h| h.head_dim.to_string())), source.clone());
    lines.text("layers[].mixer.numKvHeads", by_layer(heads.iter().map(|h| h.kv_heads.to_string())), source);
    Ok(heads)
}

/// Numbers that the object has for one layer.
fn one_layer(keys: &Keys, of: &FullHeads, layer: &str, numbers: &Value, heads: &mut [Heads]) -> Result<()> {
    let path = format!("{}.{layer:.40}", keys.path(&of.by_layer));
    let count = heads.len();
    let at = layer.parse::<usize>().ok().and_then(|i| heads.get_mut(i));
    let at = at.ok_or_else(|| Error::config(&path, format!("should be the number of one of {count} layers")))?;
    let Value::Object(numbers) = numbers else {
        return Err(Error::config(path, format!("should be an object, found {}", brief(numbers))));
    };
    for (key, value) in numbers {
        let place = match key.as_str() {
            "head_dim" => &mut at.head_dim,
            "num_key_value_heads" => &mut at.kv_heads,
            other => {
                return Err(unsupported(
                    format!("{path}.{other:.40}"),
                    "is not supported by layer (supported: head_dim, num_key_value_heads)",
                ));
            }
        };
        *place = usize::read(value).map_err(|e| Error::config(format!("{path}.{key}"), e))?;
    }
    Ok(())
}

/// Head widths of layers without a window, and of those with one.
pub(super) fn dims(heads: &[Heads], windowed: &[bool], usual: usize) -> [usize; 2] {
    [false, true].map(|kind| heads.iter().zip(windowed).find(|(_, windowed)| **windowed == kind).map_or(usual, |(heads, _)| heads.head_dim))
}

/// Gives layers their heads, and the last ones those of earlier layers, whose tensors, where files have them, are `ignored`.
pub(super) fn apply(
    keys: &mut Keys,
    preset: &Preset,
    heads: &[Heads],
    layers: &mut [LayerConfig],
    tensors: &mut TensorNames,
    lines: &mut Lines,
) -> Result<()> {
    for (layer, heads) in layers.iter_mut().zip(heads) {
        if let Mixer::Attention(attention) = &mut layer.mixer {
            (attention.head_dim, attention.num_kv_heads) = (heads.head_dim, heads.kv_heads);
            attention.values_from_keys = heads.values_from_keys;
        }
    }
    lines.put("layers[].mixer.valueNorm", Sourced::preset(preset.value_norm));
    let from_keys = preset.full_heads.as_ref().map_or(Ok(Source::Preset), |of| Ok(keys.required::<bool>(&of.values_from_keys)?.source))?;
    lines.text("layers[].mixer.valuesFromKeys", by_layer(heads.iter().map(|h| h.values_from_keys.to_string())), from_keys);
    let shared = match &preset.shared_kv {
        Some(of) => share(keys, of, layers, tensors)?,
        None => Source::Preset,
    };
    let from = |layer: &LayerConfig| layer.attention().and_then(|a| a.shared_kv).map_or("none".to_string(), |i| format!("of layer {i}"));
    lines.text("layers[].mixer.sharedKv", by_layer(layers.iter().map(from)), shared);
    lines.put("layers[].scalar", Sourced::preset(preset.layer_scalar));
    Ok(())
}

/// The last layers read what the last of the others of their type appends, and may be twice as wide.
fn share(keys: &mut Keys, of: &SharedKv, layers: &mut [LayerConfig], tensors: &mut TensorNames) -> Result<Source> {
    let (shared, wide) = (keys.required::<u32>(&of.layers)?, keys.required::<bool>(&of.wide)?);
    let path = keys.path(&of.layers);
    let first = layers.len().checked_sub(shared.value as usize).filter(|first| *first > 0);
    let first =
        first.ok_or_else(|| Error::config(&path, format!("{} of {} layers leave none that has keys", shared.value, layers.len())))?;
    for i in first..layers.len() {
        let window = layers[i].window();
        let from = layers[..first].iter().rposition(|layer| layer.attention().is_some() && layer.window() == window);
        let from =
            from.ok_or_else(|| Error::config(&path, format!("layer {i} has no earlier layer of its type whose keys it could read")))?;
        let held = layers[from].attention().map(|a| (a.num_kv_heads, a.head_dim));
        if held != layers[i].attention().map(|a| (a.num_kv_heads, a.head_dim)) {
            return Err(Error::config(&path, format!("layer {i} would read keys of layer {from}, which has other heads")));
        }
        if let Some(attention) = layers[i].attention_mut() {
            attention.shared_kv = Some(from);
        }
        if let Some(dense) = layers[i].dense_mut().filter(|_| wide.value) {
            dense.intermediate_size *= 2;
        }
        tensors.ignored.extend(["k_proj", "v_proj", "k_norm", "v_norm"].map(|name| format!("layers.{i}.self_attn.{name}.weight")));
    }
    Ok(shared.source)
}

/// Inputs of layers, where the model has them.
pub(super) fn inputs(
    keys: &mut Keys,
    preset: &Preset,
    (layers, vocab_size): (usize, usize),
    activation: impl FnOnce(&mut Keys) -> Result<Sourced<Activation>>,
    lines: &mut Lines,
) -> Result<Option<LayerInputsConfig>> {
    let Some(of) = &preset.layer_inputs else {
        lines.text("layerInputs", "none", Source::Preset);
        return Ok(None);
    };
    let (width, vocab) = (keys.required::<u32>(&of.width)?, keys.required::<usize>(&of.vocab)?);
    if width.value == 0 {
        lines.text("layerInputs", "none", width.source);
        return Ok(None);
    }
    if (width.value as usize).checked_mul(layers).is_none_or(|all| all > i32::MAX as usize) {
        return Err(Error::config(keys.path(&of.width), format!("{} elements for each of {layers} layers are too many", width.value)));
    }
    if vocab.value != vocab_size {
        let message = format!("{} rows are not supported, only those of vocab_size, {vocab_size}", vocab.value);
        return Err(unsupported(keys.path(&of.vocab), message));
    }
    let width = lines.put("layerInputs.width", width) as usize;
    Ok(Some(LayerInputsConfig { width, activation: lines.put("layerInputs.activation", activation(keys)?) }))
}
