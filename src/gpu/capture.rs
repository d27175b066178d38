//! From a step's readback bytes to observed values: padding dropped, statistics combined, candidates decoded.

use super::layouts::{NOWHERE, Partial, Place, structs};
use super::pipelines::{Extent, sharing};
use super::program::{Capture, CaptureKind, Program};
use super::state::GpuExecutor;
use crate::error::Result;
use crate::exec::{Content, Stats};
use crate::tensor::{Tensor, to_f32};

impl GpuExecutor {
    /// (row, dim) of every gathered element.
    pub(super) fn write_gather_indices(&self, program: &Program) {
        let Some(buffer) = &program.gather_at else { return };
        let mut places: Vec<Place> = Vec::new();
        for capture in &program.captures {
            if let CaptureKind::Gather { tokens, dims, .. } = &capture.kind {
                places.extend(tokens.iter().flat_map(|t| dims.iter().map(|d| Place { row: *t as u32, dim: *d as u32 })));
            }
        }
        self.gpu.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&places));
    }

    /// Rows without their padding, as f32.
    pub(super) fn unpad(&self, capture: &Capture, bytes: &[u8]) -> Vec<f32> {
        let all = to_f32(bytes, capture.value.dtype);
        let node = self.plan.node(capture.id);
        if node.at.stage.layout().is_scores() || capture.value.stride == node.width {
            return all;
        }
        all.chunks_exact(capture.value.stride).flat_map(|row| &row[..node.width]).copied().collect()
    }

    pub(super) fn content(
        &self,
        capture: &Capture,
        extent: Extent,
        batches: &[(usize, usize)],
        full: Vec<f32>,
        stats: &[u8],
        gathered: &[f32],
    ) -> Result<Content> {
        let node = self.plan.node(capture.id);
        let scores = node.at.stage.layout().is_scores();
        Ok(match &capture.kind {
            CaptureKind::Full => {
                let shape = node.at.stage.layout().shape(node.width, extent.tokens, extent.position + extent.tokens);
                Content::Full(Tensor::new(shape, full)?)
            }
            CaptureKind::Stats { slot, groups, parts, by_head } => {
                let width = node.at.stage.layout().row_elements(node.width, extent.position + extent.tokens);
                let bytes = |batch: usize, rows: usize, head: usize| {
                    let elements = if scores { node.width * rows / parts * width } else { rows * (width / parts) };
                    let first = slot + (batch * parts + head) * groups;
                    &stats[first * size_of::<Partial>()..(first + sharing(elements, *groups)) * size_of::<Partial>()]
                };
                let whole = [(0, extent.tokens)];
                let batches = if capture.head { batches } else { &whole };
                let of_head = |head| batches.iter().enumerate().map(move |(i, (row, rows))| (*row, bytes(i, *rows, head)));
                let mut of_heads = (0..*parts).map(|head| combine(of_head(head), width));
                match (by_head, of_heads.next()) {
                    (false, Some(whole)) => Content::Stats(whole),
                    (_, first) => Content::HeadStats(first.into_iter().chain(of_heads).collect()),
                }
            }
            CaptureKind::Gather { first, tokens, dims } => {
                let pairs = tokens.iter().flat_map(|t| dims.iter().map(move |d| (extent.position + t, *d)));
                Content::Gather(pairs.zip(&gathered[*first..]).map(|((t, d), v)| (t, d, *v)).collect())
            }
        })
    }
}

/// Combines the partial statistics of stats.wgsl, given with the row that each batch begins at; sums in f64.
fn combine<'b>(parts: impl Iterator<Item = (usize, &'b [u8])>, width: usize) -> Stats {
    let mut stats = Stats { max_abs: -1.0, min: f32::MAX, max: f32::MIN, ..Default::default() };
    let (mut sum, mut squares, mut max_at, mut bad_at, mut any_nan) = (0.0f64, 0.0f64, NOWHERE, NOWHERE, false);
    for (row, part) in parts.flat_map(|(row, bytes)| structs::<Partial>(bytes).map(move |part| (row, part))) {
        // Places are counted from the batch's first row.
        let place = |at: u32| at.saturating_add((row * width) as u32);
        let (part_max_at, part_bad_at) = (place(part.max_at), place(part.bad_at));
        if part.max_abs > stats.max_abs || (part.max_abs == stats.max_abs && part_max_at < max_at) {
            (stats.max_abs, max_at) = (part.max_abs, part_max_at);
        }
        sum += f64::from(part.sum);
        squares += f64::from(part.squares);
        stats.min = stats.min.min(part.low);
        stats.max = stats.max.max(part.high);
        let has_nan = part.nan > 0;
        if part.nan + part.inf > 0 && (has_nan && !any_nan || (has_nan == any_nan && part_bad_at < bad_at)) {
            bad_at = part_bad_at;
        }
        any_nan |= has_nan;
        stats.nan += u64::from(part.nan);
        stats.inf += u64::from(part.inf);
        stats.zero += u64::from(part.zero);
        stats.count += u64::from(part.count);
    }
    let finite = stats.count - stats.nan - stats.inf;
    if finite == 0 {
        (stats.min, stats.max, stats.max_abs) = (0.0, 0.0, 0.0);
    } else {
        stats.mean = (sum / finite as f64) as f32;
        stats.rms = (squares / finite as f64).sqrt() as f32;
    }
    if stats.nan > 0 {
        (stats.max_abs, max_at) = (f32::NAN, bad_at);
    } else if stats.inf > 0 {
        (stats.max_abs, max_at) = (f32::INFINITY, bad_at);
    }
    let at = if max_at == NOWHERE { 0 } else { max_at as usize };
    (stats.max_row, stats.max_dim) = ((at / width.max(1)) as u32, (at % width.max(1)) as u32);
    stats
}
