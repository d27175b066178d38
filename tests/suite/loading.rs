//! Loading from outside: model folders that are whole, broken, sharded or something else, and the shared fixtures.

use crate::support::{adapter, everything, observe};
use doppler::config::{ModelConfig, ResolveOptions, resolve};
use doppler::cpu::CpuExecutor;
use doppler::exec::{Executor, Storage, WeightSink};
use doppler::formats::safetensors::{Output, read_header, write};
use doppler::formats::shards::ShardIndex;
use doppler::formats::{InMemory, Local};
use doppler::gpu::{GpuExecutor, GpuOptions};
use doppler::inference::pipeline;
use doppler::inference::session::{GenerateOptions, Session, SessionOptions, StopReason};
use doppler::loader::{Checkpoint, LoadReport, load, match_slots, open_directory};
use doppler::open::Opened;
use doppler::plan::{Plan, WeightId};
use doppler::quant::Format;
use doppler::tensor::{DType, Tensor, to_f32};
use doppler::{Kind, Result};
use pollster::block_on;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A folder for one test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("doppler-loading-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the temporary folder takes folders");
        Self(path)
    }
    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.0.join(name), content).expect("the temporary folder takes files");
    }
    fn remove(&self, name: &str) {
        std::fs::remove_file(self.0.join(name)).expect("the file exists");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Takes weights and counts them.
#[derive(Default)]
struct Count(u64);

impl WeightSink for Count {
    fn put(&mut self, _: WeightId, _: Format, _: usize, bytes: bytes::Bytes) -> Result<()> {
        self.0 += bytes.len() as u64;
        Ok(())
    }
}

/// Everything from a folder to weights in a sink.
fn load_folder<S: WeightSink>(folder: &Path, sink: impl FnOnce(&Plan) -> S) -> Result<(S, LoadReport)> {
    let files = open_directory(folder)?;
    let config = resolve(&files.texts.config, files.texts.generation_config.as_deref(), ResolveOptions::default())?.config;
    let plan = pipeline::build(&config)?;
    let mut sink = sink(&plan);
    let report = load_sources(&plan, &config, files.sources, files.shards.as_ref(), &mut sink)?;
    Ok((sink, report))
}

fn load_sources(
    plan: &Plan,
    config: &ModelConfig,
    sources: Vec<Local>,
    shards: Option<&ShardIndex>,
    sink: &mut impl WeightSink,
) -> Result<LoadReport> {
    block_on(async {
        let checkpoint = Checkpoint::open(sources, shards).await?;
        let matched = match_slots(plan, &config.tensors, &checkpoint.index, false)?;
        load(plan, &checkpoint, &matched, true, sink, &mut |_| {}).await
    })
}

/// Loads files with these bytes as the model of `CONFIG`, one after the other.
fn load_bytes() -> impl Fn(&[u8]) -> Result<LoadReport> {
    let config = resolve(CONFIG, None, ResolveOptions::default()).expect("the config is complete").config;
    let plan = pipeline::build(&config).expect("the config is consistent");
    move |bytes| {
        let source = Local::Memory(InMemory::new("model.safetensors", bytes.to_vec()));
        load_sources(&plan, &config, vec![source], None, &mut Count::default())
    }
}

fn count(folder: &Path) -> Result<LoadReport> {
    load_folder(folder, |_| Count::default()).map(|(sink, report)| {
        assert_eq!(sink.0, report.bytes);
        report
    })
}

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 12, "hidden_size": 8,
    "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false}"#;

/// Names and shapes of the weights of `CONFIG`.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("model.embed_tokens.weight".to_string(), vec![12, 8]), ("model.norm.weight".to_string(), vec![8])];
    for layer in 0..2 {
        let of = |name: &str, shape: &[usize]| (format!("model.layers.{layer}.{name}.weight"), shape.to_vec());
        all.extend([
            of("input_layernorm", &[8]),
            of("self_attn.q_proj", &[8, 8]),
            of("self_attn.k_proj", &[4, 8]),
            of("self_attn.v_proj", &[4, 8]),
            of("self_attn.o_proj", &[8, 8]),
            of("post_attention_layernorm", &[8]),
            of("mlp.gate_proj", &[6, 8]),
            of("mlp.up_proj", &[6, 8]),
            of("mlp.down_proj", &[8, 6]),
        ]);
    }
    all
}

fn file(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let values = vec![0.5f32; 200];
    let outputs = tensors.iter().map(|(name, shape)| Output::f32(name, shape.clone(), &values[..shape.iter().product()]));
    let mut bytes = Vec::new();
    write(&mut bytes, &BTreeMap::new(), &outputs.collect::<Vec<_>>()).expect("memory takes bytes");
    bytes
}

fn model(name: &str) -> Folder {
    let folder = Folder::new(name);
    folder.put("config.json", CONFIG);
    folder.put("model.safetensors", file(&tensors()));
    folder
}

#[test]
fn a_whole_folder_loads() {
    let folder = model("whole");
    let report = count(&folder.0).unwrap();
    assert_eq!(report.bytes, tensors().iter().map(|(_, shape)| 4 * shape.iter().product::<usize>() as u64).sum::<u64>());
    assert!(report.non_finite.is_empty());
}

/// The tensors of `CONFIG` with numbers that f32 does not hold, each as `bytes` stores it.
fn numbers(dtype: &str, bytes: impl Fn(f64) -> Vec<u8>) -> Vec<u8> {
    let (mut header, mut data, mut next) = (serde_json::Map::new(), Vec::new(), (0..101).cycle());
    for (name, shape) in tensors() {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            let x = next.by_ref().nth(36).unwrap_or(0);
            data.extend(bytes(f64::from(x) / 101.0 - 0.45));
        }
        header.insert(name, serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let header = serde_json::Value::from(header).to_string();
    [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), &data].concat()
}

/// transformers runs such a model in f64, or in f32 when it is told so.
#[test]
fn weights_in_f64_are_rounded_to_f32_with_a_note() {
    let folder = model("doubles");
    let in_f32 = numbers("F32", |x| (x as f32).to_le_bytes().to_vec());
    folder.put("model.safetensors", &in_f32);
    let oracle = |plan: &Plan| CpuExecutor::<f32>::new(plan.clone(), Storage::F32).unwrap();
    let logits = |executor: &dyn Fn() -> BTreeMap<String, Tensor>| executor()["logits"].clone();
    let on_cpu = || {
        let (executor, report) = load_folder(&folder.0, oracle).unwrap();
        assert!(report.non_finite.is_empty());
        observe(&executor, &[1, 5, 3], &everything(executor.plan()), false)
    };
    let gpu = adapter(GpuOptions::default());
    let on_gpu = || {
        let new = |plan: &Plan| GpuExecutor::new(gpu.clone().unwrap(), plan.clone(), Storage::F32).unwrap();
        let (executor, _) = load_folder(&folder.0, new).unwrap();
        observe(&executor, &[1, 5, 3], &everything(executor.plan()), false)
    };
    let run = || (logits(&on_cpu), gpu.as_ref().map(|_| logits(&on_gpu)));
    let expected = run();
    folder.put("model.safetensors", numbers("F64", |x| x.to_le_bytes().to_vec()));
    assert_eq!(run(), expected);

    let notes = |folder: &Folder| {
        let opened = Opened::new("f64".into(), open_directory(&folder.0).unwrap(), ResolveOptions::default()).unwrap();
        block_on(opened.weights()).unwrap().notes()
    };
    let rounded = "20 weights, first `model.embed_tokens.weight`, are f64: each number is rounded to f32 when it is read";
    assert_eq!(notes(&folder), [rounded]);
    // What f32 does not reach is infinite there, and is found.
    folder.put("model.safetensors", numbers("F64", |x| (if x < -0.4495 { 1e300 } else { x }).to_le_bytes().to_vec()));
    assert!(count(&folder.0).unwrap().non_finite.iter().all(|found| found.inf > 0 && found.nan == 0));
    assert!(!count(&folder.0).unwrap().non_finite.is_empty());
    folder.put("model.safetensors", in_f32);
    assert!(notes(&folder).is_empty());
}

/// Each number stands alone, without a scale, as transformers reads it where no `quantization_config` says more.
#[test]
fn plain_fp8_is_read() {
    let folder = model("fp8");
    let oracle = |plan: &Plan| CpuExecutor::<f32>::new(plan.clone(), Storage::F32).unwrap();
    let logits = |weights: Vec<u8>| {
        folder.put("model.safetensors", weights);
        let (executor, report) = load_folder(&folder.0, oracle).unwrap();
        assert!(report.non_finite.is_empty());
        observe(&executor, &[1, 5, 3], &everything(executor.plan()), false)["logits"].clone()
    };
    // 1 and -0.5 by exponents of 7 and of 15.
    for (dtype, codes) in [("F8_E4M3", [0x38, 0xb0]), ("F8_E5M2", [0x3c, 0xb8])] {
        let (plain, eight) = (|x: f64| if x < 0.0 { -0.5f32 } else { 1.0 }, |x: f64| vec![codes[usize::from(x < 0.0)]]);
        assert_eq!(logits(numbers(dtype, eight)), logits(numbers("F32", |x| plain(x).to_le_bytes().to_vec())), "{dtype}");
    }
}

/// The reference implementation does not mind either.
#[test]
fn a_header_may_begin_with_blanks() {
    let (load, whole) = (load_bytes(), file(&tensors()));
    let length = u64::from_le_bytes(*whole.first_chunk().unwrap());
    for blanks in [" ", "\n\t", "\r\n  "] {
        let start = (length + blanks.len() as u64).to_le_bytes();
        assert!(load(&[&start, blanks.as_bytes(), &whole[8..]].concat()).is_ok(), "{blanks:?}");
    }
}

/// A folder from elsewhere may hold a link to any file, and what texts say goes into GGUF files, bundles and answers.
#[test]
#[cfg(unix)]
fn texts_that_are_links_out_of_the_folder_go_into_nothing() {
    use std::os::unix::fs::symlink;
    let (folder, other) = (model("links"), Folder::new("links_other"));
    other.put("secret", CONFIG);
    other.put("model.safetensors", file(&tensors()));
    // Weights may lie anywhere.
    std::fs::remove_file(folder.0.join("model.safetensors")).unwrap();
    symlink(other.0.join("model.safetensors"), folder.0.join("model.safetensors")).unwrap();
    assert!(count(&folder.0).is_ok());
    for name in doppler::formats::ModelTexts::FILES {
        let path = folder.0.join(name);
        let _ = std::fs::remove_file(&path);
        symlink(other.0.join("secret"), &path).unwrap();
        let files = open_directory(&folder.0).unwrap();
        let note = format!("{name} is a link out of the model's folder, to ");
        assert!(files.notes.iter().any(|found| found.starts_with(&note)), "{:?}", files.notes);
        let error = files.check_texts().unwrap_err();
        assert!(error.kind == Kind::Io && error.message.contains(name) && error.message.contains("copy that file"), "{error}");
        std::fs::remove_file(&path).unwrap();
        folder.put("config.json", CONFIG);
    }
}

/// Transformers reads `quantization_config` alone; what others leave in files says nothing.
#[test]
fn leftovers_of_packed_weights_are_passed_over_where_transformers_does_not_read_them() {
    let notes = |change: serde_json::Value, allow_unknown: bool| {
        let mut config: serde_json::Value = serde_json::from_str(CONFIG).unwrap();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let folder = model("leftovers");
        folder.put("config.json", config.to_string());
        let opened = Opened::new("m".into(), open_directory(&folder.0)?, ResolveOptions { allow_unknown })?;
        let of_weights = block_on(opened.weights())?.notes();
        Ok::<_, doppler::Error>(opened.notes(None, &of_weights))
    };
    for change in [
        serde_json::json!({"quantization": {"bits": 4, "group_size": 32}}),
        serde_json::json!({"compression_config": {"quant_method": "compressed-tensors", "format": "dense"}}),
        serde_json::json!({"compression_config": {"x": 1}}),
    ] {
        let said = notes(change.clone(), false).unwrap();
        assert!(said.len() == 1 && said[0].contains("but all are plain f32") && said[0].contains("transformers"), "{change}: {said:?}");
    }
    let gptq = serde_json::json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}});
    assert!(notes(gptq.clone(), false).unwrap_err().message.contains("claims 4-bit gptq weights"));
    assert_eq!(notes(gptq, true).unwrap().len(), 1);
    let unnamed = serde_json::json!({"quantization_config": {"bits": 4}});
    assert!(notes(unnamed, false).unwrap_err().message.contains("claims 4-bit quantised weights"));
}

#[test]
fn every_truncation_is_a_clear_error() {
    let (load, whole) = (load_bytes(), file(&tensors()));
    assert!(load(&whole).is_ok());
    for len in 0..whole.len() {
        let error = load(&whole[..len]).unwrap_err();
        assert_eq!(error.kind, Kind::Format, "{len}: {error}");
        assert!(error.message.contains("truncated") && error.message.contains("model.safetensors"), "{len}: {error}");
    }
}

#[test]
fn corrupt_headers_are_refused_and_never_panic() {
    let (load, whole) = (load_bytes(), file(&tensors()));
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    for at in 0..header {
        for byte in [0u8, b'"', b'9', b'[', 0xff] {
            let mut changed = whole.clone();
            changed[at] = byte;
            if let Err(error) = load(&changed) {
                assert!(matches!(error.kind, Kind::Format | Kind::Weights), "{at} {byte}: {error}");
            } else {
                assert!(changed == whole, "byte {at} changed to {byte} was not noticed");
            }
        }
    }
}

#[test]
fn wrong_tensors_are_listed_together() {
    let folder = model("wrong");
    let mut all = tensors();
    all.retain(|(name, _)| !name.ends_with("up_proj.weight") && name != "model.norm.weight");
    all.push(("model.layers.2.mlp.up_proj.weight".into(), vec![6, 8]));
    all.iter_mut().filter(|(name, _)| name.ends_with("k_proj.weight")).for_each(|(_, shape)| shape.swap(0, 1));
    folder.put("model.safetensors", file(&all));
    let error = count(&folder.0).unwrap_err();
    assert_eq!(error.kind, Kind::Weights);
    for expected in [
        "missing: 3 tensors",
        "model.layers.*.mlp.up_proj.weight (2 tensors: 0-1): expected [6, 8]; nearest unused: model.layers.*.mlp.up_proj.weight",
        "model.norm.weight: expected [8]",
        "model.layers.*.self_attn.k_proj.weight (2 tensors: 0-1): expected [4, 8], found [8, 4]",
        "without a place in the model: 1 tensor\n  model.layers.2.mlp.up_proj.weight: found [6, 8]",
    ] {
        assert!(error.message.contains(expected), "expected `{expected}` in\n{error}");
    }
}

#[test]
fn shards_load_and_their_faults_are_named() {
    let folder = model("shards");
    let all = tensors();
    let (a, b) = all.split_at(9);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    folder.remove("model.safetensors");
    folder.put(names[0], file(a));
    folder.put(names[1], file(b));
    assert!(count(&folder.0).is_ok(), "a complete numbered set needs no index");

    let map: BTreeMap<&str, &str> = a.iter().map(|t| (t.0.as_str(), names[0])).chain(b.iter().map(|t| (t.0.as_str(), names[1]))).collect();
    let index = |map: &BTreeMap<&str, &str>| serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    folder.put("model.safetensors.index.json", index(&map));
    assert!(count(&folder.0).is_ok());

    let mut wrong = map.clone();
    wrong.insert("model.ghost.weight", names[1]);
    wrong.insert("model.embed_tokens.weight", names[1]);
    folder.put("model.safetensors.index.json", index(&wrong));
    assert!(count(&folder.0).is_ok(), "what an index says wrongly of tensors that are there, or are not needed, is a note");

    wrong.insert("other", "model-00003-of-00003.safetensors");
    folder.put("model.safetensors.index.json", index(&wrong));
    folder.remove(names[1]);
    let error = count(&folder.0).unwrap_err();
    assert_eq!(error.kind, Kind::Weights);
    assert!(error.message.contains("2 of 3") && error.message.contains(names[1]) && error.message.contains("00003"), "{error}");

    folder.put("model.safetensors.index.json", r#"{"weight_map": {"x": "../../etc/passwd"}}"#);
    assert_eq!(count(&folder.0).unwrap_err().kind, Kind::Format);
}

#[test]
fn other_folders_are_explained() {
    let said = |prepare: &dyn Fn(&Folder), expected: &[&str]| {
        let folder = model("other");
        prepare(&folder);
        let error = open_directory(&folder.0).unwrap_err();
        assert!(expected.iter().all(|text| error.message.contains(text)), "expected {expected:?} in\n{error}");
        error.kind
    };
    let without = |folder: &Folder, instead: &str| {
        folder.remove("model.safetensors");
        folder.put(instead, "x");
    };
    said(&|f| f.remove("config.json"), &["no config.json", "model.safetensors"]);
    said(&|f| without(f, "pytorch_model.bin"), &["no safetensors", "PyTorch", "save_pretrained"]);
    said(&|f| without(f, "model-q4.gguf"), &["no safetensors", "GGUF"]);
    said(&|f| without(f, "notes.txt"), &["no safetensors", "notes.txt"]);
    said(
        &|f| {
            without(f, "a.safetensors");
            f.put("b.safetensors", "x");
        },
        &["several safetensors files", "a.safetensors, b.safetensors"],
    );
    assert_eq!(said(&|f| f.put("config.json", ""), &["config.json", "empty"]), Kind::Format);
    assert_eq!(said(&|f| f.put("tokenizer.json", [0xff, 0xfe]), &["tokenizer.json", "UTF-8"]), Kind::Format);
    assert_eq!(said(&|f| f.put("config.json", "version https://git-lfs.github.com/spec/v1"), &["git lfs pull"]), Kind::Format);
    let folder = model("file");
    let error = open_directory(&folder.0.join("config.json")).unwrap_err();
    assert!(error.message.contains("expected a model folder"), "{error}");
    assert_eq!(open_directory(&folder.0.join("absent")).unwrap_err().kind, Kind::Io);
    folder.put("model.safetensors", "");
    let error = count(&folder.0).unwrap_err();
    assert!(error.message.contains("0 bytes"), "{error}");
}

#[test]
fn adapters_are_named_and_not_taken_for_models() {
    let about = r#"{"peft_type": "LORA", "base_model_name_or_path": "some/base"}"#;
    let adapter = |folder: &Folder| {
        folder.put("adapter_config.json", about);
        folder.put("adapter_model.safetensors", file(&[("base_model.model.x.lora_A.weight".into(), vec![1])]));
    };
    let folder = model("adapter");
    adapter(&folder);
    let files = open_directory(&folder.0).unwrap();
    assert_eq!(files.sources.len(), 1);
    let note = &files.notes[0];
    assert!(note.contains("adapter_model.safetensors") && note.contains("`some/base`") && note.contains("not applied"), "{note}");
    for leave in [&["model.safetensors"][..], &["model.safetensors", "config.json"], &["model.safetensors", "adapter_model.safetensors"]] {
        let folder = model("adapter-alone");
        adapter(&folder);
        leave.iter().for_each(|name| folder.remove(name));
        let error = open_directory(&folder.0).unwrap_err();
        let said = error.message.contains("LoRA adapter for `some/base`") && error.message.contains("merge_and_unload");
        assert!(said && error.kind == Kind::Unsupported, "{leave:?}: {error}");
    }
}

#[test]
fn of_several_kinds_of_weight_files_the_right_one_is_taken() {
    let folder = model("several");
    let index = r#"{"weight_map": {"x": "model-00001-of-00002.safetensors"}}"#;
    folder.put("model.safetensors.index.json", index);
    let files = open_directory(&folder.0).unwrap();
    assert!(files.shards.is_none() && files.notes[0].contains("passed over"), "{:?}", files.notes);
    // The original release's own layout lies beside what transformers reads.
    let all = tensors();
    let folder = model("consolidated");
    folder.remove("model.safetensors");
    folder.put("consolidated.safetensors", file(&[("tok_embeddings.weight".into(), vec![1])]));
    let error = count(&folder.0).unwrap_err();
    assert!(error.message.contains("original release"), "{error}");
    folder.put("model-00001-of-00002.safetensors", file(&all[..9]));
    folder.put("model-00002-of-00002.safetensors", file(&all[9..]));
    assert!(count(&folder.0).is_ok());
}

#[test]
fn a_folder_without_tokenizer_json_says_which_tokenizer_it_has() {
    for (names, expected) in [
        (&["tokenizer.model"][..], "there is tokenizer.model,"),
        (&["tekken.json"], "there is tekken.json,"),
        (&["vocab.json", "merges.txt"], "there is vocab.json and merges.txt,"),
        (&["x.tiktoken"], "there is x.tiktoken,"),
        (&["vocab.txt"], "there is vocab.txt,"),
        (&[], "cannot be read or written"),
    ] {
        let folder = model("words");
        names.iter().for_each(|name| folder.put(name, "x"));
        let files = open_directory(&folder.0).unwrap();
        let text = Opened::new("words".into(), files, ResolveOptions::default()).unwrap().without_words("give ids").message;
        assert!(text.contains("no tokenizer.json") && text.contains(expected), "{text}");
        assert_eq!(text.contains("save_pretrained"), !names.is_empty(), "{text}");
    }
}

#[cfg(unix)]
#[test]
fn the_hubs_cache_is_understood_and_unfinished_downloads_are_named() {
    let cache = Folder::new("hub");
    let of_model = cache.0.join("models--some--model");
    let snapshot = |name: &str| {
        let folder = of_model.join("snapshots").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.json"), CONFIG).unwrap();
        std::fs::write(folder.join("model.safetensors"), file(&tensors())).unwrap();
        folder
    };
    let first = snapshot("aaaa");
    let opened = open_directory(&of_model).unwrap();
    assert!(opened.path == first && opened.notes[0].contains("aaaa"), "{:?}", opened.notes);
    let second = snapshot("bbbb");
    let error = open_directory(&of_model).unwrap_err();
    assert!(error.message.contains("aaaa, bbbb") && error.message.contains("refs/main"), "{error}");
    std::fs::create_dir_all(of_model.join("refs")).unwrap();
    std::fs::write(of_model.join("refs/main"), "bbbb\n").unwrap();
    assert_eq!(open_directory(&of_model).unwrap().path, second);
    assert!(open_directory(&cache.0).unwrap_err().message.contains("models--some--model"));

    // What the Hub's client leaves when it is stopped.
    std::fs::create_dir_all(of_model.join("blobs")).unwrap();
    std::fs::write(of_model.join("blobs/1234.incomplete"), "x").unwrap();
    for name in ["model.safetensors", "config.json"] {
        std::fs::remove_file(second.join(name)).unwrap();
        std::os::unix::fs::symlink("../../blobs/1234", second.join(name)).unwrap();
        let error = open_directory(&of_model).unwrap_err();
        let said = error.message.contains(name) && error.message.contains("../../blobs/1234");
        assert!(said && error.message.contains("did not finish (1234.incomplete)"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn texts_that_are_no_files_are_refused() {
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let folder = model("devices");
        let _ = std::fs::remove_file(folder.0.join(name));
        std::os::unix::fs::symlink("/dev/zero", folder.0.join(name)).unwrap();
        let error = open_directory(&folder.0).unwrap_err();
        assert!(error.message.contains("regular file") && error.message.contains(name), "{error}");
    }
}

#[test]
fn fixture_files_of_every_type_are_read_and_bad_ones_refused() {
    let (fixtures, _) = crate::support::fixtures();
    let folder = fixtures.join("models/safetensors");
    for part in ["hf_samples", "swift"] {
        for entry in std::fs::read_dir(folder.join(part)).unwrap() {
            let source = InMemory::open(&entry.unwrap().path()).unwrap();
            let header = block_on(read_header(&source)).unwrap();
            assert!(!header.tensors.is_empty());
        }
    }
    let source = InMemory::open(&folder.join("weight-inspect_tiny.safetensors")).unwrap();
    let error = block_on(read_header(&source)).unwrap_err();
    assert!(error.kind == Kind::Format && error.message.contains("5 bytes behind `test.weight.0`"), "{error}");
}

/// What `generate` of transformers 5.23 (with a cache or without) gives for phi4mini-longrope behind its 64 greedy ids,
/// where longrope's factors change.
const BEYOND_64: [u32; 21] = [190, 190, 145, 65, 101, 175, 154, 154, 154, 79, 38, 145, 228, 145, 207, 91, 8, 79, 5, 162, 32];

#[test]
fn fixture_models_generate_what_transformers_does() {
    let (fixtures, whole) = crate::support::fixtures();
    let mut loaded = Vec::new();
    for entry in std::fs::read_dir(fixtures.join("models/tiny_random")).unwrap() {
        let folder = entry.unwrap().path();
        // Without its weights a folder here is for the tests of configs.
        if !folder.is_dir() || (!whole && !folder.join("model.safetensors").is_file()) {
            continue;
        }
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let oracle = |plan: &Plan| CpuExecutor::<f32>::new(plan.clone(), Storage::F32).unwrap();
        let (executor, _) = match load_folder(&folder, oracle) {
            Ok(found) => found,
            // Families that Doppler does not run.
            Err(error) if error.kind == Kind::Unsupported => continue,
            Err(error) => panic!("{name}: {error}"),
        };
        let golden = InMemory::open(&folder.join("golden.safetensors")).unwrap();
        let header = block_on(read_header(&golden)).unwrap();
        let ids = |key: &str| -> Vec<u32> {
            let entry = header.tensors.iter().find(|t| t.name == key).unwrap();
            to_f32(&golden.slice(entry.range.clone()).unwrap(), DType::I32).iter().map(|id| *id as u32).collect()
        };
        let (prompt, expected) = (ids("input_ids"), ids("greedy_ids"));
        let expected = expected.strip_prefix(&prompt[..]).unwrap_or(&expected);
        for (chunk, hash_logits) in [(64, false), (7, true), (1, false)] {
            let setup = SessionOptions { capacity: 8, chunk, valid_vocab: 256, pad: None };
            let mut session = Session::new(&executor, setup).unwrap();
            let options = GenerateOptions { max_tokens: expected.len(), hash_logits, ..Default::default() };
            let found = block_on(session.generate(&prompt, &options, None, &mut |_| ControlFlow::Continue(()))).unwrap();
            assert_eq!((&found.ids[..], found.stop), (expected, StopReason::MaxTokens), "{name}, chunks of {chunk}");
            assert_eq!(found.logits_hash.is_some(), hash_logits);
        }
        if name == "phi4mini-longrope" {
            let setup = SessionOptions { capacity: 8, chunk: 16, valid_vocab: 256, pad: None };
            let mut session = Session::new(&executor, setup).unwrap();
            let options = GenerateOptions { max_tokens: 45, ..Default::default() };
            let found = block_on(session.generate(&prompt, &options, None, &mut |_| ControlFlow::Continue(()))).unwrap();
            assert_eq!((&found.ids[..24], &found.ids[24..]), (expected, &BEYOND_64[..]));
            assert!(found.notes[0].contains("crossed 64 tokens"), "{:?}", found.notes);
        }
        loaded.push(name);
    }
    loaded.sort_unstable();
    let own = ["gemma2", "olmo2", "phi4mini-longrope", "qwen2", "smollm3"];
    let dense = [
        "gemma",
        "gemma3_text",
        "gemma4_text",
        "gpt_neox",
        "granite",
        "llama",
        "llama3-rope",
        "mistral-headdim",
        "mistral-swa",
        "olmo3",
        "phi3",
        "qwen3",
    ];
    let experts = ["gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next"];
    for family in own.iter().chain(dense.iter().chain(&experts).filter(|_| whole)) {
        assert!(loaded.iter().any(|name| name == family), "{family} is not among {loaded:?}");
    }
}
