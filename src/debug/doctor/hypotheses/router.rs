//! Routers: another score function, other weights of the same choice, another number of experts.

use super::weight::stored_as;
use crate::cpu::router_weights::router_weights;
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, ratio, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::model::{Router, RouterScore};
use crate::plan::edit::{ConfigEdit, Edit, Slot, weight::Change};
use crate::plan::{Op, WeightId};

/// Hypotheses for the weights of the experts of `case`.
///
/// # Errors
/// Those of reading the reference and the weights.
pub async fn hypotheses<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let Op::RouterWeights { router, choice, scales } = node.op else { return Ok(Vec::new()) };
    let (Some(logits), Some(y)) = (case.input(case.id, 0)?, case.value(node.at)?) else { return Ok(Vec::new()) };
    // What the bias of the choice holds is a question of weights.
    if choice.is_some() {
        return Ok(Vec::new());
    }
    let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let (logits, y) = (wide(&logits.data), wide(&y.data));
    let own_numbers = match scales {
        Some(id) => wide(&case.weight(id).await?),
        None => Vec::new(),
    };
    let per_token = y.chunks_exact(router.experts.max(1)).map(|row| row.iter().filter(|w| **w != 0.0).count()).max().unwrap_or(0);
    let scores = [RouterScore::Softmax, RouterScore::SoftmaxOfChosen, RouterScore::Sigmoid];
    let divided = [router.renormalise, None, Some(0.0)];
    let others = scores.into_iter().flat_map(|score| divided.map(|renormalise| Router { score, renormalise, ..router }));
    for other in others.map(|other| Router { chosen: per_token.clamp(1, router.experts), ..other }) {
        let plain = router_weights(&Router { scaling: 1.0, ..other }, &logits, None);
        let made = plain.iter().enumerate().map(|(i, w)| w * own_numbers.get(i % router.experts.max(1)).unwrap_or(&1.0));
        let (factor, off) = ratio(made, y.iter().copied());
        let other = Router { scaling: snap(factor, 1e-6), ..other };
        if off < CLOSE && other != router {
            let why = format!("the reference's weights are those of {}, and not of {}", words(&other), words(&router));
            return Ok(vec![Hypothesis::new(Cause::Router, vec![Edit::Config(ConfigEdit::Router(other))], why)]);
        }
    }
    if let Some(id) = scales {
        return scaled(case, &router, id, [&logits, &y]).await;
    }
    let plain: Vec<f64> = logits.iter().zip(&y).map(|(logit, y)| if *y == 0.0 { 0.0 } else { *logit }).collect();
    // Two numbers are some factor of any two.
    let enough = plain.iter().filter(|x| **x != 0.0).count() > 2;
    if enough && ratio(plain.iter().copied(), y.iter().copied()).1 < CLOSE {
        return Ok(vec![Hypothesis::shown(
            Cause::Router,
            "the reference's weights are the logits of the chosen, which no function made scores of",
        )]);
    }
    Ok(Vec::new())
}

/// Experts with a number each: other numbers, or none.
async fn scaled<S: WeightSource>(case: &Case<'_, S>, router: &Router, id: WeightId, [logits, y]: [&[f64]; 2]) -> Result<Vec<Hypothesis>> {
    let own = router_weights(router, logits, None);
    if ratio(own.iter().copied(), y.iter().copied()).1 < CLOSE {
        return Ok(vec![Hypothesis::shown(Cause::Router, "the reference's weights are not multiplied by each expert's own number")]);
    }
    let (slot, stored) = (Slot::of(case.plan, id), case.weight(id).await?);
    let of = |values: &[f64], expert: usize| values.iter().skip(expert).step_by(router.experts.max(1)).copied().collect::<Vec<f64>>();
    let mut elements = Vec::new();
    for (expert, stored) in stored.iter().enumerate() {
        let (own, y) = (of(&own, expert), of(y, expert));
        // Of an expert that no token chose nothing is known.
        let chosen_by = y.iter().filter(|y| **y != 0.0).count();
        if chosen_by == 0 {
            continue;
        }
        let (right, off) = ratio(own.into_iter(), y.into_iter());
        if off > CLOSE {
            return Ok(Vec::new());
        }
        if (right - f64::from(*stored)).abs() > 4.0 * CLOSE * right.abs() {
            // One weight alone is explained by any number.
            if chosen_by < 2 {
                return Ok(Vec::new());
            }
            elements.push((expert, stored_as(right, CLOSE * right.abs())));
        }
    }
    let why = format!("the numbers of {} experts are others in the reference", elements.len());
    let edits = vec![Edit::Weight(slot, Change::Elements(elements.clone()))];
    Ok((!elements.is_empty()).then(|| Hypothesis::of_weight(Cause::CorruptWeight, slot, edits, why).rank(3)).into_iter().collect())
}

/// A router's numbers that are tried.
fn words(router: &Router) -> String {
    let score = match router.score {
        RouterScore::Softmax => "a softmax over all",
        RouterScore::SoftmaxOfChosen => "a softmax over the chosen",
        RouterScore::Sigmoid => "sigmoids",
    };
    let divided = if router.renormalise.is_some() { ", divided by their sum" } else { "" };
    let scaled = if router.scaling == 1.0 { String::new() } else { format!(", times {}", router.scaling) };
    format!("{score}, {} of {}{divided}{scaled}", router.chosen, router.experts)
}
