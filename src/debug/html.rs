//! One HTML file that shows a run: heat map of layers and stages, growth from layer to layer, tokens and their
//! alternatives, the logit lens, findings, the config. It loads nothing from anywhere; without JavaScript all but the
//! choice of a step works. Built from records as sinks get them.

mod curves;
mod heat;
mod matrix;
mod pictures;
mod tables;

pub use matrix::{matrix, page};
pub use pictures::Pictures;

use crate::debug::record::{Finding, LensRecord, ProbeRecord, Record, SampleRecord, TraceRecord};
use crate::inference::tokenizer::is_obeyed;
use std::fmt::Write;

/// A number of the config and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigRow {
    /// Name of the field.
    pub name: String,
    /// As printed.
    pub value: String,
    /// Its source, in words.
    pub source: String,
}

/// A token of the sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenCell {
    /// The id.
    pub id: u32,
    /// Its text, where there is a tokenizer.
    pub text: Option<String>,
    /// Chosen by the model, not part of the prompt.
    pub generated: bool,
}

/// Everything that a report shows. Empty parts are left out, except findings: the report says that there are no findings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// What was run: the model, in a few words.
    pub title: String,
    /// Lines about the run: `Config …`, `Done …`, notes.
    pub lines: Vec<String>,
    /// The sequence, by position.
    pub tokens: Vec<TokenCell>,
    /// Statistics, for the heat map and the curves.
    pub traces: Vec<TraceRecord>,
    /// Chosen tokens.
    pub samples: Vec<SampleRecord>,
    /// The logit lens.
    pub lens: Vec<LensRecord>,
    /// Probed elements.
    pub probes: Vec<ProbeRecord>,
    /// Findings.
    pub findings: Vec<Finding>,
    /// The config.
    pub config: Vec<ConfigRow>,
}

impl Report {
    /// Takes in a record, where the report has a place for it. Of two records of one chosen token the longer stays.
    pub fn take(&mut self, record: &Record) {
        match record {
            Record::Trace(record) => self.traces.push(record.clone()),
            Record::Sample(record) => match self.samples.iter_mut().find(|known| known.step == record.step) {
                Some(known) if known.top.len() < record.top.len() => *known = record.clone(),
                Some(_) => {}
                None => self.samples.push(record.clone()),
            },
            Record::Lens(record) => self.lens.push(record.clone()),
            Record::Probe(record) => self.probes.push(record.clone()),
            Record::Anomaly(finding) => self.findings.push(finding.clone()),
            Record::LayerOut(_) | Record::Told(_) => {}
        }
    }
    /// The file's text.
    pub fn render(&self) -> String {
        let mut page = String::new();
        let title = escape(&self.title);
        let _ = write!(
            page,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title} · Doppler</title>\n\
             <style>\n{}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n",
            include_str!("html/style.css")
        );
        for line in &self.lines {
            let _ = writeln!(page, "<p class=\"line\">{}</p>", escape(line));
        }
        page.push_str("</header>\n<main>\n");
        section(&mut page, "findings", "Findings", &tables::findings(&self.findings));
        section(&mut page, "tokens", "Tokens", &tables::tokens(&self.tokens));
        section(&mut page, "heat", "Layers and stages", &heat::map(&self.traces));
        section(&mut page, "growth", "Growth from layer to layer", &curves::growth(&self.traces));
        section(&mut page, "samples", "Chosen tokens", &tables::samples(&self.samples));
        section(&mut page, "lens", "Logit lens", &tables::lens(&self.lens));
        section(&mut page, "probes", "Probes", &tables::probes(&self.probes));
        section(&mut page, "config", "Config", &tables::config(&self.config));
        let _ = write!(page, "</main>\n<script>\n{}</script>\n</body>\n</html>\n", include_str!("html/script.js"));
        page
    }
}

/// A section, unless it is empty.
fn section(page: &mut String, id: &str, title: &str, content: &str) {
    if !content.is_empty() {
        let _ = write!(page, "<section aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{title}</h2>\n{content}</section>\n");
    }
}

/// A table that scrolls by itself where it is wider than the page.
pub(super) fn table(caption: &str, head: &[&str], rows: &str) -> String {
    let head: String = head.iter().map(|name| format!("<th scope=\"col\">{}</th>", escape(name))).collect();
    format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"{0}\" tabindex=\"0\">\n<table>\n<caption>{0}</caption>\n\
         <thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n",
        escape(caption)
    )
}

/// Text as HTML, in elements and in quoted attributes. Control characters are shown, not kept.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' => out.push('⏎'),
            '\t' => out.push('⇥'),
            c if is_obeyed(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// JSON that may stand in a script element.
fn json(value: &serde_json::Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

#[cfg(test)]
mod tests;
