//! One layer: attention and feed-forward, each between its norms and a residual add.

use super::{attention, ffn, norm};
use crate::model::{LayerConfig, ModelConfig, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// Adds one layer that reads residual stream `x`; returns the stream behind it.
pub fn layer(b: &mut Builder, config: &ModelConfig, layer: &LayerConfig, x: ValueId) -> ValueId {
    let hidden = config.hidden_size;
    let add = Op::Add { multiplier: config.residual_multiplier };

    let residual = b.push(Stage::LayerIn, Op::Same, &[x], hidden);
    let mut x = residual;
    if config.norms.before_attention {
        x = norm::norm(b, config, WeightRole::AttnNorm, Stage::AttnNormed, x, hidden);
    }
    x = attention::attention(b, config, layer, x);
    if config.norms.after_attention {
        x = norm::norm(b, config, WeightRole::PostAttnNorm, Stage::PostAttnNorm, x, hidden);
    }
    let residual = b.push(Stage::PostAttn, add.clone(), &[residual, x], hidden);

    let x = if config.norms.before_ffn {
        norm::norm(b, config, WeightRole::FfnNorm, Stage::FfnIn, residual, hidden)
    } else {
        b.push(Stage::FfnIn, Op::Same, &[residual], hidden)
    };
    let mut x = ffn::ffn(b, config, x);
    if config.norms.after_ffn {
        x = norm::norm(b, config, WeightRole::PostFfnNorm, Stage::PostFfnNorm, x, hidden);
    }
    b.push(Stage::LayerOut, add, &[residual, x], hidden)
}
