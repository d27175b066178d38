//! The heat map: a row per layer, a column per stage, coloured by the logarithm of size; values outside layers in a
//! row of their own. Every cell has its number as text; pressing it shows all statistics.

use super::{escape, json};
use crate::debug::number::{number, significant};
use crate::debug::record::TraceRecord;
use crate::debug::summary::Summary;
use crate::plan::{At, Stage};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Names of the numbers of a cell, the first two being what the map shows.
const NAMES: [&str; 11] = ["maxAbs", "rms", "token", "dim", "head", "mean", "min", "max", "NaN", "Inf", "zero"];

/// Values of one step. A prompt's chunks are joined.
type Cells = BTreeMap<At, Summary>;

/// Decimal logarithms of the smallest and largest size, of maxAbs and of rms.
type Ranges = [(f64, f64); 2];

/// The map with its choice of step and of number; empty without statistics.
pub(super) fn map(traces: &[TraceRecord]) -> String {
    let mut steps: BTreeMap<usize, Cells> = BTreeMap::new();
    for TraceRecord { step, at, stats, .. } in traces {
        let cells = steps.entry(*step).or_default();
        cells.entry(*at).and_modify(|known| known.join(stats)).or_insert(*stats);
    }
    let Some((_, shown)) = steps.first_key_value() else { return String::new() };
    let mut all: Vec<At> = steps.values().flat_map(|cells| cells.keys().copied()).collect();
    all.sort_unstable();
    all.dedup();
    let ranges = ranges(shown);
    let mut out = String::from("<div class=\"map\">\n<form><fieldset>\n<legend class=\"soft\">Shown</legend>\n");
    out.push_str("<label><input type=\"radio\" name=\"shown\" value=\"max\" checked> largest magnitude</label>\n");
    out.push_str("<label><input type=\"radio\" name=\"shown\" value=\"rms\"> root mean square</label>\n");
    if steps.len() > 1 {
        let name = |step: &usize| if *step == 0 { "prompt".to_string() } else { format!("decode step {step}") };
        let options: String = steps.keys().map(|step| format!("<option>{}</option>", name(step))).collect();
        let _ = writeln!(out, "<label>Step <select id=\"step\" autocomplete=\"off\">{options}</select></label>");
    }
    out.push_str("</fieldset></form>\n");
    let layered: Vec<At> = all.iter().copied().filter(|at| at.layer.is_some()).collect();
    let outside: Vec<At> = all.iter().copied().filter(|at| at.layer.is_none()).collect();
    if !outside.is_empty() {
        let row: String = outside.iter().map(|at| cell(*at, shown, &ranges)).collect();
        out.push_str(&grid("Outside layers", &outside.iter().map(|at| at.stage).collect::<Vec<_>>(), &[("model".into(), row)]));
    }
    if !layered.is_empty() {
        let (mut stages, mut layers): (Vec<Stage>, Vec<usize>) =
            (layered.iter().map(|at| at.stage).collect(), layered.iter().filter_map(|at| at.layer).collect());
        layers.sort_unstable();
        layers.dedup();
        stages.sort_unstable();
        stages.dedup();
        let row = |layer: &usize| {
            let cells = stages.iter().map(|stage| At { stage: *stage, layer: Some(*layer) });
            let cells = cells.map(|at| if layered.contains(&at) { cell(at, shown, &ranges) } else { "<td></td>".into() });
            (format!("L{layer}"), cells.collect())
        };
        let rows: Vec<(String, String)> = layers.iter().map(row).collect();
        out.push_str(&grid("Layers by stage; redder is larger, on a logarithmic scale", &stages, &rows));
    }
    out.push_str("<p id=\"cell\" role=\"status\" aria-live=\"polite\">Press a number for its statistics.</p>\n</div>\n");
    let _ = writeln!(out, "<script type=\"application/json\" id=\"heat-data\">{}</script>", json(&data(&steps)));
    out
}

/// A table of cells.
fn grid(caption: &str, stages: &[Stage], rows: &[(String, String)]) -> String {
    let head: String = stages.iter().map(|s| format!("<th scope=\"col\" title=\"{}\">{s}</th>", escape(s.info().about))).collect();
    let rows: String = rows.iter().map(|(name, cells)| format!("<tr><th scope=\"row\">{name}</th>{cells}</tr>\n")).collect();
    format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"{caption}\" tabindex=\"0\">\n<table class=\"heat\">\n\
         <caption>{caption}</caption>\n<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )
}

fn cell(at: At, cells: &Cells, ranges: &Ranges) -> String {
    let (key, name) = (at.key(), at.to_string());
    let Some(stats) = cells.get(&at) else {
        return format!(
            "<td><button type=\"button\" data-cell=\"{key}\" data-name=\"{name}\" style=\"--m:0;--r:0\">\
             <span class=\"max\">–</span><span class=\"rms\">–</span></button></td>"
        );
    };
    let odd = if stats.max_abs.is_finite() { "" } else { " class=\"odd\"" };
    let (m, r) = (shade(stats.max_abs, ranges[0]), shade(stats.rms, ranges[1]));
    let title = escape(&format!("{name} {}", stats.text(at)));
    format!(
        "<td><button type=\"button\"{odd} data-cell=\"{key}\" data-name=\"{name}\" title=\"{title}\" style=\"--m:{m:.3};--r:{r:.3}\">\
         <span class=\"max\">{}</span><span class=\"rms\">{}</span></button></td>",
        short(stats.max_abs),
        short(stats.rms)
    )
}

/// Three significant digits.
pub(super) fn short(x: f32) -> String {
    let rounded = format!("{x:.2e}").parse::<f32>().unwrap_or(x);
    let text = number(rounded);
    text.strip_suffix(".0").map_or(text.clone(), str::to_string)
}

/// Where `x` lies in a range, from 0 to 1.
fn shade(x: f32, (low, high): (f64, f64)) -> f64 {
    if !(x.is_finite() && x > 0.0) {
        return 0.0;
    }
    if high > low { ((f64::from(x).log10() - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 }
}

fn ranges(cells: &Cells) -> Ranges {
    let of = |f: fn(&Summary) -> f32| {
        let sizes = cells.values().map(f).filter(|x| x.is_finite() && *x > 0.0).map(|x| f64::from(x).log10());
        let (low, high) = sizes.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        if low <= high { (low, high) } else { (0.0, 0.0) }
    };
    [of(|s| s.max_abs), of(|s| s.rms)]
}

/// What the script needs: the numbers of every cell of every step.
fn data(steps: &BTreeMap<usize, Cells>) -> Value {
    // The shortest digits of the f32, not those of the f64 next to it.
    let digits = |text: String| text.parse::<f64>().ok().filter(|x| x.is_finite()).map_or_else(|| json!(text), |x| json!(x));
    let (real, rounded) = (|x: f32| digits(number(x)), |x: f32| digits(significant(f64::from(x))));
    let cell = |(at, s): (&At, &Summary)| {
        let numbers = json!([
            real(s.max_abs),
            rounded(s.rms),
            s.token,
            s.dim,
            s.head,
            rounded(s.mean),
            real(s.min),
            real(s.max),
            s.nan,
            s.inf,
            s.zero
        ]);
        (at.key(), numbers)
    };
    let step = |cells: &Cells| {
        let all: serde_json::Map<String, Value> = cells.iter().map(cell).collect();
        json!({"cells": all, "ranges": ranges(cells)})
    };
    json!({"names": NAMES, "steps": steps.values().map(step).collect::<Vec<Value>>()})
}
