//! From an op whose output is wrong to what would explain it: one file for each family of ops. Numbers are estimated from
//! the reference's inputs and outputs, not looked up; whether a hypothesis holds is tried by the caller.

mod attention;
mod delta_in;
mod elementwise;
mod embed;
mod expert_linear;
mod gated_delta;
mod gates;
mod linear;
mod norm;
mod right_copy;
mod rope;
mod router;
mod short_conv;
mod weight;

use super::Cause;
use super::case::{Case, Hypothesis};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::plan::edit::{Edit, Slot, weight::Change};
use crate::plan::{Op, Stage, WeightId};

/// What could explain the op of `case`.
///
/// # Errors
/// Those of reading the reference and the weights.
pub async fn enumerate<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let mut found = of_op(case).await?;
    found.extend(right_copy::hypothesis(case).await?);
    let whole: Vec<Hypothesis> = found.iter().filter_map(|one| layers(case, one)).collect();
    found.extend(whole);
    Ok(found)
}

/// Where one tensor lies under another layer, all may.
fn layers<S: WeightSource>(case: &Case<'_, S>, one: &Hypothesis) -> Option<Hypothesis> {
    let [Edit::Weight(a, Change::From(b)), ..] = one.edits[..] else { return None };
    let (Cause::SwappedLayers, Some(from), Some(to)) = (one.cause, a.layer, b.layer) else { return None };
    let mut edits = Vec::new();
    for slot in (0..case.plan.weights.len()).map(|i| Slot::of(case.plan, WeightId(i))) {
        let other = match slot.layer {
            Some(layer) if layer == from => to,
            Some(layer) if layer == to => from,
            _ => continue,
        };
        edits.push(Edit::Weight(slot, Change::From(Slot { layer: Some(other), ..slot })));
    }
    Some(Hypothesis { edits, why: format!("layers {from} and {to} are exchanged, tensor by tensor"), ..one.clone() })
}

/// What could explain the op by itself.
async fn of_op<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    match &node.op {
        Op::Embed { .. } => embed::hypotheses(case).await,
        Op::RmsNorm { .. } | Op::LayerNorm { .. } => norm::hypotheses(case).await,
        Op::Linear { .. } => linear::hypotheses(case).await,
        Op::ExpertLinear { .. } => expert_linear::hypotheses(case).await,
        Op::Rope { .. } => rope::hypotheses(case).await,
        Op::AttnScores(_) => attention::scores(case).await,
        Op::AttnProbs(_) => attention::probabilities(case).await,
        Op::Add { .. } => elementwise::addition(case),
        Op::Same | Op::SoftCap { .. } if node.at.stage == Stage::LogitsFinal => elementwise::last(case),
        Op::GatedAct { .. } if node.at.stage == Stage::DeltaGated => gates::after_norm(case).await,
        Op::GatedAct { .. } | Op::Act { .. } => elementwise::activation(case),
        Op::RouterWeights { .. } => router::hypotheses(case).await,
        Op::ShortConv { .. } => short_conv::hypotheses(case).await,
        Op::SigmoidScale => gates::sigmoid(case),
        Op::UnitNorm { .. } => gates::unit_norm(case),
        Op::Scale { .. } => gates::scale(case).await,
        Op::DeltaIn { .. } => delta_in::hypotheses(case).await,
        Op::GatedDelta { .. } => gated_delta::hypotheses(case),
        Op::Same | Op::Append { .. } | Op::SoftCap { .. } | Op::AttnMix(_) | Op::Mul { .. } => Ok(Vec::new()),
        Op::ChosenExperts | Op::ExpertMix { .. } => Ok(Vec::new()),
    }
}

/// A weight in words.
fn label(slot: Slot) -> String {
    let layer = slot.layer.map(|layer| format!("layer {layer}'s ")).unwrap_or_default();
    format!("{layer}{}{}", slot.role.name(), if slot.bias { ".bias" } else { "" })
}
