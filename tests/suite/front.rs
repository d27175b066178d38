//! The front door of the crate: the example runs, its lines stand in the documents, and what it gives is what the modules below
//! it give.

#[path = "../../examples/hello.rs"]
mod hello;

use doppler::error::Kind;
use doppler::inference::session::StopReason;
use doppler::{AnswerOptions, Device, Message, Model, OpenOptions};
use std::ops::ControlFlow;
use std::path::Path;

const PROMPT: &str = "The color of the sky is";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model(folder: &str) -> Model {
    let options = OpenOptions { device: Device::Cpu, ..OpenOptions::defaults().expect("the defaults") };
    Model::open_with(root().join(folder), options).expect("a model")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn the_example_runs_and_is_the_first_page() {
    let example = read("examples/hello.rs");
    let lines = example.split_once("use doppler").unwrap().1;
    let shown: String = read("src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .flat_map(|line| [line.strip_prefix(' ').unwrap_or(line), "\n"])
        .collect();
    assert!(shown.contains(&format!("use doppler{lines}")), "src/lib.rs shows other lines than examples/hello.rs");
    assert!(read("README.md").contains(&format!("use doppler{lines}")), "README.md shows other lines than examples/hello.rs");
    hello::main().unwrap();
}

#[test]
fn text_comes_in_pieces_and_values_are_those_of_transformers() {
    let mut model = model("models/demo");
    let options = AnswerOptions { max_tokens: 16, ..AnswerOptions::default() };
    let mut pieces = Vec::new();
    let answer = model.generate(PROMPT, &options, |text| pieces.push(text.to_string())).unwrap();
    assert_eq!((answer.text.as_str(), answer.stop, answer.prompt_tokens), (" blue.", StopReason::Eos, 7));
    assert!(pieces.len() > 1 && pieces.concat() == answer.text, "{pieces:?}");
    let stopped = model.generate(PROMPT, &options, |_| ControlFlow::Break(())).unwrap();
    assert_eq!((stopped.stop, stopped.text.as_str(), stopped.ids.len()), (StopReason::Interrupted, " blue", 1));

    let values = model.observe(PROMPT, &["logits_final", "layer_out@-1,0", "layer_out@0"]).unwrap();
    let names: Vec<String> = values.iter().map(|value| value.at.key()).collect();
    assert_eq!(names, ["layer.0.layer_out", "layer.6.layer_out", "logits_final"]);
    assert_eq!(values[0].tensor.shape, [7, 256]);
    let logits = values[2].tensor.row(6);
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
    assert_eq!(best as u32, answer.ids[0], "the highest logit of the last row is what is said");

    model.set(&["layer_out@6=zero"]).unwrap();
    let changed = model.observe(PROMPT, &["layer_out@0,6"]).unwrap();
    assert_eq!(changed[0], values[0]);
    assert!(changed[1].tensor.data.iter().all(|x| *x == 0.0));
    model.set(&[]).unwrap();
    assert_eq!(model.observe(PROMPT, &["layer_out@6"]).unwrap()[0], values[1]);

    let chat = model.chat(&[Message::new("user", "What color is the sky?")], &options, |_| ()).unwrap();
    assert!(chat.prompt_tokens > 7, "{chat:?}");
    // What the first page of the documentation says that the example prints.
    let mut printed = format!("//! {}\n//! {} ({:?})\n", answer.text, chat.text, chat.stop);
    for value in model.observe(PROMPT, &["ffn_out@0-2", "logits_final"]).unwrap() {
        printed += &format!("//! {} {:?}\n", value.at, value.tensor.shape);
    }
    assert!(read("src/lib.rs").contains(&printed), "{printed}");
}

#[test]
fn a_golden_model_is_read_to_the_floor() {
    let model = model("tests/data/gemma2");
    let golden = doppler::debug::dump::Dump::open(&root().join("tests/data/gemma2/golden.safetensors")).unwrap();
    let ids = golden.input_ids().unwrap();
    for value in model.observe_ids(&ids, &["attn_probs@1", "ffn_out", "logits_final"]).unwrap() {
        let expected = golden.value(value.at).unwrap().unwrap();
        let (mut difference, mut length) = (0.0, 0.0);
        let heads = if value.tensor.shape.len() == 3 { value.tensor.shape[0] } else { 1 };
        assert_eq!(value.tensor.rows() / heads, ids.len(), "{}", value.at);
        for row in 0..value.tensor.rows() {
            // A dump with decode steps has further rows and positions.
            let (head, token) = (row / ids.len(), row % ids.len());
            let theirs = expected.row(head * (expected.rows() / heads) + token);
            for (x, y) in value.tensor.row(row).iter().zip(theirs) {
                difference += f64::from(x - y).powi(2);
                length += f64::from(*y).powi(2);
            }
        }
        assert!((difference / length).sqrt() < 1e-5, "{}: {}", value.at, (difference / length).sqrt());
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let kind = |path: &str, options: OpenOptions| Model::open_with(root().join(path), options).map(|_| ()).unwrap_err();
    let defaults = || OpenOptions { device: Device::Cpu, ..OpenOptions::defaults().unwrap() };
    assert!(kind("no/such", defaults()).message.contains("no such folder; give one with config.json"));
    assert!(kind("Cargo.toml", defaults()).message.contains("found another file"));
    let small = kind("models/demo", OpenOptions { memory: Some(1000), ..defaults() });
    assert_eq!(small.kind, Kind::Memory);
    let mut long = defaults();
    long.inference.kvcache.max_tokens = Some(1 << 30);
    assert_eq!(kind("models/demo", long).kind, Kind::Invalid);

    let model = model("models/demo");
    let message = |stages: &[&str]| model.observe(PROMPT, stages).unwrap_err().message;
    assert!(message(&["layer_uot"]).contains("layer_out"), "{}", message(&["layer_uot"]));
    assert!(message(&["layer_out@7"]).contains("layers 0 to 6"), "{}", message(&["layer_out@7"]));
    assert!(message(&["ffn_out@1,token=0"]).contains("a part of a value"));
    assert!(message(&["sampled"]).contains("no stage `sampled`"), "{}", message(&["sampled"]));
    assert!(message(&["ffn_out@1=zero"]).contains("expected"), "{}", message(&["ffn_out@1=zero"]));
    assert!(message(&[]).contains("at least one name"));
    let options = AnswerOptions::default();
    assert_eq!(model.generate("", &options, |_| ()).unwrap_err().kind, Kind::Invalid);
    assert_eq!(model.chat(&[Message::new("nobody", "?")], &options, |_| ()).unwrap_err().kind, Kind::Template);
}
