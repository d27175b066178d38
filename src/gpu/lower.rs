//! From groups of nodes to kernel calls: which kernel, which variant, which buffers. Groups are found with the requests in
//! mind, so that what is wanted is never fused away.

mod attention;
mod conv;
mod delta;
mod experts;
mod intervention;
mod products;

use super::buffers::{RopeBuffer, StateBuffers, Value, Values};
use super::device::Gpu;
use super::pipelines::{Call, Grid, RowCount, none, read, write};
use super::program::Size;
use super::weights::{GpuWeight, Weights};
use crate::error::{Error, Result};
use crate::geometry::stride;
use crate::groups::{Group, Pattern};
use crate::model::{Activation, RopePairing};
use crate::plan::{Op, Plan, Stage, StateId, ValueId, WeightId};
use crate::tensor::DType;
use products::Ending;

/// Everything that lowering reads.
pub struct Lowering<'a> {
    pub gpu: &'a Gpu,
    pub plan: &'a Plan,
    pub weights: &'a Weights,
    pub values: &'a Values,
    pub states: &'a [StateBuffers],
    pub ropes: &'a [RopeBuffer],
    pub ids: &'a wgpu::Buffer,
    /// What the runs of attention give before they are merged, for steps of few tokens.
    pub partials: &'a wgpu::Buffer,
    /// Where the rows that experts compute are put in order, for steps of many tokens.
    pub expert_order: &'a wgpu::Buffer,
    /// Runs of a head for which it has room.
    pub runs: usize,
    /// For how many tokens.
    pub size: Size,
    /// Rows of logits for which the head reads its weights once.
    pub head_block: usize,
    /// Positions before those that the step counts from: 0, but where an op is computed alone.
    pub shift: usize,
}

impl Lowering<'_> {
    fn value(&self, id: ValueId) -> Result<&Value> {
        self.values.get(self.plan, id)
    }
    fn state(&self, id: StateId) -> Result<&StateBuffers> {
        self.states.get(id.0).ok_or_else(|| Error::plan(format!("state {} has no buffers", id.0)))
    }
    /// Subgroup define and the constants of a kernel that reduces over a workgroup of `wg`.
    fn reducing(&self, wg: u32) -> (Vec<&'static str>, Vec<(&'static str, f64)>) {
        let defines = if self.gpu.caps.subgroup.is_some_and(|s| wg.is_multiple_of(s)) { vec!["SUBGROUPS"] } else { Vec::new() };
        (defines, vec![("WG", f64::from(wg))])
    }

    /// The calls of a group, in order, and those that change what it makes.
    pub fn group(&self, group: &Group) -> Result<Vec<Call>> {
        let mut calls = self.pattern(group)?;
        for id in &group.makes {
            calls.extend(self.interventions(*id)?);
        }
        Ok(calls)
    }
    /// The calls of one node, in order, and those that change its value.
    pub fn node(&self, id: ValueId) -> Result<Vec<Call>> {
        let mut calls = self.op(id)?;
        calls.extend(self.interventions(id)?);
        Ok(calls)
    }

    fn pattern(&self, group: &Group) -> Result<Vec<Call>> {
        let nodes = &group.nodes[..];
        let last = nodes[nodes.len() - 1];
        match group.pattern {
            Pattern::Single => self.op(last),
            Pattern::Products => {
                let (norm, products) = self.norm_and(nodes, group)?;
                self.products(norm, products, Ending::Stored)
            }
            Pattern::Gated => {
                let Op::GatedAct { act, .. } = self.plan.node(last).op else { return self.misfit(group) };
                let (norm, products) = self.norm_and(&nodes[..nodes.len() - 1], group)?;
                let [gate, up] = products[..] else { return self.misfit(group) };
                // The matrix units leave sums where no thread has a gate beside its `up`.
                if gate.is_before(&up) && !self.by_units(&gate) {
                    return self.products(norm, vec![gate, up], Ending::Gated(last, act, group.makes.contains(&nodes[nodes.len() - 2])));
                }
                let mut calls = self.products(norm, products, Ending::Stored)?;
                calls.push(self.gated_act(last, act, 0)?);
                Ok(calls)
            }
            Pattern::ProductAdd => {
                let (residual, multiplier) = self.residual(last)?;
                let product = self.matrix(nodes[0])?;
                let ending = Ending::Added(residual, multiplier, last, group.makes.len() > 1);
                if self.by_tiles(&product) { self.tiled_product(product, ending) } else { self.products(None, vec![product], ending) }
            }
            Pattern::Gating => {
                let Op::GatedAct { act, first } = self.plan.node(last).op else { return self.misfit(group) };
                let gate = self.matrix(nodes[0])?;
                // The matrix units leave sums where no thread has the value beside them.
                if self.by_units(&gate) || gate.is_in_pieces() {
                    let mut calls = self.products(None, vec![gate], Ending::Stored)?;
                    calls.push(self.gated_act(last, act, first)?);
                    return Ok(calls);
                }
                self.products(None, vec![gate], Ending::Gating(last, act, first))
            }
            Pattern::NormAdd => {
                let Op::RmsNorm { weight, offset, eps, group } = self.plan.node(nodes[0]).op else { return self.misfit(group) };
                let weight = self.weights.get(self.plan, weight)?;
                let mut call = self.rms_norm(nodes[0], Some(weight), offset, eps, group, Some(nodes[1]))?;
                if let Op::Scale { factor, weight: Some(weight) } = self.plan.node(last).op {
                    self.scale_of_sum(&mut call, last, factor, weight)?;
                }
                Ok(vec![call])
            }
            Pattern::Router => Ok(vec![self.router_weights(nodes[0], Some(last))?]),
            Pattern::MixAdd => Ok(vec![self.expert_mix(nodes[0], Some(last))?]),
            Pattern::ShortConv => match nodes {
                [product, appended, conv] => Ok(vec![self.conv_write(*product, *appended)?, self.short_conv(*conv)?]),
                _ => self.misfit(group),
            },
            Pattern::Delta => match nodes {
                [taken, appended, rule] => Ok(vec![self.delta_in(*taken, Some(*appended))?, self.gated_delta(*rule)?]),
                _ => self.misfit(group),
            },
            Pattern::Attention | Pattern::HeadsAttention => {
                let Op::AttnMix(a) = &self.plan.node(last).op else { return self.misfit(group) };
                let (before, [scores, ..]) = nodes.split_at(nodes.len().saturating_sub(3)) else { return self.misfit(group) };
                let q = self.plan.node(*scores).inputs[0];
                let (appended, turned): (Vec<ValueId>, Vec<ValueId>) =
                    before.iter().partition(|id| matches!(self.plan.node(**id).op, Op::Append { .. }));
                let mut calls = match appended[..] {
                    [] if turned.is_empty() => Vec::new(),
                    [] => self.heads(&turned, q, None, a)?,
                    [keys, values] => self.heads(&turned, q, Some([keys, values]), a)?,
                    _ => return self.misfit(group),
                };
                calls.extend(self.attention(last, q, a)?);
                Ok(calls)
            }
        }
    }

    fn misfit(&self, group: &Group) -> Result<Vec<Call>> {
        let at = group.nodes.last().map(|id| self.plan.node(*id).at.to_string()).unwrap_or_default();
        Err(Error::plan(format!("{at}: its nodes do not fit the pattern `{}`", group.pattern.name())))
    }

    /// The calls of one op, in order.
    fn op(&self, id: ValueId) -> Result<Vec<Call>> {
        let node = self.plan.node(id);
        match &node.op {
            Op::Same => Ok(Vec::new()),
            Op::Embed { table, scale } => self.embed(id, self.weights.get(self.plan, *table)?, *scale),
            Op::RmsNorm { weight, offset, eps, group } => {
                let weight = self.weights.get(self.plan, *weight)?;
                Ok(vec![self.rms_norm(id, Some(weight), *offset, *eps, *group, None)?])
            }
            Op::UnitNorm { eps, group } => Ok(vec![self.rms_norm(id, None, 0.0, *eps, *group, None)?]),
            Op::LayerNorm { weight, bias, eps, group } => Ok(vec![self.layer_norm(id, (*weight, *bias), *eps, *group)?]),
            Op::Linear { .. } => {
                let product = self.matrix(id)?;
                // Logits always come from the matrix-vector kernel, so that a row is the same bits however many are wanted.
                if self.by_tiles(&product) && !self.plan.in_head(id) {
                    self.tiled_product(product, Ending::Stored)
                } else {
                    self.products(None, vec![product], Ending::Stored)
                }
            }
            Op::RouterWeights { .. } => Ok(vec![self.router_weights(id, None)?]),
            Op::ChosenExperts => Ok(vec![self.chosen_experts(id)?]),
            Op::ExpertLinear { .. } => {
                let product = self.matrix(id)?;
                if !self.size.has_expert_tiles(&self.gpu.caps) {
                    return self.products(None, vec![product], Ending::Stored);
                }
                let mut calls = vec![self.expert_rows(id)?];
                calls.extend(self.tiled_product(product, Ending::Stored)?);
                Ok(calls)
            }
            Op::ExpertMix { .. } => Ok(vec![self.expert_mix(id, None)?]),
            Op::SigmoidScale => Ok(vec![self.sigmoid_scale(id)?]),
            Op::Rope { rope, heads, head_dim } => Ok(vec![self.rope(id, &self.ropes[*rope], *heads, *head_dim)?]),
            Op::Append { state, part } => Ok(vec![self.kv_write(node.inputs[0], *state, *part)?]),
            Op::AttnScores(a) => Ok(vec![self.attn_scores(id, a)?]),
            Op::AttnProbs(a) => Ok(vec![self.attn_probs(id, a)?]),
            Op::AttnMix(a) => Ok(vec![self.attn_mix(id, a)?]),
            Op::GatedAct { act, first } => Ok(vec![self.gated_act(id, *act, *first)?]),
            Op::Act { act } => Ok(vec![self.act(id, *act)?]),
            Op::Mul { left, right } => Ok(vec![self.mul(id, *left, *right)?]),
            Op::ShortConv { .. } => Ok(vec![self.short_conv(id)?]),
            Op::DeltaIn { .. } => Ok(vec![self.delta_in(id, None)?]),
            Op::GatedDelta { .. } => Ok(vec![self.gated_delta(id)?]),
            Op::Add { multiplier } => Ok(vec![self.add(id, *multiplier)?]),
            Op::Scale { factor, weight } => Ok(vec![self.scale(id, *factor, *weight)?]),
            Op::SoftCap { cap } => Ok(vec![self.soft_cap(id, *cap)?]),
        }
    }

    /// What an addition adds to, and the factor of what is added.
    fn residual(&self, add: ValueId) -> Result<(ValueId, f64)> {
        let node = self.plan.node(add);
        match node.op {
            Op::Add { multiplier } => Ok((node.inputs[0], multiplier)),
            _ => Err(Error::plan(format!("{}: expected an addition", node.at))),
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

    /// With `add`, the norm is added to what that node adds to, and stored as its value. Without a weight it is a unit norm.
    fn rms_norm(&self, id: ValueId, weight: Option<&GpuWeight>, offset: f64, eps: f64, group: usize, add: Option<ValueId>) -> Result<Call> {
        let node = self.plan.node(id);
        let (x, out) = (self.value(node.inputs[0])?, self.value(add.unwrap_or(id))?);
        // A lone head is a head, as kernels/heads.wgsl has it.
        let whole = weight.is_some() && group == node.width && self.plan.head_dim(id) != Some(group);
        if out.dtype == DType::F16 && !whole {
            return Err(Error::plan(format!("{}: a norm over heads cannot be stored as f16", node.at)));
        }
        let wg = if whole { self.gpu.caps.kernel_shape().row_threads } else { 64 };
        let (mut defines, mut constants) = self.reducing(wg);
        if whole {
            defines.push("ROW");
            constants.extend(long_row(group, wg));
        }
        if out.dtype == DType::F16 {
            defines.push("OUT_F16");
        }
        if weight.is_none() {
            defines.push("UNIT");
        }
        let of_weight = weight.map_or_else(none, |weight| read(&weight.pieces[0].buffer));
        let mut buffers = vec![read(&x.buffer), of_weight, write(&out.buffer)];
        let mut multiplier = 0.0;
        if let Some(add) = add {
            let (residual, factor) = self.residual(add)?;
            defines.push("ADD");
            buffers.push(read(&self.value(residual)?.buffer));
            multiplier = factor;
        }
        Ok(Call {
            kernel: "rms_norm",
            defines,
            constants,
            params: vec![
                ("width", node.width.into()),
                ("k", group.into()),
                ("in_stride", x.stride.into()),
                ("out_stride", out.stride.into()),
                ("eps", eps.into()),
                ("offset", offset.into()),
                ("weight_first", weight.map_or(0, GpuWeight::at).into()),
                ("multiplier", multiplier.into()),
                ("scale_first", 0u32.into()),
                ("factor", 1.0.into()),
            ],
            buffers,
            grid: Grid::Items { rows: RowCount::Tokens, per_row: node.width / group, per_group: 1 },
        })
    }

    /// Has the call of a norm that is added to something multiply the sum, and store it as `scale`.
    fn scale_of_sum(&self, call: &mut Call, scale: ValueId, factor: f64, weight: WeightId) -> Result<()> {
        let weight = self.weights.get(self.plan, weight)?;
        call.defines.push("SCALED");
        call.buffers[2] = write(&self.value(scale)?.buffer);
        call.buffers.push(read(&weight.pieces[0].buffer));
        let given = [("scale_first", weight.at().into()), ("factor", factor.into())];
        call.params.retain(|(name, _)| given.iter().all(|(other, _)| name != other));
        call.params.extend(given);
        Ok(())
    }

    fn layer_norm(&self, id: ValueId, (weight, bias): (WeightId, Option<WeightId>), eps: f64, group: usize) -> Result<Call> {
        let node = self.plan.node(id);
        let (x, out) = (self.value(node.inputs[0])?, self.value(id)?);
        let own = self.plan.weights[weight.0].elements() > group;
        let weight = self.weights.get(self.plan, weight)?;
        let bias = bias.map(|bias| self.weights.get(self.plan, bias)).transpose()?;
        let (mut defines, constants) = self.reducing(if group == node.width { self.gpu.caps.kernel_shape().row_threads } else { 64 });
        if out.dtype == DType::F16 {
            if group != node.width {
                return Err(Error::plan(format!("{}: a norm over heads cannot be stored as f16", node.at)));
            }
            defines.push("OUT_F16");
        }
        let mut buffers = vec![read(&x.buffer), read(&weight.pieces[0].buffer), write(&out.buffer)];
        if let Some(bias) = bias {
            defines.push("BIAS");
            buffers.push(read(&bias.pieces[0].buffer));
        }
        Ok(Call {
            kernel: "layer_norm",
            defines,
            constants,
            params: vec![
                ("width", node.width.into()),
                ("k", group.into()),
                ("in_stride", x.stride.into()),
                ("out_stride", out.stride.into()),
                ("eps", eps.into()),
                ("weight_first", weight.at().into()),
                ("bias_first", bias.map_or(0, GpuWeight::at).into()),
                ("weight_step", (if own { group } else { 0 }).into()),
            ],
            buffers,
            grid: Grid::Items { rows: RowCount::Tokens, per_row: node.width / group, per_group: 1 },
        })
    }

    fn rope(&self, id: ValueId, table: &RopeBuffer, heads: usize, head_dim: usize) -> Result<Call> {
        let (x, out) = (self.value(self.plan.node(id).inputs[0])?, self.value(id)?);
        Ok(Call {
            kernel: "rope",
            defines: pairing_define(table).into_iter().collect(),
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

    fn gated_act(&self, id: ValueId, act: Activation, first: usize) -> Result<Call> {
        let node = self.plan.node(id);
        let (gate, up, out) = (self.value(node.inputs[0])?, self.value(node.inputs[1])?, self.value(id)?);
        let mut defines = if out.dtype == DType::F16 { vec!["OUT_F16"] } else { Vec::new() };
        if self.plan.node(node.inputs[1]).width != node.width {
            defines.push("PART");
        }
        Ok(Call {
            kernel: "gated_act",
            defines,
            constants: activation(act),
            params: vec![
                ("width", node.width.into()),
                ("stride", gate.stride.into()),
                ("out_stride", out.stride.into()),
                ("up_stride", up.stride.into()),
                ("up_first", first.into()),
            ],
            buffers: vec![read(&gate.buffer), read(&up.buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: node.width.div_ceil(2), per_group: 64 },
        })
    }

    fn act(&self, id: ValueId, act: Activation) -> Result<Call> {
        let node = self.plan.node(id);
        let (x, out) = (self.value(node.inputs[0])?, self.value(id)?);
        Ok(Call {
            kernel: "act",
            defines: if out.dtype == DType::F16 { vec!["OUT_F16"] } else { Vec::new() },
            constants: activation(act),
            params: vec![("width", node.width.into()), ("stride", x.stride.into()), ("out_stride", out.stride.into())],
            buffers: vec![read(&x.buffer), write(&out.buffer)],
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

    fn scale(&self, id: ValueId, factor: f64, weight: Option<WeightId>) -> Result<Call> {
        let (x, out) = (self.value(self.plan.node(id).inputs[0])?, self.value(id)?);
        let step = weight.is_some_and(|weight| self.plan.weights[weight.0].elements() > 1);
        let weight = weight.map(|weight| self.weights.get(self.plan, weight)).transpose()?;
        let mut buffers = vec![read(&x.buffer), write(&out.buffer)];
        buffers.extend(weight.map(|weight| read(&weight.pieces[0].buffer)));
        Ok(Call {
            kernel: "scale",
            defines: weight.map(|_| "WEIGHT").into_iter().collect(),
            constants: Vec::new(),
            params: vec![
                ("stride4", (out.stride / 4).into()),
                ("weight_first", weight.map_or(0, GpuWeight::at).into()),
                ("weight_step", u32::from(step).into()),
                ("factor", factor.into()),
            ],
            buffers,
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

/// What kernels that rotate are told of the pairs.
fn pairing_define(table: &RopeBuffer) -> Option<&'static str> {
    (table.pairing == RopePairing::Neighbours).then_some("NEIGHBOURS")
}

/// The constant by which kernels know that `wg` threads normalise a row of `k` elements in more than two eights each, or in parts.
fn long_row(k: usize, wg: u32) -> Option<(&'static str, f64)> {
    (k.div_ceil(8) > 2 * wg as usize || !k.is_multiple_of(8)).then_some(("LONG", 1.0))
}

/// The constants by which kernels know an activation.
fn activation(act: Activation) -> Vec<(&'static str, f64)> {
    let code = |code| vec![("ACT", code)];
    match act {
        Activation::Silu => code(0.0),
        Activation::GeluTanh => code(1.0),
        Activation::Gelu => code(2.0),
        Activation::Clamped { alpha, limit } => vec![("ACT", 3.0), ("ALPHA", alpha), ("LIMIT", limit)],
    }
}

/// Refuses plans that no kernel covers, naming the node.
pub fn supported(plan: &Plan) -> Result<()> {
    for node in &plan.nodes {
        let refuse = |what: String| Err(Error::unsupported(format!("{}: {what}; the CPU oracle runs it (device cpu)", node.at)));
        match &node.op {
            Op::AttnMix(a) if !a.head_dim.is_multiple_of(4) || a.head_dim > 512 => {
                return refuse(format!("the attention kernels take head_dim up to 512 in multiples of 4, this is {}", a.head_dim));
            }
            Op::ExpertLinear { chosen, .. } => {
                let widths = [node.width / chosen, plan.weights[node.op.weights()[0].0].shape[1]];
                if let Some(odd) = widths.iter().find(|width| !width.is_multiple_of(8)) {
                    return refuse(format!("the experts' kernels take widths in multiples of 8, this is {odd}"));
                }
            }
            Op::RouterWeights { router, .. }
                if router.experts > experts::MOST_EXPERTS || router.groups.is_some_and(|groups| groups.count > experts::MOST_GROUPS) =>
            {
                let (most, groups) = (experts::MOST_EXPERTS, experts::MOST_GROUPS);
                return refuse(format!("the router's kernel takes up to {most} experts in {groups} groups, these are {}", router.experts));
            }
            Op::GatedDelta { heads, .. } if heads.key_dim > delta::MOST_KEY => {
                return refuse(format!(
                    "the delta rule's kernel takes keys of up to {} elements, this is {}",
                    delta::MOST_KEY,
                    heads.key_dim
                ));
            }
            Op::Append { .. } if !node.width.is_multiple_of(2) => {
                return refuse(format!("states are written two elements at a time, this one is {} wide", node.width));
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
