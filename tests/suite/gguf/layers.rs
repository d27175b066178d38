//! GGUF files of models whose layers differ: delta rules, heads by layer, keys of earlier layers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config_with;
use crate::convert::{convert, distance, logits, open, scratch};
use doppler::config::{GgufConfig, GgufTensors, ModelConfig, ResolveOptions, gguf_config, resolve};
use doppler::convert::Target;
use doppler::formats::safetensors::{Output, write};
use doppler::formats::{InMemory, gguf};
use doppler::inference::pipeline::build;
use doppler::loader::places;
use doppler::model::{LayerConfig, Mixer, RouterScore};
use doppler::quant::Format;
use doppler::tensor::DType;
use serde_json::{Value, json};

/// What delta rules state.
fn rules() -> Value {
    json!({
        "ssm.conv_kernel": 4, "ssm.group_count": 2, "ssm.state_size": 4, "ssm.time_step_rank": 6, "ssm.inner_size": 48,
        "attention.head_count_kv": 1, "attention.key_length": 4, "attention.value_length": 4, "rope.dimension_count": 2,
        "rope.dimension_sections": [11, 11, 10, 0],
    })
}

fn with(base: &Value, more: &Value) -> Value {
    let mut all = base.as_object().unwrap().clone();
    all.extend(more.as_object().unwrap().clone());
    all.into()
}

fn is_rule(config: &ModelConfig) -> Vec<bool> {
    config.layers.iter().map(|layer| matches!(layer.mixer, Mixer::GatedDelta(_))).collect()
}

#[test]
fn delta_rules_are_read() {
    let config = config_with("qwen35", &["output.weight"], &rules()).unwrap();
    assert_eq!(is_rule(&config), [true, true, true, false]);
    let Mixer::GatedDelta(rule) = &config.layers[0].mixer else { panic!("no rule") };
    assert_eq!((rule.heads.keys, rule.heads.values, rule.heads.key_dim, rule.heads.value_dim), (2, 6, 4, 8));
    assert!(config.attentions().all(|attention| attention.gated) && config.ropes[0].rotary_dim == 2);
    let listed = json!({"attention.recurrent_layers": [true, false, false, true], "full_attention_interval": 4});
    let config = config_with("qwen35", &["blk.1.attn_k.weight"], &with(&rules(), &listed)).unwrap();
    assert_eq!(is_rule(&config), [true, false, false, true]);
    // Biases of the first layer that has attention.
    let biased = ["attn_q", "attn_k", "attn_v", "attn_output"].map(|name| format!("blk.1.{name}.bias"));
    let shapes: Vec<&str> = biased.iter().map(String::as_str).chain(["blk.1.attn_k.weight"]).collect();
    let config = config_with("qwen35", &shapes, &with(&rules(), &listed)).unwrap();
    assert!(config.attentions().all(|attention| attention.qkv_bias && attention.o_bias));

    let refused = |more: &Value, part: &str| {
        let error = config_with("qwen35", &[], &with(&rules(), more)).unwrap_err().message;
        assert!(error.contains(part), "{error}");
    };
    refused(&json!({"ssm.inner_size": 47}), "`qwen35.ssm.inner_size`: 47 is no multiple");
    refused(&json!({"ssm.time_step_rank": 0}), "`qwen35.ssm.inner_size`");
    refused(&json!({"ssm.time_step_rank": 3, "ssm.inner_size": 24}), "no multiple of");
    refused(&json!({"attention.recurrent_layers": [true, false]}), "`qwen35.attention.recurrent_layers`: expected a flag");
    refused(&json!({"full_attention_interval": 0}), "`qwen35.full_attention_interval`");
    refused(&json!({"nextn_predict_layers": 4}), "`qwen35.nextn_predict_layers`: 4 of 4 blocks leave none");
    refused(&json!({"attention.scale": 0.5}), "`qwen35.attention.scale`");
}

/// What a file of `architecture` with these metadata and tensors says.
fn found(architecture: &str, more: &Value, tensors: &[&str], divisors: Option<Vec<f32>>) -> doppler::Result<GgufConfig> {
    let mut metadata = serde_json::Map::from_iter([("general.architecture".to_owned(), architecture.into())]);
    let sizes = json!({
        "embedding_length": 8, "feed_forward_length": 8, "block_count": 4, "context_length": 512, "attention.head_count": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    });
    for (key, value) in with(&sizes, more).as_object().unwrap() {
        metadata.insert(format!("{architecture}.{key}"), value.clone());
    }
    let mut shapes: BTreeMap<String, Vec<usize>> = tensors.iter().map(|name| ((*name).to_owned(), vec![1])).collect();
    shapes.insert("token_embd.weight".into(), vec![8, 8]);
    let factors: BTreeMap<String, Vec<f32>> = divisors.map(|list| ("rope_freqs.weight".to_owned(), list)).into_iter().collect();
    shapes.extend(factors.iter().map(|(name, list)| (name.clone(), vec![list.len()])));
    gguf_config(&metadata, &GgufTensors { shapes: &shapes, factors: &factors })
}

fn resolved(config: &GgufConfig) -> ModelConfig {
    resolve(&serde_json::to_string(&config.config).unwrap(), None, ResolveOptions::default()).unwrap().config
}

#[test]
fn blocks_that_predict_further_tokens_are_passed_over() {
    let file = found("qwen35", &with(&rules(), &json!({"nextn_predict_layers": 1, "block_count": 5})), &[], None).unwrap();
    assert!(file.tiled_values && file.norms_hold_offset && file.ignored == ["blk.4."], "{:?}", file.ignored);
    assert!(matches!(&file.notes[..], [note] if note.contains("`qwen35.nextn_predict_layers`")), "{:?}", file.notes);
    assert_eq!(is_rule(&resolved(&file)), [true, true, true, false]);
    let experts = json!({
        "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 8, "expert_shared_feed_forward_length": 16,
    });
    let next = found("qwen3next", &with(&rules(), &experts), &[], None);
    assert!(next.unwrap_err().message.contains("rope.dimension_sections"), "text models have none");
    let mut of_text = with(&rules(), &experts);
    of_text.as_object_mut().unwrap().remove("rope.dimension_sections");
    let next = found("qwen3next", &of_text, &[], None).unwrap();
    assert!(!next.tiled_values && next.norms_hold_offset);
    assert!(resolved(&next).experts().all(|experts| experts.router.renormalise.is_some() && experts.shared.is_some()));
}

#[test]
fn heads_by_layer_are_read() {
    let base = json!({
        "attention.key_length": 8, "attention.value_length": 8, "attention.key_length_swa": 4, "attention.value_length_swa": 4,
        "attention.head_count_kv": 1, "attention.sliding_window": 16, "attention.sliding_window_pattern": [true, false, true, false],
        "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "rope.dimension_count": 8, "rope.dimension_count_swa": 4,
    });
    let quarter = || Some(vec![1.0, 1e30, 1e30, 1e30]);
    let values = ["blk.1.attn_v.weight"];
    let shared = json!({"attention.shared_kv_layers": 2, "feed_forward_length": [8, 8, 16, 16], "embedding_length_per_layer_input": 4});
    let file = found("gemma4", &with(&base, &shared), &values, quarter()).unwrap();
    assert!(!file.norms_hold_offset);
    assert!(matches!(&file.notes[..], [note] if note.contains("final_logit_softcapping")), "{:?}", file.notes);
    let config = resolved(&file);
    let heads: Vec<_> = config.attentions().map(|a| (a.head_dim, a.num_kv_heads, a.window, a.shared_kv, a.values_from_keys)).collect();
    let (narrow, wide) = ((4, 1, Some(16), None, false), (8, 1, None, None, false));
    assert_eq!(heads, [narrow, wide, (4, 1, Some(16), Some(0), false), (8, 1, None, Some(1), false)]);
    assert_eq!(config.denses().map(|dense| dense.intermediate_size).collect::<Vec<_>>(), [8, 8, 16, 16]);
    assert_eq!(config.layer_inputs.as_ref().map(|inputs| inputs.width), Some(4));
    let rotated = |layer: &LayerConfig| doppler::plan::rope::frequencies(&config.ropes[layer.rope().unwrap()], false).0;
    let full = rotated(&config.layers[1]);
    assert!(full[0] == 1.0 && full[1..] == [0.0; 3] && rotated(&config.layers[0])[1] == 0.01, "{full:?}");

    // Keys that are values too, other numbers of them, and experts beside the dense block.
    let experts = json!({
        "attention.head_count_kv": [2, 1, 2, 1], "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 6,
        "final_logit_softcapping": 30.0,
    });
    let config = resolved(&found("gemma4", &with(&base, &experts), &[], quarter()).unwrap());
    let heads: Vec<_> = config.attentions().map(|a| (a.num_kv_heads, a.values_from_keys)).collect();
    assert_eq!(heads, [(2, false), (1, true), (2, false), (1, true)]);
    assert!(
        config.experts().all(|e| e.router.experts == 4 && e.intermediate_size == 6 && e.router.scales) && config.experts().count() == 4
    );
    assert_eq!(config.final_logit_softcapping, Some(30.0));

    let refused = |more: &Value, divisors: Option<Vec<f32>>, part: &str| {
        let error = found("gemma4", &with(&base, more), &values, divisors).unwrap_err().message;
        assert!(error.contains(part), "{error}");
    };
    let fused = found("gemma4", &base, &["blk.3.attn_qkv.weight"], quarter()).unwrap_err().message;
    assert!(fused.contains("blk.3.attn_qkv.weight"), "{fused}");
    refused(&json!({}), None, "no tensor `rope_freqs.weight`");
    refused(&json!({}), Some(vec![1.0, 2.0, 1e30, 1e30]), "expected 4 divisors");
    refused(&json!({}), Some(vec![1.0; 3]), "expected 4 divisors");
    refused(&json!({"feed_forward_length": [8, 16, 8, 8]}), quarter(), "16 in layer 1 is not supported, only 8");
    refused(&json!({"feed_forward_length": [8, 8]}), quarter(), "one for each of 4 layers");
    refused(&json!({"attention.head_count_kv": "one"}), quarter(), "`gemma4.attention.head_count_kv`");
    refused(&json!({"attention.value_length_swa": 6}), quarter(), "6 differs from attention.key_length_swa, 4");
    refused(&json!({"rope.dimension_count_swa": 2}), quarter(), "2 differs from the width of a head, 4");
    refused(&json!({"rope.scaling.type": "yarn"}), quarter(), "yarn");
}

#[test]
fn experts_chosen_by_sigmoids_are_read() {
    let more = json!({
        "attention.head_count_kv": [0, 1, 0, 1], "shortconv.l_cache": 3, "leading_dense_block_count": 1, "expert_count": 4,
        "expert_used_count": 2, "expert_feed_forward_length": 6, "expert_gating_func": 2,
    });
    let router = |tensors: &[&str]| {
        let config = resolved(&found("lfm2moe", &more, tensors, None).unwrap());
        assert_eq!(config.layers.iter().map(|layer| layer.experts().is_some()).collect::<Vec<_>>(), [false, true, true, true]);
        config.experts().next().unwrap().router
    };
    let biased = router(&["blk.1.exp_probs_b.bias"]);
    assert_eq!((biased.score, biased.choice_bias, biased.renormalise, biased.scaling), (RouterScore::Sigmoid, true, Some(1e-6), 1.0));
    assert!(!router(&[]).choice_bias);
    for (change, part) in [(json!({"expert_gating_func": 1}), "expected 2, a sigmoid"), (json!({"expert_weights_scale": 2.5}), "only 1")] {
        let error = found("lfm2moe", &with(&more, &change), &[], None).unwrap_err().message;
        assert!(error.contains(part), "{error}");
    }
    // Of config.json: a factor, and no bias.
    let text = json!({
        "architectures": ["Lfm2MoeForCausalLM"], "model_type": "lfm2_moe", "layer_types": ["conv", "full_attention"], "num_hidden_layers": 2,
        "num_dense_layers": 0, "routed_scaling_factor": 2.5, "use_expert_bias": false, "norm_topk_prob": false,
    });
    let config = resolve(&text.to_string(), None, ResolveOptions::default()).unwrap().config;
    let routers: Vec<_> = config.experts().map(|e| (e.router.scaling, e.router.choice_bias, e.router.renormalise)).collect();
    assert_eq!(routers, [(2.5, false, None); 2]);
}

/// A model of random weights in a folder as Hugging Face has it.
fn random_model(folder: &Path, config: &Value) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let model = resolve(&config.to_string(), None, ResolveOptions::default()).unwrap().config;
    let plan = build(&model).unwrap();
    let mut shapes = BTreeMap::new();
    for place in places(&plan, &model.tensors).unwrap() {
        for expert in 0..place.experts.unwrap_or(1) {
            shapes.insert(place.name_of("model.", expert), place.stored_shape());
        }
    }
    let mut state = 7u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let output = |(name, shape): (&String, &Vec<usize>)| {
        let bytes: Vec<u8> = (0..shape.iter().product()).flat_map(|_| (next() / 4.0).to_le_bytes()).collect();
        Output { name: name.clone(), dtype: DType::F32, shape: shape.clone(), data: Box::new(move |out| out.write_all(&bytes)) }
    };
    let tensors: Vec<Output<'_>> = shapes.iter().map(output).collect();
    let mut bytes = Vec::new();
    write(&mut bytes, &BTreeMap::new(), &tensors).unwrap();
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// Sizes of a model whose value heads are as wide as half a block of q4_k.
fn sizes(kind: &str, class: &str, more: &Value) -> Value {
    let sizes = json!({
        "architectures": [class], "model_type": kind, "vocab_size": 64, "hidden_size": 256, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 128, "linear_num_key_heads": 2,
        "linear_num_value_heads": 6, "linear_key_head_dim": 16, "linear_value_head_dim": 128, "layer_types": ["linear_attention", "full_attention"],
    });
    with(&sizes, more)
}

/// The same model as GGUF, with q8_0, whose blocks are moved, and with q4_k, whose blocks two heads share: then what reads them decodes.
fn in_gguf(name: &str, config: &Value, decoded: bool) {
    let folder = scratch(name);
    let path = |end: &str| -> PathBuf { folder.join(end) };
    random_model(&path("model"), config);
    let expected = logits(&path("model"));
    for (format, allowed) in [("f32", 2e-6), ("q8_0", 0.05), ("q4_k", 0.6)] {
        let gguf = path(&format!("{format}.gguf"));
        convert(&path("model"), &gguf, Target::Gguf, format).unwrap();
        let found = logits(&gguf);
        let off = distance(&found, &expected);
        assert!(off <= allowed, "{name} as {format}: {off:e}");
        // What it holds, in the order of the model: the same numbers.
        for target in [Target::Manifest, Target::Safetensors] {
            let plain = path(&format!("{format}-{}", target.name()));
            convert(&gguf, &plain, target, "f32").unwrap();
            let off = distance(&logits(&plain), &found);
            assert!(off <= 1e-6, "{name} from {format} as {}: {off:e}", target.name());
        }
        let model = open(&gguf).unwrap();
        let weights = pollster::block_on(model.weights()).unwrap();
        let says = weights.matched.notes.iter().any(|note| note.contains("decoded to f32") && note.contains("value heads"));
        assert_eq!(says, decoded && format == "q4_k", "{name} as {format}: {:?}", weights.matched.notes);
        let of = |role: &str| {
            let at = model.plan.weights.iter().position(|slot| slot.role.name() == role).unwrap();
            weights.matched.weights[at].format
        };
        let expected = if says { Format::F32 } else { Format::parse(format).unwrap() };
        assert_eq!(
            (of("delta_out"), of("delta_qkv"), of("q_proj")),
            (expected, Format::parse(format).unwrap(), Format::parse(format).unwrap())
        );
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn value_heads_in_another_order() {
    let dense = sizes("qwen3_5_text", "Qwen3_5ForCausalLM", &json!({"tie_word_embeddings": false}));
    in_gguf("delta-dense", &dense, true);
    let of_experts = json!({
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_experts": 3, "num_experts_per_tok": 2, "tie_word_embeddings": false,
    });
    in_gguf("delta-next", &sizes("qwen3_next", "Qwen3NextForCausalLM", &of_experts), false);
}

/// Files that llama.cpp's converter made of golden models (`convert_hf_to_gguf.py --outtype bf16`, of September 2026, without words).
#[test]
fn files_of_another_converter_are_the_golden_models() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let folder = scratch("other-converter");
    for (name, rules) in [("qwen3-5", true), ("qwen3-5-moe", true), ("gemma4-shared", false), ("gemma4-moe", false), ("lfm2-moe", false)] {
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(root.join("data").join(name).join(file), folder.join(file)).unwrap();
        }
        let gguf = root.join(format!("fixtures/gguf/{name}.bf16.gguf"));
        let off = distance(&logits(&gguf), &logits(&folder));
        // Decays are −e^x.
        assert!(off <= if rules { 2e-6 } else { 0.0 }, "{name}: logits are off by {off:e}");
        let (found, expected) = (open(&gguf).unwrap(), open(&folder).unwrap());
        assert_eq!(found.plan.stages(), expected.plan.stages(), "{name}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Published files have keys and values also in layers that read those of others: they are passed over.
#[test]
fn keys_that_nobody_reads_are_passed_over() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/gemma4-shared.bf16.gguf");
    let source = InMemory::new("fixture", std::fs::read(&fixture).unwrap());
    let header = pollster::block_on(gguf::read_header(&source)).unwrap();
    let mut tensors: Vec<(String, &gguf::Tensor)> = header.tensors.iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    for part in ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"] {
        let (layer_0, layer_2) = (format!("blk.0.{part}"), format!("blk.2.{part}"));
        let of_first = header.tensors.iter().find(|tensor| tensor.name == layer_0).unwrap();
        assert!(header.tensors.iter().all(|tensor| tensor.name != layer_2));
        tensors.push((layer_2, of_first));
    }
    let outputs: Vec<gguf::Output<'_>> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let bytes = source.slice(tensor.range.clone()).unwrap();
            let format = tensor.entry().dtype.format().unwrap();
            gguf::Output { name, format, shape: tensor.shape.clone(), data: Box::new(move |out| out.write_all(&bytes)) }
        })
        .collect();
    let (folder, mut file) = (scratch("unread-keys"), Vec::new());
    gguf::write(&mut file, &header.metadata, &outputs).unwrap();
    std::fs::write(folder.join("model.gguf"), file).unwrap();
    assert_eq!(distance(&logits(&folder.join("model.gguf")), &logits(&fixture)), 0.0);
    std::fs::remove_dir_all(folder).unwrap();
}

/// A pre-tokenizer is written by the name that the family has for it, where others stand for the same.
#[test]
fn pre_tokenizers_have_the_names_of_their_families() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama3");
    let words = open(&path).unwrap().words().unwrap().unwrap();
    let written = |architecture: &str| {
        let metadata = words.tokenizer.to_gguf(words.tokenizer.vocab_size() as usize, architecture).unwrap();
        metadata.text("tokenizer.ggml.pre").unwrap().unwrap().to_owned()
    };
    assert_eq!([written("llama"), written("exaone4"), written("phi2"), written("lfm2")], ["gpt-2", "exaone4", "phi-2", "gpt-2"]);
}
