//! The gated feed-forward block: down(act(gate(x)) · up(x)).

use super::attention::linear;
use crate::model::{DenseConfig, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// Adds the block reading `x` [T, hidden]; returns `ffn_out` [T, hidden].
pub fn dense(b: &mut Builder, config: &DenseConfig, hidden: usize, x: ValueId) -> ValueId {
    let inner = config.intermediate_size;
    let gate = linear(b, WeightRole::GateProj, Stage::FfnGate, x, inner, config.bias);
    let up = linear(b, WeightRole::UpProj, Stage::FfnUp, x, inner, config.bias);
    let act = b.push(Stage::FfnAct, Op::GatedAct { act: config.activation }, &[gate, up], inner);
    linear(b, WeightRole::DownProj, Stage::FfnOut, act, hidden, config.bias)
}
