//! Traces: statistics of every value of chosen categories and layers, reduced where the value is, one line each; the
//! residual stream after each traced layer; the chosen tokens. Values come from `exec`; texts of tokens and the time
//! of a line from the caller.

use crate::config::runtime::Position;
use crate::debug::categories::Categories;
use crate::debug::logits_view::{LastRow, sample_record};
use crate::debug::places;
use crate::debug::record::{LayerOutRecord, Record, Sink, TokenText, TraceRecord};
use crate::debug::summary::Summary;
use crate::error::Result;
use crate::exec::{Content, Observed, Observer, Request, StepInfo, Want};
use crate::plan::{At, Plan, Stage};
use std::collections::BTreeMap;

/// Elements that a `LAYER_OUT` line shows.
const FIRST: usize = 8;
/// Alternatives that a line of category `sample` shows.
const TOP: usize = 5;

/// What to trace.
pub struct TraceOptions<'a> {
    /// Categories of values; `sample` for the chosen tokens. Those that are no values are the caller's.
    pub categories: Categories,
    /// Layers of per-layer stages; `None` is all. With `Some`, or category `layer`, these layers get `LAYER_OUT` lines.
    pub layers: Option<Vec<Position>>,
    /// Position after the prompt's last token.
    pub prompt_end: usize,
    /// Texts of tokens.
    pub text: Option<TokenText<'a>>,
}

/// Emits `Record::Trace`, `Record::LayerOut` and `Record::Sample`.
pub struct TraceObserver<'a> {
    requests: Vec<Request>,
    /// Stages with a line of their own.
    traced: Vec<Stage>,
    /// Layers with `LAYER_OUT` lines, and how many elements these show.
    layer_out: Vec<usize>,
    first: usize,
    prompt_end: usize,
    sample: Option<LastRow>,
    head_dims: BTreeMap<At, usize>,
    /// Statistics of `layer_out` over the chunks of the prompt so far.
    prompt: BTreeMap<usize, Summary>,
    text: Option<TokenText<'a>>,
    sink: Sink<'a>,
}

impl<'a> TraceObserver<'a> {
    /// An observer of one prompt and its decode steps.
    ///
    /// # Errors
    /// `Kind::Invalid` for layers that the model lacks. (Layers that have no such stage are left out.)
    pub fn new(plan: &Plan, options: TraceOptions<'a>, sink: Sink<'a>) -> Result<Self> {
        let TraceOptions { categories, layers, prompt_end, text } = options;
        let chosen = layers.as_ref().map(|list| places::layers(plan, list)).transpose()?;
        let mut traced = plan.stages();
        traced.retain(|stage| categories.has(stage.info().category));
        let mut requests = Vec::new();
        for stage in &traced {
            let having = plan.layers_with(*stage);
            let layers =
                chosen.as_ref().filter(|_| stage.info().per_layer).map(|c| c.iter().copied().filter(|l| having.contains(l)).collect());
            if layers.as_ref().is_none_or(|l: &Vec<usize>| !l.is_empty()) {
                let headed = stage.is_headed() || stage.layout().is_scores();
                requests.push(Request { stage: *stage, layers, want: if headed { Want::HeadStats } else { Want::Stats } });
            }
        }
        let having = plan.layers_with(Stage::LayerOut);
        let mut layer_out = chosen.unwrap_or_else(|| having.clone());
        layer_out.retain(|l| having.contains(l) && (layers.is_some() || categories.has("layer")));
        if !layer_out.is_empty() && !traced.contains(&Stage::LayerOut) {
            requests.push(Request { stage: Stage::LayerOut, layers: Some(layer_out.clone()), want: Want::Stats });
        }
        let width = plan.nodes.iter().find(|node| node.at.stage == Stage::LayerOut).map_or(0, |node| node.width);
        let sample = if categories.has("sample") { LastRow::new(plan, Stage::LogitsFinal, prompt_end) } else { None };
        let (first, head_dims) = (FIRST.min(width), places::head_dims(plan));
        Ok(Self { requests, traced, layer_out, first, prompt_end, sample, head_dims, prompt: BTreeMap::new(), text, sink })
    }
    /// Whether nothing is wanted, so that the run needs no observer.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.sample.is_none()
    }

    /// Position of the token whose row `LAYER_OUT` lines show.
    fn last_token(&self, decode_step: usize) -> usize {
        (self.prompt_end + decode_step).saturating_sub(1)
    }
    /// Takes in statistics of a layer's output; those of the prompt so far.
    fn so_far(&mut self, decode_step: usize, layer: usize, stats: Summary) {
        match self.prompt.get_mut(&layer) {
            Some(known) if decode_step == 0 => known.join(&stats),
            _ => {
                self.prompt.insert(layer, stats);
            }
        }
    }
}

impl Observer for TraceObserver<'_> {
    fn requests(&self, decode_step: usize) -> Vec<Request> {
        let mut requests = self.requests.clone();
        if !self.layer_out.is_empty() {
            let want = Want::Gather { tokens: vec![self.last_token(decode_step)], dims: (0..self.first).collect() };
            requests.push(Request { stage: Stage::LayerOut, layers: Some(self.layer_out.clone()), want });
        }
        requests.extend(self.sample.as_ref().map(|row| row.request(decode_step)));
        requests
    }
    fn observe(&mut self, step: StepInfo<'_>, values: Vec<Observed>) -> Result<()> {
        let (decode_step, tokens) = (step.decode_step, step.tokens.len());
        for value in &values {
            let at = value.at;
            if let Some(row) = self.sample.as_ref().and_then(|row| row.of(step, value)) {
                self.sink.put(Record::Sample(sample_record(step, &row, TOP, self.text.as_ref())))?;
                continue;
            }
            let head_dim = self.head_dims.get(&at).copied();
            let (stats, head_rms) = match &value.content {
                Content::Stats(stats) => (Some(Summary::new(stats, at, value.first_token, tokens, head_dim)), None),
                Content::HeadStats(heads) => {
                    let rms = heads.iter().map(|s| s.rms).collect();
                    (Some(Summary::of_heads(heads, at, value.first_token, tokens, head_dim)), Some(rms))
                }
                _ => (None, None),
            };
            match (&value.content, at.layer.filter(|l| at.stage == Stage::LayerOut && self.layer_out.contains(l))) {
                (_, layer) if stats.is_some() => {
                    let stats = stats.unwrap_or_default();
                    if self.traced.contains(&at.stage) {
                        let record = TraceRecord { step: decode_step, first_token: value.first_token, tokens, at, stats, head_rms };
                        self.sink.put(Record::Trace(record))?;
                    }
                    if let Some(layer) = layer {
                        self.so_far(decode_step, layer, stats);
                    }
                }
                (Content::Gather(cells), Some(layer)) if !cells.is_empty() => {
                    if let Some(stats) = self.prompt.get(&layer).copied() {
                        let (last_token, first) = (self.last_token(decode_step), cells.iter().map(|c| c.2).collect());
                        self.sink.put(Record::LayerOut(LayerOutRecord { step: decode_step, layer, stats, last_token, first }))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
