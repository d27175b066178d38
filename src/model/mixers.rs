//! Mixers other than attention.

use super::Activation;
use serde::Serialize;

/// A short convolution (LFM2): out(C · conv(B · x)), where `B, C, x` are three equal parts of one projection.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShortConvConfig {
    /// Tokens that the convolution sees, the current one included.
    pub taps: usize,
    /// The projections and the convolution have a bias.
    pub bias: bool,
}

/// A gated delta rule (Qwen 3 Next, Qwen 3.5): a matrix of each value head that every token decays and corrects.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatedDeltaConfig {
    /// Its heads.
    pub heads: DeltaHeads,
    /// Tokens that the convolution of queries, keys and values sees, the current one included.
    pub taps: usize,
    /// Activation after the convolution.
    pub activation: Activation,
    /// Added to the sum of squares where queries and keys are made as long as 1.
    pub unit_eps: f64,
    /// Factor on queries.
    pub scale: f64,
}

/// Heads of a delta rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeltaHeads {
    /// Heads of queries and keys.
    pub keys: usize,
    /// Heads of values, a multiple of those; value head h has key head h / (values / keys).
    pub values: usize,
    /// Width of a key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
}

impl DeltaHeads {
    /// Width of all keys, or queries.
    pub fn key_width(&self) -> usize {
        self.keys.saturating_mul(self.key_dim)
    }
    /// Width of all values.
    pub fn value_width(&self) -> usize {
        self.values.saturating_mul(self.value_dim)
    }
    /// Width of queries, keys and values side by side, which one convolution sees.
    pub fn width(&self) -> usize {
        self.key_width().saturating_mul(2).saturating_add(self.value_width())
    }
    /// Width of what the matrices take of a token: keys, values, and of each value head a rate and a decay.
    pub fn taken(&self) -> usize {
        self.key_width().saturating_add(self.value_width()).saturating_add(self.values.saturating_mul(2))
    }
    /// Elements of all matrices: of each value head [value_dim, key_dim].
    pub fn matrices(&self) -> usize {
        self.value_width().saturating_mul(self.key_dim)
    }
}

/// Rows of a tensor by head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sections {
    /// Heads.
    pub heads: usize,
    /// Rows of each section of a head.
    pub rows: [usize; 4],
}
