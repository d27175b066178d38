//! One dimension of the residual stream that outweighs all others from the first layer to the last, at every token: a
//! norm weight or a row of a projection read wrongly. A huge element at one token only is known from healthy models.

use super::{Margins, StepView};
use crate::debug::number::{number, significant};
use crate::debug::record::Finding;
use crate::plan::{At, Stage};

/// Share of the energy of all tokens that one dimension must have.
const SHARE: f64 = 0.5;
/// Prompts of at least this many tokens are evidence by themselves: one token's spike cannot have the share that the
/// same dimension of all tokens has.
const TOKENS: usize = 8;

/// The dimension that is largest after every layer, and its smallest share: max² / (width · rms²), which is at most 1
/// if it is the same at all tokens, and up to the number of tokens if it is at one.
pub(super) fn leading(step: &StepView<'_>) -> Option<(usize, f64)> {
    let (dim, share) = through_all(step)?;
    (share >= SHARE).then_some((dim, share))
}

fn through_all(step: &StepView<'_>) -> Option<(usize, f64)> {
    let layers = step.plan.layers_with(Stage::LayerOut);
    let stats: Vec<_> = layers.iter().filter_map(|l| step.stats(At { stage: Stage::LayerOut, layer: Some(*l) })).collect();
    let first = stats.first().filter(|_| stats.len() == layers.len() && layers.len() > 1)?;
    let share = |s: &&&crate::debug::summary::Summary| {
        let width = s.count as f64 / step.tokens.max(1) as f64;
        let energy = width * f64::from(s.rms) * f64::from(s.rms);
        if energy > 0.0 { f64::from(s.max_abs).powi(2) / energy } else { 0.0 }
    };
    let smallest = stats.iter().map(|s| share(&s)).fold(f64::INFINITY, f64::min);
    stats.iter().all(|s| s.dim == first.dim).then_some((first.dim, smallest))
}

/// A dimension that leads in a long prompt as it would at all tokens, or in two steps.
pub(super) fn check(step: &StepView<'_>, margins: &mut Margins) -> Vec<Finding> {
    let Some((dim, share)) = through_all(step) else { return Vec::new() };
    margins.spike = margins.spike.max(share);
    let certain = step.tokens >= TOKENS && share <= 1.5;
    if share < SHARE || !(certain || step.history.spikes.contains(&dim)) {
        return Vec::new();
    }
    let embed = At { stage: Stage::EmbedOut, layer: None };
    let from_start = step.stats(embed).is_some_and(|s| s.dim == dim);
    let at = if from_start { embed } else { At { stage: Stage::LayerOut, layer: step.plan.layers_with(Stage::LayerOut).first().copied() } };
    let Some(stats) = step.stats(at) else { return Vec::new() };
    let largest = step.values.iter().filter(|v| v.at.stage == Stage::LayerOut).map(|v| v.stats.max_abs).fold(0.0, f32::max);
    let message = format!(
        "dim {dim} is the largest of layer_out in all {} layers, with {} of its energy or more; largest {}",
        step.plan.num_layers,
        significant(share.min(1.0)),
        number(largest)
    );
    vec![Finding::new("dim_spike", step.decode_step, Some(at), message).of(stats)]
}
