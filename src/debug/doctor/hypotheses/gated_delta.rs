//! The gated delta rule itself: queries, which keys a head has, decays, what is kept from token to token.

use super::elementwise::{off, wide};
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, ratio, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::model::DeltaHeads;
use crate::plan::Op;

/// How queries are divided.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Queries {
    /// By their length, with so much added to the sum of squares.
    Unit(f64),
    /// By the root of the mean of squares, likewise.
    Mean(f64),
    /// Not at all.
    AsTheyAre,
}

/// When matrices decay.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Decay {
    Before,
    /// The correction is made of the matrix before it decays.
    AfterProduct,
    /// What a token corrects decays with the rest.
    AfterCorrection,
    Never,
    /// By the other sign.
    Inverse,
}

/// A form of the rule.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Form {
    queries: Queries,
    decay: Decay,
    /// Value heads have key heads in turn.
    in_turn: bool,
    /// The result is read before the correction.
    early: bool,
    /// Matrices are 0 again after so many tokens.
    tokens: usize,
}

/// The rule with what the reference has of it.
struct Rule {
    heads: DeltaHeads,
    scale: f64,
    /// Queries of all tokens, [T, heads · width].
    queries: Vec<f64>,
    taken: Vec<f64>,
    wanted: Vec<f64>,
}

impl Rule {
    /// What `form` gives, in f64, [T, value width].
    fn results(&self, form: Form) -> Vec<f64> {
        let DeltaHeads { keys, values, key_dim, value_dim } = self.heads;
        let (key_width, value_width) = (self.heads.key_width(), self.heads.value_width());
        let mut matrices = vec![0.0; self.heads.matrices()];
        let mut all = Vec::with_capacity(self.wanted.len());
        for (t, row) in self.taken.chunks_exact(self.heads.taken()).enumerate() {
            if t % form.tokens == 0 {
                matrices.fill(0.0);
            }
            for head in 0..values {
                let key = if form.in_turn { head % keys } else { head / (values / keys) } * key_dim;
                let (k, q) = (&row[key..][..key_dim], &self.queries[t * key_width + key..][..key_dim]);
                let squares: f64 = q.iter().map(|q| q * q).sum();
                let factor = self.scale
                    / match form.queries {
                        Queries::Unit(eps) => (squares + eps).sqrt(),
                        Queries::Mean(eps) => (squares / key_dim as f64 + eps).sqrt(),
                        Queries::AsTheyAre => 1.0,
                    };
                let (rate, log) = (row[key_width + value_width + head], row[key_width + value_width + values + head]);
                let decay = match form.decay {
                    Decay::Never => 1.0,
                    Decay::Inverse => (-log).exp(),
                    _ => log.exp(),
                };
                for i in 0..value_dim {
                    let s = &mut matrices[(head * value_dim + i) * key_dim..][..key_dim];
                    let v = row[key_width + head * value_dim + i];
                    let dot = |s: &[f64], x: &[f64]| s.iter().zip(x).map(|(s, x)| s * x).sum::<f64>();
                    let scaled = |s: &mut [f64]| s.iter_mut().for_each(|s| *s *= decay);
                    if !matches!(form.decay, Decay::AfterProduct | Decay::AfterCorrection) {
                        scaled(s);
                    }
                    let early = dot(s, q);
                    let correction = rate * (v - dot(s, k));
                    if form.decay == Decay::AfterProduct {
                        scaled(s);
                    }
                    s.iter_mut().zip(k).for_each(|(s, k)| *s += correction * k);
                    if form.decay == Decay::AfterCorrection {
                        scaled(s);
                    }
                    all.push(factor * if form.early { early } else { dot(s, q) });
                }
            }
        }
        all
    }
    fn off(&self, form: Form) -> f64 {
        off(&self.results(form), &self.wanted)
    }
}

/// Hypotheses for the delta rule of `case`. None has an edit: what is wrong is in no file.
///
/// # Errors
/// Those of reading the reference.
pub fn hypotheses<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let Op::GatedDelta { heads, eps, scale, .. } = node.op else { return Ok(Vec::new()) };
    let (Some(rows), Some(taken), Some(y)) = (case.input(case.id, 0)?, case.input(case.id, 1)?, case.value(node.at)?) else {
        return Ok(Vec::new());
    };
    if rows.rows() != taken.rows() || heads.keys == 0 || heads.values < heads.keys || rows.width() < heads.key_width() {
        return Ok(Vec::new());
    }
    let queries = (0..rows.rows()).flat_map(|t| wide(&rows.row(t)[..heads.key_width()])).collect();
    let rule = Rule { heads, scale, queries, taken: wide(&taken.data), wanted: wide(&y.data) };
    let right = Form { queries: Queries::Unit(eps), decay: Decay::Before, in_turn: false, early: false, tokens: usize::MAX };
    // What is right as it is, as other forms may be too: of one token, of decays near 1.
    if rule.off(right) < CLOSE {
        return Ok(Vec::new());
    }
    let shown = |cause, why: String| Ok(vec![Hypothesis::shown(cause, why)]);
    for (form, cause, text) in [
        (Form { queries: Queries::AsTheyAre, ..right }, Cause::MissingQkNorm, "queries as they are, not made as long as 1"),
        (
            Form { queries: Queries::Mean(eps), ..right },
            Cause::DeltaRule,
            "queries over the root of the mean of their squares, and not of the sum",
        ),
        (Form { in_turn: true, ..right }, Cause::GqaMapping, "value heads that have key heads in turn, and not in blocks"),
        (Form { decay: Decay::Never, ..right }, Cause::DeltaRule, "matrices that do not decay"),
        (Form { decay: Decay::Inverse, ..right }, Cause::DeltaRule, "decays of the other sign"),
        (Form { decay: Decay::AfterProduct, ..right }, Cause::DeltaRule, "corrections by the matrix before it decays"),
        (Form { decay: Decay::AfterCorrection, ..right }, Cause::DeltaRule, "matrices that decay after they are corrected"),
        (Form { early: true, ..right }, Cause::DeltaRule, "results that are read before the matrix is corrected"),
    ] {
        if (!form.in_turn || heads.keys > 1 && heads.values > heads.keys) && rule.off(form) < CLOSE {
            return shown(cause, format!("the reference's values are those of {text}"));
        }
    }
    let own = rule.results(right);
    let (factor, apart) = ratio(own.iter().copied(), rule.wanted.iter().copied());
    if apart < CLOSE && (factor - 1.0).abs() > CLOSE {
        let new = snap(scale * factor, 4e-6);
        return shown(Cause::AttnScale, format!("queries are multiplied by {new} in the reference, and not by {scale}"));
    }
    if let Some(eps) = eps_of_queries(&rule, right, eps) {
        return shown(
            Cause::NormEps,
            format!("{eps} is added to the sum of a query's squares in the reference, and not {}", self::eps(right)),
        );
    }
    // The first token that is wrong is the first without what came before.
    let width = heads.value_width().max(1);
    let differs = |t: &usize| off(&own[t * width..][..width], &rule.wanted[t * width..][..width]) > CLOSE;
    if let Some(tokens) = (1..taken.rows()).find(differs)
        && rule.off(Form { tokens, ..right }) < CLOSE
    {
        return shown(Cause::KvCorruption, format!("the reference's matrices are 0 again after {tokens} tokens"));
    }
    Ok(Vec::new())
}

fn eps(form: Form) -> f64 {
    if let Queries::Unit(eps) = form.queries { eps } else { 0.0 }
}

/// The epsilon with which the results are the reference's: each row of a head is its own times √((Σq² + old) / (Σq² + new)).
fn eps_of_queries(rule: &Rule, right: Form, old: f64) -> Option<f64> {
    let DeltaHeads { keys, values, key_dim, value_dim } = rule.heads;
    let own = rule.results(right);
    let (mut total, mut weights) = (0.0, 0.0);
    for (i, (own, wanted)) in own.chunks_exact(value_dim.max(1)).zip(rule.wanted.chunks_exact(value_dim.max(1))).enumerate() {
        let (t, head) = (i / values, i % values);
        let q = &rule.queries[(t * keys + head / (values / keys)) * key_dim..][..key_dim];
        let squares: f64 = q.iter().map(|q| q * q).sum();
        let (factor, apart) = ratio(own.iter().copied(), wanted.iter().copied());
        let eps = (squares + old) / (factor * factor) - squares;
        if apart > 1e-3 || !eps.is_finite() || squares == 0.0 {
            return None;
        }
        (total, weights) = (total + eps / (squares * squares), weights + 1.0 / (squares * squares));
    }
    let eps = total / weights;
    let all = [1e-2, 1e-3, 1e-4, 1e-6, 0.0].into_iter().map(|tolerance| snap(eps, tolerance));
    all.into_iter().find(|eps| *eps > 0.0 && rule.off(Form { queries: Queries::Unit(*eps), ..right }) < CLOSE)
}
