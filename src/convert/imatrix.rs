//! The importance of columns that a file has, by weight.

use crate::error::{Error, Result};
use crate::formats::ByteSource;
use crate::formats::gguf::{importance, names};
use crate::plan::WeightSlot;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Importance by the weights' names in GGUF.
#[derive(Debug, Clone, PartialEq)]
pub struct Importance {
    file: String,
    columns: BTreeMap<String, Arc<[f32]>>,
}

impl Importance {
    /// Reads a file.
    ///
    /// # Errors
    /// `Kind::Format` for another file, for sums that are no importance, and for experts; `Kind::Io` when reading fails.
    pub async fn read(source: &impl ByteSource) -> Result<Self> {
        let file = source.name();
        let mut columns = BTreeMap::new();
        for (name, sums) in importance::read(source).await?.tensors {
            if sums.counts.len() != 1 {
                let message = format!("`{name}` has {} counts, those of experts, which are not read; expected 1", sums.counts.len());
                return Err(Error::format(file, message));
            }
            // Of a weight that read nothing, nothing is known.
            columns.extend(sums.means(0).map(|means| (name, means.into())));
        }
        Ok(Self { file: file.to_owned(), columns })
    }
    /// That of the columns of a weight whose tensor, called `name`, has `shape`.
    pub(super) fn of(&self, slot: &WeightSlot, name: &str, shape: &[usize]) -> Result<Option<Arc<[f32]>>> {
        if slot.bias || shape.len() != 2 {
            return Ok(None);
        }
        let of_role = names::template(slot.role.name(), |_| false);
        let layer = slot.layer.unwrap_or(0).to_string();
        let of_role = of_role.map(|(template, _)| format!("{}.weight", template.replace("{layer}", &layer)));
        match self.named(name, shape.last().copied())? {
            None => of_role.map_or(Ok(None), |name| self.named(&name, shape.last().copied())),
            found => Ok(found),
        }
    }
    /// As [`Self::of`], by the weight's name in GGUF.
    pub(super) fn named(&self, name: &str, columns: Option<usize>) -> Result<Option<Arc<[f32]>>> {
        let Some(found) = self.columns.get(name) else { return Ok(None) };
        if Some(found.len()) == columns {
            return Ok(Some(found.clone()));
        }
        let message = format!("`{name}` has {} columns, the weight {}: it was made for another model", found.len(), columns.unwrap_or(0));
        Err(Error::format(&self.file, message))
    }
    /// The name of its file.
    pub(super) fn file_name(&self) -> String {
        let name = std::path::Path::new(&self.file).file_name();
        name.map_or_else(|| self.file.clone(), |name| name.to_string_lossy().into_owned())
    }
    /// How many weights it knows.
    pub fn len(&self) -> usize {
        self.columns.len()
    }
    /// Whether it knows none, which [`Self::read`] excludes.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }
}
