//! What metadata, and conventions, say of which layers have a window, and of the attention scale of the families that have some.

use super::keys::Keys;
use crate::error::Result;
use serde_json::json;

/// The window, and the layers that have it: all but each `period`-th, or none where there is no window.
pub(super) fn windows(k: &mut Keys, period: u64, default: Option<u64>) -> Result<()> {
    let stated = k.optional_count("attention.sliding_window")?.filter(|window| *window > 0);
    match (stated, default) {
        (Some(window), _) => k.set_from("sliding_window", json!(window), "attention.sliding_window"),
        (None, Some(window)) => k.set("sliding_window", json!(window), "GGUF convention: the family's window where the key is absent"),
        (None, None) => {}
    }
    let layers = k.config("num_hidden_layers").as_u64().unwrap_or(0);
    if layers > 10_000 {
        return Err(k.wrong("block_count", format!("{layers} layers are more than a model has")));
    }
    let pattern = k.pattern("attention.sliding_window_pattern", layers)?;
    let (windowed, source) = match pattern {
        _ if stated.or(default).is_none() => {
            let source = "GGUF convention: no layer has a window where attention.sliding_window is absent, or 0";
            ((0..layers).map(|_| false).collect::<Vec<bool>>(), source.to_owned())
        }
        Some(windowed) => (windowed, k.path("attention.sliding_window_pattern")),
        None => {
            let windowed = (0..layers).map(|i| (i + 1) % period != 0).collect();
            (windowed, format!("GGUF convention: a window in all layers but each {period}th"))
        }
    };
    let kind = |windowed: &bool| if *windowed { "sliding_attention" } else { "full_attention" };
    k.set("layer_types", windowed.iter().map(kind).collect(), &source);
    Ok(())
}

/// `query_pre_attn_scalar`, by the number of layers of the one model that is scaled otherwise.
pub(super) fn scalar(k: &mut Keys, layers_of_27b: u64) {
    let of = |k: &Keys, key: &str| k.config(key).as_u64().unwrap_or(0);
    if of(k, "num_hidden_layers") == layers_of_27b {
        let value = of(k, "hidden_size") / of(k, "num_attention_heads").max(1);
        k.set(
            "query_pre_attn_scalar",
            json!(value),
            "GGUF convention: embedding_length / head_count in the model of 27B, known by its layers",
        );
    } else {
        let value = k.config("head_dim");
        k.set("query_pre_attn_scalar", value, "GGUF convention: attention.key_length");
    }
}
