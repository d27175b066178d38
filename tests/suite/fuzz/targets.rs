//! What is parsed: each target with files to begin with and the code that users reach.

use crate::support::fixtures;
use doppler::Result;
use doppler::config::{ResolveOptions, RuntimeConfig, resolve};
use doppler::debug::anomaly::Profile;
use doppler::debug::bundle::{Bundle, Contents};
use doppler::debug::dump::Dump;
use doppler::debug::exam::items;
use doppler::formats::gguf::{Header, read_header};
use doppler::formats::safetensors::{Output, write};
use doppler::formats::shards::ShardIndex;
use doppler::formats::{InMemory, Local};
use doppler::inference::chat::{ChatInput, ChatTemplate, Clock, Message};
use doppler::inference::tokenizer::{TokenIds, Tokenizer, TokenizerConfig};
use doppler::inference::words::{Chat, Words};
use doppler::loader::Checkpoint;
use doppler::open::{Opened, open_gguf};
use pollster::block_on;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

pub struct Target {
    pub name: &'static str,
    /// Files that are whole.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of the format.
    pub words: &'static [&'static str],
    /// Reads an input; the words of the error, if there is one.
    pub run: fn(&[u8]) -> Option<String>,
    /// How many times as slow as others it is.
    pub cost: u64,
    /// Memory that it may take: in all, and for each byte of input.
    pub heap: usize,
    pub heap_per_byte: usize,
}

const fn target(name: &'static str, seeds: fn() -> Vec<Vec<u8>>, run: fn(&[u8]) -> Option<String>) -> Target {
    Target { name, seeds, words: &[], run, cost: 1, heap: 8 << 20, heap_per_byte: 200 }
}

#[rustfmt::skip]
pub const TARGETS: [Target; 17] = [
    Target { cost: 5, heap: 32 << 20, ..target("gguf", ggufs, gguf) },
    Target { words: &["tokenizer.ggml.pre", "llama", "gpt2", "qwen2", "spm", "bpe"], cost: 5, heap: 32 << 20, ..target("gguf_vocabulary", gguf_headers, gguf_vocabulary) },
    Target { words: &["dtype", "shape", "data_offsets", "F32", "BF16", "F8_E4M3", "__metadata__"], ..target("safetensors", safetensors, safetensors_file) },
    target("shards", indexes, shards),
    Target { words: CONFIG_WORDS, ..target("config", configs, config) },
    Target { words: PACKING_WORDS, ..target("packed_config", packed_configs, packed_config) },
    target("manifest", manifests, manifest),
    target("importance", importances, importance),
    target("runtime", runtimes, runtime),
    Target { words: TOKENIZER_WORDS, cost: 10, heap: 64 << 20, heap_per_byte: 2000, ..target("tokenizer", tokenizers, tokenizer) },
    target("tokenizer_config", tokenizer_configs, tokenizer_config),
    Target { words: JINJA_WORDS, cost: 2, heap: 256 << 20, ..target("template", templates, template) },
    target("conversation", conversations, conversation),
    target("dump", dumps, dump),
    target("bundle", bundles, bundle),
    target("profile", profiles, profile),
    target("exam", exams, exam),
];

const CONFIG_WORDS: &[&str] = &[
    "model_type",
    "rope_scaling",
    "rope_parameters",
    "rope_type",
    "yarn",
    "llama3",
    "longrope",
    "linear",
    "layer_types",
    "sliding_window",
    "sliding_attention",
    "full_attention",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "gelu_pytorch_tanh",
    "quantization_config",
];
const PACKING_WORDS: &[&str] = &[
    "quantization_config",
    "quant_method",
    "gptq",
    "awq",
    "compressed-tensors",
    "fp8",
    "bitsandbytes",
    "bits",
    "group_size",
    "desc_act",
    "checkpoint_format",
    "gptq_v2",
    "weight_block_size",
    "config_groups",
    "num_bits",
    "strategy",
    "group",
    "channel",
    "modules_to_not_convert",
];
const TOKENIZER_WORDS: &[&str] = &[
    "BPE",
    "Unigram",
    "WordPiece",
    "ByteLevel",
    "Metaspace",
    "Sequence",
    "Split",
    "Replace",
    "CTC",
    "BPEDecoder",
    "Prepend",
    "Precompiled",
    "NFKC",
    "Strip",
    "TemplateProcessing",
    "(?i:a|b)*",
    "(a+)+$",
    "\\p{L}+",
    "FixedLength",
];
const JINJA_WORDS: &[&str] = &[
    "{%",
    "%}",
    "{{",
    "}}",
    "{#",
    "#}",
    "{%- for m in messages %}",
    "{% endfor %}",
    "{% if x %}",
    "{% endif %}",
    "{% set a = ",
    "| tojson",
    "| join",
    "loop.index0",
    "namespace(a=1)",
    "range(999999999)",
    "* 99999999",
    "messages[0]['content']",
    "raise_exception('no')",
    "~",
    "**",
    ".split()",
    "[::-1]",
    "{% macro f(a) %}",
    "{% endmacro %}",
    "f(f)",
    "strftime_now('%Y')",
    "is defined",
    "not in",
];

/// The words of a failure.
fn words<T>(result: Result<T>) -> Option<String> {
    result.err().map(|error| error.to_string())
}
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(root().join(&path)).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}
/// Files called `name` in the folders of golden models.
fn golden(name: &str) -> Vec<Vec<u8>> {
    let folders = std::fs::read_dir(root().join("tests/data")).expect("golden models");
    let mut paths: Vec<PathBuf> = folders.map(|folder| folder.expect("a folder").path().join(name)).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.iter().map(read).collect()
}
fn memory(name: &str, bytes: &[u8]) -> InMemory {
    InMemory::new(name, bytes.to_vec())
}
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ggufs() -> Vec<Vec<u8>> {
    let names = ["gemma.f16.gguf", "llama3.f16.gguf", "phi3.q8_0.gguf", "qwen3-5.bf16.gguf", "gemma4-shared.bf16.gguf"];
    names.map(|name| read(Path::new("tests/fixtures/gguf").join(name))).to_vec()
}
/// A whole model: config, plan, weights, words.
fn gguf(bytes: &[u8]) -> Option<String> {
    let open = || {
        let files = block_on(open_gguf("model.gguf".into(), vec![Local::Memory(memory("model.gguf", bytes))]))?;
        let opened = Opened::new("model".into(), files, ResolveOptions::default())?;
        let words = opened.words()?;
        block_on(opened.weights()).map(|_| words.map(|words| words.tokenizer.vocab_size()))
    };
    words(open())
}
/// The files without their weights.
fn gguf_headers() -> Vec<Vec<u8>> {
    let cut = |bytes: Vec<u8>| {
        let header: Header = block_on(read_header(&memory("model.gguf", &bytes))).expect("a header");
        let start = header.tensors.iter().map(|tensor| tensor.range.start).min().expect("tensors");
        bytes[..start as usize].to_vec()
    };
    let mut headers: Vec<Vec<u8>> = ggufs().into_iter().map(cut).collect();
    // No tensors: what remains is metadata.
    headers.iter_mut().for_each(|header| header[8..16].fill(0));
    headers
}
fn gguf_vocabulary(bytes: &[u8]) -> Option<String> {
    let read = || {
        let header = block_on(read_header(&memory("model.gguf", bytes)))?;
        let Some(words) = Words::of_gguf(&header.metadata)? else { return Ok(()) };
        speak(&words.tokenizer)?;
        words.chat(&Chat { messages: vec![Message::new("user", "Hello")], ..Chat::default() }, NOW).map(drop)
    };
    words(read())
}

fn safetensors() -> Vec<Vec<u8>> {
    vec![read("tests/data/llama2/model.safetensors"), read("tests/fixtures/models/safetensors/weight-inspect_tiny.safetensors")]
}
fn safetensors_file(bytes: &[u8]) -> Option<String> {
    words(block_on(Checkpoint::open(vec![memory("model.safetensors", bytes)], None)))
}

fn indexes() -> Vec<Vec<u8>> {
    let map = r#"{"metadata":{"total_size":64},"weight_map":{"a.weight":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    vec![map.into()]
}
fn shards(bytes: &[u8]) -> Option<String> {
    words(ShardIndex::parse("model.safetensors.index.json", &text(bytes)))
}

fn configs() -> Vec<Vec<u8>> {
    golden("config.json")
}
/// A config, strictly and not, and the same text as the generation's.
fn config(bytes: &[u8]) -> Option<String> {
    let text = text(bytes);
    let plan = |allow_unknown| {
        let resolved = resolve(&text, Some(&text), ResolveOptions { allow_unknown })?;
        doppler::inference::pipeline::build(&resolved.config).map(drop)
    };
    let strict = words(plan(false));
    words(plan(true)).or(strict)
}

/// Configs of packed checkpoints.
fn packed_configs() -> Vec<Vec<u8>> {
    let folders = std::fs::read_dir(root().join("tests/fixtures/packed")).expect("packed models");
    let mut paths: Vec<PathBuf> =
        folders.map(|entry| entry.expect("an entry").path().join("config.json")).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.iter().map(read).collect()
}
/// A config over the tensors of the checkpoint that it says it is of.
fn packed_config(bytes: &[u8]) -> Option<String> {
    let method = |name: &str| bytes.windows(name.len()).any(|part| part == name.as_bytes());
    let known = [("\"gptq\"", "gptq"), ("\"awq\"", "awq"), ("compressed-tensors", "compressed-w4"), ("\"fp8\"", "fp8-block")];
    let folder = known.iter().find(|(word, _)| method(word)).map_or("mlx-4", |(_, folder)| folder);
    static WEIGHTS: Mutex<BTreeMap<&str, InMemory>> = Mutex::new(BTreeMap::new());
    let from_file = || memory("model.safetensors", &read(Path::new("tests/fixtures/packed").join(folder).join("model.safetensors")));
    let weights = WEIGHTS.lock().expect("no thread panics").entry(folder).or_insert_with(from_file).clone();
    let texts = doppler::formats::ModelTexts { config: text(bytes), ..Default::default() };
    let open = || {
        let source = Local::Memory(weights);
        let files = doppler::loader::ModelFiles::new(folder.into(), texts, vec![source], None);
        let opened = Opened::new("packed".into(), files, ResolveOptions::default())?;
        let doppler::open::Weights { checkpoint, matched } = block_on(opened.weights())?;
        for placed in &matched.weights {
            let entries = checkpoint.index.entries();
            block_on(doppler::loader::read_rows(&checkpoint.sources, entries, placed, 0..placed.rows.min(2)))?;
        }
        Ok(())
    };
    words(open())
}

fn manifests() -> Vec<Vec<u8>> {
    let hash = "8f37271eae308b2f0ae45efb2ead9cad70d693bcec16de257ba721f67338ba46";
    let file = |name: &str, bytes: u64| serde_json::json!({"name": name, "bytes": bytes, "sha256": hash});
    let tensor = |name: &str, layer: Option<u32>, format: &str, shape: [u64; 2], shard: u64, offset: u64, bytes: u64| serde_json::json!({"name": name, "role": "embed", "layer": layer, "format": format, "shape": shape, "shard": shard, "offset": offset, "bytes": bytes});
    let manifest = serde_json::json!({
        "format": "doppler-manifest", "version": 1, "name": "tiny",
        "provenance": {"tool": "doppler 0.1.0", "command": "doppler convert", "source": "tiny", "files": [file("model.safetensors", 9)]},
        "quantization": {"recipe": "q8_0", "keep": [], "imatrix": null},
        "resolved": [["preset", "llama", "derived"]],
        "texts": [file("config.json", 269)],
        "shards": [file("shard-00000.bin", 1024), file("shard-00001.bin", 68)],
        "tensors": [tensor("a", None, "f32", [2, 64], 0, 0, 512), tensor("b", Some(0), "q8_0", [5, 64], 0, 512, 340), tensor("c", Some(1), "q8_0", [1, 64], 1, 0, 68)],
    });
    vec![manifest.to_string().into_bytes()]
}
fn manifest(bytes: &[u8]) -> Option<String> {
    words(doppler::formats::manifest::Manifest::parse("manifest.json", &text(bytes)).and_then(|manifest| manifest.index()))
}

fn importances() -> Vec<Vec<u8>> {
    let sums = |squares: &[f32], counts: &[f32]| doppler::quant::importance::Sums { squares: squares.to_vec(), counts: counts.to_vec() };
    let tensors =
        BTreeMap::from([("blk.0.attn_q.weight".to_string(), sums(&[1.0, 0.0, 2.5], &[7.0])), ("e".into(), sums(&[1.0; 6], &[3.0, 0.0]))]);
    let importance = doppler::quant::importance::Importance { tensors, datasets: vec!["a.txt".into()], chunks: 4, chunk_size: 512 };
    let mut file = Vec::new();
    doppler::formats::gguf::importance::write(&mut file, &importance).expect("a file in memory");
    vec![file]
}
fn importance(bytes: &[u8]) -> Option<String> {
    words(block_on(doppler::formats::gguf::importance::read(&memory("imatrix.gguf", bytes))))
}

fn runtimes() -> Vec<Vec<u8>> {
    let presets = doppler::config::runtime::runtime_presets();
    presets.filter_map(doppler::config::runtime::runtime_preset).map(|text| text.as_bytes().to_vec()).collect()
}
fn runtime(bytes: &[u8]) -> Option<String> {
    words(RuntimeConfig::parse(&text(bytes)))
}

fn tokenizers() -> Vec<Vec<u8>> {
    [whole_tokenizers(), lengthening()].concat()
}
fn whole_tokenizers() -> Vec<Vec<u8>> {
    let mut files = golden("tokenizer.json");
    files.extend(read("tests/suite/tokens/results.json").split(|b| *b == b'\n').filter_map(|line| {
        let line: serde_json::Value = serde_json::from_slice(line.strip_suffix(b",").unwrap_or(line)).ok()?;
        Some(line.get("tokenizer")?.to_string().into_bytes())
    }));
    files
}
/// Files whose parts make a text or its ids longer, one stage each.
fn lengthening() -> Vec<Vec<u8>> {
    let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false});
    let piece = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
    let bos = serde_json::json!({"SpecialToken": {"id": "a", "type_id": 0}});
    let blank = serde_json::json!({"type": "CTC", "pad_token": "zz", "word_delimiter_token": "", "cleanup": true});
    let parts = [
        ("normalizer", serde_json::json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "aa"}, {"type": "NFKC"}]})),
        ("pre_tokenizer", serde_json::json!({"type": "Sequence", "pretokenizers": [level, level]})),
        ("decoder", serde_json::json!({"type": "Sequence", "decoders": [blank, {"type": "BPEDecoder", "suffix": ""}]})),
        (
            "post_processor",
            serde_json::json!({"type": "TemplateProcessing", "single": [bos, piece, piece], "pair": [piece],
            "special_tokens": {"a": {"id": "a", "ids": [0, 0], "tokens": ["a", "a"]}}}),
        ),
    ];
    let file = |(key, part)| {
        let mut file = serde_json::json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "decoder": null,
            "post_processor": null, "model": {"type": "BPE", "unk_token": "a", "vocab": {"a": 0}, "merges": []}});
        file[key] = part;
        file.to_string().into_bytes()
    };
    parts.map(file).to_vec()
}
const SENTENCE: &str = "Hello, the  wörld 123!\n\t\u{1f600} <s>a</s> don't";
/// Ids of a text, the text of ids, at once and as a stream.
fn speak(tokenizer: &Tokenizer) -> Result<()> {
    let ids = tokenizer.encode(SENTENCE, true)?;
    tokenizer.decode(&ids, false)?;
    let mut stream = tokenizer.stream(&[], true)?;
    for id in ids.iter().copied().chain([0, 7, u32::MAX]) {
        stream.push(tokenizer, id)?;
        let _ = tokenizer.token_text(id);
    }
    stream.finish(tokenizer).map(drop)
}
fn tokenizer(bytes: &[u8]) -> Option<String> {
    words(Tokenizer::from_bytes(bytes, &TokenizerConfig::default(), &TokenIds::default()).and_then(|tokenizer| speak(&tokenizer)))
}

fn tokenizer_configs() -> Vec<Vec<u8>> {
    let mut files = golden("tokenizer_config.json");
    files.push(br#"{"added_tokens_decoder":{"5":{"content":"<x>","special":true,"lstrip":false}},"bos_token":{"content":"<s>"},"additional_special_tokens":["<y>"],"chat_template":[{"name":"default","template":"{{ bos_token }}"}]}"#.to_vec());
    files
}
fn tokenizer_config(bytes: &[u8]) -> Option<String> {
    let text = text(bytes);
    // A small one, which is read quickly.
    static TOKENIZER: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let whole = |file: &Vec<u8>| Tokenizer::from_bytes(file, &TokenizerConfig::default(), &TokenIds::default()).is_ok();
        whole_tokenizers().into_iter().filter(whole).min_by_key(Vec::len).expect("a tokenizer")
    });
    let read = |files| {
        let config = TokenizerConfig::from_files(files)?;
        ChatTemplate::new(None, config.chat_template.as_ref(), &config.named_tokens)?;
        Tokenizer::from_bytes(&TOKENIZER, &config, &TokenIds::default()).map(drop)
    };
    let others = [read([None, Some(&text), None]), read([None, None, Some(&text)])].into_iter().find_map(words);
    words(read([Some(&text), None, None])).or(others)
}

const NOW: Clock = Clock { unix_seconds: 1_700_000_000, utc_offset: 0 };

/// Published templates, the shorter ones.
fn templates() -> Vec<Vec<u8>> {
    let (folder, _) = fixtures();
    let mut files: Vec<PathBuf> = Vec::new();
    let mut folders = vec![folder.join("chat_templates")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("templates") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path)
            } else if path.extension().is_some_and(|e| e == "jinja") {
                files.push(path)
            }
        }
    }
    files.sort();
    let mut texts: Vec<Vec<u8>> = files.iter().map(read).filter(|text| text.len() < 6000).collect();
    texts.push(
        b"{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
            .to_vec(),
    );
    texts
}
fn template(bytes: &[u8]) -> Option<String> {
    let tools = serde_json::json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let messages = [Message::new("user", "Hello"), Message::new("assistant", "Hi\n"), Message::new("user", "é?")];
    let render = |tools| {
        let tokens = BTreeMap::from([("bos_token".to_string(), "<s>".to_string()), ("eos_token".into(), "</s>".into())]);
        let Some(template) = ChatTemplate::new(Some(&text(bytes)), None, &tokens)? else { return Ok(()) };
        let input = ChatInput { messages: &messages, add_generation_prompt: true, tools, variables: &serde_json::Map::new(), now: NOW };
        template.render(&input).map(drop)
    };
    let plain = words(render(None));
    words(render(Some(&tools))).or(plain)
}

fn conversations() -> Vec<Vec<u8>> {
    vec![br#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"Hi"}]},{"role":"assistant","content":null,"tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]}],"tools":[{"function":{"name":"f"}}],"variables":{"enable_thinking":false}}"#.to_vec()]
}
/// What is said, through a template that looks at all of it.
fn conversation(bytes: &[u8]) -> Option<String> {
    let chat: Chat = match serde_json::from_slice(bytes) {
        Ok(chat) => chat,
        Err(error) => return Some(error.to_string()),
    };
    const ALL: &str = "{% for m in messages %}{{ m.role }}{{ m.content | default('') | tojson }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson(indent=2) }}{% endfor %}{{ m | length }}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}";
    let render = || {
        let Some(template) = ChatTemplate::new(Some(ALL), None, &BTreeMap::new())? else { return Ok(()) };
        let Chat { messages, tools, variables } = &chat;
        template.render(&ChatInput { messages, add_generation_prompt: true, tools: tools.as_ref(), variables, now: NOW }).map(drop)
    };
    words(render())
}

fn dumps() -> Vec<Vec<u8>> {
    vec![read("tests/data/llama2/golden.safetensors"), read("tests/data/gemma2/golden.safetensors")]
}
/// A dump, and all of its values.
fn dump(bytes: &[u8]) -> Option<String> {
    let read = || {
        let dump = Dump::read(memory("dump.safetensors", bytes))?;
        dump.generated_ids()?;
        for at in dump.stages() {
            dump.value(*at)?;
        }
        let mut rows = Vec::new();
        for at in dump.held() {
            for part in dump.parts(at) {
                rows.clear();
                dump.read_rows(part, 0..part.rows().min(4), &mut rows)?;
            }
            dump.floors(at, 0)?;
            dump.row_stats(at, 0)?;
        }
        Ok(())
    };
    words(read())
}

fn bundles() -> Vec<Vec<u8>> {
    let run = doppler::debug::bundle::Run {
        max_tokens: 6,
        capacity: 64,
        chunk: 4,
        valid_vocab: 128,
        pad: Some(0),
        stop_ids: vec![1],
        rules: None,
    };
    let contents = Contents {
        version: Contents::VERSION,
        model: "tiny".into(),
        config: text(&read("tests/data/llama2/config.json")),
        generation_config: None,
        allow_unknown_config: false,
        files: vec![doppler::debug::bundle::fingerprint_text("config.json", "{}")],
        runtime: RuntimeConfig::defaults().expect("a config"),
        prompt: Some("Hi".into()),
        run,
        dtype: "f32".into(),
        device: "a device".into(),
        versions: BTreeMap::new(),
        logits: Some("0123456789abcdef".into()),
        notes: Vec::new(),
        findings: Vec::new(),
    };
    vec![serde_json::to_vec(&contents).expect("a bundle")]
}
/// The record that makes a bundle of a dump.
fn bundle(bytes: &[u8]) -> Option<String> {
    let read = || {
        let table = doppler::plan::stage::STAGE_TABLE_VERSION.to_string();
        let metadata = BTreeMap::from([("stage_table".to_string(), table), ("bundle".to_string(), text(bytes))]);
        let mut file = Vec::new();
        write(&mut file, &metadata, &[Output::ids("input_ids", &[1, 2, 3])]).expect("a file in memory");
        let bundle = Bundle::of(Dump::read(memory("bundle.safetensors", &file))?)?;
        bundle.contents.hash()?;
        let _ = (bundle.contents.session(), bundle.contents.generate());
        resolve(&bundle.contents.config, None, ResolveOptions::default()).map(drop)
    };
    words(read())
}

fn profiles() -> Vec<Vec<u8>> {
    let line = r#"{"doppler_profile":1,"stage_table":1,"model":"m","ranges":[{"stage":"layer_out","layer":0,"prompt":{"max_abs":[1.0,2.0],"rms":[0.5,0.6]},"decode":null}],"accepted":[]}"#;
    let with = |key: &str, n: u32| line.replace(&format!("\"{key}\":1"), &format!("\"{key}\":{n}"));
    let table = doppler::plan::stage::STAGE_TABLE_VERSION;
    vec![with("stage_table", table).into_bytes(), Profile::default().to_json("m").into_bytes()]
}
fn profile(bytes: &[u8]) -> Option<String> {
    words(Profile::from_json(&text(bytes), "profile.json").map(|(profile, model)| profile.to_json(&model)))
}

fn exams() -> Vec<Vec<u8>> {
    let exam = text(&read("models/demo/exam.jsonl"));
    vec![exam.lines().take(12).collect::<Vec<_>>().join("\n").into_bytes()]
}
fn exam(bytes: &[u8]) -> Option<String> {
    words(items(&text(bytes)))
}
