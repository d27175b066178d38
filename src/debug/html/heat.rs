//! What the report's map is drawn from: the statistics of every value in every step, as JSON.

use super::frame::drawing;
use super::{Report, TokenCell};
use crate::debug::number::{number, significant};
use crate::debug::record::{Finding, TraceRecord};
use crate::debug::summary::Summary;
use crate::plan::stage::STAGES;
use crate::plan::{At, Stage};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Names of the numbers of a cell, as records have them.
const NAMES: [&str; 13] = ["maxAbs", "rms", "token", "dim", "head", "mean", "min", "max", "nan", "inf", "zero", "count", "tokens"];

/// Values of one step and how many tokens they are of. A prompt's chunks are joined.
type Cells = BTreeMap<At, (Summary, usize)>;

/// The place of the map; empty without statistics.
pub(super) fn map(report: &Report) -> String {
    let mut steps: BTreeMap<usize, Cells> = BTreeMap::new();
    for TraceRecord { step, at, stats, tokens, .. } in &report.traces {
        let cells = steps.entry(*step).or_default();
        let join = |known: &mut (Summary, usize)| {
            known.0.join(stats);
            known.1 += tokens;
        };
        cells.entry(*at).and_modify(join).or_insert((*stats, *tokens));
    }
    if steps.is_empty() {
        return String::new();
    }
    let last = steps.keys().next_back().copied().unwrap_or(0);
    let held = json!({
        "names": NAMES,
        "steps": steps.iter().map(|(step, cells)| json!([step, cells.iter().map(cell).collect::<serde_json::Map<_, _>>()])).collect::<Vec<_>>(),
        "stages": stages(&steps),
        "layers": steps.values().flat_map(BTreeMap::keys).filter_map(|at| at.layer).max().map_or(0, |layer| layer + 1),
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "reads": reads(&report.tokens, last),
    });
    drawing("run-map", "run", "The map", &held)
}

/// The stages that were seen, in the order of computation, each with its layers.
fn stages(steps: &BTreeMap<usize, Cells>) -> Vec<Value> {
    let mut seen: BTreeMap<Stage, BTreeSet<usize>> = BTreeMap::new();
    for at in steps.values().flat_map(BTreeMap::keys) {
        seen.entry(at.stage).or_default().extend(at.layer);
    }
    let infos = STAGES.iter().filter_map(|info| Some((info, seen.get(&info.stage)?)));
    infos.map(|(info, layers)| json!({ "name": info.name, "about": info.about, "layers": info.per_layer.then_some(layers) })).collect()
}

fn finding(finding: &Finding) -> Value {
    json!({ "kind": finding.kind, "step": finding.step, "stage": finding.stage, "layer": finding.layer })
}

/// What each step reads: nothing for the prompt, then the generated tokens.
fn reads(tokens: &[TokenCell], last: usize) -> Vec<Option<&str>> {
    let generated = tokens.iter().filter(|token| token.generated).map(|token| token.text.as_deref());
    std::iter::once(None).chain(generated).take(last + 1).collect()
}

fn cell((at, (s, tokens)): (&At, &(Summary, usize))) -> (String, Value) {
    // The shortest digits of the f32, not those of the f64 next to it.
    let digits = |text: String| text.parse::<f64>().ok().filter(|x| x.is_finite()).map_or_else(|| json!(text), |x| json!(x));
    let (real, rounded) = (|x: f32| digits(number(x)), |x: f32| digits(significant(f64::from(x))));
    let (size, range) = ([real(s.max_abs), rounded(s.rms)], [rounded(s.mean), real(s.min), real(s.max)]);
    let numbers = json!([size[0], size[1], s.token, s.dim, s.head, range[0], range[1], range[2], s.nan, s.inf, s.zero, s.count, tokens]);
    (at.key(), numbers)
}

/// Three significant digits.
pub(super) fn short(x: f32) -> String {
    let rounded = format!("{x:.2e}").parse::<f32>().unwrap_or(x);
    let text = number(rounded);
    text.strip_suffix(".0").map_or(text.clone(), str::to_string)
}
