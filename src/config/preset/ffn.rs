//! Feed-forward blocks of a family, as its preset has them.

use serde::Deserialize;

use crate::config::setting::Setting;
use crate::model::RouterScore;

/// Numbers of the clamped activation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ClampedActivation {
    /// Factor within the sigmoid.
    pub alpha: Setting<f64>,
    /// Where gate and up are cut off.
    pub limit: Setting<f64>,
}

/// Experts of a family.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct Experts {
    /// How many.
    pub count: Setting<usize>,
    /// How many of a token.
    pub chosen: Setting<usize>,
    /// Width between the projections of one.
    pub intermediate_size: Setting<usize>,
    /// What makes scores of logits.
    pub score: RouterScore,
    /// Weights are divided by their sum.
    pub renormalise: Setting<bool>,
    /// And this, which the class has as a number.
    #[serde(default)]
    pub renormalise_eps: f64,
    /// A factor on weights.
    #[serde(default = "one")]
    pub scaling: Setting<f64>,
    /// A vector is added to scores for the choice.
    #[serde(default = "no")]
    pub choice_bias: Setting<bool>,
    /// The router's projection has a bias.
    #[serde(default)]
    pub router_bias: bool,
    /// The experts' projections have one.
    #[serde(default)]
    pub bias: bool,
    /// An expert for every token.
    #[serde(default)]
    pub shared: Option<Shared>,
    /// A switch: the model has them, beside a dense block in each layer.
    #[serde(default)]
    pub beside_dense: Option<String>,
    /// Weights are multiplied by a learned number of each.
    #[serde(default)]
    pub scales: bool,
    /// Layers without experts.
    #[serde(default)]
    pub dense_layers: Option<DenseLayers>,
}

/// The expert that every token goes through.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct Shared {
    /// Width between its projections.
    pub intermediate_size: Setting<usize>,
    /// It is scaled by a sigmoid.
    pub gated: bool,
}

/// Layers that have one dense block in place of experts.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(in crate::config) enum DenseLayers {
    /// Those that are listed, and all but each n-th.
    Listed {
        /// The key of the list.
        listed: String,
        /// The key of n.
        step: String,
    },
    /// The first ones.
    First {
        /// The key of their number.
        first: String,
    },
}

fn one() -> Setting<f64> {
    Setting::Value(1.0)
}

fn no() -> Setting<bool> {
    Setting::Value(false)
}
