//! Ops without weights: the activation, gated or not, the residual addition, the last step of the logits.

use super::attention::cap;
use crate::cpu::gated_act::gated_act;
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, least, ratio, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::model::Activation;
use crate::plan::Op;
use crate::plan::edit::{ConfigEdit, Edit};

/// In f64.
pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// How far `values` are from `wanted`, relative to it.
pub(super) fn off(values: &[f64], wanted: &[f64]) -> f64 {
    let (gap, size) = values.iter().zip(wanted).fold((0.0, 0.0), |(gap, size), (v, w)| (gap + (v - w).powi(2), size + w * w));
    (gap / f64::max(size, f64::MIN_POSITIVE)).sqrt()
}

/// Hypotheses for the activation of `case`, gated or not.
pub fn activation<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let (act, gated) = match node.op {
        // Where up is a part of a wider row, nothing is said.
        Op::GatedAct { act, .. } if case.plan.node(node.inputs[1]).width == node.width => (act, true),
        Op::Act { act } => (act, false),
        _ => return Ok(Vec::new()),
    };
    let (Some(gate), Some(y)) = (case.input(case.id, 0)?, case.value(node.at)?) else { return Ok(Vec::new()) };
    // Without a gate, what is activated is multiplied by nothing.
    let up = if gated { case.input(case.id, 1)?.map(|up| wide(&up.data)) } else { Some(vec![1.0; gate.data.len()]) };
    let Some(up) = up else { return Ok(Vec::new()) };
    let (gate, y) = (wide(&gate.data), wide(&y.data));
    let mut found = Vec::new();
    for other in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        if other != act && off(&gated_act(other, &gate, &up), &y) < CLOSE {
            let why = format!("the reference's values are those of {other:?}, and not of {act:?}");
            found.push(Hypothesis::new(Cause::Activation, vec![Edit::Config(ConfigEdit::Activation(other))], why));
        }
    }
    if found.is_empty() && gated && off(&gated_act(act, &up, &gate), &y) < CLOSE {
        found.push(Hypothesis::shown(Cause::GateUpSwapped, "the reference activates up and multiplies by gate"));
    }
    if found.is_empty() && gated {
        found.extend(match act {
            Activation::Clamped { alpha, limit } => clamped((alpha, limit), &gate, &up, &y),
            _ => clamp(act, &gate, &up, &y),
        });
    }
    Ok(found)
}

/// Inputs that are cut off at a limit before they are used: large ones are wrong, the others right.
fn clamp(act: Activation, gate: &[f64], up: &[f64], y: &[f64]) -> Option<Hypothesis> {
    let plain = gated_act(act, gate, up);
    let is_wrong = |i: &usize| (plain[*i] - y[*i]).abs() > CLOSE * y[*i].abs().max(1e-6);
    let wrong: Vec<usize> = (0..y.len()).filter(is_wrong).collect();
    // The limit is below every element that was cut, and above every other.
    let size = |i: &usize| gate[*i].max(up[*i].abs());
    let limit = wrong.iter().map(size).fold(f64::INFINITY, f64::min);
    let right = (0..y.len()).filter(|i| !is_wrong(i)).map(|i| size(&i)).fold(0.0, f64::max);
    if wrong.is_empty() || wrong.len() * 2 > y.len() || right > limit * 1.0001 {
        return None;
    }
    let values = |limit: f64| {
        let gate: Vec<f64> = gate.iter().map(|g| g.min(limit)).collect();
        let up: Vec<f64> = up.iter().map(|u| u.clamp(-limit, limit)).collect();
        gated_act(act, &gate, &up)
    };
    let best = least(right.max(1e-3), limit, |limit| off(&values(limit), y));
    let best = [1e-2, 1e-3, 1e-4].into_iter().map(|t| snap(best, t)).find(|x| off(&values(*x), y) < CLOSE)?;
    Some(Hypothesis::shown(
        Cause::ActivationClamp,
        format!("the reference cuts gate and up off at {best}; {} elements show it", wrong.len()),
    ))
}

/// Another limit, or another factor, of an activation that cuts off.
fn clamped((alpha, limit): (f64, f64), gate: &[f64], up: &[f64], y: &[f64]) -> Option<Hypothesis> {
    let off_at = |alpha: f64, limit: f64| off(&gated_act(Activation::Clamped { alpha, limit }, gate, up), y);
    let largest = gate.iter().chain(up).fold(0.0, |most: f64, x| most.max(x.abs()));
    // As few digits as a file would have.
    let short = |x: f64, off: &dyn Fn(f64) -> f64| {
        let all = [1e-2, 1e-3, 1e-4, 1e-6].into_iter().map(|tolerance| snap(x, tolerance)).chain([x]);
        all.into_iter().find(|x| off(*x) < CLOSE)
    };
    let of_limit = |limit: f64| off_at(alpha, limit);
    let of_alpha = |alpha: f64| off_at(alpha, limit);
    let (what, new) = if of_limit(2.0 * largest) < CLOSE {
        // Any limit beyond all values is as good as another.
        (format!("cuts nothing off below {largest:.3}, and here {limit} does"), (alpha, snap(2.0 * largest, 0.3)))
    } else if let Some(new) = short(least(1e-3, largest.max(limit), of_limit), &of_limit) {
        (format!("cuts gate and up off at {new}, and not at {limit}"), (alpha, new))
    } else {
        let new = short(least(1e-2, 1e2, of_alpha), &of_alpha)?;
        (format!("has {new} within the sigmoid, and not {alpha}"), (new, limit))
    };
    let edit = Edit::Config(ConfigEdit::Activation(Activation::Clamped { alpha: new.0, limit: new.1 }));
    Some(Hypothesis::new(Cause::ActivationClamp, vec![edit], format!("the reference {what}")))
}

/// Hypotheses for the addition of `case`.
pub fn addition<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let Op::Add { multiplier } = node.op else { return Ok(Vec::new()) };
    let (Some(residual), Some(x), Some(y)) = (case.input(case.id, 0)?, case.input(case.id, 1)?, case.value(node.at)?) else {
        return Ok(Vec::new());
    };
    let added: Vec<f64> = y.data.iter().zip(&residual.data).map(|(y, r)| f64::from(*y) - f64::from(*r)).collect();
    let (factor, off) = ratio(x.data.iter().map(|x| f64::from(*x)), added.iter().copied());
    // The sum was rounded at its own size.
    let size = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let rounding = size(&wide(&y.data)) / size(&added).max(f64::MIN_POSITIVE);
    if off > CLOSE * rounding.max(1.0) {
        return Ok(Vec::new());
    }
    let factor = snap(factor, 1e-6 * rounding.max(1.0));
    let why = format!("the reference adds {factor} times the block's output, and not {multiplier} times");
    Ok(vec![Hypothesis::new(Cause::ResidualMultiplier, vec![Edit::Config(ConfigEdit::ResidualMultiplier(factor))], why)])
}

/// Hypotheses for the last step of the logits.
pub fn last<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let (Some(x), Some(y)) = (case.input(case.id, 0)?, case.value(node.at)?) else { return Ok(Vec::new()) };
    let pairs = x.data.iter().zip(&y.data).map(|(x, y)| (f64::from(*x), f64::from(*y)));
    let own = if let Op::SoftCap { cap } = node.op { Some(cap) } else { None };
    let Some(theirs) = cap(pairs).filter(|cap| *cap != own) else { return Ok(Vec::new()) };
    let text = |cap: Option<f64>| cap.map_or("no cap".to_string(), |cap| format!("a cap of {cap}"));
    let why = format!("the reference's logits have {}, and not {}", text(theirs), text(own));
    Ok(vec![Hypothesis::new(Cause::FinalSoftcap, vec![Edit::Config(ConfigEdit::FinalSoftcap(theirs))], why)])
}
