//! Blocks of experts and their routers, as plain numbers.

use super::Activation;
use serde::{Deserialize, Serialize};

/// Gated feed-forward blocks of which each token goes through a few.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpertsConfig {
    /// What chooses them.
    pub router: Router,
    /// Its projection has a bias.
    pub router_bias: bool,
    /// Width between gate/up and down projections of one expert.
    pub intermediate_size: usize,
    /// Activation on the gate, of the shared expert's too.
    pub activation: Activation,
    /// The experts' projections have a bias.
    pub bias: bool,
    /// An expert for every token, in addition.
    pub shared: Option<SharedExpert>,
}

/// An expert that every token goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedExpert {
    /// Width between its projections.
    pub intermediate_size: usize,
    /// Its output is multiplied by the sigmoid of a projection of the token to one number.
    pub gated: bool,
}

/// How experts are chosen from their logits, and weighted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Router {
    /// Experts.
    pub experts: usize,
    /// Experts of a token.
    pub chosen: usize,
    /// What makes scores of logits.
    pub score: RouterScore,
    /// A vector is added to the scores for the choice only (DeepSeek V3's correction bias).
    pub choice_bias: bool,
    /// Only experts of some groups may be chosen.
    pub groups: Option<RouterGroups>,
    /// Weights are divided by their sum and this; `None` leaves them as they are.
    pub renormalise: Option<f64>,
    /// Factor on weights.
    pub scaling: f64,
    /// The weight of each expert is multiplied by a learned number too (Gemma 4).
    #[serde(default)]
    pub scales: bool,
}

/// What makes scores of a router's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouterScore {
    /// Softmax over all experts.
    Softmax,
    /// Softmax over those that were chosen by their logits.
    SoftmaxOfChosen,
    /// The sigmoid of each.
    Sigmoid,
}

/// Groups of neighbouring experts, of which the best are chosen first, and then experts of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouterGroups {
    /// Groups; divides the number of experts.
    pub count: usize,
    /// Groups whose experts may be chosen.
    pub chosen: usize,
    /// A group's score is the sum of its so many highest.
    pub highest: usize,
}
