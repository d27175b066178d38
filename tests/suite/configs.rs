//! Real `config.json` files, those of `support::fixtures`, with an `INDEX.md` that says how each came about.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use doppler::config::{ModelConfig, ResolveOptions, resolve};
use doppler::error::{Error, Kind};
use serde_json::{Value, json};

use crate::support::fixtures;

/// Configs of a supported name that state another model type, for which the release has code of its own.
const OWN_CODE: [&str; 2] = ["phi-phi-1.5.json", "phi-phi-2.json"];

/// First words of the file and folder names of supported families.
const SUPPORTED: [&str; 29] = [
    "cohere",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma4",
    "gemma4_text",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "lfm2",
    "llama",
    "llama3",
    "mistral",
    "mistral3",
    "mixtral",
    "olmo2",
    "olmo3",
    "olmoe",
    "phi",
    "phi3",
    "phi4mini",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "smollm3",
    "starcoder2",
];

/// Values that no key should have, to be put in the place of every one.
fn wrong_values() -> [Value; 11] {
    [
        json!(null),
        json!("text"),
        json!(""),
        json!(-1),
        json!(0),
        json!(1e30),
        json!(true),
        json!([]),
        json!([null, "x", -1]),
        json!({}),
        json!({"rope_type": 3, "factor": []}),
    ]
}

/// Paths in `dir` for which `keep` holds, sorted.
fn list(dir: &Path, keep: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| keep(p));
    paths.sort();
    paths
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "json")
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn supported(path: &Path) -> bool {
    !OWN_CODE.contains(&name(path)) && SUPPORTED.contains(&name(path).split('-').next().unwrap())
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn config(path: &Path) -> Result<ModelConfig, Error> {
    let text = std::fs::read_to_string(path).unwrap();
    resolve(&text, None, ResolveOptions::default()).map(|r| r.config)
}

/// Every architecture or model type that the file states.
fn stated_names(config: &Value) -> Vec<String> {
    let architectures = config["architectures"].as_array().into_iter().flatten();
    architectures.chain([&config["model_type"]]).filter_map(|v| v.as_str().map(str::to_string)).collect()
}

#[test]
fn real_configs_resolve_or_are_refused_by_name() {
    let (root, whole) = fixtures();
    let index = std::fs::read_to_string(root.join("INDEX.md")).unwrap();
    let (mut resolved, mut adapted, mut refused) = (0, 0, 0);
    for path in list(&root.join("configs"), is_json) {
        let row = index.lines().find(|l| l.contains(&format!("| configs/{} |", name(&path))));
        let row = row.unwrap_or_else(|| panic!("{} is not in INDEX.md", path.display()));
        let faithful = ["VERBATIM", "NORMALISED", "RECONSTRUCTED"].iter().any(|word| row.contains(word));
        match config(&path) {
            Ok(_) => {
                assert!(supported(&path), "{}: resolved, but its family is not supported", path.display());
                resolved += 1;
            }
            Err(e) if supported(&path) => {
                assert!(!faithful, "{}: {e}", path.display());
                assert!(e.message.contains("config key"), "{}: {e}", path.display());
                adapted += 1;
            }
            Err(e) => {
                assert_eq!(e.kind, Kind::Unsupported, "{}: {e}", path.display());
                let names = stated_names(&read(&path));
                assert!(names.iter().any(|n| e.message.contains(n)), "{}: {e}", path.display());
                refused += 1;
            }
        }
    }
    let least = if whole { (75, 11) } else { (37, 4) };
    assert!(resolved >= least.0 && refused >= least.1, "{resolved} resolved, {adapted} adapted ones and {refused} others refused");
}

#[test]
fn configs_of_other_formats_are_refused() {
    let (root, _) = fixtures();
    for path in list(&root.join("configs/native"), is_json) {
        assert!(config(&path).is_err(), "{}", path.display());
    }
}

#[test]
fn both_dialects_resolve_alike() {
    let (root, _) = fixtures();
    let mut alike = 0;
    for dir in list(&root.join("models/tiny_random"), Path::is_dir) {
        let (new, old) = (dir.join("config.json"), dir.join("config.legacy.json"));
        if !supported(&dir) {
            assert_eq!(config(&new).unwrap_err().kind, Kind::Unsupported, "{}", dir.display());
            continue;
        }
        let resolved = config(&new).unwrap_or_else(|e| panic!("{}: {e}", new.display()));
        // Classes of version 5 have one dialect.
        if old.is_file() {
            assert_eq!(config(&old), Ok(resolved), "{}", dir.display());
            alike += 1;
        }
    }
    assert!(alike >= 15, "{alike}");
}

#[test]
fn wrong_values_never_panic_and_errors_have_words() {
    let (root, _) = fixtures();
    let mut files = list(&root.join("configs"), is_json);
    for dir in list(&root.join("models/tiny_random"), Path::is_dir) {
        files.extend(list(&dir, |p| name(p).starts_with("config.")));
    }
    for path in files {
        let config = read(&path);
        for place in places(&config) {
            for value in wrong_values() {
                check(&replaced(&config, &place, Some(value)));
            }
            check(&replaced(&config, &place, None));
        }
    }
}

#[test]
fn broken_text_never_panics() {
    let (root, _) = fixtures();
    for path in list(&root.join("configs"), |p| is_json(p) && supported(p)) {
        let text = std::fs::read_to_string(&path).unwrap();
        for end in (0..text.len()).step_by(37).filter(|end| text.is_char_boundary(*end)) {
            assert!(resolve(&text[..end], None, ResolveOptions::default()).is_err());
            let _ = resolve(&text, Some(&text[..end]), ResolveOptions::default());
        }
    }
}

/// Resolves strictly and leniently; a refusal must say something.
fn check(config: &Value) {
    let text = config.to_string();
    for allow_unknown in [false, true] {
        if let Err(e) = resolve(&text, Some(&text), ResolveOptions { allow_unknown }) {
            assert!(e.message.len() > 10, "{e:?} for {text}");
        }
    }
}

/// The paths of all keys, those of nested objects included.
fn places(value: &Value) -> Vec<Vec<String>> {
    let Some(object) = value.as_object() else { return Vec::new() };
    let mut places = Vec::new();
    for (key, inner) in object {
        places.push(vec![key.clone()]);
        places.extend(self::places(inner).into_iter().map(|rest| [vec![key.clone()], rest].concat()));
    }
    places
}

/// `config` with the value at `place` replaced, or removed.
fn replaced(config: &Value, place: &[String], value: Option<Value>) -> Value {
    let mut changed = config.clone();
    let (key, parents) = place.split_last().unwrap();
    let parent = parents.iter().fold(&mut changed, |v, k| &mut v[k.as_str()]);
    let object = parent.as_object_mut().unwrap();
    match value {
        Some(value) => object.insert(key.clone(), value),
        None => object.remove(key),
    };
    changed
}

/// A model of experts with these keys in place of the usual ones.
fn of_experts(changes: Value) -> Result<ModelConfig, Error> {
    let mut config = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
        "moe_intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": true, "router_aux_loss_coef": 0.001
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    resolve(&config.to_string(), None, ResolveOptions::default()).map(|r| r.config)
}

#[test]
fn experts_are_where_lists_and_steps_say() {
    let dense = |changes: Value| -> Vec<usize> {
        let config = of_experts(changes).unwrap();
        (0..config.layers.len()).filter(|layer| config.layers[*layer].dense().is_some()).collect()
    };
    assert_eq!(dense(json!({})), Vec::<usize>::new());
    assert_eq!(dense(json!({"mlp_only_layers": [0, 3]})), [0, 3]);
    assert_eq!(dense(json!({"decoder_sparse_step": 2})), [0, 2]);
    assert_eq!(dense(json!({"decoder_sparse_step": 3, "mlp_only_layers": [2]})), [0, 1, 2, 3]);
    let config = of_experts(json!({"mlp_only_layers": [1]})).unwrap();
    let experts = config.layers[0].experts().unwrap();
    assert_eq!((experts.router.experts, experts.router.chosen, experts.intermediate_size), (6, 2, 16));
    assert_eq!((experts.router.renormalise, config.layers[1].dense().unwrap().intermediate_size), (Some(0.0), 48));
    assert_eq!(of_experts(json!({"norm_topk_prob": false})).unwrap().layers[0].experts().unwrap().router.renormalise, None);
}

#[test]
fn what_is_wrong_of_experts_is_said_by_key() {
    // transformers writes one key under both names.
    assert_eq!(of_experts(json!({"num_local_experts": 6})), of_experts(json!({})));
    for (changes, words) in [
        (json!({"num_local_experts": 8}), ["`num_experts`", "`num_local_experts`, another name of it, is 8"]),
        (json!({"num_experts_per_tok": 7}), ["`num_experts_per_tok`", "7 experts of a token, of 6 in all"]),
        (json!({"num_experts": 100_000}), ["`num_experts`", "more than"]),
        (json!({"decoder_sparse_step": 0}), ["`decoder_sparse_step`", "from 1"]),
        (json!({"n_group": 2}), ["`n_group`", "could change its results"]),
    ] {
        let error = of_experts(changes.clone()).expect_err("a wrong config").message;
        assert!(words.iter().all(|word| error.contains(word)), "{changes}: {error}");
    }
}
