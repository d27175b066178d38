//! Element types and shaped host tensors. Knows nothing of files, plans or devices.

use crate::error::{Error, Result};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Element type of stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of binary32.
    BF16,
    /// 32-bit signed integer (token ids in dumps).
    I32,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }
    /// Lower-case name: `f32`, `f16`, `bf16`, `i32`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Product in u64, because `usize` has 32 bits on wasm; saturates at `u64::MAX`.
pub(crate) fn product(factors: impl IntoIterator<Item = usize>) -> u64 {
    factors.into_iter().fold(1, |product, factor| product.saturating_mul(factor as u64))
}

/// A value on the host: row-major f32 with its shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major; `shape` multiplied.
    pub data: Vec<f32>,
}

impl Tensor {
    /// A tensor of `shape` over `data`; an error when the counts differ.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Result<Self> {
        let expected: usize = shape.iter().product();
        if expected != data.len() {
            return Err(Error::invalid("tensor", format!("shape {shape:?} holds {expected} elements, found {}", data.len())));
        }
        Ok(Self { shape, data })
    }
    /// Length of one row: the last size.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }
    /// Number of rows: every size but the last, multiplied.
    pub fn rows(&self) -> usize {
        self.data.len().checked_div(self.width()).unwrap_or(0)
    }
    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.width()..(i + 1) * self.width()]
    }
}

/// Element `i` of little-endian `bytes` of `dtype`, as f32 (exact for f32, f16, bf16).
pub fn element(bytes: &[u8], dtype: DType, i: usize) -> f32 {
    match dtype {
        DType::F32 => f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]),
        DType::I32 => i32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]) as f32,
        DType::F16 => f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
        DType::BF16 => bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
    }
}

/// All elements of little-endian `bytes`, as f32.
pub fn to_f32(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => (0..bytes.len() / dtype.size()).map(|i| element(bytes, dtype, i)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_dtype() {
        assert_eq!(to_f32(&1.5f32.to_le_bytes(), DType::F32), [1.5]);
        assert_eq!(to_f32(&f16::from_f32(-2.25).to_le_bytes(), DType::F16), [-2.25]);
        assert_eq!(to_f32(&bf16::from_f32(3.0).to_le_bytes(), DType::BF16), [3.0]);
        assert_eq!(to_f32(&(-7i32).to_le_bytes(), DType::I32), [-7.0]);
        assert!(Tensor::new(vec![2, 2], vec![0.0; 3]).is_err());
    }
}
