//! Rules about the row that a token is chosen from: which id wins it, and whether it is too uncertain or too certain.

use super::{LogitsRow, Margins, StepView, untrained};
use crate::debug::logits_view::LOGITS;
use crate::debug::number::{number, significant};
use crate::debug::record::Finding;
use crate::plan::Op;

/// Share of the largest possible entropy from which a row says nothing.
pub(super) const FLAT: f64 = 0.995;
/// Entropy in nats below which a row is certain beyond what trained models are: a lead of some 20 nats.
const CERTAIN: f64 = 1e-8;
/// Certain rows in a row that are no accident.
const STREAK: usize = 4;

/// A finding about the row.
pub(super) fn finding(step: &StepView<'_>, kind: &'static str, row: &LogitsRow, message: String) -> Finding {
    let mut finding = Finding::new(kind, step.decode_step, Some(LOGITS), message);
    finding.token = Some(row.token);
    if let Some((id, logit, _)) = row.view.top.first() {
        (finding.dim, finding.value) = (Some(*id as usize), Some(*logit));
    }
    finding
}

/// The row, where all of it is finite.
fn sound<'s>(step: &'s StepView<'_>) -> Option<&'s LogitsRow> {
    step.row.as_ref().filter(|row| row.view.non_finite == 0 && row.length > 1)
}

/// The highest logit, with its id.
fn winner(row: &LogitsRow) -> Option<(usize, f32)> {
    row.view.top.first().map(|(id, logit, _)| (*id as usize, *logit))
}

/// The highest logit is PAD's.
pub(super) fn pad_wins(step: &StepView<'_>, _: &mut Margins) -> Vec<Finding> {
    let (Some(row), Some(pad)) = (&step.row, step.options.pad) else { return Vec::new() };
    if winner(row).map(|w| w.0) != Some(pad as usize) {
        return Vec::new();
    }
    vec![finding(step, "pad_wins", row, format!("the highest logit is that of PAD, id {pad}"))]
}

/// The highest logit is that of no token.
pub(super) fn padded_row_wins(step: &StepView<'_>, _: &mut Margins) -> Vec<Finding> {
    let Some((row, (id, _))) = step.row.as_ref().and_then(|row| Some((row, winner(row)?))) else { return Vec::new() };
    let valid = step.options.valid_vocab;
    if id < valid {
        return Vec::new();
    }
    vec![finding(step, "padded_row_wins", row, format!("the highest logit is that of row {id}, but only {valid} rows have a token"))]
}

/// The row's entropy as a share of its maximum, where all of it is finite.
pub(super) fn entropy_share(step: &StepView<'_>) -> Option<f64> {
    sound(step).map(|row| row.view.entropy / (row.length as f64).ln())
}

/// Whether next to all tokens are equally likely.
pub(super) fn is_flat(step: &StepView<'_>) -> bool {
    entropy_share(step).is_some_and(|share| share >= FLAT)
}

/// Next to all tokens are equally likely, in a model that is trained.
pub(super) fn flat(step: &StepView<'_>, margins: &mut Margins) -> Vec<Finding> {
    let Some(row) = sound(step) else { return Vec::new() };
    margins.flat = margins.flat.max(entropy_share(step).unwrap_or(0.0));
    if !is_flat(step) || untrained::is_untrained(step) {
        return Vec::new();
    }
    let top = row.view.top.first().map_or(0.0, |best| best.2);
    let message = format!(
        "entropy {} of {} nats, top probability {}",
        significant(row.view.entropy),
        significant((row.length as f64).ln()),
        significant(top)
    );
    vec![finding(step, "flat", row, message)]
}

/// Whether a row is certain beyond what trained models are.
pub(super) fn is_certain(step: &StepView<'_>) -> bool {
    sound(step).is_some_and(|row| row.view.entropy < CERTAIN)
}

/// Several logits at the cap, or certainty in each of several steps.
pub(super) fn saturated(step: &StepView<'_>, margins: &mut Margins) -> Vec<Finding> {
    let Some(row) = sound(step) else { return Vec::new() };
    margins.entropy = Some(margins.entropy.map_or(row.view.entropy, |least| least.min(row.view.entropy)));
    let cap = step.plan.nodes.iter().find(|n| n.at == LOGITS).and_then(|n| if let Op::SoftCap { cap } = n.op { Some(cap) } else { None });
    let at_cap = cap.filter(|cap| row.ties > 1 && winner(row).is_some_and(|(_, logit)| f64::from(logit) >= cap * (1.0 - 1e-6)));
    if let Some(cap) = at_cap {
        let message = format!("{} logits are at the soft-cap {}: the logits before it are far too large", row.ties, number(cap as f32));
        return vec![finding(step, "saturated", row, message)];
    }
    if !is_certain(step) || step.history.certain + 1 < STREAK {
        return Vec::new();
    }
    let message = format!("the top probability is 1 to within {} in {STREAK} steps in a row", significant(CERTAIN));
    vec![finding(step, "saturated", row, message)]
}
