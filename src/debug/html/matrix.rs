//! A table of numbers in colours of their size, and pages that show such tables. What is below 0 has another colour.

use super::{escape, section};
use std::fmt::Write;

const STYLE: &str = "table.heat td.cell { padding: .25rem .35rem; min-width: 3.4rem; font: .75rem ui-monospace, monospace;\n  \
    background: color-mix(in oklab, var(--high) calc(var(--c) * 70%), var(--low)); }\n\
    table.heat td.odd { background: color-mix(in oklab, var(--bad) calc(var(--c) * 70%), var(--low)); }\n";

/// A row of numbers under every name; colours go from 0 to the largest magnitude.
pub fn matrix(caption: &str, columns: &[String], rows: &[(String, Vec<f64>)]) -> String {
    let largest = rows.iter().flat_map(|(_, cells)| cells).filter(|x| x.is_finite()).fold(0f64, |most, x| most.max(x.abs()));
    let head: String = columns.iter().map(|name| format!("<th scope=\"col\">{}</th>", escape(name))).collect();
    let cell = |x: &f64| {
        let (shade, odd) = (if largest > 0.0 && x.is_finite() { x.abs() / largest } else { 0.0 }, if *x < 0.0 { " odd" } else { "" });
        format!("<td class=\"cell{odd}\" style=\"--c:{shade:.3}\">{x:.3}</td>")
    };
    let row = |(name, cells): &(String, Vec<f64>)| {
        let cells: String = cells.iter().map(cell).collect();
        format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", escape(name))
    };
    let rows: String = rows.iter().map(row).collect();
    let caption = escape(caption);
    format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"{caption}\" tabindex=\"0\">\n<table class=\"heat\">\n\
         <caption>{caption}</caption>\n<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )
}

/// A page of lines and sections (id, title, content).
pub fn page(title: &str, lines: &[String], sections: &[(&str, &str, String)]) -> String {
    let title = escape(title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title} · Doppler</title>\n\
         <style>\n{}{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n",
        include_str!("style.css")
    );
    for line in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "<p class=\"line\">{}</p>", escape(line));
    }
    page.push_str("</header>\n<main>\n");
    sections.iter().for_each(|(id, title, content)| section(&mut page, id, title, content));
    page.push_str("</main>\n</body>\n</html>\n");
    page
}
