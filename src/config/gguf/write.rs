//! From a model's numbers to the metadata of a GGUF file that stand for them: the inverse of [`super::gguf_config`]. Whether
//! they do stand for them, the caller finds out by reading them back: what a file cannot say is seen there.

use serde_json::{Map, Value, json};

use super::families::{FAMILIES, Family};
use super::{ACTIVATION, COUNTS, FACTORS, YARN};
use crate::error::{Error, Result};
use crate::model::{Activation, LayerConfig, Mixer, ModelConfig, RopeScaling};

/// A model as a GGUF file describes it, without its words.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufModel {
    /// Metadata of the architecture. Whole numbers, numbers with a point, texts and flags are of these types in the file.
    pub metadata: Map<String, Value>,
    /// Rows of q and k are neighbouring pairs.
    pub neighbouring_pairs: bool,
    /// Value heads of delta rules are not by key head.
    pub tiled_values: bool,
    /// Norm weights have the added 1 in them.
    pub norms_hold_offset: bool,
    /// Tensors that are shared by roles in the file.
    pub fused: &'static [&'static str],
    /// Tensors that have another name than in other architectures.
    pub other_names: &'static [&'static str],
    /// Where llama.cpp would compute something else, a sentence each.
    pub notes: Vec<String>,
    /// Tensors of RoPE factors by name. `rope_freqs.weight` is empty: its divisors come from the frequencies.
    pub factors: Vec<(&'static str, Vec<f32>)>,
}

/// Presets whose architecture in GGUF has another name.
const OTHER_NAMES: [(&str, &str); 16] = [
    ("cohere", "command-r"),
    ("gpt_neox", "gptneox"),
    ("gpt_oss", "gpt-oss"),
    ("granitemoehybrid", "granite"),
    ("hunyuan_v1_dense", "hunyuan-dense"),
    ("lfm2_moe", "lfm2moe"),
    ("ministral3", "mistral3"),
    ("mistral", "llama"),
    ("mixtral", "llama"),
    ("olmo3", "olmo2"),
    ("phi", "phi2"),
    ("qwen2_moe", "qwen2moe"),
    ("qwen3_5", "qwen35"),
    ("qwen3_5_moe", "qwen35moe"),
    ("qwen3_moe", "qwen3moe"),
    ("qwen3_next", "qwen3next"),
];

/// The metadata of the model that `config` describes.
///
/// # Errors
/// `Kind::Unsupported` for a family without an architecture in GGUF that Doppler knows.
pub fn gguf_model(config: &ModelConfig) -> Result<GgufModel> {
    let name = OTHER_NAMES.iter().find(|(preset, _)| *preset == config.preset).map_or(config.preset.as_str(), |(_, name)| name);
    let Some(family) = FAMILIES.iter().find(|family| family.name == name) else {
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        let message = format!("no GGUF architecture is known for models of the family {name} (known: {})", known.join(", "));
        return Err(Error::unsupported(message));
    };
    let mut out = Writer { name, metadata: Map::new(), notes: Vec::new() };
    out.metadata.insert("general.architecture".into(), name.into());
    for (key, _, of) in COUNTS {
        out.set(key, of(config));
    }
    // What the first layer has stands for all; where it does not, reading back finds out.
    if let Some(attention) = config.attentions().next() {
        let counts = config.layers.iter().map(|layer| layer.attention().map_or(0, |attention| attention.num_kv_heads));
        let counts: Vec<usize> = counts.collect();
        if counts.contains(&0) && config.layers.iter().any(|layer| matches!(layer.mixer, Mixer::ShortConv(_))) {
            out.set("attention.head_count_kv", json!(counts));
        } else {
            out.set("attention.head_count_kv", attention.num_kv_heads);
        }
        out.set("attention.key_length", attention.head_dim);
        out.set("attention.value_length", attention.head_dim);
    }
    out.set(family.eps[0], config.norm.eps());
    out.set("vocab_size", config.vocab_size);
    let expected = family.activation.1;
    let stated = config.activations().find(|activation| *activation != expected);
    if let (Some(Activation::GeluTanh), "gptneox") = (stated, name) {
        // No reader but this one looks: all others take it for granted.
        out.set(ACTIVATION, "gelu_pytorch_tanh");
    } else if let Some(other) = stated {
        let message = format!("a GGUF file of {name} means {expected:?} as its activation, the model has {other:?}");
        return Err(Error::unsupported(message));
    }
    let factors = out.rope(config);
    out.further(family, config);
    Ok(GgufModel {
        metadata: out.metadata,
        neighbouring_pairs: family.neighbouring,
        tiled_values: family.tiled,
        norms_hold_offset: family.gemma,
        fused: match family.name {
            "phi3" => &["blk.{layer}.attn_qkv", "blk.{layer}.ffn_up"],
            "gemma4" => &["blk.{layer}.ffn_gate_up_exps"],
            "gptneox" => &["blk.{layer}.attn_qkv"],
            "glm4" => &["blk.{layer}.ffn_up"],
            _ => &[],
        },
        other_names: match family.name {
            "lfm2" | "lfm2moe" => &["token_embd_norm.weight"],
            "gpt-oss" | "seed_oss" => &["blk.0.post_attention_norm.weight"],
            "qwen35" | "qwen35moe" => &["blk.0.post_attention_norm.weight", "blk.0.ssm_conv1d.weight"],
            "qwen3next" => &["blk.0.post_attention_norm.weight", "blk.0.ssm_conv1d.weight", "blk.0.ssm_ba.weight"],
            _ => &[],
        },
        notes: out.notes,
        factors,
    })
}

struct Writer<'a> {
    name: &'a str,
    metadata: Map<String, Value>,
    notes: Vec<String>,
}

impl Writer<'_> {
    /// Gives the architecture's `key` a value.
    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.insert(format!("{}.{key}", self.name), value.into());
    }
    fn rope(&mut self, config: &ModelConfig) -> Vec<(&'static str, Vec<f32>)> {
        // Of two, the first is that of the layers without a window, which alone are scaled.
        let Some(rope) = config.ropes.first() else { return Vec::new() };
        self.set("rope.freq_base", rope.theta);
        self.set("rope.dimension_count", rope.rotary_dim);
        if let Some(local) = config.ropes.get(1).filter(|rope| rope.growth.is_none()) {
            self.set("rope.freq_base_swa", local.theta);
        }
        let mut scaled = |kind: &str, factor: f64| {
            self.set("rope.scaling.type", kind);
            self.set("rope.scaling.factor", factor);
        };
        match &rope.scaling {
            RopeScaling::None => Vec::new(),
            // A stretch has no word, which is found when the file is read back.
            RopeScaling::Proportional { rotated, .. } => {
                let divisor = |pair| if pair < *rotated { 1.0 } else { 1e30 };
                vec![(FACTORS[0], (0..rope.rotary_dim / 2).map(divisor).collect())]
            }
            RopeScaling::Linear { factor } => {
                scaled("linear", *factor);
                Vec::new()
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, .. } => {
                scaled("yarn", *factor);
                self.set("rope.scaling.original_context_length", *original_max_positions);
                let grown = if *factor > 1.0 { 0.1 * libm::log(*factor) + 1.0 } else { 1.0 };
                let mut usual = [32.0, 1.0, grown];
                if self.name == "mistral3" && grown > 1.0 && *attention_factor != grown {
                    // The m of grown / (0.1 m ln(factor) + 1).
                    self.set("rope.scaling.yarn_log_multiplier", (grown / attention_factor - 1.0) / (grown - 1.0));
                    usual[2] = *attention_factor;
                }
                for (((key, _), value), usual) in YARN.iter().zip([beta_fast, beta_slow, attention_factor]).zip(usual) {
                    if *value != usual {
                        self.set(&format!("rope.scaling.{key}"), *value);
                    }
                }
                Vec::new()
            }
            RopeScaling::Llama3 { .. } => vec![(FACTORS[0], Vec::new())],
            RopeScaling::LongRope { short_factor, long_factor, original_max_positions, attention_factor } => {
                let list = |list: &[f64]| list.iter().map(|x| *x as f32).collect::<Vec<f32>>();
                if short_factor == long_factor && *attention_factor == 1.0 && self.name != "phi3" {
                    return vec![(FACTORS[0], list(short_factor))];
                }
                self.set("rope.scaling.original_context_length", *original_max_positions);
                self.set("rope.scaling.attn_factor", *attention_factor);
                vec![(FACTORS[1], list(short_factor)), (FACTORS[2], list(long_factor))]
            }
        }
    }
    /// What single architectures state.
    fn further(&mut self, family: &Family, config: &ModelConfig) {
        let windows: Vec<bool> = config.layers.iter().map(|layer| layer.window().is_some()).collect();
        let window = config.layers.iter().find_map(LayerConfig::window);
        let attention = config.attentions().next();
        if let Some(experts) = config.experts().next() {
            self.set("expert_count", experts.router.experts);
            self.set("expert_used_count", experts.router.chosen);
            if matches!(family.name, "gpt-oss" | "gemma4" | "lfm2moe" | "qwen2moe" | "qwen3moe" | "qwen35moe" | "qwen3next") {
                self.set("expert_feed_forward_length", experts.intermediate_size);
            }
            if let Some(shared) = &experts.shared {
                self.set("expert_shared_feed_forward_length", shared.intermediate_size);
            }
        }
        match family.name {
            "granite" | "granitemoe" => {
                self.set("embedding_scale", config.embedding_scale);
                self.set("residual_scale", config.residual_multiplier);
                self.set("logit_scale", config.logits_scaling);
                if let Some(attention) = attention {
                    self.set("attention.scale", attention.scale);
                }
                if config.attentions().all(|attention| attention.rope.is_none()) {
                    self.set("rope.scaling.finetuned", false);
                }
            }
            "exaone4" => {
                if let Some(window) = window {
                    self.set("attention.sliding_window", window);
                    self.set("attention.sliding_window_pattern", json!(windows));
                    let layers = windows.len();
                    if layers != 64 {
                        let computes = "computes windows, and layers without RoPE, of this architecture only where it has 64 layers";
                        let these =
                            format!("this model has {layers}, of which {} have a window", windows.iter().filter(|has| **has).count());
                        self.notes.push(format!("llama.cpp {computes}: {these}; Doppler reads them from the file"));
                    }
                }
            }
            "mistral3" => {
                if let Some(growth) = config.ropes.iter().find_map(|rope| rope.growth.as_ref()) {
                    self.set("attention.temperature_scale", growth.beta);
                }
            }
            "phi3" => self.set("attention.sliding_window", window.unwrap_or(0)),
            "command-r" | "cohere2" => {
                self.set("logit_scale", 1.0 / config.logits_scaling);
                if let Some(window) = window {
                    self.set("attention.sliding_window", window);
                }
            }
            "qwen35" | "qwen35moe" | "qwen3next" => self.deltas(config),
            "gemma4" => self.by_layer(config),
            "gptneox" => self.set("use_parallel_residual", config.layers.first().is_some_and(|layer| layer.parallel)),
            "lfm2" | "lfm2moe" => {
                if family.name == "lfm2moe" {
                    let dense = config.layers.iter().take_while(|layer| layer.experts().is_none()).count();
                    self.set("leading_dense_block_count", dense);
                    // A sigmoid. Another score is found when the file is read back.
                    self.set("expert_gating_func", 2);
                }
                let taps = config.layers.iter().find_map(|layer| match &layer.mixer {
                    Mixer::ShortConv(conv) => Some(conv.taps),
                    Mixer::Attention(_) | Mixer::GatedDelta(_) => None,
                });
                // Without a convolution the number means nothing, but readers want it.
                self.set("shortconv.l_cache", taps.unwrap_or(3));
            }
            "gpt-oss" => {
                if let Some(window) = window {
                    self.set("attention.sliding_window", window);
                }
                if let Some(RopeScaling::Yarn { truncate, .. }) = config.ropes.first().map(|rope| &rope.scaling) {
                    self.set("rope.scaling.yarn_truncate", *truncate);
                }
            }
            "olmo2" => {
                if let Some(window) = window {
                    self.set("attention.sliding_window", window);
                    self.set("attention.sliding_window_pattern", json!(windows));
                }
            }
            "gemma2" | "gemma3" => {
                let period = if family.name == "gemma2" { 2 } else { 6 };
                let conventional = windows.iter().enumerate().all(|(i, windowed)| *windowed == ((i + 1) % period != 0));
                if let Some(window) = window {
                    self.set("attention.sliding_window", window);
                }
                if !conventional && (window.is_some() || family.name == "gemma2") {
                    self.set("attention.sliding_window_pattern", json!(windows));
                }
                let of_scores = attention.and_then(|attention| attention.softcap);
                for (key, cap) in [("attn_logit_softcapping", of_scores), ("final_logit_softcapping", config.final_logit_softcapping)] {
                    if let Some(cap) = cap {
                        self.set(key, cap);
                    }
                }
            }
            _ => {}
        }
    }
    /// Heads, widths and RoPE where layers differ.
    fn by_layer(&mut self, config: &ModelConfig) {
        let windowed: Vec<bool> = config.layers.iter().map(|layer| layer.window().is_some()).collect();
        if let Some(window) = config.layers.iter().find_map(LayerConfig::window) {
            self.set("attention.sliding_window", window);
        }
        self.set("attention.sliding_window_pattern", json!(windowed));
        for (windowed, end) in [(false, ""), (true, "_swa")] {
            if let Some(layer) = config.layers.iter().find(|layer| layer.window().is_some() == windowed)
                && let Some(attention) = layer.attention()
            {
                self.set(&format!("attention.key_length{end}"), attention.head_dim);
                self.set(&format!("attention.value_length{end}"), attention.head_dim);
                if let Some(rope) = attention.rope.and_then(|rope| config.ropes.get(rope)) {
                    self.set(&format!("rope.dimension_count{end}"), rope.rotary_dim);
                    self.set(&format!("rope.freq_base{end}"), rope.theta);
                }
            }
        }
        // One number where all layers have the same.
        let mut list = |key: &str, counts: Vec<usize>| match counts.first() {
            Some(first) if counts.iter().all(|count| count == first) => self.set(key, *first),
            _ => self.set(key, json!(counts)),
        };
        list("attention.head_count_kv", config.attentions().map(|attention| attention.num_kv_heads).collect());
        list("feed_forward_length", config.denses().map(|dense| dense.intermediate_size).collect());
        self.set("attention.shared_kv_layers", config.attentions().filter(|attention| attention.shared_kv.is_some()).count());
        self.set("embedding_length_per_layer_input", config.layer_inputs.as_ref().map_or(0, |inputs| inputs.width));
        if let Some(cap) = config.final_logit_softcapping {
            self.set("final_logit_softcapping", cap);
        }
    }
    /// Delta rules, and which layers have them.
    fn deltas(&mut self, config: &ModelConfig) {
        let recurrent: Vec<bool> = config.layers.iter().map(|layer| layer.delta_rule().is_some()).collect();
        if let Some(rule) = config.layers.iter().find_map(LayerConfig::delta_rule) {
            self.set("ssm.conv_kernel", rule.taps);
            self.set("ssm.group_count", rule.heads.keys);
            self.set("ssm.state_size", rule.heads.key_dim);
            self.set("ssm.time_step_rank", rule.heads.values);
            self.set("ssm.inner_size", rule.heads.value_width());
            if rule.heads.key_dim != rule.heads.value_dim {
                self.notes.push("llama.cpp reads no file of this architecture whose keys and values of delta rules differ in width".into());
            }
        }
        // Older readers know the period alone.
        let period = recurrent.iter().position(|recurrent| !recurrent).unwrap_or(recurrent.len()) + 1;
        if recurrent.iter().enumerate().all(|(i, recurrent)| *recurrent != (i + 1).is_multiple_of(period)) {
            self.set("full_attention_interval", period);
        }
        self.set("attention.recurrent_layers", json!(recurrent));
        if let Some(rope) = config.ropes.first().filter(|_| self.name != "qwen3next") {
            // How many frequencies turn with each axis of a position. In a text all are alike; for images those of the published models.
            let frequencies = rope.rotary_dim / 2;
            let sections = if frequencies == 32 { [11, 11, 10, 0] } else { [frequencies, 0, 0, 0] };
            self.set("rope.dimension_sections", json!(sections));
        }
    }
}
