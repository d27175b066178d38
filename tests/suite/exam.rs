//! The built-in model sits its exam: on the oracle and on the GPU the greedy ids are those of transformers, on every
//! question; accuracy in f32 and f16, and perplexity, are what the model card says.

use crate::support::adapter;
use doppler::config::{ResolveOptions, resolve};
use doppler::cpu::CpuExecutor;
use doppler::debug::exam::{Item, items, likelihood, sit};
use doppler::exec::{Executor, Storage, WeightSink};
use doppler::gpu::{GpuExecutor, GpuOptions};
use doppler::inference::chat::ChatTemplate;
use doppler::inference::pipeline;
use doppler::inference::tokenizer::{TokenIds, Tokenizer, TokenizerConfig};
use doppler::loader::{Checkpoint, load, match_slots, open_directory};
use doppler::plan::Plan;
use pollster::block_on;
use std::path::PathBuf;

/// Transformers' outcome of one question.
#[derive(serde::Deserialize)]
struct Expected {
    ids: Vec<u32>,
    generated: Vec<u32>,
}

struct Demo {
    plan: Plan,
    config: doppler::config::ModelConfig,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    items: Vec<Item>,
    expected: Vec<Expected>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

fn text(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn demo() -> Demo {
    let config = resolve(&text("config.json"), Some(&text("generation_config.json")), ResolveOptions::default()).expect("a config").config;
    let from_config = TokenizerConfig::from_json(text("tokenizer_config.json").as_bytes()).expect("a tokenizer config");
    let ids = TokenIds { bos: config.bos_token_id, eos: config.eos_token_ids.clone(), pad: config.pad_token_id };
    let tokenizer = Tokenizer::from_bytes(text("tokenizer.json").as_bytes(), &from_config, &ids).expect("a tokenizer");
    let template = ChatTemplate::new(None, from_config.chat_template.as_ref(), &from_config.named_tokens).expect("a template");
    let plan = pipeline::build(&config).expect("a plan");
    let expected = serde_json::from_str(&text("expected.json")).expect("transformers' ids");
    Demo { plan, config, tokenizer, template, items: items(&text("exam.jsonl")).expect("an exam"), expected }
}

impl Demo {
    fn filled<S: WeightSink>(&self, mut executor: S) -> S {
        let files = open_directory(&folder()).expect("the built-in model");
        block_on(async {
            let checkpoint = Checkpoint::open(files.sources, files.shards.as_ref()).await?;
            let matched = match_slots(&self.plan, &self.config.tensors, &checkpoint.index, false)?;
            load(&self.plan, &checkpoint, &matched, true, &mut executor, &mut |_| {}).await
        })
        .expect("the built-in model's weights");
        executor
    }

    /// Of every `every`-th question: how many get transformers' ids, how many are right, how many there are.
    #[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
    fn exam<E: Executor>(&self, executor: &E, every: usize) -> (usize, usize, usize) {
        let items: Vec<Item> = self.items.iter().step_by(every).cloned().collect();
        let answers = block_on(sit(executor, &self.tokenizer, self.template.as_ref(), &items, &mut |_, _| {})).expect("an exam");
        let expected: Vec<&Expected> = self.expected.iter().step_by(every).collect();
        for (answer, expected) in answers.iter().zip(&expected) {
            assert_eq!(answer.prompt, expected.ids, "the prompt's ids");
        }
        let same = answers.iter().zip(&expected).filter(|(a, e)| a.ids == e.generated).count();
        let right = answers.iter().filter(|a| a.right).count();
        println!("{}: {same} of {} as transformers, {right} right", executor.describe(), answers.len());
        (same, right, items.len())
    }
}

#[test]
fn the_oracle_answers_as_transformers() {
    let demo = demo();
    assert!(demo.items.len() >= 300 && demo.items.len() == demo.expected.len());
    let executor = demo.filled(CpuExecutor::<f32>::new(demo.plan.clone(), Storage::F32).expect("a plan"));
    let (same, right, all) = demo.exam(&executor, 1);
    assert_eq!((same, all), (demo.items.len(), demo.items.len()));
    assert!(right * 100 >= all * 95, "{right} right");
    let (nll, tokens) = block_on(likelihood(&executor, &demo.tokenizer, &text("heldout.txt"), &mut |_, _| {})).expect("a text");
    // The model card: 1.7249 over 11,042 tokens.
    assert_eq!(tokens, 11_042);
    assert!((nll.exp() - 1.7249).abs() < 5e-4, "perplexity {:.4}", nll.exp());
}

#[test]
fn the_gpu_answers_as_transformers_and_f16_is_as_good() {
    let demo = demo();
    // Software adapters are slow: every 16th question, in f16 every 48th, of most kinds then.
    for (storage, every) in [(Storage::F32, 16), (Storage::F16, 48)] {
        let Some(gpu) = adapter(GpuOptions::default()) else { return };
        let executor = demo.filled(GpuExecutor::new(gpu, demo.plan.clone(), storage).expect("an executor"));
        let (same, right, all) = demo.exam(&executor, every);
        if storage == Storage::F32 {
            assert_eq!((same, all), (demo.items.len().div_ceil(every), demo.items.len().div_ceil(every)));
        }
        assert!(right * 100 >= all * 95, "{right} right in {}", storage.activations);
    }
}

/// The examples of the model card: prompt, whether it is chat, answer.
fn examples() -> Vec<(String, bool, String)> {
    let card = text("README.md");
    let lines = card.lines().filter_map(|line| line.strip_prefix("    ")?.split_once('→'));
    let example = |(prompt, answer): (&str, &str)| {
        let prompt = prompt.trim();
        let chat = prompt.strip_suffix("(chat)");
        (chat.unwrap_or(prompt).trim().to_string(), chat.is_some(), answer.trim().to_string())
    };
    lines.map(example).collect()
}

#[test]
fn examples_of_the_card_are_answered_as_it_says_and_the_page_shows_no_others() {
    let demo = demo();
    let executor = demo.filled(CpuExecutor::<f32>::new(demo.plan.clone(), Storage::F32).expect("a plan"));
    let items: Vec<Item> = examples()
        .into_iter()
        .map(|(prompt, chat, answer)| {
            serde_json::from_value(serde_json::json!({"kind": "shown", "prompt": prompt, "chat": chat, "answer": answer}))
        })
        .collect::<Result<_, _>>()
        .expect("items");
    assert!(items.len() >= 6, "{}", items.len());
    let answers = block_on(sit(&executor, &demo.tokenizer, demo.template.as_ref(), &items, &mut |_, _| {})).expect("an exam");
    for (item, answer) in items.iter().zip(&answers) {
        let said = demo.tokenizer.decode(&answer.ids, true).expect("ids of the tokenizer");
        // A story is any text that goes on until the limit.
        let as_shown = if item.answer == "a story" { said.split(' ').count() > 10 } else { answer.right };
        assert!(as_shown, "{}: {said}", item.prompt);
    }
    let page = std::fs::read_to_string(folder().join("../../web/demo/chat.js")).expect("the page");
    let ideas = page.split_once("const IDEAS").and_then(|(_, rest)| rest.split_once("};")).expect("ideas").0;
    let ideas: Vec<&str> = ideas.split('"').skip(1).step_by(2).collect();
    assert!(ideas.len() >= 6);
    for idea in ideas {
        assert!(items.iter().any(|item| item.prompt == idea), "`{idea}` is no example of the card");
    }
}
