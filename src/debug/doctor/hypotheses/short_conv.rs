//! Convolutions: another activation, taps in another order, other taps, inputs before the first token.

use super::elementwise::{off, wide};
use super::label;
use super::weight::stored_as;
use crate::cpu::{act::act, short_conv::short_conv};
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::CLOSE;
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::model::Activation;
use crate::plan::edit::{ConfigEdit, Edit, Slot, weight::Change};
use crate::plan::{ConvEnding, Op};

/// Steps of a fit; three are enough from taps that are near.
const STEPS: usize = 60;

/// A convolution with what the reference has of it.
struct Convolution {
    taps: usize,
    channels: usize,
    ending: ConvEnding,
    /// What it reads, [T, channels], and rows that a gate stands in.
    x: Vec<f64>,
    rows: Vec<f64>,
    /// [channels · taps].
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
    /// [T, channels].
    wanted: Vec<f64>,
}

impl Convolution {
    fn tokens(&self) -> usize {
        self.x.len() / self.channels.max(1)
    }
    fn ended(&self, mut y: Vec<f64>, ending: ConvEnding) -> Vec<f64> {
        match ending {
            ConvEnding::Gate(first) => crate::cpu::short_conv::gate(&mut y, self.channels, &self.rows, first),
            ConvEnding::Act(activation) => y = act(activation, &y),
        }
        y
    }
    /// With these weights and this ending.
    fn off(&self, weight: &[f64], ending: ConvEnding) -> f64 {
        let y = short_conv(&self.x, (weight, self.taps), self.bias.as_deref(), self.tokens(), 0);
        off(&self.ended(y, ending), &self.wanted)
    }
    /// The input of tap `j` at token `t`, of channel `c`; `before` the first token.
    fn input(&self, c: usize, t: usize, j: usize, before: f64) -> f64 {
        (t + j + 1).checked_sub(self.taps).map_or(before, |at| self.x[at * self.channels + c])
    }
    /// What channel `c` gives at token `t` of `sum`.
    fn of_sum(&self, c: usize, t: usize, sum: f64) -> f64 {
        match self.ending {
            ConvEnding::Gate(first) => sum * self.rows[t * (self.rows.len() / self.tokens()) + first + c],
            ConvEnding::Act(activation) => act(activation, &[sum])[0],
        }
    }
    /// Numbers `x` from `start` on with which `made(t, x)` is what the reference has of channel `c` over `tokens`, by Newton's steps
    /// on the squares; `None` where they end elsewhere.
    fn fitted(&self, c: usize, tokens: std::ops::Range<usize>, start: Vec<f64>, made: impl Fn(usize, &[f64]) -> f64) -> Option<Vec<f64>> {
        let n = start.len();
        let wanted = |t: usize| self.wanted[t * self.channels + c];
        let error = |x: &[f64]| tokens.clone().map(|t| (made(t, x) - wanted(t)).powi(2)).sum::<f64>();
        let (mut x, mut damping) = (start, 1e-6);
        for _ in 0..STEPS {
            let mut system = vec![vec![0.0; n + 1]; n];
            for t in tokens.clone() {
                let y = made(t, &x);
                let slope = |i: usize| {
                    let step = 1e-6 * x[i].abs().max(1e-2);
                    let mut moved = x.clone();
                    moved[i] += step;
                    (made(t, &moved) - y) / step
                };
                let slopes: Vec<f64> = (0..n).map(slope).collect();
                for i in 0..n {
                    (0..n).for_each(|j| system[i][j] += slopes[i] * slopes[j]);
                    system[i][n] += slopes[i] * (wanted(t) - y);
                }
            }
            (0..n).for_each(|i| system[i][i] *= 1.0 + damping);
            let step = solved(system)?;
            let next: Vec<f64> = x.iter().zip(&step).map(|(x, s)| x + s).collect();
            if error(&next) < error(&x) {
                (x, damping) = (next, damping * 0.3);
            } else {
                damping = (damping * 10.0).max(1e-9);
            }
        }
        let size: f64 = tokens.clone().map(|t| wanted(t).powi(2)).sum();
        (error(&x) <= (0.2 * CLOSE).powi(2) * size.max(f64::MIN_POSITIVE)).then_some(x)
    }
    /// Channels that are wrong.
    fn wrong(&self) -> Vec<usize> {
        let y = short_conv(&self.x, (&self.weight, self.taps), self.bias.as_deref(), self.tokens(), 0);
        let y = self.ended(y, self.ending);
        let of = |values: &[f64], c: usize| -> Vec<f64> { values.iter().skip(c).step_by(self.channels).copied().collect() };
        (0..self.channels).filter(|c| off(&of(&y, *c), &of(&self.wanted, *c)) > CLOSE).collect()
    }
}

/// Solves equations, each with its right side last.
fn solved(mut rows: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let n = rows.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|a, b| rows[*a][i].abs().total_cmp(&rows[*b][i].abs()))?;
        rows.swap(i, pivot);
        if rows[i][i] == 0.0 || !rows[i][i].is_finite() {
            return None;
        }
        for k in 0..n {
            let factor = if k == i { 0.0 } else { rows[k][i] / rows[i][i] };
            (0..=n).for_each(|j| rows[k][j] -= factor * rows[i][j]);
        }
    }
    Some((0..n).map(|i| rows[i][n] / rows[i][i]).collect())
}

/// Hypotheses for the convolution of `case`.
///
/// # Errors
/// Those of reading the reference and the weights.
pub async fn hypotheses<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let Op::ShortConv { weight, bias, taps, ending, .. } = node.op else { return Ok(Vec::new()) };
    let (Some(rows), Some(x), Some(y)) = (case.input(case.id, 0)?, case.input(case.id, 1)?, case.value(node.at)?) else {
        return Ok(Vec::new());
    };
    let bias = match bias {
        Some(bias) => Some(wide(&case.weight(bias).await?)),
        None => None,
    };
    let stored = case.weight(weight).await?;
    let (x, rows, wanted) = (wide(&x.data), wide(&rows.data), wide(&y.data));
    let of = Convolution { taps, channels: node.width, ending, x, rows, weight: wide(&stored), bias, wanted };
    if of.x.len() != of.wanted.len() || of.tokens() <= taps || stored.len() != taps * node.width {
        return Ok(Vec::new());
    }
    let slot = Slot::of(case.plan, weight);
    if let ConvEnding::Act(own) = ending {
        for other in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            if other != own && of.off(&of.weight, ConvEnding::Act(other)) < CLOSE {
                let why = format!("the reference's values are those of {other:?}, and not of {own:?}");
                return Ok(vec![Hypothesis::new(Cause::Activation, vec![Edit::Config(ConfigEdit::Activation(other))], why)]);
            }
        }
    }
    let reversed: Vec<f32> = stored.chunks_exact(taps).flat_map(|taps| taps.iter().rev().copied().collect::<Vec<f32>>()).collect();
    if of.off(&wide(&reversed), ending) < CLOSE {
        let elements = reversed.into_iter().enumerate().collect();
        let edit = Edit::Weight(slot, Change::Elements(elements));
        return Ok(vec![Hypothesis::of_weight(
            Cause::CorruptWeight,
            slot,
            vec![edit],
            "the taps of each channel are in the reverse order",
        )]);
    }
    let mut found = Vec::new();
    for other in case.alike(weight) {
        if of.off(&wide(&case.weight(other).await?), ending) < CLOSE {
            let other = Slot::of(case.plan, other);
            let cause = if other.role == slot.role { Cause::SwappedLayers } else { Cause::SwappedTensors };
            let edits = vec![Edit::Weight(slot, Change::From(other)), Edit::Weight(other, Change::From(slot))];
            found.push(Hypothesis::of_weight(cause, slot, edits, format!("the taps that are meant lie under {}", label(other))));
        }
    }
    if found.is_empty() {
        let wrong = of.wrong();
        found.extend(before(&of, &wrong));
        if found.is_empty() {
            found.extend(other_taps(&of, &stored, &wrong, slot));
        }
    }
    Ok(found)
}

/// Only the first tokens are wrong: those for which the convolution reaches before the sequence, and an input there explains them.
fn before(of: &Convolution, wrong: &[usize]) -> Option<Hypothesis> {
    let own = |c: usize, t: usize, before: f64| {
        let sum = (0..of.taps).map(|j| of.weight[c * of.taps + j] * of.input(c, t, j, before)).sum::<f64>();
        of.of_sum(c, t, sum + of.bias.as_ref().map_or(0.0, |bias| bias[c]))
    };
    let late = |c: &usize| {
        let gap: f64 = (of.taps - 1..of.tokens()).map(|t| (own(*c, t, 0.0) - of.wanted[t * of.channels + c]).powi(2)).sum();
        gap <= CLOSE * CLOSE * (of.taps - 1..of.tokens()).map(|t| of.wanted[t * of.channels + c].powi(2)).sum::<f64>()
    };
    let fits = |c: &usize| of.fitted(*c, 0..of.taps - 1, vec![0.1], |t, x| own(*c, t, x[0])).is_some();
    let all = !wrong.is_empty() && wrong.iter().all(late) && of.taps > 2;
    // A fit that ends elsewhere in a few channels says nothing against the others.
    let explained = all && wrong.iter().filter(|c| fits(c)).count() * 4 >= wrong.len() * 3;
    let why =
        format!("only the first {} tokens are wrong, and the same input before the first one explains them: padding is read", of.taps - 1);
    explained.then(|| Hypothesis::shown(Cause::AttentionMask, why))
}

/// Other taps of the channels that are wrong, each channel by itself.
fn other_taps(of: &Convolution, stored: &[f32], wrong: &[usize], slot: Slot) -> Option<Hypothesis> {
    let mut elements = Vec::new();
    for c in wrong {
        let start = of.weight[c * of.taps..][..of.taps].to_vec();
        let bias = of.bias.as_ref().map_or(0.0, |bias| bias[*c]);
        let made =
            |t: usize, w: &[f64]| of.of_sum(*c, t, bias + w.iter().enumerate().map(|(j, w)| w * of.input(*c, t, j, 0.0)).sum::<f64>());
        // From the taps as they are, and from small ones, as the squares have more than one lowest place.
        let small = start.iter().map(|w| 0.1 * w).collect();
        let fitted = [start, small].into_iter().find_map(|start| of.fitted(*c, 0..of.tokens(), start, made))?;
        let size = fitted.iter().map(|w| w.abs()).fold(0.0, f64::max);
        for (j, w) in fitted.into_iter().enumerate() {
            let at = c * of.taps + j;
            if (w - f64::from(stored[at])).abs() > 4.0 * CLOSE * size {
                elements.push((at, stored_as(w, CLOSE * size)));
            }
        }
    }
    let why = format!("{} of {} channels have other taps in the reference", wrong.len(), of.channels);
    let edits = vec![Edit::Weight(slot, Change::Elements(elements.clone()))];
    (!elements.is_empty()).then(|| Hypothesis::of_weight(Cause::CorruptWeight, slot, edits, why).rank(3))
}
