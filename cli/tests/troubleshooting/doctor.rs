//! What `doctor` says of every model that the guide breaks.

use crate::{FAULTS, Model, PACKED, anchor, guide, packed, root, scratch};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How the tokenizer's files, or a kernel, are broken in a copy of the built-in model. These have no excerpt.
const OTHERS: &[(&str, &str, fn(&Path) -> Vec<String>)] = &[
    ("Tokenizer, BOS, chat template", "BOS twice", |folder| {
        let path = folder.join("tokenizer_config.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let template = config["chat_template"].as_str().unwrap().to_string();
        config["chat_template"] = json!(format!("{{{{ bos_token }}}}{template}"));
        std::fs::write(path, config.to_string()).unwrap();
        Vec::new()
    }),
    ("Tokenizer, BOS, chat template", "no BOS", |folder| {
        let [tokens, config] = ["tokenizer.json", "tokenizer_config.json"].map(|name| folder.join(name));
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&tokens).unwrap()).unwrap();
        json["post_processor"] = Value::Null;
        std::fs::write(tokens, json.to_string()).unwrap();
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
        json["add_bos_token"] = json!(false);
        std::fs::write(config, json.to_string()).unwrap();
        Vec::new()
    }),
    ("Only on the GPU", "", |folder| {
        let text = std::fs::read_to_string(root().join("src/gpu/kernels/add.wgsl")).unwrap();
        let kernels = folder.join("kernels");
        std::fs::create_dir_all(&kernels).unwrap();
        let wrong = text.replacen("p.multiplier * b[i]", "p.multiplier * b[i] * 1.07", 1);
        assert_ne!(wrong, text, "add.wgsl was changed");
        std::fs::write(kernels.join("add.wgsl"), wrong).unwrap();
        ["--device", "gpu", "--dtype", "f32", "--kernels"].map(str::to_string).into_iter().chain([kernels.display().to_string()]).collect()
    }),
];

/// The verdict of `doctor` on a model, with the right one as reference: classes, or what it is else.
fn diagnosed(model: &Path, reference: &Path, options: &[String]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doppler"));
    command.args(["doctor", "--json", "-", "-m"]).arg(model).arg("--reference").arg(reference).env("DOPPLER_RESIDENT", "off");
    let options = if options.is_empty() { vec!["--device".to_string(), "cpu".into()] } else { options.to_vec() };
    let output = command.args(options).stdin(Stdio::null()).output().unwrap();
    let verdict: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    let also = verdict["also"].as_array().into_iter().flatten().filter_map(|fault| fault["cause"].as_str());
    let mut causes: Vec<&str> = verdict["cause"].as_str().into_iter().chain(also).collect();
    causes.dedup();
    match &causes[..] {
        [] => verdict["verdict"].as_str().unwrap_or("no verdict").to_string(),
        causes => causes.iter().map(|cause| format!("`{cause}`")).collect::<Vec<_>>().join(", "),
    }
}

/// Each symptom and cause of the guide is a mutant; what `doctor` says of it is what the guide's table has.
#[test]
fn doctor_says_of_each_section_what_the_table_has() {
    let has_gpu = Command::new(env!("CARGO_BIN_EXE_doppler")).args(["devices", "--no-self-test"]).output().unwrap();
    let has_gpu = String::from_utf8_lossy(&has_gpu.stdout).contains("gpu");
    let row = |heading: &str, label: &str, verdict: &str| {
        let label = if label.is_empty() { String::new() } else { format!(", `{label}:`") };
        format!("| [{heading}](#{}){label} | {verdict} |", anchor(heading))
    };
    type Make<'a> = Box<dyn Fn(&Path) -> (PathBuf, PathBuf, Vec<String>) + Sync + 'a>;
    let right = root().join("models/demo");
    let mut all: Vec<(&str, &str, Make<'_>)> = Vec::new();
    for (heading, label, damage) in
        FAULTS.iter().filter(|fault| fault.0 != "Compare with Hugging Face" && fault.0 != "Judge by a healthy run")
    {
        let right = &right;
        let make = move |folder: &Path| {
            let mut model = Model::demo();
            damage(&mut model);
            model.write(&folder.join("demo"));
            (folder.join("demo"), right.clone(), Vec::new())
        };
        all.push((heading, label, Box::new(make)));
    }
    for (heading, label, options, damage) in PACKED {
        let right = &right;
        all.push((heading, label, Box::new(move |folder: &Path| (packed(options, *damage, folder), right.clone(), Vec::new()))));
    }
    for (heading, label, damage) in OTHERS.iter().filter(|other| has_gpu || other.0 != "Only on the GPU") {
        let right = &right;
        let make = move |folder: &Path| {
            Model::demo().write(&folder.join("demo"));
            let options = damage(&folder.join("demo"));
            (folder.join("demo"), right.clone(), options)
        };
        all.push((heading, label, Box::new(make)));
    }
    let half = all.len().div_ceil(2);
    let found: Vec<String> = std::thread::scope(|scope| {
        let one = |(heading, label, make): &(&str, &str, Make<'_>)| {
            let folder = scratch(&format!("doctor {heading} {label}"));
            let (model, right, options) = make(&folder);
            let verdict = diagnosed(&model, &right, &options);
            std::fs::remove_dir_all(folder).unwrap();
            row(heading, label, &verdict)
        };
        let running: Vec<_> = all.chunks(half).map(|part| scope.spawn(move || part.iter().map(one).collect::<Vec<String>>())).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let text = guide();
    let at = text.find("\n## Each of them, with doctor\n").expect("a section with the table");
    let is_here = |row: &&str| has_gpu || !row.contains("(#only-on-the-gpu)");
    let table: Vec<&str> = text[at..]
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .filter(is_here)
        .collect();
    assert_eq!(table, found, "the table is\n{}", found.join("\n"));
    // Every symptom that has an excerpt is there.
    let headings: BTreeSet<&str> = FAULTS.iter().map(|fault| fault.0).chain(PACKED.iter().map(|fault| fault.0)).collect();
    let missing: Vec<&&str> = headings.iter().filter(|heading| !text[at..].contains(&format!("[{heading}]"))).collect();
    assert!(missing.len() <= 2, "{missing:?}");
}
