//! A plan's weight slots against the tensors of a checkpoint. Everything that does not fit is reported at once.

use super::problems::Problems;
use crate::error::{Error, Result};
use crate::formats::{TensorEntry, TensorIndex};
use crate::model::{TensorNames, WeightRole};
use crate::plan::{Plan, WeightId, WeightSlot};
use crate::tensor::DType;
use std::ops::Range;

/// Where every weight of a plan is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// One per slot, in the plan's order.
    pub weights: Vec<Placed>,
    /// What `{prefix}` stands for in this checkpoint.
    pub prefix: String,
    /// A head stored although it is tied, and the embedding: positions in the index of tensors that must be equal.
    pub head_copy: Option<(usize, usize)>,
    /// Tensors that belong to parts that Doppler does not run.
    pub ignored: Vec<String>,
}

/// One weight's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The slot.
    pub id: WeightId,
    /// Position in the index of tensors.
    pub tensor: usize,
    /// Element type: f32, f16 or bf16.
    pub dtype: DType,
    /// Rows; a vector has one per element.
    pub rows: usize,
    /// Bytes of one row.
    pub row_bytes: usize,
    /// Bytes within the tensor's file.
    pub range: Range<u64>,
}

impl Matched {
    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        self.weights.iter().map(|w| w.range.end - w.range.start).sum()
    }
    /// Element type of every slot, in the plan's order.
    pub fn dtypes(&self) -> Vec<DType> {
        self.weights.iter().map(|w| w.dtype).collect()
    }
}

/// Finds every weight of `plan` among the tensors of `index`, which are called as `names` says.
///
/// # Errors
/// One `Kind::Weights` error listing every tensor that is missing, has another shape or an element type other than
/// f32, f16 and bf16, or has no place in the plan and is not in `names.ignored`; `Kind::Plan` for a slot whose rows
/// are not rows of its tensor.
pub fn match_slots(plan: &Plan, names: &TensorNames, index: &TensorIndex) -> Result<Matched> {
    let prefix = choose_prefix(plan, names, index);
    let full = |name: &str| name.replace("{prefix}", &prefix);
    // A tied plan has no slot for the head. Its tensor may be stored nevertheless, even in place of the embedding.
    let tied = plan.weights.iter().all(|slot| slot.role != WeightRole::Head);
    let head = names.names.iter().find(|(role, _)| tied && *role == WeightRole::Head);
    let head = head.and_then(|(_, name)| index.find(&full(&format!("{}.weight", name.template))));

    let (mut weights, mut problems) = (Vec::with_capacity(plan.weights.len()), Problems::default());
    let (mut used, mut head_copy) = (vec![false; index.entries().len()], None);
    for (i, slot) in plan.weights.iter().enumerate() {
        let name = full(&slot.tensor);
        let is_table = slot.role == WeightRole::Embed;
        let found = index.find(&name);
        if let (true, Some(table), Some(head)) = (is_table, found, head) {
            head_copy = Some((head, table));
        }
        let Some(tensor) = found.or(head.filter(|_| is_table)) else {
            problems.missing(slot, name);
            continue;
        };
        used[tensor] = true;
        let entry = &index.entries()[tensor];
        if let Some(fitting) = problems.check(slot, entry) {
            weights.push(place(WeightId(i), tensor, slot, entry, fitting)?);
        }
    }
    if let Some(head) = head {
        used[head] = true;
    }
    let mut ignored = Vec::new();
    for (entry, _) in index.entries().iter().zip(used).filter(|(_, used)| !used) {
        let end = |part: &String| entry.name.starts_with(&full(part)) || entry.name.ends_with(part.as_str());
        if names.ignored.iter().any(end) {
            ignored.push(entry.name.clone());
        } else {
            problems.extra(entry);
        }
    }
    problems.into_result(&prefix)?;
    Ok(Matched { weights, prefix, head_copy, ignored })
}

/// The first candidate under which the embedding exists; else the one under which most tensors do.
fn choose_prefix(plan: &Plan, names: &TensorNames, index: &TensorIndex) -> String {
    let exists = |prefix: &String, slot: &WeightSlot| index.find(&slot.tensor.replace("{prefix}", prefix)).is_some();
    let table = plan.weights.iter().find(|slot| slot.role == WeightRole::Embed);
    let first = names.prefixes.iter().find(|p| table.is_some_and(|slot| exists(p, slot)));
    let count = |p: &&String| plan.weights.iter().filter(|slot| exists(p, slot)).count();
    // Of equals the first: `max_by_key` would take the last.
    let most = || names.prefixes.iter().rev().max_by_key(count);
    first.or_else(most).cloned().unwrap_or_default()
}

/// The band of `entry` that belongs to `slot`.
fn place(id: WeightId, tensor: usize, slot: &WeightSlot, entry: &TensorEntry, dtype: DType) -> Result<Placed> {
    let rows = slot.rows.clone().unwrap_or(0..slot.tensor_rows);
    if rows.start > rows.end || rows.end > slot.tensor_rows || slot.shape.first() != Some(&rows.len()) {
        return Err(Error::plan(format!(
            "weight {} of shape {:?}: rows {rows:?} of a tensor with {} rows",
            slot.label(),
            slot.shape,
            slot.tensor_rows
        )));
    }
    // The shape fits the entry's bytes, so these products cannot overflow.
    let row_bytes = slot.shape[1..].iter().product::<usize>() * dtype.size();
    let at = |row: usize| entry.range.start + row as u64 * row_bytes as u64;
    Ok(Placed { id, tensor, dtype, rows: rows.len(), row_bytes, range: at(rows.start)..at(rows.end) })
}
