//! Norms of the model's kind.

use crate::model::{Norm, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// Normalises `x` in groups of `group` elements under weight `role`.
pub fn norm(b: &mut Builder, norm: &Norm, role: WeightRole, stage: Stage, x: ValueId, group: usize) -> ValueId {
    let weight = b.weight(role, false, &[group]);
    let op = match *norm {
        Norm::Rms { eps, weight_offset } => Op::RmsNorm { weight, offset: weight_offset, eps, group },
    };
    let width = b.width(x);
    b.push(stage, op, &[x], width)
}
