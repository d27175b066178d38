//! The search for scales: which numbers let a group of elements be stored with the least weighted squared error.
//!
//! Elements to levels and levels to scales are each easy when the other is known: the nearest level; weighted least squares.
//! The searches here alternate the two from several starts and keep the best. They use +, −, ×, / and explicit rounding on
//! f32, in a fixed order, so that every platform finds the same bytes.

use half::f16;

/// Rounds to the nearest whole number, ties to even; for magnitudes below 2^22.
pub(super) fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// `x` within `low` and `high`, as two comparisons.
pub(super) fn limit(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// The inverse, or 0 of 0.
pub(super) fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// Elements in units of a power of two in which the largest magnitude is from 1 to 2, so that squares neither overflow nor
/// vanish, and weights whose largest is 1.
pub(super) struct Scaled<const N: usize> {
    pub(super) x: [f32; N],
    pub(super) w: [f32; N],
    /// The unit: a power of two.
    pub(super) unit: f32,
}

impl<const N: usize> Scaled<N> {
    pub(super) fn new(values: &[f32; N], importance: Option<&[f32; N]>) -> Self {
        let largest = values.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        let exponent = ((largest.to_bits() >> 23) as i32 - 127).clamp(-126, 126);
        let (unit, inverse) = (power(exponent), power(-exponent));
        let mut w = importance.copied().unwrap_or([1.0; N]);
        // Elements without importance count a little: a group of them is still stored as well as it can be.
        let top = w.iter().fold(0.0, |m: f32, w| m.max(*w));
        for w in &mut w {
            *w = if top > 0.0 { *w / top } else { 1.0 } + power(-40);
        }
        Self { x: values.map(|v| v * inverse), w, unit }
    }
    /// The negatives of the elements.
    pub(super) fn mirrored(&self) -> Self {
        Self { x: self.x.map(|x| -x), ..*self }
    }
    /// A scale as it is stored, and what that is in units.
    pub(super) fn half(&self, scale: f32) -> (f16, f32) {
        let stored = f16::from_f32(limit(scale * self.unit, -65504.0, 65504.0));
        (stored, stored.to_f32() / self.unit)
    }
    /// The same, away from zero where binary16 has few digits left: scales that divide the largest must reach it.
    pub(super) fn half_outward(&self, scale: f32) -> (f16, f32) {
        let (stored, value) = self.half(scale);
        if value.abs() < scale.abs() && stored.to_bits() & 0x7fff < 0x0400 {
            let outward = f16::from_bits(stored.to_bits() + 1);
            return (outward, outward.to_f32() / self.unit);
        }
        (stored, value)
    }
}

/// 2^`exponent`, from −126 to 127.
pub(super) fn power(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// Eight running sums, added up in a fixed order.
#[derive(Clone, Copy, Default)]
struct Lanes([f32; 8]);

impl Lanes {
    fn total(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

/// Sums of a group with elements x, weights w and levels q.
#[derive(Clone, Copy, Default)]
pub(super) struct Moments {
    pub(super) wqq: f32,
    pub(super) wq: f32,
    pub(super) wqx: f32,
}

/// Moments of levels `level(x·inv + shift)`.
#[inline(always)]
pub(super) fn moments<const N: usize>(x: &[f32; N], w: &[f32; N], inv: f32, shift: f32, level: impl Fn(f32) -> f32) -> Moments {
    let (mut wqq, mut wq, mut wqx) = (Lanes::default(), Lanes::default(), Lanes::default());
    for (x, w) in x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0) {
        for i in 0..8 {
            let q = level(x[i] * inv + shift);
            let weighted = w[i] * q;
            wqq.0[i] += weighted * q;
            wq.0[i] += weighted;
            wqx.0[i] += weighted * x[i];
        }
    }
    Moments { wqq: wqq.total(), wq: wq.total(), wqx: wqx.total() }
}

/// Sums of a group that no choice changes.
#[derive(Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) w: f32,
    pub(super) wx: f32,
    pub(super) wxx: f32,
}

pub(super) fn totals<const N: usize>(x: &[f32; N], w: &[f32; N]) -> Totals {
    let (mut ww, mut wx, mut wxx) = (Lanes::default(), Lanes::default(), Lanes::default());
    for (x, w) in x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0) {
        for i in 0..8 {
            ww.0[i] += w[i];
            wx.0[i] += w[i] * x[i];
            wxx.0[i] += w[i] * x[i] * x[i];
        }
    }
    Totals { w: ww.total(), wx: wx.total(), wxx: wxx.total() }
}
