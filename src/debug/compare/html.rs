//! A report as one HTML file: layers by stages in colours of times-the-floor, the worst place of each value, and what
//! every token is off at the first value that diverges. It loads nothing from anywhere.

use super::text::{divergence_line, mode, number_of_floors, short, summary};
use super::{Report, StageLine};
use crate::debug::html::{escape, table};
use crate::plan::{At, Stage};
use std::fmt::Write;

/// The file's text.
pub fn html(report: &Report) -> String {
    let mut page = String::new();
    let title = escape(&format!("{} and {}", report.a, report.b));
    let verdict = match divergence_line(report) {
        Some(line) => format!("<p class=\"line bad\"><b>{}</b></p>\n", escape(&line)),
        None if report.finding() => format!("<p class=\"line bad\"><b>{}</b></p>\n", escape(&summary(report))),
        None => format!("<p class=\"line good\">{}</p>\n", escape(&summary(report))),
    };
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title} · Doppler</title>\n\
         <style>\n{}{}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n{verdict}",
        include_str!("../html/style.css"),
        STYLE
    );
    let lines = [
        summary(report),
        format!("A {}", report.a),
        format!("B {}", report.b),
        format!("Mode {}; {} tokens", mode(report), report.tokens),
        format!("Floor {}", report.floor),
    ];
    let injected: Vec<String> = report.injected.iter().map(|text| format!("Injected {text} of A")).collect();
    for line in lines.iter().chain(&injected).chain(&report.notes) {
        let _ = writeln!(page, "<p class=\"line\">{}</p>", escape(line));
    }
    page.push_str("</header>\n<main>\n");
    section(&mut page, "missing", "Missing on one side", &missing(report));
    section(&mut page, "heat", "Layers and stages", &heat(report));
    section(&mut page, "tokens", "Tokens", &tokens(report));
    section(&mut page, "values", "Values", &values(report));
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

const STYLE: &str = "table.heat td.cell { padding: .25rem .35rem; min-width: 3.4rem; font: .75rem ui-monospace, monospace;\n  \
    background: color-mix(in oklab, var(--high) calc(var(--c) * 70%), var(--low)); }\n\
    table.heat td.odd { background: color-mix(in oklab, var(--bad) calc(70% + var(--c) * 30%), var(--low)); color: var(--back);\n  \
    font-weight: 700; }\n\
    .wide td.number:last-child:not(:only-child) { min-width: 0; }\n\
    .strip { display: flex; flex-wrap: wrap; gap: 1px; }\n\
    .strip span { width: 1.1rem; height: 1.6rem; background: color-mix(in oklab, var(--high) calc(var(--c) * 70%), var(--low)); }\n\
    .strip span.odd { background: color-mix(in oklab, var(--bad) calc(70% + var(--c) * 30%), var(--low)); }\n";

fn section(page: &mut String, id: &str, title: &str, content: &str) {
    if !content.is_empty() {
        let _ = write!(page, "<section aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{title}</h2>\n{content}</section>\n");
    }
}

fn missing(report: &Report) -> String {
    let item = |m: &super::Missing| {
        let layers = if m.layers.is_empty() { String::new() } else { format!(", layers {}", super::text::ranges(&m.layers)) };
        format!("<p class=\"line bad\"><b>{}</b> is not in {}{layers}</p>\n", m.stage, m.side)
    };
    report.missing.iter().map(item).collect()
}

/// From 0 at no error to 1 at a million floors, by the logarithm.
fn shade(times: f64) -> f64 {
    if times.is_finite() { ((times.max(0.0) + 1.0).log10() / 6.0).min(1.0) } else { 1.0 }
}

fn cell(line: &StageLine) -> String {
    let odd = if line.diverged { " odd" } else { "" };
    let place = [("token", line.token), ("head", line.head), ("dim", line.dim)];
    let place: String = place.iter().filter_map(|(name, x)| x.map(|x| format!(" {name} {x}"))).collect();
    let title = format!(
        "{}: {}× floor, relative L2 {}, worst at{place}",
        line.label(),
        number_of_floors(line.times_floor),
        short(line.relative_l2)
    );
    let (shade, number) = (shade(line.times_floor), number_of_floors(line.times_floor));
    format!("<td class=\"cell{odd}\" style=\"--c:{shade:.3}\" title=\"{}\">{number}</td>", escape(&title))
}

/// A row per layer and a column per stage; what is outside layers in a row of its own.
fn heat(report: &Report) -> String {
    let mut stages: Vec<Stage> = report.stages.iter().filter(|l| l.at.layer.is_some()).map(|l| l.at.stage).collect();
    let mut layers: Vec<usize> = report.stages.iter().filter_map(|l| l.at.layer).collect();
    stages.sort_unstable();
    stages.dedup();
    layers.sort_unstable();
    layers.dedup();
    // Of a value the worst of its parts.
    let worst = |at: At| report.stages.iter().filter(|line| line.at == at).max_by(|x, y| x.times_floor.total_cmp(&y.times_floor));
    let find = |at: At| worst(at).map_or("<td></td>".to_string(), cell);
    let mut outside: Vec<At> = report.stages.iter().map(|line| line.at).filter(|at| at.layer.is_none()).collect();
    outside.dedup();
    let mut out = String::new();
    if !outside.is_empty() {
        let names: Vec<Stage> = outside.iter().map(|at| at.stage).collect();
        let row: String = outside.iter().map(|at| find(*at)).collect();
        out += &grid("Outside layers: times the floor", &names, &format!("<tr><th scope=\"row\">model</th>{row}</tr>\n"));
    }
    if !layers.is_empty() {
        let row = |layer: &usize| {
            let cells: String = stages.iter().map(|stage| find(At { stage: *stage, layer: Some(*layer) })).collect();
            format!("<tr><th scope=\"row\">L{layer}</th>{cells}</tr>\n")
        };
        let rows: String = layers.iter().map(row).collect();
        let caption = format!("Layers by stage: times the floor; more than {} is a divergence", report.allowed);
        out += &grid(&caption, &stages, &rows);
    }
    out
}

fn grid(caption: &str, stages: &[Stage], rows: &str) -> String {
    let head: String = stages.iter().map(|s| format!("<th scope=\"col\" title=\"{}\">{s}</th>", escape(s.info().about))).collect();
    format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"{caption}\" tabindex=\"0\">\n<table class=\"heat\">\n\
         <caption>{caption}</caption>\n<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )
}

/// What every token is off at the first value that diverges, or at the worst.
fn tokens(report: &Report) -> String {
    let Some(line) = report.stages.iter().find(|line| line.diverged).or_else(|| report.worst()) else { return String::new() };
    let cell = |(token, times): (usize, &f32)| {
        let times = f64::from(*times);
        let odd = if times > report.allowed { " class=\"odd\"" } else { "" };
        format!("<span{odd} style=\"--c:{:.3}\" title=\"token {token}: {}× floor\"></span>", shade(times), number_of_floors(times))
    };
    let strip: String = line.tokens.iter().enumerate().map(cell).collect();
    let label = format!("{}: every token, by times the floor", line.label());
    format!("<p class=\"soft\">{label}</p>\n<div class=\"strip\" role=\"img\" aria-label=\"{label}\">{strip}</div>\n")
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
        format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", line.label())
    };
    let rows: String = report.stages.iter().map(row).collect();
    table("Every value", &["value", "× floor", "relative L2", "floor", "max |a−b|", "cosine", "token", "head", "dim"], &rows)
}
