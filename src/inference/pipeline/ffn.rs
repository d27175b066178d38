//! The feed-forward block: down(act(gate(x)) · up(x)), or without a gate down(act(up(x))).

use super::attention::linear;
use crate::model::{DenseConfig, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// Adds the block reading `x` [T, hidden]; returns its output [T, hidden] as `stage`.
pub fn dense(b: &mut Builder, config: &DenseConfig, hidden: usize, x: ValueId, stage: Stage) -> ValueId {
    let (inner, act) = (config.intermediate_size, config.activation);
    let gate = config.gated.then(|| linear(b, WeightRole::GateProj, Stage::FfnGate, x, inner, config.bias));
    let up = linear(b, WeightRole::UpProj, Stage::FfnUp, x, inner, config.bias);
    let act = match gate {
        Some(gate) => b.push(Stage::FfnAct, Op::GatedAct { act, first: 0 }, &[gate, up], inner),
        None => b.push(Stage::FfnAct, Op::Act { act }, &[up], inner),
    };
    linear(b, WeightRole::DownProj, stage, act, hidden, config.bias)
}
