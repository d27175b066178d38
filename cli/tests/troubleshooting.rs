//! The troubleshooting guide and the other documents are true: every command of their `sh` blocks runs and ends as it should,
//! and every excerpt of the guide is what a model prints that is broken in the way that the section says.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "troubleshooting/doctor.rs"]
mod doctor;
#[path = "troubleshooting/documents.rs"]
mod documents;

use doppler::debug::anomaly::RULES;
use doppler::formats::InMemory;
use doppler::formats::gguf::read_header;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The repository's root.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn guide() -> String {
    std::fs::read_to_string(root().join("docs/DOPPLER-TROUBLESHOOTING.md")).unwrap()
}

// --- Models that are broken on purpose ---

/// The built-in model in parts: its config, and its tensors in f32.
struct Model {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

const EMBED: &str = "model.embed_tokens.weight";
const HIDDEN: usize = 256;
const HEAD_DIM: usize = 64;
const LAYERS: usize = 7;

impl Model {
    fn demo() -> Self {
        let folder = root().join("models/demo");
        let config = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let (length, rest) = bytes.split_at(8);
        let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let header: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap();
        let tensor = |(name, about): (String, Value)| {
            assert_eq!(about["dtype"], "BF16", "{name}");
            let shape: Vec<usize> = serde_json::from_value(about["shape"].clone()).unwrap();
            let range: [usize; 2] = serde_json::from_value(about["data_offsets"].clone()).unwrap();
            let number = |x: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*x)) << 16);
            (name, (shape, data[range[0]..range[1]].as_chunks::<2>().0.iter().map(number).collect()))
        };
        let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__").map(tensor).collect();
        Self { config, tensors }
    }
    /// Writes it as the folder of a model, with the built-in model's other files.
    fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(root().join("models/demo").join(name), folder.join(name)).unwrap();
        }
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, (shape, values)) in &self.tensors {
            let begin = data.len();
            values.iter().for_each(|x| data.extend(bf16(*x).to_le_bytes()));
            header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, data.len()]}));
        }
        let header = Value::Object(header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(folder.join("model.safetensors"), [&length[..], header.as_bytes(), &data].concat()).unwrap();
    }
    fn at(&mut self, name: &str) -> &mut Vec<f32> {
        &mut self.tensors.get_mut(name).unwrap_or_else(|| panic!("no {name}")).1
    }
    fn scale(&mut self, name: &str, factor: f32) {
        self.at(name).iter_mut().for_each(|x| *x *= factor);
    }
    fn set(&mut self, key: &str, value: Value) {
        self.config[key] = value;
    }
    fn all_norms(&mut self, add: f32) {
        let norms = self.tensors.iter_mut().filter(|(name, _)| name.contains("norm"));
        norms.for_each(|(_, (_, values))| values.iter_mut().for_each(|x| *x += add));
    }
    /// Gives the head a tensor of its own.
    fn untie(&mut self) -> &mut Vec<f32> {
        self.set("tie_word_embeddings", json!(false));
        let embed = self.tensors[EMBED].clone();
        self.tensors.insert("lm_head.weight".into(), embed);
        self.at("lm_head.weight")
    }
    /// Reorders the rows of a projection: row `i` becomes what was row `from(i)`.
    fn reorder(&mut self, name: &str, from: impl Fn(usize) -> usize) {
        let old = self.at(name).clone();
        let rows = old.len() / HIDDEN;
        *self.at(name) = (0..rows).flat_map(|i| old[from(i) * HIDDEN..][..HIDDEN].iter().copied()).collect();
    }
    /// Rounds all matrices to `bits` in blocks of 32.
    fn quantise(&mut self, bits: i32) {
        let most = f32::from(2i8.pow(bits.unsigned_abs() - 1) - 1);
        for (_, values) in self.tensors.values_mut().filter(|(shape, _)| shape.len() == 2) {
            for block in values.chunks_mut(32) {
                let step = block.iter().fold(0f32, |m, x| m.max(x.abs())) / most;
                block.iter_mut().for_each(|x| *x = (*x / step.max(1e-12)).round_ties_even() * step);
            }
        }
    }
}

/// To the nearest, ties to even.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = if x.is_finite() { bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) } else { bits };
    (rounded >> 16) as u16
}

fn layer(index: usize, part: &str) -> String {
    format!("model.layers.{index}.{part}.weight")
}

type Break = fn(&mut Model);

/// Section of the guide, label of its excerpts (none is ""), and how its model is broken.
const FAULTS: &[(&str, &str, Break)] = &[
    ("Gibberish", "", |m| (0..LAYERS).for_each(|l| m.reorder(&layer(l, "self_attn.k_proj"), |i| (i + HEAD_DIM) % (2 * HEAD_DIM)))),
    ("NaN or Inf", "", |m| m.at(&layer(3, "mlp.down_proj"))[1000] = f32::NAN),
    ("Inf in f16 only", "", |m| m.scale(&layer(3, "mlp.up_proj"), 30_000.0)),
    ("Exploding values", "", |m| m.scale(&layer(3, "post_feedforward_layernorm"), 1000.0)),
    ("Vanishing values", "", |m| m.at(&layer(3, "mlp.down_proj")).fill(0.0)),
    ("Vanishing values", "small", |m| m.scale(&layer(4, "mlp.down_proj"), 1e-4)),
    ("One dimension spikes", "", |m| m.at(&layer(0, "post_feedforward_layernorm"))[33] = 300.0),
    ("Repeated tokens", "", |m| {
        for l in 0..LAYERS {
            let gate = m.at(&layer(l, "mlp.gate_proj")).clone();
            let up = std::mem::replace(m.at(&layer(l, "mlp.up_proj")), gate);
            *m.at(&layer(l, "mlp.gate_proj")) = up;
        }
    }),
    ("Wrong probabilities", "", |m| m.set("final_logit_softcapping", Value::Null)),
    ("Flat or saturated logits", "", |m| m.scale(EMBED, 1e4)),
    ("PAD wins", "", |m| {
        let head = m.untie();
        (0..HIDDEN).for_each(|i| head[i] = 2.0 * head[607 * HIDDEN + i]);
    }),
    ("PAD wins", "padded", |m| {
        m.set("vocab_size", json!(1536));
        let (shape, rows) = m.tensors.get_mut(EMBED).unwrap();
        *shape = vec![1536, HIDDEN];
        rows.extend_from_within(605 * HIDDEN..610 * HIDDEN);
        rows[1531 * HIDDEN..].iter_mut().for_each(|x| *x *= 3.0);
    }),
    ("Norm offset", "", |m| m.all_norms(-1.0)),
    ("Norm offset", "twice", |m| m.all_norms(1.0)),
    ("Embedding scale", "", without_embedding_scale),
    ("Attention scale", "", |m| m.set("query_pre_attn_scalar", json!(64))),
    ("Compare with Hugging Face", "", |m| m.set("attn_logit_softcapping", Value::Null)),
    ("Soft-caps", "", |m| {
        m.set("attn_logit_softcapping", Value::Null);
        m.set("final_logit_softcapping", Value::Null);
    }),
    ("Sliding window", "", |m| m.set("sliding_window", json!(19))),
    ("Sliding window", "all", |m| m.set("layer_types", json!(vec!["sliding_attention"; LAYERS]))),
    ("RoPE", "", |m| {
        // Of each head: 0, 32, 1, 33, …
        let from = |i: usize| i / HEAD_DIM * HEAD_DIM + i % 2 * (HEAD_DIM / 2) + i % HEAD_DIM / 2;
        for l in 0..LAYERS {
            m.reorder(&layer(l, "self_attn.q_proj"), from);
            m.reorder(&layer(l, "self_attn.k_proj"), from);
        }
    }),
    ("RoPE", "base", |m| m.set("rope_theta", json!(500.0))),
    ("The head: tied, untied, padded", "", |m| m.untie().rotate_right(HIDDEN)),
    ("Quantisation drift", "", |m| m.quantise(2)),
    ("Quantisation drift", "3 bits", |m| m.quantise(3)),
    ("Judge by a healthy run", "", without_embedding_scale),
];

/// What is damaged: a tensor of a packed file; bytes of its blocks, the first of two that become 0, and every which block.
type Damage = Option<(&'static str, [usize; 3])>;

/// Section, label, options of `convert` that pack the built-in model, and what is damaged then.
const PACKED: &[(&str, &str, &[&str], Damage)] = &[
    ("Broken or coarse", "", &["--recipe", "q4_k_m"], Some(("token_embd.weight", [210, 208, 32]))),
    ("Broken or coarse", "coarse", &["--quantize", "q2_k"], None),
];

/// The built-in model, packed and damaged, in `folder`.
fn packed(options: &[&str], damage: Damage, folder: &Path) -> PathBuf {
    let path = folder.join("packed.gguf");
    let mut command = Command::new(env!("CARGO_BIN_EXE_doppler"));
    let output = command.args(["convert", "demo", "-o", path.to_str().unwrap()]).args(options).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if let Some((tensor, [bytes, at, step])) = damage {
        let mut file = std::fs::read(&path).unwrap();
        let header = pollster::block_on(read_header(&InMemory::new("packed.gguf", file.clone()))).unwrap();
        let range = header.tensors.iter().find(|known| known.name == tensor).unwrap().range.clone();
        let blocks = file[range.start as usize..range.end as usize].chunks_exact_mut(bytes);
        blocks.step_by(step).for_each(|block| block[at..at + 2].fill(0));
        std::fs::write(&path, file).unwrap();
    }
    path
}

fn without_embedding_scale(model: &mut Model) {
    model.untie();
    model.scale(EMBED, 1.0 / 16.0);
}

// --- Documents ---

/// A `sh` or `text` block: its lines.
#[derive(Debug)]
enum Block {
    Commands(Vec<String>),
    Excerpt(Vec<String>),
}

/// Blocks by the heading that they stand under, in order.
fn sections(text: &str) -> Vec<(String, Vec<Block>)> {
    let mut sections: Vec<(String, Vec<Block>)> = Vec::new();
    let mut open = false;
    for line in text.replace("\\\n", " ").lines() {
        match line {
            "```" if open => open = false,
            _ if line.starts_with("```") => {
                open = true;
                let block = if line == "```sh" { Block::Commands(Vec::new()) } else { Block::Excerpt(Vec::new()) };
                sections.last_mut().expect("a heading before the first block").1.push(block);
            }
            _ if !open && line.starts_with('#') => sections.push((line.trim_start_matches(['#', ' ']).to_string(), Vec::new())),
            _ if open && !line.is_empty() => match sections.last_mut().and_then(|(_, blocks)| blocks.last_mut()) {
                Some(Block::Commands(lines) | Block::Excerpt(lines)) => lines.push(line.to_string()),
                None => {}
            },
            _ => {}
        }
    }
    sections
}

// --- Running ---

/// A new folder with what the commands read.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("troubleshooting").join(name.replace(|c: char| !c.is_alphanumeric(), "_"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let read = |name: &str| std::fs::read_to_string(root().join("models/demo").join(name)).unwrap();
    // A few questions, all of which the built-in model answers, and the first documents.
    let questions: Vec<String> = read("exam.jsonl").lines().skip(1).step_by(80).map(str::to_string).collect();
    std::fs::write(folder.join("questions.jsonl"), questions.join("\n")).unwrap();
    let text = read("heldout.txt");
    let documents: Vec<&str> = text.split("\n=====\n").take(2).collect();
    std::fs::write(folder.join("text.txt"), documents.join("\n=====\n")).unwrap();
    folder
}

/// Runs a line through a shell, on the oracle: exit code and output.
fn shell(line: &str, model: &str, folder: &Path) -> (i32, String) {
    let binary = Path::new(env!("CARGO_BIN_EXE_doppler")).parent().unwrap();
    let line = line.replace("npm run debug --", "doppler debug").replace("GOOD", "demo").replace("MODEL", model);
    let on_cpu = line.contains("--device") || line.contains("--dump-config");
    let commands = ["doppler debug", "doppler exam", "doppler compare cost", "doppler compare attribute"];
    let on_cpu_too = |line: String, command: &&str| line.replace(command, &format!("{command} --device cpu"));
    let line = if on_cpu { line } else { commands.iter().fold(line, on_cpu_too) };
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", &line]).current_dir(folder).env("PATH", path).env("DOPPLER_RESIDENT", "off").stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
}

/// Runs a line on the built-in model, which must end as the line's comment says.
fn on_demo(line: &str, folder: &Path) -> String {
    let (code, output) = shell(line, "demo", folder);
    match line.contains("# healthy: prints nothing") {
        true => assert_eq!((code, output.as_str()), (1, ""), "{line}"),
        false => assert_eq!(code, 0, "{line}\n{output}"),
    }
    let failed = output.lines().any(|line| line.starts_with("Error"));
    assert!(!output.contains("ANOMALY") && !failed, "{line}\n{output}");
    output
}

/// Runs a line on a broken model. Without a pipe its exit code must be 1 if something was found, else 0.
fn on_broken(line: &str, model: &Path, folder: &Path) -> String {
    let (code, output) = shell(line, model.to_str().unwrap(), folder);
    if !line.contains(" | ") {
        assert_eq!(code, i32::from(output.contains("ANOMALY") || output.contains("stopped at the first anomaly")), "{line}\n{output}");
    }
    output
}

// --- Comparing ---

/// A line in parts: words and numbers. Numbers with a point are compared as numbers, since other machines round
/// otherwise; all else exactly.
fn parts(line: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut last = ' ';
    for c in line.chars() {
        let of_number = |c: char| c.is_ascii_digit() || c == '.';
        let goes_on = of_number(c) && of_number(last) || last == 'e' && c == '-' || last.is_alphabetic() && c.is_alphabetic();
        match parts.last_mut().filter(|_| goes_on) {
            Some(part) => part.push(c),
            None => parts.push(c.to_string()),
        }
        last = c;
    }
    parts
}

fn same(expected: &str, found: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok().filter(|_| text.contains('.'));
    match (number(expected), number(found)) {
        // The guide has three digits or more.
        (Some(a), Some(b)) => (a - b).abs() <= 6e-3 * a.abs().max(b.abs()) + 1e-4,
        _ => expected == found,
    }
}

/// Whether `found` is `excerpt`, whose cuts may stand for anything.
fn matches(excerpt: &str, found: &str) -> bool {
    let found = match found.split_once("ms][TRACE:") {
        Some((time, rest)) if time.starts_with('[') => format!("[TRACE:{rest}"),
        _ => found.to_string(),
    };
    let found = parts(&found);
    let chunks: Vec<Vec<String>> = excerpt.split('…').map(parts).collect();
    let mut at = 0;
    for (i, chunk) in chunks.iter().enumerate() {
        let fits = |start: usize| found[start..].len() >= chunk.len() && chunk.iter().zip(&found[start..]).all(|(a, b)| same(a, b));
        let last = if i + 1 == chunks.len() { found.len().checked_sub(chunk.len()) } else { None };
        let mut starts = match i {
            0 => 0..1,
            _ => at..found.len() + 1,
        };
        let is_end = |start: &usize| i + 1 < chunks.len() || Some(*start) == last || chunk.is_empty();
        let Some(start) = starts.find(|start| is_end(start) && fits(*start)) else { return false };
        at = start + chunk.len();
    }
    true
}

/// An excerpt's label and its line.
fn labelled<'l>(line: &'l str, labels: &BTreeSet<&str>) -> (&'l str, &'l str) {
    match line.split_once(": ") {
        Some((label, rest)) if label == "healthy" || labels.contains(label) => (label, rest),
        _ => ("", line),
    }
}

/// Runs a section's commands on the built-in model and on its broken ones; what is not as the section says.
fn check(heading: &str, blocks: &[Block]) -> String {
    let faults: Vec<_> = FAULTS.iter().filter(|fault| fault.0 == heading).collect();
    let packed_ones: Vec<_> = PACKED.iter().filter(|fault| fault.0 == heading).collect();
    let labels: BTreeSet<&str> = faults.iter().map(|fault| fault.1).chain(packed_ones.iter().map(|fault| fault.1)).collect();
    let healthy = scratch(&format!("{heading} healthy"));
    let mut broken: Vec<(&str, PathBuf, PathBuf)> = faults
        .iter()
        .map(|(_, label, damage)| {
            let folder = scratch(&format!("{heading} {label}"));
            let mut model = Model::demo();
            damage(&mut model);
            model.write(&folder.join("demo"));
            (*label, folder.join("demo"), folder)
        })
        .collect();
    broken.extend(packed_ones.iter().map(|(_, label, options, damage)| {
        let folder = scratch(&format!("{heading} {label}"));
        (*label, packed(options, *damage, &folder), folder)
    }));
    let mut said: BTreeMap<&str, String> = BTreeMap::new();
    let mut wrong = String::new();
    for block in blocks {
        match block {
            Block::Commands(lines) => {
                said.clear();
                for line in lines {
                    *said.entry("healthy").or_default() += &on_demo(line, &healthy);
                    for (label, model, folder) in &broken {
                        *said.entry(*label).or_default() += &on_broken(line, model, folder);
                    }
                }
                if broken.is_empty() {
                    let output = said["healthy"].clone();
                    said.insert("", output);
                }
            }
            Block::Excerpt(lines) => {
                for line in lines {
                    let (label, excerpt) = labelled(line, &labels);
                    let output = &said[label];
                    if excerpt != "…" && !output.lines().any(|found| matches(excerpt, found)) {
                        write!(wrong, "\n{heading}: `{line}` is not in:\n{output}").unwrap();
                    }
                }
            }
        }
    }
    if wrong.is_empty() {
        broken.iter().for_each(|(_, _, folder)| std::fs::remove_dir_all(folder).unwrap());
    }
    wrong
}

#[test]
fn commands_run_and_excerpts_are_what_broken_models_print() {
    let sections = sections(&guide());
    for heading in FAULTS.iter().map(|fault| fault.0).chain(PACKED.iter().map(|fault| fault.0)) {
        assert!(sections.iter().any(|section| section.0 == heading), "there is no section `{heading}`");
    }
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = sections.iter().map(|(heading, blocks)| scope.spawn(move || check(heading, blocks))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(wrong.concat(), "");
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join("troubleshooting/One_minute_healthy/report.html");
    assert!(std::fs::read_to_string(report).unwrap().contains("No anomaly was found"));
}

#[test]
fn the_skill_has_a_head_and_is_short() {
    let text = std::fs::read_to_string(root().join("skills/doppler-debug/SKILL.md")).unwrap();
    assert!(text.starts_with("---\nname: doppler-debug\ndescription: ") && text.lines().count() < 120);
}

/// A heading as GitHub links to it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn the_table_of_symptoms_names_rules_and_sections_that_show_them() {
    let text = guide();
    let sections = sections(&text);
    for link in text.split("](#").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        assert!(sections.iter().any(|(heading, _)| anchor(heading) == link), "#{link} leads nowhere");
    }
    let rules: BTreeSet<&str> = RULES.iter().map(|rule| rule.name).chain(["non_finite_weights"]).collect();
    let table = |heading: &str| -> Vec<&str> {
        let at = text.find(&format!("\n## {heading}\n")).unwrap();
        let lines = text[at..].lines().skip(2).skip_while(|line| !line.starts_with('|'));
        lines.take_while(|line| line.starts_with('|')).skip(2).collect()
    };
    let symptoms = table("What do you see?");
    assert!(symptoms.len() >= 14, "{symptoms:?}");
    let mut shown = BTreeSet::new();
    for row in symptoms {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let link = cells[2].split("](#").nth(1).unwrap().trim_end_matches([')', ' ']);
        let (heading, blocks) = sections.iter().find(|(heading, _)| anchor(heading) == link).unwrap();
        let excerpts = blocks.iter().filter_map(|block| if let Block::Excerpt(lines) = block { Some(lines.join("\n")) } else { None });
        let excerpts: String = excerpts.collect();
        assert!(!excerpts.is_empty(), "{heading} shows nothing");
        // The sections' excerpts are what broken models print, so each rule of the row was seen to fire.
        for rule in quoted(cells[1]).filter(|word| rules.contains(word)) {
            assert!(excerpts.contains(&format!("ANOMALY kind={rule} ")), "{heading} does not show {rule}");
            shown.insert(rule);
        }
        let says_none = cells[1].contains("no rule");
        assert!(!says_none || !excerpts.contains("ANOMALY"), "{heading} has a rule");
    }
    // `untrained` is what is said of a model that is not broken; tests/suite/watching/broken.rs shows it.
    let of_faults: BTreeSet<&str> = rules.iter().copied().filter(|rule| *rule != "untrained").collect();
    assert_eq!(shown, of_faults, "rules that the guide shows on a broken model");
    let described: BTreeSet<&str> = table("The rules").into_iter().flat_map(|row| quoted(row).take(1)).collect();
    assert_eq!(described, rules);
}

/// The guide's formula for the masked cells of `attn_scores`, and that a window that is off by one shows in them.
#[test]
fn masked_cells_count_the_window() {
    let (tokens, heads) = (26, 4);
    for window in [18, 19, 20, 21] {
        let folder = scratch(&format!("window {window}"));
        let mut model = Model::demo();
        model.set("sliding_window", json!(window));
        model.write(&folder.join("demo"));
        let line = concat!(
            "doppler debug -m MODEL --max-tokens 0 --chat -p \"Tom has a red ball. Ann has a blue kite. Who has the kite?\"",
            " --trace attn --trace-layers 0 | grep attn_scores"
        );
        let said = on_broken(line, &folder.join("demo"), &folder);
        let masked = heads * (tokens * tokens - tokens * window + window * (window - 1) / 2);
        assert!(said.contains(&format!(" zero={masked} ")), "{window}: {masked} in {said}");
    }
}

#[test]
fn lines_are_compared_as_they_should() {
    for (excerpt, found) in [
        ("LAYER_OUT L2 maxAbs=24.56 rms=2.271 …", "LAYER_OUT L2 maxAbs=24.563850 rms=2.27138 first=[0.5, 1.0]"),
        ("[TRACE:ffn] L0 x tokens=7 … zero=84 …", "[12.3ms][TRACE:ffn] L0 x tokens=7 rms=1.0 zero=84 headRms=[1.0]"),
        ("Done 3 … logits=…", "Done 3 tokens logits=0f14ca26"),
        ("p=2.255e-6, …", "p=2.25522e-6, x"),
    ] {
        assert!(matches(excerpt, found), "{excerpt} | {found}");
    }
    for (excerpt, found) in [
        ("L2 rms=2.271 …", "L2 rms=2.371 x"),
        ("L2 zero=84 …", "L2 zero=85 x"),
        ("L2", "L2 x"),
        ("p=2.255e-6", "p=2.255e-5"),
        ("a … c", "a b c d"),
    ] {
        assert!(!matches(excerpt, found), "{excerpt} | {found}");
    }
}
