//! The report's lists and tables: findings, tokens, chosen tokens, the lens, probes, the config.

use super::{ConfigRow, TokenCell, escape, table};
use crate::debug::number::significant;
use crate::debug::record::{Candidate, Finding, LensRecord, ProbeRecord, SampleRecord};
use std::collections::BTreeMap;

/// Findings, or that there are none.
pub(super) fn findings(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "<p class=\"good\">No anomaly was found.</p>\n".into();
    }
    let item = |f: &Finding| {
        let place = f.at.map(|at| format!(" at {at}")).unwrap_or_default();
        let line = escape(&f.text());
        format!("<div class=\"bad\"><p><b>{}</b>{place}</p>\n<p class=\"line\">{line}</p></div>\n", f.kind)
    };
    findings.iter().map(item).collect()
}

/// The sequence, generated tokens framed.
pub(super) fn tokens(tokens: &[TokenCell]) -> String {
    if tokens.is_empty() {
        return String::new();
    }
    let item = |(position, token): (usize, &TokenCell)| {
        let TokenCell { id, text, generated } = token;
        let (class, from) = if *generated { (" generated", "generated") } else { ("", "prompt") };
        let shown = text.as_deref().map_or_else(|| format!("#{id}"), escape);
        format!("<li class=\"token{class}\" title=\"position {position}, id {id}, {from}\">{shown}<small>{position}</small></li>\n")
    };
    let items: String = tokens.iter().enumerate().map(item).collect();
    let generated = tokens.iter().filter(|t| t.generated).count();
    let words = format!("{} of the prompt, {generated} generated (framed)", tokens.len() - generated);
    format!("<p class=\"soft\">{words}</p>\n<ol class=\"tokens\">\n{items}</ol>\n")
}

/// A token's text, or its id, and its probability.
fn candidate(c: &Candidate) -> String {
    let name = c.text.as_ref().map_or_else(|| format!("#{}", c.id), |text| format!("{text:?}"));
    escape(&format!("{name} {}", percent(c.probability)))
}

fn percent(p: f64) -> String {
    if p >= 0.0005 { format!("{:.1}\u{a0}%", p * 100.0) } else { significant(p) }
}

/// The chosen token of every step, with its alternatives.
pub(super) fn samples(samples: &[SampleRecord]) -> String {
    if samples.is_empty() {
        return String::new();
    }
    let row = |s: &SampleRecord| {
        let chosen = s.chosen.as_ref().map(candidate).unwrap_or_default();
        let top: Vec<String> = s.top.iter().map(candidate).collect();
        let entropy = format!("{:.3}", s.entropy);
        format!(
            "<tr><th scope=\"row\">{}</th><td class=\"number\">{}</td><td>{chosen}</td><td class=\"number\">{entropy}</td><td>{}</td></tr>\n",
            s.step,
            s.token,
            top.join(" · ")
        )
    };
    let rows: String = samples.iter().map(row).collect();
    let caption = "Chosen tokens and the likeliest ones; probabilities of the whole row at temperature 1, entropy in nats";
    table(caption, &["step", "after position", "chosen", "entropy", "likeliest"], &rows)
}

/// What each layer would say: a row per layer, a column per step.
pub(super) fn lens(records: &[LensRecord]) -> String {
    if records.is_empty() {
        return String::new();
    }
    let mut layers: BTreeMap<usize, BTreeMap<usize, &LensRecord>> = BTreeMap::new();
    let mut steps: BTreeMap<usize, Option<&Candidate>> = BTreeMap::new();
    for record in records {
        layers.entry(record.layer).or_default().insert(record.step, record);
        steps.insert(record.step, record.chosen.as_ref());
    }
    let head: Vec<String> = std::iter::once("layer".to_string())
        .chain(steps.iter().map(|(step, chosen)| {
            let text = chosen.and_then(|c| c.text.as_ref().map(|text| format!(" → {text:?}"))).unwrap_or_default();
            if *step == 0 { format!("prompt{text}") } else { format!("step {step}{text}") }
        }))
        .collect();
    let cell = |record: &&LensRecord| {
        let top: Vec<String> = record.top.iter().map(candidate).collect();
        format!("<td title=\"{}\">{}</td>", top.join(" · "), top.first().cloned().unwrap_or_default())
    };
    let row = |(layer, seen): (&usize, &BTreeMap<usize, &LensRecord>)| {
        let cells: String = steps.keys().map(|step| seen.get(step).map_or("<td></td>".to_string(), cell)).collect();
        format!("<tr><th scope=\"row\">L{layer}</th>{cells}</tr>\n")
    };
    let rows: String = layers.iter().map(row).collect();
    table("The likeliest next token if the layer were the last one", &head.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
}

/// Probed elements, one row per token.
pub(super) fn probes(probes: &[ProbeRecord]) -> String {
    if probes.is_empty() {
        return String::new();
    }
    let rows: String = probes.iter().map(|p| format!("<tr><td>{}</td></tr>\n", escape(&p.text()))).collect();
    table("Probed elements", &["probe"], &rows)
}

/// The config with the source of every number.
pub(super) fn config(config: &[ConfigRow]) -> String {
    if config.is_empty() {
        return String::new();
    }
    let row = |r: &ConfigRow| {
        format!("<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td></tr>\n", escape(&r.name), escape(&r.value), escape(&r.source))
    };
    let rows: String = config.iter().map(row).collect();
    table("The model's config and where each number came from", &["field", "value", "source"], &rows)
}
