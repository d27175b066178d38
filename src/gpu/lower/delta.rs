//! Gated delta rules: what they take of tokens, into its state, and what they make of it.

use super::Lowering;
use crate::error::{Error, Result};
use crate::gpu::pipelines::{Call, Grid, RowCount, read, write};
use crate::gpu::program::Size;
use crate::plan::{Op, StatePart, ValueId};

/// Elements of a key that the kernel of the rule has room for.
pub(super) const MOST_KEY: usize = 256;

impl Lowering<'_> {
    /// With `appended`, what is taken goes into the state that this node changes, and is not stored itself.
    pub(super) fn delta_in(&self, id: ValueId, appended: Option<ValueId>) -> Result<Call> {
        let node = self.plan.node(id);
        let Op::DeltaIn { heads, decay, step, eps } = node.op else {
            return Err(Error::plan(format!("{}: expected what a delta rule takes", node.at)));
        };
        let [qkv, rate, time] = [0, 1, 2].map(|i| self.value(node.inputs[i]));
        let (qkv, rate, time) = (qkv?, rate?, time?);
        let (decay, step) = (self.weights.get(self.plan, decay)?, self.weights.get(self.plan, step)?);
        let (mut defines, constants) = self.reducing(64);
        let (mut out_stride, mut slab) = (0, 0);
        let out = match appended.map(|append| &self.plan.node(append).op) {
            Some(Op::Append { state, part }) => {
                let held = self.state(*state)?;
                defines.push("RING");
                slab = held.kind;
                write(held.part(*part)?)
            }
            _ => {
                let out = self.value(id)?;
                out_stride = out.stride;
                write(&out.buffer)
            }
        };
        Ok(Call {
            kernel: "delta_in",
            defines,
            constants,
            params: vec![
                ("keys", heads.keys.into()),
                ("values", heads.values.into()),
                ("key_dim", heads.key_dim.into()),
                ("value_dim", heads.value_dim.into()),
                ("in_stride", qkv.stride.into()),
                ("gate_stride", rate.stride.into()),
                ("out_stride", out_stride.into()),
                ("decay_first", decay.at().into()),
                ("step_first", step.at().into()),
                ("slab", slab.into()),
                ("eps", eps.into()),
            ],
            buffers: vec![
                read(&qkv.buffer),
                read(&rate.buffer),
                read(&time.buffer),
                read(&decay.pieces[0].buffer),
                read(&step.pieces[0].buffer),
                out,
            ],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: heads.keys, per_group: 1 },
        })
    }

    /// The rule itself, over what the state holds.
    pub(super) fn gated_delta(&self, id: ValueId) -> Result<Call> {
        let node = self.plan.node(id);
        let Op::GatedDelta { state, matrix, heads, eps, scale } = node.op else {
            return Err(Error::plan(format!("{}: expected a delta rule", node.at)));
        };
        let (queries, out) = (self.value(node.inputs[0])?, self.value(id)?);
        let (held, matrix) = (self.state(state)?, self.state(matrix)?);
        // Many tokens are of one sequence.
        let rows = if self.size == Size::Many { RowCount::One } else { RowCount::Tokens };
        Ok(Call {
            kernel: "gated_delta",
            defines: Vec::new(),
            constants: vec![("EACH", heads.key_dim.div_ceil(16) as f64)],
            params: vec![
                ("keys", heads.keys.into()),
                ("values", heads.values.into()),
                ("key_dim", heads.key_dim.into()),
                ("value_dim", heads.value_dim.into()),
                ("in_stride", queries.stride.into()),
                ("out_stride", out.stride.into()),
                ("slab", held.kind.into()),
                ("matrix_slab", matrix.kind.into()),
                ("eps", eps.into()),
                ("scale", scale.into()),
            ],
            buffers: vec![
                read(&queries.buffer),
                read(held.part(StatePart::Inputs)?),
                write(matrix.part(StatePart::Matrix)?),
                write(&out.buffer),
            ],
            grid: Grid::Rows { rows, groups: heads.values * heads.value_dim.div_ceil(4) },
        })
    }
}
