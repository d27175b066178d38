//! One layer: a mixer and a feed-forward block, each between its norms and a residual add.

use super::{attention, experts, ffn, gated_delta, inputs, norm, short_conv};
use crate::error::Result;
use crate::model::{Ffn, Mixer, ModelConfig, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Op, Stage, ValueId};

/// Adds layer `index`, which reads residual stream `x` and its part of `inputs`; returns the stream after it.
pub fn layer(b: &mut Builder, config: &ModelConfig, index: usize, inputs: Option<ValueId>, x: ValueId) -> Result<ValueId> {
    let layer = &config.layers[index];
    let hidden = config.hidden_size;
    let add = Op::Add { multiplier: config.residual_multiplier };

    let entering = b.push(Stage::LayerIn, Op::Same, &[x], hidden);
    let mut before = entering;
    if layer.norms.before_mixer {
        before = norm::norm(b, &config.norm, WeightRole::AttnNorm, Stage::AttnNormed, entering);
    }
    let mut x = match &layer.mixer {
        Mixer::Attention(of) => attention::attention(b, config, of, before)?,
        Mixer::ShortConv(of) => short_conv::short_conv(b, of, hidden, before),
        Mixer::GatedDelta(of) => gated_delta::gated_delta(b, &config.norm, of, hidden, before),
    };
    if layer.norms.after_mixer {
        x = norm::norm(b, &config.norm, WeightRole::PostAttnNorm, Stage::PostAttnNorm, x);
    }
    let residual = b.push(Stage::PostAttn, add.clone(), &[entering, x], hidden);

    let source = if layer.parallel { entering } else { residual };
    let x = match (layer.norms.before_ffn, layer.parallel) {
        (true, _) => norm::norm(b, &config.norm, WeightRole::FfnNorm, Stage::FfnIn, source),
        // Without a norm of its own the block shares that of the mixer.
        (false, true) => b.push(Stage::FfnIn, Op::Same, &[before], hidden),
        (false, false) => b.push(Stage::FfnIn, Op::Same, &[source], hidden),
    };
    let mut x = match &layer.ffn {
        Ffn::Dense(of) => ffn::dense(b, of, hidden, x, Stage::FfnOut),
        Ffn::Experts(of) => experts::experts(b, of, hidden, x),
        Ffn::DenseAndExperts { dense, experts } => experts::beside(b, &config.norm, (dense, experts), hidden, (source, x)),
    };
    if layer.norms.after_ffn {
        x = norm::norm(b, &config.norm, WeightRole::PostFfnNorm, Stage::PostFfnNorm, x);
    }
    // The last value of the layer is what leaves it.
    let of_inputs = config.layer_inputs.as_ref().zip(inputs);
    let after = if of_inputs.is_some() || layer.scalar { Stage::PostFfn } else { Stage::LayerOut };
    let mut x = b.push(after, add, &[residual, x], hidden);
    if let Some((of, inputs)) = of_inputs {
        x = inputs::added(b, config, of, (inputs, index), x, if layer.scalar { Stage::PostPle } else { Stage::LayerOut });
    }
    if layer.scalar {
        let weight = b.weight(WeightRole::LayerScalar, false, &[1]);
        x = b.push(Stage::LayerOut, Op::Scale { factor: 1.0, weight: Some(weight) }, &[x], hidden);
    }
    Ok(x)
}
