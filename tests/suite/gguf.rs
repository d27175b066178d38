//! GGUF files from outside: real vocabularies with the ids that llama.cpp gives, and the tiny models of its converter,
//! whose configs must be those of their config.json.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod layers;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use doppler::config::{FACTORS, GgufConfig, GgufTensors, ModelConfig, ResolveOptions, gguf_config, resolve};
use doppler::cpu::CpuExecutor;
use doppler::exec::{self, Executor, Rows, Step, Storage, Tokens};
use doppler::formats::gguf::{Header, Metadata, read_header};
use doppler::formats::{InMemory, Local, LocalFile};
use doppler::inference::tokenizer::{TokenIds, Tokenizer, TokenizerConfig, gguf_chat_template};
use doppler::loader::load;
use doppler::model::{Activation, LayerConfig, QueryKeyNorm, RopeConfig, RopeScaling};
use doppler::open::{Opened, open_gguf};
use pollster::block_on;

/// The published files, or `None` after saying that the test is skipped.
fn published(folder: &str) -> Option<PathBuf> {
    let (root, whole) = crate::support::fixtures();
    let folder = root.join(folder);
    if whole && folder.is_dir() {
        return Some(folder);
    }
    crate::support::skipped("the published GGUF files were not found: set DOPPLER_FIXTURES");
    None
}

/// The bytes of `path`, or of the same with `.gz`.
fn bytes(path: &Path) -> Option<Vec<u8>> {
    let mut unpacked = Vec::new();
    if let Ok(file) = std::fs::File::open(path.with_file_name(format!("{}.gz", path.file_name()?.to_str()?))) {
        flate2::read::GzDecoder::new(file).read_to_end(&mut unpacked).unwrap();
        return Some(unpacked);
    }
    std::fs::read(path).ok()
}

fn header(bytes: Vec<u8>) -> Header {
    pollster::block_on(read_header(&InMemory::new("file.gguf", bytes))).unwrap()
}

/// Texts and the ids that the published results give them.
fn cases(path: &Path) -> Vec<(String, Vec<u32>)> {
    let read = |end: &str| std::fs::read_to_string(format!("{}.{end}", path.display())).unwrap();
    let ids = |line: &str| line.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<u32>>();
    let (texts, results) = (read("inp"), read("out"));
    let texts = texts.split("\n__ggml_vocab_test__\n").map(str::to_owned);
    texts.zip(results.split('\n').map(ids)).collect()
}

#[test]
fn ids_of_published_vocabularies_are_those_of_llama_cpp() {
    let Some(folder) = published("tokenizers/ggml-vocab") else { return };
    let mut names: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|e| e == "inp"));
    names.sort();
    assert!(names.len() >= 11);
    let mut wrong = Vec::new();
    for path in names {
        let path = path.with_extension("");
        let header = header(bytes(&path).unwrap());
        let start = std::time::Instant::now();
        let tokenizer = Tokenizer::from_gguf(&header.metadata).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (cases, seconds) = (cases(&path), start.elapsed().as_secs_f64());
        let right = cases.iter().filter(|(text, ids)| {
            let got = tokenizer.encode(text, false).unwrap();
            if got != *ids {
                wrong.push(format!("{}: {text:?}: {got:?}, expected {ids:?}", path.display()));
            }
            got == *ids
        });
        let (right, name) = (right.count(), path.file_stem().unwrap().to_string_lossy().into_owned());
        let _ = writeln!(std::io::stdout(), "{name}: {right} of {} texts, read in {seconds:.2} s", cases.len());
        assert!(cases.len() > 40 && tokenizer.notes().is_empty(), "{name}: {:?}", tokenizer.notes());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Families with a published tokenizer.json too: the same ids, the same text, the same BOS.
#[test]
fn ids_are_those_of_tokenizer_json() {
    let (Some(folder), Some(files)) = (published("tokenizers/ggml-vocab"), published("tokenizers")) else { return };
    let pairs = [("llama-spm", "llama2"), ("phi-3", "phi3"), ("gpt-2", "gpt2"), ("llama-bpe", "llama3_2"), ("qwen2", "qwen3")];
    for (vocabulary, name) in pairs {
        let path = folder.join(format!("ggml-vocab-{vocabulary}.gguf"));
        let ours = Tokenizer::from_gguf(&header(bytes(&path).unwrap()).metadata).unwrap();
        let json = bytes(&files.join(name).join("tokenizer.json")).unwrap();
        let theirs = Tokenizer::from_bytes(&json, &TokenizerConfig::default(), &TokenIds::default()).unwrap();
        let whole: String = cases(&path).into_iter().map(|(text, _)| text + "\n").collect();
        let mut texts: Vec<String> = cases(&path).into_iter().map(|(text, _)| text).collect();
        let more = [
            "e\u{301}a\u{30a}\u{1e0b}\u{323}",
            "  a\u{a0}b\u{3000}c ",
            "aaa aaaaa\t\t\t x = '''",
            "<s> </s><|x|> \u{10ffff}\0",
            "▁▁ ▁▁▁a▁",
        ];
        texts.extend(more.map(str::to_owned));
        texts.extend([whole.repeat(3), " ".repeat(300)]);
        for text in texts {
            let ids = ours.encode(&text, false).unwrap();
            assert_eq!(ids, theirs.encode(&text, false).unwrap(), "{name}: {text:?}");
            assert_eq!(ours.decode(&ids, false).unwrap(), theirs.decode(&ids, false).unwrap(), "{name}: {text:?}");
            assert_eq!(ours.encode_spans(&text, false).unwrap(), theirs.encode_spans(&text, false).unwrap(), "{name}: {text:?}");
        }
    }
}

/// The merging of pieces by score as SentencePiece defines it: of all neighbours that make a piece the best one is joined,
/// of equals the first.
fn by_definition(tokens: &[String], scores: &[f64], text: &str) -> Vec<u32> {
    let by_text: BTreeMap<&str, usize> = tokens.iter().zip(0..).map(|(token, id)| (token.as_str(), id)).collect();
    let text = format!("▁{}", text.replace(' ', "▁"));
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let joined = |i: usize| by_text.get(format!("{}{}", parts[i], parts[i + 1]).as_str()).map(|id| scores[*id]);
        let found = (0..parts.len().saturating_sub(1)).filter_map(|i| Some((i, joined(i)?)));
        let best = found.fold(None, |best: Option<(usize, f64)>, next| if best.is_none_or(|b| next.1 > b.1) { Some(next) } else { best });
        let Some((i, _)) = best else { break };
        let right = parts.remove(i + 1);
        parts[i] += &right;
    }
    let byte = |b: u8| by_text[format!("<0x{b:02X}>").as_str()] as u32;
    parts.iter().flat_map(|part| by_text.get(part.as_str()).map_or(part.bytes().map(byte).collect(), |id| vec![*id as u32])).collect()
}

#[test]
fn pieces_by_score_are_merged_as_defined() {
    let Some(folder) = published("tokenizers/ggml-vocab") else { return };
    let metadata = header(bytes(&folder.join("ggml-vocab-llama-spm.gguf")).unwrap()).metadata;
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let tokens = metadata.texts("tokenizer.ggml.tokens").unwrap().unwrap();
    let scores: Vec<f64> = metadata.numbers("tokenizer.ggml.scores").unwrap().unwrap().scalars().map(|s| s.number().unwrap()).collect();
    let mut state = 88_172_645_463_325_252u64;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let marks = [" ", "  ", "\n", "-", "=", "'", "a", "é", "世", "1", "Ω", "\u{10000}"];
    for _ in 0..2000 {
        let mut text = String::new();
        for _ in 0..1 + next(12) {
            match next(3) {
                0 => text += &marks[next(marks.len())].repeat(1 + next(5)),
                _ => text += &tokens[259 + next(tokens.len() - 259)].replace('▁', " "),
            }
        }
        assert_eq!(tokenizer.encode(&text, false).unwrap(), by_definition(tokens, &scores, &text), "{text:?}");
    }
}

/// The factor on q·k of the first layer.
fn scale(config: &ModelConfig) -> f64 {
    config.attentions().next().unwrap().scale
}

/// The config that a file's header describes, with the values of its factors.
fn config_of(path: &Path) -> (GgufConfig, ModelConfig) {
    let source = Local::File(LocalFile::open(path).unwrap());
    let header = pollster::block_on(read_header(&source)).unwrap();
    let (mut shapes, mut factors) = (BTreeMap::new(), BTreeMap::new());
    for tensor in &header.tensors {
        shapes.insert(tensor.name.clone(), tensor.shape.clone());
        if FACTORS.contains(&tensor.name.as_str()) {
            let bytes = source.slice(tensor.range.clone()).unwrap();
            let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            factors.insert(tensor.name.clone(), values);
        }
    }
    let tensors = GgufTensors { shapes: &shapes, factors: &factors };
    let found = gguf_config(&header.metadata.to_json(), &tensors).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let text = serde_json::to_string(&found.config).unwrap();
    let resolved = resolve(&text, None, ResolveOptions::default()).unwrap_or_else(|e| panic!("{}: {e}\n{text}", path.display()));
    assert!(found.sources.iter().all(|(key, source)| found.config.contains_key(key) && !source.is_empty()));
    assert!(resolved.notes.is_empty(), "{}: {:?}", path.display(), resolved.notes);
    (found, resolved.config)
}

#[test]
fn configs_of_converted_models_are_those_of_config_json() {
    let Some(folder) = published("models/tiny_random") else { return };
    let families = [
        ("cohere", false),
        ("gemma", false),
        ("gemma2", false),
        ("gemma3_text", false),
        ("gemma3_text-linear", false),
        ("gemma4_text", false),
        ("gpt_oss", false),
        ("granite", true),
        ("lfm2", false),
        ("llama", true),
        ("llama3-rope", true),
        ("mistral-headdim", true),
        ("mistral-swa", true),
        ("mixtral", true),
        ("olmo2", false),
        ("olmo3", false),
        ("olmoe", false),
        ("phi", false),
        ("phi3", false),
        ("phi4mini-longrope", false),
        ("qwen2", false),
        ("qwen2_moe", false),
        ("qwen3", false),
        ("qwen3_moe", false),
        ("smollm3", true),
        ("starcoder2", false),
    ];
    for (name, neighbours) in families {
        let (found, mut ours) = config_of(&folder.join(name).join("model.gguf"));
        assert_eq!(
            (found.neighbouring_pairs, found.norms_hold_offset),
            (neighbours, name.starts_with("gemma") && name != "gemma4_text"),
            "{name}"
        );
        let text = std::fs::read_to_string(folder.join(name).join("config.json")).unwrap();
        let mut theirs = resolve(&text, None, ResolveOptions::default()).unwrap().config;
        // What the file cannot say: the family's name, token ids of a vocabulary that is a dummy, divisors by formula.
        ours.preset.clone_from(&theirs.preset);
        ours.tensors = theirs.tensors.clone();
        (ours.bos_token_id, ours.pad_token_id) = (theirs.bos_token_id, theirs.pad_token_id);
        ours.eos_token_ids.clone_from(&theirs.eos_token_ids);
        if name.starts_with("gemma2") || name.starts_with("gemma3") {
            assert_eq!(scale(&ours), (1.0 / 32f64).sqrt(), "{name}: the file has no query_pre_attn_scalar");
            theirs.attentions_mut().for_each(|a| a.scale = scale(&ours));
        }
        if matches!(name, "mistral-swa" | "starcoder2") {
            assert!(theirs.layers.iter().all(|layer| layer.window().is_some()), "the file has no window");
            theirs.attentions_mut().for_each(|a| a.window = None);
        }
        if let RopeScaling::LongRope { short_factor, attention_factor, .. } = &ours.ropes[0].scaling {
            assert!(!short_factor.is_empty() && *attention_factor >= 1.0);
            if name == "llama3-rope" {
                let of = |config: &ModelConfig| doppler::plan::rope::frequencies(&config.ropes[0], false);
                let ((a, x), (b, y)) = (of(&ours), of(&theirs));
                assert!(x == y && a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 3e-7 * b), "{a:?} {b:?}");
                ours.ropes = theirs.ropes.clone();
            }
        }
        let close = |a: &RopeScaling, b: &RopeScaling| match (a, b) {
            (
                RopeScaling::LongRope { short_factor: s, long_factor: l, attention_factor: x, original_max_positions: o },
                RopeScaling::LongRope { short_factor: t, long_factor: m, attention_factor: y, original_max_positions: p },
            ) => {
                let near = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6 * b.abs());
                near(s, t) && near(l, m) && (x - y).abs() < 1e-6 && o == p
            }
            (a, b) => a == b,
        };
        for (a, b) in ours.ropes.iter_mut().zip(&theirs.ropes) {
            assert!(close(&a.scaling, &b.scaling), "{name}: {:?} {:?}", a.scaling, b.scaling);
            a.scaling = b.scaling.clone();
        }
        assert_eq!(ours, theirs, "{name}");
    }
}

/// The files that `tests/fixtures/gguf/make.py` wrote from golden models.
#[test]
fn configs_and_ids_of_golden_models_survive() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for (model, kind) in [("llama3", "f16"), ("gemma", "f16"), ("phi3", "q8_0")] {
        let path = root.join(format!("fixtures/gguf/{model}.{kind}.gguf"));
        let (_, mut ours) = config_of(&path);
        let folder = root.join("data").join(model);
        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let theirs = resolve(&text, None, ResolveOptions::default()).unwrap().config;
        assert_eq!(ours.ropes.len(), theirs.ropes.len());
        let of = |config: &ModelConfig| doppler::plan::rope::frequencies(&config.ropes[0], false).0;
        let worst = of(&ours).iter().zip(&of(&theirs)).map(|(a, b)| (f64::from(*a) / f64::from(*b) - 1.0).abs()).fold(0.0, f64::max);
        assert!(worst < 5e-7, "{model}: {worst:e}");
        ours.ropes.clone_from(&theirs.ropes);
        if !folder.join("tokenizer.json").exists() {
            (ours.bos_token_id, ours.pad_token_id) = (theirs.bos_token_id, theirs.pad_token_id);
            ours.eos_token_ids.clone_from(&theirs.eos_token_ids);
        }
        assert_eq!(ours, theirs, "{model}");
        let metadata = header(std::fs::read(&path).unwrap()).metadata;
        let Ok(cases) = std::fs::read_to_string(folder.join("tokenizer_cases.json")) else {
            assert!(Tokenizer::from_gguf(&metadata).err().unwrap().message.contains("no_vocab"));
            continue;
        };
        let (tokenizer, cases) = (Tokenizer::from_gguf(&metadata).unwrap(), serde_json::from_str::<serde_json::Value>(&cases).unwrap());
        for case in cases["texts"].as_array().unwrap() {
            let ids = |key: &str| case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>();
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids("ids"), "{model}: {text:?}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids("ids_raw"), "{model}: {text:?}");
            // transformers shows control tokens that no key names; a GGUF file has no such difference, and none is shown.
            let shown = case["decoded"].as_str().unwrap().replace("<turn>", "").replace("<end>", "");
            assert_eq!(tokenizer.decode(&ids("ids"), true).unwrap(), shown, "{model}: {text:?}");
        }
        assert!(gguf_chat_template(&metadata).unwrap().is_some_and(|template| template.is_string()), "{model}");
    }
}

#[test]
fn other_published_files_are_read_or_refused() {
    let (Some(made), Some(models)) = (published("gguf_made"), published("models/gguf")) else { return };
    for name in ["gemma3-a.f16", "llama3-a.f16", "llama3-a.q8_0", "phi3-a.q8_0", "qwen3-a.q8_0"] {
        let path = made.join(format!("{name}.gguf"));
        let (_, config) = config_of(&path);
        let metadata = header(std::fs::read(&path).unwrap()).metadata;
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(tokenizer.vocab_size() as usize <= config.vocab_size && !tokenizer.eos().is_empty(), "{name}");
        assert_eq!(
            config.attentions().all(|a| a.query_key_norm == QueryKeyNorm::PerHead),
            name.starts_with("gemma3") || name.starts_with("qwen3")
        );
        let text = "Hello  world, é 世界 123\n";
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}");
    }
    for name in ["stories260K-f16", "stories260K-f32", "stories260K-q4_0", "stories260K-q8_0", "milkdrift-tiny-llama-f32"] {
        let (found, _) = config_of(&models.join(format!("{name}.gguf")));
        assert!(found.neighbouring_pairs, "{name}");
    }
    let (_, gptoss) = config_of(&made.join("gptoss-a.q8_0.gguf"));
    assert!(gptoss.attentions().all(|a| a.sinks && a.qkv_bias && a.o_bias) && gptoss.experts().all(|e| e.bias && e.router_bias));
    assert!(matches!(gptoss.ropes[..], [RopeConfig { scaling: RopeScaling::Yarn { truncate: false, .. }, .. }]), "{:?}", gptoss.ropes);
    let none = BTreeMap::new();
    let tensors = GgufTensors { shapes: &none, factors: &BTreeMap::new() };
    let other = serde_json::json!({"general.architecture": "mamba"});
    let error = gguf_config(other.as_object().unwrap(), &tensors).unwrap_err().message;
    assert!(error.contains("mamba") && error.contains("smollm3"), "{error}");
    let cut = Local::File(LocalFile::open(&models.join("weight-inspect_tiny.gguf")).unwrap());
    assert!(pollster::block_on(read_header(&cut)).unwrap_err().message.contains("truncated"));
}

#[test]
fn what_is_not_known_is_named() {
    let empty = Metadata::default();
    let error = Tokenizer::from_gguf(&empty).err().unwrap().message;
    assert!(error.contains("`tokenizer.ggml.model`: is missing"), "{error}");
    let (shapes, factors) = (BTreeMap::from([("token_embd.weight".to_owned(), vec![8, 4])]), BTreeMap::new());
    let good = serde_json::json!({
        "general.architecture": "llama", "llama.embedding_length": 4, "llama.feed_forward_length": 8, "llama.block_count": 1,
        "llama.context_length": 16, "llama.attention.head_count": 2, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.expert_count": 0, "llama.vocab_size": 8,
    });
    let read = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let mut metadata = good.as_object().unwrap().clone();
        change(&mut metadata);
        gguf_config(&metadata, &GgufTensors { shapes: &shapes, factors: &factors })
    };
    let found = read(&|_| ()).unwrap();
    assert_eq!((found.config["head_dim"].as_u64(), found.config["tie_word_embeddings"].as_bool()), (Some(2), Some(true)));
    assert!(found.sources.iter().any(|(key, source)| key == "rope_theta" && source.starts_with("GGUF convention: ")));
    let error = |key: &str, value: serde_json::Value, expected: &str| {
        let error = read(&|m| drop(m.insert(key.to_owned(), value.clone()))).unwrap_err().message;
        assert!(error.contains(expected), "{error}");
    };
    error("llama.expert_count", 8.into(), "`llama.expert_used_count`: is missing");
    error("llama.logit_scale", 0.5.into(), "`llama.logit_scale`");
    error("llama.block_count", "two".into(), "`llama.block_count`: expected a whole number");
    error("llama.attention.head_count", serde_json::json!([2, 4]), "layers differ");
    error("llama.rope.dimension_count", 1.into(), "`llama.rope.dimension_count`: 1 differs");
    error("llama.rope.scaling.type", "other".into(), "\"other\"");
    error("general.architecture", "mamba".into(), "\"mamba\" is not supported (supported: command-r, ");
    for key in ["llama.embedding_length", "llama.attention.layer_norm_rms_epsilon", "general.architecture"] {
        assert!(read(&|m| drop(m.remove(key))).unwrap_err().message.contains(&format!("`{key}`: is missing")), "{key}");
    }
}

/// The config of a small model of `architecture` with these tensors, beside what all have, and these metadata.
fn config_with(architecture: &str, shapes: &[&str], more: &serde_json::Value) -> doppler::Result<ModelConfig> {
    let mut shapes: BTreeMap<String, Vec<usize>> = shapes.iter().map(|name| ((*name).to_owned(), vec![1])).collect();
    shapes.insert("token_embd.weight".to_owned(), vec![8, 8]);
    let mut metadata = serde_json::Map::from_iter([("general.architecture".to_owned(), architecture.into())]);
    let sizes = serde_json::json!({
        "embedding_length": 8, "feed_forward_length": 8, "block_count": 4, "context_length": 512, "attention.head_count": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    });
    for (key, value) in sizes.as_object().unwrap().iter().chain(more.as_object().unwrap()) {
        metadata.insert(format!("{architecture}.{key}"), value.clone());
    }
    let found = gguf_config(&metadata, &GgufTensors { shapes: &shapes, factors: &BTreeMap::new() })?;
    resolve(&serde_json::to_string(&found.config).unwrap(), None, ResolveOptions::default()).map(|resolved| resolved.config)
}

#[test]
fn what_files_leave_unsaid_is_what_transformers_does() {
    use serde_json::json;
    let ropes = |config: &ModelConfig| config.attentions().map(|a| a.rope.is_some()).collect::<Vec<_>>();
    let windows = |config: &ModelConfig| config.layers.iter().map(LayerConfig::window).collect::<Vec<_>>();
    // Layers without a window have no RoPE, but where none has one.
    let config = config_with("exaone4", &[], &json!({})).unwrap();
    assert_eq!((windows(&config), ropes(&config)), (vec![None; 4], vec![true; 4]));
    let config = config_with("exaone4", &[], &json!({"attention.sliding_window": 16})).unwrap();
    assert_eq!(windows(&config), [Some(16), Some(16), Some(16), None]);
    assert_eq!(ropes(&config), [true, true, true, false]);

    let yarn = json!({
        "rope.scaling.type": "yarn", "rope.scaling.factor": 16.0, "rope.scaling.original_context_length": 64,
        "attention.temperature_scale": 0.1, "rope.scaling.yarn_log_multiplier": 1.0, "attention.key_length": 4, "attention.value_length": 4,
    });
    let grown = config_with("mistral3", &[], &yarn).unwrap();
    let RopeScaling::Yarn { attention_factor, .. } = grown.ropes[0].scaling else { panic!("no YaRN") };
    let growth = grown.ropes.iter().find_map(|rope| rope.growth.as_ref()).unwrap();
    assert_eq!((attention_factor, growth.beta, growth.original_max_positions), (1.0, 0.1, 64));
    let of_olmo = json!({"attention.sliding_window": 8, "rope.freq_base": 2e4, "rope.freq_base_swa": 3e4});
    let config = config_with("olmo2", &[], &of_olmo).unwrap();
    let bases: Vec<f64> = config.attentions().map(|a| config.ropes[a.rope.unwrap()].theta).collect();
    assert_eq!((bases, windows(&config)), (vec![3e4, 3e4, 3e4, 2e4], vec![Some(8), Some(8), Some(8), None]));
    // Without growth it is Mistral.
    let plain = config_with("mistral3", &[], &json!({})).unwrap();
    assert!(plain.ropes.iter().all(|rope| rope.growth.is_none()) && plain.attentions().all(|a| a.query_rope.is_none()));

    let of_granite =
        json!({"logit_scale": 4.0, "rope.scaling.finetuned": false, "attention.head_count_kv": [1, 1, 1, 1], "ssm.state_size": 128});
    let config = config_with("granite", &[], &of_granite).unwrap();
    let wide = json!({"logit_scale": 4.0, "rope.scaling.finetuned": true, "expert_shared_feed_forward_length": 24});
    let wide = config_with("granite", &[], &wide).unwrap();
    assert!(wide.denses().all(|dense| dense.intermediate_size == 24) && ropes(&wide) == [true; 4]);
    assert_eq!(ropes(&config), [false; 4]);
    assert!(config.attentions().all(|a| a.num_kv_heads == 1));
}

#[test]
fn numbers_of_yarn_biases_of_fused_tensors_and_missing_windows_are_read() {
    let of = |architecture: &str, shapes: &[&str], more: serde_json::Value| config_with(architecture, shapes, &more);
    let yarn = |more: serde_json::Value| {
        let mut keys =
            serde_json::json!({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64});
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        of("llama", &[], keys)
    };
    let RopeScaling::Yarn { beta_fast, beta_slow, attention_factor, .. } = yarn(serde_json::json!({})).unwrap().ropes[0].scaling else {
        panic!("no YaRN")
    };
    assert_eq!((beta_fast, beta_slow, attention_factor), (32.0, 1.0, 0.1 * libm::log(4.0) + 1.0));
    let stated = serde_json::json!({
        "rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0, "rope.scaling.yarn_attn_factor": 1.25,
        "rope.scaling.yarn_ext_factor": 1.0,
    });
    let config = yarn(stated).unwrap();
    let RopeScaling::Yarn { beta_fast, beta_slow, attention_factor, .. } = config.ropes[0].scaling else { panic!("no YaRN") };
    assert_eq!((beta_fast, beta_slow, attention_factor), (16.0, 2.0, 1.25));
    // And they are written as they are read.
    let written = doppler::config::gguf_model(&config).unwrap().metadata;
    let number = |key: &str| written.get(&format!("llama.rope.scaling.{key}")).and_then(serde_json::Value::as_f64);
    assert_eq!(["yarn_beta_fast", "yarn_beta_slow", "yarn_attn_factor"].map(number), [Some(16.0), Some(2.0), Some(1.25)]);
    assert!(yarn(serde_json::json!({"rope.scaling.yarn_ext_factor": 0.5})).unwrap_err().message.contains("0.5 is not supported"));
    let error = of("llama", &[], serde_json::json!({"rope.scaling.type": "longrope"})).unwrap_err().message;
    assert!(error.contains("rope_factors_long.weight"), "{error}");

    let fused = ["blk.0.attn_qkv.bias", "blk.0.attn_output.bias", "blk.0.ffn_gate.bias"];
    let config = of("llama", &fused, serde_json::json!({})).unwrap();
    assert!(config.attentions().all(|a| a.qkv_bias && a.o_bias) && config.denses().all(|dense| dense.bias));
    assert!(of("llama", &fused[..1], serde_json::json!({})).unwrap_err().message.contains("only some"));

    let windows = |more: serde_json::Value| of("gemma3", &[], more).unwrap().layers.iter().map(LayerConfig::window).collect::<Vec<_>>();
    assert_eq!(windows(serde_json::json!({})), [None; 4]);
    assert_eq!(windows(serde_json::json!({"attention.sliding_window": 16})), [Some(16); 4]);
}

#[test]
fn whether_blocks_are_parallel_must_be_stated() {
    let shapes = ["token_embd.weight", "output.weight", "blk.0.attn_qkv.bias", "blk.0.attn_output.bias"];
    let shapes: BTreeMap<String, Vec<usize>> = shapes.iter().map(|name| ((*name).to_owned(), vec![8, 8])).collect();
    let read = |parallel: Option<bool>| {
        let mut metadata = serde_json::json!({
            "general.architecture": "gptneox", "gptneox.embedding_length": 8, "gptneox.feed_forward_length": 12, "gptneox.block_count": 2,
            "gptneox.context_length": 64, "gptneox.attention.head_count": 2, "gptneox.attention.layer_norm_epsilon": 1e-5,
            "gptneox.rope.dimension_count": 2,
        });
        if let Some(parallel) = parallel {
            metadata["gptneox.use_parallel_residual"] = parallel.into();
        }
        let tensors = GgufTensors { shapes: &shapes, factors: &BTreeMap::new() };
        let found = gguf_config(metadata.as_object().unwrap(), &tensors)?;
        resolve(&serde_json::to_string(&found.config).unwrap(), None, ResolveOptions::default()).map(|resolved| resolved.config)
    };
    for parallel in [false, true] {
        let config = read(Some(parallel)).unwrap();
        assert!(config.activations().all(|activation| activation == Activation::Gelu));
        assert!(config.layers.iter().all(|layer| layer.parallel == parallel && layer.norms.before_ffn && !layer.dense().unwrap().gated));
        assert!(config.attentions().all(|a| a.qkv_bias && a.o_bias) && !config.tie_word_embeddings);
        assert_eq!(config.ropes[0].rotary_dim, 2);
        let written = doppler::config::gguf_model(&config).unwrap();
        assert_eq!(written.metadata.get("gptneox.use_parallel_residual"), Some(&parallel.into()));
        assert_eq!(written.fused, ["blk.{layer}.attn_qkv"]);
    }
    assert!(read(None).unwrap_err().message.contains("`gptneox.use_parallel_residual`: is missing"));
}

#[test]
fn spaces_after_phi_3s_tokens_and_equal_scores() {
    let tokens = ["<unk>", "<s>", "</s>", "<|assistant|>", "<|end|>", "<0x0A>", "▁", "a", "▁a", "aa"].map(String::from);
    let types = [2, 3, 4, 3, 3, 6, 1, 1, 1, 1];
    let read = |architecture: &str, scores: [f32; 10]| {
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", architecture);
        metadata.set("tokenizer.ggml.model", "llama");
        metadata.set("tokenizer.ggml.tokens", tokens.to_vec());
        metadata.set("tokenizer.ggml.token_type", &types[..]);
        metadata.set("tokenizer.ggml.scores", &scores[..]);
        metadata.set("tokenizer.ggml.bos_token_id", 1u32);
        metadata.set("tokenizer.ggml.add_bos_token", false);
        metadata.set("tokenizer.ggml.add_space_prefix", false);
        Tokenizer::from_gguf(&metadata).unwrap()
    };
    let scores = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -4.0, -3.0, -1.0, -2.0];
    let text = "<|assistant|>\na<|end|>\na</s> a";
    assert_eq!(read("phi3", scores).encode(text, false).unwrap(), [3, 7, 4, 5, 7, 2, 7]);
    assert_eq!(read("llama", scores).encode(text, false).unwrap(), [3, 5, 7, 4, 5, 7, 2, 8]);
    assert!(read("phi3", scores).notes().is_empty());
    assert!(matches!(read("phi3", [-1000.0; 10]).notes(), [note] if note.contains("all pieces have the same score")));
}

/// Files that another program's converter made are the models that they were made from: the same logits, to what f16 keeps
/// of the weights, and the same greedy ids where they are stored exactly.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn converted_models_are_the_models_that_they_were_made_from() {
    let Some(folder) = published("models/tiny_random") else { return };
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // Files of these architectures do not state the window, in llama.cpp either.
        if path.ends_with("mistral-swa")
            || path.ends_with("starcoder2")
            || !path.join("model.gguf").is_file()
            || !path.join("config.json").is_file()
        {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Ok(files) = doppler::loader::open_directory(&path) else { continue };
        let Ok(plain) = Opened::new(name.clone(), files, ResolveOptions::default()) else { continue };
        let source = Local::File(LocalFile::open(&path.join("model.gguf")).unwrap());
        let files = block_on(open_gguf(path.join("model.gguf"), vec![source])).unwrap();
        let mut packed = Opened::new(name.clone(), files, ResolveOptions::default()).unwrap();
        // The one number that a file cannot say and that these tiny models have otherwise.
        let found = scale(&plain.resolved.config);
        if scale(&packed.resolved.config) != found {
            assert!(name.starts_with("gemma") && !name.starts_with("gemma4"), "{name}");
            packed.resolved.config.attentions_mut().for_each(|a| a.scale = found);
            packed.plan = doppler::inference::pipeline::build(&packed.resolved.config).unwrap();
        }
        let logits = |model: &Opened| {
            let weights = block_on(model.weights()).unwrap();
            let mut executor = CpuExecutor::<f64>::new(model.plan.clone(), Storage::F32).unwrap();
            block_on(load(&model.plan, &weights.checkpoint, &weights.matched, true, &mut executor, &mut |_| {})).unwrap();
            let ids: Vec<u32> = (0..24).map(|i| (i * 37 + 5) % model.plan.vocab_size as u32).collect();
            let mut cache = executor.new_cache(32, 32).unwrap();
            let step =
                Step { tokens: Tokens::Ids(&ids), rows: Rows::Last, pick: None, read: exec::Read::Logits, long_rope: false, requests: &[] };
            (weights.types(), block_on(executor.step(&mut cache, &step)).unwrap().logits.unwrap())
        };
        let ((types, expected), (stored, found)) = (logits(&plain), logits(&packed));
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let off = norm(&mut expected.iter().zip(&found).map(|(a, b)| f64::from(a - b))) / norm(&mut expected.iter().map(|a| f64::from(*a)));
        println!("{name}: {types} as {stored}: logits off by {off:.2e}");
        assert!(off < 1e-5, "{name}: {off:e}");
        seen += 1;
    }
    assert!(seen >= 10, "{seen}");
}
