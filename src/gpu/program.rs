//! Programs: the dispatches of a step, and what identifies them.

use super::buffers::Value;
use super::pipelines::Dispatch;
use crate::plan::{At, ValueId};

/// The most partial statistics of a value.
pub(super) const PARTIAL_GROUPS: usize = 64;
/// (first row, rows) of each batch of logits of a step, the last token's last.
pub(super) type HeadBatches = Vec<(usize, usize)>;

/// What makes two steps run the same dispatches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ProgramKey {
    pub(super) tiled: bool,
    pub(super) head: bool,
    pub(super) top_k: usize,
    pub(super) pick: Option<usize>,
    pub(super) requests: Vec<(ValueId, CaptureKey)>,
    /// Tokens and positions for which [heads, T, positions] values have room.
    pub(super) scores: Option<(usize, usize)>,
    /// Which of the executor's interventions are in it.
    pub(super) edition: u64,
}

/// A `Want` without what changes from step to step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum CaptureKey {
    Full,
    Stats,
    HeadStats,
    Gather(Vec<usize>, Vec<usize>),
}

#[derive(Debug)]
pub(super) struct Program {
    pub(super) body: Vec<Item>,
    pub(super) head: Vec<Item>,
    pub(super) picks: Vec<Dispatch>,
    /// The last pass of top_k writes here.
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
