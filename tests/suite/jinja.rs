//! Chat templates against Jinja2 itself: the templates of `jinja/cases.py`, whose results are committed, everywhere; and
//! where Python has jinja2, that the results are what it gives now.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use doppler::inference::chat::{ChatInput, ChatTemplate, Clock, Message};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/jinja")
}

fn render(template: &str, context: &Value) -> Result<String, String> {
    let template = ChatTemplate::new(Some(template), None, &BTreeMap::new()).map_err(|e| e.message)?.unwrap();
    let mut variables = context.as_object().unwrap().clone();
    let messages: Vec<Message> = serde_json::from_value(variables.remove("messages").unwrap()).unwrap();
    let now = Clock { unix_seconds: 1_752_148_800, utc_offset: 0 };
    let input = ChatInput { messages: &messages, add_generation_prompt: true, tools: None, variables: &variables, now };
    template.render(&input).map_err(|e| e.message)
}

/// What Python renders and Doppler refuses, by name.
const REFUSED: [&str; 1] = ["{% autoescape true %}{{ n }}{% endautoescape %}"];

#[test]
fn templates_render_as_in_jinja2() {
    let results: Value = serde_json::from_slice(&std::fs::read(folder().join("results.json")).unwrap()).unwrap();
    let rows = results["rows"].as_array().unwrap();
    let mut wrong = Vec::new();
    for row in rows {
        let template = row["template"].as_str().unwrap();
        let found = render(template, &results["context"]);
        let good = match (&found, row["expected"].as_str()) {
            (Ok(found), Some(expected)) => found == expected,
            (Err(_), Some(_)) => REFUSED.contains(&template),
            (Ok(_), None) => false,
            (Err(message), None) => !message.is_empty(),
        };
        if !good {
            wrong.push(format!("{template:?}\n  expected {} {}\n  found    {found:?}", row["expected"], row["error"]));
        }
    }
    assert!(rows.len() > 1000 && wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn results_are_those_of_jinja2_here() {
    let python = std::env::var_os("DOPPLER_PYTHON").unwrap_or_else(|| "python3".into());
    let version = Command::new(&python).args(["-c", "import jinja2; print(jinja2.__version__)"]).output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let committed = std::fs::read_to_string(folder().join("results.json")).unwrap();
    let results: Value = serde_json::from_str(&committed).unwrap();
    if version != results["jinja2"] {
        return crate::support::skipped("no jinja2 of the results' version was found: set DOPPLER_PYTHON");
    }
    let output = Command::new(&python).arg(folder().join("cases.py")).env("PYTHONIOENCODING", "utf-8").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), committed, "{}", String::from_utf8_lossy(&output.stderr));
}
