//! The report's lists and tables: findings, tokens, chosen tokens, the lens, kernel times, probes, the config.

use super::{ConfigRow, KernelTime, TokenCell, escape, table};
use crate::debug::number::significant;
use crate::debug::record::{Candidate, Finding, LensRecord, ProbeRecord, SampleRecord, TraceRecord};
use crate::plan::Stage;
use std::collections::BTreeMap;

/// Findings, or that there are none.
pub(super) fn findings(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "<p class=\"good\">No anomaly was found.</p>\n".into();
    }
    let item = |f: &Finding| {
        // The script follows it to the cell of the map.
        let place = f.at.map(|at| format!(" at <a href=\"#at-{}-{}\">{at}</a>", f.step, at.key())).unwrap_or_default();
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
        let best = record.top.first();
        let is_chosen = best.zip(record.chosen.as_ref()).is_some_and(|(best, chosen)| best.id == chosen.id);
        let (chosen, level) = (if is_chosen { " chosen" } else { "" }, best.map_or(0.0, |best| 100.0 * best.probability));
        let text = top.first().cloned().unwrap_or_default();
        format!("<td class=\"cell{chosen}\" style=\"--level:{level:.1}%\" title=\"{}\">{text}</td>", top.join(" · "))
    };
    let row = |(layer, seen): (&usize, &BTreeMap<usize, &LensRecord>)| {
        let cells: String = steps.keys().map(|step| seen.get(step).map_or("<td></td>".to_string(), cell)).collect();
        format!("<tr><th scope=\"row\">L{layer}</th>{cells}</tr>\n")
    };
    let rows: String = layers.iter().map(row).collect();
    let caption =
        "The likeliest next token if the layer were the last one, the deeper the likelier; framed where it is the one that was chosen";
    let table = table(caption, &head.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
    table.replacen("<table>", "<table class=\"lens\">", 1)
}

/// GPU times, the longest first, with their shares.
pub(super) fn times(times: &[KernelTime]) -> String {
    if times.is_empty() {
        return String::new();
    }
    let total: f64 = times.iter().map(|time| time.nanoseconds).sum();
    let row = |KernelTime { kernel, stage, count, nanoseconds }: &KernelTime| {
        let share = if total > 0.0 { 100.0 * nanoseconds / total } else { 0.0 };
        format!(
            "<tr><th scope=\"row\">{kernel}</th><td>{stage}</td><td class=\"number\">{count}</td><td class=\"number\">{:.3}</td>\
             <td class=\"number cell\" style=\"--level:{share:.1}%\">{share:.1}\u{a0}%</td></tr>\n",
            nanoseconds / 1e6
        )
    };
    let mut sorted = times.to_vec();
    sorted.sort_by(|a, b| b.nanoseconds.total_cmp(&a.nanoseconds));
    let rows: String = sorted.iter().map(row).collect();
    let caption = format!("GPU times of all steps by kernel and stage: {:.3} ms together", total / 1e6);
    table(&caption, &["kernel", "stage", "dispatches", "ms", "share"], &rows)
}

/// The attention maps, or how to ask for them, where the model has attention.
pub(super) fn attention(maps: &str, traces: &[TraceRecord]) -> String {
    match traces.iter().any(|trace| trace.at.stage == Stage::AttnProbs) {
        true if maps.is_empty() => {
            "<p class=\"soft\">Maps of attention are here where they are asked for: <code>doppler debug --html FILE --attention</code>, or \
             <code>--attention=0,3</code> for some layers; of the page, those that were looked at.</p>\n"
                .into()
        }
        _ => maps.into(),
    }
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
