//! The gated delta rule: projections, a convolution over queries, keys and values, the rule itself, a gated norm, output projection.

use super::attention::linear;
use crate::model::{Activation, GatedDeltaConfig, Norm, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{ConvEnding, ConvSpec, Op, Stage, StateKind, StatePart, ValueId};

/// Adds the block reading `x` [T, hidden]; returns `delta_out` [T, hidden].
pub fn gated_delta(b: &mut Builder, norm: &Norm, config: &GatedDeltaConfig, hidden: usize, x: ValueId) -> ValueId {
    let GatedDeltaConfig { heads, taps, activation, unit_eps, scale } = *config;
    let qkv = linear(b, WeightRole::DeltaQkv, Stage::DeltaQkv, x, heads.width(), false);
    let z = linear(b, WeightRole::DeltaZ, Stage::DeltaZ, x, heads.value_width(), false);
    let rate = linear(b, WeightRole::DeltaB, Stage::DeltaB, x, heads.values, false);
    let decay = linear(b, WeightRole::DeltaA, Stage::DeltaA, x, heads.values, false);

    let state = b.state(StateKind::Conv(ConvSpec { width: heads.width(), taps }));
    let held = b.push(Stage::ConvCache, Op::Append { state, part: StatePart::Inputs }, &[qkv], heads.width());
    let weight = b.weight(WeightRole::Conv, false, &[heads.width().saturating_mul(taps)]);
    let ending = ConvEnding::Act(activation);
    let qkv = b.push(Stage::ConvMix, Op::ShortConv { state, weight, bias: None, taps, ending }, &[qkv, held], heads.width());

    let [log, step] = [WeightRole::DeltaDecay, WeightRole::DeltaStep].map(|role| b.weight(role, false, &[heads.values]));
    let taken = b.push(Stage::DeltaIn, Op::DeltaIn { heads, decay: log, step, eps: unit_eps }, &[qkv, rate, decay], heads.taken());
    // As many positions as the convolution has, so that both are in slabs of one kind.
    let state = b.state(StateKind::Conv(ConvSpec { width: heads.taken(), taps }));
    let matrix = b.state(StateKind::Matrix(heads));
    let taken = b.push(Stage::DeltaCache, Op::Append { state, part: StatePart::Inputs }, &[taken], heads.taken());
    let rule = Op::GatedDelta { state, matrix, heads, eps: unit_eps, scale };
    let mixed = b.push(Stage::DeltaMix, rule, &[qkv, taken], heads.value_width());

    let weight = b.weight(WeightRole::DeltaNorm, false, &[heads.value_dim]);
    let normed = Op::RmsNorm { weight, offset: 0.0, eps: norm.eps(), group: heads.value_dim };
    let normed = b.push(Stage::DeltaNormed, normed, &[mixed], heads.value_width());
    let gated = b.push(Stage::DeltaGated, Op::GatedAct { act: Activation::Silu, first: 0 }, &[z, normed], heads.value_width());
    linear(b, WeightRole::DeltaOut, Stage::DeltaOut, gated, hidden, false)
}
