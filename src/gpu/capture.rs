//! From a step's readback bytes to observed values: padding dropped, statistics combined, candidates decoded.

use super::pipelines::{Extent, sharing};
use super::program::{Capture, CaptureKind, PARTIAL_WORDS, Program};
use super::state::GpuExecutor;
use crate::error::Result;
use crate::exec::{Content, Stats};
use crate::plan::Layout;
use crate::tensor::{Tensor, to_f32};

impl GpuExecutor {
    /// (row, dim) of every gathered element.
    pub(super) fn write_gather_indices(&self, program: &Program) {
        let Some(buffer) = &program.gather_at else { return };
        let mut indices: Vec<u32> = Vec::new();
        for capture in &program.captures {
            if let CaptureKind::Gather { tokens, dims, .. } = &capture.kind {
                indices.extend(tokens.iter().flat_map(|t| dims.iter().flat_map(|d| [*t as u32, *d as u32])));
            }
        }
        self.gpu.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&indices));
    }

    /// Rows without their padding, as f32.
    pub(super) fn unpad(&self, capture: &Capture, bytes: &[u8]) -> Vec<f32> {
        let all = to_f32(bytes, capture.value.dtype);
        let node = self.plan.node(capture.id);
        if node.at.stage.info().layout == Layout::Scores || capture.value.stride == node.width {
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
        let scores = node.at.stage.info().layout == Layout::Scores;
        Ok(match &capture.kind {
            CaptureKind::Full if scores => {
                Content::Full(Tensor::new(vec![node.width, extent.tokens, extent.position + extent.tokens], full)?)
            }
            CaptureKind::Full => Content::Full(Tensor::new(vec![extent.tokens, node.width], full)?),
            CaptureKind::Stats { slot, groups, heads, by_head } => {
                let width = if scores { extent.position + extent.tokens } else { node.width };
                let bytes = |batch: usize, rows: usize, head: usize| {
                    let elements = if scores { node.width * rows / heads * width } else { rows * (width / heads) };
                    let first = slot + (batch * heads + head) * groups;
                    &stats[first * PARTIAL_WORDS * 4..(first + sharing(elements, *groups)) * PARTIAL_WORDS * 4]
                };
                let whole = [(0, extent.tokens)];
                let batches = if capture.head { batches } else { &whole };
                let of_head = |head| batches.iter().enumerate().map(move |(i, (row, rows))| (*row, bytes(i, *rows, head)));
                let mut of_heads = (0..*heads).map(|head| combine(of_head(head), width));
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

/// A (key, id) entry of top_k.wgsl as (id, logit); `None` for empty entries.
pub(super) fn candidate(bytes: &[u8]) -> Option<(u32, f32)> {
    let key = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let id = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let bits = if key & 0x8000_0000 != 0 { key & 0x7fff_ffff } else { !key };
    (id != u32::MAX && key != 0).then_some((id, f32::from_bits(bits)))
}

/// Combines the partial statistics of stats.wgsl, given with the row that each batch begins at; sums in f64.
fn combine<'b>(parts: impl Iterator<Item = (usize, &'b [u8])>, width: usize) -> Stats {
    let mut stats = Stats { max_abs: -1.0, min: f32::MAX, max: f32::MIN, ..Default::default() };
    let (mut sum, mut squares, mut max_at, mut bad_at, mut any_nan) = (0.0f64, 0.0f64, u32::MAX, u32::MAX, false);
    let chunks = parts.flat_map(|(row, bytes)| bytes.as_chunks::<4>().0.as_chunks::<PARTIAL_WORDS>().0.iter().map(move |part| (row, part)));
    for (row, part) in chunks {
        // places are counted from the batch's first row
        let mut words = part.map(u32::from_le_bytes);
        words[1] = words[1].saturating_add((row * width) as u32);
        words[9] = words[9].saturating_add((row * width) as u32);
        let word = |i: usize| words[i];
        let real = |i: usize| f32::from_bits(word(i));
        if real(0) > stats.max_abs || (real(0) == stats.max_abs && word(1) < max_at) {
            (stats.max_abs, max_at) = (real(0), word(1));
        }
        sum += f64::from(real(2));
        squares += f64::from(real(3));
        stats.min = stats.min.min(real(4));
        stats.max = stats.max.max(real(5));
        let has_nan = word(6) > 0;
        if word(6) + word(7) > 0 && (has_nan && !any_nan || (has_nan == any_nan && word(9) < bad_at)) {
            bad_at = word(9);
        }
        any_nan |= has_nan;
        stats.nan += u64::from(word(6));
        stats.inf += u64::from(word(7));
        stats.zero += u64::from(word(8));
        stats.count += u64::from(word(10));
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
    let at = if max_at == u32::MAX { 0 } else { max_at as usize };
    (stats.max_row, stats.max_dim) = ((at / width.max(1)) as u32, (at % width.max(1)) as u32);
    stats
}
