//! The `sh` blocks of every other document run, each document's in their order in one folder: what a line writes, the next can use.

use crate::{Block, on_demo, root, scratch, sections};
use doppler::formats::gguf::{self, Metadata};
use doppler::quant::Format;
use std::path::Path;

/// Documents with commands of `doppler`, and how many lines each has at least.
const DOCUMENTS: &[(&str, usize)] = &[
    ("README.md", 25),
    ("docs/INTERVENTIONS.md", 12),
    ("skills/doppler-benchmark/SKILL.md", 6),
    ("skills/doppler-convert/SKILL.md", 12),
    ("skills/doppler-debug/SKILL.md", 19),
];

/// Lines that other tests run, or the check itself.
const ELSEWHERE: &[&str] = &[
    // The check is this run; the binary of `cargo run` is the one that is tested; `site.rs` installs.
    "cargo ",
    // With a server in the Hub's place: `cli/hub.rs`.
    "doppler pull ",
    // `docs.rs`, with the request after it.
    "doppler serve ",
    "curl ",
];

/// What stands in the place of what takes minutes, or of what not every machine has: a larger shape, all questions, a browser.
const SHORTER: &[(&str, &str)] = &[
    ("--synthetic llama3.2-1b", "--synthetic demo --prompt 16 --tokens 4 --repeat 1"),
    ("doppler exam", "doppler exam --questions questions.jsonl"),
    ("doppler bench --surface browser", "doppler bench"),
    ("--surface browser", "--device cpu"),
    ("doppler devices", "doppler devices --no-self-test"),
];

/// A control vector of the built-in model's width, as llama.cpp's programs write it.
fn control_vector(path: &Path) {
    let bytes: Vec<u8> = (0..crate::HIDDEN).flat_map(|i| (1e-3 * i as f32).to_le_bytes()).collect();
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "controlvector");
    metadata.set("controlvector.layer_count", crate::LAYERS as u32 - 1);
    let vector = |layer: usize| gguf::Output {
        name: format!("direction.{layer}"),
        format: Format::F32,
        shape: vec![crate::HIDDEN],
        data: Box::new(|out: &mut dyn std::io::Write| out.write_all(&bytes)),
    };
    let vectors: Vec<gguf::Output> = (1..crate::LAYERS).map(vector).collect();
    gguf::write(&mut std::fs::File::create(path).unwrap(), &metadata, &vectors).unwrap();
}

/// Runs the lines of one document.
fn run(document: &str, least: usize) {
    let text = std::fs::read_to_string(root().join(document)).unwrap();
    let folder = scratch(document);
    control_vector(&folder.join("happy.gguf"));
    let blocks: Vec<Block> = sections(&text).into_iter().flat_map(|(_, blocks)| blocks).collect();
    let commands = blocks.iter().filter_map(|block| if let Block::Commands(lines) = block { Some(lines) } else { None });
    let lines: Vec<&String> = commands.flatten().filter(|line| !ELSEWHERE.iter().any(|known| line.starts_with(known))).collect();
    assert!(lines.len() >= least, "{document}: {lines:?}");
    for line in lines {
        drop(on_demo(&SHORTER.iter().fold(line.clone(), |line, (long, short)| line.replace(long, short)), &folder));
    }
}

#[test]
fn commands_of_the_documents_run() {
    std::thread::scope(|scope| {
        let running: Vec<_> = DOCUMENTS.iter().map(|(document, least)| scope.spawn(|| run(document, *least))).collect();
        running.into_iter().for_each(|thread| thread.join().unwrap());
    });
}
