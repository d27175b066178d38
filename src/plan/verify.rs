//! The rules that a plan must keep, as a list of small cases. Run after building and after every edit.

use super::changes::refused;
use super::op::{Attention, ConvEnding, Node, Op, Plan, StateId, StateKind, StatePart, ValueId, WeightId};
use crate::error::{Error, Result};
use crate::model::{Activation, DeltaHeads, RopeScaling};
use std::collections::HashSet;

/// Checks every rule; the error names the node and the rule it breaks.
pub fn verify(plan: &Plan) -> Result<()> {
    let (mut names, mut appended) = (HashSet::new(), HashSet::new());
    if let Some(head) = plan.head.filter(|id| id.0 >= plan.nodes.len()) {
        return Err(Error::plan(format!("the head reads value {}, which does not exist", head.0)));
    }
    for (index, node) in plan.nodes.iter().enumerate() {
        let broken = |rule: String| Error::plan(format!("node {index} ({}, {}): {rule}", node.at, node.op.name()));
        if !names.insert(node.at) {
            return Err(broken("its name is taken by an earlier node".into()));
        }
        if node.width == 0 {
            return Err(broken("its width is 0".into()));
        }
        if node.at.stage.info().per_layer != node.at.layer.is_some() {
            return Err(broken("a stage has a layer exactly when it exists per layer".into()));
        }
        if node.at.layer.is_some_and(|l| l >= plan.num_layers) {
            return Err(broken(format!("the model has {} layers", plan.num_layers)));
        }
        if let Some(late) = node.inputs.iter().find(|i| i.0 >= index) {
            return Err(broken(format!("reads value {} before it is computed", late.0)));
        }
        if let Some(weight) = node.op.weights().iter().find(|w| w.0 >= plan.weights.len()) {
            return Err(broken(format!("reads weight {}, which does not exist", weight.0)));
        }
        shapes(plan, node).map_err(broken)?;
        node.interventions.iter().try_for_each(|one| refused(plan, ValueId(index), one)).map_err(broken)?;
        // Only some rows are computed after the head's input; a state needs all of them.
        if plan.in_head(ValueId(index)) && (node.op.appends() || node.op.reads_state().is_some()) {
            return Err(broken("what reads or changes a state comes after the head's input".into()));
        }
        if let Op::GatedDelta { matrix, .. } = node.op
            && !appended.insert((matrix, StatePart::Matrix.name()))
        {
            return Err(broken(format!("the matrices of state {} are changed by an earlier node", matrix.0)));
        }
        if let Op::Append { state, part } = node.op
            && !appended.insert((state, part.name()))
        {
            return Err(broken(format!("the {} of state {} are appended to by an earlier node", part.name(), state.0)));
        }
    }
    Ok(())
}

/// Inputs' count, layout and width, and the weights' shapes.
fn shapes(plan: &Plan, node: &Node) -> std::result::Result<(), String> {
    let scores = matches!(node.op, Op::AttnScores(_) | Op::AttnProbs(_));
    if scores != (node.at.stage.layout().is_scores()) {
        return Err("layout of the op and of the stage differ".into());
    }
    // Scores and probabilities are read by the op that follows them only, as its first input.
    for (i, id) in node.inputs.iter().enumerate() {
        let expected = i == 0 && matches!(node.op, Op::AttnProbs(_) | Op::AttnMix(_));
        if expected != (plan.node(*id).at.stage.layout().is_scores()) {
            return Err(format!("layout of its input {} is wrong", plan.node(*id).at));
        }
    }
    let input = |i: usize| width(plan, node.inputs[i]);
    let arity = |n: usize| {
        if node.inputs.len() == n { Ok(()) } else { Err(format!("takes {n} inputs, has {}", node.inputs.len())) }
    };
    let same = |what: &str, expected: usize, found: usize| {
        if expected == found { Ok(()) } else { Err(format!("{what}: expected {expected}, found {found}")) }
    };
    match &node.op {
        Op::Embed { table, .. } => {
            arity(0)?;
            shape(plan, *table, &[plan.vocab_size, node.width])
        }
        Op::Same | Op::SoftCap { .. } => {
            arity(1)?;
            same("width", node.width, input(0))
        }
        Op::RmsNorm { weight, group, .. } => {
            arity(1)?;
            same("width", node.width, input(0))?;
            if *group == 0 || !node.width.is_multiple_of(*group) {
                return Err(format!("group {group} does not divide width {}", node.width));
            }
            shape(plan, *weight, &[*group])
        }
        Op::UnitNorm { group, .. } => {
            arity(1)?;
            same("width", node.width, input(0))?;
            if *group == 0 || !node.width.is_multiple_of(*group) {
                return Err(format!("group {group} does not divide width {}", node.width));
            }
            Ok(())
        }
        Op::Scale { weight, .. } => {
            arity(1)?;
            same("width", node.width, input(0))?;
            // One number, or one for each element.
            let count = weight.map_or(1, |w| if plan.weights[w.0].shape == [1] { 1 } else { node.width });
            weight.map_or(Ok(()), |w| shape(plan, w, &[count]))
        }
        Op::LayerNorm { weight, bias, group, .. } => {
            arity(1)?;
            same("width", node.width, input(0))?;
            if *group == 0 || !node.width.is_multiple_of(*group) {
                return Err(format!("group {group} does not divide width {}", node.width));
            }
            // One weight for all groups, or each its own.
            let own = plan.weights[weight.0].shape == [node.width];
            let expected = [if own { node.width } else { *group }];
            shape(plan, *weight, &expected)?;
            bias.map_or(Ok(()), |b| shape(plan, b, &expected))
        }
        Op::Linear { weight, bias, .. } => {
            arity(1)?;
            shape(plan, *weight, &[node.width, input(0)])?;
            bias.map_or(Ok(()), |b| shape(plan, b, &[node.width]))
        }
        Op::Rope { rope, heads, head_dim } => {
            arity(1)?;
            same("width", node.width, input(0))?;
            same("heads x head_dim", heads * head_dim, node.width)?;
            let rope = plan.ropes.get(*rope).ok_or("no such position encoding")?;
            if rope.rotary_dim % 2 == 1 || rope.rotary_dim > *head_dim {
                return Err(format!("rotary_dim {} must be even and at most head_dim {head_dim}", rope.rotary_dim));
            }
            if let RopeScaling::LongRope { short_factor, long_factor, .. } = &rope.scaling {
                same("longrope's short factors", rope.rotary_dim / 2, short_factor.len())?;
                same("longrope's long factors", rope.rotary_dim / 2, long_factor.len())?;
            }
            Ok(())
        }
        Op::Append { state, part } => {
            arity(1)?;
            let kind = plan.state(*state).ok_or("no such state")?;
            if !kind.parts().contains(part) {
                return Err(format!("state {} has no {}", state.0, part.name()));
            }
            same("width of the state", kind.width(), node.width)?;
            same("width", node.width, input(0))
        }
        Op::AttnScores(a) => {
            arity(2)?;
            attention(plan, a)?;
            appended(plan, node.inputs[1], a.state, StatePart::Keys)?;
            same("query width", a.heads * a.head_dim, input(0))?;
            same("key width", a.kv_heads * a.head_dim, input(1))?;
            same("heads", a.heads, node.width)
        }
        Op::AttnProbs(a) => {
            arity(1)?;
            attention(plan, a)?;
            same("heads", a.heads, input(0))?;
            same("heads", a.heads, node.width)?;
            a.sinks.map_or(Ok(()), |id| shape(plan, id, &[a.heads]))
        }
        Op::AttnMix(a) => {
            arity(2)?;
            attention(plan, a)?;
            appended(plan, node.inputs[1], a.state, StatePart::Values)?;
            same("heads", a.heads, input(0))?;
            same("value width", a.kv_heads * a.head_dim, input(1))?;
            same("width", a.heads * a.head_dim, node.width)
        }
        Op::RouterWeights { router, choice, scales } => {
            arity(1)?;
            same("experts", router.experts, input(0))?;
            same("experts", router.experts, node.width)?;
            if router.chosen == 0 || router.chosen > router.experts {
                return Err(format!("{} experts of {} cannot be chosen", router.chosen, router.experts));
            }
            if let Some(groups) = router.groups {
                let of_group = router.experts.checked_div(groups.count).unwrap_or(0);
                let divided = groups.count > 0 && router.experts.is_multiple_of(groups.count);
                if !divided || groups.chosen == 0 || groups.chosen > groups.count || groups.highest == 0 || groups.highest > of_group {
                    return Err(format!("{groups:?} do not fit {} experts", router.experts));
                }
            }
            if choice.is_some() != router.choice_bias {
                return Err("a bias for the choice is there exactly when the router has one".into());
            }
            if scales.is_some() != router.scales {
                return Err("numbers of the experts are there exactly when the router has them".into());
            }
            choice.iter().chain(scales).try_for_each(|id| shape(plan, *id, &[router.experts]))
        }
        Op::ChosenExperts => {
            arity(1)?;
            if node.width <= input(0) { Ok(()) } else { Err(format!("{} experts of {} cannot be chosen", node.width, input(0))) }
        }
        Op::ExpertLinear { weight, bias, experts, chosen } => {
            arity(2)?;
            same("chosen experts", *chosen, input(1))?;
            if *chosen == 0 || !node.width.is_multiple_of(*chosen) {
                return Err(format!("width {} is not that of {chosen} experts", node.width));
            }
            let rows = node.width / chosen;
            let columns = plan.weights[weight.0].shape.get(1).copied().unwrap_or(0);
            if input(0) != columns && input(0) != columns.saturating_mul(*chosen) {
                return Err(format!("input width: expected {columns}, or that for each of {chosen} experts, found {}", input(0)));
            }
            shape(plan, *weight, &[rows.saturating_mul(*experts), columns])?;
            bias.map_or(Ok(()), |id| shape(plan, id, &[rows.saturating_mul(*experts)]))
        }
        Op::ExpertMix { experts, chosen } => {
            arity(3)?;
            same("input width", node.width.saturating_mul(*chosen), input(0))?;
            same("chosen experts", *chosen, input(1))?;
            same("experts", *experts, input(2))
        }
        Op::SigmoidScale => {
            arity(2)?;
            same("width", node.width, input(0))?;
            if input(1) == 1 { Ok(()) } else { same("width of the factor", node.width, input(1)) }
        }
        Op::DeltaIn { heads, decay, step, .. } => {
            arity(3)?;
            delta(heads)?;
            same("width of queries, keys and values", heads.width(), input(0))?;
            same("value heads", heads.values, input(1))?;
            same("value heads", heads.values, input(2))?;
            same("width", heads.taken(), node.width)?;
            shape(plan, *decay, &[heads.values])?;
            shape(plan, *step, &[heads.values])
        }
        Op::GatedDelta { state, matrix, heads, .. } => {
            arity(2)?;
            delta(heads)?;
            if plan.state(*matrix) != Some(&StateKind::Matrix(*heads)) {
                return Err("its matrices have no such state".into());
            }
            appended(plan, node.inputs[1], *state, StatePart::Inputs)?;
            part(0, heads.key_width(), input(0))?;
            same("what is taken of a token", heads.taken(), input(1))?;
            same("width", heads.value_width(), node.width)
        }
        Op::Act { act } => {
            arity(1)?;
            if matches!(act, Activation::Clamped { .. }) {
                return Err(format!("{act:?} needs a gate"));
            }
            same("width", node.width, input(0))
        }
        Op::Mul { left, right } => {
            arity(2)?;
            part(*left, node.width, input(0))?;
            part(*right, node.width, input(1))
        }
        Op::ShortConv { state, weight, bias, taps, ending } => {
            arity(2)?;
            let Some(StateKind::Conv(spec)) = plan.state(*state) else { return Err("its state is not that of a convolution".into()) };
            appended(plan, node.inputs[1], *state, StatePart::Inputs)?;
            same("width of the state", spec.width, node.width)?;
            same("positions of the state", spec.taps, *taps)?;
            match ending {
                ConvEnding::Gate(gate) => part(*gate, node.width, input(0))?,
                ConvEnding::Act(act) if matches!(act, Activation::Clamped { .. }) => return Err(format!("{act:?} needs a gate")),
                ConvEnding::Act(_) => {}
            }
            shape(plan, *weight, &[node.width.saturating_mul(*taps)])?;
            bias.map_or(Ok(()), |b| shape(plan, b, &[node.width]))
        }
        Op::GatedAct { act: Activation::Clamped { alpha, limit }, .. } if !(alpha.is_finite() && limit.is_finite() && *limit > 0.0) => {
            Err(format!("alpha {alpha} and limit {limit} should be finite, and the limit above 0"))
        }
        Op::GatedAct { first, .. } => {
            arity(2)?;
            same("width", node.width, input(0))?;
            // All of up, or a part of a row that is a part for each layer.
            if *first == 0 && input(1) <= node.width { same("width", node.width, input(1)) } else { part(*first, node.width, input(1)) }
        }
        Op::Add { .. } => {
            arity(2)?;
            same("width", node.width, input(0))?;
            same("width", node.width, input(1))
        }
    }
}

/// Whether value heads can share key heads, and both have elements.
fn delta(heads: &DeltaHeads) -> std::result::Result<(), String> {
    let fits = heads.keys > 0 && heads.values.is_multiple_of(heads.keys) && heads.matrices() > 0;
    if fits { Ok(()) } else { Err(format!("{heads:?} do not fit each other")) }
}

/// Whether `count` elements from `first` on lie within `width`.
fn part(first: usize, count: usize, width: usize) -> std::result::Result<(), String> {
    if first.checked_add(count).is_some_and(|end| end <= width) {
        Ok(())
    } else {
        Err(format!("elements {first} to {first}+{count} of {width}"))
    }
}

fn width(plan: &Plan, id: ValueId) -> usize {
    plan.node(id).width
}

fn shape(plan: &Plan, id: WeightId, expected: &[usize]) -> std::result::Result<(), String> {
    let slot = &plan.weights[id.0];
    if slot.shape == expected {
        return Ok(());
    }
    Err(format!("weight {}: expected shape {expected:?}, found {:?}", slot.label(), slot.shape))
}

/// Whether `id` is what this step appends to the part of a state that is read.
fn appended(plan: &Plan, id: ValueId, wanted: StateId, of: StatePart) -> std::result::Result<(), String> {
    match plan.node(id).op {
        Op::Append { state, part } if (state, part) == (wanted, of) => Ok(()),
        _ => Err(format!("reads the {} of state {}, and {} does not append to them", of.name(), wanted.0, plan.node(id).at)),
    }
}

fn attention(plan: &Plan, a: &Attention) -> std::result::Result<(), String> {
    let cache = plan.kv(a.state).ok_or("no such state")?;
    if a.kv_heads == 0 || !a.heads.is_multiple_of(a.kv_heads) {
        return Err(format!("{} query heads over {} key/value heads", a.heads, a.kv_heads));
    }
    if (cache.kv_heads, cache.head_dim) != (a.kv_heads, a.head_dim) {
        return Err("the state has another geometry".into());
    }
    // A cache may hold more than the op attends to, never less.
    let enough = match (cache.window, a.window) {
        (None, _) => true,
        (Some(held), Some(wanted)) => held >= wanted,
        (Some(_), None) => false,
    };
    if enough { Ok(()) } else { Err("attends further back than the state keeps".into()) }
}

#[cfg(test)]
mod tests {
    use super::super::op::{KvSpec, StateKind, StateSpec, WeightSlot};
    use super::super::stage::{At, Stage};
    use super::*;
    use crate::model::{RopeConfig, WeightRole};

    const K: usize = 3;
    const MIX: usize = 7;

    /// Attention of one head of width 2 over the embeddings themselves.
    fn plan() -> Plan {
        let slot = WeightSlot { role: WeightRole::Embed, layer: None, bias: false, shape: vec![4, 2], experts: None };
        let a = Attention { state: StateId(0), heads: 1, kv_heads: 1, head_dim: 2, scale: 1.0, softcap: None, window: None, sinks: None };
        let nodes = [
            (Stage::EmbedOut, Op::Embed { table: WeightId(0), scale: 1.0 }, &[][..], 2),
            (Stage::QProj, Op::Same, &[0], 2),
            (Stage::KProj, Op::Same, &[0], 2),
            (Stage::KCache, Op::Append { state: StateId(0), part: StatePart::Keys }, &[2], 2),
            (Stage::VCache, Op::Append { state: StateId(0), part: StatePart::Values }, &[0], 2),
            (Stage::AttnScores, Op::AttnScores(a.clone()), &[1, 3], 1),
            (Stage::AttnProbs, Op::AttnProbs(a.clone()), &[5], 1),
            (Stage::AttnCoreOut, Op::AttnMix(a), &[6, 4], 2),
            (Stage::LayerOut, Op::Add { multiplier: 1.0 }, &[0, 7], 2),
        ];
        let node = |(stage, op, inputs, width): (Stage, Op, &[usize], usize)| {
            let layer = stage.info().per_layer.then_some(0);
            Node { op, inputs: inputs.iter().map(|i| ValueId(*i)).collect(), at: At { stage, layer }, width, interventions: Vec::new() }
        };
        let kind = StateKind::Kv(KvSpec { kv_heads: 1, head_dim: 2, window: None });
        Plan {
            nodes: nodes.map(node).to_vec(),
            weights: vec![slot],
            states: vec![StateSpec { layer: 0, kind }],
            ropes: vec![],
            num_layers: 1,
            vocab_size: 4,
            max_positions: 8,
            head: None,
        }
    }

    /// The rule that an edited plan breaks.
    fn broken(edit: impl FnOnce(&mut Plan)) -> String {
        let mut plan = plan();
        edit(&mut plan);
        verify(&plan).expect_err("the edit breaks a rule").to_string()
    }

    #[test]
    fn a_sound_plan_passes() {
        assert_eq!(verify(&plan()), Ok(()));
    }

    #[test]
    fn edits_that_no_executor_could_run_are_refused() {
        let again = |stage| {
            move |p: &mut Plan| {
                let mut node = p.nodes[K].clone();
                node.at.stage = stage;
                p.nodes.push(node);
            }
        };
        for (message, rule) in [
            (broken(again(Stage::VProj)), "the keys of state 0 are appended to by an earlier node"),
            (broken(|p| p.nodes[8].inputs[1] = ValueId(6)), "layout of its input L0 attn_probs is wrong"),
            (broken(|p| p.nodes[MIX].inputs[0] = ValueId(1)), "layout of its input L0 q_proj is wrong"),
            (broken(|p| p.nodes[MIX].inputs = vec![ValueId(6)]), "takes 2 inputs, has 1"),
            (broken(|p| p.nodes[MIX].inputs[1] = ValueId(3)), "L0 k_cache does not append to them"),
            (broken(|p| p.nodes[5].inputs[1] = ValueId(2)), "reads the keys of state 0, and L0 k_proj does not append to them"),
            (broken(|p| p.nodes[1].width = 0), "its width is 0"),
            (broken(|p| p.head = Some(ValueId(0))), "what reads or changes a state comes after the head's input"),
            (broken(|p| p.head = Some(ValueId(9))), "the head reads value 9, which does not exist"),
            (broken(|p| p.nodes[2].inputs = vec![ValueId(3)]), "reads value 3 before it is computed"),
            (broken(|p| p.weights[0].shape = vec![4, 3]), "expected shape [4, 2], found [4, 3]"),
        ] {
            assert!(message.contains(rule), "{message}");
        }
    }

    #[test]
    fn longrope_needs_a_factor_per_frequency() {
        let rope = |factors: usize| {
            let scaling = RopeScaling::LongRope {
                short_factor: vec![1.0; factors],
                long_factor: vec![1.0],
                original_max_positions: 4,
                attention_factor: 1.0,
            };
            let mut plan = plan();
            plan.ropes.push(RopeConfig { scaling, ..RopeConfig::plain(1e4, 2) });
            plan.nodes[1].op = Op::Rope { rope: 0, heads: 1, head_dim: 2 };
            verify(&plan)
        };
        assert_eq!(rope(1), Ok(()));
        assert!(rope(2).expect_err("a factor too many").message.contains("short factors"));
    }
}
