//! Builds plans: adds nodes under stages within a layer scope, and weights under roles.
//! It computes widths and knows no model; `inference::pipeline` says what to build.

use super::op::{CacheSpec, Node, Op, Plan, ValueId, WeightId, WeightSlot};
use super::stage::{At, Stage};
use crate::error::{Error, Result};
use crate::model::{RopeConfig, TensorName, TensorNames, WeightRole};

/// A plan under construction.
#[derive(Debug)]
pub struct Builder<'a> {
    plan: Plan,
    tensors: &'a TensorNames,
    layer: Option<usize>,
}

impl<'a> Builder<'a> {
    /// An empty plan whose weights are called as `tensors` says.
    pub fn new(tensors: &'a TensorNames, ropes: Vec<RopeConfig>, num_layers: usize, vocab_size: usize, max_positions: usize) -> Self {
        let plan =
            Plan { nodes: Vec::new(), weights: Vec::new(), caches: Vec::new(), ropes, num_layers, vocab_size, max_positions, head: None };
        Self { plan, tensors, layer: None }
    }
    /// Enters layer `layer`: stages and weights added from here on belong to it.
    pub fn enter_layer(&mut self, layer: usize) {
        self.layer = Some(layer);
    }
    /// Leaves the layer scope.
    pub fn leave_layer(&mut self) {
        self.layer = None;
    }
    /// Adds a node; its value's name is `stage` in the current scope.
    pub fn push(&mut self, stage: Stage, op: Op, inputs: &[ValueId], width: usize) -> ValueId {
        let layer = if stage.info().per_layer { self.layer } else { None };
        self.plan.nodes.push(Node { op, inputs: inputs.to_vec(), at: At { stage, layer }, width });
        ValueId(self.plan.nodes.len() - 1)
    }
    /// What is added from here on is the head, which reads `input` and is computed only for rows that are wanted.
    pub fn begin_head(&mut self, input: ValueId) {
        self.plan.head = Some(input);
    }
    /// Width of a value.
    pub fn width(&self, id: ValueId) -> usize {
        self.plan.node(id).width
    }
    /// Adds this layer's cache and returns its index.
    pub fn cache(&mut self, kv_heads: usize, head_dim: usize, window: Option<usize>) -> usize {
        self.plan.caches.push(CacheSpec { layer: self.layer.unwrap_or(0), kv_heads, head_dim, window });
        self.plan.caches.len() - 1
    }
    /// The weight of `role` in the current scope with `shape`. `widths` gives the rows of each role of a fused tensor.
    pub fn weight(&mut self, role: WeightRole, bias: bool, shape: &[usize], widths: impl Fn(WeightRole) -> usize) -> Result<WeightId> {
        let name = self.tensor_name(role)?;
        let tensor = name.template.replace("{layer}", &self.layer.unwrap_or(0).to_string()) + if bias { ".bias" } else { ".weight" };
        let (rows, tensor_rows) = if name.fused.is_empty() {
            (None, shape[0])
        } else {
            let before: usize = name.fused.iter().take_while(|r| **r != role).map(|r| widths(*r)).sum();
            (Some(before..before + shape[0]), name.fused.iter().map(|r| widths(*r)).sum())
        };
        let slot = WeightSlot { role, layer: self.layer, bias, tensor, rows, tensor_rows, shape: shape.to_vec() };
        if let Some(known) = self.plan.weights.iter().position(|w| w.tensor == slot.tensor && w.rows == slot.rows) {
            return Ok(WeightId(known));
        }
        self.plan.weights.push(slot);
        Ok(WeightId(self.plan.weights.len() - 1))
    }
    fn tensor_name(&self, role: WeightRole) -> Result<TensorName> {
        let found = self.tensors.names.iter().find(|(r, _)| *r == role);
        found.map(|(_, n)| n.clone()).ok_or_else(|| Error::plan(format!("the preset names no tensor for `{}`", role.name())))
    }
    /// The finished plan, verified.
    pub fn finish(self) -> Result<Plan> {
        super::verify::verify(&self.plan)?;
        Ok(self.plan)
    }
}
