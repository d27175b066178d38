//! Short convolutions: the product that is convolved, into its state, and what the convolution makes of it.

use super::{Lowering, activation};
use crate::error::{Error, Result};
use crate::gpu::pipelines::{Call, Grid, RowCount, read, write};
use crate::gpu::weights::GpuWeight;
use crate::plan::{ConvEnding, Op, StatePart, ValueId};
use crate::tensor::DType;

impl Lowering<'_> {
    /// The product of parts of two values.
    pub(super) fn mul(&self, id: ValueId, left: usize, right: usize) -> Result<Call> {
        let node = self.plan.node(id);
        let (a, b, out) = (self.value(node.inputs[0])?, self.value(node.inputs[1])?, self.value(id)?);
        Ok(Call {
            kernel: "mul",
            defines: Vec::new(),
            constants: Vec::new(),
            params: vec![
                ("width", node.width.into()),
                ("a_stride", a.stride.into()),
                ("b_stride", b.stride.into()),
                ("out_stride", out.stride.into()),
                ("left", left.into()),
                ("right", right.into()),
            ],
            buffers: vec![read(&a.buffer), read(&b.buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: node.width, per_group: 64 },
        })
    }

    /// The product of two parts of one value, which is not stored itself, into the state that `appended` changes.
    pub(super) fn conv_write(&self, product: ValueId, appended: ValueId) -> Result<Call> {
        let (node, append) = (self.plan.node(product), self.plan.node(appended));
        let (Op::Mul { left, right }, Op::Append { state, part }) = (&node.op, &append.op) else {
            return Err(Error::plan(format!("{}: expected a product that is appended", append.at)));
        };
        let (x, held) = (self.value(node.inputs[0])?, self.state(*state)?);
        Ok(Call {
            kernel: "kv_write",
            defines: vec!["PRODUCT"],
            constants: Vec::new(),
            params: vec![
                ("width", node.width.into()),
                ("in_stride", x.stride.into()),
                ("slab", held.kind.into()),
                ("left", (*left).into()),
                ("right", (*right).into()),
            ],
            buffers: vec![read(&x.buffer), write(held.part(*part)?)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: node.width / 2, per_group: 64 },
        })
    }

    /// The convolution over what the state holds, times its gate or activated.
    pub(super) fn short_conv(&self, id: ValueId) -> Result<Call> {
        let node = self.plan.node(id);
        let Op::ShortConv { state, weight, bias, taps, ending } = node.op else {
            return Err(Error::plan(format!("{}: expected a convolution", node.at)));
        };
        let (gates, out, held) = (self.value(node.inputs[0])?, self.value(id)?, self.state(state)?);
        let weight = self.weights.get(self.plan, weight)?;
        let bias = bias.map(|bias| self.weights.get(self.plan, bias)).transpose()?;
        let mut defines = if out.dtype == DType::F16 { vec!["OUT_F16"] } else { Vec::new() };
        let (mut constants, mut gate) = (Vec::new(), 0);
        match ending {
            ConvEnding::Gate(first) => gate = first,
            ConvEnding::Act(act) => {
                defines.push("ACTIVATED");
                constants = activation(act);
            }
        }
        let mut buffers =
            vec![read(&gates.buffer), read(held.part(StatePart::Inputs)?), read(&weight.pieces[0].buffer), write(&out.buffer)];
        if let Some(bias) = bias {
            defines.push("BIAS");
            buffers.push(read(&bias.pieces[0].buffer));
        }
        Ok(Call {
            kernel: "short_conv",
            defines,
            constants,
            params: vec![
                ("width", node.width.into()),
                ("in_stride", gates.stride.into()),
                ("out_stride", out.stride.into()),
                ("gate", gate.into()),
                ("taps", taps.into()),
                ("slab", held.kind.into()),
                ("weight_first", weight.at().into()),
                ("bias_first", bias.map_or(0, GpuWeight::at).into()),
            ],
            buffers,
            grid: Grid::Items { rows: RowCount::Tokens, per_row: node.width.div_ceil(2), per_group: 64 },
        })
    }
}
