//! What `doctor` says of every model that the guide breaks.

use crate::{FAULTS, Model, PACKED, anchor, guide, packed, root, scratch};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A section of the guide, what is broken, and how in a copy of the built-in model.
type Broken = (&'static str, &'static str, fn(&Path));

/// How the tokenizer's files are broken. These have no excerpt.
const OTHERS: &[Broken] = &[
    ("Tokenizer, BOS, chat template", "BOS twice", |folder| {
        let path = folder.join("tokenizer_config.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let template = config["chat_template"].as_str().unwrap().to_string();
        config["chat_template"] = json!(format!("{{{{ bos_token }}}}{template}"));
        std::fs::write(path, config.to_string()).unwrap();
    }),
    ("Tokenizer, BOS, chat template", "no BOS", |folder| {
        let [tokens, config] = ["tokenizer.json", "tokenizer_config.json"].map(|name| folder.join(name));
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&tokens).unwrap()).unwrap();
        json["post_processor"] = Value::Null;
        std::fs::write(tokens, json.to_string()).unwrap();
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
        json["add_bos_token"] = json!(false);
        std::fs::write(config, json.to_string()).unwrap();
    }),
];

/// Longer than the built-in model's window of 20 positions.
const LONG: &str = "Tom has a red ball. Ann has a blue kite. Who has the kite? Tom has a red ball. Ann has a blue kite. Who has the ball?";

/// The verdict of `doctor` on a model, with the right one as reference: classes, or what it is else.
fn diagnosed(model: &Path, reference: &Path, prompt: Option<&str>) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doppler"));
    command.args(["doctor", "--device", "cpu", "--json", "-", "-m"]).arg(model).arg("--reference").arg(reference);
    command.args(prompt.into_iter().flat_map(|prompt| ["--prompt", prompt]));
    let output = command.env("DOPPLER_RESIDENT", "off").stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{}: {e}: {said}", model.display()));
    let also = verdict["also"].as_array().into_iter().flatten().filter_map(|fault| fault["cause"].as_str());
    let mut causes: Vec<&str> = verdict["cause"].as_str().into_iter().chain(also).collect();
    causes.dedup();
    match &causes[..] {
        [] => verdict["verdict"].as_str().unwrap_or("no verdict").to_string(),
        causes => causes.iter().map(|cause| format!("`{cause}`")).collect::<Vec<_>>().join(", "),
    }
}

/// Each symptom and cause of the guide is a mutant; what `doctor` says of it is what the guide's table has. A kernel that is wrong
/// is another test's, which needs a GPU; a vocabulary of another size is another model, which `doctor` refuses.
#[test]
#[expect(clippy::print_stdout, reason = "the rows are the point of --nocapture")]
fn doctor_says_of_each_section_what_the_table_has() {
    let right = root().join("models/demo");
    let row = |heading: &str, label: &str, verdict: &str| {
        let label = if label.is_empty() { String::new() } else { format!(", `{label}:`") };
        let row = format!("| [{heading}](#{}){label} | {verdict} |", anchor(heading));
        println!("{row}");
        row
    };
    let of = |heading: &str, label: &str, make: &dyn Fn(&Path) -> PathBuf| {
        let folder = scratch(&format!("doctor {heading} {label}"));
        // A window shows in prompts that are longer.
        let prompt = (heading == "Sliding window").then_some(LONG);
        let verdict = diagnosed(&make(&folder), &right, prompt);
        std::fs::remove_dir_all(folder).unwrap();
        row(heading, label, &verdict)
    };
    let is_meant = |(heading, label, _): &&(&str, &str, crate::Break)| {
        !["Compare with Hugging Face", "Judge by a healthy run"].contains(heading) && *label != "padded"
    };
    let broken = |damage: &crate::Break, folder: &Path| {
        let mut model = Model::demo();
        damage(&mut model);
        model.write(&folder.join("demo"));
        folder.join("demo")
    };
    let mut found: Vec<String> = Vec::new();
    found.extend(FAULTS.iter().filter(is_meant).map(|(heading, label, damage)| of(heading, label, &|folder| broken(damage, folder))));
    found.extend(PACKED.iter().map(|(heading, label, options, damage)| of(heading, label, &|folder| packed(options, *damage, folder))));
    found.extend(OTHERS.iter().map(|(heading, label, damage)| {
        of(heading, label, &|folder| {
            Model::demo().write(&folder.join("demo"));
            damage(&folder.join("demo"));
            folder.join("demo")
        })
    }));
    let text = guide();
    let at = text.find("\n## Each of them, with doctor\n").expect("a section with the table");
    let rows = text[at..].lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    assert_eq!(rows.skip(2).collect::<Vec<&str>>(), found, "the table is\n{}", found.join("\n"));
}
