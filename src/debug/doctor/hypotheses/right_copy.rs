//! Where the reference is a right copy of the model, its weights are known: how those of the op differ from them, when nothing
//! else reproduces the reference to the last bit, as after a change that was rounded.

use super::label;
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{ratio, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::plan::WeightId;
use crate::plan::edit::{Edit, Slot, weight::Change};

/// What a type of 16 bits rounds by at most, relative: that of bf16.
const ROUNDED: f64 = 1.0 / 256.0;
/// The least correlation of a packed copy with the right weights: signs alone have 0.8 with Gaussian numbers, another tensor has 0.
const COARSE: f64 = 0.7;
/// Elements of a block, as formats have it.
const BLOCK: usize = 256;
/// Blocks from which on a weight can be called coarse everywhere: rows of norms and numbers of heads have fewer, and are never packed.
const FEW: usize = 16;

/// How a weight differs from the right one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Difference {
    /// It is 0.
    Zero,
    /// It is the right one times a factor, rounded.
    Scaled(f64),
    /// A number was added, and the sum rounded.
    Shifted(f64),
    /// Everywhere by as much, relative to its size, as a packed copy may.
    Coarse(f64),
    /// In some blocks, the share of all.
    Blocks(f64),
}

impl Difference {
    /// Of `ours` from `right`; `None` where they are equal.
    fn of(ours: &[f32], right: &[f32]) -> Option<Self> {
        if ours == right || ours.len() != right.len() {
            return None;
        }
        if ours.iter().all(|x| *x == 0.0) {
            return Some(Self::Zero);
        }
        // Pairs in f64, where they stand: a weight may be large.
        let pairs = || ours.iter().zip(right).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let sum = |term: fn((f64, f64)) -> f64| pairs().map(term).sum::<f64>();
        let (aa, ab, bb) = (sum(|(a, _)| a * a), sum(|(a, b)| a * b), sum(|(_, b)| b * b));
        let count = ours.len() as f64;
        let size = (bb / count).sqrt();
        let (factor, _) = ratio(pairs().map(|(_, b)| b), pairs().map(|(a, _)| a));
        if factor.is_finite()
            && (factor - 1.0).abs() > 2.0 * ROUNDED
            && pairs().all(|(a, b)| (a - factor * b).abs() <= ROUNDED * a.abs().max(1e-6 * factor.abs() * size))
        {
            return Some(Self::Scaled(factor));
        }
        let shift = sum(|(a, b)| a - b) / count;
        if shift.abs() > 2.0 * ROUNDED * size && pairs().all(|(a, b)| (a - b - shift).abs() <= ROUNDED * (a.abs() + b.abs() + shift.abs()))
        {
            return Some(Self::Shifted(shift));
        }
        // Relative to the size of all: a block that is small may be all rounding.
        let error = |(a, b): (&[f32], &[f32])| {
            let squares = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
            (squares / a.len() as f64).sqrt() / size.max(f64::MIN_POSITIVE)
        };
        let errors: Vec<f64> = ours.chunks(BLOCK).zip(right.chunks(BLOCK)).map(error).collect();
        let mut sorted = errors.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0);
        // An error that is NaN is far.
        let far = errors.len() - errors.iter().filter(|error| **error <= 4.0 * median).count();
        let correlation = ab / (aa * bb).sqrt();
        let mean = (errors.iter().map(|e| e * e).sum::<f64>() / errors.len().max(1) as f64).sqrt();
        // A few blocks of a packed copy may be far worse than the others, and no more. Few blocks do not tell packing from damage.
        let even = errors.len() >= FEW && sorted[0] > 0.0 && far * 200 <= errors.len();
        Some(if even && correlation >= COARSE { Self::Coarse(mean) } else { Self::Blocks(far.max(1) as f64 / errors.len().max(1) as f64) })
    }
    /// The class of fault in a weight of this role.
    fn cause(self, slot: Slot) -> Cause {
        let norm = slot.role.name().contains("norm");
        match self {
            Self::Shifted(by) if norm && (by.abs() - 1.0).abs() <= 2.0 * ROUNDED => Cause::NormOffset,
            Self::Coarse(_) => Cause::QuantDrift,
            _ => Cause::CorruptWeight,
        }
    }
    /// Whether other weights have the same fault.
    fn alike(self, other: Self) -> bool {
        match (self, other) {
            (Self::Coarse(_), Self::Coarse(_)) | (Self::Zero, Self::Zero) => true,
            (Self::Scaled(a), Self::Scaled(b)) | (Self::Shifted(a), Self::Shifted(b)) => (a - b).abs() <= 2.0 * ROUNDED * a.abs(),
            _ => false,
        }
    }
    fn text(self) -> String {
        match self {
            Self::Zero => "it is 0".into(),
            Self::Scaled(by) => format!("it is that times {}, rounded", snap(by, 1e-3)),
            Self::Shifted(by) => format!("it is that with {} added, rounded", snap(by, 1e-3)),
            Self::Coarse(by) => format!("it is off by {:.2} % everywhere, as a packed copy is", 100.0 * by),
            Self::Blocks(share) => format!("other numbers stand in {:.1} % of its blocks of {BLOCK} elements", 100.0 * share),
        }
    }
}

/// The weights of the op of `case` are those of the right copy, and so are all others that differ in the same way.
///
/// # Errors
/// Those of reading the weights.
pub async fn hypothesis<S: WeightSource>(case: &Case<'_, S>) -> Result<Option<Hypothesis>> {
    for id in case.node().op.weights() {
        let slot = Slot::of(case.plan, id);
        let Some(difference) = difference(case, slot, id).await? else { continue };
        let mut edits = vec![Edit::Weight(slot, Change::OfReference)];
        let cause = difference.cause(slot);
        // Damage is of one weight; packing, and what a conversion adds or multiplies, of all of a kind.
        let alone = matches!(difference, Difference::Blocks(_));
        let matrix = |id: WeightId| case.plan.weights[id.0].shape.len() > 1;
        for other in (0..case.plan.weights.len()).map(WeightId).filter(|other| !alone && *other != id && matrix(*other) == matrix(id)) {
            let of = Slot::of(case.plan, other);
            if self::difference(case, of, other).await?.is_some_and(|d| d.alike(difference) && d.cause(of) == cause) {
                edits.push(Edit::Weight(of, Change::OfReference));
            }
        }
        let more = match edits.len() - 1 {
            0 => String::new(),
            more => format!("; {more} more weights differ in the same way"),
        };
        let why = format!("{} is not that of the right copy: {}{more}", label(slot), difference.text());
        // What gives the reference's numbers without its weights says more.
        return Ok(Some(Hypothesis::of_weight(cause, slot, edits, why).rank(8)));
    }
    Ok(None)
}

/// How a weight differs from that of the right copy; `None` where it does not, or where there is none.
async fn difference<S: WeightSource>(case: &Case<'_, S>, slot: Slot, id: WeightId) -> Result<Option<Difference>> {
    let Some(right) = case.weights.right(slot).await? else { return Ok(None) };
    Ok(Difference::of(&case.weight(id).await?, &right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_apart() {
        let right: Vec<f32> = (0..8192).map(|i| (i as f32 * 0.37).sin()).collect();
        let rounded = |f: fn(f32) -> f32| -> Vec<f32> { right.iter().map(|x| half::bf16::from_f32(f(*x)).to_f32()).collect() };
        assert_eq!(Difference::of(&right, &right), None);
        assert!(
            matches!(Difference::of(&rounded(|x| x * 30_000.0), &right), Some(Difference::Scaled(x)) if (x / 30_000.0 - 1.0).abs() < 1e-2)
        );
        assert!(matches!(Difference::of(&rounded(|x| x - 1.0), &right), Some(Difference::Shifted(x)) if (x + 1.0).abs() < 1e-2));
        assert!(
            matches!(Difference::of(&rounded(|x| (x * 4.0).round() / 4.0), &right), Some(Difference::Coarse(x)) if x > 0.05 && x < 0.2)
        );
        assert_eq!(Difference::of(&[0.0; 8192], &right), Some(Difference::Zero));
        let mut damaged = right.clone();
        damaged[300..500].fill(3.0);
        assert!(matches!(Difference::of(&damaged, &right), Some(Difference::Blocks(share)) if share == 1.0 / 32.0));
        // Of a short weight nothing is said of packing.
        for length in [32, 512, 1024] {
            let near: Vec<f32> = right[..length].iter().enumerate().map(|(i, x)| x + 1e-2 * ((i * 7) as f32).cos()).collect();
            assert!(matches!(Difference::of(&near, &right[..length]), Some(Difference::Blocks(_))), "{length}");
        }
    }
}
