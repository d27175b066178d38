//! Builds plans: adds nodes under stages within a layer scope, and weights under roles.
//! It computes widths and knows no model; `inference::pipeline` says what to build.

use super::op::{Node, Op, Plan, StateId, StateKind, StateSpec, ValueId, WeightId, WeightSlot};
use super::stage::{At, Stage};
use crate::error::{Error, Result};
use crate::model::{RopeConfig, WeightRole};

/// A plan under construction.
#[derive(Debug)]
pub struct Builder {
    plan: Plan,
    layer: Option<usize>,
}

impl Builder {
    /// An empty plan.
    pub fn new(ropes: Vec<RopeConfig>, num_layers: usize, vocab_size: usize, max_positions: usize) -> Self {
        let plan =
            Plan { nodes: Vec::new(), weights: Vec::new(), states: Vec::new(), ropes, num_layers, vocab_size, max_positions, head: None };
        Self { plan, layer: None }
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
        self.plan.nodes.push(Node { op, inputs: inputs.to_vec(), at: At { stage, layer }, width, interventions: Vec::new() });
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
    /// Adds a state that this layer appends to.
    pub fn state(&mut self, kind: StateKind) -> StateId {
        self.plan.states.push(StateSpec { layer: self.layer.unwrap_or(0), kind });
        StateId(self.plan.states.len() - 1)
    }
    /// What layer `layer` appends under `stage`, and the state that it appends to.
    pub fn appended(&self, stage: Stage, layer: usize) -> Result<(StateId, ValueId)> {
        let at = At { stage, layer: Some(layer) };
        let found = self.plan.find(at).map(|id| (&self.plan.node(id).op, id));
        match found {
            Some((Op::Append { state, .. }, id)) => Ok((*state, id)),
            _ => Err(Error::plan(format!("{at} is read by a later layer, but it is not there"))),
        }
    }
    /// The weight of `role` in the current scope with `shape`: the one that was added before, if there is one.
    pub fn weight(&mut self, role: WeightRole, bias: bool, shape: &[usize]) -> WeightId {
        let layer = self.layer;
        if let Some(known) = self.plan.weights.iter().position(|w| (w.role, w.layer, w.bias) == (role, layer, bias)) {
            return WeightId(known);
        }
        self.plan.weights.push(WeightSlot { role, layer, bias, shape: shape.to_vec(), experts: None });
        WeightId(self.plan.weights.len() - 1)
    }
    /// Likewise of `experts` experts, each of `shape`.
    pub fn expert_weight(&mut self, role: WeightRole, bias: bool, experts: usize, shape: &[usize]) -> WeightId {
        let mut all = shape.to_vec();
        all[0] = all[0].saturating_mul(experts);
        let id = self.weight(role, bias, &all);
        self.plan.weights[id.0].experts = Some(experts);
        id
    }
    /// The finished plan, verified.
    pub fn finish(self) -> Result<Plan> {
        super::verify::verify(&self.plan)?;
        Ok(self.plan)
    }
}
