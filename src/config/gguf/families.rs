//! The architectures of GGUF, each with its transformers class and what it has beyond those that all share.

use super::Tensors;
use super::deltas::{qwen3next, qwen35, qwen35moe};
use super::experts::{divided, experts};
use super::gemma4::gemma4;
use super::keys::Keys;
use super::windows::{scalar, windows};
use crate::error::{Error, Result};
use crate::model::Activation;
use serde_json::{Value, json};

/// An architecture of GGUF with its transformers class.
pub(super) struct Family {
    pub name: &'static str,
    pub class: &'static str,
    pub model_type: &'static str,
    /// Rows of q and k are in the order of neighbouring pairs.
    pub neighbouring: bool,
    /// Norms hold the added 1.
    pub gemma: bool,
    /// Value heads of delta rules are not by key head.
    pub tiled: bool,
    /// The key of the norms' epsilon, and that of config.json.
    pub eps: [&'static str; 2],
    /// The key of config.json for the activation, where its class reads one, and what all files of the architecture mean.
    pub activation: (Option<&'static str>, Activation),
    /// A part of each head may be rotated.
    pub partial: bool,
    /// Heads, widths and RoPE differ between layers: `further` reads them.
    pub by_layer: bool,
    /// Metadata beyond those of all architectures that are read.
    pub further: fn(&mut Keys, &Tensors) -> Result<()>,
}

const fn family(name: &'static str, class: &'static str, further: fn(&mut Keys, &Tensors) -> Result<()>) -> Family {
    let eps = ["attention.layer_norm_rms_epsilon", "rms_norm_eps"];
    let activation = (Some("hidden_act"), Activation::Silu);
    Family {
        name,
        class,
        model_type: name,
        neighbouring: false,
        gemma: false,
        tiled: false,
        eps,
        activation,
        partial: false,
        by_layer: false,
        further,
    }
}

/// As `family`, with layer norms whose epsilon is `eps` in config.json.
const fn layer_normed(
    name: &'static str,
    class: &'static str,
    eps: &'static str,
    further: fn(&mut Keys, &Tensors) -> Result<()>,
) -> Family {
    Family { eps: ["attention.layer_norm_epsilon", eps], ..family(name, class, further) }
}

/// GELU by its tanh approximation, under a key.
const fn gelu(key: &'static str) -> (Option<&'static str>, Activation) {
    (Some(key), Activation::GeluTanh)
}

/// The numbers with which gate and up are cut off in the one architecture that does so.
const CLAMPED: Activation = Activation::Clamped { alpha: 1.702, limit: 7.0 };

pub(super) const FAMILIES: [Family; 31] = [
    Family { model_type: "cohere", ..layer_normed("command-r", "CohereForCausalLM", "layer_norm_eps", command_r) },
    layer_normed("cohere2", "Cohere2ForCausalLM", "layer_norm_eps", cohere2),
    family("exaone4", "Exaone4ForCausalLM", exaone4),
    Family { gemma: true, activation: gelu("hidden_act"), ..family("gemma", "GemmaForCausalLM", gemma) },
    Family { gemma: true, activation: gelu("hidden_activation"), ..family("gemma2", "Gemma2ForCausalLM", gemma2) },
    Family {
        gemma: true,
        activation: gelu("hidden_activation"),
        model_type: "gemma3_text",
        ..family("gemma3", "Gemma3ForCausalLM", gemma3)
    },
    Family {
        activation: gelu("hidden_activation"),
        model_type: "gemma4_text",
        by_layer: true,
        ..family("gemma4", "Gemma4ForCausalLM", gemma4)
    },
    Family { partial: true, ..family("glm4", "Glm4ForCausalLM", glm4) },
    Family { model_type: "gpt_oss", activation: (None, CLAMPED), ..family("gpt-oss", "GptOssForCausalLM", gpt_oss) },
    Family {
        model_type: "gpt_neox",
        activation: (Some("hidden_act"), Activation::Gelu),
        partial: true,
        ..layer_normed("gptneox", "GPTNeoXForCausalLM", "layer_norm_eps", gptneox)
    },
    Family { neighbouring: true, ..family("granite", "GraniteForCausalLM", granite) },
    Family { neighbouring: true, ..family("granitemoe", "GraniteMoeForCausalLM", granitemoe) },
    Family { model_type: "hunyuan_v1_dense", ..family("hunyuan-dense", "HunYuanDenseV1ForCausalLM", hunyuan) },
    Family {
        eps: ["attention.layer_norm_rms_epsilon", "norm_eps"],
        activation: (None, Activation::Silu),
        ..family("lfm2", "Lfm2ForCausalLM", lfm2)
    },
    Family {
        eps: ["attention.layer_norm_rms_epsilon", "norm_eps"],
        activation: (None, Activation::Silu),
        model_type: "lfm2_moe",
        ..family("lfm2moe", "Lfm2MoeForCausalLM", lfm2moe)
    },
    Family { neighbouring: true, ..family("llama", "LlamaForCausalLM", llama) },
    Family { neighbouring: true, model_type: "ministral3", ..family("mistral3", "Ministral3ForCausalLM", mistral3) },
    family("olmo2", "Olmo2ForCausalLM", olmo2),
    family("olmoe", "OlmoeForCausalLM", olmoe),
    Family {
        model_type: "phi",
        activation: gelu("hidden_act"),
        partial: true,
        ..layer_normed("phi2", "PhiForCausalLM", "layer_norm_eps", phi2)
    },
    Family { partial: true, ..family("phi3", "Phi3ForCausalLM", phi3) },
    family("qwen2", "Qwen2ForCausalLM", qwen2),
    Family { model_type: "qwen2_moe", ..family("qwen2moe", "Qwen2MoeForCausalLM", qwen2moe) },
    family("qwen3", "Qwen3ForCausalLM", qwen3),
    Family { gemma: true, tiled: true, partial: true, model_type: "qwen3_5_text", ..family("qwen35", "Qwen3_5ForCausalLM", qwen35) },
    Family {
        gemma: true,
        tiled: true,
        partial: true,
        model_type: "qwen3_5_moe_text",
        ..family("qwen35moe", "Qwen3_5MoeForCausalLM", qwen35moe)
    },
    Family { model_type: "qwen3_moe", ..family("qwen3moe", "Qwen3MoeForCausalLM", qwen3moe) },
    Family { gemma: true, partial: true, model_type: "qwen3_next", ..family("qwen3next", "Qwen3NextForCausalLM", qwen3next) },
    family("seed_oss", "SeedOssForCausalLM", seed_oss),
    Family { neighbouring: true, ..family("smollm3", "SmolLM3ForCausalLM", smollm3) },
    Family { activation: gelu("hidden_act"), ..layer_normed("starcoder2", "Starcoder2ForCausalLM", "norm_epsilon", starcoder2) },
];

/// `attention_bias` and, where the class has it, `mlp_bias`, by the tensors of the first layer.
pub(super) fn biases(k: &mut Keys, tensors: &Tensors, of_mlp: bool) -> Result<()> {
    // The first layer need not have attention.
    let first = (0..64).find(|layer| tensors.shapes.contains_key(&format!("blk.{layer}.attn_k.weight"))).unwrap_or(0);
    let has = |name: &str| tensors.shapes.contains_key(&format!("blk.{first}.{name}.bias"));
    let attention = ["attn_q", "attn_k", "attn_v"].map(|name| has(name) || has("attn_qkv"));
    let attention = [attention[0], attention[1], attention[2], has("attn_output")];
    if attention.contains(&true) && attention.contains(&false) {
        return Err(Error::unsupported(format!("tensors `blk.{first}.attn_….bias`: only some of q, k, v and output have a bias")));
    }
    let queries = if has("attn_qkv") { "attn_qkv" } else { "attn_q" };
    k.set("attention_bias", json!(attention.contains(&true)), &format!("tensor blk.{first}.{queries}.bias, present or not"));
    if of_mlp {
        k.set("mlp_bias", json!(has("ffn_gate")), "tensor blk.0.ffn_gate.bias, present or not");
    }
    Ok(())
}

fn llama(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    if k.optional_count("expert_count")?.is_none_or(|count| count == 0) {
        return biases(k, tensors, true);
    }
    k.set_from("architectures", json!(["MixtralForCausalLM"]), "expert_count");
    k.set_from("model_type", json!("mixtral"), "expert_count");
    experts(k, "num_local_experts", Some(true))
}

fn qwen2moe(k: &mut Keys, _: &Tensors) -> Result<()> {
    experts(k, "num_experts", None)?;
    divided(k, false)?;
    k.count("expert_feed_forward_length", "moe_intermediate_size")?;
    k.count("expert_shared_feed_forward_length", "shared_expert_intermediate_size")?;
    Ok(())
}

fn qwen3moe(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    experts(k, "num_experts", None)?;
    divided(k, true)?;
    k.count("expert_feed_forward_length", "moe_intermediate_size")?;
    biases(k, tensors, false)
}

fn olmoe(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    experts(k, "num_experts", None)?;
    divided(k, false)?;
    biases(k, tensors, false)
}

fn granitemoe(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    no_states(k);
    experts(k, "num_local_experts", Some(true))?;
    multipliers(k)?;
    biases(k, tensors, false)
}

fn gpt_oss(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    experts(k, "num_local_experts", Some(true))?;
    k.count("expert_feed_forward_length", "intermediate_size")?;
    if let Activation::Clamped { alpha, limit } = CLAMPED {
        const FIXED: &str = "GGUF convention: the number of the architecture";
        k.set("swiglu_alpha", json!(alpha), FIXED);
        k.set("swiglu_limit", json!(limit), FIXED);
    }
    const TRUNCATE: &str = "rope.scaling.yarn_truncate";
    let stated = k.flag(TRUNCATE)?;
    match k.config("rope_scaling") {
        Value::Object(mut scaling) => {
            scaling.insert("truncate".into(), json!(stated.unwrap_or(false)));
            k.set_from("rope_scaling", Value::Object(scaling), "rope.scaling.type");
        }
        _ => k.set("rope_scaling", json!({"rope_type": "default"}), "GGUF convention: no scaling where rope.scaling.type is absent"),
    }
    windows(k, 2, None)?;
    biases(k, tensors, false)
}

fn qwen2(_: &mut Keys, _: &Tensors) -> Result<()> {
    Ok(())
}

fn qwen3(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    biases(k, tensors, false)
}

fn olmo2(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    if k.optional_count("attention.sliding_window")?.is_some_and(|window| window > 0) {
        k.set_from("architectures", json!(["Olmo3ForCausalLM"]), "attention.sliding_window");
        k.set_from("model_type", json!("olmo3"), "attention.sliding_window");
        windows(k, 4, None)?;
        // The class has one base at the top level, and any two in an object for each kind of layer.
        let theta = k.take("rope_theta").unwrap_or(json!(10000.0));
        let local = k.number("rope.freq_base_swa")?.unwrap_or(theta.clone());
        let mut full = match k.take("rope_scaling") {
            Some(Value::Object(scaling)) => scaling,
            _ => json!({"rope_type": "default"}).as_object().cloned().unwrap_or_default(),
        };
        full.insert("rope_theta".into(), theta);
        let both = json!({"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": local}});
        k.set_from("rope_parameters", both, "rope.freq_base");
    }
    biases(k, tensors, false)
}

fn exaone4(k: &mut Keys, _: &Tensors) -> Result<()> {
    let deep = k.config("num_hidden_layers") == json!(64);
    windows(k, 4, deep.then_some(4096))?;
    if k.config("sliding_window").is_null() {
        k.set("sliding_window", Value::Null, "GGUF convention: no window where attention.sliding_window is absent");
    }
    Ok(())
}

fn glm4(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    bias(k, tensors, "attention_bias", &["attn_q", "attn_qkv"]);
    Ok(())
}

fn hunyuan(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    biases(k, tensors, false)
}

fn mistral3(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    const GROWTH: &str = "attention.temperature_scale";
    const LOG: &str = "rope.scaling.yarn_log_multiplier";
    let (growth, log) = (k.number(GROWTH)?.filter(|beta| beta.as_f64() != Some(0.0)), k.number(LOG)?);
    let Some(growth) = growth else {
        k.set("architectures", json!(["LlamaForCausalLM"]), "GGUF convention: Mistral where attention.temperature_scale is absent");
        k.set("model_type", json!("llama"), "GGUF convention: Mistral where attention.temperature_scale is absent");
        if log.is_some() {
            return Err(k.unsupported(LOG, "without attention.temperature_scale it is not supported"));
        }
        return llama(k, tensors);
    };
    let Value::Object(mut scaling) = k.config("rope_scaling") else {
        return Err(k.wrong("rope.scaling.type", "expected yarn, by whose length queries grow"));
    };
    scaling.insert("llama_4_scaling_beta".into(), growth);
    if let Some(log) = log.filter(|log| log.as_f64() != Some(0.0)) {
        scaling.insert("mscale".into(), json!(1.0));
        scaling.insert("mscale_all_dim".into(), log);
    }
    k.set_from("rope_scaling", Value::Object(scaling), "rope.scaling.type");
    k.set("sliding_window", Value::Null, "GGUF convention: no window");
    Ok(())
}

fn seed_oss(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    bias(k, tensors, "attention_bias", &["attn_q", "attn_qkv"]);
    bias(k, tensors, "attention_out_bias", &["attn_output"]);
    bias(k, tensors, "mlp_bias", &["ffn_gate"]);
    Ok(())
}

/// A flag of the config by whether the first layer has one of the biases.
fn bias(k: &mut Keys, tensors: &Tensors, key: &str, names: &[&str]) {
    let has = |name: &&str| tensors.shapes.contains_key(&format!("blk.0.{name}.bias"));
    let found = names.iter().find(|name| has(name));
    let source = format!("tensor blk.0.{}.bias, present or not", found.or(names.first()).unwrap_or(&""));
    k.set(key, json!(found.is_some()), &source);
}

fn smollm3(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    k.set("no_rope_layer_interval", json!(4), "GGUF convention: each fourth layer has no RoPE");
    biases(k, tensors, true)
}

fn granite(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    const WIDTH: &str = "expert_shared_feed_forward_length";
    multipliers(k)?;
    no_states(k);
    if let Some(width) = k.optional_count(WIDTH)?.filter(|width| *width > 0) {
        k.set_from("intermediate_size", json!(width), WIDTH);
    }
    const ROPE: &str = "rope.scaling.finetuned";
    if k.flag(ROPE)? != Some(false) {
        return biases(k, tensors, true);
    }
    k.set_from("architectures", json!(["GraniteMoeHybridForCausalLM"]), ROPE);
    k.set_from("model_type", json!("granitemoehybrid"), ROPE);
    k.set_from("position_embedding_type", json!("nope"), ROPE);
    k.set("num_local_experts", json!(0), "GGUF convention: no experts");
    let width = k.config("intermediate_size");
    k.set_from("shared_intermediate_size", width, "feed_forward_length");
    let layers = k.config("num_hidden_layers").as_u64().unwrap_or(0).min(10_000);
    k.set("layer_types", (0..layers).map(|_| "attention").collect(), "GGUF convention: every layer has attention");
    biases(k, tensors, false)
}

/// Files of Granite 4 state the sizes of layers that no layer of these architectures is.
fn no_states(k: &mut Keys) {
    for key in ["conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank"] {
        k.note_read(&format!("ssm.{key}"));
    }
}

/// Granite's factors.
fn multipliers(k: &mut Keys) -> Result<()> {
    const ONE: &str = "GGUF convention: 1 where the key is absent";
    for (key, name) in [("embedding_scale", "embedding_multiplier"), ("residual_scale", "residual_multiplier")] {
        match k.number(key)?.filter(|value| value.as_f64() != Some(0.0)) {
            Some(value) => k.set_from(name, value, key),
            None => k.set(name, json!(1.0), ONE),
        }
    }
    let scale = k.required("logit_scale")?;
    k.set_from("logits_scaling", scale, "logit_scale");
    match k.number("attention.scale")?.filter(|value| value.as_f64() != Some(0.0)) {
        Some(value) => k.set_from("attention_multiplier", value, "attention.scale"),
        None => {
            let dim = k.config("head_dim").as_f64().unwrap_or(1.0);
            k.set("attention_multiplier", json!((1.0 / dim).sqrt()), "GGUF convention: key_length^-1/2 where the key is absent");
        }
    }
    Ok(())
}

/// What command-r and cohere2 share.
fn command(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    let scale = k.required("logit_scale")?;
    k.set_from("logit_scale", scale, "logit_scale");
    biases(k, tensors, false)
}

fn command_r(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    let normed = tensors.shapes.contains_key("blk.0.attn_q_norm.weight");
    k.set("use_qk_norm", json!(normed), "tensor blk.0.attn_q_norm.weight, present or not");
    command(k, tensors)
}

fn cohere2(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    windows(k, 4, None)?;
    command(k, tensors)
}

fn starcoder2(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    const WINDOW: u64 = 4096;
    let biased = tensors.shapes.contains_key("blk.0.ffn_up.bias");
    k.set("use_bias", json!(biased), "tensor blk.0.ffn_up.bias, present or not");
    if k.config("max_position_embeddings").as_u64().is_some_and(|context| context > WINDOW) {
        k.set("sliding_window", json!(WINDOW), "the published models' window: files of the architecture do not say it");
        k.note(format!(
            "the GGUF file does not say the window of its model: it is taken to be {WINDOW}, as in all published ones (llama.cpp has none)"
        ));
    } else {
        k.set("sliding_window", Value::Null, "no context is longer than the published models' window, 4096");
    }
    Ok(())
}

fn gptneox(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    const PARALLEL: &str = "use_parallel_residual";
    let parallel = k.flag(PARALLEL)?.ok_or_else(|| k.wrong(PARALLEL, "is missing"))?;
    k.set_from(PARALLEL, json!(parallel), PARALLEL);
    biases(k, tensors, false)
}

fn phi2(_: &mut Keys, _: &Tensors) -> Result<()> {
    Ok(())
}

fn lfm2(k: &mut Keys, _: &Tensors) -> Result<()> {
    const STATED: &str = "GGUF convention: feed_forward_length is the width itself";
    k.set("block_auto_adjust_ff_dim", json!(false), STATED);
    convolutions(k)
}

fn lfm2moe(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    const DENSE: &str = "leading_dense_block_count";
    let dense = k.optional_count(DENSE)?.unwrap_or(0);
    k.set_from("num_dense_layers", json!(dense), DENSE);
    const SCORES: &str = "expert_gating_func";
    match k.optional_count(SCORES)? {
        Some(2) => {}
        other => return Err(k.unsupported(SCORES, format!("expected 2, a sigmoid, found {}", other.unwrap_or(0)))),
    }
    experts(k, "num_experts", Some(true))?;
    k.set("norm_topk_prob", json!(true), "GGUF convention: weights of experts are divided by their sum");
    k.set("routed_scaling_factor", json!(1.0), "GGUF convention: no factor on weights of experts");
    k.count("expert_feed_forward_length", "moe_intermediate_size")?;
    let bias = format!("blk.{dense}.exp_probs_b.bias");
    k.set("use_expert_bias", json!(tensors.shapes.contains_key(&bias)), &format!("tensor {bias}, present or not"));
    convolutions(k)
}

fn convolutions(k: &mut Keys) -> Result<()> {
    let taps = k.count("shortconv.l_cache", "conv_L_cache")?;
    if taps == 0 {
        return Err(k.wrong("shortconv.l_cache", "should be 1 or more"));
    }
    k.set("conv_bias", json!(false), "GGUF convention: convolutions have no bias");
    Ok(())
}

fn phi3(k: &mut Keys, _: &Tensors) -> Result<()> {
    match k.optional_count("attention.sliding_window")? {
        Some(window) if window > 0 => k.set_from("sliding_window", json!(window), "attention.sliding_window"),
        _ => k.set("sliding_window", Value::Null, "GGUF convention: a window of 0, or none, is off"),
    }
    Ok(())
}

fn gemma(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    biases(k, tensors, false)
}

fn gemma2(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    for (key, default) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
        match k.number(key)? {
            Some(cap) => k.set_from(key, cap, key),
            None => k.set(key, json!(default), "GGUF convention: the family's cap where the key is absent"),
        }
    }
    windows(k, 2, Some(4096))?;
    scalar(k, 46);
    biases(k, tensors, false)
}

fn gemma3(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    match k.number("rope.freq_base_swa")? {
        Some(theta) => k.set_from("rope_local_base_freq", theta, "rope.freq_base_swa"),
        None => k.set("rope_local_base_freq", json!(10000.0), "GGUF convention: the base where rope.freq_base_swa is absent"),
    }
    if let Some(cap) = k.number("final_logit_softcapping")? {
        k.set_from("final_logit_softcapping", cap, "final_logit_softcapping");
    }
    windows(k, 6, None)?;
    scalar(k, 62);
    biases(k, tensors, false)
}
