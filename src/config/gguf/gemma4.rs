//! What metadata say where heads, widths and RoPE differ between layers with a window and those without, and keys are shared.

use super::experts::experts;
use super::families::biases;
use super::keys::Keys;
use super::windows::windows;
use super::{FACTORS, Tensors, part};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// From here on a divisor stands for a pair that is not rotated.
const NOT_ROTATED: f32 = 1e29;

pub(super) fn gemma4(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    windows(k, 6, None)?;
    if k.config("sliding_window").is_null() {
        k.set("sliding_window", Value::Null, "GGUF convention: no window where attention.sliding_window is absent");
    }
    let windowed = k.config("layer_types");
    let windowed: Vec<bool> = windowed.as_array().into_iter().flatten().map(|kind| kind == "sliding_attention").collect();
    let wide = heads(k, &windowed)?;
    let has = |layer: usize, name: &str| tensors.shapes.contains_key(&format!("blk.{layer}.{name}.weight"));
    let full = windowed.iter().position(|windowed| !windowed).unwrap_or(0);
    if let Some(layer) = (0..windowed.len()).find(|layer| has(*layer, "attn_qkv")) {
        let text = "q, k and v in one tensor are not supported in this architecture: convert it again with each of its own";
        return Err(Error::unsupported(format!("tensor `blk.{layer}.attn_qkv.weight`: {text}")));
    }
    k.set("attention_k_eq_v", json!(!has(full, "attn_v")), &format!("tensor blk.{full}.attn_v.weight, present or not"));
    widths(k, windowed.len())?;

    const INPUTS: &str = "embedding_length_per_layer_input";
    let inputs = k.optional_count(INPUTS)?.unwrap_or(0);
    k.set_from("hidden_size_per_layer_input", json!(inputs), INPUTS);
    let rows = tensors.shapes.get("per_layer_token_embd.weight").and_then(|shape| shape.first()).map(|rows| json!(rows));
    let vocab = rows.unwrap_or(k.config("vocab_size"));
    k.set("vocab_size_per_layer_input", vocab, "rows of per_layer_token_embd.weight");
    if let Some(cap) = k.number("final_logit_softcapping")? {
        k.set_from("final_logit_softcapping", cap, "final_logit_softcapping");
    } else {
        k.note("the file states no final_logit_softcapping: logits are not capped, as in transformers; llama.cpp caps them at 30 then");
    }

    const EXPERTS: &str = "expert_count";
    k.note_read("expert_feed_forward_length");
    let of_experts = k.optional_count(EXPERTS)?.is_some_and(|count| count > 0);
    k.set_from("enable_moe_block", json!(of_experts), EXPERTS);
    if of_experts {
        experts(k, "num_experts", Some(true))?;
        let used = k.take("num_experts_per_tok").unwrap_or_default();
        k.set_from("top_k_experts", used, "expert_used_count");
        k.count("expert_feed_forward_length", "moe_intermediate_size")?;
    }
    rope(k, tensors, wide)?;
    biases(k, tensors, false)
}

/// Heads: their widths, in layers without a window and with one, and those of keys of each layer. The former widths.
fn heads(k: &mut Keys, windowed: &[bool]) -> Result<u64> {
    let (wide, narrow) = (length(k, "")?, length(k, "_swa")?);
    let wide = wide.ok_or_else(|| k.wrong("attention.key_length", "is missing"))?;
    let narrow = narrow.unwrap_or(wide);
    k.set_from("head_dim", json!(narrow), "attention.key_length_swa");
    const KV: &str = "attention.head_count_kv";
    let counts = by_layer(k, KV, windowed.len())?;
    let usual = counts.iter().zip(windowed).find(|(_, windowed)| **windowed).or(counts.iter().zip(windowed).next());
    let usual = usual.map_or(0, |(count, _)| *count);
    k.set_from("num_key_value_heads", json!(usual), KV);
    let mut layers = Map::new();
    for (i, (count, windowed)) in counts.iter().zip(windowed).enumerate() {
        let dim = if *windowed { narrow } else { wide };
        if (dim, *count) != (narrow, usual) {
            layers.insert(i.to_string(), json!({"head_dim": dim, "num_key_value_heads": count}));
        }
    }
    k.set_from("per_layer_config", Value::Object(layers), "attention.key_length");
    Ok(wide)
}

/// Width of keys and values under a key that ends in `end`.
fn length(k: &mut Keys, end: &str) -> Result<Option<u64>> {
    let keys = ["key", "value"].map(|of| format!("attention.{of}_length{end}"));
    let found = [k.optional_count(&keys[0])?, k.optional_count(&keys[1])?];
    match found {
        [Some(key), Some(value)] if key != value => Err(k.unsupported(&keys[1], format!("{value} differs from {}, {key}", keys[0]))),
        [key, value] => Ok(key.or(value)),
    }
}

/// A whole number for each of `layers`, of which a file may state one for all.
fn by_layer(k: &mut Keys, key: &str, layers: usize) -> Result<Vec<u64>> {
    let counts = match k.get(key) {
        Some(Value::Array(list)) if list.len() == layers => list.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>(),
        Some(one) => one.as_u64().map(|count| vec![count; layers]),
        None => return Err(k.wrong(key, "is missing")),
    };
    counts.ok_or_else(|| k.wrong(key, format!("expected a whole number, or one for each of {layers} layers")))
}

/// Layers that have no keys of their own, and widths of feed-forward blocks, which may be twice as wide there.
fn widths(k: &mut Keys, layers: usize) -> Result<()> {
    const SHARED: &str = "attention.shared_kv_layers";
    const WIDTH: &str = "feed_forward_length";
    let shared = k.optional_count(SHARED)?.unwrap_or(0);
    k.set_from("num_kv_shared_layers", json!(shared), SHARED);
    let widths = by_layer(k, WIDTH, layers)?;
    let usual = widths.first().copied().unwrap_or(0);
    let first = layers.saturating_sub(usize::try_from(shared).unwrap_or(layers));
    let double = widths.iter().skip(first).any(|width| *width != usual);
    let expected = |i: usize| if double && i >= first { usual.saturating_mul(2) } else { usual };
    if let Some(layer) = widths.iter().enumerate().position(|(i, width)| *width != expected(i)) {
        return Err(k.unsupported(WIDTH, format!("{} in layer {layer} is not supported, only {}", widths[layer], expected(layer))));
    }
    k.set_from("intermediate_size", json!(usual), WIDTH);
    k.set_from("use_double_wide_mlp", json!(double), WIDTH);
    Ok(())
}

/// RoPE of layers without a window, where a tensor says how many pairs are rotated, and of the others.
fn rope(k: &mut Keys, tensors: &Tensors, wide: u64) -> Result<()> {
    const NAME: &str = FACTORS[0];
    let divisors = tensors.factors.get(NAME).ok_or_else(|| k.wrong("rope", format!("the file has no tensor `{NAME}`")))?;
    let rotated = divisors.iter().take_while(|divisor| **divisor == 1.0).count();
    if divisors.len() as u64 != wide / 2 || divisors.iter().skip(rotated).any(|divisor| *divisor < NOT_ROTATED) {
        let message =
            format!("tensor `{NAME}`: expected {} divisors, 1 of pairs that are rotated and then {NOT_ROTATED:e} or more", wide / 2);
        return Err(k.unsupported("rope", message));
    }
    let narrow = k.config("head_dim").as_u64().unwrap_or(0);
    for (key, dim) in [("rope.dimension_count", wide), ("rope.dimension_count_swa", narrow)] {
        if let Some(other) = k.optional_count(key)?.filter(|count| *count != dim) {
            return Err(k.unsupported(key, format!("{other} differs from the width of a head, {dim}")));
        }
    }
    const SCALING: &str = "rope.scaling.type";
    if let Some(other) = k.text(SCALING)?.filter(|kind| kind != "none") {
        return Err(k.unsupported(SCALING, format!("{other:.40?} is not supported in this architecture")));
    }
    let base = k.number("rope.freq_base")?.unwrap_or(json!(10000.0));
    let local = k.number("rope.freq_base_swa")?.unwrap_or(json!(10000.0));
    let factor = part(2 * rotated as u64, wide);
    let full = json!({"rope_type": "proportional", "partial_rotary_factor": factor, "rope_theta": base});
    let both = json!({"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": local}});
    k.set("rope_parameters", both, "rope.freq_base, rope.freq_base_swa; tensor rope_freqs.weight: the pairs that are rotated");
    Ok(())
}
