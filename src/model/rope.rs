//! Rotary position encodings, as plain numbers.

use serde::{Deserialize, Serialize};

/// One rotary position encoding: frequencies θ^(−2i/rotary_dim), changed by `scaling`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RopeConfig {
    /// Base θ.
    pub theta: f64,
    /// Leading elements of a head that are rotated; even.
    pub rotary_dim: usize,
    /// Which of them are rotated together.
    #[serde(default)]
    pub pairing: RopePairing,
    /// Change of the frequencies.
    pub scaling: RopeScaling,
    /// A factor on cos and sin that grows with the position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth: Option<RopeGrowth>,
}

impl RopeConfig {
    /// Halves rotated by frequencies as they are.
    pub fn plain(theta: f64, rotary_dim: usize) -> Self {
        Self { theta, rotary_dim, pairing: RopePairing::Halves, scaling: RopeScaling::None, growth: None }
    }
}

/// The two elements of a head that RoPE rotates together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RopePairing {
    /// i and i + rotary_dim/2.
    #[default]
    Halves,
    /// 2i and 2i + 1 (GLM, Cohere).
    Neighbours,
}

/// A factor of 1 + β·ln(1 + ⌊position / original⌋).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RopeGrowth {
    /// β.
    pub beta: f64,
    /// Context of pretraining.
    pub original_max_positions: usize,
}

/// Published ways to stretch RoPE. Formulas are in `plan::rope`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "type")]
pub enum RopeScaling {
    /// Unchanged.
    None,
    /// The leading `rotated` frequencies divided by `factor`, all others 0: their pairs stay as they are (Gemma 4).
    Proportional {
        /// Pairs that are rotated.
        rotated: usize,
        /// Stretch.
        factor: f64,
    },
    /// Frequencies divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, between them interpolated.
    Llama3 {
        /// Stretch of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f64,
        /// Context of pretraining.
        original_max_positions: usize,
    },
    /// YaRN: by-parts interpolation and a factor on cos and sin.
    Yarn {
        /// Stretch.
        factor: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is stretched.
        beta_slow: f64,
        /// Context of pretraining.
        original_max_positions: usize,
        /// Factor on cos and sin.
        attention_factor: f64,
        /// Round the correction range to whole dimensions.
        truncate: bool,
    },
    /// Phi: a divisor per frequency, one list up to the original context, another beyond it.
    LongRope {
        /// `rotary_dim / 2` divisors for sequences up to `original_max_positions`.
        short_factor: Vec<f64>,
        /// `rotary_dim / 2` divisors for longer sequences.
        long_factor: Vec<f64>,
        /// Where the lists change.
        original_max_positions: usize,
        /// Factor on cos and sin.
        attention_factor: f64,
    },
}
