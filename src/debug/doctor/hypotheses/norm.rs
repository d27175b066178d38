//! Norms: epsilon, weights; of RMS norms the offset, of layer norms the bias.

use super::weight::{differing, stored_as};
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::plan::edit::{ConfigEdit, Edit, Slot, weight::Change};
use crate::plan::{Op, ValueId, WeightId};

/// A norm with what the reference has of it. Of a layer norm, inputs are less their mean and outputs less the bias: what is left
/// is an RMS norm without an offset.
struct Norm {
    weight: WeightId,
    stored: Vec<f32>,
    offset: f64,
    eps: f64,
    x: Vec<f32>,
    y: Vec<f32>,
    /// It has an offset, which a layer norm has not.
    rms: bool,
    bias: Option<WeightId>,
}

impl Norm {
    async fn read<S: WeightSource>(case: &Case<'_, S>, id: ValueId) -> Result<Option<Self>> {
        let node = case.plan.node(id);
        let (weight, bias, offset, eps, group, rms) = match node.op {
            Op::RmsNorm { weight, offset, eps, group } => (weight, None, offset, eps, group, true),
            Op::LayerNorm { weight, bias, eps, group } => (weight, bias, 0.0, eps, group, false),
            _ => return Ok(None),
        };
        let (Some(x), Some(y)) = (case.input(id, 0)?, case.value(node.at)?) else { return Ok(None) };
        let (stored, mut x, mut y) = (case.weight(weight).await?, x.data, y.data);
        if stored.len() != group {
            return Ok(None); // heads with weights of their own
        }
        if !rms {
            for row in x.chunks_exact_mut(group) {
                let mean = (row.iter().map(|x| f64::from(*x)).sum::<f64>() / group as f64) as f32;
                row.iter_mut().for_each(|x| *x -= mean);
            }
        }
        if let Some(bias) = bias {
            let bias = case.weight(bias).await?;
            y.chunks_exact_mut(group).for_each(|row| row.iter_mut().zip(&bias).for_each(|(y, b)| *y -= b));
        }
        Ok(Some(Self { weight, stored, offset, eps, x, y, rms, bias }))
    }
    /// What is missing of the bias, if epsilon and weights are right; `None` where no bias explains the outputs.
    fn missing_bias(&self) -> Option<Vec<f64>> {
        let n = self.stored.len();
        let (mut sum, mut squares, mut all, mut rows) = (vec![0.0; n], vec![0.0; n], 0.0, 0.0);
        for (x, y) in self.groups() {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
            let inverse = 1.0 / (mean + self.eps).sqrt();
            for i in 0..n {
                let gap = f64::from(y[i]) - f64::from(x[i]) * inverse * (f64::from(self.stored[i]) + self.offset);
                (sum[i], squares[i], all) = (sum[i] + gap, squares[i] + gap * gap, all + f64::from(y[i]).powi(2));
            }
            rows += 1.0;
        }
        let left: f64 = (0..n).map(|i| (squares[i] - sum[i] * sum[i] / rows).max(0.0)).sum();
        (rows > 1.0 && left <= 1e-10 * all).then(|| sum.into_iter().map(|sum| sum / rows).collect())
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
    } else if let (Some(bias), Some(missing)) = (norm.bias, norm.missing_bias()) {
        found.extend(of_bias(case, bias, &missing).await?);
    }
    Ok(found)
}

/// Another bias.
async fn of_bias<S: WeightSource>(case: &Case<'_, S>, id: WeightId, missing: &[f64]) -> Result<Option<Hypothesis>> {
    let (slot, stored) = (Slot::of(case.plan, id), case.weight(id).await?);
    let right: Vec<f64> = stored.iter().zip(missing).map(|(b, more)| f64::from(*b) + more).collect();
    let size = right.iter().map(|b| b.abs()).fold(0.0, f64::max).max(1e-3);
    let off = differing(&right, &stored, size);
    let elements = off.iter().map(|i| (*i, stored_as(right[*i], CLOSE * size))).collect();
    let why = format!("{} of {} elements of the norm's bias are others in the reference", off.len(), right.len());
    let hypothesis = || Hypothesis::of_weight(Cause::CorruptWeight, slot, vec![Edit::Weight(slot, Change::Elements(elements))], why);
    Ok((!off.is_empty()).then(|| hypothesis().rank(3)))
}

/// Another epsilon: measured on every norm that agrees with this one's.
async fn eps<S: WeightSource>(case: &Case<'_, S>, norm: &Norm) -> Result<Option<Hypothesis>> {
    let Some((first, known)) = norm.measured_eps() else { return Ok(None) };
    let (mut total, mut weights, mut exact, mut count) = (0.0, 0.0, f64::INFINITY, 0);
    for id in case.nodes(|node| matches!(node.op, Op::RmsNorm { .. } | Op::LayerNorm { .. })) {
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
    let by_whole = gaps.iter().all(|gap| (gap - whole).abs().max((gap - mean).abs()) <= 4e-3 * size);
    if norm.rms && whole != 0.0 && by_whole {
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
