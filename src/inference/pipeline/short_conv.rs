//! The short convolution: out(C · conv(B · x)), where one projection makes B, C and x.

use super::attention::linear;
use crate::model::{ShortConvConfig, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{ConvEnding, ConvSpec, Op, Stage, StateKind, StatePart, ValueId};

/// Adds the block reading `x` [T, hidden]; returns `conv_out` [T, hidden].
pub fn short_conv(b: &mut Builder, config: &ShortConvConfig, hidden: usize, x: ValueId) -> ValueId {
    let taps = config.taps;
    let parts = linear(b, WeightRole::ConvIn, Stage::ConvIn, x, 3 * hidden, config.bias);
    let x = b.push(Stage::ConvX, Op::Mul { left: 0, right: 2 * hidden }, &[parts, parts], hidden);
    let state = b.state(StateKind::Conv(ConvSpec { width: hidden, taps }));
    let x = b.push(Stage::ConvCache, Op::Append { state, part: StatePart::Inputs }, &[x], hidden);
    let weight = b.weight(WeightRole::Conv, false, &[hidden * taps]);
    let bias = config.bias.then(|| b.weight(WeightRole::Conv, true, &[hidden]));
    let mixed = b.push(Stage::ConvMix, Op::ShortConv { state, weight, bias, taps, ending: ConvEnding::Gate(hidden) }, &[parts, x], hidden);
    linear(b, WeightRole::ConvOut, Stage::ConvOut, mixed, hidden, config.bias)
}
