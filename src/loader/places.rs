//! Where a checkpoint keeps the weights of a plan: a tensor's name for each, and which of its rows.

use crate::error::{Error, Result};
use crate::model::{TensorName, TensorNames, WeightRole};
use crate::plan::{Plan, WeightId, WeightSlot};
use std::collections::HashMap;
use std::ops::Range;

/// A tensor, or a band of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name in the checkpoint, `{prefix}` not yet replaced.
    pub tensor: String,
    /// The weight's rows of it.
    pub rows: Range<usize>,
    /// Shape of the whole tensor.
    pub shape: Vec<usize>,
    /// Columns, where a vector is stored as a table.
    pub columns: Option<usize>,
}

impl Place {
    /// The tensor's name in a checkpoint with `prefix`.
    pub fn name(&self, prefix: &str) -> String {
        self.tensor.replace("{prefix}", prefix)
    }
    /// Whether the tensor may be of `shape`: its own, or that of a table, whose rows may be tables of one row.
    pub fn fits(&self, shape: &[usize]) -> bool {
        let all = self.shape.iter().product::<usize>();
        match (self.columns, shape) {
            (Some(columns), [rows, last]) | (Some(columns), [rows, 1, last]) if *last == columns => rows.checked_mul(columns) == Some(all),
            _ => shape == self.shape,
        }
    }
}

/// The places of every weight of `plan`, in its order, in a checkpoint whose tensors are called as `names` says.
///
/// # Errors
/// `Kind::Plan` when `names` lacks a role, or fuses it with one that the plan does not have.
pub fn places(plan: &Plan, names: &TensorNames) -> Result<Vec<Place>> {
    let rows_of = |slot: &WeightSlot| slot.shape.first().copied().unwrap_or(1);
    let by_role: HashMap<WeightRole, &TensorName> = names.names.iter().rev().map(|(role, name)| (*role, name)).collect();
    let fused = |slot: &WeightSlot| by_role.get(&slot.role).is_some_and(|name| !name.fused.is_empty());
    let rows: HashMap<_, usize> = plan.weights.iter().filter(|w| fused(w)).map(|w| ((w.role, w.layer, w.bias), rows_of(w))).collect();
    let place = |(i, slot): (usize, &WeightSlot)| {
        let name = by_role.get(&slot.role);
        let name = name.ok_or_else(|| Error::plan(format!("the preset names no tensor for `{}`", slot.role.name())))?;
        let (mut before, mut all) = (0, 0);
        for role in &name.fused {
            if *role == slot.role {
                before = all;
            }
            let other = rows.get(&(*role, slot.layer, slot.bias));
            all += other
                .ok_or_else(|| Error::plan(format!("{} shares a tensor with `{}`, which the plan lacks", slot.label(), role.name())))?;
        }
        let tensor = name.template.replace("{layer}", &slot.layer.unwrap_or(0).to_string()) + if slot.bias { ".bias" } else { ".weight" };
        let mut shape = slot.shape.clone();
        if let (Some(rows), false) = (shape.first_mut(), name.fused.is_empty()) {
            *rows = all;
        }
        Ok(Place { tensor, rows: before..before + rows_of(slot), shape, columns: plan.columns(WeightId(i)) })
    };
    plan.weights.iter().enumerate().map(place).collect()
}
