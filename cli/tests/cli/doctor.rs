//! `doctor`: right models are healthy; each kind of fault is named by its class and place, with a fix that mends it; two
//! faults are named in turn; what cannot be explained is not named. The campaign (`cargo xtask faults`) has many more.

use crate::support::{Ran, change_config, copy, data, devices, doppler, models, scratch, text};
use serde_json::{Value, json};
use std::path::Path;

fn golden(model: &str) -> String {
    data(&format!("{model}/golden.safetensors"))
}

/// The verdict on a folder, against transformers' values.
fn verdict(folder: &Path, model: &str, more: &[&str]) -> (Ran, Value) {
    let reference = golden(model);
    let args = ["doctor", "-m", text(folder), "--reference", &reference, "--device", "cpu", "--json", "-"];
    let ran = doppler(&[&args[..], more].concat());
    let verdict = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", ran.stdout, ran.stderr));
    (ran, verdict)
}

/// The values of a tensor of f32 or bf16 in the only weight file of a folder, changed.
fn change_tensor(folder: &Path, name: &str, change: impl Fn(&mut [u8], usize)) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let range: [usize; 2] = serde_json::from_value(header[name]["data_offsets"].clone()).expect("a tensor");
    let size = if header[name]["dtype"] == "F32" { 4 } else { 2 };
    change(&mut bytes[8 + length + range[0]..8 + length + range[1]], size);
    std::fs::write(&path, bytes).expect("changed weights");
}

#[test]
fn right_models_are_healthy() {
    for model in models() {
        let folder = copy(&model, "doctor_healthy");
        let (ran, verdict) = verdict(&folder, &model, &[]);
        assert_eq!((ran.code, verdict["verdict"].as_str()), (Some(0), Some("healthy")), "{model}: {verdict:#}");
        let covered = |list: &str, part: &str| {
            verdict[list].as_array().is_some_and(|l| l.iter().any(|t| t.as_str().is_some_and(|t| t.contains(part))))
        };
        assert!(covered("examined", "greedy decoding") && covered("not_examined", "GPU"), "{verdict:#}");
    }
}

#[test]
fn wrong_numbers_of_a_config_are_named_and_mended() {
    let mut rounded: Value = serde_json::from_str(&std::fs::read_to_string(format!("{}/config.json", data("gpt-oss"))).unwrap()).unwrap();
    rounded["rope_parameters"]["truncate"] = json!(true);
    let rounded = rounded["rope_parameters"].take();
    for (model, key, value, cause, stage) in [
        ("gemma2", "attn_logit_softcapping", json!(3.71), "attn_softcap", "attn_scores"),
        ("gemma2", "final_logit_softcapping", json!(null), "final_softcap", "logits_final"),
        ("gemma2", "query_pre_attn_scalar", json!(17.3), "attn_scale", "attn_scores"),
        ("gemma2", "rms_norm_eps", json!(0.0137), "norm_eps", "attn_normed"),
        ("mistral", "rope_theta", json!(7331.0), "rope_base", "q_rope"),
        ("mistral", "sliding_window", json!(8), "window_off_by_one", "attn_scores"),
        ("mistral", "hidden_act", json!("gelu"), "activation", "ffn_act"),
        ("granite", "embedding_multiplier", json!(7.7), "embed_scale", "embed_out"),
        ("granite", "residual_multiplier", json!(0.61), "residual_multiplier", "post_attn"),
        ("granite", "logits_scaling", json!(4.3), "logits_scale", "logits"),
        ("llama-linear", "rope_scaling", json!({"type": "linear", "factor": 5.5}), "rope_scaling", "q_rope"),
        ("gpt-oss", "rope_parameters", rounded, "rope_scaling", "q_rope"),
        ("mixtral", "num_experts_per_tok", json!(3), "router", "chosen_experts"),
        ("qwen3-moe", "num_experts_per_tok", json!(1), "router", "chosen_experts"),
        ("gpt-oss", "swiglu_limit", json!(4.3), "activation_clamp", "expert_act"),
        ("gpt-oss", "swiglu_limit", json!(91.0), "activation_clamp", "expert_act"),
        ("gpt-oss", "swiglu_alpha", json!(1.13), "activation_clamp", "expert_act"),
    ] {
        let folder = copy(model, "doctor_config");
        change_config(&folder, json!({ (key): value }));
        let mended = scratch("doctor_mended").join("model");
        let (ran, found) = verdict(&folder, model, &["--apply", text(&mended)]);
        let place = |name: &str| found["site"][name].as_str().map(str::to_string);
        assert_eq!((ran.code, found["cause"].as_str()), (Some(1), Some(cause)), "{model} {key}: {found:#}");
        assert_eq!((place("stage").as_deref(), found["also"].as_array().map(Vec::len)), (Some(stage), Some(0)), "{model} {key}: {found:#}");
        assert!(place("config_key").is_some_and(|found| found.ends_with(key) || cause == "rope_scaling"), "{key}: {found:#}");
        let (ran, after) = verdict(&mended, model, &[]);
        assert_eq!(ran.code, Some(0), "{model} {key}: {after:#}");
    }
}

#[test]
fn wrong_weights_are_named() {
    let folder = copy("mistral", "doctor_weight");
    // An exponent bit of one element: another value of the usual size.
    change_tensor(&folder, "model.layers.1.mlp.up_proj.weight", |bytes, size| bytes[5 * size + size - 1] ^= 0x40);
    let found = mended(&folder, "mistral");
    assert_eq!((found["cause"].as_str(), found["site"]["layer"].as_u64()), (Some("corrupt_weight"), Some(1)), "{found:#}");
    assert_eq!(found["site"]["tensor"], "model.layers.1.mlp.up_proj.weight");

    let folder = copy("mistral", "doctor_swapped");
    let (gate, up) = ("model.layers.2.mlp.gate_proj.weight", "model.layers.2.mlp.up_proj.weight");
    let path = folder.join("model.safetensors");
    let whole = std::fs::read(&path).expect("weights");
    // The names have the padding of the header to move in.
    let length = u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
    let header = String::from_utf8(whole[8..8 + length].to_vec()).expect("a header");
    let header = header.replace(gate, "GATE").replace(up, gate).replace("GATE", up);
    let header = format!("{header:<length$}");
    std::fs::write(&path, [&whole[..8], header.as_bytes(), &whole[8 + length..]].concat()).expect("swapped");
    let found = mended(&folder, "mistral");
    assert_eq!((found["cause"].as_str(), found["site"]["layer"].as_u64()), (Some("gate_up_swapped"), Some(2)), "{found:#}");

    // As if no sink were there: e^-1000 is nothing.
    let folder = copy("gpt-oss", "doctor_sinks");
    change_tensor(&folder, "model.layers.1.self_attn.sinks", |bytes, size| {
        assert_eq!(size, 2);
        // -1000 in bf16.
        bytes.as_chunks_mut().0.iter_mut().for_each(|sink| *sink = [0x7a, 0xc4]);
    });
    let found = mended(&folder, "gpt-oss");
    assert_eq!((found["cause"].as_str(), found["site"]["layer"].as_u64()), (Some("attn_sinks"), Some(1)), "{found:#}");
    assert_eq!(found["site"]["tensor"], "model.layers.1.self_attn.sinks");
}

/// Changes the bytes of a tensor of bf16.
type Plant = fn(&mut [u8]);

#[test]
fn weights_of_delta_rules_convolutions_and_factors_are_named() {
    let plants: [(&str, &str, &str, Plant); 5] = [
        ("qwen3-5", "model.layers.0.linear_attn.dt_bias", "missing_bias", |bytes| bytes.fill(0)),
        // A sign.
        ("qwen3-5", "model.layers.2.linear_attn.conv1d.weight", "corrupt_weight", |bytes| bytes[2 * 21 + 1] ^= 0x80),
        ("qwen3-5-tied", "model.layers.0.linear_attn.A_log", "corrupt_weight", |bytes| bytes[0] ^= 0x40),
        // A bit of the fraction.
        ("gemma4", "model.layers.1.layer_scalar", "corrupt_weight", |bytes| bytes[0] ^= 0x20),
        ("gemma4-moe", "model.layers.1.router.scale", "corrupt_weight", |bytes| bytes[10] ^= 0x40),
    ];
    for (model, tensor, cause, plant) in plants {
        let folder = copy(model, "doctor_delta");
        change_tensor(&folder, tensor, |bytes, size| {
            assert_eq!(size, 2);
            plant(bytes);
        });
        let found = mended(&folder, model);
        assert_eq!((found["cause"].as_str(), found["site"]["tensor"].as_str()), (Some(cause), Some(tensor)), "{found:#}");
    }
}

/// The reference computes an op otherwise, and the files are right.
#[test]
fn formulas_are_named() {
    for (model, set, cause, stage) in [
        ("gemma4-shared", "ple_inputs=scale:1.37", "embed_scale", "ple_inputs"),
        ("gemma4-shared", "attn_scores@2-4=scale:1.37", "attn_scale", "attn_scores"),
        ("qwen3-5", "delta_mix=scale:0.81", "attn_scale", "delta_mix"),
    ] {
        let dump = scratch("doctor_formula").join("dump.safetensors");
        let folder = data(model);
        let args =
            ["debug", "--no-resident", "--device", "cpu", "-m", &folder, "--token-ids", "5,17,29,8,60,41,33,12", "--max-tokens", "0"];
        doppler(&[&args[..], &["--set", set, "--dump", text(&dump)]].concat());
        let ran = doppler(&["doctor", "-m", &folder, "--reference", text(&dump), "--device", "cpu", "--json", "-"]);
        let found: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", ran.stdout, ran.stderr));
        let site = found["site"]["stage"].as_str();
        assert_eq!((ran.code, found["cause"].as_str(), site), (Some(1), Some(cause), Some(stage)), "{set}: {found:#}");
    }
}

/// The verdict on a model whose weights are wrong, which `--apply` mends in a copy, and in the copy only.
fn mended(folder: &Path, model: &str) -> Value {
    let before = std::fs::read(folder.join("model.safetensors")).expect("weights");
    let copy = scratch("doctor_mended_weights").join("model");
    let (ran, found) = verdict(folder, model, &["--apply", text(&copy)]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_eq!(before, std::fs::read(folder.join("model.safetensors")).expect("weights"), "the source stays as it is");
    let (ran, after) = verdict(&copy, model, &[]);
    assert_eq!((ran.code, after["verdict"].as_str()), (Some(0), Some("healthy")), "{after:#}");
    found
}

#[test]
fn f16_that_overflows_is_named_without_a_reference_and_untrained_models_are_healthy() {
    let alone = |folder: &str, dtype: &str| {
        let ran = doppler(&["doctor", "-m", folder, "--device", "cpu", "--dtype", dtype, "--json", "-"]);
        let found: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", ran.stdout, ran.stderr));
        (ran.code, found)
    };
    // What divides the logits makes every text likelier for a model that knows none.
    let (code, found) = alone(&data("gemma2"), "f16");
    assert_eq!((code, found["verdict"].as_str()), (Some(0), Some("healthy")), "{found:#}");
    let folder = copy("qwen3", "doctor_halves");
    for (name, up) in [("up_proj", true), ("down_proj", false)] {
        change_tensor(&folder, &format!("model.layers.1.mlp.{name}.weight"), |bytes, size| {
            // Exponents of bf16 and f32 are in the same bits: 2³⁶ times as large, or as small.
            for number in bytes.chunks_mut(size) {
                let top = u16::from_le_bytes([number[size - 2], number[size - 1]]);
                let exponent = (top >> 7) & 0xff;
                if exponent > 40 {
                    let moved = if up { exponent + 36 } else { exponent - 36 };
                    number[size - 2..].copy_from_slice(&((top & !0x7f80) | moved << 7).to_le_bytes());
                }
            }
        });
    }
    let (code, found) = alone(text(&folder), "f16");
    assert_eq!(
        (code, found["cause"].as_str(), found["site"]["layer"].as_u64()),
        (Some(1), Some("bf16_overflow_f16"), Some(1)),
        "{found:#}"
    );
    let (code, found) = alone(text(&folder), "f32");
    assert_eq!(code, Some(0), "{found:#}");
}

#[test]
fn two_faults_are_named_in_turn() {
    let folder = copy("gemma2", "doctor_two");
    change_config(&folder, json!({ "attn_logit_softcapping": 4.2, "final_logit_softcapping": 9.1 }));
    let (ran, found) = verdict(&folder, "gemma2", &[]);
    assert_eq!((ran.code, found["cause"].as_str()), (Some(1), Some("attn_softcap")), "{found:#}");
    assert_eq!(found["also"][0]["cause"], "final_softcap", "{found:#}");
}

#[test]
fn models_that_do_not_open_are_diagnosed_and_what_is_not_there_is_refused() {
    let folder = copy("llama3", "doctor_bias");
    change_config(&folder, json!({ "mlp_bias": false }));
    let (ran, found) = verdict(&folder, "llama3", &[]);
    assert_eq!((ran.code, found["cause"].as_str()), (Some(1), Some("missing_bias")), "{found:#}");
    assert_eq!(found["fix"]["config"]["mlp_bias"], true, "{found:#}");
    doppler(&["doctor", "-m", "no/such/folder"]).refused(&["no such folder"]);
    doppler(&["doctor", "-m", "demo", "--reference", "missing.safetensors"]).refused(&[
        "--reference",
        "missing.safetensors",
        "no such file",
    ]);
    doppler(&["doctor", "-m", &data("mistral"), "--apply", &data("mistral")]).refused(&["--apply"]);
}

#[test]
fn a_wrong_kernel_is_named() {
    if !devices().contains(&"gpu") {
        return;
    }
    let folder = scratch("doctor_kernels");
    let kernels = format!("{}/../src/gpu/kernels", env!("CARGO_MANIFEST_DIR"));
    let text_of = |name: &str| std::fs::read_to_string(format!("{kernels}/{name}.wgsl")).expect("a kernel");
    let right = text_of("soft_cap");
    let wrong = right.replacen("soft_cap(x[i], p.cap)", "soft_cap(x[i], p.cap) * 0.999", 1);
    std::fs::write(folder.join("add.wgsl"), text_of("add")).expect("a kernel");
    std::fs::write(folder.join("soft_cap.wgsl"), &wrong).expect("a kernel");
    assert_ne!(right, wrong, "soft_cap has another form: plant the fault anew");
    let args = ["doctor", "-m", &data("gemma2"), "--device", "gpu", "--dtype", "f32", "--kernels", text(&folder), "--json", "-"];
    let ran = doppler(&args);
    let found: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", ran.stdout, ran.stderr));
    assert_eq!(
        (ran.code, found["cause"].as_str(), found["site"]["kernel"].as_str()),
        (Some(1), Some("wrong_kernel"), Some("soft_cap")),
        "{found:#}"
    );
}
