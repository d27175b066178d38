//! Where a checkpoint keeps the weights of a plan: a tensor's name for each, and which of its rows.

use crate::error::{Error, Result};
use crate::model::{TensorName, TensorNames, WeightRole};
use crate::plan::{Plan, WeightId, WeightSlot};
use std::collections::HashMap;
use std::ops::Range;

/// A tensor, or a band of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name in the checkpoint, `{prefix}` not yet replaced. Where it has `{expert}`, each expert has a tensor.
    pub tensor: String,
    /// The weight's rows of it; of experts, each one's. Where roles take turns, from the first of them, and as many.
    pub rows: Range<usize>,
    /// Shape of the whole tensor, of a transposed one as if it were not.
    pub shape: Vec<usize>,
    /// How many experts have such rows, one after the other, in one tensor or in one each.
    pub experts: Option<usize>,
    /// Columns, where a vector is stored as a table.
    pub columns: Option<usize>,
    /// How many of the weight's rows follow each other in the tensor, before those of others come: 1 where none come.
    pub run: usize,
    /// From the beginning of one such run to that of the next.
    pub every: usize,
    /// The tensor has the columns of `shape` as rows.
    pub transposed: bool,
}

impl Place {
    /// The tensor's name in a checkpoint with `prefix`.
    pub fn name(&self, prefix: &str) -> String {
        self.name_of(prefix, 0)
    }
    /// That of an expert's, which is another one for each where each has a tensor.
    pub fn name_of(&self, prefix: &str, expert: usize) -> String {
        let name = self.tensor.replace("{prefix}", prefix);
        if self.is_split() { name.replace(EXPERT, &expert.to_string()) } else { name }
    }
    /// Whether its rows do not follow each other in the tensor, or are its columns.
    pub fn is_spread(&self) -> bool {
        self.transposed || self.every > self.run
    }
    /// Rows of the whole tensor, or of each expert's.
    pub fn height(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }
    /// Shape of the whole tensor as it is stored.
    pub fn stored_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let (true, [.., rows, columns]) = (self.transposed, &mut shape[..]) {
            std::mem::swap(rows, columns);
        }
        shape
    }
    /// Whether each expert has a tensor.
    pub fn is_split(&self) -> bool {
        self.tensor.contains(EXPERT)
    }
    /// Whether the tensor may be of `shape`: its own, or that of a table, whose rows may be tables of one row. A matrix of one row
    /// may be stored as a vector.
    pub fn fits(&self, shape: &[usize]) -> bool {
        if self.transposed {
            return shape == self.stored_shape();
        }
        let all = self.shape.iter().product::<usize>();
        match (self.columns, shape) {
            (Some(columns), [rows, last]) | (Some(columns), [rows, 1, last]) if *last == columns => rows.checked_mul(columns) == Some(all),
            _ => shape == self.shape || matches!(&self.shape[..], [1, rest @ ..] if rest == shape),
        }
    }
}

/// Row `i` of some rows, of which `run` at a time follow each other, from `first` on, and each run begins `every` rows after the one
/// before it.
pub(super) fn nth_row(i: usize, first: usize, run: usize, every: usize) -> usize {
    first + i / run.max(1) * every + i % run.max(1)
}

/// Stands for an expert's number.
const EXPERT: &str = "{expert}";

/// `names` with, of several templates for a role, that one first whose tensors `exists` knows.
pub(super) fn of_files(plan: &Plan, names: &TensorNames, exists: impl Fn(&str) -> bool) -> TensorNames {
    let is_there = |role: WeightRole, name: &TensorName| {
        let layer = plan.weights.iter().find(|slot| slot.role == role).and_then(|slot| slot.layer).unwrap_or(0);
        let of_prefix = |prefix: &String| name.name(layer, false).replace("{prefix}", prefix).replace(EXPERT, "0");
        names.prefixes.iter().any(|prefix| exists(&of_prefix(prefix)))
    };
    let mut found = names.clone();
    // Stable: of those that are there, and of those that are not, the first stays first.
    found.names.sort_by_cached_key(|(role, name)| (*role, !is_there(*role, name)));
    found
}

impl TensorName {
    /// A tensor's name, but for the prefix and an expert's number.
    fn name(&self, layer: usize, bias: bool) -> String {
        let ending = match (self.bare, bias) {
            (false, false) => ".weight",
            (false, true) => ".bias",
            (true, false) => "",
            (true, true) => "_bias",
        };
        self.template.replace("{layer}", &layer.to_string()) + ending
    }
}

/// The places of every weight of `plan`, in its order, in a checkpoint whose tensors are called as `names` says.
///
/// # Errors
/// `Kind::Plan` when `names` lacks a role, or fuses it with one that the plan does not have.
pub fn places(plan: &Plan, names: &TensorNames) -> Result<Vec<Place>> {
    let rows_of = |slot: &WeightSlot| slot.shape.first().copied().unwrap_or(1) / slot.experts.unwrap_or(1).max(1);
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
        let tensor = name.name(slot.layer.unwrap_or(0), slot.bias);
        let mut shape = slot.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = if name.fused.is_empty() { rows_of(slot) } else { all };
        }
        if let Some(experts) = slot.experts.filter(|_| !tensor.contains(EXPERT)) {
            shape.insert(0, experts);
        }
        let columns = plan.columns(WeightId(i));
        // A vector has no columns that could be rows.
        let transposed = name.rows.transposed && slot.shape.len() > 1;
        let turn = name.fused.iter().position(|role| *role == slot.role).zip(name.rows.interleaved);
        let (first, run, every) = match turn {
            Some((turn, run)) => (turn * run.max(1), run.max(1), name.fused.len() * run.max(1)),
            None => (before, 1, 1),
        };
        if turn.is_some() && (all != rows_of(slot) * name.fused.len() || !rows_of(slot).is_multiple_of(run)) {
            let message = format!("{} takes turns of {run} rows in `{tensor}` with weights of another height", slot.label());
            return Err(Error::plan(message));
        }
        Ok(Place { tensor, rows: first..first + rows_of(slot), shape, experts: slot.experts, columns, run, every, transposed })
    };
    plan.weights.iter().enumerate().map(place).collect()
}
