//! Keys and values of a family that differ between its layers, and inputs of layers, as its preset has them.

use serde::Deserialize;

/// Layers without a window have heads of other numbers.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct FullHeads {
    /// The key of their width.
    pub head_dim: String,
    /// The key of their key/value heads; null is as many as others have.
    pub kv_heads: String,
    /// A switch: their values are their projected keys. Without it the number of key/value heads does not count.
    pub values_from_keys: String,
    /// The key of an object with such numbers by layer, which counts alone where it is there.
    pub by_layer: String,
}

/// The last layers read keys and values of earlier ones.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct SharedKv {
    /// The key of how many.
    pub layers: String,
    /// A switch: their feed-forward blocks are twice as wide.
    pub wide: String,
}

/// Layers have inputs of their own.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct LayerInputs {
    /// The key of their width; 0 and null are none.
    pub width: String,
    /// The key of the rows of their table.
    pub vocab: String,
}
