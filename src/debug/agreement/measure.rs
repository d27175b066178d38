//! What is measured of each token, and what it comes to over a text.

use super::json_real;
use super::rows::Row;
use super::windows::Window;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::threads;
use serde::Serialize;

/// Elements from which on several threads take them.
const WORTH: usize = 1 << 20;
/// Worst tokens that are kept.
const WORST: usize = 10;
/// Tokens that are kept before a worst one, and after it.
const AROUND: (usize, usize) = (12, 4);

/// How far `b` agrees with the reference `a` over a text. Errors are standard errors of a mean over tokens, as if
/// tokens were independent of each other; those of one text are not quite, so true errors are somewhat larger.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Agreement {
    /// Tokens measured: predicted from finite logits by both.
    pub tokens: usize,
    /// Windows that the text was cut into, each read from an empty cache.
    pub windows: usize,
    /// Tokens of the longest of them.
    pub window: usize,
    /// Whether the whole text was measured.
    pub complete: bool,
    /// Divergence of `b` from `a`, in nats.
    pub kl: Divergence,
    /// How often both have the same likeliest token.
    pub same_top: Share,
    /// Mean |ln p_a − ln p_b| of the true token, in nats.
    #[serde(serialize_with = "json_real")]
    pub delta_log_p: f64,
    /// Root of the mean (p_b − p_a)² of the true token.
    #[serde(serialize_with = "json_real")]
    pub delta_p: f64,
    /// How well `a` predicts.
    pub a: Likelihood,
    /// How well `b` predicts.
    pub b: Likelihood,
    /// Perplexity of `b` over that of `a`; its error is that of paired tokens, far below that of either.
    pub ratio: Ratio,
    /// Tokens left out, as one side's logits were not finite.
    pub non_finite: NonFinite,
    /// The tokens that diverge most, worst first.
    pub worst: Vec<Worst>,
}

/// Kullback-Leibler divergence over tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Divergence {
    /// Mean.
    #[serde(serialize_with = "json_real")]
    pub mean: f64,
    /// Its standard error.
    #[serde(serialize_with = "json_real")]
    pub error: f64,
    /// Median.
    #[serde(serialize_with = "json_real")]
    pub median: f64,
    /// What 90 % of tokens do not exceed.
    #[serde(serialize_with = "json_real")]
    pub p90: f64,
    /// What 99 % of tokens do not exceed.
    #[serde(serialize_with = "json_real")]
    pub p99: f64,
    /// Largest.
    #[serde(serialize_with = "json_real")]
    pub max: f64,
    /// Index of its token in the text.
    pub max_token: usize,
}

/// A share of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// From 0 to 1.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Likelihood {
    /// Tokens predicted.
    pub tokens: usize,
    /// Mean −ln p of the true token, in nats.
    #[serde(serialize_with = "json_real")]
    pub nll: f64,
    /// Its standard error.
    #[serde(serialize_with = "json_real")]
    pub nll_error: f64,
    /// exp(nll).
    #[serde(serialize_with = "json_real")]
    pub perplexity: f64,
    /// Its standard error: perplexity · nll_error.
    #[serde(serialize_with = "json_real")]
    pub error: f64,
}

/// A ratio of perplexities.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ratio {
    /// b / a.
    #[serde(serialize_with = "json_real")]
    pub value: f64,
    /// Its standard error.
    #[serde(serialize_with = "json_real")]
    pub error: f64,
}

/// Tokens whose logits are not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NonFinite {
    /// Those of `a`.
    pub a: usize,
    /// Those of `b`.
    pub b: usize,
    /// Index in the text of the first token that could not be predicted.
    pub first: Option<usize>,
}

/// A token that diverges much.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Worst {
    /// Its index in the text.
    pub token: usize,
    /// Its window.
    pub window: usize,
    /// Its place there.
    pub position: usize,
    /// Divergence of `b` from `a`.
    #[serde(serialize_with = "json_real")]
    pub kl: f64,
    /// The true token, with its probabilities.
    pub expected: Ranked,
    /// The likeliest of `a`.
    pub top_a: Ranked,
    /// The likeliest of `b`.
    pub top_b: Ranked,
    /// Ids before it, of the same window.
    pub before: Vec<u32>,
    /// Ids after it.
    pub after: Vec<u32>,
}

/// An id with its probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ranked {
    /// The id.
    pub id: u32,
    /// Its probability in `a`.
    pub a: f64,
    /// Its probability in `b`.
    pub b: f64,
}

impl Likelihood {
    /// What `surprises` (−ln p of each true token) come to.
    pub(super) fn new(surprises: &[f64]) -> Self {
        let (nll, nll_error) = mean_and_error(surprises);
        let perplexity = nll.exp();
        Self { tokens: surprises.len(), nll, nll_error, perplexity, error: perplexity * nll_error }
    }
}

/// Collects tokens.
pub(super) struct Meter {
    valid: usize,
    kl: Vec<f64>,
    /// −ln p of the true token.
    a: Vec<f64>,
    b: Vec<f64>,
    same: usize,
    non_finite: NonFinite,
    skipped: usize,
    /// By divergence, the largest first.
    worst: Vec<Worst>,
}

impl Meter {
    /// A meter over ids below `valid`.
    pub fn new(valid: usize) -> Self {
        let (kl, a, b, worst) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { valid, kl, a, b, same: 0, non_finite: NonFinite::default(), skipped: 0, worst }
    }
    /// Tokens that came, measured or left out.
    pub fn seen(&self) -> usize {
        self.kl.len() + self.skipped
    }
    /// Takes the logits of both sides after `ids[first]` of a window and the places after it, one row each. A row
    /// predicts the token after its place; the window's last row predicts nothing.
    pub fn take(&mut self, number: usize, window: &Window, first: usize, a: &Tensor, b: &Tensor) {
        let rows = a.rows().min(b.rows()).min(window.ids.len().saturating_sub(first + 1));
        let valid = self.valid;
        let one = |row: usize| sample(&a.row(row)[..valid], &b.row(row)[..valid], window.ids[first + row + 1]);
        // Few elements are not worth starting threads for.
        let samples = if rows * valid > WORTH { threads::map(rows, one) } else { (0..rows).map(one).collect() };
        for (row, sample) in samples.into_iter().enumerate() {
            self.add(number, window, first + row + 1, sample);
        }
    }
    /// Adds what is known of the token at place `position`.
    fn add(&mut self, number: usize, window: &Window, position: usize, sample: Result<Sample, [bool; 2]>) {
        let sample = match sample {
            Ok(sample) => sample,
            Err([a, b]) => {
                self.non_finite.a += usize::from(a);
                self.non_finite.b += usize::from(b);
                self.non_finite.first = self.non_finite.first.or(Some(window.token(position)));
                self.skipped += 1;
                return;
            }
        };
        let Sample { kl, surprise_a, surprise_b, expected, top_a, top_b } = sample;
        self.kl.push(kl);
        self.a.push(surprise_a);
        self.b.push(surprise_b);
        self.same += usize::from(top_a.id == top_b.id);
        // Of equals the first stays in front.
        let rank = self.worst.partition_point(|w| w.kl >= kl);
        if rank < WORST && kl > 0.0 {
            let end = window.ids.len();
            let before = window.ids[position.saturating_sub(AROUND.0)..position].to_vec();
            let after = window.ids[end.min(position + 1)..end.min(position + 1 + AROUND.1)].to_vec();
            let token = window.token(position);
            self.worst.insert(rank, Worst { token, window: number, position, kl, expected, top_a, top_b, before, after });
            self.worst.truncate(WORST);
        }
    }
    /// What it comes to, of `of` tokens that there are.
    ///
    /// # Errors
    /// `Kind::Finding` when no token could be measured.
    pub fn finish(self, windows: &[Window], of: usize) -> Result<Agreement> {
        let tokens = self.kl.len();
        if tokens == 0 {
            let NonFinite { a, b, .. } = self.non_finite;
            let text = format!("no token could be measured: logits are not finite at {a} tokens of A and {b} of B, of {of}");
            return Err(Error::finding(text));
        }
        let complete = self.seen() == of;
        let (mean, error) = mean_and_error(&self.kl);
        let mut sorted = self.kl;
        sorted.sort_unstable_by(f64::total_cmp);
        // The smallest that at least so many tokens do not exceed.
        let percentile = |percent: usize| sorted[(tokens * percent).div_ceil(100).max(1) - 1];
        let max_token = self.worst.first().map_or(0, |w| w.token);
        let kl =
            Divergence { mean, error, median: percentile(50), p90: percentile(90), p99: percentile(99), max: percentile(100), max_token };
        let difference: Vec<f64> = self.a.iter().zip(&self.b).map(|(a, b)| b - a).collect();
        let (log_ratio, log_error) = mean_and_error(&difference);
        let same = self.same as f64 / tokens as f64;
        Ok(Agreement {
            tokens,
            windows: windows.len(),
            window: windows.iter().map(|w| w.ids.len()).max().unwrap_or(0),
            complete,
            kl,
            same_top: Share { value: same, error: (same * (1.0 - same) / tokens as f64).sqrt() },
            delta_log_p: difference.iter().map(|d| d.abs()).sum::<f64>() / tokens as f64,
            delta_p: (self.a.iter().zip(&self.b).map(|(a, b)| ((-b).exp() - (-a).exp()).powi(2)).sum::<f64>() / tokens as f64).sqrt(),
            a: Likelihood::new(&self.a),
            b: Likelihood::new(&self.b),
            ratio: Ratio { value: log_ratio.exp(), error: log_ratio.exp() * log_error },
            non_finite: self.non_finite,
            worst: self.worst,
        })
    }
}

/// One token's figures.
struct Sample {
    kl: f64,
    /// −ln p of the true token.
    surprise_a: f64,
    surprise_b: f64,
    expected: Ranked,
    top_a: Ranked,
    top_b: Ranked,
}

/// The figures of two rows that predict `next`; or which of them are no distributions.
fn sample(logits_a: &[f32], logits_b: &[f32], next: u32) -> Result<Sample, [bool; 2]> {
    let (a, b) = match (Row::new(logits_a), Row::new(logits_b)) {
        (Some(a), Some(b)) => (a, b),
        (a, b) => return Err([a.is_none(), b.is_none()]),
    };
    let ranked = |id: usize| Ranked { id: id as u32, a: a.log_p(id).exp(), b: b.log_p(id).exp() };
    let id = next as usize;
    let (surprise_a, surprise_b) = (-a.log_p(id), -b.log_p(id));
    let (expected, top_a, top_b) = (ranked(id), ranked(a.best()), ranked(b.best()));
    Ok(Sample { kl: a.divergence(&b), surprise_a, surprise_b, expected, top_a, top_b })
}

/// Mean of `values` and its standard error s/√n; 0 and 0 of none, no error of one.
fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mean = values.iter().sum::<f64>() / count;
    let square = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    (mean, (square / count).sqrt())
}
