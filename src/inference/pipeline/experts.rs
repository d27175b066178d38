//! The feed-forward block of experts: a router's choice, the chosen experts' gated blocks, their weighted sum, and what every token
//! goes through in addition.

use super::attention::linear;
use crate::model::{ExpertsConfig, SharedExpert, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// Adds the block reading `x` [T, hidden]; returns `ffn_out` [T, hidden].
pub fn experts(b: &mut Builder, config: &ExpertsConfig, hidden: usize, x: ValueId) -> ValueId {
    let (router, inner) = (config.router, config.intermediate_size);
    let (experts, chosen) = (router.experts, router.chosen);
    let logits = linear(b, WeightRole::Router, Stage::RouterLogits, x, experts, config.router_bias);
    let choice = router.choice_bias.then(|| b.weight(WeightRole::RouterChoice, true, &[experts]));
    let weights = b.push(Stage::RouterWeights, Op::RouterWeights { router, choice }, &[logits], experts);
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
    let stage = if config.shared.is_some() { Stage::ExpertsOut } else { Stage::FfnOut };
    let mixed = b.push(stage, Op::ExpertMix { experts, chosen }, &[out, numbers, weights], hidden);
    match &config.shared {
        None => mixed,
        Some(of) => {
            let shared = shared(b, config, of, hidden, x);
            b.push(Stage::FfnOut, Op::Add { multiplier: 1.0 }, &[mixed, shared], hidden)
        }
    }
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
