//! Tokens that stand in several files of a model folder, against transformers: the small tokenizers of `tokens/cases.py`,
//! whose results are committed, everywhere; and where Python has transformers, that the results are what it gives now.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use doppler::inference::tokenizer::{TokenIds, Tokenizer, TokenizerConfig};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/tokens")
}

fn results() -> (String, Value) {
    let text = std::fs::read_to_string(folder().join("results.json")).unwrap();
    let value = serde_json::from_str(&text).unwrap();
    (text, value)
}

/// The tokenizer of a row's files.
fn tokenizer(row: &Value) -> Tokenizer {
    let texts =
        ["tokenizer_config", "special_tokens_map", "added_tokens"].map(|key| row.get(key).filter(|v| !v.is_null()).map(Value::to_string));
    let config = TokenizerConfig::from_files(texts.each_ref().map(Option::as_deref)).unwrap();
    Tokenizer::from_bytes(row["tokenizer"].to_string().as_bytes(), &config, &TokenIds::default()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn ids_are_those_of_transformers() {
    let (_, results) = results();
    let rows = results["rows"].as_array().unwrap();
    assert!(rows.len() > 30);
    for row in rows {
        let (name, t) = (&row["name"], tokenizer(row));
        assert_eq!(json!(t.named_tokens()), row["named"], "{name}");
        for text in row["texts"].as_array().unwrap() {
            let (plain, mut special) = (ids(&text["plain"]), ids(&text["special"]));
            // transformers doubles the BOS of a text that has its own; Doppler does not.
            if special != plain && special.first().copied() == t.bos() && plain.first().copied() == t.bos() {
                special.remove(0);
            }
            let input = text["text"].as_str().unwrap();
            assert_eq!(t.encode(input, false).unwrap(), plain, "{name}: {input:?}");
            assert_eq!(t.encode(input, true).unwrap(), special, "{name}: {input:?} with special tokens");
            assert_eq!(t.decode(&plain, true).unwrap(), text["shown"].as_str().unwrap(), "{name}: {input:?}");
        }
    }
}

#[test]
fn notes_name_what_differs_from_the_files() {
    let (_, results) = results();
    let notes = |name: &str| {
        let row = results["rows"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
        tokenizer(row).notes().join("\n")
    };
    // The rows have no config.json, so each that names EOS has a note of it.
    assert!(notes("tokens of added_tokens_decoder").lines().all(|note| note.contains("`eos_token_id`")));
    assert!(notes("ids that are not the next").contains("gives the token \"<y>\" the id 100, but it has the id 8"));
    assert!(notes("named tokens are added").contains("the special token \"<x>\" is in no vocabulary"));
    let mut row = results["rows"][0].clone();
    row["tokenizer_config"] = json!({"tokenizer_class": "LlamaTokenizerFast"});
    row["tokenizer"]["model"]["dropout"] = 0.5.into();
    row["tokenizer"]["model"]["vocab"]["ab"] = 9.into();
    row["tokenizer"]["model"]["merges"] = json!(["a b"]);
    let t = tokenizer(&row);
    assert!(t.notes().iter().any(|note| note.contains("tokenizer_class")) && t.notes().iter().any(|note| note.contains("dropout")));
    assert!((0..100).all(|_| t.encode("ab", false).unwrap() == [9]), "no merge is left out");
    // Byte-level files: transformers 5 gives other ids for SmolLM2's "hello  world\n\n12", whose class is GPT-2's.
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let digits = json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, level]});
    let mut noted = |class: &str, splitter: &Value| {
        row["tokenizer_config"] = json!({"tokenizer_class": class});
        row["tokenizer"]["pre_tokenizer"] = splitter.clone();
        tokenizer(&row).notes().iter().any(|note| note.contains("tokenizer_class"))
    };
    assert!(noted("GPT2Tokenizer", &digits) && noted("GPTNeoXTokenizerFast", &digits));
    assert!(!noted("GPT2Tokenizer", &level) && !noted("LlamaTokenizer", &digits) && !noted("PreTrainedTokenizerFast", &digits));
}

#[test]
fn notes_name_keys_that_transformers_follows_and_we_do_not() {
    let (_, results) = results();
    let mut row = results["rows"].as_array().unwrap().iter().find(|row| row["name"] == "BOS once").unwrap().clone();
    let mut notes = |config: Value, blank: bool| {
        row["tokenizer"]["pre_tokenizer"] =
            json!({"type": "ByteLevel", "add_prefix_space": blank, "trim_offsets": true, "use_regex": true});
        row["tokenizer_config"] = config;
        tokenizer(&row).notes().join("\n")
    };
    let class = |class: &str, key: &str| json!({"tokenizer_class": class, key: true});
    for known in ["GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizerFast", "CohereTokenizerFast", "Qwen2Tokenizer"] {
        let first = "`add_prefix_space` is true, so transformers 5 puts a blank before a text";
        assert!(notes(class(known, "add_prefix_space"), false).contains(first), "{known}");
        assert!(notes(class(known, "x"), true).contains("`add_prefix_space` is not true"), "{known}");
        assert!(!notes(class(known, "add_prefix_space"), true).contains("add_prefix_space"), "{known}");
        let drops = notes(class(known, "add_bos_token"), false).contains("drops the post-processor");
        assert_eq!(drops, known.starts_with("GPTNeoX"), "{known}");
    }
    assert!(!notes(class("PreTrainedTokenizerFast", "add_prefix_space"), false).contains("add_prefix_space"));
    assert!(notes(class("PreTrainedTokenizerFast", "split_special_tokens"), false).contains("`split_special_tokens` is true"));
    let note = notes(json!({"eos_token": "</s>"}), false);
    assert!(note.contains("no `eos_token_id`: generation ends at \"</s>\" (6)"), "{note}");
}

/// Found as quadratic: a token was looked for among all others.
#[test]
fn many_added_tokens_are_read_in_time() {
    let (_, results) = results();
    let mut row = results["rows"][0].clone();
    let token = |i: usize| json!({"content": format!("<token {i}>"), "special": true});
    let tokens: serde_json::Map<String, Value> = (0..100_000).map(|i| ((i + 200_000).to_string(), token(i))).collect();
    row["tokenizer_config"] = json!({"added_tokens_decoder": tokens});
    let start = std::time::Instant::now();
    let t = tokenizer(&row);
    // Far more than it takes, as tests run beside each other; each token against each takes minutes.
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    assert_eq!(t.encode("<token 99999>", false).unwrap(), [100_006]);
    assert!(t.notes().len() < 20 && t.notes().iter().any(|note| note.ends_with("(and 99992 tokens more likewise)")), "{:?}", t.notes());
}

/// The patterns of GPT-2 (in `ByteLevel`), Llama 3, Qwen 2 and o200k.
const PATTERNS: [&str; 3] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

#[test]
fn what_a_pattern_cannot_split_is_an_error() {
    let (_, results) = results();
    let mut row = results["rows"][0].clone();
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let mut forms: Vec<Value> =
        PATTERNS.iter().map(|pattern| json!({"type": "Sequence", "pretokenizers": [split(pattern), level]})).collect();
    forms.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}));
    row["tokenizer"]["model"]["unk_token"] = "a".into();
    let blanks = |count: usize| format!("a{}b c", " ".repeat(count));
    for form in forms {
        row["tokenizer"]["pre_tokenizer"] = form.clone();
        let t = tokenizer(&row);
        assert!(t.encode(&blanks(10_000), false).is_ok(), "{form}");
        let error = t.encode(&blanks(1_100_000), false).unwrap_err().message;
        assert!(error.contains("cannot split"), "{form}: {error}");
        assert!(t.encode_spans(&blanks(1_100_000), true).is_err());
    }
}

#[test]
fn results_are_those_of_transformers_here() {
    let python = std::env::var_os("DOPPLER_PYTHON").unwrap_or_else(|| "python3".into());
    let version = Command::new(&python).args(["-c", "import transformers; print(transformers.__version__)"]).output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let (committed, results) = results();
    if version != results["transformers"] {
        return crate::support::skipped("no transformers of the results' version was found: set DOPPLER_PYTHON");
    }
    let output = Command::new(&python).arg(folder().join("cases.py")).env("PYTHONIOENCODING", "utf-8").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), committed, "{}", String::from_utf8_lossy(&output.stderr));
}
