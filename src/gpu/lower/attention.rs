//! Attention: heads into the cache, scores, probabilities and mixture, together or apart.

use super::{Lowering, pairing_define};
use crate::error::{Error, Result};
use crate::geometry::RUN_POSITIONS;
use crate::gpu::buffers::StateBuffers;
use crate::gpu::pipelines::{Call, Grid, Param, RowCount, none, read, write};
use crate::gpu::program::Size;
use crate::gpu::weights::GpuWeight;
use crate::plan::{Attention, Op, StateId, StatePart, ValueId, WeightId};
use crate::tensor::DType;

impl Lowering<'_> {
    /// Norms and RoPE of `turned`, the heads' nodes, then keys and values, where this layer has some, into the cache.
    pub(super) fn heads(&self, turned: &[ValueId], query: ValueId, appended: Option<[ValueId; 2]>, a: &Attention) -> Result<Vec<Call>> {
        let norms = turned.iter().filter_map(|id| match self.plan.node(*id).op {
            Op::RmsNorm { weight, offset, eps, .. } => Some((weight, offset, eps)),
            _ => None,
        });
        let norms: Vec<(WeightId, f64, f64)> = norms.collect();
        if let [(q, ..), (k, ..)] = norms[..]
            && !self.weights.get(self.plan, q)?.shares_buffer(self.weights.get(self.plan, k)?)
        {
            // Weights that lie apart are more buffers than a kernel binds.
            let (norms, ropes): (Vec<ValueId>, Vec<ValueId>) =
                turned.iter().partition(|id| matches!(self.plan.node(**id).op, Op::RmsNorm { .. } | Op::UnitNorm { .. }));
            let mut calls = Vec::new();
            for id in norms {
                calls.extend(self.node(id)?);
            }
            calls.extend(self.heads(&ropes, query, appended, a)?);
            return Ok(calls);
        }
        let source = |mut id: ValueId| {
            while turned.contains(&id) {
                id = self.plan.node(id).inputs[0];
            }
            self.value(id)
        };
        let kv = self.state(a.state)?;
        let q = source(query)?;
        let (mut defines, mut constants, mut buffers) = (Vec::new(), Vec::new(), vec![none(); 4]);
        let (mut strides, kv_heads) = ([0, 0], if appended.is_some() { a.kv_heads } else { 0 });
        if let Some(appended) = appended {
            let [keys, values] = appended.map(|id| self.plan.node(id).inputs[0]);
            let (k, v) = (source(keys)?, source(values)?);
            defines.extend(cache_define(kv));
            defines.extend(turned.contains(&values).then_some("VALUE_NORM"));
            buffers = vec![read(&k.buffer), read(&v.buffer), write(kv.part(StatePart::Keys)?), write(kv.part(StatePart::Values)?)];
            strides = [k.stride, v.stride];
        } else {
            defines.push("LONE");
        }
        let (mut heads, mut out_stride, mut table) = (0, 0, None);
        if let Op::Rope { rope, .. } = self.plan.node(query).op
            && turned.contains(&query)
        {
            let (out, rope) = (self.value(query)?, &self.ropes[rope]);
            defines.push("ROPE");
            defines.extend(pairing_define(rope));
            buffers.extend([read(&q.buffer), write(&out.buffer), read(&rope.buffer)]);
            (heads, out_stride, table) = (a.heads, out.stride, Some(rope));
        }
        let (mut first, mut offset, mut eps) = ([0, 0], 0.0, 0.0);
        if let [(of_query, plus, least), ref others @ ..] = norms[..] {
            let (of_reducing, of_threads) = self.reducing(64);
            defines.extend(of_reducing);
            constants.extend(of_threads);
            defines.push("NORM");
            let of_keys = others.first().map_or(of_query, |(k, ..)| *k);
            let weights = [self.weights.get(self.plan, of_query)?, self.weights.get(self.plan, of_keys)?];
            buffers.push(read(&weights[0].pieces[0].buffer));
            (first, offset, eps) = (weights.map(GpuWeight::at), plus, least);
        }
        let params = vec![
            ("heads", heads.into()),
            ("kv_heads", kv_heads.into()),
            ("k", a.head_dim.into()),
            ("half_dim", table.map_or(0, |table| table.half_dim).into()),
            ("positions", table.map_or(0, |table| table.positions).into()),
            ("variants", table.map_or(1, |table| table.variants).into()),
            ("slab", kv.kind.into()),
            ("q_stride", q.stride.into()),
            ("k_stride", strides[0].into()),
            ("v_stride", strides[1].into()),
            ("out_stride", out_stride.into()),
            ("eps", eps.into()),
            ("offset", offset.into()),
            ("q_norm_first", first[0].into()),
            ("k_norm_first", first[1].into()),
        ];
        let grid = Grid::Items { rows: RowCount::Tokens, per_row: heads + 2 * kv_heads, per_group: 1 };
        Ok(vec![Call { kernel: "heads", defines, constants, params, buffers, grid }])
    }

    /// Appends `x` to a part of a state.
    pub fn kv_write(&self, x: ValueId, state: StateId, part: StatePart) -> Result<Call> {
        let (width, x, kv) = (self.plan.node(x).width, self.value(x)?, self.state(state)?);
        Ok(Call {
            kernel: "kv_write",
            defines: cache_define(kv),
            constants: Vec::new(),
            params: vec![
                ("width", width.into()),
                ("in_stride", x.stride.into()),
                ("slab", kv.kind.into()),
                ("left", 0usize.into()),
                ("right", 0usize.into()),
            ],
            buffers: vec![read(&x.buffer), write(kv.part(part)?)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: width / 2, per_group: 64 },
        })
    }

    /// What a state holds of the step's tokens becomes the value `id`, which appends them.
    pub fn kv_read(&self, id: ValueId) -> Result<Call> {
        let node = self.plan.node(id);
        let Op::Append { state, part } = node.op else { return Err(Error::plan(format!("{}: expected what is appended", node.at))) };
        let (out, kv) = (self.value(id)?, self.state(state)?);
        let words = node.width * kv.dtype.size() / 4;
        Ok(Call {
            kernel: "kv_read",
            defines: Vec::new(),
            constants: Vec::new(),
            params: vec![("words", words.into()), ("out_words", (out.row_bytes() / 4).into()), ("slab", kv.kind.into())],
            buffers: vec![read(kv.part(part)?), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: words, per_group: 64 },
        })
    }

    /// Parameters that the attention kernels begin with.
    fn attention_params(&self, a: &Attention, kv: &StateBuffers) -> Vec<(&'static str, Param)> {
        vec![
            ("heads", a.heads.into()),
            ("kv_heads", a.kv_heads.into()),
            ("head_dim", a.head_dim.into()),
            ("slab", kv.kind.into()),
            ("window", a.window.unwrap_or(0).into()),
        ]
    }

    pub(super) fn attention(&self, id: ValueId, q: ValueId, a: &Attention) -> Result<Vec<Call>> {
        let (q, out, kv) = (self.value(q)?, self.value(id)?, self.state(a.state)?);
        let mut params = self.attention_params(a, kv);
        params.push(("in_stride", q.stride.into()));
        let ends = [("scale", a.scale.into()), ("softcap", a.softcap.unwrap_or(0.0).into())];
        let narrow = if out.dtype == DType::F16 { vec!["OUT_F16"] } else { Vec::new() };
        if self.size != Size::Many {
            params.extend(ends);
            params.push(("runs", self.runs.into()));
            let fours = ("D4", (a.head_dim / 4) as f64);
            let mut defines = cache_define(kv);
            // A workgroup has room for the queries of four heads, or of two.
            let wide = a.head_dim > 256;
            defines.extend(wide.then_some("WIDE"));
            // Whole subgroups share the positions of a head.
            defines.extend(self.gpu.caps.subgroup.filter(|lanes| RUN_POSITIONS.is_multiple_of(*lanes as usize)).map(|_| "SUBGROUPS"));
            let runs = Call {
                kernel: "attention_runs",
                defines,
                constants: vec![fours],
                params,
                buffers: vec![read(&q.buffer), read(kv.part(StatePart::Keys)?), read(kv.part(StatePart::Values)?), write(self.partials)],
                grid: Grid::Runs {
                    per_token: a.kv_heads * (a.heads / a.kv_heads).div_ceil(if wide { 2 } else { 4 }),
                    window: a.window.unwrap_or(0),
                },
            };
            let mut merge = Call {
                kernel: "attention_merge",
                defines: narrow,
                constants: vec![fours],
                params: vec![
                    ("heads", a.heads.into()),
                    ("head_dim", a.head_dim.into()),
                    ("window", a.window.unwrap_or(0).into()),
                    ("out_stride", out.stride.into()),
                    ("runs", self.runs.into()),
                ],
                buffers: vec![read(self.partials), write(&out.buffer)],
                grid: Grid::Items { rows: RowCount::Tokens, per_row: a.heads, per_group: 1 },
            };
            self.with_sinks(&mut merge, a)?;
            return Ok(vec![runs, merge]);
        }
        if let Some((side, defines)) = self.by_matrix(a, kv.dtype, out.dtype) {
            params.push(("out_stride", out.stride.into()));
            params.extend(ends);
            let mut call = Call {
                kernel: "attention_matrix",
                defines,
                constants: Vec::new(),
                params,
                buffers: vec![read(&q.buffer), read(kv.part(StatePart::Keys)?), read(kv.part(StatePart::Values)?), write(&out.buffer)],
                grid: Grid::Tiles { n: a.heads, tile: [4 * side, 1] },
            };
            self.with_sinks(&mut call, a)?;
            return Ok(vec![call]);
        }
        let (mut defines, constants) = self.reducing(128);
        defines.extend(cache_define(kv));
        defines.extend(narrow);
        params.push(("out_stride", out.stride.into()));
        params.extend(ends);
        let mut call = Call {
            kernel: "attention",
            defines,
            constants,
            params,
            buffers: vec![read(&q.buffer), read(kv.part(StatePart::Keys)?), read(kv.part(StatePart::Values)?), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: a.heads, per_group: 1 },
        };
        self.with_sinks(&mut call, a)?;
        Ok(vec![call])
    }

    /// Gives a call that ends a softmax the sinks, its last buffer, and says where they begin.
    fn with_sinks(&self, call: &mut Call, a: &Attention) -> Result<()> {
        let sinks = a.sinks.map(|id| self.weights.get(self.plan, id)).transpose()?;
        call.params.push(("sinks_first", sinks.map_or(0, GpuWeight::at).into()));
        if let Some(sinks) = sinks {
            call.defines.push("SINKS");
            call.buffers.push(read(&sinks.pieces[0].buffer));
        }
        Ok(())
    }

    /// The side of the tiles by which matrix units compute the attention of many tokens, and the defines of its kernel: where
    /// heads are four, eight or sixteen tiles wide, and fit into a workgroup.
    fn by_matrix(&self, a: &Attention, cache: DType, out: DType) -> Option<(u32, Vec<&'static str>)> {
        let side = self.gpu.caps.matrix.filter(|_| cache == DType::F16 && out == DType::F16)? as usize;
        let mut defines = if side == 8 { vec!["EIGHT"] } else { Vec::new() };
        match a.head_dim.is_multiple_of(side).then_some(a.head_dim / side)? {
            4 => {}
            8 => defines.push("D8"),
            16 => defines.extend(["D8", "D16"]),
            _ => return None,
        }
        // The kernel's tile, scores, weights and ends.
        let threads = 4 * if side == 8 { 8 } else { 32 };
        let bytes = 8 * 4 * side * (a.head_dim / 4 + 2) + 32 * side * side + 16 * side * side + 4 * threads;
        (bytes <= self.gpu.caps.workgroup_memory as usize).then_some((side as u32, defines))
    }

    pub(super) fn attn_scores(&self, id: ValueId, a: &Attention) -> Result<Call> {
        let (q, out, kv) = (self.value(self.plan.node(id).inputs[0])?, self.value(id)?, self.state(a.state)?);
        let mut params = self.attention_params(a, kv);
        params.extend([("in_stride", q.stride.into()), ("scale", a.scale.into()), ("softcap", a.softcap.unwrap_or(0.0).into())]);
        Ok(Call {
            kernel: "attn_scores",
            defines: cache_define(kv),
            constants: Vec::new(),
            params,
            buffers: vec![read(&q.buffer), read(kv.part(StatePart::Keys)?), write(&out.buffer)],
            grid: Grid::Cells { heads: a.heads },
        })
    }

    pub(super) fn attn_probs(&self, id: ValueId, a: &Attention) -> Result<Call> {
        let (scores, out) = (self.value(self.plan.node(id).inputs[0])?, self.value(id)?);
        let (defines, constants) = self.reducing(128);
        let mut call = Call {
            kernel: "attn_probs",
            defines,
            constants,
            params: vec![("heads", a.heads.into()), ("window", a.window.unwrap_or(0).into())],
            buffers: vec![read(&scores.buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: a.heads, per_group: 1 },
        };
        self.with_sinks(&mut call, a)?;
        Ok(call)
    }

    pub(super) fn attn_mix(&self, id: ValueId, a: &Attention) -> Result<Call> {
        let (probs, out, kv) = (self.value(self.plan.node(id).inputs[0])?, self.value(id)?, self.state(a.state)?);
        let mut defines = cache_define(kv);
        if out.dtype == DType::F16 {
            defines.push("OUT_F16");
        }
        let mut params = self.attention_params(a, kv);
        params.push(("out_stride", out.stride.into()));
        Ok(Call {
            kernel: "attn_mix",
            defines,
            constants: Vec::new(),
            params,
            buffers: vec![read(&probs.buffer), read(kv.part(StatePart::Values)?), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: a.heads, per_group: 1 },
        })
    }
}

fn cache_define(kv: &StateBuffers) -> Vec<&'static str> {
    if kv.dtype == DType::F16 { vec!["CACHE_F16"] } else { Vec::new() }
}
