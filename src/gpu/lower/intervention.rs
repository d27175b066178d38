//! The calls that change a value where it is, as `cpu/intervention.rs` defines it.

use super::super::buffers::storage_buffer;
use super::super::pipelines::{Call, Grid, RowCount, read, write};
use super::Lowering;
use crate::error::Result;
use crate::plan::intervention::{Change, Intervention, Span};
use crate::plan::{Op, ValueId};
use crate::tensor::{DType, product};

impl Lowering<'_> {
    /// The calls of a value's interventions, in order.
    pub(super) fn interventions(&self, id: ValueId) -> Result<Vec<Call>> {
        self.plan.node(id).interventions.iter().map(|one| self.intervention(id, one)).collect()
    }

    fn intervention(&self, id: ValueId, one: &Intervention) -> Result<Call> {
        let (node, value) = (self.plan.node(id), self.value(id)?);
        let (layout, head) = (node.at.stage.layout(), self.plan.in_head(id));
        let scores = layout.is_scores();
        let (kind, factor) = match &one.change {
            Change::Zero => (0.0, 0.0),
            Change::Scale(factor) => (1.0, *factor),
            Change::Add { factor, .. } => (2.0, *factor),
            Change::Set(_) => (3.0, 0.0),
        };
        let (tokens, columns) = (ranges(one.tokens.as_deref()), mask(one.columns(layout, node.width, self.plan.head_dim(id))));
        let positions = if scores { ranges(one.dims.as_deref()) } else { Vec::new() };
        let chosen = self.words("chosen elements", &[&tokens[..], &columns, &positions].concat())?;
        let (given, first, (per_token, per_head)) = match one.given() {
            Some(given) => (self.words("given values", bytemuck::cast_slice(&given.tensor.data))?, given.first, given.strides()),
            None => (chosen.clone(), 0, (0, 0)),
        };
        let window = match &node.op {
            Op::AttnScores(a) | Op::AttnProbs(a) => a.window.unwrap_or(0),
            _ => 0,
        };
        let narrow = value.dtype == DType::F16;
        let defines = [("SCORES", scores), ("HEAD", head), ("X_F16", narrow)];
        let grid = match (scores, head) {
            (true, _) => Grid::Cells { heads: node.width },
            (_, true) => Grid::Items { rows: RowCount::HeadRows, per_row: words(node.width, narrow), per_group: 64 },
            _ => Grid::Items { rows: RowCount::Tokens, per_row: words(node.width, narrow), per_group: 64 },
        };
        Ok(Call {
            kernel: "intervention",
            defines: defines.into_iter().filter_map(|(name, set)| set.then_some(name)).collect(),
            constants: vec![("KIND", kind)],
            params: vec![
                ("width", node.width.into()),
                ("stride", value.stride.into()),
                ("window", window.into()),
                ("shift", self.shift.into()),
                ("tokens", (tokens.len() / 2).into()),
                ("columns", columns.len().into()),
                ("positions", (positions.len() / 2).into()),
                ("given_first", first.into()),
                ("per_token", per_token.into()),
                ("per_head", per_head.into()),
                ("factor", factor.into()),
            ],
            buffers: vec![write(&value.buffer), read(&chosen), read(&given)],
            grid,
        })
    }

    /// A buffer that holds `words`.
    fn words(&self, label: &str, words: &[u32]) -> Result<wgpu::Buffer> {
        let buffer = storage_buffer(self.gpu, label, product([words.len(), 4]))?;
        self.gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(words));
        Ok(buffer)
    }
}

/// Words of a row of `width` elements.
fn words(width: usize, narrow: bool) -> usize {
    if narrow { width.div_ceil(2) } else { width }
}

/// First and last of each range, as far as a u32 goes.
fn ranges(spans: Option<&[Span]>) -> Vec<u32> {
    let word = |position: usize| u32::try_from(position).unwrap_or(u32::MAX);
    spans.unwrap_or_default().iter().flat_map(|(first, last)| [word(*first), word(*last)]).collect()
}

/// A bit for each element.
fn mask(columns: Option<Vec<bool>>) -> Vec<u32> {
    let word = |bits: &[bool]| bits.iter().enumerate().fold(0, |word, (i, bit)| word | (u32::from(*bit) << i));
    columns.unwrap_or_default().chunks(32).map(word).collect()
}
