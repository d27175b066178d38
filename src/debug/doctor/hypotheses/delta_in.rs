//! What a delta rule takes of a token: keys that are not as long as 1, rates, decays, each by itself.

use super::elementwise::{off, wide};
use super::label;
use super::weight::stored_as;
use crate::cpu::delta_in::delta_in;
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, dot, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::model::DeltaHeads;
use crate::plan::edit::{Edit, Slot, weight::Change};
use crate::plan::{Op, WeightId};
use std::ops::Range;

/// The op with what the reference has of it.
struct Taken {
    heads: DeltaHeads,
    eps: f64,
    /// Weights of decays and of steps, and their numbers, `[value heads]`.
    weights: [WeightId; 2],
    stored: [Vec<f32>; 2],
    /// Keys of all tokens, a head after the other, [T · heads, key width].
    keys: Vec<f32>,
    /// [T, value heads].
    b: Vec<f64>,
    a: Vec<f64>,
    /// What the reference has: unit keys, rates, decays.
    units: Vec<f32>,
    rates: Vec<f64>,
    decays: Vec<f64>,
    /// Which of these three differ.
    wrong: [bool; 3],
}

impl Taken {
    async fn read<S: WeightSource>(case: &Case<'_, S>) -> Result<Option<Self>> {
        let node = case.node();
        let Op::DeltaIn { heads, decay, step, eps } = node.op else { return Ok(None) };
        let inputs = [case.input(case.id, 0)?, case.input(case.id, 1)?, case.input(case.id, 2)?];
        let ([Some(rows), Some(b), Some(a)], Some(y)) = (inputs, case.value(node.at)?) else { return Ok(None) };
        let stored = [case.weight(decay).await?, case.weight(step).await?];
        let (keys, values) = (heads.key_width(), heads.value_width());
        let part = |data: &[f32], width: usize, range: Range<usize>| -> Vec<f32> {
            data.chunks_exact(width.max(1)).flat_map(|row| row[range.clone()].to_vec()).collect()
        };
        let (first, last) = (keys + values, keys + values + heads.values);
        let parts = [0..keys, first..last, last..heads.taken()];
        let [d, s] = [wide(&stored[0]), wide(&stored[1])];
        let (b, a) = (wide(&b.data), wide(&a.data));
        let own = delta_in(&heads, &wide(&rows.data), [&b, &a], [&d, &s], eps);
        let own: Vec<f32> = own.into_iter().map(|x| x as f32).collect();
        let of = |data: &[f32]| parts.clone().map(|range| part(data, heads.taken(), range));
        let (own, theirs) = (of(&own), of(&y.data));
        let wrong = [0, 1, 2].map(|i| off(&wide(&own[i]), &wide(&theirs[i])) >= CLOSE);
        let [units, rates, decays] = theirs;
        let keys = part(&rows.data, heads.width(), keys..2 * keys);
        let (rates, decays) = (wide(&rates), wide(&decays));
        Ok(Some(Self { heads, eps, weights: [decay, step], stored, keys, b, a, units, rates, decays, wrong }))
    }
    /// Keys under another divisor, made of their squares' sum.
    fn divided(&self, by: impl Fn(f64) -> f64) -> f64 {
        let head = self.heads.key_dim.max(1);
        let made = self.keys.chunks_exact(head).flat_map(|k| {
            let divisor = by(dot(k, k));
            k.iter().map(move |x| f64::from(*x) / divisor).collect::<Vec<f64>>()
        });
        off(&made.collect::<Vec<f64>>(), &wide(&self.units))
    }
    /// The epsilon with which keys are those of the reference.
    fn eps_of_keys(&self) -> Option<f64> {
        let head = self.heads.key_dim.max(1);
        let (mut total, mut weights) = (0.0, 0.0);
        for (k, y) in self.keys.chunks_exact(head).zip(self.units.chunks_exact(head)) {
            let (squares, inverse) = (dot(k, k), dot(k, y) / dot(k, k));
            let eps = 1.0 / (inverse * inverse) - squares;
            // A short key says more.
            let weight = 1.0 / (squares * squares).max(f64::MIN_POSITIVE);
            if eps.is_finite() {
                (total, weights) = (total + weight * eps, weights + weight);
            }
        }
        let eps = total / weights;
        let tolerances = [1e-2, 1e-3, 1e-4, 1e-6, 0.0].into_iter().map(|tolerance| snap(eps, tolerance));
        tolerances.into_iter().find(|eps| *eps > 0.0 && self.divided(|squares| (squares + eps).sqrt()) < CLOSE)
    }
    /// How far decays `y(head, a)` are from the reference's.
    fn decayed(&self, y: impl Fn(usize, f64) -> f64) -> f64 {
        let values = self.heads.values.max(1);
        let made: Vec<f64> = self.a.iter().enumerate().map(|(i, a)| y(i % values, *a)).collect();
        off(&made, &self.decays)
    }
    /// By value head, a number of each token that should be the same for all; `None` for heads where it is not.
    fn constant(&self, of: impl Fn(usize, f64, f64) -> f64) -> Vec<Option<f64>> {
        let values = self.heads.values.max(1);
        let head = |head: usize| {
            let all: Vec<f64> = self
                .a
                .iter()
                .zip(&self.decays)
                .skip(head)
                .step_by(values)
                .map(|(a, y)| of(head, *a, *y))
                .filter(|x| x.is_finite())
                .collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            // Relative to 1: both numbers are exponents.
            (all.len() > 2 && all.iter().all(|x| (x - mean).abs() < 2.0 * CLOSE * mean.abs().max(1.0))).then_some(mean)
        };
        (0..values).map(head).collect()
    }
}

/// ln(1 + e^x).
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Hypotheses for what the delta rule of `case` takes of tokens.
///
/// # Errors
/// Those of reading the reference and the weights.
pub async fn hypotheses<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let Some(taken) = Taken::read(case).await? else { return Ok(Vec::new()) };
    match taken.wrong {
        [true, false, false] => Ok(keys(&taken).into_iter().collect()),
        [false, true, false] => Ok(rates(&taken).into_iter().collect()),
        [false, false, true] => decays(case, &taken).await,
        _ => Ok(Vec::new()),
    }
}

fn keys(of: &Taken) -> Option<Hypothesis> {
    let (width, eps) = (of.heads.key_dim as f64, of.eps);
    if of.divided(|_| 1.0) < CLOSE {
        return Some(Hypothesis::shown(Cause::MissingQkNorm, "the reference takes keys as they are, and does not make them as long as 1"));
    }
    if of.divided(|squares| (squares / width + eps).sqrt()) < CLOSE {
        let why = "the reference divides keys by the root of the mean of their squares, and not of the sum";
        return Some(Hypothesis::shown(Cause::DeltaRule, why));
    }
    let found = of.eps_of_keys()?;
    Some(Hypothesis::shown(Cause::NormEps, format!("{found} is added to the sum of a key's squares, and not {eps}")))
}

/// What is made of the projection that rates come from.
type Rate = fn(f64) -> f64;

fn rates(of: &Taken) -> Option<Hypothesis> {
    let made = |by: Rate| off(&of.b.iter().map(|b| by(*b)).collect::<Vec<f64>>(), &of.rates);
    let ways: [(Rate, &str); 4] = [
        (|b| b, "are the projection itself, and not its sigmoid"),
        (|b| 2.0 / (1.0 + (-b).exp()), "are twice the sigmoid of the projection"),
        (|_| 1.0, "are 1"),
        (|b| b.tanh(), "are the hyperbolic tangent of the projection, and not its sigmoid"),
    ];
    let (_, text) = ways.into_iter().find(|(by, _)| made(*by) < CLOSE)?;
    Some(Hypothesis::shown(Cause::DeltaRule, format!("the reference's rates {text}")))
}

async fn decays<S: WeightSource>(case: &Case<'_, S>, of: &Taken) -> Result<Vec<Hypothesis>> {
    let [d, s] = [wide(&of.stored[0]), wide(&of.stored[1])];
    let slots = of.weights.map(|id| Slot::of(case.plan, id));
    let shown = |cause, why: &str| Ok(vec![Hypothesis::shown(cause, why)]);
    if of.decays.iter().all(|y| *y == 0.0) {
        return shown(Cause::DeltaRule, "the reference's matrices do not decay");
    }
    if of.decayed(|h, a| d[h].exp() * softplus(a + s[h])) < CLOSE {
        return shown(Cause::DeltaRule, "the reference's decays have the other sign");
    }
    if of.decayed(|h, a| -d[h].exp() * (a + s[h])) < CLOSE {
        return shown(Cause::DeltaRule, "the reference's decays are those of the step itself, without softplus");
    }
    // Numbers that are stored as something else than a logarithm.
    for (sign, text) in [(-1.0, "e^d, and not as its logarithm d"), (1.0, "−e^d, and not as d")] {
        if of.decayed(|h, a| sign * d[h] * softplus(a + s[h])) < CLOSE {
            let elements: Vec<(usize, f32)> = d.iter().enumerate().map(|(h, x)| (h, (-sign * x).ln() as f32)).collect();
            let why = format!("the decays are those of numbers that are stored as {text}");
            let sound = elements.iter().all(|(_, x)| x.is_finite());
            let edit = Edit::Weight(slots[0], Change::Elements(elements));
            let found = Hypothesis::of_weight(Cause::DeltaRule, slots[0], vec![edit], why.clone());
            return Ok(vec![if sound { found } else { Hypothesis::shown(Cause::DeltaRule, why) }]);
        }
    }
    if of.decayed(|h, a| -s[h].exp() * softplus(a + d[h])) < CLOSE {
        let edits = vec![Edit::Weight(slots[0], Change::From(slots[1])), Edit::Weight(slots[1], Change::From(slots[0]))];
        return Ok(vec![Hypothesis::of_weight(Cause::SwappedTensors, slots[0], edits, "decays and steps lie under each other's names")]);
    }
    if s.iter().any(|s| *s != 0.0) && of.decayed(|h, a| -d[h].exp() * softplus(a)) < CLOSE {
        return shown(Cause::MissingBias, "the reference adds no step to what decays are made of");
    }
    let logs = of.constant(|h, a, y| (-y).ln() - softplus(a + s[h]).ln());
    let steps = of.constant(|h, a, y| (-y / d[h].exp()).exp_m1().ln() - a);
    let mut found = Vec::new();
    for (i, measured) in [logs, steps].into_iter().enumerate() {
        let Some(measured) = measured.into_iter().collect::<Option<Vec<f64>>>() else { continue };
        found.extend(numbers(case, of, i, slots[i], &measured).await?);
    }
    Ok(found)
}

/// Weight number `i` with the numbers that the reference's decays show.
async fn numbers<S: WeightSource>(case: &Case<'_, S>, of: &Taken, i: usize, slot: Slot, measured: &[f64]) -> Result<Vec<Hypothesis>> {
    let differs = |stored: &[f32]| -> Vec<usize> {
        (0..measured.len()).filter(|h| (f64::from(stored[*h]) - measured[*h]).abs() > 8.0 * CLOSE * measured[*h].abs().max(1.0)).collect()
    };
    let off = differs(&of.stored[i]);
    let mut found = Vec::new();
    for other in case.alike(of.weights[i]) {
        if off.is_empty() || !differs(&case.weight(other).await?).is_empty() {
            continue;
        }
        let other = Slot::of(case.plan, other);
        let cause = if other.role == slot.role { Cause::SwappedLayers } else { Cause::SwappedTensors };
        let edits = vec![Edit::Weight(slot, Change::From(other)), Edit::Weight(other, Change::From(slot))];
        found.push(Hypothesis::of_weight(cause, slot, edits, format!("the numbers that are meant lie under {}", label(other))));
    }
    if !off.is_empty() {
        let elements = off.iter().map(|h| (*h, stored_as(measured[*h], CLOSE * measured[*h].abs().max(1.0)))).collect();
        let absent = i == 1 && of.stored[1].iter().all(|s| *s == 0.0);
        let (cause, what) =
            if absent { (Cause::MissingBias, "steps, which are 0 in the file,") } else { (Cause::CorruptWeight, "numbers") };
        let why = format!("the {what} of value heads {off:?} are others in the reference");
        found.push(Hypothesis::of_weight(cause, slot, vec![Edit::Weight(slot, Change::Elements(elements))], why).rank(3));
    }
    Ok(found)
}
