//! The importance of columns, from a file of llama.cpp's form: GGUF with two tensors for each weight, `NAME.in_sum2`, the
//! sums of the squares that came into its columns, and `NAME.counts`, how often.

use crate::error::{Error, Result};
use crate::formats::gguf::{names, read_header};
use crate::formats::{ByteSource, TensorEntry};
use crate::plan::WeightSlot;
use crate::quant::Format;
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
    /// `Kind::Format` for another file, and for sums that are no importance; `Kind::Io` when reading fails.
    pub async fn read(source: &impl ByteSource) -> Result<Self> {
        let header = read_header(source).await?;
        let wrong = |message: String| Error::format(source.name(), message);
        let index = header.index()?;
        let mut columns = BTreeMap::new();
        for sums in index.entries() {
            let Some(name) = sums.name.strip_suffix(".in_sum2") else { continue };
            let counts = index.get(&format!("{name}.counts")).ok_or_else(|| wrong(format!("`{name}` has no counts")))?;
            let (sums, counts) = (values(source, sums).await?, values(source, counts).await?);
            let [count] = counts[..] else {
                return Err(wrong(format!("`{name}` has {} counts, those of experts, which are not read; expected 1", counts.len())));
            };
            let mean: Vec<f32> = sums.iter().map(|sum| if count > 0.0 { sum / count } else { 1.0 }).collect();
            if mean.iter().any(|x| !x.is_finite() || *x < 0.0) {
                return Err(wrong(format!("`{name}` has sums that are negative, or not finite")));
            }
            columns.insert(name.to_owned(), mean.into());
        }
        if columns.is_empty() {
            return Err(wrong("no importance matrix in GGUF form: no tensor ends in `.in_sum2`".into()));
        }
        Ok(Self { file: source.name().to_owned(), columns })
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

async fn values(source: &impl ByteSource, entry: &TensorEntry) -> Result<Vec<f32>> {
    let format = entry.dtype.format().filter(|format| *format == Format::F32);
    let format =
        format.ok_or_else(|| Error::format(source.name(), format!("tensor `{}`: expected f32, found {}", entry.name, entry.dtype)))?;
    format.values(&source.read(entry.range.clone()).await?)
}
