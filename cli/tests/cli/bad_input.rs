//! Everything that users get wrong: one `Error` line that helps, exit code 2, never a panic. Weights that are no
//! numbers are no misuse but a finding: exit code 1.

use crate::support::{change_config, command, copy, data, doppler, finish, golden, list, scratch, text};
use doppler::formats::safetensors::read_header;
use doppler::formats::{ByteSource, InMemory};
use serde_json::json;
use std::path::Path;

/// `debug` of a folder on the oracle with a fixed prompt of ids.
fn raw(folder: &Path, more: &[&str]) -> crate::support::Ran {
    let args = ["debug", "-m", text(folder), "--device", "cpu", "--token-ids", "2,10,7", "--max-tokens", "3"];
    doppler(&[&args[..], more].concat())
}

fn write(folder: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let path = folder.join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn files_that_are_damaged() {
    let folder = copy("llama2", "damaged");
    let fresh = || {
        std::fs::copy(Path::new(&data("llama2")).join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    };
    let damage = |change: fn(&mut Vec<u8>), parts: &[&str]| {
        fresh();
        write(&folder, "model.safetensors", change);
        raw(&folder, &[]).refused(&[parts, &["model.safetensors"]].concat());
    };
    damage(|bytes| bytes.truncate(bytes.len() - 100), &[]);
    damage(|bytes| bytes.truncate(100), &["truncated"]);
    damage(|bytes| bytes.truncate(3), &["empty or truncated"]);
    damage(Vec::clear, &["empty or truncated"]);
    damage(|bytes| bytes[9..40].fill(b'x'), &["corrupt"]);
    damage(|bytes| bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes()), &[]);
    damage(|bytes| bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0"), &["GGUF"]);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    raw(&folder, &[]).refused(&["no safetensors files"]);
    fresh();
    raw(&folder, &[]).fine();
    for (bad, part) in [("", "config.json"), ("{", "config.json"), ("[1]", "config.json"), ("{\"model_type\": 3}", "model_type")] {
        std::fs::write(folder.join("config.json"), bad).unwrap();
        raw(&folder, &[]).refused(&["damaged", part]);
    }
}

#[test]
fn shards_that_are_missing() {
    let folder = copy("llama3", "shards");
    std::fs::remove_file(folder.join("model-00002-of-00003.safetensors")).unwrap();
    raw(&folder, &[]).refused(&["model-00002-of-00003.safetensors", "missing"]);
}

#[test]
fn configs_that_cannot_be_followed() {
    let folder = copy("llama2", "configs");
    let refused = |changes: serde_json::Value, parts: &[&str]| {
        std::fs::copy(Path::new(&data("llama2")).join("config.json"), folder.join("config.json")).unwrap();
        change_config(&folder, changes);
        raw(&folder, &[]).refused(parts);
    };
    refused(json!({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}), &["MambaForCausalLM", "LlamaForCausalLM"]);
    refused(json!({"intermediate_size": 200}), &["of another shape", "expected", "found"]);
    refused(json!({"num_hidden_layers": 30}), &["missing"]);
    refused(json!({"attention_temperature": 2.0}), &["attention_temperature"]);
    refused(json!({"quantization_config": {"quant_method": "gptq"}}), &["quantization_config"]);
    change_config(&folder, json!({"quantization_config": null, "attention_temperature": 2.0}));
    let allowed = raw(&folder, &["--allow-unknown-config"]).fine();
    assert!(allowed.stdout.contains("ignored=attention_temperature"), "{}", allowed.stdout);
}

#[test]
fn prompts_that_cannot_be_read() {
    let (gemma2, llama2) = (data("gemma2"), data("llama2"));
    let debug = |more: &[&str]| doppler(&[&["debug", "--device", "cpu", "--max-tokens", "3"], more].concat());
    debug(&["-m", &llama2, "-p", "hello"]).refused(&["tokenizer.json", "--token-ids"]);
    debug(&["-m", &llama2]).refused(&["tokenizer.json"]);
    debug(&["-m", &gemma2, "-p", ""]).refused(&["empty"]);
    debug(&["-m", &gemma2, "-p", "", "--chat"]).refused(&["empty"]);
    debug(&["-m", &gemma2, "--token-ids", ""]).refused(&["--token-ids"]);
    debug(&["-m", &gemma2, "--token-ids", "2,x"]).refused(&["`x` is no token id"]);
    debug(&["-m", &gemma2, "--token-ids", "2,331"]).refused(&["331 at position 1 is out of range", "0 to 330"]);
    debug(&["-m", &gemma2, "--token-ids", "2,4294967295"]).refused(&["out of range"]);
    debug(&["-m", &gemma2, "--token-ids", "2", "-p", "x"]).refused(&["cannot be used with"]);
    debug(&["-m", &gemma2, "--token-ids", "2,3,4,5", "--context", "3"]).refused(&["4 tokens", "3 positions", "--context"]);
    debug(&["-m", &gemma2, "--token-ids", "2", "--context", "257"]).refused(&["256 positions"]);
    let long = list(&[7; 257]);
    debug(&["-m", &gemma2, "--token-ids", &long]).refused(&["257 tokens", "256 positions"]);
    doppler(&["run", "--device", "cpu", "-m", &gemma2, ""]).refused(&["empty"]);
    doppler(&["run", "--device", "cpu", "-m", &gemma2]).refused(&["empty"]);
    doppler(&["run", "--device", "cpu", "-m", &llama2, "hello"]).refused(&["tokenizer.json"]);

    let broken = copy("gemma2", "broken_tokenizer");
    std::fs::write(broken.join("tokenizer.json"), "{\"version\": 1}").unwrap();
    debug(&["-m", text(&broken), "-p", "x"]).refused(&["tokenizer.json"]);
    let ids = debug(&["-m", text(&broken), "--token-ids", "2,10"]).fine();
    assert!(ids.stdout.contains("\nOutput ids ") && ids.stderr.contains("shown as ids"), "{}{}", ids.stdout, ids.stderr);
}

#[test]
fn options_that_make_no_sense() {
    let folder = data("llama2");
    let refused = |more: &[&str], parts: &[&str]| {
        raw(Path::new(&folder), more).refused(parts);
    };
    refused(&["--trace", ""], &["--trace", "expected categories"]);
    refused(&["--config", "debgu"], &["gemma2-debug"]);
    refused(&["--config", "gemma2-debug"], &["probe `post_attn_norm`", "this model has no stage"]);
    refused(&["--config", "{\"runtime\":{\"infrence\":{}}}"], &["runtime.infrence", "inference"]);
    refused(&["--config", "no-such-preset"], &["gemma2-debug"]);
    refused(&["--top-p", "2"], &["topP"]);
    refused(&["--temperature", "-1"], &["temperature", "0 or more"]);
    refused(&["--temperature", "inf"], &["temperature"]);
    refused(&["--prefill-chunk", "0"], &["prefillChunk"]);
    refused(&["--context", "0"], &["maxTokens"]);
    refused(&["--stages", "layer_out"], &["--dump"]);
    let file = scratch("no_dump").join("dump.safetensors");
    refused(&["--dump", text(&file), "--stages", "layer_uot"], &["layer_out"]);
    refused(&["--dump", text(&file), "--stages", "q_norm"], &["no stage `q_norm`"]);
    assert!(!file.exists(), "nothing is written when nothing is run");
    refused(&["--dump", "/nonexistent/folder/dump.safetensors"], &["/nonexistent/folder"]);
    refused(&["--json", "/nonexistent/folder/lines.json"], &["/nonexistent/folder"]);
    refused(&["--kernels", &folder], &["--kernels"]);
    refused(&["--limits", "floor"], &["--limits", "--device cpu"]);
    doppler(&["debug", "-m", "/nonexistent/model"]).refused(&["/nonexistent/model"]);
    let nobody = |spec: &str| finish(command(&["debug", "-m", spec]).env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nonexistent"));
    nobody("google/gemma-2-2b-it").refused(&["google/gemma-2-2b-it", "not in the cache", "HF_HUB_OFFLINE"]);
    doppler(&["stages", "-m", "/nonexistent/model"]).refused(&["/nonexistent/model"]);
    doppler(&["inspect", "/nonexistent/model"]).refused(&["/nonexistent/model"]);
    doppler(&["bench", "--synthetic", "no-such-shape"]).refused(&["no-such-shape", "llama3.2-1b"]);
    doppler(&["frobnicate"]).refused(&["frobnicate"]);
}

#[test]
fn errors_have_json_twins() {
    let ran = raw(Path::new(&data("llama2")), &["--token-ids", "999", "--json", "-"]);
    let ran = if ran.stdout.is_empty() {
        doppler(&["debug", "-m", &data("llama2"), "--device", "cpu", "--token-ids", "999", "--json", "-"])
    } else {
        ran
    };
    let ran = ran.refused(&["999"]);
    assert_eq!(ran.record("error")["kind"], "invalid");
    assert!(ran.record("error")["message"].as_str().unwrap().contains("999"));
}

#[test]
fn a_machine_without_adapter() {
    let hidden = |args: &[&str]| finish(command(args).env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent"));
    let folder = data("llama2");
    let prompt = ["-m", &folder, "--token-ids", "2,10", "--max-tokens", "2"];
    if hidden(&["devices", "--no-self-test"]).stdout.contains("adapter 0") {
        eprintln!("skipped: this machine's adapters cannot be hidden");
        return;
    }
    hidden(&[&["debug", "--device", "gpu"], &prompt[..]].concat()).refused(&["no WebGPU adapter", "--device cpu"]);
    let auto = hidden(&[&["debug"], &prompt[..]].concat()).fine();
    assert!(auto.stderr.contains("CPU oracle") && auto.stdout.contains("device=CPU oracle"), "{}{}", auto.stdout, auto.stderr);
    for word in ["Error", "NaN", "Inf", "ANOMALY"] {
        assert!(!auto.stderr.contains(word), "{}", auto.stderr);
    }
    let listed = hidden(&["devices"]).fine();
    assert!(listed.stdout.contains("no WebGPU adapter") && listed.stdout.contains("cpu: the oracle"), "{}", listed.stdout);
}

#[test]
fn a_context_that_does_not_fit_into_memory() {
    let folder = copy("llama2", "large_context");
    change_config(&folder, json!({"max_position_embeddings": 1 << 30}));
    for device in crate::support::devices() {
        let args = ["debug", "-m", text(&folder), "--device", device, "--token-ids", "2", "--context", "1000000000"];
        doppler(&args).refused(&["GiB", "kv cache", "1000000000 positions"]);
    }
}

#[test]
fn weights_that_are_no_numbers_are_a_finding() {
    let folder = copy("gemma2", "non_finite");
    let source = InMemory::open(&folder.join("model.safetensors")).unwrap();
    let header = pollster::block_on(read_header(&source)).unwrap();
    assert!(!source.is_empty());
    let norm = header.tensors.iter().find(|t| t.name.ends_with("layers.1.input_layernorm.weight")).unwrap();
    let at = norm.range.start as usize + 6;
    // A NaN in bf16.
    write(&folder, "model.safetensors", |bytes| bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes()));
    for device in crate::support::devices() {
        let args = ["debug", "-m", text(&folder), "--device", device, "-p", "The model", "--max-tokens", "2"];
        let ran = doppler(&args);
        assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
        let expected = "ANOMALY kind=non_finite_weights tensor=model.layers.1.input_layernorm.weight shape=[40] nan=1 inf=0 first=3";
        assert!(ran.stdout.lines().any(|line| line == expected), "{}", ran.stdout);
        let expected = "ANOMALY kind=non_finite stage=attn_normed layer=1 token=0 dim=3 value=NaN";
        assert!(ran.stdout.lines().any(|line| line.starts_with(expected)), "{}", ran.stdout);
        let expected = "Note nothing more was generated: position 7: cannot sample: the logit of token ";
        assert!(ran.stdout.contains(expected), "{}", ran.stdout);
        assert_eq!(ran.stderr, "");
    }
    let prompt = list(&golden("gemma2").input_ids().unwrap());
    let file = scratch("non_finite_dump").join("dump.safetensors");
    let args = ["debug", "-m", text(&folder), "--device", "cpu", "--token-ids", &prompt, "--dump", text(&file)];
    assert_eq!(doppler(&args).code, Some(1));
    assert!(doppler::debug::dump::Dump::open(&file).is_ok(), "the values that explain it are there");
}

#[test]
fn numbers_that_are_none() {
    for (option, expected) in [("--temperature", "finite number"), ("--top-k", "whole number"), ("--max-tokens", "whole number")] {
        let ran = doppler(&["run", option, "warm", "x"]).refused(&[option, "warm", expected]);
        assert!(!ran.stderr.contains("invalid digit") && !ran.stderr.contains("invalid float"), "{}", ran.stderr);
    }
    let ran = doppler(&["debug", "--config", "/nowhere/x.json", "-m", "/nowhere"]).refused(&["/nowhere"]);
    assert!(!ran.stderr.contains("os error"), "{}", ran.stderr);
}
