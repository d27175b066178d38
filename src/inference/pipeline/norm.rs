//! Norms of the model's kind.

use crate::model::{Norm, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// Normalises `x` as a whole under weight `role`.
pub fn norm(b: &mut Builder, norm: &Norm, role: WeightRole, stage: Stage, x: ValueId) -> ValueId {
    let width = b.width(x);
    heads(b, norm, (role, false), stage, x, width)
}

/// Normalises `x` in groups of `group` elements, without a weight.
pub fn unit(b: &mut Builder, norm: &Norm, stage: Stage, x: ValueId, group: usize) -> ValueId {
    let width = b.width(x);
    b.push(stage, Op::UnitNorm { eps: norm.eps(), group }, &[x], width)
}

/// Normalises `x` in groups of `group` elements under weight `role`, which is one for all groups, or each has its `own`.
pub fn heads(b: &mut Builder, norm: &Norm, (role, own): (WeightRole, bool), stage: Stage, x: ValueId, group: usize) -> ValueId {
    let width = b.width(x);
    let shape = [if own { width } else { group }];
    let weight = b.weight(role, false, &shape);
    let op = match *norm {
        Norm::Rms { eps, weight_offset } => Op::RmsNorm { weight, offset: weight_offset, eps, group },
        Norm::Layer { eps, bias } => Op::LayerNorm { weight, bias: bias.then(|| b.weight(role, true, &shape)), eps, group },
    };
    b.push(stage, op, &[x], width)
}
