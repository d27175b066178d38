//! Which nodes of a plan one kernel computes together: a pure function of the plan and of the values that are wanted.
//! What judges a device asks here too, so that a later fusion is judged as soon as it is listed.

use crate::exec::Group;
use crate::plan::{Op, Plan, ValueId};

/// The name of the attention of a layer: scores, probabilities and mixture.
pub const ATTENTION: &str = "attention";

/// The groups of a step of which `wanted` is wanted, in the order of what they make; without `fuse`, single nodes.
/// `Same` computes nothing and is in no group.
pub fn groups(plan: &Plan, wanted: &[ValueId], fuse: bool) -> Vec<Group> {
    let fused = |mix: ValueId| {
        let probs = *plan.node(mix).inputs.first()?;
        let scores = *plan.node(probs).inputs.first()?;
        (fuse && !wanted.contains(&probs) && !wanted.contains(&scores)).then_some([scores, probs, mix])
    };
    let mut groups: Vec<Group> = Vec::new();
    for (i, node) in plan.nodes.iter().enumerate() {
        let id = ValueId(i);
        let together = if let Op::AttnMix(_) = node.op { fused(id) } else { None };
        if let Some(nodes) = together {
            groups.retain(|group| !nodes.contains(&group.nodes[0]));
            groups.push(Group { name: ATTENTION.into(), nodes: nodes.to_vec(), by_size: false });
        } else if !matches!(node.op, Op::Same) {
            // The matrix product of logits is the same kernel for any number of tokens.
            let head = plan.head_input().is_some_and(|head| id > head);
            let by_size = matches!(node.op, Op::Linear { .. }) && !head;
            groups.push(Group { name: node.op.name().into(), nodes: vec![id], by_size });
        }
    }
    groups
}

/// For each layer whether its attention is in no group of its own.
pub fn unfused(plan: &Plan, groups: &[Group]) -> Vec<bool> {
    let mut unfused = vec![true; plan.num_layers];
    for group in groups.iter().filter(|group| group.name == ATTENTION) {
        if let Some(layer) = group.nodes.first().and_then(|id| plan.node(*id).at.layer) {
            unfused[layer] = false;
        }
    }
    unfused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::pipeline;
    use crate::plan::{At, Stage};

    #[test]
    fn attention_is_one_group_where_nothing_of_it_is_wanted() {
        let plan = pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap();
        let probs = plan.find(At { stage: Stage::AttnProbs, layer: Some(1) }).unwrap();
        let open = groups(&plan, &[probs], true);
        assert_eq!(unfused(&plan, &open), [false, true, false]);
        assert_eq!(unfused(&plan, &groups(&plan, &[], false)), [true; 3]);
        // Every node that computes something is in one group, and what a group reads is made before it.
        let mut nodes: Vec<ValueId> = open.iter().flat_map(|group| group.nodes.clone()).collect();
        nodes.sort_unstable();
        let computing = (0..plan.nodes.len()).map(ValueId).filter(|id| !matches!(plan.node(*id).op, Op::Same));
        assert_eq!(nodes, computing.collect::<Vec<_>>());
        assert!(open.is_sorted_by_key(|group| group.nodes.last().copied()));
    }
}
