//! Routers: another score function, other weights of the same choice, another number of experts.

use crate::cpu::router_weights::router_weights;
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, ratio, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::model::{Router, RouterScore};
use crate::plan::Op;
use crate::plan::edit::{ConfigEdit, Edit};

/// Hypotheses for the weights of the experts of `case`.
pub fn hypotheses<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let Op::RouterWeights { router, choice, scales } = node.op else { return Ok(Vec::new()) };
    let (Some(logits), Some(y)) = (case.input(case.id, 0)?, case.value(node.at)?) else { return Ok(Vec::new()) };
    // What the bias of the choice and the experts' numbers hold is a question of weights.
    if choice.is_some() || scales.is_some() {
        return Ok(Vec::new());
    }
    let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let (logits, y) = (wide(&logits.data), wide(&y.data));
    let per_token = y.chunks_exact(router.experts.max(1)).map(|row| row.iter().filter(|w| **w != 0.0).count()).max().unwrap_or(0);
    let scores = [RouterScore::Softmax, RouterScore::SoftmaxOfChosen, RouterScore::Sigmoid];
    let divided = [router.renormalise, None, Some(0.0)];
    let others = scores.into_iter().flat_map(|score| divided.map(|renormalise| Router { score, renormalise, ..router }));
    for other in others.map(|other| Router { chosen: per_token.clamp(1, router.experts), ..other }) {
        let (factor, off) = ratio(router_weights(&Router { scaling: 1.0, ..other }, &logits, None).into_iter(), y.iter().copied());
        let other = Router { scaling: snap(factor, 1e-6), ..other };
        if off < CLOSE && other != router {
            let why = format!("the reference's weights are those of {}, and not of {}", words(&other), words(&router));
            return Ok(vec![Hypothesis::new(Cause::Router, vec![Edit::Config(ConfigEdit::Router(other))], why)]);
        }
    }
    Ok(Vec::new())
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
