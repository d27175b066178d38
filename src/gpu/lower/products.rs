//! Matrix products: a vector's, several of one input in one call where their weights lie together, and tiled ones of many
//! rows.

use super::{Lowering, activation, long_row};
use crate::error::{Error, Result};
use crate::gpu::device::KernelShape;
use crate::gpu::pipelines::{Bind, Call, Grid, RowCount, none, read, write};
use crate::gpu::program::Size;
use crate::gpu::weights::{GpuWeight, Piece};
use crate::model::Activation;
use crate::plan::{Op, ValueId};
use crate::quant::Format;
use crate::tensor::DType;

/// A weight of a matrix product and its bias.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    id: ValueId,
    weight: &'a GpuWeight,
    bias: Option<&'a GpuWeight>,
    divisor: f64,
}

impl Matrix<'_> {
    /// Whether `next` lies behind this one, with its bias, so that one call computes both.
    pub(super) fn is_before(&self, next: &Matrix<'_>) -> bool {
        let biases = match (self.bias, next.bias) {
            (Some(here), Some(there)) => here.shares_buffer(there),
            (None, None) => true,
            _ => false,
        };
        biases && self.weight.is_before(next.weight) && self.divisor == next.divisor
    }
}

/// What becomes of a product's rows.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    Stored,
    /// act(gate)·up, as this value; with `true`, both are written too.
    Gated(ValueId, Activation, bool),
    /// Added to the first value, times the factor, as the second; with `true`, what is added is written too.
    Added(ValueId, f64, ValueId, bool),
}

/// A norm on the way into a product.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    id: ValueId,
    weight: &'a GpuWeight,
    offset: f64,
    eps: f64,
}

/// Rows of a matrix from which on its products are computed in large tiles: there are enough of them for every processor.
const WIDE_ROWS: usize = 4096;

/// Bytes that a workgroup of linear_matrix.wgsl holds: two tiles of x and two of w, and a patch for each subgroup.
fn tile_memory(side: u32, wide: bool) -> u32 {
    let (rows, subgroups) = if wide { (8 * side, 8) } else { (4 * side, 4) };
    2 * 2 * rows * 80 + subgroups * side * side * 4
}

/// Threads per team for `n` rows of `parts` parts that a thread takes at a time: long rows of small matrices take larger teams,
/// from `least` up to `most`, so that `enough` threads read at once.
fn team(n: usize, parts: usize, (least, most): (u32, u32), enough: usize) -> u32 {
    let mut lanes = least;
    while lanes < most && (lanes as usize) * 2 <= parts && n / 4 * (lanes as usize) < enough {
        lanes *= 2;
    }
    lanes
}

impl Lowering<'_> {
    pub(super) fn matrix(&self, id: ValueId) -> Result<Matrix<'_>> {
        let Op::Linear { weight, bias, divisor } = &self.plan.node(id).op else {
            return Err(Error::plan(format!("{}: expected a matrix product", self.plan.node(id).at)));
        };
        let bias = bias.map(|b| self.weights.get(self.plan, b)).transpose()?;
        Ok(Matrix { id, weight: self.weights.get(self.plan, *weight)?, bias, divisor: *divisor })
    }
    /// The products among `nodes`, and the norm before them.
    pub(super) fn norm_and(&self, nodes: &[ValueId]) -> Result<(Option<Norm<'_>>, Vec<Matrix<'_>>)> {
        let norm = match self.plan.node(nodes[0]).op {
            Op::RmsNorm { weight, offset, eps, .. } => {
                Some(Norm { id: nodes[0], weight: self.weights.get(self.plan, weight)?, offset, eps })
            }
            _ => None,
        };
        let products = nodes[usize::from(norm.is_some())..].iter().map(|id| self.matrix(*id)).collect::<Result<_>>()?;
        Ok((norm, products))
    }
    /// Products of one input by the matrix-vector kernel, in as few calls as the weights' places allow.
    pub(super) fn products(&self, norm: Option<Norm<'_>>, products: Vec<Matrix<'_>>, ending: Ending) -> Result<Vec<Call>> {
        let mut calls = Vec::new();
        let mut rest = &products[..];
        while let [first, ..] = rest {
            let count = 1 + rest.windows(2).take_while(|pair| self.go_together(&pair[0], &pair[1])).count();
            for piece in &first.weight.pieces {
                calls.push(self.matvec(norm, &rest[..count], piece, ending)?);
            }
            rest = &rest[count..];
        }
        Ok(calls)
    }

    /// Whether one call computes both.
    fn go_together(&self, first: &Matrix<'_>, next: &Matrix<'_>) -> bool {
        first.is_before(next) && (!self.by_units(first) || first.weight.scale() == next.weight.scale())
    }
    /// Whether the matrix units compute a product of a few rows. They multiply f16: weights in f32 have more.
    pub(super) fn by_units(&self, product: &Matrix<'_>) -> bool {
        let narrow = self.value(self.plan.node(product.id).inputs[0]).is_ok_and(|x| x.dtype == DType::F16);
        matches!(self.size, Size::Thin { .. }) && narrow && product.weight.format != Format::F32
    }

    /// Matrices that lie one after the other, or a piece of one, times a vector.
    fn matvec(&self, norm: Option<Norm<'_>>, matrices: &[Matrix<'_>], piece: &Piece, ending: Ending) -> Result<Call> {
        let Matrix { id, weight, bias, divisor } = matrices[0];
        let node = self.plan.node(id);
        let head = self.plan.in_head(id);
        let x = self.value(if let Some(norm) = norm { self.plan.node(norm.id).inputs[0] } else { node.inputs[0] })?;
        let mut defines = weight.defines();
        let (packed, k8) = (weight.format.planes().is_some(), weight.k8());
        let stored = if let Some(norm) = norm { self.value(norm.id)?.dtype } else { x.dtype };
        // In digits f16 is exact; f32 would be rounded more than sums of it are.
        let digits = stored == DType::F16 && self.gpu.caps.dots && defines.contains(&"WHOLE");
        let KernelShape { row_threads: wg, lanes: (least, most), .. } = self.gpu.caps.kernel_shape();
        // Threads take eight plain weights at a time, or 32 packed ones.
        let parts = k8 / if packed { 4 } else { 1 };
        // Of x as digits a workgroup holds a block for every second thread.
        let most = most.min(if digits { wg / 2 } else { wg });
        let lanes = team(self.rows_of_input(id), parts, (least, most), self.enough_threads(id, digits));
        let mut constants = vec![("WG", f64::from(wg)), ("LANES", f64::from(lanes))];
        if let Some(subgroup) = self.gpu.caps.subgroup.filter(|s| lanes.is_multiple_of(*s)) {
            defines.push("SUBGROUPS");
            constants.push(("SPLIT", if lanes > subgroup { 1.0 } else { 0.0 }));
        }
        if head {
            constants.push(("HEAD", 1.0));
        }
        if stored == DType::F16 {
            defines.push("X_F16");
        }
        if digits {
            defines.push("DIGITS");
        }
        if norm.is_some() {
            constants.extend(long_row(weight.shape[1], wg));
        }
        match norm {
            Some(_) if digits => {}
            Some(_) => constants.push(("HELD", (k8 * if stored == DType::F16 { 1 } else { 2 }) as f64)),
            None if !weight.shape[1].is_multiple_of(8) => constants.push(("TAIL", 1.0)),
            None => {}
        }
        let (out, rows_of_team) = match ending {
            Ending::Stored => (self.value(id)?, 4),
            Ending::Gated(act, ..) => (self.value(act)?, 2),
            Ending::Added(_, _, add, _) => (self.value(add)?, 4),
        };
        let block = if head { self.head_block } else { self.size.block() };
        // Packed rows are unpacked, and x is made ready, for one row of x at a time.
        let (in_blocks, by_units) = (block > 1 && norm.is_none() && !packed, norm.is_none() && self.by_units(&matrices[0]));
        if in_blocks && !by_units {
            defines.push(if block == 8 { "BLOCK8" } else { "BLOCK4" });
        }
        let mut buffers: Vec<Bind> = vec![none(); 7];
        buffers[0] = read(&x.buffer);
        buffers[1] = read(&piece.buffer);
        buffers[2] = write(&out.buffer);
        if let Some(bias) = bias {
            defines.push("BIAS");
            buffers[3] = read(&bias.pieces[0].buffer);
        }
        if let Some(norm) = norm {
            defines.push("NORM");
            buffers[4] = read(&norm.weight.pieces[0].buffer);
        }
        let rows: usize = if matrices.len() == 1 { piece.rows } else { matrices.iter().map(|m| m.weight.shape[0]).sum() };
        // Rows where the second and the third begin, the rows of their outputs, and their biases.
        let bias_of = |i: usize| matrices.get(i).and_then(|m| m.bias).map_or(0, GpuWeight::at);
        let (mut n, mut second, mut third, mut strides, mut multiplier) = (rows, rows, rows, [0, 0], 0.0);
        match ending {
            Ending::Stored if matrices.len() > 1 => {
                defines.push("SEVERAL");
                second = weight.shape[0];
                third = second + matrices[1].weight.shape[0];
                let outs = [self.value(matrices[1].id)?, self.value(matrices.get(2).unwrap_or(&matrices[1]).id)?];
                strides = outs.map(|out| out.stride);
                buffers[5] = write(&outs[0].buffer);
                // Where there is no third, nothing is written to this one; bound twice to write, a buffer would be refused.
                buffers[6] = if matrices.len() > 2 { write(&outs[1].buffer) } else { write(self.partials) };
            }
            Ending::Stored => {}
            Ending::Gated(_, act, kept) => {
                defines.push("GATED");
                if kept {
                    defines.push("KEPT");
                    let outs = [self.value(id)?, self.value(matrices[1].id)?];
                    strides = outs.map(|out| out.stride);
                    (buffers[5], buffers[6]) = (write(&outs[0].buffer), write(&outs[1].buffer));
                }
                if out.dtype == DType::F16 {
                    defines.push("OUT_F16");
                }
                constants.push(activation(act));
                n = weight.shape[0];
                second = n;
            }
            Ending::Added(residual, factor, _, kept) => {
                defines.push("ADD");
                if kept {
                    defines.push("KEPT");
                    let product = self.value(id)?;
                    strides[1] = product.stride;
                    buffers[6] = write(&product.buffer);
                }
                multiplier = factor;
                buffers[5] = read(&self.value(residual)?.buffer);
            }
        }
        let (offset, eps) = norm.map_or((0.0, 0.0), |norm| (norm.offset, norm.eps));
        let rows = if head { RowCount::HeadRows } else { RowCount::Tokens };
        let groups = n.div_ceil(rows_of_team * (wg / lanes) as usize);
        let mut params = vec![
            ("k", weight.shape[1].into()),
            ("k8", k8.into()),
            ("n", n.into()),
            ("w_first", piece.at.into()),
            ("n_first", piece.first.into()),
            ("in_stride8", (x.stride / 8).into()),
            ("out_stride", out.stride.into()),
            ("divisor", divisor.into()),
            ("row4", weight.row4().into()),
            ("bias_first", (bias_of(0) + piece.first).into()),
            ("eps", eps.into()),
            ("offset", offset.into()),
            ("multiplier", multiplier.into()),
            ("second", second.into()),
            ("second_stride", strides[0].into()),
            ("second_bias", bias_of(1).into()),
            ("third", third.into()),
            ("third_stride", strides[1].into()),
            ("third_bias", bias_of(2).into()),
        ];
        if let (true, Size::Thin { two }) = (by_units, self.size) {
            let side = self.gpu.caps.matrix.unwrap_or(16) as usize;
            params.retain(|(name, _)| !["eps", "offset"].contains(name));
            params.push(("w_scale", weight.scale().into()));
            defines.retain(|define| !["X_F16", "SUBGROUPS", "DIGITS"].contains(define));
            defines.extend(two.then_some("TWO"));
            defines.extend((side == 8).then_some("EIGHT"));
            constants.retain(|(name, _)| ["HEAD", "TAIL"].contains(name));
            let grid = Grid::Blocks { rows, groups: n.div_ceil(2 * side), block: if two { 2 * side } else { side } };
            return Ok(Call { kernel: "linear_thin", defines, constants, params, buffers, grid });
        }
        let (kernel, grid) = if in_blocks {
            params.retain(|(name, _)| !["eps", "offset", "row4"].contains(name));
            ("linear_rows", Grid::Blocks { rows, groups, block })
        } else {
            ("linear", Grid::Rows { rows, groups })
        };
        Ok(Call { kernel, defines, constants, params, buffers, grid })
    }

    /// Threads that keep every processor busy with the products of what `id` multiplies, as measured on an H200. The more of
    /// a workgroup's time goes into making its row ready, the more rows it should have.
    fn enough_threads(&self, id: ValueId, digits: bool) -> usize {
        let norm = matches!(self.plan.node(self.plan.node(id).inputs[0]).op, Op::RmsNorm { .. });
        match (digits, norm) {
            (true, _) => 32_768,
            (false, true) => 65_536,
            (false, false) => 131_072,
        }
    }

    /// Rows of all matrices that multiply what `id` does: products have the same shape together and apart, so that their
    /// bits are the same.
    fn rows_of_input(&self, id: ValueId) -> usize {
        let inputs = &self.plan.node(id).inputs;
        let same = self.plan.nodes.iter().filter(|node| matches!(node.op, Op::Linear { .. }) && node.inputs == *inputs);
        same.map(|node| node.width).sum()
    }

    /// Whether a step of many tokens computes `product` in tiles.
    pub(super) fn by_tiles(&self, product: &Matrix<'_>) -> bool {
        self.size == Size::Many && (self.gpu.caps.kernel_shape().tiles || product.weight.format.planes().is_some())
    }

    pub(super) fn tiled_product(&self, product: Matrix<'_>, ending: Ending) -> Result<Vec<Call>> {
        let Matrix { id, weight, bias, divisor } = product;
        let x = self.value(self.plan.node(id).inputs[0])?;
        let mut defines = weight.defines();
        if x.dtype == DType::F16 {
            defines.push("X_F16");
        }
        if bias.is_some() {
            defines.push("BIAS");
        }
        let constants = if weight.shape[1].is_multiple_of(8) { Vec::new() } else { vec![("TAIL", 1.0)] };
        let (mut out, mut residual, mut multiplier) = (self.value(id)?, none(), 0.0);
        if let Ending::Added(to, factor, add, _) = ending {
            defines.push("ADD");
            (out, residual, multiplier) = (self.value(add)?, read(&self.value(to)?.buffer), factor);
        }
        // Matrix units multiply f16: weights in f32 have more.
        let fits = |side: u32, wide: bool| tile_memory(side, wide) <= self.gpu.caps.workgroup_memory;
        let narrow = x.dtype == DType::F16 && weight.format != Format::F32;
        let side = self.gpu.caps.matrix.filter(|side| narrow && fits(*side, false));
        let wide = weight.shape[0] >= WIDE_ROWS && side.is_some_and(|side| fits(side, true));
        if let Some(side) = side {
            defines.retain(|define| *define != "X_F16");
            if side == 8 {
                defines.push("EIGHT");
            }
            defines.extend(wide.then_some("WIDE"));
        }
        let tile = side.map_or([64, 64], |side| if wide { [8 * side, 8 * side] } else { [4 * side, 4 * side] });
        let call = |piece: &Piece| Call {
            kernel: if side.is_some() { "linear_matrix" } else { "linear_tiled" },
            defines: defines.clone(),
            constants: constants.clone(),
            params: [
                ("k", weight.shape[1].into()),
                ("k8", weight.k8().into()),
                ("n", piece.rows.into()),
                ("n_first", piece.first.into()),
                ("in_stride8", (x.stride / 8).into()),
                ("out_stride", out.stride.into()),
                ("divisor", divisor.into()),
                ("row4", weight.row4().into()),
                ("w_first", piece.at.into()),
                ("bias_first", bias.map_or(0, GpuWeight::at).into()),
                ("multiplier", multiplier.into()),
            ]
            .into_iter()
            .chain(side.map(|_| ("w_scale", weight.scale().into())))
            .collect(),
            buffers: vec![
                read(&x.buffer),
                read(&piece.buffer),
                write(&out.buffer),
                bias.map_or_else(none, |b| read(&b.pieces[0].buffer)),
                residual.clone(),
            ],
            grid: Grid::Tiles { n: piece.rows, tile },
        };
        Ok(weight.pieces.iter().map(call).collect())
    }
}
