//! Types of tensors by ggml's numbers: formats of weights, whose sizes `quant` has, and what else there is.

use super::super::Stored;
use crate::quant::Format;
use crate::tensor::DType;

/// A type of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeInfo {
    /// ggml's number for it.
    pub id: u32,
    /// Its name, in lower case.
    pub name: &'static str,
    /// Elements of a block.
    pub block: u64,
    /// Bytes of a block.
    pub bytes: u64,
}

const fn row(id: u32, name: &'static str, block: u64, bytes: u64) -> TypeInfo {
    TypeInfo { id, name, block, bytes }
}

/// Types of tensors that no weights can have. Source: ggml's `ggml_type` and the block structures beside it.
const OTHERS: &[TypeInfo] = &[
    row(15, "q8_k", 256, 292),
    row(19, "iq1_s", 256, 50),
    row(24, "i8", 1, 1),
    row(25, "i16", 1, 2),
    row(26, "i32", 1, 4),
    row(27, "i64", 1, 8),
    row(29, "iq1_m", 256, 56),
    row(40, "nvfp4", 64, 36),
];

/// The type with ggml's number `id`: a format of weights, or another.
pub fn type_info(id: u32) -> Option<TypeInfo> {
    let of_weights = Format::of_ggml(id).map(Format::info).map(|info| row(id, info.name, info.block as u64, info.bytes as u64));
    of_weights.or_else(|| OTHERS.iter().find(|info| info.id == id).copied())
}

impl TypeInfo {
    /// Bytes of a row of `columns` elements; `None` where they are no whole blocks.
    pub fn row_bytes(&self, columns: u64) -> Option<u64> {
        if columns.is_multiple_of(self.block) { (columns / self.block).checked_mul(self.bytes) } else { None }
    }
    /// The type as an index of tensors has it.
    pub(super) fn stored(&self) -> Stored {
        match Format::of_ggml(self.id) {
            Some(format) => format.dtype().map_or(Stored::Packed(format), Stored::Known),
            None if self.name == "i32" => Stored::Known(DType::I32),
            None => Stored::Other(self.name.to_owned()),
        }
    }
}
