//! Norms, as plain numbers: their kind, which of them a layer has, and those of queries and keys.

use serde::{Deserialize, Serialize};

/// A kind of norm with its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "type")]
pub enum Norm {
    /// x/√(mean(x²)+eps) · (weight + weight_offset).
    Rms {
        /// Added to the mean square.
        eps: f64,
        /// Added to the weight (Gemma 1, others 0).
        weight_offset: f64,
    },
    /// (x−mean(x))/√(var(x)+eps) · weight + bias, the variance that of all elements. Norms of queries and keys are of the same kind.
    Layer {
        /// Added to the variance.
        eps: f64,
        /// It has a bias.
        bias: bool,
    },
}

impl Norm {
    /// What it adds to the mean square, or to the variance.
    pub fn eps(&self) -> f64 {
        match self {
            Norm::Rms { eps, .. } | Norm::Layer { eps, .. } => *eps,
        }
    }
    /// What it adds to its weight.
    pub fn weight_offset(&self) -> f64 {
        match self {
            Norm::Rms { weight_offset, .. } => *weight_offset,
            Norm::Layer { .. } => 0.0,
        }
    }
    /// The same with another epsilon.
    pub fn with_eps(self, eps: f64) -> Self {
        match self {
            Norm::Rms { weight_offset, .. } => Norm::Rms { eps, weight_offset },
            Norm::Layer { bias, .. } => Norm::Layer { eps, bias },
        }
    }
    /// The same with another offset, if it is of a kind that has one.
    pub fn with_weight_offset(self, weight_offset: f64) -> Self {
        match self {
            Norm::Rms { eps, .. } => Norm::Rms { eps, weight_offset },
            Norm::Layer { .. } => self,
        }
    }
}

/// Which of the four possible norms a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Norms {
    /// Before the mixer.
    pub before_mixer: bool,
    /// On the mixer's output, before the residual add.
    pub after_mixer: bool,
    /// Before gate and up.
    pub before_ffn: bool,
    /// On the feed-forward block's output, before the residual add.
    pub after_ffn: bool,
}

/// How queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum QueryKeyNorm {
    /// Not at all.
    None,
    /// Each head by itself before RoPE, weight of `head_dim` (Gemma 3, Qwen 3).
    PerHead,
    /// Likewise, after RoPE (Hunyuan).
    PerHeadAfterRope,
    /// Each head by itself before RoPE, with weights of its own: of all heads together the projection's width (Cohere).
    PerHeadOwnWeights,
    /// The whole projection at once before RoPE, weight of its width (OLMo 2).
    WholeProjection,
}
