//! Routers and the sums of experts. Their products are in `products`.

use super::Lowering;
use super::products::tile;
use crate::error::{Error, Result};
use crate::gpu::pipelines::{Call, Grid, RowCount, read, write};
use crate::model::RouterScore;
use crate::plan::{Op, ValueId};

/// Experts that the router's kernel holds in a workgroup.
pub(super) const MOST_EXPERTS: usize = 512;
/// And groups of them.
pub(super) const MOST_GROUPS: usize = 64;

impl Lowering<'_> {
    /// With `chosen`, the numbers of the chosen experts are written as that value.
    pub(super) fn router_weights(&self, id: ValueId, chosen: Option<ValueId>) -> Result<Call> {
        let node = self.plan.node(id);
        let Op::RouterWeights { router, choice, scales } = &node.op else { return self.no(id, "a router") };
        let (logits, out) = (self.value(node.inputs[0])?, self.value(id)?);
        let score = match router.score {
            RouterScore::Softmax => 0u32,
            RouterScore::SoftmaxOfChosen => 1,
            RouterScore::Sigmoid => 2,
        };
        let mut defines = Vec::new();
        let mut buffers = vec![read(&logits.buffer), write(&out.buffer)];
        let mut numbers = (0, 0);
        buffers.push(match chosen {
            Some(chosen) => {
                let to = self.value(chosen)?;
                defines.push("NUMBERS");
                numbers = (to.stride, self.plan.node(chosen).width);
                write(&to.buffer)
            }
            None => crate::gpu::pipelines::none(),
        });
        let mut choice_first = 0;
        if let Some(choice) = choice {
            let choice = self.weights.get(self.plan, *choice)?;
            defines.push("CHOICE");
            buffers.push(read(&choice.pieces[0].buffer));
            choice_first = choice.at();
        }
        let mut scales_first = 0;
        if let Some(scales) = scales {
            let scales = self.weights.get(self.plan, *scales)?;
            defines.push("SCALES");
            if choice.is_none() {
                buffers.push(crate::gpu::pipelines::none());
            }
            buffers.push(read(&scales.pieces[0].buffer));
            scales_first = scales.at();
        }
        if router.groups.is_some() {
            defines.push("GROUPS");
        }
        let (groups, groups_chosen, highest) = router.groups.map_or((1, 1, 1), |g| (g.count, g.chosen, g.highest));
        Ok(Call {
            kernel: "router_weights",
            defines,
            constants: Vec::new(),
            params: vec![
                ("experts", router.experts.into()),
                ("score", score.into()),
                ("groups", groups.into()),
                ("chosen", router.chosen.into()),
                ("in_stride", logits.stride.into()),
                ("out_stride", out.stride.into()),
                ("numbers", numbers.1.into()),
                ("numbers_stride", numbers.0.into()),
                ("choice_first", choice_first.into()),
                ("groups_chosen", groups_chosen.into()),
                ("highest", highest.into()),
                ("divide", u32::from(router.renormalise.is_some()).into()),
                ("eps", router.renormalise.unwrap_or(0.0).into()),
                ("scaling", router.scaling.into()),
                ("scales_first", scales_first.into()),
            ],
            buffers,
            grid: Grid::Items { rows: RowCount::Tokens, per_row: 1, per_group: 1 },
        })
    }

    pub(super) fn chosen_experts(&self, id: ValueId) -> Result<Call> {
        let node = self.plan.node(id);
        let (weights, out) = (self.value(node.inputs[0])?, self.value(id)?);
        Ok(Call {
            kernel: "chosen_experts",
            defines: Vec::new(),
            constants: Vec::new(),
            params: vec![
                ("experts", self.plan.node(node.inputs[0]).width.into()),
                ("chosen", node.width.into()),
                ("in_stride", weights.stride.into()),
                ("out_stride", out.stride.into()),
            ],
            buffers: vec![read(&weights.buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: 1, per_group: 64 },
        })
    }

    /// Puts together the rows that one expert computes, for tiles of the product `id`.
    pub(super) fn expert_rows(&self, id: ValueId) -> Result<Call> {
        let Op::ExpertLinear { experts, chosen, .. } = self.plan.node(id).op else { return self.no(id, "a product with experts") };
        let numbers = self.value(self.plan.node(id).inputs[1])?;
        let [rows, _] = tile(self.units(&self.matrix(id)?)?);
        Ok(Call {
            kernel: "expert_rows",
            defines: Vec::new(),
            constants: vec![("MOST", (MOST_EXPERTS + 1) as f64)],
            params: vec![("experts", experts.into()), ("chosen", chosen.into()), ("stride", numbers.stride.into()), ("tile", rows.into())],
            buffers: vec![read(&numbers.buffer), write(self.expert_order)],
            grid: Grid::Fixed([1, 1]),
        })
    }

    /// With `add`, the sum is added to what that node adds to, and stored as its value.
    pub(super) fn expert_mix(&self, id: ValueId, add: Option<ValueId>) -> Result<Call> {
        let node = self.plan.node(id);
        let Op::ExpertMix { experts, chosen } = node.op else { return self.no(id, "a sum of experts") };
        let [x, numbers, weights] = [0, 1, 2].map(|i| self.value(node.inputs[i]));
        let (x, numbers, weights, out) = (x?, numbers?, weights?, self.value(add.unwrap_or(id))?);
        let (mut defines, mut multiplier) = (Vec::new(), 0.0);
        let mut buffers = vec![read(&x.buffer), read(&numbers.buffer), read(&weights.buffer), write(&out.buffer)];
        if let Some(add) = add {
            let (residual, factor) = self.residual(add)?;
            defines.push("ADD");
            buffers.push(read(&self.value(residual)?.buffer));
            multiplier = factor;
        }
        Ok(Call {
            kernel: "expert_mix",
            defines,
            constants: Vec::new(),
            params: vec![
                ("width4", (node.width / 4).into()),
                ("experts", experts.into()),
                ("chosen", chosen.into()),
                ("numbers_stride", numbers.stride.into()),
                ("weights_stride", weights.stride.into()),
                ("multiplier", multiplier.into()),
            ],
            buffers,
            grid: Grid::Items { rows: RowCount::Tokens, per_row: node.width / 4, per_group: 64 },
        })
    }

    pub(super) fn sigmoid_scale(&self, id: ValueId) -> Result<Call> {
        let node = self.plan.node(id);
        let (x, s, out) = (self.value(node.inputs[0])?, self.value(node.inputs[1])?, self.value(id)?);
        Ok(Call {
            kernel: "sigmoid_scale",
            defines: if self.plan.node(node.inputs[1]).width > 1 { vec!["EACH"] } else { Vec::new() },
            constants: Vec::new(),
            params: vec![("stride4", (out.stride / 4).into()), ("scale_stride", s.stride.into())],
            buffers: vec![read(&x.buffer), read(&s.buffer), write(&out.buffer)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: out.stride / 4, per_group: 64 },
        })
    }

    fn no<T>(&self, id: ValueId, what: &str) -> Result<T> {
        Err(Error::plan(format!("{}: expected {what}", self.plan.node(id).at)))
    }
}
