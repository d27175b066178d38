//! RMS norms with the model's epsilon and offset.

use crate::model::{ModelConfig, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// Normalises `x` in groups of `group` elements under weight `role`.
pub fn norm(b: &mut Builder, config: &ModelConfig, role: WeightRole, stage: Stage, x: ValueId, group: usize) -> ValueId {
    let weight = b.weight(role, false, &[group]);
    let op = Op::RmsNorm { weight, offset: config.rms_norm_weight_offset, eps: config.rms_norm_eps, group };
    let width = b.width(x);
    b.push(stage, op, &[x], width)
}
