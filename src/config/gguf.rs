//! From the metadata of a GGUF file to the `config.json` of the same model, each value with the metadatum, tensor or
//! convention that it comes from. It reads no file: metadata come as JSON, tensors as names with shapes.
//!
//! Conventions, which no metadatum states. They are facts of llama.cpp's converter (`convert_hf_to_gguf.py`) and of its
//! models (`src/models/`, `src/llama-model.cpp`):
//! - Norm weights of the Gemma families have the added 1 in them, so nothing is added (`norms_hold_offset`).
//! - In `llama`, `granite`, `granitemoe` and `smollm3` the rows of q and k are in the order of neighbouring pairs: RoPE rotates (2i, 2i + 1)
//!   (`neighbouring_pairs`). The other architectures keep Hugging Face's halves. Mistral is `llama` there.
//! - A head without a tensor (`output.weight`) is the embedding table. Biases are there where their tensors are.
//! - `rope_freqs.weight` has a divisor for each frequency, which is Llama 3's scaling, computed; `rope_factors_short.weight` and
//!   `rope_factors_long.weight` are the lists of longrope.
//! - YaRN's `yarn_beta_fast`, `yarn_beta_slow` and `yarn_attn_factor` are transformers' `beta_fast`, `beta_slow` and
//!   `attention_factor`. llama.cpp computes the last one from `rope.scaling.factor`, whatever the file says.
//! - RoPE's base is 10000 where `rope.freq_base` is absent, and for windowed layers of `gemma3` where `rope.freq_base_swa` is.
//! - Head width is `embedding_length / attention.head_count` where `attention.key_length` is absent.
//! - `gemma2` has a window in every other layer, from the first; `gemma3` in all but each sixth. Attention is scaled by
//!   key_length^-1/2, but (embedding_length / head_count)^-1/2 in their models of 27B, known by 46 and 62 layers: the file
//!   has no `query_pre_attn_scalar`. Soft-caps of `gemma2` are 50 and 30, its window 4096, where their keys are absent; where
//!   `gemma3` has no `attention.sliding_window`, no layer has a window.
//! - `smollm3` has no RoPE in each fourth layer.
//! - `exaone4` has a window in all layers but each fourth, whose layers have no RoPE, where `attention.sliding_window` is
//!   there, and 4096 of them in the model of 64 layers in any case. llama.cpp has no window in a model of another depth, whatever its file
//!   says; transformers has.
//! - `glm4` rotates neighbouring pairs, as Hugging Face does, so that no row is moved; gate and up are one tensor.
//! - `hunyuan-dense` has its base with alpha in it. RoPE comes before the norms of queries and keys.
//! - `mistral3` is Ministral 3 where `attention.temperature_scale` is there, else Mistral, as `llama`.
//! - `granite` where `rope.scaling.finetuned` is false has no RoPE: Granite 4. Its converter writes true for dense models in any
//!   case, so that one trained without RoPE has RoPE in its file. The dense block of Granite 4 is as wide as
//!   `expert_shared_feed_forward_length` says; `feed_forward_length` is a number that nothing reads there.
//! - `olmo2` with a window is OLMo 3: each fourth layer has no window, and only those layers' RoPE is scaled.
//! - `phi3` fuses q, k, v and gate, up as Hugging Face does; a window of 0 is none.
//! - `llama` files do not state Mistral's window, and `qwen2`, `qwen3` files not Qwen's: what was trained with one has none.
//! - `llama` with experts is Mixtral. Weights of experts are divided by their sum in `llama`, `qwen3moe` and `granitemoe` (there as a
//!   softmax over the chosen, which is the same), and not in `qwen2moe` and `olmoe`, where `expert_weights_norm` is absent.
//! - Experts are as wide as `expert_feed_forward_length` says, in `llama`, `olmoe` and `granitemoe` as `feed_forward_length`. All layers
//!   of a file have them.
//! - Activations are SiLU, in the Gemma families, `starcoder2` and `phi2` GELU by its tanh approximation, where `hidden_activation` is
//!   absent. In `gptneox` llama.cpp computes the approximation too, while all models of the family but one (GPT-NeoX-20B)
//!   have the exact one, and files say nothing: here it is the exact one, with a note.
//! - `command-r` and `cohere2` are Cohere's, whose rows are neighbouring pairs in Hugging Face's files too, so that none is
//!   moved. `cohere2` has a window and RoPE in all layers but each fourth; norms of queries and keys are there where their
//!   tensors are.
//! - Layer norms' epsilon is `attention.layer_norm_epsilon`. `starcoder2` files do not state the window, and llama.cpp has none; all
//!   published models have 4096, so that it is that, with a note where the context is longer.
//! - `phi2`, `starcoder2` and `gptneox` have no gate: `ffn_up` is what is activated.
//! - `gptneox` fuses q, k and v one after the other, whose rows Hugging Face's files have side by side for each head.
//! - `gpt-oss` has a window in every other layer, from the first; its experts are as wide as `expert_feed_forward_length` says, and cut
//!   off as its class does by default: no key says so. YaRN's range is not rounded, which newer files say as `yarn_truncate`; llama.cpp
//!   0.7.0 rounds it in any case.
//! - `qwen3next`, `qwen35` and `qwen35moe` have attention where `attention.recurrent_layers` is false, else in each
//!   `full_attention_interval`-th layer, where that is absent in each fourth. Their norms have the added 1 in them but for that of
//!   the delta rule, and decays are −e^x. The last `nextn_predict_layers` blocks predict further tokens and are not run. In `qwen35` and
//!   `qwen35moe` the value heads of delta rules are in another order: the first of every key head, then the second (`tiled_values`).
//! - `gemma4` states widths of heads without a window, and with `_swa` those with one. `rope_freqs.weight` is of layers without a window: 1
//!   for a pair that is rotated, 1e30 for one that is not. Norms add nothing, attention is scaled by 1. A layer without a window and
//!   without `attn_v` has its keys as values; the last `attention.shared_kv_layers` read earlier layers' keys.
//! - `lfm2` has a convolution where `attention.head_count_kv` has 0; its final norm is `token_embd_norm`, and
//!   `feed_forward_length` is the width that the class computes. `lfm2moe` has experts but for its first `leading_dense_block_count`
//!   layers, chosen by sigmoids with a bias (`exp_probs_b`), whose weights are divided by their sum.

mod deltas;
mod experts;
mod families;
mod gemma4;
mod keys;
mod windows;
mod write;

pub use write::{GgufModel, gguf_model};

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::model::{Activation, ModelConfig};
use families::{FAMILIES, Family};
use keys::Keys;

/// A model that a GGUF file describes.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufConfig {
    /// What `config.json` would hold.
    pub config: Map<String, Value>,
    /// Where each of its keys comes from: a metadatum, a tensor, or "GGUF convention: …".
    pub sources: Vec<(String, String)>,
    /// Norm weights have the added 1 in them: nothing is added to them, whatever the family does.
    pub norms_hold_offset: bool,
    /// RoPE rotates neighbouring elements of q and k; otherwise elements half of the rotated width apart.
    pub neighbouring_pairs: bool,
    /// Value heads of delta rules lie in another order: the first of each key head, then the second of each, and so on.
    pub tiled_values: bool,
    /// Beginnings of names of tensors that belong to parts that Doppler does not run.
    pub ignored: Vec<String>,
    /// Where llama.cpp would compute something else, a sentence each.
    pub notes: Vec<String>,
}

/// What the file has besides metadata.
pub struct Tensors<'a> {
    /// Shapes by name, outermost size first.
    pub shapes: &'a BTreeMap<String, Vec<usize>>,
    /// The values of [`FACTORS`] that the file has, by name.
    pub factors: &'a BTreeMap<String, Vec<f32>>,
}

/// Tensors whose values a config needs, each a vector of f32.
pub const FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

/// Numbers of YaRN that have defaults: within `rope.scaling.` in GGUF, and in config.json.
const YARN: [(&str, &str); 3] =
    [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow"), ("yarn_attn_factor", "attention_factor")];

/// What is said of the one architecture whose files do not say which GELU they mean.
const GELU: &str = "the GGUF file does not say which GELU its model has: the exact one is computed, which every model of the family but \
                    GPT-NeoX-20B has (llama.cpp takes the tanh approximation for all)";
/// The name of an activation, which files of some architectures state.
const ACTIVATION: &str = "hidden_activation";

/// A key in GGUF, the key of config.json, and what a model has there.
type Count = (&'static str, &'static str, fn(&ModelConfig) -> usize);

/// Whole numbers that every architecture states.
const COUNTS: [Count; 5] = [
    ("embedding_length", "hidden_size", |config| config.hidden_size),
    ("feed_forward_length", "intermediate_size", |config| width(config)),
    ("block_count", "num_hidden_layers", |config| config.layers.len()),
    ("context_length", "max_position_embeddings", |config| config.max_positions),
    ("attention.head_count", "num_attention_heads", |config| config.attentions().next().map_or(0, |a| a.num_heads)),
];

/// Width of the feed-forward block of the first layer; of a dense one, if there is one.
fn width(config: &ModelConfig) -> usize {
    let of_experts = || config.experts().next().map_or(0, |experts| experts.intermediate_size);
    config.denses().next().map_or_else(of_experts, |dense| dense.intermediate_size)
}

/// The model that `metadata`, a JSON object of a file's metadata, describe.
///
/// # Errors
/// `Kind::Unsupported` for architectures and options that Doppler does not run, `Kind::Config` for metadata that are
/// missing, contradict each other or are not known, each by key.
pub fn gguf_config(metadata: &Map<String, Value>, tensors: &Tensors) -> Result<GgufConfig> {
    const KEY: &str = "general.architecture";
    let name = metadata.get(KEY).and_then(Value::as_str).ok_or_else(|| Error::config(KEY, "is missing, or is no text"))?;
    let Some(family) = FAMILIES.iter().find(|family| family.name == name) else {
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        let message = format!("GGUF architecture {name:.40?} is not supported (supported: {})", known.join(", "));
        return Err(Error::unsupported(message));
    };
    let mut keys = Keys::new(metadata, name);
    let k = &mut keys;
    k.set("architectures", json!([family.class]), KEY);
    k.set("model_type", json!(family.model_type), KEY);
    let table = tensors.shapes.get("token_embd.weight").and_then(|shape| shape.first()).copied();
    let table = table.ok_or_else(|| Error::config("vocab_size", "the file has no tensor `token_embd.weight`"))?;
    k.set("vocab_size", json!(table), "rows of token_embd.weight");
    k.note_read("vocab_size");
    for (key, name, _) in COUNTS {
        // Of experts alone files state another width, and where layers differ their own.
        if family.by_layer && key == "feed_forward_length" {
            continue;
        }
        if key != "feed_forward_length" || k.get(key).is_some() || k.get("expert_feed_forward_length").is_none() {
            k.count(key, name)?;
        }
    }
    let of = |key: &str| k.config(key).as_u64().unwrap_or(0);
    let (hidden, heads) = (of("hidden_size"), of("num_attention_heads"));
    if !family.by_layer {
        kv_heads(k, heads, family)?;
        let head_dim = head_dim(k, hidden, heads)?;
        rope(k, tensors, family, head_dim)?;
    }
    let [stated, name] = family.eps;
    let eps = k.required(stated)?;
    k.set_from(name, eps, stated);
    let tied = !tensors.shapes.contains_key("output.weight");
    let source = if tied { "GGUF convention: no tensor output.weight" } else { "tensor output.weight" };
    k.set("tie_word_embeddings", json!(tied), source);
    if let (Some(key), activation) = family.activation {
        let of_all = "GGUF convention: the activation of the architecture";
        match (k.text(ACTIVATION)?, activation) {
            (Some(stated), _) => k.set_from(key, json!(stated), ACTIVATION),
            (None, Activation::Silu) => k.set(key, json!("silu"), of_all),
            (None, Activation::Gelu) => {
                k.set(key, json!("gelu"), "the class's default: files of the architecture do not say it");
                k.note(GELU);
            }
            (None, _) => k.set(key, json!("gelu_pytorch_tanh"), of_all),
        }
    }
    (family.further)(k, tensors)?;
    token_ids(k, table)?;
    k.finish()?;
    let Keys { config, sources, notes, ignored, .. } = keys;
    let (norms_hold_offset, neighbouring_pairs, tiled_values) = (family.gemma, family.neighbouring, family.tiled);
    Ok(GgufConfig { config, sources, norms_hold_offset, neighbouring_pairs, tiled_values, ignored, notes })
}

/// Key/value heads; one for each query head where the key is absent.
fn kv_heads(k: &mut Keys, heads: u64, family: &Family) -> Result<()> {
    const KEY: &str = "attention.head_count_kv";
    if let Some(Value::Array(list)) = k.get(KEY) {
        // 0 stands for a layer without attention.
        let counts = list.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>();
        let counts = counts.ok_or_else(|| k.wrong(KEY, "expected whole numbers"))?;
        let count = counts.iter().copied().find(|count| *count > 0).unwrap_or(heads);
        let mixed = matches!(family.name, "lfm2" | "lfm2moe");
        if counts.iter().any(|other| *other != count && (*other != 0 || !mixed)) {
            return Err(k.unsupported(KEY, "layers differ in it, which is not supported"));
        }
        k.set_from("num_key_value_heads", json!(count), KEY);
        if !mixed {
            return Ok(());
        }
        let kind = |count: &u64| if *count > 0 { "full_attention" } else { "conv" };
        k.set_from("layer_types", counts.iter().map(kind).collect(), KEY);
        return Ok(());
    }
    if k.get(KEY).is_some() {
        k.count("attention.head_count_kv", "num_key_value_heads")?;
    } else {
        k.set("num_key_value_heads", json!(heads), "GGUF convention: attention.head_count");
    }
    Ok(())
}

/// Width of a head.
fn head_dim(k: &mut Keys, hidden: u64, heads: u64) -> Result<u64> {
    let (key, value) = (k.optional_count("attention.key_length")?, k.optional_count("attention.value_length")?);
    if let (Some(key), Some(value)) = (key, value)
        && key != value
    {
        return Err(k.unsupported("attention.value_length", format!("{value} differs from key_length, {key}")));
    }
    if let Some(dim) = key.or(value) {
        k.set_from("head_dim", json!(dim), "attention.key_length");
        return Ok(dim);
    }
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(k.wrong("attention.key_length", format!("is missing, and {heads} heads do not divide embedding_length, {hidden}")));
    }
    k.set("head_dim", json!(hidden / heads), "GGUF convention: embedding_length / attention.head_count");
    Ok(hidden / heads)
}

/// RoPE: base, rotated part of a head, scaling.
fn rope(k: &mut Keys, tensors: &Tensors, family: &Family, head_dim: u64) -> Result<()> {
    match k.number("rope.freq_base")? {
        Some(theta) => k.set_from("rope_theta", theta, "rope.freq_base"),
        None => k.set("rope_theta", json!(10000.0), "GGUF convention: the base where rope.freq_base is absent"),
    }
    let rotated = k.optional_count("rope.dimension_count")?.unwrap_or(head_dim);
    if family.partial {
        k.set_from("partial_rotary_factor", json!(part(rotated, head_dim)), "rope.dimension_count");
    } else if rotated != head_dim {
        return Err(k.unsupported("rope.dimension_count", format!("{rotated} differs from the width of a head, {head_dim}")));
    }
    let kind = k.text("rope.scaling.type")?.unwrap_or("none".into());
    let factor = k.number("rope.scaling.factor")?;
    let old = k.number("rope.scale_linear")?;
    let original = k.optional_count("rope.scaling.original_context_length")?;
    let attention = k.number("rope.scaling.attn_factor")?;
    if k.flag("rope.scaling.finetuned")? == Some(false) && family.name == "granitemoe" {
        return Err(k.unsupported("rope.scaling.finetuned", "false, which means no RoPE in this architecture"));
    }
    let vector = |name: &str| tensors.factors.get(name).map(|values| json!(values.iter().map(shortest).collect::<Vec<f64>>()));
    if let Some(name) = FACTORS.iter().find(|name| tensors.shapes.contains_key(**name) && !tensors.factors.contains_key(**name)) {
        return Err(Error::config("rope_scaling", format!("the values of tensor `{name}` were not given")));
    }
    let context = k.config("max_position_embeddings");
    let (scaling, source) = match (kind.as_str(), vector(FACTORS[0]), vector(FACTORS[1]), vector(FACTORS[2])) {
        (_, None, Some(short), Some(long)) => {
            let original = original.map_or(context, |n| json!(n));
            k.set_from("original_max_position_embeddings", original, "rope.scaling.original_context_length");
            let attention = attention.unwrap_or(json!(1.0));
            let scaling = json!({"rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": attention});
            (scaling, "tensors rope_factors_short.weight, rope_factors_long.weight; rope.scaling.attn_factor".to_owned())
        }
        ("none", Some(divisors), None, None) => {
            let scaling = json!({"rope_type": "longrope", "short_factor": divisors, "long_factor": divisors,
                "attention_factor": 1.0, "original_max_position_embeddings": context});
            (scaling, "tensor rope_freqs.weight: a divisor for each frequency, at every length".to_owned())
        }
        (_, None, None, None) => match (kind.as_str(), factor.or(old)) {
            ("none", _) | ("linear", None) => {
                if family.name == "phi3" {
                    let original = original.map_or(context, |n| json!(n));
                    k.set_from("original_max_position_embeddings", original, "rope.scaling.original_context_length");
                }
                return Ok(());
            }
            ("linear", Some(factor)) => (json!({"rope_type": "linear", "factor": factor}), k.path("rope.scaling.factor")),
            ("yarn", Some(factor)) if attention.as_ref().and_then(Value::as_f64).unwrap_or(1.0) == 1.0 => {
                let original = original.ok_or_else(|| k.wrong("rope.scaling.original_context_length", "is missing, and YaRN needs it"))?;
                (yarn(k, &factor, original)?, k.path("rope.scaling.factor"))
            }
            ("longrope", _) => {
                let message = format!("is longrope, whose factors are missing: the file has no tensors {}, {}", FACTORS[1], FACTORS[2]);
                return Err(k.wrong("rope.scaling.type", message));
            }
            (other, _) => return Err(k.unsupported("rope.scaling.type", format!("{other:.40?} with these factors is not supported"))),
        },
        (other, ..) => {
            let message =
                format!("{other:.40?} with tensors of RoPE factors is not supported; expected rope_freqs alone, or both rope_factors");
            return Err(k.unsupported("rope.scaling.type", message));
        }
    };
    k.set("rope_scaling", scaling, &source);
    Ok(())
}

/// YaRN: the numbers that have defaults are those of config.json where the file has them.
fn yarn(k: &mut Keys, factor: &Value, original: u64) -> Result<Value> {
    let mut scaling = json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original});
    for (key, name) in YARN {
        if let Some(value) = k.number(&format!("rope.scaling.{key}"))? {
            scaling[name] = value;
        }
    }
    // How much of the interpolation is done; a negative number stands for all of it.
    const PART: &str = "rope.scaling.yarn_ext_factor";
    match k.number(PART)?.and_then(|value| value.as_f64()) {
        Some(part) if part >= 0.0 && part != 1.0 => Err(k.unsupported(PART, format!("{part} is not supported, only 1"))),
        _ => Ok(scaling),
    }
}

/// The part of `whole` that floor(whole × part) makes `part` again.
fn part(rotated: u64, whole: u64) -> f64 {
    let factor = rotated as f64 / whole as f64;
    if (factor * whole as f64).floor() < rotated as f64 { factor.next_up() } else { factor }
}

/// The shortest decimal number that stands for an f32.
fn shortest(x: &f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(*x))
}

/// BOS, EOS and PAD, where the file states ids below the table's rows.
fn token_ids(k: &mut Keys, rows: usize) -> Result<()> {
    for (key, name) in [("bos", "bos"), ("eos", "eos"), ("padding", "pad")] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        if let Some(id) = k.whole(&key)?.filter(|id| *id < rows as u64) {
            k.set(&format!("{name}_token_id"), json!(id), &key);
        }
    }
    Ok(())
}
