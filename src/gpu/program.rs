//! Programs: the dispatches of a step, and what identifies them.

use super::buffers::Value;
use super::device::Caps;
use super::pipelines::Dispatch;
use crate::exec::DECODE_TOKENS;
use crate::plan::{At, ValueId};

/// The most partial statistics of a value.
pub(super) const PARTIAL_GROUPS: usize = 64;
/// (first row, rows) of each batch of logits of a step, the last token's last.
pub(super) type HeadBatches = Vec<(usize, usize)>;

/// For how many tokens dispatches are: with another size, other kernels compute the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Size {
    /// One, as in decode.
    One,
    /// A few of a sequence, or of several sequences a few each, in blocks for which weights are read once.
    Several { block: usize },
    /// Likewise, or one, by the matrix units in tiles of rows.
    Thin { two: bool },
    /// More of one sequence: matrix products in tiles, or in blocks.
    Many,
}

impl Size {
    /// That of `rows` tokens that are computed as decode is, in tiles of `thin` rows if by matrix units.
    pub(super) fn few(rows: usize, thin: Option<u32>) -> Self {
        if let Some(side) = thin {
            return Size::Thin { two: rows > side as usize };
        }
        match rows {
            1 => Size::One,
            2..=4 => Size::Several { block: 4 },
            _ => Size::Several { block: 8 },
        }
    }
    /// That of `tokens` tokens of one sequence.
    pub(super) fn of(tokens: usize, thin: Option<u32>) -> Self {
        if tokens > DECODE_TOKENS { Size::Many } else { Size::few(tokens, thin) }
    }
    /// Whether products with experts are computed in tiles of rows of one expert.
    pub(super) fn has_expert_tiles(self, caps: &Caps) -> bool {
        self == Size::Many && caps.kernel_shape().tiles
    }
    /// Rows of x for which a product reads weights once where no matrix units multiply.
    pub(super) fn block(self) -> usize {
        match self {
            Size::Several { block } => block,
            Size::Thin { .. } | Size::Many => 8,
            Size::One => 1,
        }
    }
}

/// What makes two steps run the same dispatches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ProgramKey {
    pub(super) size: Size,
    /// Rows are of several sequences, and logits are computed for all.
    pub(super) together: bool,
    pub(super) head: bool,
    pub(super) top_k: usize,
    pub(super) pick: Option<usize>,
    pub(super) requests: Vec<(ValueId, CaptureKey)>,
    /// Tokens and positions for which [heads, T, positions] values have room.
    pub(super) scores: Option<(usize, usize)>,
}

/// A `Want` without what changes from step to step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum CaptureKey {
    Full,
    Stats,
    HeadStats,
    Gather(Vec<usize>, Vec<usize>),
}

/// The dispatches of a part of a step.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) body: Vec<Item>,
    /// Once for each batch of logits.
    pub(super) head: Vec<Item>,
    /// After each batch of logits from which tokens are picked.
    pub(super) picks: Vec<Dispatch>,
    /// The last pass of top_k writes here: the candidates of each row.
    pub(super) top: Option<wgpu::Buffer>,
    /// The last value: rows of final logits.
    pub(super) logits: Value,
    pub(super) stats: Option<wgpu::Buffer>,
    pub(super) gathered: Option<wgpu::Buffer>,
    pub(super) gather_at: Option<wgpu::Buffer>,
    pub(super) captures: Vec<Capture>,
    pub(super) notes: Vec<String>,
}

#[derive(Debug)]
pub(super) enum Item {
    Run(Dispatch, At),
    /// Copy the value of `wanted[i]` out.
    Copy(usize),
}

/// A request of a program.
#[derive(Debug, Clone)]
pub(super) struct Capture {
    pub(super) id: ValueId,
    pub(super) value: Value,
    pub(super) head: bool,
    pub(super) kind: CaptureKind,
}

#[derive(Debug, Clone)]
pub(super) enum CaptureKind {
    Full,
    /// `groups` partial results for each of `parts` (heads; 1: the whole value) of each batch of rows.
    Stats {
        slot: usize,
        groups: usize,
        parts: usize,
        by_head: bool,
    },
    Gather {
        first: usize,
        tokens: Vec<usize>,
        dims: Vec<usize>,
    },
}
