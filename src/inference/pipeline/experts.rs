//! The feed-forward block of experts: a router's choice, the chosen experts' gated blocks, their weighted sum, and what every token
//! goes through in addition.

use super::attention::linear;
use super::{ffn, norm};
use crate::model::{DenseConfig, ExpertsConfig, Norm, SharedExpert, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// Adds the block reading `x` [T, hidden]; returns `ffn_out` [T, hidden].
pub fn experts(b: &mut Builder, config: &ExpertsConfig, hidden: usize, x: ValueId) -> ValueId {
    let mixed = mixed(b, config, hidden, (x, x), if config.shared.is_some() { Stage::ExpertsOut } else { Stage::FfnOut });
    match &config.shared {
        None => mixed,
        Some(of) => {
            let shared = shared(b, config, of, hidden, x);
            b.push(Stage::FfnOut, Op::Add { multiplier: 1.0 }, &[mixed, shared], hidden)
        }
    }
}

/// Adds experts and a dense block that read the stream `x` [T, hidden], the latter as `ffn_in`; returns `ffn_out` [T, hidden].
pub fn beside(
    b: &mut Builder,
    norms: &Norm,
    (dense, experts): (&DenseConfig, &ExpertsConfig),
    hidden: usize,
    (x, ffn_in): (ValueId, ValueId),
) -> ValueId {
    let routed = norm::unit(b, norms, Stage::RouterNorm, x, hidden);
    let weight = b.weight(WeightRole::RouterIn, false, &[hidden]);
    let factor = (1.0 / hidden as f64).sqrt();
    let routed = b.push(Stage::RouterIn, Op::Scale { factor, weight: Some(weight) }, &[routed], hidden);
    let read = norm::norm(b, norms, WeightRole::ExpertsIn, Stage::ExpertsIn, x);
    let mixed = mixed(b, experts, hidden, (routed, read), Stage::ExpertsOut);
    let mixed = norm::norm(b, norms, WeightRole::ExpertsNorm, Stage::ExpertsNorm, mixed);
    let dense = ffn::dense(b, dense, hidden, ffn_in, Stage::DenseOut);
    let dense = norm::norm(b, norms, WeightRole::DenseNorm, Stage::DenseNorm, dense);
    b.push(Stage::FfnOut, Op::Add { multiplier: 1.0 }, &[mixed, dense], hidden)
}

/// Adds a router that reads `routed`, experts that read `x`, and the weighted sum, as `stage`.
fn mixed(b: &mut Builder, config: &ExpertsConfig, hidden: usize, (routed, x): (ValueId, ValueId), stage: Stage) -> ValueId {
    let (router, inner) = (config.router, config.intermediate_size);
    let (experts, chosen) = (router.experts, router.chosen);
    let logits = linear(b, WeightRole::Router, Stage::RouterLogits, routed, experts, config.router_bias);
    let choice = router.choice_bias.then(|| b.weight(WeightRole::RouterChoice, true, &[experts]));
    let scales = router.scales.then(|| b.weight(WeightRole::RouterScales, false, &[experts]));
    let weights = b.push(Stage::RouterWeights, Op::RouterWeights { router, choice, scales }, &[logits], experts);
    let numbers = b.push(Stage::ChosenExperts, Op::ChosenExperts, &[weights], chosen);

    // One matrix [rows, columns] for each expert.
    let product = |b: &mut Builder, role, stage, x, rows: usize, columns| {
        let weight = b.expert_weight(role, false, experts, &[rows, columns]);
        let bias = config.bias.then(|| b.expert_weight(role, true, experts, &[rows]));
        b.push(stage, Op::ExpertLinear { weight, bias, experts, chosen }, &[x, numbers], chosen * rows)
    };
    let gate = product(b, WeightRole::ExpertGate, Stage::ExpertGate, x, inner, hidden);
    let up = product(b, WeightRole::ExpertUp, Stage::ExpertUp, x, inner, hidden);
    let act = b.push(Stage::ExpertAct, Op::GatedAct { act: config.activation, first: 0 }, &[gate, up], chosen * inner);
    let out = product(b, WeightRole::ExpertDown, Stage::ExpertOut, act, hidden, inner);
    b.push(stage, Op::ExpertMix { experts, chosen }, &[out, numbers, weights], hidden)
}

/// The expert that every token goes through.
fn shared(b: &mut Builder, config: &ExpertsConfig, of: &SharedExpert, hidden: usize, x: ValueId) -> ValueId {
    let inner = of.intermediate_size;
    let gate = linear(b, WeightRole::SharedGate, Stage::SharedGate, x, inner, false);
    let up = linear(b, WeightRole::SharedUp, Stage::SharedUp, x, inner, false);
    let act = b.push(Stage::SharedAct, Op::GatedAct { act: config.activation, first: 0 }, &[gate, up], inner);
    let out = linear(b, WeightRole::SharedDown, Stage::SharedOut, act, hidden, false);
    if !of.gated {
        return out;
    }
    let scale = linear(b, WeightRole::SharedScale, Stage::SharedScale, x, 1, false);
    b.push(Stage::SharedScaled, Op::SigmoidScale, &[out, scale], hidden)
}
