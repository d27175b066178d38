//! Looks for NaN and infinite weights by their exponent bits, at about the speed of memory.

use super::rows::Rows;
use super::{Matched, Placed};
use crate::error::Result;
use crate::formats::TensorEntry;
use crate::quant::Format;
use crate::tensor::{DType, element};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// A tensor with elements that are not finite.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NonFinite {
    /// Its name in the checkpoint.
    pub tensor: String,
    /// Its shape there, or that of the matrix whose codes it holds.
    pub shape: Vec<usize>,
    /// NaN elements among those that the plan reads.
    pub nan: u64,
    /// Infinite elements among them.
    pub inf: u64,
    /// Flat index, in the stored tensor, of the first of them.
    pub first: u64,
}

/// Counts per tensor. Several threads add to them.
#[derive(Default)]
pub(super) struct Findings {
    by_tensor: Mutex<HashMap<String, Counts>>,
}

struct Counts {
    nan: u64,
    inf: u64,
    first: u64,
}

impl Findings {
    /// Looks at `bytes`, rows of `weight` from its `row`-th on; `tensor` is what it is called.
    pub fn look(&self, tensor: &str, weight: &Placed, bytes: &[u8], row: usize) -> Result<()> {
        let columns = weight.shape.iter().skip(1).product::<usize>();
        let first = (weight.band.as_ref().map_or(0, |band| band.start) + row) as u64 * columns as u64;
        let Some(dtype) = weight.format.dtype() else { return self.look_in_blocks(tensor, bytes, weight.format, columns, first) };
        match &weight.source {
            Rows::Spread(_, spread) => {
                self.look_at_values(tensor, bytes, dtype, |i| spread.index((row * columns) as u64 + i, columns as u64));
            }
            _ => self.look_at_values(tensor, bytes, dtype, |i| first + i),
        }
        Ok(())
    }
    /// Decodes rows of packed weights: a scale that is not finite makes a whole block so.
    fn look_in_blocks(&self, tensor: &str, bytes: &[u8], format: Format, columns: usize, mut first: u64) -> Result<()> {
        let mut row = vec![0.0; columns];
        let row_bytes = format.row_bytes(columns).filter(|bytes| *bytes > 0);
        for bytes in bytes.chunks(row_bytes.unwrap_or(usize::MAX)) {
            format.decode(bytes, &mut row)?;
            // A sum is not finite where one of its terms is not; finite ones can reach no infinity in f64.
            if !row.iter().map(|x| f64::from(*x)).sum::<f64>().is_finite() {
                for (i, x) in row.iter().enumerate().filter(|(_, x)| !x.is_finite()) {
                    self.add(tensor, x.is_nan(), first + i as u64);
                }
            }
            first += columns as u64;
        }
        Ok(())
    }
    /// Looks at plain values, of which number i is the tensor's `index(i)`-th.
    fn look_at_values(&self, tensor: &str, bytes: &[u8], dtype: DType, index: impl Fn(u64) -> u64) {
        const BLOCK: usize = 8192;
        for (block, part) in bytes.chunks(BLOCK).enumerate() {
            if count(part, dtype) == 0 {
                continue;
            }
            let size = dtype.size();
            for i in 0..part.len() / size {
                let value = element(part, dtype, i);
                if !value.is_finite() {
                    self.add(tensor, value.is_nan(), index((block * BLOCK / size + i) as u64));
                }
            }
        }
    }
    fn add(&self, tensor: &str, nan: bool, index: u64) {
        let mut by_tensor = self.by_tensor.lock().unwrap_or_else(PoisonError::into_inner);
        if !by_tensor.contains_key(tensor) {
            by_tensor.insert(tensor.to_string(), Counts { nan: 0, inf: 0, first: index });
        }
        if let Some(counts) = by_tensor.get_mut(tensor) {
            *(if nan { &mut counts.nan } else { &mut counts.inf }) += 1;
            counts.first = counts.first.min(index);
        }
    }
    /// What was found, in the order of the plan's weights.
    pub fn in_order(self, entries: &[TensorEntry], matched: &Matched) -> Vec<NonFinite> {
        let mut by_tensor = self.by_tensor.into_inner().unwrap_or_else(PoisonError::into_inner);
        let parts = matched.weights.iter().flat_map(|weight| weight.parts(0..weight.rows));
        let used = parts.map(|(part, ..)| (&entries[part.tensor].name, &part.shape));
        used.filter_map(|(name, shape)| {
            let Counts { nan, inf, first } = by_tensor.remove(name)?;
            Some(NonFinite { tensor: name.clone(), shape: shape.clone(), nan, inf, first })
        })
        .collect()
    }
}

/// Elements of little-endian `bytes` whose exponent bits are all ones. Plain loops over words, which vectorise.
fn count(bytes: &[u8], dtype: DType) -> u32 {
    let halves = |mask: u16| {
        let words = bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes([b[0], b[1]]));
        // At most 4096 per block, so the count fits u16 and the lanes stay narrow.
        u32::from(words.map(|w| u16::from(w & mask == mask)).sum::<u16>())
    };
    match dtype {
        DType::F32 => {
            let words = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            words.map(|w| u32::from(w & 0x7f80_0000 == 0x7f80_0000)).sum()
        }
        DType::F16 => halves(0x7c00),
        DType::BF16 => halves(0x7f80),
        DType::I32 => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn finds_every_kind_in_every_type() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let encode = |x: f32| match dtype {
                DType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
                DType::BF16 => bf16::from_f32(x).to_le_bytes().to_vec(),
                _ => x.to_le_bytes().to_vec(),
            };
            let mut values = vec![1.0f32; 20_000];
            (values[0], values[19_999]) = (65504.0, -1e-8);
            let bytes: Vec<u8> = values.iter().flat_map(|x| encode(*x)).collect();
            let mut findings = Findings::default();
            findings.look_at_values("t", &bytes, dtype, |i| 100 + i);
            assert!(findings.by_tensor.get_mut().unwrap().is_empty());

            (values[9_000], values[9_001], values[19_999]) = (f32::NEG_INFINITY, f32::NAN, -f32::NAN);
            let bytes: Vec<u8> = values.iter().flat_map(|x| encode(*x)).collect();
            findings.look_at_values("t", &bytes, dtype, |i| 100 + i);
            let found = &findings.by_tensor.get_mut().unwrap()["t"];
            assert_eq!((found.nan, found.inf, found.first), (2, 1, 9_100));
        }
    }
}
