//! What watching shows: plain records, each with its line of text and its JSON twin, and the sink that takes them.
//! Numbers are spelled here and nowhere else. No clock: who prints a line gives its time.

use crate::debug::anomaly::Finding;
use crate::debug::lens::LensRecord;
use crate::debug::logits_view::SampleRecord;
use crate::debug::probe::ProbeRecord;
use crate::debug::trace::{LayerOutRecord, TraceRecord};
use crate::error::{Error, Result};
use crate::exec::Stats;
use crate::loader::Progress;
use crate::plan::{At, Layout};
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fmt::{self, Display, Formatter, Write};
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
    /// Work of the loader, of a kernel or of a whole step, told by whoever did it.
    Told(ToldRecord),
}

impl Record {
    /// A tensor that is loaded, for the category `loader`.
    pub fn loading(progress: &Progress<'_>) -> Self {
        let Progress { tensor, dtype, shape, bytes_done, bytes_total, .. } = progress;
        Self::told("loader", format!("{tensor} {dtype} {shape:?} loaded={bytes_done} of {bytes_total} bytes"))
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
    /// Those of the function behind; `Kind::Invalid` when that function itself puts records.
    pub fn put(&self, record: Record) -> Result<()> {
        let mut take = self.0.try_borrow_mut().map_err(|_| Error::invalid("sink", "a record was put while another was taken"))?;
        (*take)(record)
    }
}

/// Turns ids into text, for records that show tokens.
pub type TokenText<'a> = Rc<dyn Fn(u32) -> String + 'a>;

/// Statistics of a value and the place of its largest magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Elements.
    pub count: u64,
    /// Largest magnitude, equal to the dump's; NaN or infinite if any element is.
    #[serde(serialize_with = "json_number", deserialize_with = "from_json_number")]
    pub max_abs: f32,
    /// Absolute position of its token.
    pub token: usize,
    /// Its element within the token's row; the position attended to, for scores and probabilities.
    pub dim: usize,
    /// Its head, in values made of heads.
    pub head: Option<usize>,
    /// Mean of the finite elements.
    #[serde(serialize_with = "json_number", deserialize_with = "from_json_number")]
    pub mean: f32,
    /// Root of the mean square of the finite elements.
    #[serde(serialize_with = "json_number", deserialize_with = "from_json_number")]
    pub rms: f32,
    /// Smallest finite element.
    #[serde(serialize_with = "json_number", deserialize_with = "from_json_number")]
    pub min: f32,
    /// Largest finite element.
    #[serde(serialize_with = "json_number", deserialize_with = "from_json_number")]
    pub max: f32,
    /// NaN elements.
    pub nan: u64,
    /// Infinite elements.
    pub inf: u64,
    /// Elements equal to zero.
    pub zero: u64,
}

impl Summary {
    /// `stats` of a value of `tokens` tokens from `first_token` on; `head_dim` for rows made of heads.
    pub fn new(stats: &Stats, at: At, first_token: usize, tokens: usize, head_dim: Option<usize>) -> Self {
        let (row, dim) = (stats.max_row as usize, stats.max_dim as usize);
        let scores = at.stage.info().layout == Layout::Scores;
        let head = if scores { row.checked_div(tokens) } else { head_dim.and_then(|d| dim.checked_div(d)) };
        let row = if scores { row.checked_rem(tokens).unwrap_or(0) } else { row };
        let Stats { count, max_abs, nan, inf, zero, .. } = *stats;
        // Of no number there is no mean.
        let none = count > 0 && nan + inf == count;
        let [mean, rms, min, max] = [stats.mean, stats.rms, stats.min, stats.max].map(|x| if none { f32::NAN } else { x });
        Self { count, max_abs, token: first_token.saturating_add(row), dim, head, mean, rms, min, max, nan, inf, zero }
    }
    /// Statistics of the heads of a value as those of the whole.
    pub fn of_heads(heads: &[Stats], at: At, first_token: usize, tokens: usize, head_dim: Option<usize>) -> Self {
        let mut parts = heads.iter().map(|s| Self::new(s, at, first_token, tokens, head_dim));
        let mut whole = parts.next().unwrap_or_default();
        for part in parts {
            // Of two equally large elements the first in the value's own order is told, row by row.
            let earlier = at.stage.info().layout != Layout::Scores && part.rank() == whole.rank();
            let earlier = earlier && (part.token, part.dim) < (whole.token, whole.dim);
            whole.join(&part);
            if earlier {
                (whole.max_abs, whole.token, whole.dim, whole.head) = (part.max_abs, part.token, part.dim, part.head);
            }
        }
        whole
    }
    /// NaN before infinite before the largest number.
    fn rank(&self) -> (bool, bool, f32) {
        (self.nan > 0, self.inf > 0, if self.max_abs.is_finite() { self.max_abs } else { 0.0 })
    }
    /// Elements that are numbers.
    pub fn finite(&self) -> u64 {
        self.count.saturating_sub(self.nan).saturating_sub(self.inf)
    }
    /// Statistics of this value's elements and those of `later` together.
    pub fn join(&mut self, later: &Summary) {
        let (a, b) = (self.finite() as f64, later.finite() as f64);
        let part = |x: f32, count: f64| if count > 0.0 { f64::from(x) * count } else { 0.0 };
        let mixed = |x: f32, y: f32| if a + b > 0.0 { (part(x, a) + part(y, b)) / (a + b) } else { f64::NAN };
        let (mean, square) = (mixed(self.mean, later.mean), mixed_square(self, later, a, b));
        if self.count == 0 || later.rank() > self.rank() {
            (self.max_abs, self.token, self.dim, self.head) = (later.max_abs, later.token, later.dim, later.head);
        }
        if a == 0.0 {
            (self.min, self.max) = (later.min, later.max);
        } else if b > 0.0 {
            (self.min, self.max) = (self.min.min(later.min), self.max.max(later.max));
        }
        (self.mean, self.rms) = (mean as f32, square.sqrt() as f32);
        self.count += later.count;
        self.nan += later.nan;
        self.inf += later.inf;
        self.zero += later.zero;
    }
    /// `maxAbs=12.25@t2,d334 mean=… rms=… min=… max=… nan=0 inf=0 zero=0`; the place of scores is `@h1,t2,p5`.
    pub fn text(&self, at: At) -> String {
        let (token, dim) = (self.token, self.dim);
        let mut out = String::with_capacity(160);
        // Writing to a string cannot fail.
        let _ = write!(out, "maxAbs={}@", Number(self.max_abs));
        let _ = match self.head {
            Some(head) if at.stage.info().layout == Layout::Scores => write!(out, "h{head},t{token},p{dim}"),
            Some(head) => write!(out, "t{token},d{dim} head={head}"),
            None => write!(out, "t{token},d{dim}"),
        };
        let (mean, rms) = (Significant(f64::from(self.mean)), Significant(f64::from(self.rms)));
        let (min, max, nan, inf, zero) = (Number(self.min), Number(self.max), self.nan, self.inf, self.zero);
        let _ = write!(out, " mean={mean} rms={rms} min={min} max={max} nan={nan} inf={inf} zero={zero}");
        out
    }
}

/// Mean square of two summaries' `a` and `b` finite elements.
fn mixed_square(x: &Summary, y: &Summary, a: f64, b: f64) -> f64 {
    let square = |s: &Summary, count: f64| if count > 0.0 { f64::from(s.rms) * f64::from(s.rms) * count } else { 0.0 };
    if a + b > 0.0 { (square(x, a) + square(y, b)) / (a + b) } else { f64::NAN }
}

/// Shown with the fewest digits that give back the same f32; `NaN`, `Inf`, `-Inf`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Number(pub f32);

impl Display for Number {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            x if x.is_nan() => f.write_str("NaN"),
            f32::INFINITY => f.write_str("Inf"),
            f32::NEG_INFINITY => f.write_str("-Inf"),
            x => write!(f, "{x:?}"),
        }
    }
}

/// Shown with six significant digits: sums, probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Significant(pub f64);

impl Display for Significant {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let x = self.0;
        let scale = 10f64.powi(5 - x.abs().log10().floor().clamp(-290.0, 290.0) as i32);
        // Where scaling leaves the range of numbers there is nothing to round.
        let rounded = (x * scale).round() / scale;
        Number(if x != 0.0 && rounded.is_finite() { rounded as f32 } else { x as f32 }).fmt(f)
    }
}

/// A `Number` as text.
pub fn number(x: f32) -> String {
    Number(x).to_string()
}

/// A `Significant` as text.
pub fn significant(x: f64) -> String {
    Significant(x).to_string()
}

/// `number` with at least four decimals where there is no exponent, so that columns line up: `12.2500`.
pub fn padded(x: f32) -> String {
    let text = number(x);
    match text.split_once('.') {
        Some((_, decimals)) if !text.contains('e') => format!("{text}{}", "0".repeat(4usize.saturating_sub(decimals.len()))),
        _ => text,
    }
}

/// An f32 in JSON.
pub(super) fn json_number<S: Serializer>(x: &f32, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    if x.is_finite() { serializer.serialize_f32(*x) } else { serializer.serialize_str(&number(*x)) }
}

/// An f32 as `json_number` writes it.
fn from_json_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<f32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Spelled {
        Number(f32),
        Text(String),
    }
    match Spelled::deserialize(deserializer)? {
        Spelled::Number(x) => Ok(x),
        Spelled::Text(text) => [("NaN", f32::NAN), ("Inf", f32::INFINITY), ("-Inf", f32::NEG_INFINITY)]
            .into_iter()
            .find_map(|(name, x)| (name == text).then_some(x))
            .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no number"))),
    }
}

/// Several f32 in JSON.
pub(super) fn json_numbers<S: Serializer>(list: &[f32], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    struct One(f32);
    impl Serialize for One {
        fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            json_number(&self.0, serializer)
        }
    }
    serializer.collect_seq(list.iter().map(|x| One(*x)))
}

/// Several f32 in JSON, or null.
pub(super) fn json_some_numbers<S: Serializer>(list: &Option<Vec<f32>>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match list {
        Some(list) => json_numbers(list, serializer),
        None => serializer.serialize_none(),
    }
}

/// A value's name in JSON: `stage` and `layer`.
pub(super) fn json_at<S: Serializer>(at: &At, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    let mut both = serializer.serialize_struct("At", 2)?;
    both.serialize_field("stage", at.stage.name())?;
    both.serialize_field("layer", &at.layer)?;
    both.end()
}

/// `stage=ffn_out layer=3`.
pub(super) fn named(at: At) -> String {
    match at.layer {
        Some(layer) => format!("stage={} layer={layer}", at.stage),
        None => format!("stage={}", at.stage),
    }
}

#[cfg(test)]
mod tests;
