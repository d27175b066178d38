//! A map of patches for people: lines, and a page of its own.

use super::{Column, Contribution, PatchMap};
use crate::debug::html::{Heading, matrix, page};
use std::fmt::Write;

/// Lines: what was asked, the map as a table, the largest share, and what parts add. `name` is the text of a token, `columns`
/// names the columns.
pub fn text(map: &PatchMap, parts: &[Contribution], name: &dyn Fn(u32) -> String, columns: &[String]) -> String {
    let mut out = summary(map, name);
    out.push('\n');
    let widest = columns.iter().map(|c| c.chars().count()).max().unwrap_or(0).clamp(6, 12);
    let short = |text: &String| text.chars().take(widest).collect::<String>();
    let _ = writeln!(out, "{:<5} {}", "", columns.iter().map(|c| format!("{:>widest$}", short(c))).collect::<Vec<_>>().join(" "));
    for (layer, cells) in map.layers.iter().zip(&map.regained) {
        let cells: Vec<String> = cells.iter().map(|x| format!("{:>widest$}", format!("{x:.3}"))).collect();
        let _ = writeln!(out, "{:<5} {}", format!("L{layer}"), cells.join(" "));
    }
    let _ = writeln!(out, "{}", best(map));
    for part in parts {
        let _ = writeln!(out, "ADDS {} difference={:.4}", part.at, part.difference);
    }
    out
}

/// `PATCH stage=… answer=… against=… clean=… corrupted=…`
fn summary(map: &PatchMap, name: &dyn Fn(u32) -> String) -> String {
    let PatchMap { stage, answer, against, clean, corrupted, .. } = map;
    let (answer, against) = (format!("{answer}({:?})", name(*answer)), format!("{against}({:?})", name(*against)));
    format!("PATCH stage={stage} answer={answer} against={against} clean={clean:.4} corrupted={corrupted:.4}")
}

fn best(map: &PatchMap) -> String {
    let Some((row, column)) = map.best() else { return "BEST none".into() };
    let what = if map.column == Column::Token { "token" } else { "head" };
    format!("BEST layer={} {what}={column} regained={:.3}", map.layers[row], map.regained[row][column])
}

/// One HTML file, which loads nothing from anywhere. `facts`: the command, the time.
pub fn html(
    map: &PatchMap,
    parts: &[Contribution],
    name: &dyn Fn(u32) -> String,
    columns: &[String],
    facts: &[(&'static str, String)],
) -> String {
    let rows: Vec<(String, Vec<f64>)> =
        map.layers.iter().zip(&map.regained).map(|(layer, cells)| (format!("L{layer}"), cells.clone())).collect();
    let caption = "Share of the difference between the two logits that comes back: 0 as in the corrupted run, 1 as in the clean one";
    let mut sections = vec![("map", "What the clean run's values bring back", matrix(caption, columns, &rows))];
    if !parts.is_empty() {
        let rows: Vec<(String, Vec<f64>)> = parts.iter().map(|part| (part.at.to_string(), vec![part.difference])).collect();
        let caption = "What each part of the residual stream adds to the difference in the clean run, before a soft-cap";
        sections.push(("parts", "What blocks add", matrix(caption, &["difference".into()], &rows)));
    }
    let lines = [summary(map, name), best(map)];
    page(&Heading { title: "Patches", facts, verdict: String::new(), lines: &lines }, &sections, &[])
}
