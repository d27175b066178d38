//! The records of watching: plain data, each with its line of text and its JSON twin, and the sink that takes them.
//! No clock: who prints a line gives its time.

use crate::debug::number::{json_number, json_numbers, json_some_numbers, number, padded, significant};
use crate::debug::summary::{Summary, json_at, named};
use crate::error::{Error, Result};
use crate::loader::Progress;
use crate::plan::At;
use serde::Serialize;
use std::cell::RefCell;
use std::rc::Rc;

/// One thing seen. In JSON, `type` names the variant; what does not apply is null; numbers that are not finite are the
/// strings `"NaN"`, `"Inf"` and `"-Inf"`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Record {
    /// Statistics of a value.
    Trace(TraceRecord),
    /// The residual stream leaving a layer.
    LayerOut(LayerOutRecord),
    /// Chosen elements.
    Probe(ProbeRecord),
    /// A chosen token among its alternatives.
    Sample(SampleRecord),
    /// What a layer would say.
    Lens(LensRecord),
    /// A finding.
    Anomaly(Finding),
    /// Work of the loader, of a kernel or of a whole step, in its own words.
    Told(ToldRecord),
}

impl Record {
    /// A tensor that is loaded, for the category `loader`.
    pub fn loading(progress: &Progress<'_>) -> Self {
        let Progress { tensor, format, shape, bytes_done, bytes_total, .. } = progress;
        Self::told("loader", format!("{tensor} {format} {shape:?} loaded={bytes_done} of {bytes_total} bytes"))
    }
    /// `text`, under a trace category.
    pub fn told(category: &str, text: String) -> Self {
        Self::Told(ToldRecord { category: category.into(), text })
    }
    /// The record's line, seen `milliseconds` after the start.
    pub fn line(&self, milliseconds: f64) -> String {
        match self {
            Record::Trace(record) => stamped(milliseconds, record.at.stage.info().category, &record.text()),
            Record::LayerOut(record) => record.text(),
            Record::Probe(record) => record.text(),
            Record::Sample(record) => stamped(milliseconds, "sample", &record.text()),
            Record::Lens(record) => stamped(milliseconds, "lens", &record.text()),
            Record::Anomaly(finding) => finding.text(),
            Record::Told(record) => stamped(milliseconds, &record.category, &record.text),
        }
    }
}

/// Something that is no value of the plan, for the categories `loader`, `kernels` and `perf`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ToldRecord {
    /// Trace category.
    pub category: String,
    /// What there is to say, as words and `key=value`.
    pub text: String,
}

/// `[12.3ms][TRACE:category] text`.
fn stamped(milliseconds: f64, category: &str, text: &str) -> String {
    format!("[{milliseconds:.1}ms][TRACE:{category}] {text}")
}

/// Where records go. Clones share one function, so that records of all observers come out in order.
#[derive(Clone)]
pub struct Sink<'a>(Rc<RefCell<dyn FnMut(Record) -> Result<()> + 'a>>);

impl<'a> Sink<'a> {
    /// Hands every record to `take`; its errors end the run.
    pub fn new(take: impl FnMut(Record) -> Result<()> + 'a) -> Self {
        Self(Rc::new(RefCell::new(take)))
    }
    /// Hands over a record.
    ///
    /// # Errors
    /// Those of the function that takes records; `Kind::Invalid` when that function itself puts records.
    pub fn put(&self, record: Record) -> Result<()> {
        let mut take = self.0.try_borrow_mut().map_err(|_| Error::invalid("sink", "a record was put while another was taken"))?;
        (*take)(record)
    }
}

/// Turns ids into text, for records that show tokens.
pub type TokenText<'a> = Rc<dyn Fn(u32) -> String + 'a>;

/// Statistics of one value in one step: all rows of a prompt's chunk, or the one of a decode step.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceRecord {
    /// 0 for the prompt; n for the step that reads the n-th generated token.
    pub step: usize,
    /// Absolute position of the step's first token.
    pub first_token: usize,
    /// Tokens of the step.
    pub tokens: usize,
    /// The value.
    #[serde(flatten, serialize_with = "json_at")]
    pub at: At,
    /// Its statistics.
    #[serde(flatten)]
    pub stats: Summary,
    /// Root mean square of each head; null for values that are not made of heads.
    #[serde(serialize_with = "json_some_numbers")]
    pub head_rms: Option<Vec<f32>>,
}

impl TraceRecord {
    /// `L3 ffn_out tokens=7 maxAbs=12.25@t2,d334 …`; with `step=` in decode and `from=` in a prompt's later chunks, and
    /// `headRms=[…]` for values made of heads.
    pub fn text(&self) -> String {
        let step = match (self.step, self.first_token) {
            (0, 0) => String::new(),
            (0, from) => format!(" from={from}"),
            (step, _) => format!(" step={step}"),
        };
        let heads = self.head_rms.as_ref().map(|list| list.iter().map(|x| significant(f64::from(*x))).collect::<Vec<_>>().join(", "));
        let heads = heads.map(|list| format!(" headRms=[{list}]")).unwrap_or_default();
        format!("{}{step} tokens={} {}{heads}", self.at, self.tokens, self.stats.text(self.at))
    }
}

/// The residual stream leaving a layer: once for the prompt, whatever its chunks, and once for each decode step.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerOutRecord {
    /// As in `TraceRecord`.
    pub step: usize,
    /// The layer.
    pub layer: usize,
    /// Statistics over all tokens of the prompt that were read, or of the decode step's token.
    #[serde(flatten)]
    pub stats: Summary,
    /// Position of the prompt's last token, or of the decode step's.
    pub last_token: usize,
    /// The leading elements (8) of that token's row, equal to the dump's.
    #[serde(serialize_with = "json_numbers")]
    pub first: Vec<f32>,
}

impl LayerOutRecord {
    /// `LAYER_OUT L3 maxAbs=… rms=… first=[…]`; with `step=` in decode.
    pub fn text(&self) -> String {
        let step = if self.step > 0 { format!(" step={}", self.step) } else { String::new() };
        let first: Vec<String> = self.first.iter().map(|x| number(*x)).collect();
        let (max_abs, rms) = (number(self.stats.max_abs), significant(f64::from(self.stats.rms)));
        format!("LAYER_OUT L{}{step} maxAbs={max_abs} rms={rms} first=[{}]", self.layer, first.join(", "))
    }
}

/// What a probe found at one token.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeRecord {
    /// The probe.
    pub id: String,
    /// 0 for the prompt; n for the step that reads the n-th generated token.
    pub step: usize,
    /// The value.
    #[serde(flatten, serialize_with = "json_at")]
    pub at: At,
    /// Absolute position.
    pub token: usize,
    /// Chosen elements, equal to the dump's; null where statistics were asked for.
    pub values: Option<Vec<ProbeValue>>,
    /// Statistics of the token's row; of scores and probabilities over all heads and the positions up to the token's.
    pub stats: Option<Summary>,
}

/// One element.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeValue {
    /// For scores and probabilities.
    pub head: Option<usize>,
    /// Element of the row; the position attended to, for scores and probabilities.
    pub dim: usize,
    /// The element.
    #[serde(serialize_with = "json_number")]
    pub value: f32,
}

impl ProbeRecord {
    /// `PROBE[id] stage=layer_out layer=3 token=0 values=[334=12.2500, …]`, with `step=` in decode; scores have
    /// `h1.334=`; statistics stand in place of `values=`.
    pub fn text(&self) -> String {
        let step = if self.step > 0 { format!(" step={}", self.step) } else { String::new() };
        let head = format!("PROBE[{}] {} token={}{step}", self.id, named(self.at), self.token);
        match (&self.values, &self.stats) {
            (Some(values), _) => {
                let of = |v: &ProbeValue| v.head.map(|h| format!("h{h}.")).unwrap_or_default() + &format!("{}={}", v.dim, padded(v.value));
                let values: Vec<String> = values.iter().map(of).collect();
                format!("{head} values=[{}]", values.join(", "))
            }
            (None, Some(stats)) => format!("{head} {}", stats.text(self.at)),
            (None, None) => head,
        }
    }
}

/// A chosen token among its alternatives.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SampleRecord {
    /// 0 for the token chosen after the prompt, n for the one chosen after the n-th generated token.
    pub step: usize,
    /// Position of the token that was read last; the chosen one follows it.
    pub token: usize,
    /// The chosen token; null where none was chosen.
    pub chosen: Option<Candidate>,
    /// In nats, of the whole row.
    pub entropy: f64,
    /// Logits that are NaN or infinite.
    pub non_finite: usize,
    /// The highest logits in descending order.
    pub top: Vec<Candidate>,
}

impl SampleRecord {
    /// `sampled step=0 id=476 text=" blue" logit=12.25 p=0.83 entropy=0.53 top=[476 " blue" 0.83, …]`.
    pub fn text(&self) -> String {
        let chosen = match &self.chosen {
            Some(Candidate { id, text, logit, probability }) => {
                let text = text.as_ref().map(|text| format!(" text={text:?}")).unwrap_or_default();
                format!(" id={id}{text} logit={} p={}", number(*logit), significant(*probability))
            }
            None => String::new(),
        };
        let top: Vec<String> = self.top.iter().map(Candidate::text).collect();
        let odd = if self.non_finite > 0 { format!(" nonFinite={}", self.non_finite) } else { String::new() };
        format!("sampled step={}{chosen} entropy={}{odd} top=[{}]", self.step, significant(self.entropy), top.join(", "))
    }
}

/// A token and what the row gives it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// The id.
    pub id: u32,
    /// Its text, where the caller knows one.
    pub text: Option<String>,
    /// Its logit, after the soft-cap.
    #[serde(serialize_with = "json_number")]
    pub logit: f32,
    /// From 0 to 1.
    pub probability: f64,
}

impl Candidate {
    /// `476 " blue" 0.83`.
    pub(super) fn text(&self) -> String {
        let text = self.text.as_ref().map(|text| format!(" {text:?}")).unwrap_or_default();
        format!("{}{text} {}", self.id, significant(self.probability))
    }
}

/// What one layer would say after one token.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LensRecord {
    /// 0 for the prompt's last token; n for the n-th generated one.
    pub step: usize,
    /// Absolute position of the token.
    pub token: usize,
    /// The layer.
    pub layer: usize,
    /// In nats, of the whole row.
    pub entropy: f64,
    /// The highest logits in descending order.
    pub top: Vec<Candidate>,
    /// The token that the model chose in the end, and what this layer gives it.
    pub chosen: Option<Candidate>,
}

impl LensRecord {
    /// `L3 lens step=0 token=6 entropy=0.53 top=[476 " blue" 0.83, …] chosen=476 " blue" 0.83`.
    pub fn text(&self) -> String {
        let top: Vec<String> = self.top.iter().map(Candidate::text).collect();
        let chosen = self.chosen.as_ref().map(|c| format!(" chosen={}", c.text())).unwrap_or_default();
        let (step, token, entropy) = (self.step, self.token, significant(self.entropy));
        format!("L{} lens step={step} token={token} entropy={entropy} top=[{}]{chosen}", self.layer, top.join(", "))
    }
}

/// Something found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The rule.
    pub kind: &'static str,
    /// Where it shows first; null for findings about tokens.
    pub stage: Option<&'static str>,
    /// Its layer.
    pub layer: Option<usize>,
    /// 0 for the prompt; n for the step that reads the n-th generated token.
    pub step: usize,
    /// Absolute position.
    pub token: Option<usize>,
    /// Element of the row; the id, for logits.
    pub dim: Option<usize>,
    /// What was found there.
    #[serde(serialize_with = "json_value")]
    pub value: Option<f32>,
    /// In words: against what, and what it is not.
    pub message: String,
    /// The value, for `surroundings`.
    #[serde(skip)]
    pub at: Option<At>,
}

fn json_value<S: serde::Serializer>(value: &Option<f32>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match value {
        Some(x) => json_number(x, serializer),
        None => serializer.serialize_none(),
    }
}

impl Finding {
    pub(super) fn new(kind: &'static str, step: usize, at: Option<At>, message: String) -> Self {
        let (stage, layer) = (at.map(|at| at.stage.name()), at.and_then(|at| at.layer));
        Self { kind, stage, layer, step, token: None, dim: None, value: None, message, at }
    }
    /// With the place and size of the largest magnitude.
    pub(super) fn of(mut self, stats: &Summary) -> Self {
        (self.token, self.dim, self.value) = (Some(stats.token), Some(stats.dim), Some(stats.max_abs));
        self
    }
    /// `ANOMALY kind=… stage=… layer=… step=… token=… dim=… value=… (message)`.
    pub fn text(&self) -> String {
        let at = self.at.map(|at| format!(" {}", named(at))).unwrap_or_default();
        let step = if self.step > 0 { format!(" step={}", self.step) } else { String::new() };
        let part = |name: &str, value: Option<String>| value.map(|value| format!(" {name}={value}")).unwrap_or_default();
        let token = part("token", self.token.map(|t| t.to_string()));
        let dim = part("dim", self.dim.map(|d| d.to_string()));
        let value = part("value", self.value.map(number));
        format!("ANOMALY kind={}{at}{step}{token}{dim}{value} ({})", self.kind, self.message)
    }
}

#[cfg(test)]
mod tests;
