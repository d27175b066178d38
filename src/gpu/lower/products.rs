//! Matrix products: a vector's, several of one input in one call where their weights lie together, and tiled ones of many
//! rows.

use super::{Lowering, activation, long_row};
use crate::error::{Error, Result};
use crate::gpu::pipelines::{Bind, Call, Grid, RowCount, none, read, write};
use crate::gpu::program::Size;
use crate::gpu::variants::Product;
use crate::gpu::weights::{GpuWeight, Piece};
use crate::groups::Group;
use crate::model::Activation;
use crate::plan::{Op, ValueId};
use crate::quant::Format;
use crate::tensor::DType;
use crate::tuned::Variant;

/// A weight of a matrix product and its bias.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    id: ValueId,
    weight: &'a GpuWeight,
    bias: Option<&'a GpuWeight>,
    divisor: f64,
    experts: Option<Experts>,
}

/// Matrices of experts, of which each row of the input meets some.
#[derive(Clone, Copy)]
struct Experts {
    all: usize,
    chosen: usize,
    /// The value that lists them.
    numbers: ValueId,
    /// Experts that read the same row.
    share: usize,
}

impl Matrix<'_> {
    /// Rows of one matrix.
    fn rows(&self) -> usize {
        self.weight.shape[0] / self.experts.map_or(1, |experts| experts.all.max(1))
    }
    /// Whether several buffers hold it.
    pub(super) fn is_in_pieces(&self) -> bool {
        self.weight.pieces.len() > 1
    }
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
    /// act(product)·up, as this value, with `up` from that element of its row on.
    Gating(ValueId, Activation, usize),
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
    /// It is written too.
    kept: bool,
}

/// Parameters of the matrix-vector kernel that the others lack.
const ONLY_VECTORS: [&str; 6] = ["chosen", "share", "piece_first", "piece_rows", "experts", "normed_stride8"];

/// Rows and columns of the tiles that matrix units compute, of what side and whether large, or threads.
pub(super) fn tile(units: Option<(u32, bool)>) -> [u32; 2] {
    units.map_or([64, 64], |(side, wide)| if wide { [8 * side, 8 * side] } else { [4 * side, 4 * side] })
}

impl Lowering<'_> {
    pub(super) fn matrix(&self, id: ValueId) -> Result<Matrix<'_>> {
        let node = self.plan.node(id);
        let (weight, bias, divisor, experts) = match &node.op {
            Op::Linear { weight, bias, divisor } => (weight, bias, *divisor, None),
            Op::ExpertLinear { weight, bias, experts, chosen } => {
                let shared = self.plan.node(node.inputs[0]).width == self.plan.weights[weight.0].shape[1];
                let share = if shared { *chosen } else { 1 };
                (weight, bias, 1.0, Some(Experts { all: *experts, chosen: *chosen, numbers: node.inputs[1], share }))
            }
            _ => return Err(Error::plan(format!("{}: expected a matrix product", node.at))),
        };
        let bias = bias.map(|b| self.weights.get(self.plan, b)).transpose()?;
        Ok(Matrix { id, weight: self.weights.get(self.plan, *weight)?, bias, divisor, experts })
    }
    /// The products among `nodes` of a group, and the norm before them.
    pub(super) fn norm_and(&self, nodes: &[ValueId], group: &Group) -> Result<(Option<Norm<'_>>, Vec<Matrix<'_>>)> {
        let norm = match self.plan.node(nodes[0]).op {
            Op::RmsNorm { weight, offset, eps, .. } => {
                let kept = group.makes.contains(&nodes[0]);
                Some(Norm { id: nodes[0], weight: self.weights.get(self.plan, weight)?, offset, eps, kept })
            }
            _ => None,
        };
        let products = nodes[usize::from(norm.is_some())..].iter().map(|id| self.matrix(*id)).collect::<Result<_>>()?;
        Ok((norm, products))
    }
    /// Products of one input by the matrix-vector kernel, in as few calls as the weights' places allow.
    pub(super) fn products(&self, mut norm: Option<Norm<'_>>, products: Vec<Matrix<'_>>, ending: Ending) -> Result<Vec<Call>> {
        let mut calls = Vec::new();
        let mut rest = &products[..];
        while let [first, ..] = rest {
            let count = 1 + rest.windows(2).take_while(|pair| self.go_together(&pair[0], &pair[1])).count();
            for piece in &first.weight.pieces {
                calls.push(self.matvec(norm, &rest[..count], piece, ending)?);
                // The first call writes it.
                norm = norm.map(|norm| Norm { kept: false, ..norm });
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
        if product.experts.is_some() {
            return false;
        }
        let narrow = self.value(self.plan.node(product.id).inputs[0]).is_ok_and(|x| x.dtype == DType::F16);
        matches!(self.size, Size::Thin { .. }) && narrow && product.weight.format != Format::F32
    }

    /// Matrices that lie one after the other, or a piece of one, times a vector.
    fn matvec(&self, norm: Option<Norm<'_>>, matrices: &[Matrix<'_>], piece: &Piece, ending: Ending) -> Result<Call> {
        let Matrix { id, weight, bias, divisor, experts } = matrices[0];
        let node = self.plan.node(id);
        let head = self.plan.in_head(id);
        let x = self.value(if let Some(norm) = norm { self.plan.node(norm.id).inputs[0] } else { node.inputs[0] })?;
        let mut defines = weight.defines();
        let (packed, k8) = (weight.format.planes().is_some(), weight.k8());
        let stored = if let Some(norm) = norm { self.value(norm.id)?.dtype } else { x.dtype };
        let wg = self.gpu.caps.kernel_shape().row_threads;
        let product = Product::of(self.plan, id, weight, stored == DType::F16, false);
        let Some(Variant::Vector { lanes, digits }) = self.gpu.variant(&product)? else {
            return Err(Error::plan(format!("{}: no kernel computes {product}", node.at)));
        };
        let mut constants = vec![("WG", f64::from(wg)), ("LANES", f64::from(lanes))];
        if let Some(subgroup) = self.gpu.caps.subgroup.filter(|s| wg.is_multiple_of(*s)) {
            defines.push("SUBGROUPS");
            constants.push(("SPLIT", if lanes > subgroup { 1.0 } else { 0.0 }));
            constants.extend((lanes < subgroup).then_some(("NARROW", 1.0)));
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
            Ending::Gating(act, ..) => (self.value(act)?, 4),
            Ending::Added(_, _, add, _) => (self.value(add)?, 4),
        };
        let block = if head { self.head_block } else { self.size.block() };
        // Packed rows are unpacked, and x is made ready, for one row of x at a time.
        let (in_blocks, by_units) =
            (block > 1 && norm.is_none() && !packed && experts.is_none(), norm.is_none() && self.by_units(&matrices[0]));
        if in_blocks && !by_units {
            defines.push(if block == 8 { "BLOCK8" } else { "BLOCK4" });
        }
        let mut buffers: Vec<Bind> = vec![none(); 8];
        buffers[0] = read(&x.buffer);
        buffers[1] = read(&piece.buffer);
        buffers[2] = write(&out.buffer);
        if let Some(bias) = bias {
            defines.push("BIAS");
            buffers[3] = read(&bias.pieces[0].buffer);
        }
        let mut normed_stride8 = 0;
        if let Some(norm) = norm {
            defines.push("NORM");
            buffers[4] = read(&norm.weight.pieces[0].buffer);
            if norm.kept {
                let normed = self.value(norm.id)?;
                defines.push("NORM_KEPT");
                buffers[7] = write(&normed.buffer);
                normed_stride8 = normed.stride / 8;
            }
        }
        if let Some(experts) = experts {
            defines.push("EXPERTS");
            let numbers = self.value(experts.numbers)?;
            buffers[4] = read(&numbers.buffer);
        }
        let rows: usize = if experts.is_some() {
            matrices[0].rows()
        } else if matrices.len() == 1 {
            piece.rows
        } else {
            matrices.iter().map(|m| m.weight.shape[0]).sum()
        };
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
                constants.extend(activation(act));
                n = matrices[0].rows();
                second = weight.shape[0];
            }
            Ending::Gating(id, act, from) => {
                let up = self.value(self.plan.node(id).inputs[1])?;
                defines.push("GATING");
                defines.extend((out.dtype == DType::F16).then_some("OUT_F16"));
                constants.extend(activation(act));
                buffers[5] = read(&up.buffer);
                (second, strides[0]) = (from, up.stride);
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
        let rows = match experts {
            Some(experts) => RowCount::Chosen(experts.chosen),
            None if head => RowCount::HeadRows,
            None => RowCount::Tokens,
        };
        let groups = n.div_ceil(rows_of_team * (wg / lanes) as usize);
        // Rows of experts lie one after the other in those of their token, and the kernel finds an expert's in the buffer.
        let (n_first, in_stride8, out_stride) = match experts {
            Some(experts) => {
                strides = strides.map(|_| n);
                (0, if experts.share > 1 { x.stride / 8 } else { k8 }, n)
            }
            None => (piece.first, x.stride / 8, out.stride),
        };
        let mut params = vec![
            ("k", weight.shape[1].into()),
            ("k8", k8.into()),
            ("n", n.into()),
            ("w_first", piece.at.into()),
            ("n_first", n_first.into()),
            ("in_stride8", in_stride8.into()),
            ("out_stride", out_stride.into()),
            ("divisor", divisor.into()),
            ("row4", weight.row4().into()),
            ("bias_first", (bias_of(0) + n_first).into()),
            ("eps", eps.into()),
            ("offset", offset.into()),
            ("multiplier", multiplier.into()),
            ("second", second.into()),
            ("second_stride", strides[0].into()),
            ("second_bias", bias_of(1).into()),
            ("third", third.into()),
            ("third_stride", strides[1].into()),
            ("third_bias", bias_of(2).into()),
            ("chosen", experts.map_or(1, |experts| experts.chosen).into()),
            ("share", experts.map_or(1, |experts| experts.share).into()),
            ("piece_first", piece.first.into()),
            ("piece_rows", piece.rows.into()),
            ("experts", experts.map_or(0, |experts| experts.all).into()),
            ("normed_stride8", normed_stride8.into()),
        ];
        if let (true, Size::Thin { two }) = (by_units, self.size) {
            let side = self.gpu.caps.matrix.unwrap_or(16) as usize;
            params.retain(|(name, _)| !ONLY_VECTORS.contains(name) && *name != "eps" && *name != "offset");
            params.push(("w_scale", weight.scale().into()));
            defines.retain(|define| !["X_F16", "SUBGROUPS", "DIGITS"].contains(define));
            defines.extend(two.then_some("TWO"));
            defines.extend((side == 8).then_some("EIGHT"));
            constants.retain(|(name, _)| ["HEAD", "TAIL"].contains(name));
            let grid = Grid::Blocks { rows, groups: n.div_ceil(2 * side), block: if two { 2 * side } else { side } };
            return Ok(Call { kernel: "linear_thin", defines, constants, params, buffers, grid });
        }
        let (kernel, grid) = if in_blocks {
            params.retain(|(name, _)| !ONLY_VECTORS.contains(name) && !["eps", "offset", "row4"].contains(name));
            ("linear_rows", Grid::Blocks { rows, groups, block })
        } else {
            ("linear", Grid::Rows { rows, groups })
        };
        Ok(Call { kernel, defines, constants, params, buffers, grid })
    }

    /// Whether a step of many tokens computes `product` in tiles.
    pub(super) fn by_tiles(&self, product: &Matrix<'_>) -> bool {
        self.size == Size::Many && (self.gpu.caps.kernel_shape().tiles || product.weight.format.planes().is_some())
    }

    /// The side of the matrix units' tiles, and whether a workgroup has large ones; `None` where threads multiply.
    pub(super) fn units(&self, product: &Matrix<'_>) -> Result<Option<(u32, bool)>> {
        let x = self.value(self.plan.node(product.id).inputs[0])?;
        let variant = self.gpu.variant(&Product::of(self.plan, product.id, product.weight, x.dtype == DType::F16, true))?;
        // An expert has few rows.
        let wide = variant == Some(Variant::Tiles { wide: true }) && product.experts.is_none();
        Ok(self.gpu.caps.matrix.filter(|_| variant.is_some()).map(|side| (side, wide)))
    }

    pub(super) fn tiled_product(&self, product: Matrix<'_>, ending: Ending) -> Result<Vec<Call>> {
        let Matrix { id, weight, bias, divisor, experts } = product;
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
        let units = self.units(&product)?;
        let tile = tile(units);
        if let Some((side, wide)) = units {
            defines.retain(|define| *define != "X_F16");
            defines.extend((side == 8).then_some("EIGHT"));
            defines.extend(wide.then_some("WIDE"));
        }
        let mut order = none();
        if experts.is_some() {
            defines.push("EXPERTS");
            order = read(self.expert_order);
        }
        let k8 = weight.k8();
        let call = |piece: &Piece| {
            // Rows of experts lie one after the other in those of their token, and the kernel finds an expert's in the buffer.
            let (n, n_first, in_stride8, out_stride, grid) = match experts {
                Some(Experts { all, chosen, share, .. }) => {
                    let n = product.rows();
                    let stride = if share > 1 { x.stride / 8 } else { k8 };
                    (n, 0, stride, n, Grid::ExpertTiles { n, tile, chosen, experts: all })
                }
                None => (piece.rows, piece.first, x.stride / 8, out.stride, Grid::Tiles { n: piece.rows, tile }),
            };
            Call {
                kernel: if units.is_some() { "linear_matrix" } else { "linear_tiled" },
                defines: defines.clone(),
                constants: constants.clone(),
                params: [
                    ("k", weight.shape[1].into()),
                    ("k8", k8.into()),
                    ("n", n.into()),
                    ("n_first", n_first.into()),
                    ("in_stride8", in_stride8.into()),
                    ("out_stride", out_stride.into()),
                    ("divisor", divisor.into()),
                    ("row4", weight.row4().into()),
                    ("w_first", piece.at.into()),
                    ("bias_first", bias.map_or(0, GpuWeight::at).into()),
                    ("multiplier", multiplier.into()),
                    ("chosen", experts.map_or(1, |experts| experts.chosen).into()),
                    ("share", experts.map_or(1, |experts| experts.share).into()),
                    ("piece_first", piece.first.into()),
                    ("piece_rows", piece.rows.into()),
                    ("experts", experts.map_or(0, |experts| experts.all).into()),
                ]
                .into_iter()
                .chain(units.map(|_| ("w_scale", weight.scale().into())))
                .collect(),
                buffers: vec![
                    read(&x.buffer),
                    read(&piece.buffer),
                    write(&out.buffer),
                    bias.map_or_else(none, |b| read(&b.pieces[0].buffer)),
                    residual.clone(),
                    order.clone(),
                ],
                grid,
            }
        };
        Ok(weight.pieces.iter().map(call).collect())
    }
}
