//! RMS norms: epsilon, offset, weights.

use super::weight::{differing, stored_as};
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::plan::edit::{ConfigEdit, Edit, Slot, weight::Change};
use crate::plan::{Op, ValueId, WeightId};

/// A norm with what the reference has of it.
struct Norm {
    weight: WeightId,
    stored: Vec<f32>,
    offset: f64,
    eps: f64,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Norm {
    async fn read<S: WeightSource>(case: &Case<'_, S>, id: ValueId) -> Result<Option<Self>> {
        let node = case.plan.node(id);
        let Op::RmsNorm { weight, offset, eps, .. } = node.op else { return Ok(None) };
        let (Some(x), Some(y)) = (case.input(id, 0)?, case.value(node.at)?) else { return Ok(None) };
        Ok(Some(Self { weight, stored: case.weight(weight).await?, offset, eps, x: x.data, y: y.data }))
    }
    /// Groups that are normalised together, input and output.
    fn groups(&self) -> impl Iterator<Item = (&[f32], &[f32])> {
        let n = self.stored.len();
        self.x.chunks_exact(n).zip(self.y.chunks_exact(n))
    }
    /// The epsilon that the outputs are made with, if the weights are right, and how exactly it is known.
    fn measured_eps(&self) -> Option<(f64, f64)> {
        let n = self.stored.len() as f64;
        let (mut total, mut weights) = (0.0, 0.0);
        for (x, y) in self.groups() {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n;
            let plain = x.iter().zip(&self.stored).map(|(x, w)| f64::from(*x) * (f64::from(*w) + self.offset));
            let (mut ab, mut aa) = (0.0, 0.0);
            for (a, y) in plain.zip(y) {
                (ab, aa) = (ab + a * f64::from(*y), aa + a * a);
            }
            let inverse = ab / aa;
            let eps = 1.0 / (inverse * inverse) - mean;
            if aa == 0.0 || !eps.is_finite() {
                continue;
            }
            // A row says so much more as its mean square is smaller.
            let weight = 1.0 / (mean + eps).powi(2);
            (total, weights) = (total + weight * eps, weights + weight);
        }
        let eps = total / weights;
        // Roundings of each row's 2n numbers, seen through the slope of 1/√.
        let known = 2.0 * 2f64.powi(-24) / weights.sqrt() * 4.0;
        (weights > 0.0 && eps > known).then_some((eps, known / eps))
    }
    /// The weights that the outputs are made with, if the epsilon is right; `None` where no weights explain them.
    fn measured_weights(&self) -> Option<Vec<f64>> {
        let n = self.stored.len();
        let (mut ab, mut aa, mut bb) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        for (x, y) in self.groups() {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
            let inverse = 1.0 / (mean + self.eps).sqrt();
            for i in 0..n {
                let (a, b) = (f64::from(x[i]) * inverse, f64::from(y[i]));
                (ab[i], aa[i], bb[i]) = (ab[i] + a * b, aa[i] + a * a, bb[i] + b * b);
            }
        }
        let left: f64 = (0..n).map(|i| (bb[i] - ab[i] * ab[i] / aa[i].max(f64::MIN_POSITIVE)).max(0.0)).sum();
        let total: f64 = bb.iter().sum();
        // Sums of squares cancel down to 1e-8 of the values.
        (left <= 1e-10 * total).then(|| (0..n).map(|i| ab[i] / aa[i].max(f64::MIN_POSITIVE) - self.offset).collect())
    }
}

/// Hypotheses for the norm of `case`.
pub async fn hypotheses<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let Some(norm) = Norm::read(case, case.id).await? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    found.extend(eps(case, &norm).await?);
    if let Some(weights) = norm.measured_weights() {
        found.extend(of_weights(case, &norm, &weights).await?);
    }
    Ok(found)
}

/// Another epsilon: measured on every norm that agrees with this one's.
async fn eps<S: WeightSource>(case: &Case<'_, S>, norm: &Norm) -> Result<Option<Hypothesis>> {
    let Some((first, known)) = norm.measured_eps() else { return Ok(None) };
    let (mut total, mut weights, mut exact, mut count) = (0.0, 0.0, f64::INFINITY, 0);
    for id in case.nodes(|node| matches!(node.op, Op::RmsNorm { .. })) {
        let Some((eps, of)) = Norm::read(case, id).await?.and_then(|norm| norm.measured_eps()) else { continue };
        if (eps - first).abs() <= 8.0 * (known * first + of * eps) {
            let weight = 1.0 / (of * eps).powi(2);
            (total, weights, exact, count) = (total + weight * eps, weights + weight, exact.min(of), count + 1);
        }
    }
    if count == 0 {
        return Ok(None);
    }
    let eps = snap(total / weights, exact.max(1e-7));
    let why = format!("the outputs of {count} norms are those of epsilon {eps}, and not {}", norm.eps);
    Ok(Some(Hypothesis::new(Cause::NormEps, vec![Edit::Config(ConfigEdit::NormEps(eps))], why)))
}

/// Other weights.
async fn of_weights<S: WeightSource>(case: &Case<'_, S>, norm: &Norm, weights: &[f64]) -> Result<Vec<Hypothesis>> {
    let slot = Slot::of(case.plan, norm.weight);
    let size = weights.iter().map(|w| (w + norm.offset).abs()).fold(0.0, f64::max).max(1e-3);
    let gaps: Vec<f64> = weights.iter().zip(&norm.stored).map(|(w, s)| w - f64::from(*s)).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let (whole, mut found) = (mean.round(), Vec::new());
    // A convention is a whole number; what a rounded file holds of it differs by a rounding.
    if whole != 0.0 && gaps.iter().all(|gap| (gap - whole).abs() <= 4e-3 * size) && gaps.iter().all(|gap| (gap - mean).abs() <= 4e-3 * size)
    {
        let offset = norm.offset + whole;
        let why = format!(
            "the norm's outputs are those of weights with {whole:+} added: it multiplies by weight {:+}, and should by weight {offset:+}",
            norm.offset
        );
        found.push(Hypothesis::new(Cause::NormOffset, vec![Edit::Config(ConfigEdit::NormOffset(offset))], why.clone()));
        let tensors = shifted(case, whole, size).await?;
        let edits = tensors.iter().map(|slot| Edit::Weight(*slot, Change::Add(whole))).collect();
        found.push(Hypothesis::of_weight(Cause::NormOffset, slot, edits, why).rank(2));
        return Ok(found);
    }
    for other in case.alike(norm.weight) {
        let values = case.weight(other).await?;
        if differing(weights, &values, size).is_empty() {
            let other = Slot::of(case.plan, other);
            let cause = if other.role == slot.role { Cause::SwappedLayers } else { Cause::SwappedTensors };
            let edits = vec![Edit::Weight(slot, Change::From(other)), Edit::Weight(other, Change::From(slot))];
            found.push(Hypothesis::of_weight(cause, slot, edits, format!("the weights that are meant lie under {}", super::label(other))));
        }
    }
    if found.is_empty() {
        let off = differing(weights, &norm.stored, size);
        let elements = off.iter().map(|i| (*i, stored_as(weights[*i], CLOSE * size))).collect();
        let why = format!(
            "{} of {} weights of the norm are others in the reference; the first is number {}",
            off.len(),
            gaps.len(),
            off.first().copied().unwrap_or(0)
        );
        if !off.is_empty() {
            found
                .push(Hypothesis::of_weight(Cause::CorruptWeight, slot, vec![Edit::Weight(slot, Change::Elements(elements))], why).rank(3));
        }
    }
    Ok(found)
}

/// The norm weights whose outputs are those of `whole` more.
async fn shifted<S: WeightSource>(case: &Case<'_, S>, whole: f64, size: f64) -> Result<Vec<Slot>> {
    let mut slots = Vec::new();
    for id in case.nodes(|node| matches!(node.op, Op::RmsNorm { .. })) {
        let Some(norm) = Norm::read(case, id).await? else { continue };
        let Some(weights) = norm.measured_weights() else { continue };
        if weights.iter().zip(&norm.stored).all(|(w, s)| (w - f64::from(*s) - whole).abs() <= 4e-3 * size.max(1.0)) {
            slots.push(Slot::of(case.plan, norm.weight));
        }
    }
    Ok(slots)
}
