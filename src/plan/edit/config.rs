//! Numbers of a model's config, which many ops share: the plan is built again from the changed config.

use crate::model::{Activation, AttentionConfig, LayerConfig, Mixer, ModelConfig, RopeScaling, Router};
use serde::{Deserialize, Serialize};

/// A number of the config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are those of the fields of `ModelConfig`")]
pub enum ConfigEdit {
    NormEps(f64),
    NormOffset(f64),
    EmbeddingScale(f64),
    ResidualMultiplier(f64),
    LogitsScaling(f64),
    AttentionScale(f64),
    AttnSoftcap(Option<f64>),
    FinalSoftcap(Option<f64>),
    Activation(Activation),
    Router(Router),
    /// Of a RoPE.
    Theta(usize, f64),
    Scaling(usize, RopeScaling),
    RotaryDim(usize, usize),
    /// Of layers.
    LayerRope(Vec<usize>, Option<usize>),
    Windows(Vec<(usize, Option<usize>)>),
    Tied(bool),
}

/// The attention of a layer, if there is one.
fn attention(config: &mut ModelConfig, layer: usize) -> Option<&mut AttentionConfig> {
    config.layers.get_mut(layer).and_then(LayerConfig::attention_mut)
}

impl ConfigEdit {
    /// Changes `config`.
    pub fn apply(&self, config: &mut ModelConfig) {
        let rope = |config: &mut ModelConfig, i: usize, change: &dyn Fn(&mut crate::model::RopeConfig)| {
            config.ropes.get_mut(i).into_iter().for_each(change);
        };
        match self {
            Self::NormEps(x) => config.norm = config.norm.with_eps(*x),
            Self::NormOffset(x) => config.norm = config.norm.with_weight_offset(*x),
            Self::EmbeddingScale(x) => config.embedding_scale = *x,
            Self::ResidualMultiplier(x) => config.residual_multiplier = *x,
            Self::LogitsScaling(x) => config.logits_scaling = *x,
            Self::AttentionScale(x) => config.attentions_mut().for_each(|a| a.scale = *x),
            Self::AttnSoftcap(x) => config.attentions_mut().for_each(|a| a.softcap = *x),
            Self::FinalSoftcap(x) => config.final_logit_softcapping = *x,
            Self::Activation(x) => {
                config.denses_mut().for_each(|dense| dense.activation = *x);
                config.experts_mut().for_each(|experts| experts.activation = *x);
                for layer in &mut config.layers {
                    if let Mixer::GatedDelta(delta) = &mut layer.mixer {
                        delta.activation = *x;
                    }
                }
            }
            Self::Router(x) => config.experts_mut().for_each(|experts| experts.router = *x),
            Self::Theta(i, x) => rope(config, *i, &|r| r.theta = *x),
            Self::Scaling(i, x) => rope(config, *i, &|r| r.scaling = x.clone()),
            Self::RotaryDim(i, x) => rope(config, *i, &|r| r.rotary_dim = *x),
            Self::LayerRope(layers, x) => {
                for layer in layers {
                    if let Some(attention) = attention(config, *layer) {
                        attention.rope = *x;
                    }
                }
            }
            Self::Windows(windows) => {
                for (layer, window) in windows {
                    if let Some(attention) = attention(config, *layer) {
                        attention.window = *window;
                    }
                }
            }
            Self::Tied(x) => config.tie_word_embeddings = *x,
        }
    }
    /// The field of `Resolved::sources` that says where the number came from.
    pub fn field(&self) -> String {
        match self {
            Self::NormEps(_) => "norm.eps".into(),
            Self::NormOffset(_) => "norm.weightOffset".into(),
            Self::EmbeddingScale(_) => "embeddingScale".into(),
            Self::ResidualMultiplier(_) => "residualMultiplier".into(),
            Self::LogitsScaling(_) => "logitsScaling".into(),
            Self::AttentionScale(_) => "layers[].mixer.scale".into(),
            Self::AttnSoftcap(_) => "layers[].mixer.softcap".into(),
            Self::FinalSoftcap(_) => "finalLogitSoftcapping".into(),
            Self::Activation(_) => "layers[].ffn.activation".into(),
            Self::Router(_) => "layers[].ffn.router".into(),
            Self::Theta(i, _) => format!("ropes[{i}].theta"),
            Self::Scaling(i, _) => format!("ropes[{i}].scaling"),
            Self::RotaryDim(i, _) => format!("ropes[{i}].rotaryDim"),
            Self::LayerRope(..) => "layers[].mixer.rope".into(),
            Self::Windows(_) => "layers[].mixer.window".into(),
            Self::Tied(_) => "tieWordEmbeddings".into(),
        }
    }
}

impl std::fmt::Display for ConfigEdit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |x: &Option<f64>| x.map_or("none".to_string(), |x| format!("{x}"));
        let field = self.field();
        match self {
            Self::NormEps(x)
            | Self::NormOffset(x)
            | Self::EmbeddingScale(x)
            | Self::ResidualMultiplier(x)
            | Self::LogitsScaling(x)
            | Self::AttentionScale(x)
            | Self::Theta(_, x) => write!(f, "{field} = {x}"),
            Self::AttnSoftcap(x) | Self::FinalSoftcap(x) => write!(f, "{field} = {}", number(x)),
            Self::Activation(x) => write!(f, "{field} = {x:?}"),
            Self::Router(x) => write!(f, "{field} = {x:?}"),
            Self::Scaling(_, x) => write!(f, "{field} = {x:?}"),
            Self::RotaryDim(_, x) => write!(f, "{field} = {x}"),
            Self::LayerRope(layers, x) => write!(f, "{field} of layers {layers:?} = {x:?}"),
            Self::Windows(x) => write!(f, "{field} = {x:?}"),
            Self::Tied(x) => write!(f, "{field} = {x}"),
        }
    }
}
