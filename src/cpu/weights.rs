//! Weights as they are stored: bands of rows, decoded row by row when an op reads them.

use super::real::{Real, decode};
use crate::error::{Error, Result};
use crate::plan::{Plan, WeightId};
use crate::quant::Format;
use bytes::Bytes;

/// The weights of a plan, slot by slot.
#[derive(Debug)]
pub struct Weights {
    slots: Vec<Slot>,
}

/// One weight: [rows, columns]; vectors are one column wide.
#[derive(Debug)]
struct Slot {
    label: String,
    rows: usize,
    columns: usize,
    /// By first row, without overlap.
    bands: Vec<Band>,
}

#[derive(Debug)]
struct Band {
    first_row: usize,
    rows: usize,
    row_bytes: usize,
    format: Format,
    bytes: Bytes,
}

impl Weights {
    /// Empty slots for `plan`.
    pub fn new(plan: &Plan) -> Self {
        let slot = |w: &crate::plan::WeightSlot| Slot {
            label: w.label(),
            rows: w.shape.first().copied().unwrap_or(1),
            columns: w.shape.iter().skip(1).product(),
            bands: Vec::new(),
        };
        Self { slots: plan.weights.iter().map(slot).collect() }
    }

    /// Rows from `first_row` on of weight `id`. What does not fit or comes twice is an error.
    pub fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: Bytes) -> Result<()> {
        let slot = self.slots.get_mut(id.0).ok_or_else(|| Error::weights(format!("the plan has no weight {}", id.0)))?;
        let wrong = |what: String| Err(Error::weights(format!("{}: {what}", slot.label)));
        let row = format.row_bytes(slot.columns).unwrap_or(0);
        if row == 0 || bytes.is_empty() || !bytes.len().is_multiple_of(row) {
            return wrong(format!("{} bytes of {format} are not whole rows of {} columns", bytes.len(), slot.columns));
        }
        let rows = bytes.len() / row;
        let end = first_row.saturating_add(rows);
        if end > slot.rows {
            return wrong(format!("rows {first_row} to {end} are out of range: it has {}", slot.rows));
        }
        if slot.bands.iter().any(|b| first_row < b.first_row + b.rows && b.first_row < end) {
            return wrong(format!("rows {first_row} to {end} come a second time"));
        }
        let place = slot.bands.partition_point(|b| b.first_row < first_row);
        slot.bands.insert(place, Band { first_row, rows, format, row_bytes: row, bytes });
        Ok(())
    }

    /// Clears all rows of weight `id`.
    pub fn clear(&mut self, id: WeightId) -> Result<()> {
        let slot = self.slots.get_mut(id.0).ok_or_else(|| Error::weights(format!("the plan has no weight {}", id.0)))?;
        slot.bands.clear();
        Ok(())
    }

    /// An error that names every slot with missing rows.
    pub fn complete(&self) -> Result<()> {
        let held = |s: &Slot| s.bands.iter().map(|b| b.rows).sum::<usize>();
        let missing: Vec<String> =
            self.slots.iter().filter(|s| held(s) < s.rows).map(|s| format!("{} ({} of {} rows)", s.label, held(s), s.rows)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::weights(format!("weights are missing: {}", missing.join(", "))))
    }

    /// Decodes rows from `row` on of weight `id` into `out`, which holds whole rows.
    pub fn read<T: Real>(&self, id: WeightId, mut row: usize, mut out: &mut [T]) -> Result<()> {
        let slot = &self.slots[id.0];
        while !out.is_empty() {
            let after = slot.bands.partition_point(|b| b.first_row <= row);
            let band = slot.bands[..after].last().filter(|b| row < b.first_row + b.rows);
            let band = band.ok_or_else(|| Error::weights(format!("weights are missing: {} (row {row})", slot.label)))?;
            let skip = row - band.first_row;
            let rows = (band.rows - skip).min(out.len().div_ceil(slot.columns));
            let (here, rest) = std::mem::take(&mut out).split_at_mut(rows * slot.columns);
            decode(&band.bytes[skip * band.row_bytes..], band.format, here)?;
            (row, out) = (row + rows, rest);
        }
        Ok(())
    }

    /// All of a vector.
    pub fn vector<T: Real>(&self, id: WeightId) -> Result<Vec<T>> {
        let mut out = vec![T::default(); self.slots[id.0].rows];
        self.read(id, 0, &mut out)?;
        Ok(out)
    }
}
