//! Tokenizers, chat templates and streamed text against published vectors and against what transformers gives.
//! `tests/fixtures` has the part of the vectors whose licence allows it; the rest is checked where the whole collection is.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use doppler::inference::chat::{ChatInput, ChatTemplate, Clock, Message};
use doppler::inference::tokenizer::{TokenIds, Tokenizer, TokenizerConfig};
use serde_json::{Map, Value};

use crate::support::{fixtures, skipped};

/// The whole collection of fixtures, or `None` after saying that the test is skipped.
fn whole_fixtures() -> Option<PathBuf> {
    let (folder, whole) = fixtures();
    if !whole {
        skipped("this needs fixtures of other licences; set DOPPLER_FIXTURES to their folder");
    }
    whole.then_some(folder)
}

/// Bytes of `path`, or of `path`.gz unpacked.
fn read(path: &Path) -> Option<Vec<u8>> {
    if let Ok(bytes) = std::fs::read(path) {
        return Some(bytes);
    }
    let packed = std::fs::File::open(format!("{}.gz", path.display())).ok()?;
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&read(path).unwrap_or_else(|| panic!("{} is missing", path.display()))).unwrap()
}

fn tokenizer(folder: &Path, name: &str) -> Tokenizer {
    let folder = folder.join("tokenizers").join(name);
    let config = read(&folder.join("tokenizer_config.json"));
    let config = config.map_or_else(TokenizerConfig::default, |json| TokenizerConfig::from_json(&json).unwrap());
    // Where there is no tokenizer_config.json, BOS as the model's config.json has it.
    let ids = TokenIds { bos: (name == "llama2").then_some(1), ..Default::default() };
    Tokenizer::from_bytes(&read(&folder.join("tokenizer.json")).unwrap(), &config, &ids).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Collects failures, so that one run shows all of them.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
}

impl Tally {
    fn check<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, found: T, expected: T) {
        if found == expected {
            self.passed += 1;
        } else {
            self.failed.push(format!("{what}\n  expected {expected:?}\n  found    {found:?}"));
        }
    }

    /// Fails unless at least `least` checks were made and those that failed are exactly `known`, by name.
    #[expect(clippy::print_stderr, reason = "a test says what it skips and counts")]
    fn finish(self, least: usize, known: &[&str]) {
        eprintln!("{} of {} agree", self.passed, self.passed + self.failed.len());
        let name = |failure: &String| failure.lines().next().unwrap_or_default().to_owned();
        let failed: Vec<String> = self.failed.iter().map(name).collect();
        assert!(failed == known, "{}\nexpected to differ: {known:?}\nthese differ: {failed:?}", self.failed.join("\n"));
        assert!(self.passed + failed.len() >= least, "only {} checks were made", self.passed);
    }
}

const TOKENIZERS: &[&str] =
    &["deepseek_v3", "gemma", "gemma3", "gpt2", "gptoss", "llama2", "llama3_2", "mistral", "olmo2", "phi3", "qwen3", "smollm2"];

/// Those that `tests/fixtures` has.
const OWN_TOKENIZERS: &[&str] = &["gpt2", "mistral", "phi3", "smollm2"];

/// The folder of fixtures and the tokenizers in it.
fn tokenizers() -> (PathBuf, &'static [&'static str]) {
    let (folder, whole) = fixtures();
    (folder, if whole { TOKENIZERS } else { OWN_TOKENIZERS })
}

#[test]
fn ids_and_texts_agree_with_hugging_face() {
    let (folder, names) = tokenizers();
    let mut tally = Tally::default();
    for name in names.iter().copied() {
        let t = tokenizer(&folder, name);
        for row in json(&folder.join(format!("vectors/tokenizer/golden_{name}.json")))["rows"].as_array().unwrap() {
            let (input, plain) = (text(&row["text"]), ids(&row["ids"]));
            let mut special = row.get("special").map_or_else(|| plain.clone(), ids);
            // Hugging Face doubles the BOS of a text that has its own; Doppler does not.
            if special != plain && plain.first().copied() == t.bos() {
                special.remove(0);
            }
            let what = format!("{name} {input:?}");
            let decoded = row.get("decoded").map_or(input, text);
            tally.check(&what, t.encode(input, false).unwrap(), plain.clone());
            tally.check(&what, t.encode(input, true).unwrap(), special);
            tally.check(&what, t.decode(&plain, false).unwrap(), decoded.to_owned());
            tally.check(&what, t.decode(&plain, true).unwrap(), row.get("decoded_skip").map_or(decoded, text).to_owned());
        }
    }
    tally.finish(names.len() * 131 * 4, &[]);
}

/// Texts that were "cleaned up" (`ll !!` to `ll!!`); transformers no longer does that to BPE tokenizers.
const CLEANED: [&str; 3] = ["Xenova/llama3-tokenizer-new PUNCTUATION", "Xenova/gpt2 PUNCTUATION", "pcuenq/Llama-3.2-1B-Instruct-tokenizer"];

#[test]
fn ids_agree_with_other_published_vectors() {
    let Some(folder) = whole_fixtures() else { return };
    let mut tally = Tally::default();
    let vectors = json(&folder.join("vectors/tokenizer/transformersjs_tokenizer_tests.json"));
    for (of, name) in [
        ("Xenova/llama-tokenizer", "llama2"),
        ("Xenova/llama3-tokenizer-new", "llama3_2"),
        ("Xenova/gemma2-tokenizer", "gemma"),
        ("Xenova/gpt2", "gpt2"),
        ("Xenova/Qwen1.5-0.5B-Chat", "qwen3"),
        ("Xenova/gpt-4o", "gptoss"),
    ] {
        let t = tokenizer(&folder, name);
        for (case, row) in vectors[of].as_object().unwrap() {
            tally.check(&format!("{of} {case}"), t.encode(text(&row["text"]), true).unwrap(), ids(&row["ids"]));
            tally.check(&format!("{of} {case}"), t.decode(&ids(&row["ids"]), false).unwrap(), text(&row["decoded"]).to_owned());
        }
    }
    let vectors = json(&folder.join("vectors/tokenizer/swift_transformers_tokenizer_tests.json"));
    for (of, name) in [
        ("coreml-projects/Llama-2-7b-chat-coreml", "llama2"),
        ("pcuenq/gemma-tokenizer", "gemma"),
        ("pcuenq/Llama-3.2-1B-Instruct-tokenizer", "llama3_2"),
    ] {
        let t = tokenizer(&folder, name);
        for row in vectors[of].as_array().unwrap() {
            let expected = ids(&row["encoded"]["input_ids"]);
            tally.check(of, t.encode(text(&row["input"]), true).unwrap(), expected.clone());
            tally.check(of, t.decode(&expected, true).unwrap(), text(&row["decoded_without_special"]).to_owned());
        }
    }
    tally.finish(400, &CLEANED);
}

/// A small generator, so that the test needs no crate for it.
fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as u32
}

#[test]
fn streamed_pieces_add_up() {
    let (folder, names) = tokenizers();
    let mut state = 1;
    for name in names.iter().copied() {
        let t = tokenizer(&folder, name);
        let golden = json(&folder.join(format!("vectors/tokenizer/golden_{name}.json")));
        let texts = golden["rows"].as_array().unwrap().iter().map(|row| ids(&row["ids"]));
        // Ids below 600 hold most byte pieces of these vocabularies.
        let noise: Vec<Vec<u32>> = (0..300)
            .map(|i| (0..random(&mut state) % 30).map(|_| random(&mut state) % if i % 2 == 0 { 600 } else { t.vocab_size() + 9 }).collect())
            .collect();
        for ids in texts.chain(noise) {
            for skip in [false, true] {
                let mut stream = t.stream(&[], skip).unwrap();
                let live: String = ids.iter().map(|id| stream.push(&t, *id).unwrap()).collect();
                let all = t.decode(&ids, skip).unwrap();
                assert_eq!(live + &stream.finish(&t).unwrap(), all, "{name} {ids:?}");
            }
        }
    }
}

#[test]
fn real_vocabularies_are_described_rightly() {
    let Some(folder) = whole_fixtures() else { return };
    let gemma = tokenizer(&folder, "gemma");
    assert_eq!((gemma.bos(), gemma.eos(), gemma.pad(), gemma.vocab_size()), (Some(2), &[1][..], Some(0), 256_000));
    assert_eq!(gemma.idle_pad(), Some(0));
    assert_eq!(gemma.named_tokens()["bos_token"], "<bos>");
    assert_eq!(tokenizer(&folder, "gemma3").vocab_size(), 262_145);
    let phi = tokenizer(&folder, "phi3");
    assert_eq!((phi.pad(), phi.idle_pad()), (Some(32_000), None), "PAD is EOS here");
    let qwen = tokenizer(&folder, "qwen3");
    assert_eq!((qwen.bos(), qwen.eos(), qwen.vocab_size()), (None, &[151_645][..], 151_669));
    assert!(!qwen.named_tokens().contains_key("bos_token"));
    let llama = tokenizer(&folder, "llama3_2");
    let shown = llama.encode("<|begin_of_text|>Hello 😀\n", true).unwrap();
    assert_eq!(shown.iter().map(|id| llama.token_text(*id)).collect::<Vec<_>>(), ["<|begin_of_text|>", "Hello", " 😀", "\\n"]);
}

/// The text of a template file: Jinja, or JSON with `chat_template`.
fn template_source(path: &Path) -> String {
    match path.extension().is_some_and(|e| e == "json") {
        true => text(&json(path)["chat_template"]).to_owned(),
        false => String::from_utf8(read(path).unwrap()).unwrap(),
    }
}

#[test]
fn published_templates_are_valid() {
    let (folder, whole) = fixtures();
    let mut count = 0;
    for publisher in std::fs::read_dir(folder.join("chat_templates")).unwrap() {
        for file in std::fs::read_dir(publisher.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let result = ChatTemplate::new(Some(&template_source(&path)), None, &BTreeMap::new());
            assert!(result.is_ok(), "{}: {}", path.display(), result.unwrap_err());
            count += 1;
        }
    }
    assert!(count > if whole { 60 } else { 25 }, "only {count} templates were found");
}

#[test]
fn chats_render_as_in_transformers() {
    let (folder, whole) = fixtures();
    let golden = json(&folder.join("vectors/chat/golden_renders.json"));
    let now = Clock { unix_seconds: 1_752_148_800, utc_offset: 0 }; // 2025-07-10 12:00
    let mut tally = Tally::default();
    for template in golden["templates"].as_array().unwrap() {
        let path = text(&template["template"]);
        let source = template_source(&folder.join(path));
        let token = |key: &str| (key.to_owned(), text(&template[key]).to_owned());
        let tokens = BTreeMap::from([token("bos_token"), token("eos_token")]);
        let compiled = match ChatTemplate::new(Some(&source), None, &tokens) {
            Ok(compiled) => compiled.unwrap(),
            Err(error) => {
                tally.check(path, error.to_string(), String::new());
                continue;
            }
        };
        for case in golden["cases"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let known = ["name", "messages", "add_generation_prompt", "tools"];
            let mut variables = case.as_object().unwrap().clone();
            variables.retain(|key, _| !known.contains(&key.as_str()));
            let input = ChatInput {
                messages: &messages,
                add_generation_prompt: case["add_generation_prompt"] == true,
                tools: case.get("tools"),
                variables: &variables,
                now,
            };
            let result = &template["results"][text(&case["name"])];
            let expected = result.get("expected").map(|e| text(e).to_owned()).ok_or(());
            let what = format!("{path} {}", text(&case["name"]));
            let found = compiled.render(&input);
            match (&found, &expected) {
                (Err(error), Ok(_)) => tally.check(&what, error.to_string(), text(&result["expected"]).to_owned()),
                _ => tally.check(&what, found.map_err(|_| ()), expected),
            }
        }
    }
    tally.finish(if whole { 47 } else { 22 } * 12, &[]);
}

/// Renders a template with a context of its own; the error's text if it fails.
fn render(source: &str, context: &Map<String, Value>) -> String {
    let template = match ChatTemplate::new(Some(source), None, &BTreeMap::new()) {
        Ok(template) => template.unwrap(),
        Err(error) => return error.to_string(),
    };
    let now = Clock { unix_seconds: 1_752_148_800, utc_offset: 0 };
    let input = ChatInput { messages: &[], add_generation_prompt: false, tools: None, variables: context, now };
    template.render(&input).unwrap_or_else(|error| error.to_string())
}

/// Asks whether `add_generation_prompt` is defined, which it always is here, as in transformers.
const CHAT_GAPS: [&str; 1] = ["ai21labs/AI21-Jamba-Large-1.6"];

#[test]
fn jinja_renders_as_in_python() {
    let (folder, whole) = fixtures();
    for (file, template, context, least, known) in [
        ("hfjs_e2e_chat_templates", "chat_template", "data", 52, &CHAT_GAPS[..]),
        ("hfjs_unit_templates", "template", "context", 98, &[]),
        ("llamacpp_test_jinja", "template", "context", 302, &[]),
    ] {
        if !whole && file == "hfjs_e2e_chat_templates" {
            continue;
        }
        let mut tally = Tally::default();
        for row in json(&folder.join(format!("vectors/jinja/{file}.json"))).as_array().unwrap() {
            if row["python_jinja2_agrees"] == true {
                let found = render(text(&row[template]), row[context].as_object().unwrap());
                tally.check(text(&row["name"]), found, text(&row["expected"]).to_owned());
            }
        }
        tally.finish(least, known);
    }
}

#[test]
fn chat_templates_render_as_in_llama_cpp() {
    let Some(folder) = whole_fixtures() else { return };
    let vectors = json(&folder.join("vectors/jinja/llamacpp_test_chat_template.json"));
    let mut tally = Tally::default();
    for row in vectors["cases"].as_array().unwrap() {
        if row["python_jinja2_agrees"] == true {
            let mut context = Map::new();
            let mut messages = vectors["conversation"].as_array().unwrap().clone();
            messages.extend(row["extra_conversation"].as_array().into_iter().flatten().cloned());
            context.insert("messages".into(), messages.into());
            context.insert("add_generation_prompt".into(), true.into());
            for key in ["bos_token", "eos_token"] {
                context.insert(key.into(), row[key].as_str().unwrap_or_default().into());
            }
            let expected = [&row["expected_output_jinja"], &row["expected_output"]];
            let expected = expected.into_iter().filter_map(Value::as_str).find(|e| !e.is_empty()).unwrap();
            tally.check(text(&row["name"]), render(text(&row["template_str"]), &context), expected.to_owned());
        }
    }
    tally.finish(29, &[]);
}
