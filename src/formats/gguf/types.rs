//! Types of tensors by ggml's numbers: names and sizes of blocks. The one place that says how many bytes a row has.

use super::super::Stored;
use crate::tensor::DType;

/// A type of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeInfo {
    /// ggml's number for it.
    pub id: u32,
    /// ggml's name for it.
    pub name: &'static str,
    /// Elements of a block.
    pub block: u64,
    /// Bytes of a block.
    pub bytes: u64,
}

const fn row(id: u32, name: &'static str, block: u64, bytes: u64) -> TypeInfo {
    TypeInfo { id, name, block, bytes }
}

/// The types that files have. Source: ggml's `ggml_type` and the block structures beside it.
const TYPES: &[TypeInfo] = &[
    row(0, "F32", 1, 4),
    row(1, "F16", 1, 2),
    row(2, "Q4_0", 32, 18),
    row(3, "Q4_1", 32, 20),
    row(6, "Q5_0", 32, 22),
    row(7, "Q5_1", 32, 24),
    row(8, "Q8_0", 32, 34),
    row(10, "Q2_K", 256, 84),
    row(11, "Q3_K", 256, 110),
    row(12, "Q4_K", 256, 144),
    row(13, "Q5_K", 256, 176),
    row(14, "Q6_K", 256, 210),
    row(15, "Q8_K", 256, 292),
    row(16, "IQ2_XXS", 256, 66),
    row(17, "IQ2_XS", 256, 74),
    row(18, "IQ3_XXS", 256, 98),
    row(19, "IQ1_S", 256, 50),
    row(20, "IQ4_NL", 32, 18),
    row(21, "IQ3_S", 256, 110),
    row(22, "IQ2_S", 256, 82),
    row(23, "IQ4_XS", 256, 136),
    row(24, "I8", 1, 1),
    row(25, "I16", 1, 2),
    row(26, "I32", 1, 4),
    row(27, "I64", 1, 8),
    row(28, "F64", 1, 8),
    row(29, "IQ1_M", 256, 56),
    row(30, "BF16", 1, 2),
    row(34, "TQ1_0", 256, 54),
    row(35, "TQ2_0", 256, 66),
    row(39, "MXFP4", 32, 17),
    row(40, "NVFP4", 64, 36),
];

/// The type with ggml's number `id`.
pub fn type_info(id: u32) -> Option<TypeInfo> {
    TYPES.iter().find(|info| info.id == id).copied()
}

impl TypeInfo {
    /// Bytes of a row of `columns` elements; `None` where they are no whole blocks.
    pub fn row_bytes(&self, columns: u64) -> Option<u64> {
        if columns.is_multiple_of(self.block) { (columns / self.block).checked_mul(self.bytes) } else { None }
    }
    /// The type as an index of tensors has it.
    pub(super) fn stored(&self) -> Stored {
        match self.name {
            "F32" => Stored::Known(DType::F32),
            "F16" => Stored::Known(DType::F16),
            "BF16" => Stored::Known(DType::BF16),
            "I32" => Stored::Known(DType::I32),
            name => Stored::Other(name.to_owned()),
        }
    }
}
