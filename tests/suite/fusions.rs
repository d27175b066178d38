//! Which ops are computed together in every family, as text: a pattern that stops to match changes `tests/data/groups.txt`.
//! `DOPPLER_BLESS=1` writes it anew.

use std::fmt::Write;
use std::path::Path;

use doppler::groups::{Question, groups};
use doppler::plan::{Plan, ValueId};

use crate::golden::goldens;

/// What is computed together in a step of few tokens or many: a line for each run of layers that do the same, with its groups below.
fn described(plan: &Plan, few: bool) -> String {
    let mut parts: Vec<(String, Vec<String>)> = Vec::new();
    for group in groups(plan, Question::unwatched(few)) {
        let last = group.nodes.last().copied().unwrap_or(ValueId(0));
        let place = plan.node(last).at.layer.map_or("outside layers".to_string(), |layer| format!("layer {layer}"));
        let stages: Vec<&str> = group.nodes.iter().map(|id| plan.node(*id).at.stage.name()).collect();
        let line = format!("{}: {}", group.pattern.name(), stages.join(" "));
        match parts.last_mut() {
            Some((name, lines)) if *name == place => lines.push(line),
            _ => parts.push((place, vec![line])),
        }
    }
    let mut text = String::new();
    for same in parts.chunk_by(|a, b| a.1 == b.1) {
        let names: Vec<&str> = same.iter().map(|(name, _)| name.as_str()).collect();
        let calls = same[0].1.len();
        writeln!(text, "  {} ({calls} groups)", names.join(", ")).expect("strings take text");
        same[0].1.iter().for_each(|line| writeln!(text, "    {line}").expect("strings take text"));
    }
    text
}

#[test]
fn every_family_is_fused_as_before() {
    let mut text = String::new();
    for golden in goldens() {
        for (few, what) in [(true, "few tokens"), (false, "many tokens")] {
            write!(text, "{}, {what}\n{}", golden.name, described(&golden.plan, few)).expect("strings take text");
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/groups.txt");
    if std::env::var_os("DOPPLER_BLESS").is_some() {
        std::fs::write(&path, &text).expect("the checkout can be written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; DOPPLER_BLESS=1 writes it", path.display()));
    for (i, (found, expected)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {} of {}", i + 1, path.display());
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "lines of {}", path.display());
}
