//! Which nodes of a plan one kernel, or a few, compute together: a pure function of the plan and of the values that are
//! wanted. A pattern hides the values inside it; one of these that is wanted is written as well, where its kernel can do so, else,
//! or if it is changed, opens its own group and no other. Liveness,
//! lowering, notes and what judges a device read the same list, so that a later fusion is judged as soon as it is listed.

use crate::exec::{self, reads};
use crate::plan::{Op, Plan, ValueId, WeightId};
use std::collections::BTreeSet;

/// The name of the attention of a layer.
pub const ATTENTION: &str = "attention";

/// What computes a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// The kernel of one op.
    Single,
    /// Matrix-vector products of one input, normalised on the way with a `norm`.
    Products,
    /// Likewise, gate and up and what the activation makes of them.
    Gated,
    /// A matrix product, and what the activation makes of it and of a value that is there.
    Gating,
    /// A matrix product and what it is added to.
    ProductAdd,
    /// A norm, what it is added to, and a learned number that multiplies the sum.
    NormAdd,
    /// A router's weights, and which experts have one.
    Router,
    /// The weighted sum of experts and what it is added to.
    MixAdd,
    /// What is appended, if this layer does, scores, probabilities and mixture.
    Attention,
    /// Likewise, with the norms of the heads and RoPE before them.
    HeadsAttention,
    /// What is convolved, its state, and the convolution.
    ShortConv,
    /// What a delta rule takes, its state, and the rule.
    Delta,
}

impl Pattern {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Pattern::Single => "op",
            Pattern::Products => "products",
            Pattern::Gated => "gated products",
            Pattern::Gating => "product and gate",
            Pattern::ProductAdd => "product and add",
            Pattern::NormAdd => "norm and add",
            Pattern::Router => "router",
            Pattern::MixAdd => "experts and add",
            Pattern::Attention | Pattern::HeadsAttention => ATTENTION,
            Pattern::ShortConv => "convolution",
            Pattern::Delta => "delta rule",
        }
    }
    /// Whether its nodes, each by a kernel of its own, give other bits. What products read is rounded as it would be stored,
    /// and all else is computed in the same order.
    pub fn opening_changes_bits(self) -> bool {
        matches!(self, Pattern::Attention | Pattern::HeadsAttention)
    }
}

/// Nodes that are computed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What computes them.
    pub pattern: Pattern,
    /// In the plan's order.
    pub nodes: Vec<ValueId>,
    /// The values that exist afterwards. The others are hidden.
    pub makes: Vec<ValueId>,
}

/// Of what step groups are asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Values that are wanted.
    pub wanted: &'a [ValueId],
    /// Values that are wanted where that opens no group.
    pub welcome: &'a [ValueId],
    /// Whether ops may be computed together at all.
    pub fuse: bool,
    /// At most `DECODE_TOKENS` tokens.
    pub few: bool,
    /// Products with experts are computed in tiles of rows of one expert.
    pub expert_tiles: bool,
    /// The longest row that products can normalise on the way; 0 for none.
    pub norm_row: usize,
}

impl Question<'_> {
    /// A step of which nobody wants a value, of few tokens or many.
    pub fn unwatched(few: bool) -> Self {
        Self { wanted: &[], welcome: &[], fuse: true, few, expert_tiles: !few, norm_row: usize::MAX }
    }
}

/// The groups of a step, in the order in which they can be computed. Every node is in one; `Same` computes nothing and is in
/// none.
pub fn groups(plan: &Plan, question: Question<'_>) -> Vec<Group> {
    let finder = Finder { plan, readers: readers(plan), question };
    let mut groups: Vec<Group> = Vec::new();
    let mut taken = vec![false; plan.nodes.len()];
    for i in (0..plan.nodes.len()).rev() {
        let id = ValueId(i);
        if taken[i] || matches!(plan.nodes[i].op, Op::Same) {
            continue;
        }
        let found = if question.fuse { finder.ending_at(id) } else { None };
        let group = found.filter(|group| group.nodes.iter().all(|id| !taken[id.0]));
        let group = group.unwrap_or_else(|| Group { pattern: Pattern::Single, nodes: vec![id], makes: vec![id] });
        group.nodes.iter().for_each(|id| taken[id.0] = true);
        groups.push(group);
    }
    groups.reverse();
    groups
}

/// Groups as executors show them: those of small and of large steps, each once.
pub fn shown(plan: &Plan, few: Vec<Group>, many: Vec<Group>) -> Vec<exec::Group> {
    let mut all = few.clone();
    let in_blocks = |group: &Group| match &plan.node(group.nodes[0]).op {
        Op::Linear { .. } | Op::Embed { .. } => true,
        _ => group.nodes.len() > 1,
    };
    all.extend(many.iter().filter(|group| !few.contains(group)).cloned());
    all.sort_by_key(|group| group.nodes.last().copied());
    let show = |group: Group| {
        let first = group.nodes[0];
        // The matrix product of logits is the same kernel for any number of tokens.
        let by_size = group.nodes.len() == 1 && plan.node(first).op.is_product() && !plan.in_head(first);
        let together = few.contains(&group) && in_blocks(&group);
        let name = if group.pattern == Pattern::Single { plan.node(first).op.name() } else { group.pattern.name() };
        exec::Group { name: name.into(), nodes: group.nodes, makes: group.makes, by_size, together }
    };
    all.into_iter().map(show).collect()
}

/// Weights that kernels read as one: matrices of one input, their biases, the norms of query and key heads. In each set the
/// order of the plan.
pub fn families(plan: &Plan) -> Vec<Vec<WeightId>> {
    let (mut families, mut known) = (Vec::new(), BTreeSet::new());
    // Where weights lie does not depend on what is changed of values: one load serves all interventions.
    let groups = groups(&plan.unedited(), Question::unwatched(true));
    for group in groups {
        let ops = || group.nodes.iter().map(|id| &plan.node(*id).op);
        let mut sets: [Vec<WeightId>; 2] = Default::default();
        match group.pattern {
            Pattern::Products | Pattern::Gated => {
                for op in ops() {
                    if let Op::Linear { weight, bias, .. } | Op::ExpertLinear { weight, bias, .. } = op {
                        sets[0].push(*weight);
                        sets[1].extend(*bias);
                    }
                }
            }
            Pattern::HeadsAttention => {
                sets[0] = ops().filter_map(|op| if let Op::RmsNorm { weight, .. } = op { Some(*weight) } else { None }).collect();
            }
            _ => {}
        }
        for set in sets {
            if set.len() > 1 && set.iter().all(|id| !known.contains(id)) {
                known.extend(set.iter().copied());
                families.push(set);
            }
        }
    }
    families
}

/// The last node before which a value may not be written over, for every way in which steps group nodes: a group reads
/// until its last node.
pub fn last_reads(plan: &Plan) -> Vec<usize> {
    let mut last: Vec<usize> = (0..plan.nodes.len()).collect();
    let alone = groups(plan, Question { fuse: false, ..Question::unwatched(false) });
    for group in alone.into_iter().chain([true, false].into_iter().flat_map(|few| groups(plan, Question::unwatched(few)))) {
        let Some(end) = group.nodes.last() else { continue };
        for id in reads(plan, &group.nodes).into_iter().chain(group.nodes.iter().copied()) {
            last[id.0] = last[id.0].max(end.0);
        }
    }
    last
}

/// For each value the nodes that read it.
fn readers(plan: &Plan) -> Vec<Vec<ValueId>> {
    let mut readers = vec![Vec::new(); plan.nodes.len()];
    for (i, node) in plan.nodes.iter().enumerate() {
        for input in &node.inputs {
            readers[input.0].push(ValueId(i));
        }
    }
    readers
}

struct Finder<'a> {
    plan: &'a Plan,
    readers: Vec<Vec<ValueId>>,
    question: Question<'a>,
}

impl Finder<'_> {
    fn op(&self, id: ValueId) -> &Op {
        &self.plan.node(id).op
    }
    /// Whether `id` may be hidden in a group with `by`: nobody wants or changes it, and nobody else reads it.
    fn hidden(&self, id: ValueId, by: &[ValueId]) -> bool {
        let touched = self.question.wanted.contains(&id) || !self.plan.node(id).interventions.is_empty();
        !touched && self.readers[id.0].iter().all(|reader| by.contains(reader))
    }

    /// Whether `id` is in a group with `by` alone, wanted or not: nobody changes it, and nobody else reads it.
    fn inside(&self, id: ValueId, by: &[ValueId]) -> bool {
        self.plan.node(id).interventions.is_empty() && self.readers[id.0].iter().all(|reader| by.contains(reader))
    }
    /// What a group makes whose kernel can write `kept` too: those that are wanted, and `last`.
    fn makes(&self, kept: &[ValueId], last: ValueId) -> Vec<ValueId> {
        let any = kept.iter().any(|id| self.question.wanted.contains(id) || self.question.welcome.contains(id));
        kept.iter().copied().filter(|_| any).chain([last]).collect()
    }

    /// The largest group whose last node is `id`.
    fn ending_at(&self, id: ValueId) -> Option<Group> {
        match self.op(id) {
            Op::AttnMix(_) => self.attention(id),
            Op::ShortConv { .. } => self.short_conv(id),
            Op::GatedDelta { .. } => self.delta(id),
            Op::Add { .. } => self.add(id),
            Op::Scale { .. } => self.scaled(id),
            Op::GatedAct { .. } => self.gated(id).or_else(|| self.gating(id)),
            Op::ChosenExperts => self.router(id),
            Op::Linear { .. } if self.question.few && !self.plan.in_head(id) => self.products(id),
            _ => None,
        }
    }

    fn attention(&self, mix: ValueId) -> Option<Group> {
        let [probs, values] = self.plan.node(mix).inputs[..] else { return None };
        let scores = *self.plan.node(probs).inputs.first()?;
        let [q, keys] = self.plan.node(scores).inputs[..] else { return None };
        if !self.hidden(probs, &[mix]) || !self.hidden(scores, &[probs]) {
            return None;
        }
        let Op::AttnScores(attention) = self.op(scores) else { return None };
        let (of_query, ends) = (self.turned(q, scores, attention.head_dim), [scores, probs, mix]);
        match [keys, values].map(|id| self.plan.node(id).at.layer == self.plan.node(mix).at.layer) {
            [true, true] => {}
            // What another layer appended is there already.
            [false, false] => {
                let pattern = if of_query.is_empty() { Pattern::Attention } else { Pattern::HeadsAttention };
                let nodes = of_query.into_iter().chain(ends).collect();
                return Some(Group { pattern, nodes, makes: vec![mix] });
            }
            _ => return None,
        }
        let mut inner = vec![keys, values, scores, probs, mix];
        let makes = vec![keys, values, mix];
        let mut nodes = of_query;
        nodes.extend(self.turned(*self.plan.node(keys).inputs.first()?, keys, attention.head_dim));
        // Both of q and k, alike, or neither; one table serves both.
        let mut tables = nodes.iter().filter_map(|id| if let Op::Rope { rope, .. } = self.op(*id) { Some(*rope) } else { None });
        let alike = tables.next() == tables.next();
        let ropes = nodes.iter().filter(|id| matches!(self.op(**id), Op::Rope { .. })).count();
        let norms: Vec<f64> =
            nodes.iter().filter_map(|id| if let Op::RmsNorm { eps, .. } = self.op(*id) { Some(*eps) } else { None }).collect();
        let pattern = if ropes == 2 && alike && norms.len() != 1 {
            inner.extend(nodes);
            let value = *self.plan.node(values).inputs.first()?;
            // A value is normalised where keys are, in the same way.
            if let (Op::UnitNorm { eps, group }, [_, of_keys]) = (self.op(value), &norms[..])
                && (eps, *group) == (of_keys, attention.head_dim)
                && self.hidden(value, &[values])
            {
                inner.push(value);
            }
            Pattern::HeadsAttention
        } else {
            Pattern::Attention
        };
        inner.sort_unstable();
        Some(Group { pattern, nodes: inner, makes })
    }

    /// The RoPE of heads that `by` reads, and the norm before it, in the plan's order: those that may be hidden.
    fn turned(&self, heads: ValueId, by: ValueId, head_dim: usize) -> Vec<ValueId> {
        if !matches!(self.op(heads), Op::Rope { .. }) || !self.hidden(heads, &[by]) {
            return Vec::new();
        }
        let norm = self.plan.node(heads).inputs[0];
        let fits = matches!(self.op(norm), Op::RmsNorm { group, .. } if *group == head_dim) && self.hidden(norm, &[heads]);
        fits.then_some(norm).into_iter().chain([heads]).collect()
    }

    fn short_conv(&self, conv: ValueId) -> Option<Group> {
        let appended = *self.plan.node(conv).inputs.get(1)?;
        let x = *self.plan.node(appended).inputs.first()?;
        let of_one = matches!((self.op(x), &self.plan.node(x).inputs[..]), (Op::Mul { .. }, [a, b]) if a == b);
        let fits = of_one && self.hidden(x, &[appended]);
        fits.then(|| Group { pattern: Pattern::ShortConv, nodes: vec![x, appended, conv], makes: vec![appended, conv] })
    }

    fn delta(&self, rule: ValueId) -> Option<Group> {
        let appended = *self.plan.node(rule).inputs.get(1)?;
        let taken = *self.plan.node(appended).inputs.first()?;
        let fits = matches!(self.op(taken), Op::DeltaIn { .. }) && self.hidden(taken, &[appended]);
        fits.then(|| Group { pattern: Pattern::Delta, nodes: vec![taken, appended, rule], makes: vec![appended, rule] })
    }

    fn add(&self, add: ValueId) -> Option<Group> {
        let x = *self.plan.node(add).inputs.get(1)?;
        let whole = matches!(self.op(x), Op::RmsNorm { group, .. } if *group == self.plan.node(x).width);
        let pattern = match self.op(x) {
            Op::Linear { .. } if !self.plan.in_head(x) => Pattern::ProductAdd,
            Op::RmsNorm { .. } if whole => Pattern::NormAdd,
            Op::ExpertMix { .. } => Pattern::MixAdd,
            _ => return None,
        };
        // What the matrix-vector kernels add they can write too.
        let keeps = pattern == Pattern::ProductAdd && self.question.few;
        let makes = if keeps { self.makes(&[x], add) } else { vec![add] };
        let fits = if keeps { self.inside(x, &[add]) } else { self.hidden(x, &[add]) };
        (fits && self.plan.node(add).inputs[0] != x).then_some(Group { pattern, nodes: vec![x, add], makes })
    }

    /// A norm that is added to something, whose sum nobody but `scale` reads, which has one learned number.
    fn scaled(&self, scale: ValueId) -> Option<Group> {
        let Op::Scale { weight: Some(weight), .. } = self.op(scale) else { return None };
        let sum = *self.plan.node(scale).inputs.first()?;
        let one = self.plan.weights[weight.0].elements() == 1;
        let added = if matches!(self.op(sum), Op::Add { .. }) { self.add(sum)? } else { return None };
        let fits = one && added.pattern == Pattern::NormAdd && self.hidden(sum, &[scale]);
        let nodes = added.nodes.into_iter().chain([scale]).collect();
        fits.then_some(Group { pattern: Pattern::NormAdd, nodes, makes: vec![scale] })
    }

    /// The norm that `products` read, if they can normalise on the way, and whether it is written too: it is wanted, or others
    /// read it after `last`, the last node of their group. These must wait for the products anyway: what could be computed at the same
    /// time would have to wait for the norm.
    fn norm(&self, products: &[ValueId], last: ValueId) -> Option<(ValueId, bool)> {
        let norm = *self.plan.node(*products.first()?).inputs.first()?;
        let Op::RmsNorm { group, .. } = self.op(norm) else { return None };
        let node = self.plan.node(norm);
        let mut others = self.readers[norm.0].iter().filter(|reader| !products.contains(reader)).peekable();
        let kept = others.peek().is_some() || self.question.wanted.contains(&norm);
        let fits = *group == node.width && node.width <= self.question.norm_row && node.interventions.is_empty();
        (fits && others.all(|reader| *reader > last && self.waits_for(*reader, products))).then_some((norm, kept))
    }

    /// Whether what `node` reads comes of one of `products`, which lie before it.
    fn waits_for(&self, node: ValueId, products: &[ValueId]) -> bool {
        let Some(first) = products.iter().min() else { return false };
        let mut made = BTreeSet::from_iter(products.iter().copied());
        for id in (first.0..=node.0).map(ValueId) {
            if self.plan.node(id).inputs.iter().any(|input| made.contains(input)) {
                made.insert(id);
            }
        }
        made.contains(&node)
    }

    fn gated(&self, act: ValueId) -> Option<Group> {
        let inputs = &self.plan.node(act).inputs;
        let [gate, up] = inputs[..] else { return None };
        let kind = |id: ValueId| match self.op(id) {
            Op::Linear { .. } if self.question.few => Some(false),
            Op::ExpertLinear { .. } if !self.question.expert_tiles => Some(true),
            _ => None,
        };
        let alike = kind(gate).is_some()
            && kind(gate) == kind(up)
            && gate.0 + 1 == up.0
            && self.plan.node(gate).inputs == self.plan.node(up).inputs;
        if !alike || !self.inside(gate, &[act]) || !self.inside(up, &[act]) {
            return None;
        }
        // The router reads what experts do.
        let norm = if kind(gate) == Some(true) { None } else { self.norm(&[gate, up], act) };
        let nodes = norm.iter().map(|(norm, _)| *norm).chain([gate, up, act]).collect();
        let makes = kept(norm).chain(self.makes(&[gate, up], act)).collect();
        Some(Group { pattern: Pattern::Gated, nodes, makes })
    }

    /// A product that is the gate of a value which was there before it.
    fn gating(&self, act: ValueId) -> Option<Group> {
        let [gate, up] = self.plan.node(act).inputs[..] else { return None };
        let fits = self.question.few && matches!(self.op(gate), Op::Linear { .. }) && up < gate && self.hidden(gate, &[act]);
        fits.then(|| Group { pattern: Pattern::Gating, nodes: vec![gate, act], makes: vec![act] })
    }

    /// The router whose choice `chosen` lists.
    fn router(&self, chosen: ValueId) -> Option<Group> {
        let weights = *self.plan.node(chosen).inputs.first()?;
        let fits = matches!(self.op(weights), Op::RouterWeights { .. }) && self.plan.node(weights).interventions.is_empty();
        fits.then(|| Group { pattern: Pattern::Router, nodes: vec![weights, chosen], makes: vec![weights, chosen] })
    }

    /// All products of one input, where `last` is the last of them; where they are more than a kernel computes, as many of those
    /// before it as there may be.
    fn products(&self, last: ValueId) -> Option<Group> {
        let input = *self.plan.node(last).inputs.first()?;
        let mut products: Vec<ValueId> =
            self.readers[input.0].iter().copied().filter(|id| matches!(self.op(*id), Op::Linear { .. })).collect();
        let neighbours = products.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0);
        let after = products.iter().rev().position(|id| *id == last)?;
        if !neighbours || !after.is_multiple_of(MOST_PRODUCTS) {
            return None;
        }
        products.truncate(products.len() - after);
        products.drain(..products.len().saturating_sub(MOST_PRODUCTS));
        let norm = self.norm(&products, last);
        if products.len() == 1 && norm.is_none() {
            return None;
        }
        let nodes = norm.iter().map(|(norm, _)| *norm).chain(products.iter().copied()).collect();
        Some(Group { pattern: Pattern::Products, nodes, makes: kept(norm).chain(products).collect() })
    }
}

/// The norm, if it is written too.
fn kept(norm: Option<(ValueId, bool)>) -> impl Iterator<Item = ValueId> {
    norm.into_iter().filter(|(_, kept)| *kept).map(|(norm, _)| norm)
}

/// Products that one kernel computes together: it writes each to a buffer of its own.
const MOST_PRODUCTS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::pipeline;
    use crate::plan::{At, Stage};

    fn plan() -> Plan {
        pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap()
    }
    fn patterns(plan: &Plan, groups: &[Group], layer: usize) -> Vec<String> {
        let of_layer = groups.iter().filter(|group| plan.node(group.nodes[0]).at.layer == Some(layer));
        of_layer
            .map(|group| {
                let stages: Vec<&str> = group.nodes.iter().map(|id| plan.node(*id).at.stage.name()).collect();
                format!("{}: {}", group.pattern.name(), stages.join(" "))
            })
            .collect()
    }

    #[test]
    fn every_node_is_in_one_group_after_what_it_reads() {
        let plan = plan();
        for few in [true, false] {
            for fuse in [true, false] {
                let groups = groups(&plan, Question { fuse, ..Question::unwatched(few) });
                let mut nodes: Vec<ValueId> = groups.iter().flat_map(|group| group.nodes.clone()).collect();
                nodes.sort_unstable();
                let computing = (0..plan.nodes.len()).map(ValueId).filter(|id| !matches!(plan.node(*id).op, Op::Same));
                assert_eq!(nodes, computing.collect::<Vec<_>>());
                assert!(groups.is_sorted_by_key(|group| group.nodes.last().copied()));
                assert!(fuse || groups.iter().all(|group| group.nodes.len() == 1));
                for (i, group) in groups.iter().enumerate() {
                    let made = |id: &ValueId| groups[..i].iter().any(|before| before.makes.contains(id));
                    let computed = |id: &ValueId| !matches!(plan.node(*id).op, Op::Same);
                    assert!(reads(&plan, &group.nodes).iter().filter(|id| computed(id)).all(made), "{group:?}");
                }
            }
        }
    }

    #[test]
    fn a_wanted_value_opens_its_own_group_and_no_other() {
        let plan = plan();
        let all = groups(&plan, Question::unwatched(true));
        for stage in [Stage::AttnNormed, Stage::QRope, Stage::AttnProbs, Stage::OProj, Stage::FfnGate, Stage::FfnIn, Stage::FfnOut] {
            let Some(id) = plan.find(At { stage, layer: Some(1) }) else { panic!("{stage}") };
            let open = groups(&plan, Question { wanted: &[id], ..Question::unwatched(true) });
            assert!(open.iter().any(|group| group.makes.contains(&id)), "{stage}");
            assert_eq!(patterns(&plan, &open, 0), patterns(&plan, &all, 0), "{stage}");
            let of = all.iter().find(|group| group.nodes.contains(&id) && !group.makes.contains(&id));
            // What products make on the way they can write as well.
            let kept = matches!(stage, Stage::AttnNormed | Stage::FfnIn | Stage::FfnGate | Stage::OProj | Stage::FfnOut);
            assert_eq!(open.len() > all.len(), of.is_some() && !kept, "{stage}");
        }
    }

    #[test]
    fn what_is_welcome_opens_nothing() {
        let plan = plan();
        let welcome: Vec<ValueId> = (0..plan.nodes.len()).map(ValueId).collect();
        let nodes = |groups: &[Group]| groups.iter().map(|group| group.nodes.clone()).collect::<Vec<_>>();
        for few in [true, false] {
            let all = groups(&plan, Question::unwatched(few));
            let found = groups(&plan, Question { welcome: &welcome, ..Question::unwatched(few) });
            assert_eq!(nodes(&found), nodes(&all));
            let made: Vec<ValueId> = found.iter().flat_map(|group| group.makes.clone()).collect();
            assert_eq!(made.len() > all.iter().map(|group| group.makes.len()).sum(), few, "products write what they make on the way");
            // Who asks for all of that gets the same groups.
            assert_eq!(groups(&plan, Question { wanted: &made, ..Question::unwatched(few) }), found);
        }
    }

    #[test]
    fn patterns_of_a_layer() {
        let plan = plan();
        let few = patterns(&plan, &groups(&plan, Question::unwatched(true)), 1);
        let attention = "attention: q_rope k_rope k_cache v_cache attn_scores attn_probs attn_core_out";
        let adds = ["product and add: o_proj post_attn", "product and add: ffn_out layer_out"];
        let gated = "gated products: ffn_in ffn_gate ffn_up ffn_act";
        assert_eq!(few, ["products: attn_normed q_proj k_proj v_proj", attention, adds[0], gated, adds[1]]);
        let many = patterns(&plan, &groups(&plan, Question::unwatched(false)), 1);
        let before = ["op: attn_normed", "op: q_proj", "op: k_proj", "op: v_proj", attention, adds[0]];
        let after = ["op: ffn_in", "op: ffn_gate", "op: ffn_up", "op: ffn_act", adds[1]];
        assert_eq!(many, [&before[..], &after[..]].concat());
    }
}
