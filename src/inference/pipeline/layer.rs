//! One layer: a mixer and a feed-forward block, each between its norms and a residual add.

use super::{attention, experts, ffn, norm};
use crate::model::{Ffn, LayerConfig, Mixer, ModelConfig, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// Adds one layer that reads residual stream `x`; returns the stream behind it.
pub fn layer(b: &mut Builder, config: &ModelConfig, layer: &LayerConfig, x: ValueId) -> ValueId {
    let hidden = config.hidden_size;
    let add = Op::Add { multiplier: config.residual_multiplier };

    let residual = b.push(Stage::LayerIn, Op::Same, &[x], hidden);
    let mut x = residual;
    if layer.norms.before_mixer {
        x = norm::norm(b, &config.norm, WeightRole::AttnNorm, Stage::AttnNormed, x, hidden);
    }
    x = match &layer.mixer {
        Mixer::Attention(of) => attention::attention(b, config, of, x),
    };
    if layer.norms.after_mixer {
        x = norm::norm(b, &config.norm, WeightRole::PostAttnNorm, Stage::PostAttnNorm, x, hidden);
    }
    let residual = b.push(Stage::PostAttn, add.clone(), &[residual, x], hidden);

    let x = if layer.norms.before_ffn {
        norm::norm(b, &config.norm, WeightRole::FfnNorm, Stage::FfnIn, residual, hidden)
    } else {
        b.push(Stage::FfnIn, Op::Same, &[residual], hidden)
    };
    let mut x = match &layer.ffn {
        Ffn::Dense(of) => ffn::dense(b, of, config.hidden_size, x),
        Ffn::Experts(of) => experts::experts(b, of, config.hidden_size, x),
    };
    if layer.norms.after_ffn {
        x = norm::norm(b, &config.norm, WeightRole::PostFfnNorm, Stage::PostFfnNorm, x, hidden);
    }
    b.push(Stage::LayerOut, add, &[residual, x], hidden)
}
