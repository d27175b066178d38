//! Mixers of a family other than attention, as its preset has them.

use serde::Deserialize;

/// Layers with short convolutions, and the keys of their numbers.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct ShortConv {
    /// Tokens that the convolution sees.
    pub taps: String,
    /// Whether it has biases.
    pub bias: String,
    /// A list of each layer's type.
    pub layer_types: String,
    /// Without that: the layers that have attention; without both all of them.
    pub attention_layers: String,
}

/// Layers with a gated delta rule, and the keys of their numbers.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct GatedDelta {
    /// Heads of queries and keys.
    pub key_heads: String,
    /// Heads of values.
    pub value_heads: String,
    /// Width of a key.
    pub key_dim: String,
    /// Width of a value.
    pub value_dim: String,
    /// Tokens that the convolution sees.
    pub taps: String,
    /// Added to the sum of squares of a query or key; the class has it as a number.
    pub unit_eps: f64,
    /// A list of each layer's type.
    pub layer_types: String,
    /// Without that: every so many layers one has attention.
    pub interval: String,
}
