//! Where a checkpoint keeps the weights of a plan: a tensor's name for each, and which of its rows.

use super::making::Making;
use crate::error::{Error, Result};
use crate::model::{Sections, TensorName, TensorNames, Tiles, WeightRole};
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
    /// Which rows of the tensor they are.
    pub order: Order,
    /// The tensor has the columns of `shape` as rows.
    pub transposed: bool,
    /// What is done to its rows.
    pub making: Option<Making>,
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
        self.transposed || self.order.every > self.order.run() || self.order.tiles.is_some()
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

/// Which rows of a tensor, from some first one on, are a weight's: runs of them, before each of which come those of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// How many follow each other: in each of so many runs first, then in as many others, which begin where those end. Mostly there is
    /// no second kind, and a run of 1 where no others come.
    runs: [usize; 3],
    /// How many runs of a kind there are, where there is another.
    heads: usize,
    /// From the beginning of one run to that of the next of its kind.
    pub every: usize,
    /// Or they are all rows, with heads in another order.
    tiles: Option<Tiles>,
}

impl Order {
    /// Runs of one kind.
    pub fn new(run: usize, every: usize) -> Self {
        Self { runs: [run.max(1), 0, 0], heads: 0, every, tiles: None }
    }
    /// All rows, whose heads lie as `tiles` says.
    pub fn tiled(tiles: Tiles) -> Self {
        Self { tiles: Some(tiles), ..Self::new(tiles.width, tiles.width) }
    }
    /// Rows of the first runs.
    pub fn run(&self) -> usize {
        self.runs[0]
    }
    /// Whether runs are of several kinds.
    pub fn is_mixed(&self) -> bool {
        self.runs[1] > 0
    }
    /// Row `i` of the weight, where its first is at `first`, and how many from it on follow each other.
    pub fn nth(&self, mut i: usize, mut first: usize) -> (usize, usize) {
        if let Some(tiles) = &self.tiles {
            let (at, left) = tiles.stored(i);
            return (first + at, left);
        }
        let mut run = self.runs[0];
        for next in &self.runs[1..] {
            if *next == 0 || i < run * self.heads {
                break;
            }
            (i, first, run) = (i - run * self.heads, first + run, *next);
        }
        (first + i / run * self.every + i % run, run - i % run)
    }
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

/// The first row, and which others, of a weight of `rows` rows that has the sections after the first `before` rows of all heads.
fn sections_of(sections: &Sections, before: usize, rows: usize) -> Option<(usize, Order)> {
    let heads = sections.heads.max(1);
    let (first, wanted) = (before.checked_div(heads)?, rows.checked_div(heads)?);
    let (mut at, mut runs, mut kinds) = (0, [0; 3], 0);
    for section in sections.rows {
        if at >= first && at < first + wanted {
            *runs.get_mut(kinds)? = section;
            kinds += 1;
        }
        at += section;
    }
    let fits = runs[0] > 0 && runs.iter().sum::<usize>().saturating_mul(heads) == rows && first.saturating_mul(heads) == before;
    fits.then(|| (first, Order { runs, heads, every: sections.rows.iter().sum(), tiles: None }))
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
        let (first, order) = match (turn, name.rows.sections) {
            (Some((turn, run)), _) => (turn * run.max(1), Order::new(run, name.fused.len() * run.max(1))),
            (None, Some(sections)) => sections_of(&sections, before, rows_of(slot))
                .filter(|_| sections.rows.iter().sum::<usize>().saturating_mul(sections.heads) == all)
                .ok_or_else(|| Error::plan(format!("{} has other rows than its part of each head in `{tensor}`", slot.label())))?,
            (None, None) => (before, Order::new(1, 1)),
        };
        // A vector that is stored as a table has a row for each of its elements.
        let of_row = columns.unwrap_or(1);
        let tiles = name.rows.tiles.map(|tiles| match tiles.columns {
            true => tiles,
            false => Tiles { before: tiles.before.saturating_mul(of_row), width: tiles.width.saturating_mul(of_row), ..tiles },
        });
        let order = match tiles.filter(|tiles| !tiles.columns) {
            Some(tiles) if name.fused.is_empty() && tiles.all() == rows_of(slot) => Order::tiled(tiles),
            Some(tiles) => return Err(Error::plan(format!("{} has other rows than {tiles:?} in `{tensor}`", slot.label()))),
            None => order,
        };
        let making = match tiles.filter(|tiles| tiles.columns) {
            Some(tiles) if slot.shape.get(1) == Some(&tiles.all()) => Some(Making::Columns(tiles)),
            Some(tiles) => return Err(Error::plan(format!("{} has other columns than {tiles:?} in `{tensor}`", slot.label()))),
            None => name.rows.negated_exp.then_some(Making::Logarithm),
        };
        if let Some((_, run)) = turn
            && (all != rows_of(slot) * name.fused.len() || !rows_of(slot).is_multiple_of(run.max(1)))
        {
            let message = format!("{} takes turns of {run} rows in `{tensor}` with weights of another height", slot.label());
            return Err(Error::plan(message));
        }
        Ok(Place { tensor, rows: first..first + rows_of(slot), shape, experts: slot.experts, columns, order, transposed, making })
    };
    plan.weights.iter().enumerate().map(place).collect()
}
