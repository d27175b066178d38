//! One op whose output is not the reference's, with what the reference has around it: what hypotheses are made from.

use super::Cause;
use super::report::Site;
use crate::debug::compare::held_as;
use crate::debug::dump::Dump;
use crate::debug::weight_source::{Edited, WeightSource};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::plan::edit::{Edit, Slot};
use crate::plan::{At, Node, Plan, ValueId, WeightId};
use crate::tensor::Tensor;

/// A possible cause that explains an op's output.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Its class.
    pub cause: Cause,
    /// Tensor of the checkpoint that would be wrong.
    pub slot: Option<Slot>,
    /// What would make it right. Empty where the model cannot be given that: `proved` then says how it was shown.
    pub edits: Vec<Edit>,
    /// What was measured, in a sentence.
    pub why: String,
    /// Of hypotheses that explain as much, the one with the lowest is meant.
    pub rank: u8,
    /// The reference's numbers were reproduced by a formula, or every other parameter of the op was excluded.
    pub proved: bool,
}

impl Hypothesis {
    /// One that edits would mend.
    pub fn new(cause: Cause, edits: Vec<Edit>, why: impl Into<String>) -> Self {
        Self { cause, slot: None, edits, why: why.into(), rank: 1, proved: false }
    }
    /// One of a weight.
    pub fn of_weight(cause: Cause, slot: Slot, edits: Vec<Edit>, why: impl Into<String>) -> Self {
        Self { slot: Some(slot), ..Self::new(cause, edits, why) }
    }
    /// One that no edit mends, shown by `why`.
    pub fn shown(cause: Cause, why: impl Into<String>) -> Self {
        Self { proved: true, ..Self::new(cause, Vec::new(), why) }
    }
    /// The same with another rank.
    #[must_use]
    pub fn rank(self, rank: u8) -> Self {
        Self { rank, ..self }
    }
    /// Where it is, for a fault seen first at `at`.
    pub fn site(&self, at: At, tensor: Option<String>) -> Site {
        Site { layer: at.layer, stage: Some(at.stage.name()), tensor, ..Site::default() }
    }
}

/// An op that is wrong.
#[derive(Debug)]
pub struct Case<'c, S> {
    /// The plan, with what was mended already.
    pub plan: &'c Plan,
    /// Likewise.
    pub config: &'c ModelConfig,
    /// The weights, likewise.
    pub weights: &'c Edited<'c, S>,
    /// The reference.
    pub reference: &'c Dump,
    /// The op.
    pub id: ValueId,
    /// Every op that is wrong.
    pub wrong: &'c [At],
    /// Tokens of the prompt.
    pub tokens: usize,
}

impl<S: WeightSource> Case<'_, S> {
    /// The op's node.
    pub fn node(&self) -> &Node {
        self.plan.node(self.id)
    }
    /// The value `at` in the reference, of the prompt; `None` where it has none, or sketches.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn value(&self, at: At) -> Result<Option<Tensor>> {
        let Some(mut value) = self.reference.value(held_as(self.reference, self.plan, at))? else { return Ok(None) };
        if let [rows, width] = value.shape[..]
            && rows > self.tokens
        {
            value.shape[0] = self.tokens;
            value.data.truncate(self.tokens * width);
        }
        Ok(Some(value))
    }
    /// Input `number` of `id`.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn input(&self, id: ValueId, number: usize) -> Result<Option<Tensor>> {
        self.plan.node(id).inputs.get(number).map_or(Ok(None), |input| self.value(self.plan.node(*input).at))
    }
    /// All of a weight.
    ///
    /// # Errors
    /// Those of the source.
    pub async fn weight(&self, id: WeightId) -> Result<Vec<f32>> {
        self.weights.whole(id).await
    }
    /// Whether the value of `id` is wrong.
    pub fn is_wrong(&self, id: ValueId) -> bool {
        self.wrong.contains(&self.plan.node(id).at)
    }
    /// Nodes of the plan for which `is` holds.
    pub fn nodes(&self, is: impl Fn(&Node) -> bool) -> Vec<ValueId> {
        (0..self.plan.nodes.len()).map(ValueId).filter(|id| is(self.plan.node(*id))).collect()
    }
    /// Other weights of the same shape.
    pub fn alike(&self, id: WeightId) -> Vec<WeightId> {
        let shape = &self.plan.weights[id.0].shape;
        (0..self.plan.weights.len()).map(WeightId).filter(|other| *other != id && self.plan.weights[other.0].shape == *shape).collect()
    }
}
