//! The gated feed-forward block: down(act(gate(x)) · up(x)).

use super::attention::linear;
use crate::error::Result;
use crate::model::{ModelConfig, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// Adds the block reading `x` [T, hidden]; returns `ffn_out` [T, hidden].
pub fn ffn(b: &mut Builder<'_>, config: &ModelConfig, x: ValueId) -> Result<ValueId> {
    let inner = config.intermediate_size;
    let gate = linear(b, config, WeightRole::GateProj, Stage::FfnGate, x, inner, config.mlp_bias)?;
    let up = linear(b, config, WeightRole::UpProj, Stage::FfnUp, x, inner, config.mlp_bias)?;
    let act = b.push(Stage::FfnAct, Op::GatedAct { act: config.activation }, &[gate, up], inner);
    linear(b, config, WeightRole::DownProj, Stage::FfnOut, act, config.hidden_size, config.mlp_bias)
}
