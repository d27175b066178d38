//! Inputs of layers: from the token and its embedding once, each layer's part at the layer's end.

use super::attention::linear;
use super::norm;
use crate::model::{LayerInputsConfig, ModelConfig, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// 2^-1/2, which keeps the size of a sum of two.
const HALF_ROOT: f64 = std::f64::consts::FRAC_1_SQRT_2;

/// Adds what is computed of the embeddings `x` [T, hidden]; returns `ple_inputs` [T, layers · width].
pub fn all(b: &mut Builder, config: &ModelConfig, of: &LayerInputsConfig, x: ValueId) -> ValueId {
    let width = config.layers.len() * of.width;
    let table = b.weight(WeightRole::PleEmbed, false, &[config.vocab_size, width]);
    let rows = b.push(Stage::PleEmbed, Op::Embed { table, scale: (of.width as f64).sqrt() }, &[], width);
    let weight = b.weight(WeightRole::PleProj, false, &[width, config.hidden_size]);
    let op = Op::Linear { weight, bias: None, divisor: (config.hidden_size as f64).sqrt() };
    let projected = b.push(Stage::PleProj, op, &[x], width);
    let projected = norm::heads(b, &config.norm, (WeightRole::PleProjNorm, false), Stage::PleProjNorm, projected, of.width);
    let sum = b.push(Stage::PleSum, Op::Add { multiplier: 1.0 }, &[projected, rows], width);
    b.push(Stage::PleInputs, Op::Scale { factor: HALF_ROOT, weight: None }, &[sum], width)
}

/// Adds what a layer makes of its part of `inputs` to the stream `x` [T, hidden]; returns the stream, as `stage`.
pub fn added(
    b: &mut Builder,
    config: &ModelConfig,
    of: &LayerInputsConfig,
    (inputs, layer): (ValueId, usize),
    x: ValueId,
    stage: Stage,
) -> ValueId {
    let gate = linear(b, WeightRole::PleGate, Stage::PleGate, x, of.width, false);
    let act = Op::GatedAct { act: of.activation, first: layer * of.width };
    let act = b.push(Stage::PleAct, act, &[gate, inputs], of.width);
    let out = linear(b, WeightRole::PleOut, Stage::PleOut, act, config.hidden_size, false);
    let out = norm::norm(b, &config.norm, WeightRole::PostPleNorm, Stage::PostPleNorm, out);
    b.push(stage, Op::Add { multiplier: 1.0 }, &[x, out], config.hidden_size)
}
