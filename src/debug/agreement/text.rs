//! The lines of an agreement.

use super::measure::{Agreement, Likelihood, Ranked, Worst};
use crate::debug::number::significant;
use std::fmt::Write;

/// Turns ids into text on one line.
pub type Shown<'s> = &'s dyn Fn(&[u32]) -> String;

impl Agreement {
    /// `AGREEMENT tokens=… klMean=… kl99=… klMax=…@t512 sameTop=…% … perplexityA=…±… perplexityB=…±… ratio=…±…`.
    pub fn text(&self) -> String {
        format!("AGREEMENT {}", self.figures())
    }
    /// The figures of [`Self::text`].
    pub(in crate::debug) fn figures(&self) -> String {
        let kl = &self.kl;
        let mut out = format!("tokens={} windows={} window={}", self.tokens, self.windows, self.window);
        // Writing to a string cannot fail.
        let _ = write!(out, " klMean={}±{}", significant(kl.mean), brief(kl.error));
        let _ = write!(out, " klMedian={} kl90={} kl99={}", significant(kl.median), significant(kl.p90), significant(kl.p99));
        let place = if kl.max > 0.0 { format!("@t{}", kl.max_token) } else { String::new() };
        let _ = write!(out, " klMax={}{place}", significant(kl.max));
        let _ = write!(out, " sameTop={:.3}%±{:.3}", 100.0 * self.same_top.value, 100.0 * self.same_top.error);
        let _ = write!(out, " deltaLogP={} deltaP={}", significant(self.delta_log_p), significant(self.delta_p));
        let perplexity = |l: &Likelihood| format!("{}±{}", real(l.perplexity), real(l.error));
        let _ = write!(out, " perplexityA={} perplexityB={}", perplexity(&self.a), perplexity(&self.b));
        let _ = write!(out, " ratio={}±{}", ratio(self.ratio.value), brief(self.ratio.error));
        if !self.complete {
            out += " incomplete=true";
        }
        out
    }
    /// `ANOMALY kind=non_finite_logits …` where logits were not finite.
    pub fn anomaly(&self) -> Option<String> {
        let found = self.non_finite;
        let first = found.first?;
        let (a, b) = (found.a, found.b);
        Some(format!("ANOMALY kind=non_finite_logits stage=logits_final token={first} a={a} b={b} (tokens left out of the agreement)"))
    }
    /// One line for each of the worst tokens.
    pub fn worst_lines(&self, shown: Shown<'_>) -> Vec<String> {
        self.worst.iter().enumerate().map(|(i, worst)| worst.text(i + 1, shown)).collect()
    }
}

impl Worst {
    /// `WORST 1 kl=… token=512 window=1 position=7 expected=" sea"(a=0.1,b=0.9) topA=…  topB=… text="… the« sea» was"`.
    pub fn text(&self, rank: usize, shown: Shown<'_>) -> String {
        let Worst { token, window, position, .. } = self;
        let ranked = |r: &Ranked| format!("\"{}\"(id={},a={},b={})", shown(&[r.id]), r.id, brief(r.a), brief(r.b));
        let (before, after) = (shown(&self.before), shown(&self.after));
        format!(
            "WORST {rank} kl={} token={token} window={window} position={position} expected={} topA={} topB={} text=\"{before}«{}»{after}\"",
            significant(self.kl),
            ranked(&self.expected),
            ranked(&self.top_a),
            ranked(&self.top_b),
            shown(&[self.expected.id]),
        )
    }
}

/// Four decimals; NaN and Inf by name.
fn real(x: f64) -> String {
    if x.is_finite() { format!("{x:.4}") } else { significant(x) }
}

/// Enough decimals to distinguish ratios near 1.
fn ratio(x: f64) -> String {
    if x.is_finite() { format!("{x:.6}") } else { significant(x) }
}

/// Two significant digits.
pub(in crate::debug) fn brief(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return significant(x);
    }
    // Through the exponent form, which rounds.
    format!("{x:.1e}").parse::<f64>().map_or_else(|_| significant(x), significant)
}
