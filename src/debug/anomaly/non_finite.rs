//! NaN and Inf spread to everything after them, so the first value in the plan's order that has any is responsible: it
//! reads finite values and makes others.

use super::{Margins, StepView};
use crate::debug::record::Finding;

/// The last value of a step's view is the first that is not finite, if there is one.
pub(super) fn check(step: &StepView<'_>, _: &mut Margins) -> Vec<Finding> {
    let Some(value) = step.values.last().filter(|v| v.stats.nan + v.stats.inf > 0) else { return Vec::new() };
    let (nan, inf) = (value.stats.nan, value.stats.inf);
    let node = step.plan.node(value.id);
    let watched = |id: &&crate::plan::ValueId| step.values.iter().any(|v| v.id == **id);
    let inputs: Vec<&str> = node.inputs.iter().filter(watched).map(|id| step.plan.node(*id).at.stage.name()).collect();
    let inputs =
        if inputs.is_empty() { "it reads no other value".to_string() } else { format!("what it reads is finite: {}", inputs.join(", ")) };
    let weights: Vec<String> = node.op.weights().iter().map(|w| step.plan.weights[w.0].label()).collect();
    let weights = if weights.is_empty() { String::new() } else { format!("; weights: {}", weights.join(", ")) };
    let message = format!("NaN={nan} Inf={inf} of {} elements; {inputs}{weights}", value.stats.count);
    vec![Finding::new("non_finite", step.decode_step, Some(value.at), message).of(&value.stats)]
}
