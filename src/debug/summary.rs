//! Statistics of a value with the place of its largest magnitude, joined over parts of the value; and how a value is
//! named in text and in JSON.

use crate::debug::number::{Number, Significant, from_json_number, json_number};
use crate::exec::Stats;
use crate::plan::At;
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

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
        let (head, row) = at.stage.layout().place(row, tokens);
        let head = head.or_else(|| head_dim.and_then(|d| dim.checked_div(d)));
        let Stats { count, max_abs, nan, inf, zero, .. } = *stats;
        // Without a finite element there is no mean.
        let none = count > 0 && nan + inf == count;
        let [mean, rms, min, max] = [stats.mean, stats.rms, stats.min, stats.max].map(|x| if none { f32::NAN } else { x });
        Self { count, max_abs, token: first_token.saturating_add(row), dim, head, mean, rms, min, max, nan, inf, zero }
    }
    /// Statistics of the heads of a value as those of the whole.
    pub fn of_heads(heads: &[Stats], at: At, first_token: usize, tokens: usize, head_dim: Option<usize>) -> Self {
        let mut parts = heads.iter().map(|s| Self::new(s, at, first_token, tokens, head_dim));
        let mut whole = parts.next().unwrap_or_default();
        for part in parts {
            // Of two equally large elements the first in the value's own order counts, row by row.
            let earlier = !at.stage.layout().is_scores() && part.rank() == whole.rank();
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
            Some(head) if at.stage.layout().is_scores() => write!(out, "h{head},t{token},p{dim}"),
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
mod tests {
    use super::*;
    use crate::cpu::stats::stats;
    use crate::plan::Stage;

    const AT: At = At { stage: Stage::FfnOut, layer: Some(3) };

    fn summary(values: &[f32], first_token: usize) -> Summary {
        Summary::new(&stats(values, 4), AT, first_token, values.len() / 4, None)
    }

    #[test]
    fn joined_statistics_are_those_of_the_whole() {
        let values: Vec<f32> = (0..24).map(|i| ((i * 7) % 11) as f32 - 4.5).collect();
        let mut joined = summary(&values[..8], 0);
        joined.join(&summary(&values[8..12], 2));
        joined.join(&summary(&values[12..], 3));
        let whole = summary(&values, 0);
        assert!((joined.mean - whole.mean).abs() < 1e-6 && (joined.rms - whole.rms).abs() < 1e-6);
        let exact = |s: &Summary| (s.count, s.max_abs, s.token, s.dim, s.min, s.max, s.zero);
        assert_eq!(exact(&joined), exact(&whole));

        let mut broken = summary(&[1.0, f32::INFINITY, 2.0, 0.0], 0);
        broken.join(&summary(&[9.0; 4], 1));
        assert_eq!((broken.max_abs, broken.token, broken.max, broken.inf), (f32::INFINITY, 0, 9.0, 1));
        broken.join(&summary(&[1.0, 1.0, 1.0, f32::NAN], 2));
        assert!(broken.max_abs.is_nan() && (broken.token, broken.dim) == (2, 3));
    }

    #[test]
    fn places_of_heads() {
        let s = Stats { max_row: 7, max_dim: 5, max_abs: 1.0, ..Stats::default() };
        let scores = At { stage: Stage::AttnProbs, layer: Some(0) };
        let found = Summary::new(&s, scores, 10, 3, None);
        assert_eq!((found.head, found.token, found.dim), (Some(2), 11, 5));
        assert!(found.text(scores).starts_with("maxAbs=1.0@h2,t11,p5 mean="));
        let found = Summary::new(&s, At { stage: Stage::QProj, layer: Some(0) }, 10, 8, Some(4));
        assert!(found.text(At { stage: Stage::QProj, layer: Some(0) }).starts_with("maxAbs=1.0@t17,d5 head=1 mean="));
        assert_eq!(Summary::new(&s, scores, 10, 0, Some(0)).token, 10);
    }

    #[test]
    fn json_keeps_what_is_not_finite() {
        let text = serde_json::to_string(&summary(&[1.0, f32::NEG_INFINITY, f32::NAN, 0.0], 0)).unwrap();
        assert!(text.contains(r#""maxAbs":"NaN""#) && text.contains(r#""head":null"#), "{text}");
        let again: Summary = serde_json::from_str(&text).unwrap();
        assert!(again.max_abs.is_nan() && again.inf == 1);
    }
}
