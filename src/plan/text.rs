//! The printed form of a plan: one line per node, for `inspect`, snapshots and messages.

use super::op::{Attention, ConvEnding, Op, Plan, StateId};
use crate::model::Router;
use std::fmt::Write;

/// One line per node: index, name, op with its constants and weights, inputs by name, width.
pub fn print(plan: &Plan) -> String {
    let mut out = String::new();
    for (index, node) in plan.nodes.iter().enumerate() {
        let changes: String =
            node.interventions.iter().map(|one| format!("  then {}", one.to_string().trim_start_matches(['=', ',']))).collect();
        let inputs: Vec<String> = node.inputs.iter().map(|i| plan.node(*i).at.stage.to_string()).collect();
        let _ = writeln!(
            out,
            "{index:4} {:<22} {:<44} <- {:<28} width {}{changes}",
            node.at.to_string(),
            describe(plan, &node.op),
            inputs.join(", "),
            node.width
        );
    }
    out
}

/// An op with its constants and the labels of its weights.
pub fn describe(plan: &Plan, op: &Op) -> String {
    let attention = |name: &str, a: &Attention| {
        let cap = a.softcap.map(|c| format!(" cap={c}")).unwrap_or_default();
        let window = a.window.map(|w| format!(" window={w}")).unwrap_or_default();
        let sinks = a.sinks.filter(|_| matches!(op, Op::AttnProbs(_))).map(|_| " +sinks").unwrap_or_default();
        format!("{name} {}/{}x{} scale={}{cap}{window}{sinks}", a.heads, a.kv_heads, a.head_dim, a.scale)
    };
    let layer = |id: &StateId| plan.states.get(id.0).map_or("?".into(), |state| format!("L{}", state.layer));
    match op {
        Op::Embed { scale, .. } => format!("embed scale={scale}"),
        Op::Same => "same".into(),
        Op::RmsNorm { offset, eps, group, .. } => format!("rms_norm group={group} eps={eps} offset={offset}"),
        Op::UnitNorm { eps, group } => format!("unit_norm group={group} eps={eps}"),
        Op::LayerNorm { bias, eps, group, .. } => {
            format!("layer_norm group={group} eps={eps}{}", if bias.is_some() { " +bias" } else { "" })
        }
        Op::Linear { weight, bias, divisor } => {
            let slot = &plan.weights[weight.0];
            let bias = if bias.is_some() { " +bias" } else { "" };
            let divisor = if *divisor == 1.0 { String::new() } else { format!(" /{divisor}") };
            format!("linear {} {:?}{bias}{divisor}", slot.role.name(), slot.shape)
        }
        Op::Rope { rope, heads, head_dim } => format!("rope #{rope} {heads}x{head_dim}"),
        Op::Append { state, part } => format!("append to the {} of {}", part.name(), layer(state)),
        Op::AttnScores(a) => attention("attn_scores", a),
        Op::AttnProbs(a) => attention("attn_probs", a),
        Op::AttnMix(a) => attention("attn_mix", a),
        Op::GatedAct { act, first: 0 } => format!("gated_act {act:?}"),
        Op::GatedAct { act, first } => format!("gated_act {act:?}, up from {first}"),
        Op::RouterWeights { router, .. } => router_text(router),
        Op::ChosenExperts => "chosen_experts".into(),
        Op::ExpertLinear { weight, bias, experts, .. } => {
            let slot = &plan.weights[weight.0];
            let rows = slot.shape.first().copied().unwrap_or(0).checked_div(*experts).unwrap_or(0);
            let columns = slot.shape.get(1).copied().unwrap_or(0);
            let bias = if bias.is_some() { " +bias" } else { "" };
            format!("expert_linear {} {experts}x[{rows}, {columns}]{bias}", slot.role.name())
        }
        Op::ExpertMix { chosen, .. } => format!("expert_mix of {chosen}"),
        Op::SigmoidScale => "sigmoid_scale".into(),
        Op::Act { act } => format!("act {act:?}"),
        Op::Mul { left, right } => format!("mul from {left} and {right}"),
        Op::ShortConv { state, bias, taps, ending, .. } => {
            let bias = if bias.is_some() { " +bias" } else { "" };
            let ending = match ending {
                ConvEnding::Gate(gate) => format!("gate from {gate}"),
                ConvEnding::Act(act) => format!("{act:?}"),
            };
            format!("short_conv of {taps} of {}, {ending}{bias}", layer(state))
        }
        Op::DeltaIn { heads: h, eps, .. } => format!("delta_in {}x{} {}x{} eps={eps}", h.keys, h.key_dim, h.values, h.value_dim),
        Op::GatedDelta { state, heads: h, eps, scale, .. } => {
            format!("gated_delta {}x{} {}x{} of {} scale={scale} eps={eps}", h.keys, h.key_dim, h.values, h.value_dim, layer(state))
        }
        Op::Add { multiplier } => format!("add x{multiplier}"),
        Op::Scale { factor, weight } => format!("scale x{factor}{}", if weight.is_some() { " +weight" } else { "" }),
        Op::SoftCap { cap } => format!("soft_cap {cap}"),
    }
}

/// How a router chooses and weights.
fn router_text(router: &Router) -> String {
    let bias = match (router.choice_bias, router.scales) {
        (true, _) => " +choice bias",
        (false, true) => " +scales",
        (false, false) => "",
    };
    let groups = router.groups.map(|g| format!(" groups={}/{} by {}", g.chosen, g.count, g.highest)).unwrap_or_default();
    let renormalise = router.renormalise.map(|eps| format!(" renormalised+{eps}")).unwrap_or_default();
    let scaling = if router.scaling == 1.0 { String::new() } else { format!(" x{}", router.scaling) };
    format!("router_weights {:?} {}/{}{bias}{groups}{renormalise}{scaling}", router.score, router.chosen, router.experts)
}
