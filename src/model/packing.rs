//! How a packed checkpoint says that its matrices are stored: what its tensors do not say themselves.

use serde::Serialize;

/// The way in which a checkpoint packs matrices, as its config states it. Which matrices are packed, and in groups of what
/// size, their tensors say; what the config states of that must agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Packing {
    /// The layout of the tensors.
    pub layout: PackedLayout,
    /// Bits that codes may have; empty where the config states none.
    pub bits: Vec<u32>,
    /// Columns that a group may have, 0 for all of a row; empty where the config states none.
    pub groups: Vec<usize>,
}

/// Which tensors make a matrix, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "type")]
pub enum PackedLayout {
    /// `qweight`, `qzeros`, `scales`, `g_idx`: packed along the inputs.
    Gptq {
        /// Groups follow each other: `g_idx` says nothing new.
        ordered: bool,
        /// How zero points are stored.
        zeros: GptqZeros,
    },
    /// `qweight`, `qzeros`, `scales`: packed along the outputs.
    Awq,
    /// `weight_packed`, or `weight` of bytes, with `weight_scale`.
    Compressed {
        /// Rows and columns that share a scale, where scales are for blocks.
        block: Option<[usize; 2]>,
    },
    /// `weight` of 8-bit floating point with `weight_scale_inv` or `weight_scale`.
    Fp8 {
        /// Rows and columns that share a scale, where scales are for blocks.
        block: Option<[usize; 2]>,
    },
    /// `weight` with `absmax` and a `quant_state`, or with `SCB`.
    Bitsandbytes,
    /// `weight` of words with `scales` and `biases`.
    Mlx,
    /// `weight` of words with `scales` that are powers of two.
    MlxMxfp4,
    /// Of experts, `_blocks` of bytes with `_scales` that are powers of two.
    Mxfp4,
}

/// How GPTQ files store zero points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum GptqZeros {
    /// As they are (`gptq_v2`).
    Plain,
    /// Each less one (`gptq`, the first version); at 2, 4 and 8 bits as a subtraction from whole words, borrows included.
    LessOne,
    /// The same, but at 3 bits as GPTQModel wrote it before its version 7: whole words less numbers of its own.
    LessOneByWord,
}
