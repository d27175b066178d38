//! `debug --prompts`: rows of many prompts in shards are those of single dumps, a run that was ended goes on, and Python reads them.

use crate::support::{Ran, data, doppler, scratch};
use doppler::debug::dump::Dump;
use doppler::formats::safetensors::read_header;
use doppler::formats::{ByteSource, InMemory};
use doppler::plan::{At, Stage};
use doppler::tensor::{DType, to_f32};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const PROMPTS: usize = 40;

fn ids(prompt: usize) -> Vec<u32> {
    (0..30 + prompt % 7).map(|i| (3 + (i * 31 + prompt * 17) % 90) as u32).collect()
}

fn lines(prompts: usize) -> String {
    // Every fifth line is empty: it has a number and no rows.
    let line = |prompt: usize| if prompt % 5 == 4 { "\n".into() } else { format!("{{\"ids\": {:?}}}\n", ids(prompt)) };
    (0..prompts).map(line).collect()
}

/// The shards in `folder`, joined: integers and rows by name.
fn joined(folder: &Path) -> (usize, BTreeMap<String, Vec<f32>>) {
    let (mut shards, mut all) = (0, BTreeMap::<String, Vec<f32>>::new());
    while let Ok(source) = InMemory::open(&folder.join(format!("activations-{shards:05}.safetensors"))) {
        let header = pollster::block_on(read_header(&source)).expect("a header");
        for entry in &header.tensors {
            let bytes = pollster::block_on(source.read(entry.range.clone())).expect("bytes");
            let numbers = match entry.dtype.known() {
                Some(DType::I32) => bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b) as f32).collect(),
                Some(dtype) => to_f32(&bytes, dtype),
                None => panic!("{}: {}", entry.name, entry.dtype),
            };
            all.entry(entry.name.clone()).or_default().extend(numbers);
        }
        shards += 1;
    }
    (shards, all)
}

fn run(prompts: &Path, folder: &Path, more: &[&str]) -> Ran {
    let model = data("gemma2");
    let [prompts, folder] = [prompts, folder].map(|path| path.display().to_string());
    let fixed =
        ["debug", "-m", &model, "--device", "cpu", "--dtype", "f32", "--prefill-chunk", "8", "--prompts", &prompts, "--dump", &folder];
    doppler(&[&fixed[..], more].concat())
}

#[test]
fn rows_of_many_prompts_are_written_in_shards_and_a_run_goes_on() {
    let folder = scratch("activations");
    let (whole, parts, prompts) = (folder.join("whole"), folder.join("parts"), folder.join("prompts.jsonl"));
    let wanted = ["--stages", "layer_out,ffn_act,logits_final", "--dump-layers", "0,2", "--shard-size", "1"];
    std::fs::write(&prompts, lines(PROMPTS)).expect("prompts");
    let said = run(&prompts, &whole, &wanted).fine();
    let (shards, all) = joined(&whole);
    let rows: usize = (0..PROMPTS).filter(|p| p % 5 != 4).map(|p| ids(p).len()).sum();
    assert!(said.stdout.contains(&format!("ACTIVATIONS prompts={PROMPTS} rows={rows} shards={shards} ")) && shards > 1, "{}", said.stdout);
    assert_eq!(
        all.keys().map(String::as_str).collect::<Vec<_>>(),
        ["id", "layer.0.ffn_act", "layer.0.layer_out", "layer.2.ffn_act", "layer.2.layer_out", "logits_final", "position", "prompt"]
    );
    // Each row is that of the prompt by itself.
    for prompt in [0, 13, PROMPTS - 2] {
        let file = folder.join("one.safetensors").display().to_string();
        let list = ids(prompt).iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let model = data("gemma2");
        let args =
            ["debug", "-m", &model, "--device", "cpu", "--dtype", "f32", "--prefill-chunk", "8", "--max-tokens", "0", "--token-ids", &list];
        doppler(&[&args[..], &["--dump", &file, "--stages", "layer_out"]].concat()).fine();
        let one = Dump::open(file.as_ref()).unwrap().value(At { stage: Stage::LayerOut, layer: Some(2) }).unwrap().unwrap();
        let here: Vec<usize> = (0..rows).filter(|row| all["prompt"][*row] == prompt as f32).collect();
        let width = one.width();
        let found: Vec<f32> = here.iter().flat_map(|row| all["layer.2.layer_out"][row * width..(row + 1) * width].to_vec()).collect();
        assert_eq!(found, one.data, "prompt {prompt}");
        assert_eq!(here.iter().map(|row| all["id"][*row] as u32).collect::<Vec<_>>(), ids(prompt));
        assert_eq!(here.iter().map(|row| all["position"][*row] as usize).collect::<Vec<_>>(), (0..here.len()).collect::<Vec<_>>());
    }
    // A run that lost its last shard makes it again, which may begin within a prompt.
    let last = whole.join(format!("activations-{:05}.safetensors", shards - 1));
    let before = std::fs::read(&last).expect("a shard");
    std::fs::remove_file(&last).expect("a shard");
    run(&prompts, &whole, &wanted).fine();
    assert!(before == std::fs::read(&last).expect("a shard"), "the last shard is another one");
    // The same in two parts, as when more prompts come; a run that has nothing left writes nothing.
    std::fs::write(&prompts, lines(17)).expect("prompts");
    run(&prompts, &parts, &wanted).fine();
    std::fs::write(&prompts, lines(PROMPTS)).expect("prompts");
    run(&prompts, &parts, &wanted).fine();
    let more = joined(&parts);
    assert!(more.1 == all && more.0 > 1, "{} shards", more.0);
    run(&prompts, &parts, &wanted).fine();
    assert_eq!(joined(&parts).0, more.0);
    // What lies there of another run, or of other prompts, is not mixed with this one.
    run(&prompts, &parts, &["--stages", "layer_out", "--dump-layers", "1"]).refused(&["activations-00000", "`values`", "empty folder"]);
    std::fs::write(&prompts, lines(PROMPTS).replacen("[3,", "[4,", 1)).expect("prompts");
    run(&prompts, &parts, &wanted).refused(&["of other prompts"]);
    std::fs::write(&prompts, lines(3)).expect("prompts");
    run(&prompts, &parts, &wanted).refused(&["of other prompts"]);
    python_reads(&whole, rows);
}

#[test]
fn chosen_positions_and_bad_lines() {
    let folder = scratch("activations_bad");
    let prompts = folder.join("prompts.txt");
    std::fs::write(&prompts, "one two three\nfour\n").expect("prompts");
    run(&prompts, &folder.join("a"), &["--stages", "layer_out", "--dump-layers", "0", "--dump-tokens", "0,-1"]).fine();
    let (_, all) = joined(&folder.join("a"));
    let last =
        |prompt: f32| (0..all["prompt"].len()).filter(|i| all["prompt"][*i] == prompt).map(|i| all["position"][i]).collect::<Vec<_>>();
    assert!(last(0.0).len() == 2 && last(0.0)[0] == 0.0 && last(0.0)[1] > 1.0 && last(1.0).len() <= 2, "{:?}", all["position"]);
    let b = folder.join("b");
    run(&prompts, &b, &["--stages", "attn_probs"]).refused(&["attn_probs", "differ in length"]);
    run(&prompts, &b, &["--stages", "layer_uot"]).refused(&["layer_out"]);
    run(&prompts, &b, &["--dump-tokens", "x"]).refused(&["--dump-tokens", "`x`"]);
    run(&prompts, &b, &["--max-tokens", "3"]).refused(&["--max-tokens"]);
    let lines = folder.join("prompts.jsonl");
    for (text, says) in [("{\"ids\": [1, 2]}\n{}\n", "line 2"), ("{\"ids\": [1, 99999999]}\n", "99999999"), ("[1\n", "line 1")] {
        std::fs::write(&lines, text).expect("prompts");
        run(&lines, &folder.join(says), &["--stages", "layer_out"]).refused(&["prompts.jsonl", says]);
    }
}

/// The script of docs/INTERVENTIONS.md, where there is a Python for it.
fn python_reads(folder: &Path, rows: usize) {
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/INTERVENTIONS.md")).expect("the page");
    let script = docs.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a script");
    let script = script.replace("\"activations\"", &format!("{:?}", folder.display().to_string()));
    let python = std::env::var("DOPPLER_PYTHON").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "python3".into());
    let has = |what: &str| Command::new(&python).args(["-c", what]).output().is_ok_and(|output| output.status.success());
    if !has("import numpy, safetensors") {
        eprintln!("skipped: {python} has no numpy and safetensors (DOPPLER_PYTHON names one that has)");
        return;
    }
    let output = Command::new(&python).args(["-c", &script]).output().expect("Python");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains(&format!("({rows}, ")), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
