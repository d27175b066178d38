//! One HTML file that shows a run: the map of layers and stages, attention, growth from layer to layer, tokens and their
//! alternatives, the logit lens, kernel times, findings, the config. It loads nothing from anywhere; without JavaScript it
//! shows all but the maps, whose scripts the page has too (`picture`). Built from records as sinks get them.

#[cfg(not(target_arch = "wasm32"))]
mod attention;
mod curves;
mod frame;
mod heat;
mod matrix;
#[cfg(not(target_arch = "wasm32"))]
mod picture;
mod pictures;
mod tables;

#[cfg(not(target_arch = "wasm32"))]
pub use attention::attention;
pub use frame::{Facts, Heading, page};
pub use matrix::matrix;
pub use pictures::Pictures;

#[cfg(not(target_arch = "wasm32"))]
pub(in crate::debug) use attention::section as attention_maps;
pub(in crate::debug) use frame::drawing;

use crate::debug::record::{Finding, LensRecord, ProbeRecord, Record, SampleRecord, TraceRecord};
use crate::inference::tokenizer::is_obeyed;
use crate::plan::Stage;
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

/// The GPU time of all dispatches of a kernel that compute a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// The kernel.
    pub kernel: &'static str,
    /// The stage.
    pub stage: Stage,
    /// Dispatches.
    pub count: usize,
    /// Their time.
    pub nanoseconds: f64,
}

/// Everything that a report shows. Empty parts are left out, except findings: the report says that there are no findings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// What was run: the model, in a few words.
    pub title: String,
    /// Facts of the run, by name: the command, the time, the prompt.
    pub facts: Facts,
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
    /// GPU times, where kernels were timed.
    pub times: Vec<KernelTime>,
    /// Attention maps, as HTML; empty where none were asked for.
    pub attention: String,
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
        let heading = Heading { title: &self.title, facts: &self.facts, verdict: String::new(), lines: &self.lines };
        let sections = [
            ("findings", "Findings", tables::findings(&self.findings)),
            ("tokens", "Tokens", tables::tokens(&self.tokens)),
            ("heat", "Layers and stages", heat::map(self)),
            ("attention", "Attention", tables::attention(&self.attention, &self.traces)),
            ("growth", "Growth from layer to layer", curves::growth(&self.traces)),
            ("samples", "Chosen tokens", tables::samples(&self.samples)),
            ("lens", "Logit lens", tables::lens(&self.lens)),
            ("times", "Kernel times", tables::times(&self.times)),
            ("probes", "Probes", tables::probes(&self.probes)),
            ("config", "Config", tables::config(&self.config)),
        ];
        // A page adds the attention that was looked at to the report of its engine.
        let has_attention = !self.attention.is_empty() || cfg!(target_arch = "wasm32");
        let drawn: &[&str] = match (self.traces.is_empty(), has_attention) {
            (false, true) => &["run", "attention"],
            (false, false) => &["run"],
            (true, _) => &[],
        };
        page(&heading, &sections, drawn)
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
pub fn escape(text: &str) -> String {
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

#[cfg(test)]
mod tests;
