//! A report as one HTML file: the map of layers by stages in colours of times-the-floor, which the page draws too, and every
//! value in a table. It loads nothing from anywhere.

use super::text::{divergence_line, mode, number_of_floors, short, summary};
use super::{Report, StageLine};
use crate::debug::html::{Heading, drawing, escape, page, table};
use crate::plan::stage::STAGES;
use serde_json::json;

/// The file's text. `facts`: the command, the time.
pub fn html(report: &Report, facts: &[(&'static str, String)]) -> String {
    let key = report.first_divergence.as_ref().map(|first| first.at.key());
    let verdict = match divergence_line(report).zip(key) {
        Some((line, key)) => {
            let link = format!("<a href=\"#at-{key}\">Show it in the map</a>");
            format!("<p class=\"line bad\" id=\"first\"><b>{}</b> {link}</p>\n", escape(&line))
        }
        None if report.finding() => format!("<p class=\"line bad\"><b>{}</b></p>\n", escape(&summary(report))),
        None => format!("<p class=\"line good\">{}</p>\n", escape(&summary(report))),
    };
    let mut lines = vec![
        summary(report),
        format!("A {}", report.a),
        format!("B {}", report.b),
        format!("Mode {}; {} tokens", mode(report), report.tokens),
        format!("Floor {}", report.floor),
    ];
    lines.extend(report.injected.iter().map(|text| format!("Injected {text} of A")));
    lines.extend(report.notes.iter().cloned());
    let title = format!("{} and {}", report.a, report.b);
    let heading = Heading { title: &title, facts, verdict, lines: &lines };
    let sections = [
        ("missing", "Missing on one side", missing(report)),
        ("heat", "Layers and stages", map(report)),
        ("values", "Values", values(report)),
    ];
    page(&heading, &sections, &["comparison"])
}

fn missing(report: &Report) -> String {
    let item = |m: &super::Missing| {
        let layers = if m.layers.is_empty() { String::new() } else { format!(", layers {}", super::text::ranges(&m.layers)) };
        format!("<p class=\"line bad\"><b>{}</b> is not in {}{layers}</p>\n", m.stage, m.side)
    };
    report.missing.iter().map(item).collect()
}

/// The place of the map.
fn map(report: &Report) -> String {
    let seen = STAGES.iter().filter(|info| report.stages.iter().any(|line| line.at.stage == info.stage));
    let order: Vec<&str> = seen.map(|info| info.name).collect();
    let held = json!({ "allowed": report.allowed, "first_divergence": report.first_divergence, "stages": report.stages });
    drawing("compare-map", "compare", "The map", &json!({ "report": held, "order": order }))
}

fn values(report: &Report) -> String {
    let place = |x: Option<usize>| x.map_or("–".to_string(), |x| x.to_string());
    let row = |line: &StageLine| {
        let numbers = [
            number_of_floors(line.times_floor),
            short(line.relative_l2),
            short(line.floor),
            short(f64::from(line.max_abs)),
            format!("{:.9}", line.cosine),
            place(line.token),
            place(line.head),
            place(line.dim),
        ];
        let cells: String = numbers.iter().map(|n| format!("<td class=\"number\">{n}</td>")).collect();
        let off = if line.diverged { " class=\"off\"" } else { "" };
        format!("<tr{off}><th scope=\"row\">{}</th>{cells}</tr>\n", line.label())
    };
    let rows: String = report.stages.iter().map(row).collect();
    table("Every value", &["value", "× floor", "relative L2", "floor", "max |a−b|", "cosine", "token", "head", "dim"], &rows)
}
