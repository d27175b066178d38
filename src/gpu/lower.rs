//! From plan to kernel calls: which kernel, which variant, which buffers. Requests come first, so that what is
//! wanted is never fused away; what had to change for them is said in notes.

use super::buffers::{KvBuffers, RopeBuffer, Value, Values};
use super::device::Gpu;
use super::pipelines::{Call, Grid, Param, RowCount, read, write};
use super::weights::{GpuWeight, Weights};
use crate::error::{Error, Result};
use crate::geometry::{attention_reads, stride};
use crate::model::Activation;
use crate::plan::{Attention, Op, Plan, Stage, ValueId};
use crate::tensor::DType;

/// Everything that lowering reads.
pub struct Lowering<'a> {
    pub gpu: &'a Gpu,
    pub plan: &'a Plan,
    pub weights: &'a Weights,
    pub values: &'a Values,
    pub kv: &'a [KvBuffers],
    pub ropes: &'a [RopeBuffer],
    pub ids: &'a wgpu::Buffer,
    /// Many rows per step: the tiled matrix product.
    pub tiled: bool,
    /// Layers whose scores or probabilities are wanted, so that attention is not fused.
    pub unfused: &'a [bool],
}

impl Lowering<'_> {
    fn value(&self, id: ValueId) -> Result<&Value> {
        self.values.get(self.plan, id)
    }
    /// Subgroup define and the constants of a kernel that reduces over a workgroup of `wg`.
    fn reducing(&self, wg: u32) -> (Vec<&'static str>, Vec<(&'static str, f64)>) {
        let defines = if self.gpu.caps.subgroup.is_some_and(|s| wg.is_multiple_of(s)) { vec!["SUBGROUPS"] } else { Vec::new() };
        (defines, vec![("WG", f64::from(wg))])
    }

    /// The calls of one node, in order.
    pub fn node(&self, id: ValueId) -> Result<Vec<Call>> {
        let node = self.plan.node(id);
        match &node.op {
            Op::Same => Ok(Vec::new()),
            Op::Embed { table, scale } => self.embed(id, self.weights.get(self.plan, *table)?, *scale),
            Op::RmsNorm { weight, offset, eps, group } => {
                let weight = self.weights.get(self.plan, *weight)?;
                Ok(vec![self.rms_norm(id, weight, *offset, *eps, *group)?])
            }
            Op::Linear { weight, bias, divisor } => {
                let weight = self.weights.get(self.plan, *weight)?;
                let bias = bias.map(|b| self.weights.get(self.plan, b)).transpose()?;
                self.linear(id, weight, bias, *divisor)
            }
            Op::Rope { rope, heads, head_dim } => Ok(vec![self.rope(id, &self.ropes[*rope], *heads, *head_dim)?]),
            Op::AttnScores(a) => {
                if !self.unfused[node.at.layer.unwrap_or(0)] {
                    return Ok(Vec::new());
                }
                Ok(vec![self.kv_write(node.inputs[1], a, false)?, self.attn_scores(id, a)?])
            }
            Op::AttnProbs(a) => {
                if !self.unfused[node.at.layer.unwrap_or(0)] {
                    return Ok(Vec::new());
                }
                Ok(vec![self.attn_probs(id, a)?])
            }
            Op::AttnMix(a) => {
                if self.unfused[node.at.layer.unwrap_or(0)] {
                    return Ok(vec![self.kv_write(node.inputs[1], a, true)?, self.attn_mix(id, a)?]);
                }
                let reads = attention_reads(self.plan, id);
                Ok(vec![self.kv_write(reads[1], a, false)?, self.kv_write(reads[2], a, true)?, self.attention(id, reads[0], a)?])
            }
            Op::GatedAct { act } => Ok(vec![self.gated_act(id, *act)?]),
            Op::Add { multiplier } => Ok(vec![self.add(id, *multiplier)?]),
            Op::SoftCap { cap } => Ok(vec![self.soft_cap(id, *cap)?]),
        }
    }

    fn embed(&self, id: ValueId, table: &GpuWeight, scale: f64) -> Result<Vec<Call>> {
        let out = self.value(id)?;
        let k8 = table.k8();
        let piece = |p: &super::weights::Piece| Call {
            kernel: "embed",
            defines: table.defines(),
            constants: Vec::new(),
            params: vec![
                ("k8", k8.into()),
                ("out_stride", out.stride.into()),
                ("row_first", p.first.into()),
                ("row_count", p.rows.into()),
                ("scale", scale.into()),
                ("row4", table.row4().into()),
            ],
            buffers: vec![read(self.ids), read(&p.buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: k8, per_group: 64 },
        };
        Ok(table.pieces.iter().map(piece).collect())
    }

    fn rms_norm(&self, id: ValueId, weight: &GpuWeight, offset: f64, eps: f64, group: usize) -> Result<Call> {
        let node = self.plan.node(id);
        let (x, out) = (self.value(node.inputs[0])?, self.value(id)?);
        if out.dtype == DType::F16 && group != node.width {
            return Err(Error::plan(format!("{}: a norm over heads cannot be stored as f16", node.at)));
        }
        let (mut defines, constants) = self.reducing(if group <= 256 { 64 } else { 256 });
        if out.dtype == DType::F16 {
            defines.push("OUT_F16");
        }
        Ok(Call {
            kernel: "rms_norm",
            defines,
            constants,
            params: vec![
                ("width", node.width.into()),
                ("group", group.into()),
                ("in_stride", x.stride.into()),
                ("out_stride", out.stride.into()),
                ("eps", eps.into()),
                ("offset", offset.into()),
            ],
            buffers: vec![read(&x.buffer), read(&weight.pieces[0].buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: node.width / group, per_group: 1 },
        })
    }

    fn linear(&self, id: ValueId, weight: &GpuWeight, bias: Option<&GpuWeight>, divisor: f64) -> Result<Vec<Call>> {
        let node = self.plan.node(id);
        let (x, out) = (self.value(node.inputs[0])?, self.value(id)?);
        let head = self.plan.in_head(id);
        // Logits always come from the matrix-vector kernel, so that a row is the same bits however many are wanted.
        let tiled = self.tiled && !head;
        let mut defines = weight.defines();
        if x.dtype == DType::F16 {
            defines.push("X_F16");
        }
        if !weight.shape[1].is_multiple_of(8) {
            defines.push("TAIL");
        }
        if bias.is_some() {
            defines.push("BIAS");
        }
        if head {
            defines.push("HEAD");
        }
        let packed = weight.format.planes().is_some();
        let (each, rows_of_team) = if packed { (32, 4) } else { (8, 2) };
        let mut constants = Vec::new();
        let mut teams = 0;
        if !tiled {
            // Threads take eight plain weights at a time, or 32 packed ones.
            let (wg, lanes) = matvec_shape(weight.shape[0], weight.k8() / (each / 8), self.gpu.caps.subgroup);
            teams = (wg / lanes) as usize;
            constants.extend([("WG", f64::from(wg)), ("LANES", f64::from(lanes))]);
            if let Some(subgroup) = self.gpu.caps.subgroup.filter(|s| lanes.is_multiple_of(*s)) {
                defines.push("SUBGROUPS");
                constants.push(("SPLIT", if lanes > subgroup { 1.0 } else { 0.0 }));
            }
        }
        let call = |piece: &super::weights::Piece| {
            let mut buffers = vec![read(&x.buffer), read(&piece.buffer), write(&out.buffer)];
            buffers.extend(bias.map(|b| read(&b.pieces[0].buffer)));
            let rows = if head { RowCount::HeadRows } else { RowCount::Tokens };
            Call {
                kernel: match (tiled, packed) {
                    (true, _) => "linear_tiled",
                    (false, true) => "linear_packed",
                    (false, false) => "linear",
                },
                defines: defines.clone(),
                constants: constants.clone(),
                params: vec![
                    ("k", weight.shape[1].into()),
                    ("k8", weight.k8().into()),
                    ("n", piece.rows.into()),
                    ("n_first", piece.first.into()),
                    ("in_stride8", (x.stride / 8).into()),
                    ("out_stride", out.stride.into()),
                    ("divisor", divisor.into()),
                    ("row4", weight.row4().into()),
                ],
                buffers,
                grid: if tiled {
                    Grid::Tiles { n: piece.rows }
                } else {
                    Grid::Rows { rows, groups: piece.rows.div_ceil(rows_of_team * teams) }
                },
            }
        };
        Ok(weight.pieces.iter().map(call).collect())
    }

    fn rope(&self, id: ValueId, table: &RopeBuffer, heads: usize, head_dim: usize) -> Result<Call> {
        let (x, out) = (self.value(self.plan.node(id).inputs[0])?, self.value(id)?);
        Ok(Call {
            kernel: "rope",
            defines: Vec::new(),
            constants: Vec::new(),
            params: vec![
                ("heads", heads.into()),
                ("head_dim", head_dim.into()),
                ("half_dim", table.half_dim.into()),
                ("positions", table.positions.into()),
                ("in_stride", x.stride.into()),
                ("out_stride", out.stride.into()),
                ("variants", table.variants.into()),
            ],
            buffers: vec![read(&x.buffer), read(&table.buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: heads * (head_dim - table.half_dim), per_group: 64 },
        })
    }

    /// Appends keys (or `values`) to the layer's cache.
    pub fn kv_write(&self, x: ValueId, a: &Attention, values: bool) -> Result<Call> {
        let (x, kv) = (self.value(x)?, &self.kv[a.cache]);
        let width = a.kv_heads * a.head_dim;
        Ok(Call {
            kernel: "kv_write",
            defines: cache_define(kv),
            constants: Vec::new(),
            params: vec![("width", width.into()), ("in_stride", x.stride.into()), ("capacity", kv.capacity.into())],
            buffers: vec![read(&x.buffer), write(if values { &kv.values } else { &kv.keys })],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: width / 2, per_group: 64 },
        })
    }

    /// Parameters that the attention kernels begin with.
    fn attention_params(&self, a: &Attention) -> Vec<(&'static str, Param)> {
        vec![
            ("heads", a.heads.into()),
            ("kv_heads", a.kv_heads.into()),
            ("head_dim", a.head_dim.into()),
            ("capacity", self.kv[a.cache].capacity.into()),
            ("window", a.window.unwrap_or(0).into()),
        ]
    }

    fn attention(&self, id: ValueId, q: ValueId, a: &Attention) -> Result<Call> {
        let (q, out, kv) = (self.value(q)?, self.value(id)?, &self.kv[a.cache]);
        let (mut defines, constants) = self.reducing(128);
        defines.extend(cache_define(kv));
        if out.dtype == DType::F16 {
            defines.push("OUT_F16");
        }
        let mut params = self.attention_params(a);
        params.extend([
            ("in_stride", q.stride.into()),
            ("out_stride", out.stride.into()),
            ("scale", a.scale.into()),
            ("softcap", a.softcap.unwrap_or(0.0).into()),
        ]);
        Ok(Call {
            kernel: "attention",
            defines,
            constants,
            params,
            buffers: vec![read(&q.buffer), read(&kv.keys), read(&kv.values), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: a.heads, per_group: 1 },
        })
    }

    fn attn_scores(&self, id: ValueId, a: &Attention) -> Result<Call> {
        let (q, out, kv) = (self.value(self.plan.node(id).inputs[0])?, self.value(id)?, &self.kv[a.cache]);
        let mut params = self.attention_params(a);
        params.extend([("in_stride", q.stride.into()), ("scale", a.scale.into()), ("softcap", a.softcap.unwrap_or(0.0).into())]);
        Ok(Call {
            kernel: "attn_scores",
            defines: cache_define(kv),
            constants: Vec::new(),
            params,
            buffers: vec![read(&q.buffer), read(&kv.keys), write(&out.buffer)],
            grid: Grid::Cells { heads: a.heads },
        })
    }

    fn attn_probs(&self, id: ValueId, a: &Attention) -> Result<Call> {
        let (scores, out) = (self.value(self.plan.node(id).inputs[0])?, self.value(id)?);
        let (defines, constants) = self.reducing(128);
        Ok(Call {
            kernel: "attn_probs",
            defines,
            constants,
            params: vec![("heads", a.heads.into()), ("window", a.window.unwrap_or(0).into())],
            buffers: vec![read(&scores.buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: a.heads, per_group: 1 },
        })
    }

    fn attn_mix(&self, id: ValueId, a: &Attention) -> Result<Call> {
        let (probs, out, kv) = (self.value(self.plan.node(id).inputs[0])?, self.value(id)?, &self.kv[a.cache]);
        let mut defines = cache_define(kv);
        if out.dtype == DType::F16 {
            defines.push("OUT_F16");
        }
        let mut params = self.attention_params(a);
        params.push(("out_stride", out.stride.into()));
        Ok(Call {
            kernel: "attn_mix",
            defines,
            constants: Vec::new(),
            params,
            buffers: vec![read(&probs.buffer), read(&kv.values), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: a.heads, per_group: 1 },
        })
    }

    fn gated_act(&self, id: ValueId, act: Activation) -> Result<Call> {
        let node = self.plan.node(id);
        let (gate, up, out) = (self.value(node.inputs[0])?, self.value(node.inputs[1])?, self.value(id)?);
        let code = match act {
            Activation::Silu => 0.0,
            Activation::GeluTanh => 1.0,
            Activation::Gelu => 2.0,
        };
        Ok(Call {
            kernel: "gated_act",
            defines: if out.dtype == DType::F16 { vec!["OUT_F16"] } else { Vec::new() },
            constants: vec![("ACT", code)],
            params: vec![("width", node.width.into()), ("stride", gate.stride.into()), ("out_stride", out.stride.into())],
            buffers: vec![read(&gate.buffer), read(&up.buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: node.width.div_ceil(2), per_group: 64 },
        })
    }

    fn add(&self, id: ValueId, multiplier: f64) -> Result<Call> {
        let node = self.plan.node(id);
        let (a, b, out) = (self.value(node.inputs[0])?, self.value(node.inputs[1])?, self.value(id)?);
        Ok(Call {
            kernel: "add",
            defines: Vec::new(),
            constants: Vec::new(),
            params: vec![("stride4", (out.stride / 4).into()), ("multiplier", multiplier.into())],
            buffers: vec![read(&a.buffer), read(&b.buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: out.stride / 4, per_group: 64 },
        })
    }

    fn soft_cap(&self, id: ValueId, cap: f64) -> Result<Call> {
        let node = self.plan.node(id);
        let (x, out) = (self.value(node.inputs[0])?, self.value(id)?);
        Ok(Call {
            kernel: "soft_cap",
            defines: Vec::new(),
            constants: Vec::new(),
            params: vec![("stride", out.stride.into()), ("cap", cap.into())],
            buffers: vec![read(&x.buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::HeadRows, per_row: out.stride, per_group: 64 },
        })
    }
}

/// Workgroup size and threads per team for an [n, 8·k8] matrix: long rows of small matrices take larger teams, so
/// that enough threads read at once.
fn matvec_shape(n: usize, k8: usize, subgroup: Option<u32>) -> (u32, u32) {
    let smallest = subgroup.unwrap_or(32).clamp(8, 64);
    let mut lanes = smallest;
    while lanes < 128 && (lanes as usize) * 2 <= k8 && n / 2 * (lanes as usize) < 262_144 {
        lanes *= 2;
    }
    (128, lanes)
}

fn cache_define(kv: &KvBuffers) -> Vec<&'static str> {
    if kv.dtype == DType::F16 { vec!["CACHE_F16"] } else { Vec::new() }
}

/// Refuses plans that no kernel covers, naming the node.
pub fn supported(plan: &Plan) -> Result<()> {
    for node in &plan.nodes {
        let refuse = |what: String| Err(Error::unsupported(format!("{}: {what}; the CPU oracle runs it (device cpu)", node.at)));
        match &node.op {
            Op::AttnMix(a) if !a.head_dim.is_multiple_of(4) || a.head_dim > 256 => {
                return refuse(format!("the attention kernels take head_dim up to 256 in multiples of 4, this is {}", a.head_dim));
            }
            Op::SoftCap { .. } if node.at.stage != Stage::LogitsFinal => {
                return refuse("the soft_cap kernel runs on logits only".into());
            }
            _ => {}
        }
    }
    if stride(plan.vocab_size) * 4 > u32::MAX as usize {
        return Err(Error::unsupported("a vocabulary above a thousand million rows"));
    }
    Ok(())
}
