//! The verdict as one HTML page that loads nothing.

use doppler::debug::doctor::Verdict;
use std::fmt::Write;

/// The page.
pub fn page(model: &str, verdict: &Verdict) -> String {
    let mut rows = String::new();
    for line in verdict.text().lines() {
        let (name, text) = line.split_at(line.char_indices().nth(9).map_or(line.len(), |(at, _)| at));
        let _ = writeln!(rows, "<tr><th>{}</th><td>{}</td></tr>", escape(name.trim()), escape(text));
    }
    format!(
        "<!doctype html><meta charset=utf-8><title>doctor: {0}</title><style>body{{font:14px sans-serif;margin:2em}}th{{text-align:left;vertical-align:top;padding-right:1em}}td{{white-space:pre-wrap}}</style><h1>{0}</h1><table>{rows}</table>\n",
        escape(model)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
