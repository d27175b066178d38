//! Configs of all families, and as people's folders have them.

use super::*;
use crate::error::Kind;
use crate::model::{QueryKeyNorm, RopeConfig, RopePairing, RopeScaling, ShortConvConfig, WeightRole};
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

/// The attention of the first layer.
fn first(config: &ModelConfig) -> &AttentionConfig {
    config.attentions().next().unwrap()
}

/// The activation of the first layer.
fn activation(config: &ModelConfig) -> Activation {
    config.denses().next().unwrap().activation
}

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(LayerConfig::window).collect()
}

/// The shortest config of an architecture: what its class does not make up for, or what Doppler does not run of its defaults.
fn least(preset: &str, architecture: &str) -> Value {
    let base = json!({"architectures": [architecture]});
    match preset {
        "granitemoehybrid" => with(&base, json!({"num_local_experts": 0, "layer_types": vec!["attention"; 32]})),
        // Without them its class scales.
        "gpt_oss" => with(&base, json!({"rope_parameters": {"rope_type": "default"}})),
        "ministral3" => with(
            &base,
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6,
            "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16384}}),
        ),
        _ => base,
    }
}

#[test]
fn every_field_has_its_line_in_order() {
    for preset in preset::presets() {
        let resolved = resolved(least(preset.name(), preset.architectures()[0].as_str())).unwrap();
        let fields = serde_json::to_value(&resolved.config).unwrap();
        // A model without RoPE has nothing to say of it.
        let shown = |name: &&String| *name != "ropes" || !resolved.config.ropes.is_empty();
        let fields: Vec<String> = fields.as_object().unwrap().keys().filter(shown).cloned().collect();
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
    assert_eq!(source(&resolved, "norm.eps"), Source::ClassDefault);
    assert_eq!(source(&resolved, "layers[].mixer.numKvHeads"), Source::Derived("num_attention_heads".into()));
    assert_eq!(source(&resolved, "layers[].mixer.scale"), Source::Derived("head_dim^-1/2".into()));
    assert_eq!(source(&resolved, "ropes[0].theta"), Source::ClassDefault);
    assert_eq!(source(&resolved, "embeddingScale"), Source::Preset);
    let c = resolved.config;
    let a = first(&c);
    assert_eq!((a.num_kv_heads, a.head_dim, c.norm.eps(), c.tie_word_embeddings), (6, 8, 1e-6, false));
    assert_eq!((c.layers.len(), a.window, a.rope), (3, None, Some(0)));
    assert!(c.layers.iter().all(|layer| *layer == c.layers[0]));
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
}

#[test]
fn rope_numbers_stated_twice_are_read_as_transformers_reads_them() {
    let of = |changes: Value| {
        let found = resolved(with(&llama(), changes)).unwrap();
        (found.config.ropes[0].clone(), found.notes)
    };
    // (changes, theta, factor, what the note says; none where nothing differs)
    let default = |more: Value| json!({"rope_parameters": with(&json!({"rope_type": "default", "rope_theta": 7e3}), more)});
    for (changes, theta, factor, note) in [
        (with(&default(json!({})), json!({"rope_theta": 7e3})), 7e3, None, None),
        (
            with(&default(json!({})), json!({"rope_theta": 5e3})),
            7e3,
            None,
            Some("`rope_parameters.rope_theta` is 7000.0, but `rope_theta` is 5000.0"),
        ),
        (default(json!({"factor": 4.0, "original_max_position_embeddings": 8})), 7e3, None, Some("`rope_parameters.factor`")),
        (default(json!({"max_position_embeddings": 8})), 7e3, None, Some("`rope_parameters.max_position_embeddings`")),
        (default(json!({"partial_rotary_factor": 1.0})), 7e3, None, None),
        (default(json!({"partial_rotary_factor": 0.5})), 7e3, None, Some("rotates whole heads")),
        (json!({"partial_rotary_factor": 0.5}), 1e4, None, Some("rotates whole heads")),
        (json!({"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}}), 1e4, Some(2.0), Some("`type` is dynamic")),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7e3}}),
            1e4,
            Some(4.0),
            Some("`rope_scaling` is used"),
        ),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), 1e4, None, Some("dynamic changes nothing within")),
        (json!({"rope_scaling": false}), 1e4, None, None),
        (json!({"rope_scaling": 0, "rope_parameters": {}}), 1e4, None, None),
    ] {
        let (rope, notes) = of(changes.clone());
        let found = match rope.scaling {
            RopeScaling::Linear { factor } => Some(factor),
            _ => None,
        };
        assert_eq!((rope.theta, rope.rotary_dim, found), (theta, 8, factor), "{changes}");
        assert!(note.is_none_or(|note| notes.iter().any(|n| n.contains(note))), "{changes}: {notes:?}");
        assert_eq!(note.is_none(), notes.is_empty(), "{changes}: {notes:?}");
    }
    let yarn = json!({"original_max_position_embeddings": 128, "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}});
    let (rope, notes) = of(yarn);
    assert!(matches!(rope.scaling, RopeScaling::Yarn { original_max_positions: 128, .. }) && notes.len() == 1, "{notes:?}");
}

#[test]
fn claims_of_packed_weights_are_kept_for_the_weights_to_answer() {
    let of = |value: Value| resolved(with(&llama(), json!({"quantization_config": value}))).unwrap();
    for (value, method) in [
        (json!({"bits": 4, "quant_method": "gptq"}), "4-bit gptq"),
        (json!({"load_in_4bit": true, "quant_method": "bitsandbytes"}), "4-bit bitsandbytes"),
        (json!({"load_in_8bit": true}), "8-bit quantised"),
        (json!({"quant_method": "fp8"}), "fp8"),
    ] {
        let claim = of(value).quantised.unwrap();
        assert_eq!((claim.key.as_str(), claim.method.as_str()), ("quantization_config", method));
    }
    for nothing in [
        json!({}),
        json!({"quant_method": "none"}),
        json!({"quant_method": "bitsandbytes", "load_in_4bit": false, "_load_in_8bit": false, "llm_int8_threshold": 6.0}),
    ] {
        let found = of(nothing);
        assert!(
            found.quantised.is_none() && found.notes[0].contains("`quantization_config` asks for no quantisation"),
            "{:?}",
            found.notes
        );
    }
    assert!(of(json!(null)).notes.is_empty());
    let allowed = with(&llama(), json!({"quantization_config": {"bits": 4}}));
    let allowed = resolve(&allowed.to_string(), None, ResolveOptions { allow_unknown: true }).unwrap();
    assert!(allowed.quantised.is_none() && allowed.ignored_keys == ["quantization_config"]);
}

#[test]
fn what_is_off_and_what_python_writes_is_harmless() {
    let off = json!({"final_logit_softcapping": 0, "use_sliding_window": false, "logit_bias": 0.0, "experts": [], "notes": "",
        "sliding_window": null, "layer_types": null, "num_key_value_heads": null, "head_dim": null});
    assert_eq!(config(with(&llama(), off)), config(llama()));
    for (kind, off) in [
        ("mistral", json!({"head_dim": 0})),
        ("qwen2", json!({"sliding_window": 0})),
        ("qwen3", json!({"sliding_window": null, "use_sliding_window": false})),
        ("smollm3", json!({"sliding_window": 0})),
        ("gemma3_text", json!({"attn_logit_softcapping": 0.0})),
    ] {
        let base = json!({"model_type": kind});
        assert_eq!(config(with(&base, off)), config(base), "{kind}");
    }
    let text = llama().to_string().replacen('{', "\u{feff}{\"initializer_range\": NaN, \"rms_norm_eps\": 1e-5, ", 1);
    assert_eq!(resolve(&text, None, ResolveOptions::default()).unwrap().config.norm.eps(), 1e-5);
    let text = llama().to_string().replacen('{', "{\"rms_norm_eps\": Infinity, ", 1);
    let error = resolve(&text, None, ResolveOptions::default()).unwrap_err();
    assert!(error.message.contains("`rms_norm_eps`") && error.message.contains("Infinity"), "{error}");
}

#[test]
fn rules_of_generation_come_from_their_own_file_or_else_from_the_config() {
    let file = with(&llama(), json!({"eos_token_id": 2, "suppress_tokens": [5], "repetition_penalty": 1.0}));
    let of = |generation: Option<&str>| resolve(&file.to_string(), generation, ResolveOptions::default()).unwrap();
    assert_eq!(of(None).generation.suppress, [5]);
    assert!(of(None).generation_note.unwrap().starts_with("config.json: suppress_tokens [5]"));
    let stated = of(Some(r#"{"min_new_tokens": 3}"#));
    assert_eq!((stated.generation.suppress.len(), stated.generation.min_new_tokens, &stated.generation.eos[..]), (0, 3, &[2][..]));
    assert!(stated.notes.iter().any(|note| note.contains("states no eos_token_id") && note.contains("[2]")), "{:?}", stated.notes);
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
    // Python takes 0 and null for nothing, which of `truncate` is no.
    for off in [json!(0), json!(0.0), json!(null)] {
        for changes in [
            json!({"mscale": off, "mscale_all_dim": 1.0}),
            json!({"mscale": 1.0, "mscale_all_dim": off}),
            json!({"beta_fast": off, "beta_slow": off}),
        ] {
            assert_eq!(yarn(changes.clone()), yarn(json!({})), "{changes}");
        }
        assert_eq!(yarn(json!({"truncate": off})), yarn(json!({"truncate": false})));
    }
    let same = json!({"rope_type": "default", "rope_theta": 10000.0, "hidden_size": 48.0, "num_attention_heads": 6, "head_dim": 8});
    assert_eq!(config(with(&llama(), json!({"rope_parameters": same}))).ropes, config(llama()).ropes);
    let other = json!({"rope_type": "default", "rope_theta": 10000.0, "hidden_size": 49});
    assert!(resolved(with(&llama(), json!({"rope_parameters": other}))).unwrap_err().message.contains("rope_parameters.hidden_size"));

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
    assert_eq!(gemma3.layers.iter().map(LayerConfig::rope).collect::<Vec<_>>(), [Some(1), Some(1), Some(0), Some(1)]);
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
    assert_eq!(smollm3.layers.iter().map(LayerConfig::rope).collect::<Vec<_>>(), [Some(0), None, Some(0), None]);
    let exaone = |changes| small("exaone4", changes);
    assert_eq!(windows(&exaone(json!({"sliding_window_pattern": 3})).unwrap()), [w, w, o, w]);
    let types = json!(["sliding_attention", "full_attention", "sliding_attention", "full_attention"]);
    let lettered = exaone(json!({"sliding_window_pattern": "LG", "layer_types": types})).unwrap();
    assert_eq!(windows(&lettered), [w, o, w, o]);
    assert_eq!(lettered.layers.iter().map(LayerConfig::rope).collect::<Vec<_>>(), [Some(0), None, Some(0), None]);
    let full = json!({"sliding_window": null, "sliding_window_pattern": null, "layer_types": vec!["full_attention"; 4]});
    assert!(exaone(full).unwrap().layers.iter().all(|layer| layer.rope() == Some(0) && layer.window().is_none()));
    let olmo3 = small("olmo3", json!({"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}}));
    let olmo3 = olmo3.unwrap();
    assert_eq!((windows(&olmo3), olmo3.ropes[1].theta), (vec![w, w, w, o], 5e5));
    assert!(matches!(olmo3.ropes[0].scaling, RopeScaling::Yarn { .. }) && olmo3.ropes[1].scaling == RopeScaling::None);
    let every_third = small("smollm3", json!({"no_rope_layer_interval": 3})).unwrap();
    assert_eq!(every_third.layers.iter().map(|l| l.rope().is_some()).collect::<Vec<_>>(), [true, true, false, true]);
    for (kind, changes, key) in [
        ("gemma2", json!({"sliding_window": null}), "sliding_window"),
        ("gemma2", json!({"layer_types": ["full_attention"]}), "layer_types"),
        ("gemma2", json!({"layer_types": ["conv", "conv", "conv", "conv"]}), "layer_types"),
        ("gemma3_text", json!({"sliding_window_pattern": 0}), "sliding_window_pattern"),
        ("exaone4", json!({"sliding_window_pattern": "LLLG"}), "sliding_window_pattern"),
        ("exaone4", json!({"sliding_window_pattern": 0}), "sliding_window_pattern"),
        ("smollm3", json!({"no_rope_layers": [1, 0]}), "no_rope_layers"),
        ("smollm3", json!({"no_rope_layers": [1, 0, 2, 1]}), "no_rope_layers"),
        ("llama", json!({}), "sliding_window"),
    ] {
        let error = small(kind, changes).unwrap_err();
        assert!(error.message.contains(key), "{kind}: {error}");
    }
}

#[test]
fn sinks_and_activations_that_are_cut_off() {
    let base = json!({"model_type": "gpt_oss", "num_hidden_layers": 3, "swiglu_limit": 5.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": false}});
    let found = resolved(base.clone()).unwrap();
    let [experts, ..] = found.config.experts().collect::<Vec<_>>()[..] else { panic!("experts in each layer") };
    assert_eq!(experts.activation, Activation::Clamped { alpha: 1.702, limit: 5.0 });
    assert_eq!(
        source(&found, "layers[].ffn.activation").to_string(),
        "derived: alpha 1.702 (class default), limit 5.0 (config.json swiglu_limit)"
    );
    assert!(experts.bias && experts.router_bias && found.config.attentions().all(|a| a.sinks && a.qkv_bias && a.o_bias));
    assert_eq!(windows(&found.config), [Some(128), None, Some(128)]);
    assert!(matches!(found.config.ropes[..], [RopeConfig { theta: 150000.0, scaling: RopeScaling::Yarn { truncate: false, .. }, .. }]));
    for (change, key) in [(json!({"swiglu_limit": -1.0}), "`swiglu_limit`"), (json!({"rope_scaling": null}), "`rope_parameters`")] {
        let error = resolved(with(&base, change)).unwrap_err();
        assert!(error.message.contains(key), "{error}");
    }
}

#[test]
fn other_norms_blocks_and_mixers() {
    let phi = resolved(json!({"model_type": "phi", "num_hidden_layers": 2})).unwrap();
    assert_eq!(phi.config.norm, Norm::Layer { eps: 1e-5, bias: true });
    assert!(phi.config.head_bias && phi.config.layers.iter().all(|layer| layer.parallel && !layer.norms.before_ffn));
    assert!(phi.config.denses().all(|dense| !dense.gated && dense.bias && dense.activation == Activation::GeluTanh));
    assert_eq!((first(&phi.config).query_key_norm, phi.config.ropes[0].rotary_dim), (QueryKeyNorm::None, 32));
    assert_eq!(source(&phi, "ropes[0].rotaryDim").to_string(), "derived: head_dim * 0.5 (partial_rotary_factor: class default)");
    let normed = config(json!({"model_type": "phi", "num_hidden_layers": 1, "qk_layernorm": true}));
    assert_eq!(first(&normed).query_key_norm, QueryKeyNorm::PerHead);

    let cohere = resolved(json!({"model_type": "cohere", "num_hidden_layers": 1, "logit_scale": 0.25, "use_qk_norm": true})).unwrap();
    assert_eq!((cohere.config.norm, cohere.config.logits_scaling), (Norm::Layer { eps: 1e-5, bias: false }, 4.0));
    assert!(source(&cohere, "logitsScaling").to_string().contains("logit_scale, 0.25"));
    assert_eq!(first(&cohere.config).query_key_norm, QueryKeyNorm::PerHeadOwnWeights);
    assert_eq!((cohere.config.ropes[0].pairing, cohere.config.ropes[0].theta), (RopePairing::Neighbours, 5e5));
    assert!(resolved(json!({"model_type": "cohere", "logit_scale": 0.0})).unwrap_err().message.contains("`logit_scale`"));
    let cohere2 = config(json!({"model_type": "cohere2", "num_hidden_layers": 4, "sliding_window": 7}));
    assert_eq!(windows(&cohere2), [Some(7), Some(7), Some(7), None]);
    assert_eq!(cohere2.layers.iter().map(|layer| layer.rope().is_some()).collect::<Vec<_>>(), [true, true, true, false]);
    let starcoder2 = config(json!({"model_type": "starcoder2", "num_hidden_layers": 2, "sliding_window": 9, "use_bias": false}));
    assert_eq!(windows(&starcoder2), [Some(9); 2]);
    assert!(starcoder2.denses().all(|dense| !dense.gated && !dense.bias) && !first(&starcoder2).o_bias);

    let lfm2 = |changes| resolved(with(&json!({"model_type": "lfm2", "num_hidden_layers": 3}), changes));
    let widths = |changes| lfm2(changes).map(|found| found.config.denses().next().unwrap().intermediate_size);
    let convolves = |found: &Resolved| found.config.layers.iter().map(|layer| layer.attention().is_none()).collect::<Vec<_>>();
    // Two thirds of 12288, which is a multiple of 256; of 1000 it is 666, times 1.5 is 999.
    assert_eq!(widths(json!({})), Ok(8192));
    assert_eq!(widths(json!({"block_ff_dim": 1000, "block_ffn_dim_multiplier": 1.5})), Ok(1024));
    assert_eq!(widths(json!({"block_ff_dim": 1000, "block_ffn_dim_multiplier": null})), Ok(666));
    assert_eq!(widths(json!({"block_ff_dim": 1000, "intermediate_size": 5, "block_auto_adjust_ff_dim": false})), Ok(1000));
    let by_index = lfm2(json!({"full_attn_idxs": [1], "conv_L_cache": 4, "tie_embedding": false})).unwrap();
    assert_eq!(convolves(&by_index), [true, false, true]);
    assert_eq!(by_index.config.layers[0].mixer, Mixer::ShortConv(ShortConvConfig { taps: 4, bias: false }));
    assert!(!by_index.config.tie_word_embeddings);
    assert_eq!(source(&by_index, "tieWordEmbeddings"), Source::Config("tie_embedding".into()));
    let by_type = lfm2(json!({"layer_types": ["conv", "conv", "full_attention"], "full_attn_idxs": [0]})).unwrap();
    assert_eq!(convolves(&by_type), [true, true, false]);
    assert_eq!(convolves(&lfm2(json!({})).unwrap()), [false; 3], "as the class has it");
    for (changes, key) in [
        (json!({"conv_L_cache": 0}), "conv_L_cache"),
        (json!({"layer_types": ["conv"]}), "layer_types"),
        (json!({"layer_types": ["conv", "conv", "sliding_attention"]}), "layer_types"),
        (json!({"block_multiple_of": 0}), "block_multiple_of"),
        (json!({"block_ffn_dim_multiplier": 1e300}), "block_ffn_dim_multiplier"),
        (json!({"block_use_swiglu": false, "conv_kernel": 3}), "conv_kernel"),
    ] {
        let error = lfm2(changes).unwrap_err();
        assert!(error.message.contains(key), "{key}: {error}");
    }
}

#[test]
fn blocks_in_parallel_with_norms_of_their_own() {
    let base = json!({"model_type": "gpt_neox", "num_hidden_layers": 2, "rotary_pct": 0.5, "rotary_emb_base": 500});
    let found = resolved(base.clone()).unwrap();
    assert!(found.config.layers.iter().all(|layer| layer.parallel && layer.norms.before_mixer && layer.norms.before_ffn));
    assert!(found.config.denses().all(|dense| !dense.gated && dense.bias) && first(&found.config).qkv_bias && first(&found.config).o_bias);
    assert_eq!((found.config.norm, activation(&found.config)), (Norm::Layer { eps: 1e-5, bias: true }, Activation::Gelu));
    assert_eq!((found.config.ropes[0].rotary_dim, found.config.ropes[0].theta), (48, 500.0));
    assert_eq!(source(&found, "ropes[0].theta"), Source::Config("rotary_emb_base".into()));
    assert_eq!(source(&found, "ropes[0].rotaryDim").to_string(), "derived: head_dim * 0.5 (partial_rotary_factor: config.json rotary_pct)");
    let (_, key) = found.config.tensors.names.iter().find(|(role, _)| *role == WeightRole::KProj).unwrap();
    assert_eq!((key.fused.len(), key.rows.interleaved), (3, Some(96)));
    // What the object does not state is as the class has it, and what it states counts.
    let newer = config(json!({"model_type": "gpt_neox", "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}));
    assert_eq!((newer.ropes[0].rotary_dim, newer.ropes[0].theta), (24, 7.0));
    let both = resolved(with(&base, json!({"rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 7.0}}))).unwrap();
    assert_eq!((both.config.ropes[0].rotary_dim, both.notes.len()), (24, 2), "{:?}", both.notes);
    let serial = config(with(&base, json!({"use_parallel_residual": false, "attention_bias": false, "hidden_act": "gelu_fast"})));
    assert!(serial.layers.iter().all(|layer| !layer.parallel) && !first(&serial).qkv_bias && !first(&serial).o_bias);
    assert_eq!(activation(&serial), Activation::GeluTanh);
    for (change, key) in [(json!({"use_parallel_residual": 1}), "`use_parallel_residual`"), (json!({"rotary_pct": 2.0}), "`rotary_pct`")] {
        let error = resolved(with(&base, change)).unwrap_err();
        assert!(error.message.contains(key), "{error}");
    }
}

#[test]
fn rotations_of_other_kinds() {
    let alpha = json!({"model_type": "hunyuan_v1_dense", "head_dim": 32, "rope_theta": 1e4,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}});
    let hunyuan = resolved(alpha.clone()).unwrap();
    let theta = hunyuan.config.ropes[0].theta;
    assert!((theta / (1e4 * 1000f64.powf(32.0 / 30.0)) - 1.0).abs() < 1e-12, "{theta}");
    assert!(source(&hunyuan, "ropes[0].theta").to_string().contains("alpha 1000.0"));
    assert_eq!(first(&hunyuan.config).query_key_norm, QueryKeyNorm::PerHeadAfterRope);
    let without = with(&alpha, json!({"rope_scaling": {"alpha": null}}));
    assert!(resolved(without).unwrap_err().message.contains("`rope_scaling.alpha`"));

    let glm4 = config(json!({"model_type": "glm4"}));
    assert_eq!((glm4.ropes[0].pairing, glm4.ropes[0].rotary_dim), (RopePairing::Neighbours, 64));

    let ministral3 = resolved(least("ministral3", "Ministral3ForCausalLM")).unwrap();
    let attention = first(&ministral3.config);
    assert_eq!((attention.rope, attention.query_rope, attention.window), (Some(0), Some(1), None));
    let growth = ministral3.config.ropes[1].growth.clone().unwrap();
    assert_eq!((growth.beta, growth.original_max_positions, &ministral3.config.ropes[0].growth), (0.1, 16384, &None));
    assert_eq!(source(&ministral3, "ropes[1].growth.beta"), Source::Config("rope_parameters.llama_4_scaling_beta".into()));
    assert!(resolved(json!({"model_type": "ministral3"})).unwrap_err().message.contains("llama_4_scaling_beta"));
    let plain = json!({"rope_type": "default", "rope_theta": 1e6, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 4096});
    let plain = resolved(json!({"model_type": "ministral3", "rope_parameters": plain})).unwrap();
    assert!(plain.notes.is_empty() && plain.config.ropes[1].growth.as_ref().is_some_and(|g| g.original_max_positions == 4096));

    let granite = least("granitemoehybrid", "GraniteMoeHybridForCausalLM");
    let without = resolved(granite.clone()).unwrap();
    assert!(without.config.layers.iter().all(|layer| layer.rope().is_none()) && without.config.ropes.is_empty());
    assert!(without.sources.iter().all(|(field, ..)| !field.starts_with("ropes")), "nothing is said of rotations that there are not");
    let rotated = config(with(&granite, json!({"position_embedding_type": "rope"})));
    assert!(rotated.layers.iter().all(|layer| layer.rope() == Some(0)));
    for (changes, key) in [
        (json!({"num_local_experts": 4}), "num_local_experts"),
        (json!({"layer_types": null}), "layer_types"),
        (json!({"num_hidden_layers": 1, "layer_types": ["mamba"]}), "layer_types"),
        (json!({"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}), "layer_types"),
    ] {
        let error = resolved(with(&granite, changes)).unwrap_err();
        assert!(error.message.contains(key), "{key}: {error}");
    }
    let absent = json!({"model_type": "granitemoehybrid", "layer_types": ["attention"], "num_hidden_layers": 1});
    assert!(resolved(absent).unwrap_err().message.contains("8, the class default"));
    let other = json!({"model_type": "olmo3", "rope_theta": 1e4});
    assert!(resolved(other).unwrap_err().message.contains("`rope_theta`"));
}

#[test]
fn scales_and_biases() {
    let gemma2 = config(json!({"model_type": "gemma2", "query_pre_attn_scalar": 144, "hidden_size": 4608}));
    assert_eq!((first(&gemma2).scale, gemma2.embedding_scale), (1.0 / 12.0, 4608f64.sqrt()));
    assert_eq!(activation(&gemma2), Activation::GeluTanh);
    let granite = config(json!({"model_type": "granite", "attention_multiplier": 0.5, "embedding_multiplier": 12,
        "residual_multiplier": 0.22, "logits_scaling": 8.0}));
    let multipliers = (first(&granite).scale, granite.embedding_scale, granite.residual_multiplier);
    assert_eq!((multipliers, granite.logits_scaling), ((0.5, 12.0, 0.22), 8.0));
    let biases = |c: ModelConfig| (first(&c).qkv_bias, first(&c).o_bias, c.denses().all(|dense| dense.bias));
    assert_eq!(biases(config(json!({"model_type": "qwen2"}))), (true, false, false));
    assert_eq!(biases(config(json!({"model_type": "seed_oss"}))), (true, false, false));
    assert_eq!(biases(config(json!({"model_type": "seed_oss", "attention_out_bias": true, "mlp_bias": true}))), (true, true, true));
    assert_eq!(biases(config(with(&llama(), json!({"attention_bias": true})))), (true, true, false));
    let gemma = resolved(json!({"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": null})).unwrap();
    assert_eq!(activation(&gemma.config), Activation::GeluTanh);
    assert!(source(&gemma, "layers[].ffn.activation").to_string().contains("gelu_pytorch_tanh"));
    let exact = config(json!({"model_type": "gemma2", "hidden_activation": "gelu"}));
    assert_eq!(activation(&exact), Activation::Gelu);
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
        (json!({"audio_config": {"layers": 2}}), "audio_config"),
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
    assert_eq!(
        ids(with(&stated, json!({"eos_token_id": [1, -1], "bos_token_id": -2})), None),
        (None, vec![1], None, Source::Config("eos_token_id".into()))
    );
    assert!(ids(with(&stated, json!({"eos_token_id": -1})), None).1.is_empty());
    for bad in [json!("2"), json!(1e30), json!(1.5), json!({})] {
        let error = resolved(with(&stated, json!({"eos_token_id": bad}))).unwrap_err();
        assert!(error.message.contains("`eos_token_id`"), "{error}");
    }
    for broken in ["[]", "{", ""] {
        let found = resolve(&stated.to_string(), Some(broken), ResolveOptions::default()).unwrap();
        assert!(found.notes[0].contains("generation_config.json") && found.config.eos_token_ids == [2], "{:?}", found.notes);
    }
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
        ("num_experts", json!(8)),
        ("lm_head_bias", json!(true)),
    ] {
        let error = resolved(with(&llama(), json!({ key: value }))).unwrap_err();
        assert!(error.message.contains(&format!("`{key}`")), "{key}: {error}");
    }
    let other = json!({"rope_scaling": {"type": "ntk", "factor": 2.0}});
    let error = resolved(with(&llama(), other)).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    assert!(error.message.contains("ntk") && error.message.contains("yarn"), "{error}");
    // Which transformers refuses too.
    assert!(resolved(with(&llama(), json!({"rope_scaling": {"type": "dynamic"}}))).is_err());
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
