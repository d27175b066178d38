//! A value that is zero everywhere carries nothing: weights that were never filled, a kernel that did not run, a
//! product that underflowed.

use super::{Margins, StepView};
use crate::debug::record::Finding;
use crate::plan::ValueId;
use std::collections::BTreeSet;

/// Values that are all zero and read none that is.
pub(super) fn check(step: &StepView<'_>, _: &mut Margins) -> Vec<Finding> {
    let zeros: Vec<ValueId> = step.values.iter().filter(|v| v.stats.count > 0 && v.stats.zero == v.stats.count).map(|v| v.id).collect();
    let watched: BTreeSet<ValueId> = step.values.iter().map(|v| v.id).collect();
    let responsible = step.values.iter().filter(|v| zeros.contains(&v.id) && !step.reads_one_of(v.id, &zeros, &watched));
    let finding = |v: &super::Watched| {
        let message = format!("all {} elements are 0", v.stats.count);
        Finding::new("all_zero", step.decode_step, Some(v.at), message)
    };
    responsible.map(finding).collect()
}
