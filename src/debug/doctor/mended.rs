//! What the files of a mended model hold in place of what they hold: bytes of tensors, by file and place. Only plain tensors can
//! be mended so; a packed one would have to be encoded again, from values that nobody has.

use super::trial::{Patient, Trial};
use crate::debug::weight_source::columns;
use crate::error::{Error, Result};
use crate::formats::ByteSource;
use crate::loader::Rows;
use crate::plan::edit::{Edit, Slot};
use crate::quant::encode_rows;
use std::collections::BTreeSet;
use std::ops::Range;

/// Bytes of a file that are replaced.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    /// Name of the file, as its source says.
    pub file: String,
    /// Which bytes.
    pub range: Range<u64>,
    /// What they become.
    pub bytes: Vec<u8>,
}

/// The patches that make the weights of `edits`.
///
/// # Errors
/// `Kind::Invalid` for weights that are not stored as plain numbers; those of reading the files.
pub async fn patches<S: ByteSource>(patient: &Patient<'_, S>, edits: &[Edit]) -> Result<Vec<Patch>> {
    let trial = Trial::new(patient, edits)?;
    let stored = trial.stored(patient);
    let edited = trial.edited(patient, &stored);
    let changed: BTreeSet<Slot> = trial.changes.iter().map(|(slot, _)| *slot).collect();
    let mut patches = Vec::new();
    for slot in changed {
        let Some(id) = slot.find(&trial.plan) else { continue };
        let placed = &trial.matched.weights[id.0];
        let entry = &patient.checkpoint.index.entries()[placed.tensor];
        let Rows::Plain(range) = placed.source.clone() else {
            return Err(Error::invalid("--apply", format!("{} is not stored as plain rows: convert a right checkpoint again", entry.name)));
        };
        if placed.format.dtype().is_none() {
            let text = format!("{} is packed as {}: convert a right checkpoint again", entry.name, placed.format);
            return Err(Error::invalid("--apply", text));
        }
        let values = edited.whole(id).await?;
        let bytes = encode_rows(placed.format, &values, columns(&trial.plan.weights[id.0]), None)?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(Error::weights(format!(
                "{}: {} bytes would take the place of {}",
                entry.name,
                bytes.len(),
                range.end - range.start
            )));
        }
        patches.push(Patch { file: patient.checkpoint.sources[entry.file].name().to_string(), range, bytes });
    }
    Ok(patches)
}
