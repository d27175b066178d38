//! Formats of plain values, and the element types of values that they are.

use super::Format;
use crate::error::{Error, Result};
use crate::tensor::DType;

impl Format {
    /// The format of weights that are plain values of `dtype`; `None` if weights cannot be such.
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Format::F32),
            DType::F16 => Some(Format::F16),
            DType::BF16 => Some(Format::BF16),
            DType::I32 => None,
        }
    }
    /// The element type of plain values; `None` for blocks.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Format::F32 => Some(DType::F32),
            Format::F16 => Some(DType::F16),
            Format::BF16 => Some(DType::BF16),
            _ => None,
        }
    }
    /// Are weights of this format plain values, each of which stands alone? f64 too, though no value is computed in it.
    pub fn is_plain(self) -> bool {
        self.info().block == 1
    }
    /// All elements of whole blocks.
    ///
    /// # Errors
    /// `Kind::Invalid` when `bytes` are no whole blocks.
    pub fn values(self, bytes: &[u8]) -> Result<Vec<f32>> {
        let info = self.info();
        if !bytes.len().is_multiple_of(info.bytes) {
            return Err(Error::invalid(
                "bytes",
                format!("{} bytes are no whole blocks of {self} ({} bytes each)", bytes.len(), info.bytes),
            ));
        }
        let mut values = vec![0.0; bytes.len() / info.bytes * info.block];
        self.decode(bytes, &mut values)?;
        Ok(values)
    }
}
