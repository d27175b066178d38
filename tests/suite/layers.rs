//! Layers that are not all alike, with random weights on every variant of a device, against the oracle.

use crate::gpu::{check, settings};
use crate::support::*;
use doppler::exec::Storage;
use doppler::model::*;
use doppler::quant::Format;

/// Layers that read an earlier layer's keys, values made of keys, norms without weights, inputs of layers, scalars, and experts beside a
/// dense block, at odd widths.
#[test]
fn layers_that_share_keys_and_have_inputs() {
    let mut config = config(40, 4, 2, 20, 48, 99);
    let mut first = config.layers[0].clone();
    first.scalar = true;
    let attention = |change: fn(&mut AttentionConfig)| {
        let mut layer = first.clone();
        layer.attention_mut().map(|a| a.value_norm = true).and(layer.attention_mut().map(change));
        layer
    };
    config.layers = vec![attention(|a| a.window = Some(4)), attention(|a| a.values_from_keys = true)];
    config.layers.push(attention(|a| (a.window, a.shared_kv) = (Some(4), Some(0))));
    config.layers.push(attention(|a| a.shared_kv = Some(1)));
    config.layer_inputs = Some(LayerInputsConfig { width: 7, activation: Activation::Silu });
    let router = Router { scales: true, ..router(6, 2) };
    let (activation, shared) = (Activation::GeluTanh, None);
    let experts = ExpertsConfig { router, router_bias: false, intermediate_size: 40, activation, bias: false, shared };
    if let Some(dense) = config.layers[1].dense().cloned() {
        config.layers[1].ffn = Ffn::DenseAndExperts { dense, experts };
    }
    for (tokens, storage, format) in [(1, Storage::F16, Format::F16), (9, Storage::F32, Format::F32), (40, Storage::F16, Format::BF16)] {
        check("shared keys", &config, tokens, storage, format, &settings());
    }
}
