//! Gates, factors, and norms without weights: what is lost or another number where nothing is learned, or one number.

use super::elementwise::{off, wide};
use super::weight::stored_as;
use crate::cpu::gated_act::gated_act;
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, dot, ratio, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::model::Activation;
use crate::plan::edit::{ConfigEdit, Edit, Slot, weight::Change};
use crate::plan::{Op, Stage};

/// Hypotheses for rows times a sigmoid.
///
/// # Errors
/// Those of reading the reference.
pub fn sigmoid<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let at = case.node().at;
    let (Some(x), Some(gate), Some(y)) = (case.input(case.id, 0)?, case.input(case.id, 1)?, case.value(at)?) else { return Ok(Vec::new()) };
    let (width, share) = (x.width().max(1), x.data.len() / gate.data.len().max(1));
    let (x, gate, y) = (wide(&x.data), wide(&gate.data), wide(&y.data));
    let made = |by: &dyn Fn(usize) -> f64| off(&x.iter().enumerate().map(|(i, x)| x * by(i)).collect::<Vec<f64>>(), &y) < CLOSE;
    let sigmoid = |g: f64| 1.0 / (1.0 + (-g).exp());
    let of = |i: usize| gate[i / share.max(1)];
    let shown = |cause, why: &str| Ok(vec![Hypothesis::shown(cause, why)]);
    if made(&|_| 1.0) {
        return shown(Cause::MissingGate, "the reference's values are those before the gate");
    }
    if made(&of) {
        return shown(Cause::Activation, "the reference multiplies by the gate itself, and not by its sigmoid");
    }
    if made(&|i| of(i) * sigmoid(of(i))) {
        return shown(Cause::Activation, "the reference multiplies by the silu of the gate, and not by its sigmoid");
    }
    // Gates of other elements of the same row, as of heads that take turns.
    let heads = case.plan.nodes.iter().filter(|node| node.at.layer == at.layer).find_map(|node| node.op.attention()).map(|a| a.heads);
    let Some(heads) = heads.filter(|heads| share == 1 && *heads > 1 && width % heads == 0) else { return Ok(Vec::new()) };
    let head = width / heads;
    let turned = |i: usize| {
        let (row, j) = (i / width * width, i % width);
        sigmoid(gate[row + j % heads * head + j / heads])
    };
    let back = |i: usize| {
        let (row, j) = (i / width * width, i % width);
        sigmoid(gate[row + j % head * heads + j / head])
    };
    if made(&turned) || made(&back) {
        return shown(
            Cause::GateLayout,
            "the gates of the reference's elements are those of others in the row: heads and elements take turns",
        );
    }
    Ok(Vec::new())
}

/// Hypotheses for a gate on what a delta rule gives, after its norm.
///
/// # Errors
/// Those of reading the reference and the weights.
pub async fn after_norm<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let (Some(z), Some(x), Some(y)) = (case.input(case.id, 0)?, case.input(case.id, 1)?, case.value(node.at)?) else {
        return Ok(Vec::new());
    };
    let (z, x, y) = (wide(&z.data), wide(&x.data), wide(&y.data));
    if off(&x, &y) < CLOSE {
        return Ok(vec![Hypothesis::shown(Cause::MissingGate, "the reference's values are those before the gate")]);
    }
    let sigmoid: Vec<f64> = z.iter().zip(&x).map(|(z, x)| x / (1.0 + (-z).exp())).collect();
    let others = [Activation::GeluTanh, Activation::Gelu].map(|act| (format!("{act:?}"), gated_act(act, &z, &x)));
    for (name, made) in [("sigmoid".to_string(), sigmoid)].into_iter().chain(others) {
        if off(&made, &y) < CLOSE {
            return Ok(vec![Hypothesis::shown(Cause::Activation, format!("the reference's gate is {name}, and not silu"))]);
        }
    }
    let normed = case.plan.node(node.inputs[1]);
    let Op::RmsNorm { weight, offset, eps, group } = normed.op else { return Ok(Vec::new()) };
    let Some(mixed) = case.input(node.inputs[1], 0)? else { return Ok(Vec::new()) };
    let weight = wide(&case.weight(weight).await?);
    if weight.len() != group || group == 0 {
        return Ok(Vec::new());
    }
    let gated = gated_act(Activation::Silu, &z, &wide(&mixed.data));
    let made = gated.chunks_exact(group).flat_map(|row| {
        let inverse = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / group as f64 + eps).sqrt();
        row.iter().zip(&weight).map(move |(x, w)| x * inverse * (w + offset)).collect::<Vec<f64>>()
    });
    let first = off(&made.collect::<Vec<f64>>(), &y) < CLOSE;
    Ok(first
        .then(|| Hypothesis::shown(Cause::NormOrder, "the reference gates first and normalises what comes of it"))
        .into_iter()
        .collect())
}

/// Hypotheses for a norm without a weight.
///
/// # Errors
/// Those of reading the reference.
pub fn unit_norm<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let Op::UnitNorm { eps, group } = node.op else { return Ok(Vec::new()) };
    let (Some(x), Some(y)) = (case.input(case.id, 0)?, case.value(node.at)?) else { return Ok(Vec::new()) };
    let groups = || x.data.chunks_exact(group.max(1)).zip(y.data.chunks_exact(group.max(1)));
    let made = |by: &dyn Fn(f64) -> f64| {
        let all = groups().flat_map(|(x, _)| {
            let divisor = by(dot(x, x));
            x.iter().map(move |x| f64::from(*x) / divisor)
        });
        off(&all.collect::<Vec<f64>>(), &wide(&y.data))
    };
    let shown = |cause, why: String| Ok(vec![Hypothesis::shown(cause, why)]);
    if made(&|_| 1.0) < CLOSE {
        // What chooses experts is a router's.
        let cause = if node.at.stage == Stage::RouterNorm { Cause::Router } else { Cause::MissingQkNorm };
        return shown(cause, "the reference does not normalise there".into());
    }
    if made(&|squares| (squares + eps).sqrt()) < CLOSE {
        return shown(Cause::NormEps, "the reference divides by the root of the sum of squares, and not of their mean".into());
    }
    let (mut total, mut weights) = (0.0, 0.0);
    for (x, y) in groups() {
        let (squares, inverse) = (dot(x, x) / group as f64, dot(x, y) / dot(x, x));
        let (eps, weight) = (1.0 / (inverse * inverse) - squares, 1.0 / (squares * squares).max(f64::MIN_POSITIVE));
        if eps.is_finite() {
            (total, weights) = (total + weight * eps, weights + weight);
        }
    }
    let measured = total / weights;
    let all = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0].into_iter().map(|tolerance| snap(measured, tolerance));
    let found = all.into_iter().find(|eps| *eps > 0.0 && made(&|squares| (squares / group as f64 + eps).sqrt()) < CLOSE / 4.0);
    let Some(found) = found else { return Ok(Vec::new()) };
    let why = format!("the outputs are those of epsilon {found}, and not {eps}");
    // Of all norms, which the config says, or of this one alone.
    Ok(vec![
        Hypothesis::new(Cause::NormEps, vec![Edit::Config(ConfigEdit::NormEps(found))], why.clone()),
        Hypothesis::shown(Cause::NormEps, why).rank(4),
    ])
}

/// Hypotheses for a factor, and a learned number or vector.
///
/// # Errors
/// Those of reading the reference and the weights.
pub async fn scale<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let Op::Scale { factor, weight } = node.op else { return Ok(Vec::new()) };
    let (Some(x), Some(y)) = (case.input(case.id, 0)?, case.value(node.at)?) else { return Ok(Vec::new()) };
    let width = x.width().max(1);
    let (x, y) = (wide(&x.data), wide(&y.data));
    let (measured, apart) = ratio(x.iter().copied(), y.iter().copied());
    let is_even = apart < CLOSE;
    // Without its number, an op that multiplies by it is not there.
    let lost = is_even && (measured - 1.0).abs() < CLOSE;
    let cause = match node.at.stage {
        Stage::RouterIn => Cause::Router,
        Stage::PleInputs => Cause::EmbedScale,
        _ => Cause::ResidualMultiplier,
    };
    let Some(id) = weight else {
        let other = is_even && (measured - factor).abs() > CLOSE * factor.abs();
        let text = if lost { "not multiplied".to_string() } else { format!("multiplied by {}", snap(measured, 1e-6)) };
        return Ok(other
            .then(|| Hypothesis::shown(cause, format!("the reference's values are {text}, and here they are by {factor}")))
            .into_iter()
            .collect());
    };
    let (slot, stored) = (Slot::of(case.plan, id), case.weight(id).await?);
    // Of fewer rows a number for each column explains whatever there is.
    if stored.len() > 1 && x.len() / width < 3 {
        return Ok(Vec::new());
    }
    let theirs = |columns: usize| -> Option<Vec<f64>> {
        (0..columns)
            .map(|i| {
                let (x, y) = (x.iter().skip(i).step_by(columns).copied(), y.iter().skip(i).step_by(columns).copied());
                let (of, apart) = ratio(x, y);
                (apart < 4.0 * CLOSE).then_some(of / factor)
            })
            .collect()
    };
    let Some(right) = theirs(if stored.len() == 1 { 1 } else { width }).filter(|right| right.len() == stored.len()) else {
        return Ok(Vec::new());
    };
    if lost || right.iter().all(|w| (w - 1.0).abs() < CLOSE) {
        return Ok(vec![Hypothesis::shown(cause, "the reference's values are not multiplied by the learned numbers")]);
    }
    let size = right.iter().map(|w| w.abs()).fold(0.0, f64::max).max(1e-6);
    let differing = |stored: &[f32]| -> Vec<usize> {
        (0..right.len()).filter(|i| (f64::from(stored[*i]) - right[*i]).abs() > 8.0 * CLOSE * right[*i].abs().max(0.01 * size)).collect()
    };
    let mut found = Vec::new();
    for other in case.alike(id) {
        if differing(&case.weight(other).await?).is_empty() {
            let other = Slot::of(case.plan, other);
            let cause = if other.role == slot.role { Cause::SwappedLayers } else { Cause::SwappedTensors };
            let edits = vec![Edit::Weight(slot, Change::From(other)), Edit::Weight(other, Change::From(slot))];
            found.push(Hypothesis::of_weight(cause, slot, edits, format!("the numbers that are meant lie under {}", super::label(other))));
        }
    }
    let off = differing(&stored);
    // A number that stands elsewhere too may stand there by chance.
    if !off.is_empty() {
        let elements = off.iter().map(|i| (*i, stored_as(right[*i], CLOSE * right[*i].abs()))).collect();
        let why = format!("{} of {} learned numbers are others in the reference", off.len(), right.len());
        found.push(Hypothesis::of_weight(Cause::CorruptWeight, slot, vec![Edit::Weight(slot, Change::Elements(elements))], why).rank(3));
    }
    Ok(found)
}
