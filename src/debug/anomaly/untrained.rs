//! A model that nothing has trained: near-uniform logits behind norms that are as initialised. That is no fault, so it is
//! reported in place of `flat` and `repeated_tokens`, which are faults of a trained model.

use super::{Margins, StepView, logits, repeated};
use crate::debug::number::significant;
use crate::debug::record::Finding;
use crate::plan::{Op, ValueId};

/// Share of the largest possible entropy above which nothing has been learnt. Weights as transformers initialises them give
/// 0.93 to 1.00, the tests' random weights from 0.85 on; trained models that repeat themselves are far below.
const UNIFORM: f64 = 0.8;
/// A norm's output with the weights that every family begins with (1, or 0 with an offset of 1) has rms 1, less where eps
/// counts. Random weights of 1 ± 0.2 stay within this factor; the norms of trained models do not, all of them.
const NORM: f32 = 1.2;

/// The smallest and the largest rms of the outputs of all norms, and how many there are; `None` where the model has none, or
/// one is too far from 1.
fn norms(step: &StepView<'_>) -> Option<(f32, f32, usize)> {
    let mut found: Option<(f32, f32, usize)> = None;
    // What a delta rule gives may be so small that eps counts.
    let of_rule = |id: &ValueId| matches!(step.plan.node(*id).op, Op::GatedDelta { .. });
    let is_norm = |id: ValueId| {
        let node = step.plan.node(id);
        matches!(node.op, Op::RmsNorm { .. } | Op::LayerNorm { .. }) && !node.inputs.iter().any(of_rule)
    };
    for value in step.values.iter().filter(|v| is_norm(v.id)) {
        let rms = value.stats.rms;
        if !(1.0 / NORM..=NORM).contains(&rms) {
            return None;
        }
        found = Some(found.map_or((rms, rms, 1), |(least, most, count)| (least.min(rms), most.max(rms), count + 1)));
    }
    found
}

/// Whether this step's values are those of a model that nothing has trained.
pub(super) fn is_untrained(step: &StepView<'_>) -> bool {
    logits::entropy_share(step).is_some_and(|share| share >= UNIFORM) && norms(step).is_some()
}

/// An untrained model, where another rule would fire.
pub(super) fn check(step: &StepView<'_>, _: &mut Margins) -> Vec<Finding> {
    let noticed = logits::is_flat(step) || repeated::cycle(step).is_some();
    let (Some(row), Some((least, most, count))) = (&step.row, norms(step)) else { return Vec::new() };
    if !noticed || !is_untrained(step) {
        return Vec::new();
    }
    let message = format!(
        "the model looks untrained: entropy {} of {} nats, and the outputs of all {count} norms have rms {} to {}, as with initial weights",
        significant(row.view.entropy),
        significant((row.length as f64).ln()),
        significant(f64::from(least)),
        significant(f64::from(most)),
    );
    vec![logits::finding(step, "untrained", row, message)]
}
