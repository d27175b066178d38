//! The embedding: its factor, its table.

use super::weight::stored_as;
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, ratio, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::plan::Op;
use crate::plan::edit::{ConfigEdit, Edit, Slot, weight::Change};

/// Hypotheses for the embedding of `case`.
pub async fn hypotheses<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let Op::Embed { table, scale } = node.op else { return Ok(Vec::new()) };
    let Some(y) = case.value(node.at)? else { return Ok(Vec::new()) };
    let ids = case.reference.input_ids()?;
    let (width, stored) = (node.width, case.weight(table).await?);
    let row = |id: u32| stored.get(id as usize * width..(id as usize + 1) * width).unwrap_or_default();
    let ours = || ids.iter().take(case.tokens).flat_map(|id| row(*id).iter().map(|w| f64::from(*w)));
    let theirs = || y.data.iter().map(|y| f64::from(*y));
    let slot = Slot::of(case.plan, table);
    let (factor, off) = ratio(ours(), theirs());
    if off <= CLOSE {
        let root = (width as f64).sqrt();
        let factor = if (factor / root - 1.0).abs() < 1e-6 { root } else { snap(factor, 1e-6) };
        let why = format!("the reference's embeddings are the rows of the table times {factor}, and not {scale}");
        return Ok(vec![Hypothesis::new(Cause::EmbedScale, vec![Edit::Config(ConfigEdit::EmbeddingScale(factor))], why)]);
    }
    let mut found = Vec::new();
    for other in case.alike(table) {
        let values = case.weight(other).await?;
        let rows = ids.iter().take(case.tokens).flat_map(|id| &values[*id as usize * width..(*id as usize + 1) * width]);
        if ratio(rows.map(|w| f64::from(*w) * scale), theirs()).1 <= CLOSE {
            let other = Slot::of(case.plan, other);
            let edits = vec![Edit::Weight(slot, Change::From(other)), Edit::Weight(other, Change::From(slot))];
            found.push(Hypothesis::of_weight(
                Cause::SwappedTensors,
                slot,
                edits,
                format!("the table that is meant lies under {}", super::label(other)),
            ));
        }
    }
    if found.is_empty() && scale != 0.0 {
        found.extend(elements(&ids, &y.data, &stored, slot, scale, width));
    }
    Ok(found)
}

/// Elements of the rows that were read. Where most differ, they are no sign of damage, and nothing is said.
fn elements(ids: &[u32], y: &[f32], stored: &[f32], slot: Slot, scale: f64, width: usize) -> Option<Hypothesis> {
    let size = (y.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>() / y.len().max(1) as f64).sqrt() / scale.abs();
    let mut off = std::collections::BTreeMap::new();
    for (id, row) in ids.iter().zip(y.chunks_exact(width)) {
        for (i, y) in row.iter().enumerate() {
            let (at, wanted) = (*id as usize * width + i, f64::from(*y) / scale);
            let ours = f64::from(*stored.get(at)?);
            if (wanted - ours).abs().partial_cmp(&(CLOSE * size.max(wanted.abs()))) != Some(std::cmp::Ordering::Less) {
                off.insert(at, stored_as(wanted, CLOSE * size.max(wanted.abs())));
            }
        }
    }
    let (count, seen) = (off.len(), y.len());
    let first = off.keys().next().copied()?;
    let why = format!(
        "{count} elements of the rows that were read are others in the reference, the first in row {}, column {}; rows that were not read are unknown",
        first / width,
        first % width
    );
    let edits = vec![Edit::Weight(slot, Change::Elements(off.into_iter().collect()))];
    (count * 4 <= seen).then(|| Hypothesis::of_weight(Cause::CorruptWeight, slot, edits, why).rank(3))
}
