//! Fits of s·level, where a format's levels are whole numbers in a range or sixteen of a table: one group, or a super-block
//! of groups whose s are small whole multiples of one number, of either sign.

use super::fit::{Moments, Scaled, Totals, inverse, limit, moments, round, totals};
use half::f16;

/// The nearest of the whole numbers from `low` to `high`.
#[inline(always)]
pub(super) fn whole(low: f32, high: f32) -> impl Fn(f32) -> f32 + Copy {
    move |v| round(limit(v, low, high))
}

/// Starts for [`scale`]: `first` and its successors, `step` apart, and their negatives.
pub(super) fn starts<const N: usize>(first: f32, step: f32) -> [f32; N] {
    std::array::from_fn(|i| (first + step * (i / 2) as f32) * if i % 2 == 0 { 1.0 } else { -1.0 })
}

/// The weighted squared error of levels with a scale.
fn error(m: Moments, t: Totals, scale: f32) -> f32 {
    t.wxx + scale * (scale * m.wqq - 2.0 * m.wqx)
}

/// The best scale found for a group. Each start is what the element of largest magnitude becomes.
#[inline(always)]
pub(super) fn scale<const N: usize>(x: &[f32; N], w: &[f32; N], level: impl Fn(f32) -> f32 + Copy, starts: &[f32], rounds: usize) -> f32 {
    let largest = x.iter().fold(0.0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let (mut best, mut most) = (0.0, 0.0);
    for start in starts {
        let mut inv = start * inverse(largest);
        for _ in 0..rounds {
            let m = moments(x, w, inv, 0.0, level);
            if m.wqq == 0.0 {
                break;
            }
            let scale = m.wqx / m.wqq;
            if scale * m.wqx > most {
                (best, most) = (scale, scale * m.wqx);
            }
            inv = inverse(scale);
        }
    }
    best
}

/// A super-block: `G` groups whose scales are `d` times whole numbers.
pub(super) struct Multiples<const G: usize> {
    pub(super) d: f16,
    /// `d` in units of the elements.
    pub(super) unit: f32,
    pub(super) s: [i8; G],
}

/// A group's choice, its moments and its error.
#[derive(Clone, Copy, Default)]
struct Choice {
    s: f32,
    moments: Moments,
    error: f32,
}

/// What a search may try.
pub(super) struct Effort<'a> {
    /// What the largest element of a group becomes: the starts of a group's scale.
    pub(super) starts: &'a [f32],
    /// Multiples of d tried on either side.
    pub(super) around: i32,
    /// Rounds between groups and d.
    pub(super) turns: usize,
}

/// The best super-block found; multiples go from −`most` to `most` − 1.
#[inline(always)]
pub(super) fn block<const G: usize, const N: usize>(
    values: &Scaled<256>,
    level: impl Fn(f32) -> f32 + Copy,
    most: f32,
    effort: &Effort,
) -> Multiples<G> {
    let (x, w) = (values.x.as_chunks::<N>().0, values.w.as_chunks::<N>().0);
    let mut t = [Totals::default(); G];
    let mut scales = [0.0f32; G];
    let (mut above, mut below) = (0.0f32, 0.0f32);
    for g in 0..G {
        t[g] = totals(&x[g], &w[g]);
        scales[g] = scale(&x[g], &w[g], level, effort.starts, 1);
        above = above.max(scales[g]);
        below = below.max(-scales[g]);
    }
    // The sign of d with which the smaller d reaches all scales.
    let (plus, minus) = ((above / (most - 1.0)).max(below / most), (below / (most - 1.0)).max(above / most));
    let mut d = values.half_outward(if plus < minus { plus } else { -minus });
    let mut now = scales.map(|s| Choice { s: s * inverse(d.1), ..Choice::default() });
    let mut best = (f32::INFINITY, d, now);
    for turn in 0..effort.turns {
        let mut sum = 0.0;
        for g in 0..G {
            let middle = round(limit(now[g].s, -most, most - 1.0));
            now[g].error = f32::INFINITY;
            for step in -effort.around..=effort.around {
                let s = middle + step as f32;
                if s < -most || s > most - 1.0 {
                    continue;
                }
                let m = moments(&x[g], &w[g], inverse(d.1 * s), 0.0, level);
                let error = error(m, t[g], d.1 * s);
                if error < now[g].error {
                    now[g] = Choice { s, moments: m, error };
                }
            }
            sum += now[g].error;
        }
        if sum < best.0 {
            best = (sum, d, now);
        }
        if turn + 1 < effort.turns {
            let (mut ss, mut sx) = (0.0, 0.0);
            for c in &now {
                ss += c.s * c.s * c.moments.wqq;
                sx += c.s * c.moments.wqx;
            }
            d = values.half(if ss > 0.0 { sx / ss } else { d.1 });
            for c in &mut now {
                // Where the levels of the choice want the scale, with the new d.
                let wanted = c.moments.wqx * inverse(c.moments.wqq * d.1);
                c.s = if c.moments.wqq > 0.0 { wanted } else { c.s };
            }
        }
    }
    let (_, d, now) = best;
    Multiples { d: d.0, unit: d.1, s: now.map(|c| c.s as i8) }
}
