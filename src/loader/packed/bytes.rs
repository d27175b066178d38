//! Matrices of one byte for each element, row by row, with a grid of scales: FP8 and INT8 of compressed-tensors, FP8 with
//! `weight_scale_inv`, which multiplies too, and INT8 of bitsandbytes. The last blocks of a grid may be cut off.

use super::{Codes, Part, Row, Shape};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scaled {
    pub kind: Bytes,
    /// Rows and columns that share a scale.
    pub block: [usize; 2],
    /// Scales for the columns of a row.
    pub across: usize,
}

/// What the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    E4m3,
    Signed,
    /// Whole numbers of which 127 is the scale itself.
    Of127,
}

impl Scaled {
    pub fn codes(&self) -> Codes {
        match self.kind {
            Bytes::E4m3 => Codes::E4m3,
            Bytes::Signed | Bytes::Of127 => Codes::Signed,
        }
    }
    pub fn row(&self, parts: &[Part], shape: Shape, row: usize, out: &mut Row) {
        let [weight, scales, ..] = parts else { return };
        if let Some(bytes) = weight.bytes.get(row * shape.columns..(row + 1) * shape.columns) {
            out.codes.copy_from_slice(bytes);
        }
        let first = row / self.block[0].max(1) * self.across;
        let unit = if self.kind == Bytes::Of127 { 1.0 / 127.0 } else { 1.0 };
        out.scales.clear();
        out.scales.extend((0..self.across).map(|i| scales.number(first + i) * unit));
        out.offsets.clear();
    }
}
