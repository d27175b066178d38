//! File formats: bytes to typed records, pure. A format knows nothing of models, plans or devices; what all of them
//! describe is a [`TensorIndex`]: named, typed, shaped ranges of bytes in one or more files.

mod content;
mod folder;
pub mod gguf;
pub mod manifest;
pub mod safetensors;
pub mod sharded;
pub mod shards;
pub mod source;
#[cfg(not(target_arch = "wasm32"))]
pub mod text;
#[cfg(not(target_arch = "wasm32"))]
pub mod write;

pub use content::Content;
pub use folder::ModelTexts;
pub use source::{ByteSource, InMemory, Local};
#[cfg(not(target_arch = "wasm32"))]
pub use source::{FileState, LocalFile};

use crate::quant::Format;
use crate::tensor::DType;
use std::collections::HashMap;
use std::ops::Range;

/// Element type of a stored tensor. Types that Doppler does not compute with are no error until one is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Plain values of a type that Doppler reads.
    Known(DType),
    /// Blocks that Doppler reads, or plain values of a type that it only reads: f64, which it rounds to f32, and FP8.
    Packed(Format),
    /// Any other, by the file's own name for it (`F8_E8M0`, `I64`).
    Other(String),
}

impl Stored {
    /// The type of plain values, if Doppler reads it.
    pub fn known(&self) -> Option<DType> {
        match self {
            Stored::Known(dtype) => Some(*dtype),
            Stored::Packed(_) | Stored::Other(_) => None,
        }
    }
    /// The format, if weights can have it.
    pub fn format(&self) -> Option<Format> {
        match self {
            Stored::Known(dtype) => Format::of(*dtype),
            Stored::Packed(format) => Some(*format),
            Stored::Other(_) => None,
        }
    }
}

impl std::fmt::Display for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stored::Known(dtype) => f.write_str(dtype.name()),
            Stored::Packed(format) => f.write_str(format.name()),
            Stored::Other(name) => f.write_str(name),
        }
    }
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Name in the checkpoint.
    pub name: String,
    /// Element type.
    pub dtype: Stored,
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Which of the checkpoint's files.
    pub file: usize,
    /// Bytes in that file, counted from its beginning.
    pub range: Range<u64>,
}

impl TensorEntry {
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// The tensors of a checkpoint, in file order, with unique names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorIndex {
    entries: Vec<TensorEntry>,
    by_name: HashMap<String, usize>,
}

impl TensorIndex {
    /// An index of `entries`, or the name that two of them share with the files they are in.
    pub fn new(entries: Vec<TensorEntry>) -> Result<Self, (String, usize, usize)> {
        let mut by_name = HashMap::with_capacity(entries.len());
        for (i, entry) in entries.iter().enumerate() {
            if let Some(other) = by_name.insert(entry.name.clone(), i) {
                return Err((entry.name.clone(), entries[other].file, entry.file));
            }
        }
        Ok(Self { entries, by_name })
    }
    /// All tensors.
    pub fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }
    /// Position of the tensor called `name`.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&TensorEntry> {
        self.find(name).map(|i| &self.entries[i])
    }
}
