//! A value that is zero everywhere carries nothing: weights that were never filled, a kernel that did not run, a
//! product that underflowed.

use super::{Margins, Scene};
use crate::debug::record::Finding;
use crate::plan::ValueId;
use std::collections::BTreeSet;

/// Values that are all zero and read none that is.
pub(super) fn check(scene: &Scene<'_>, _: &mut Margins) -> Vec<Finding> {
    let zeros: Vec<ValueId> = scene.values.iter().filter(|v| v.stats.count > 0 && v.stats.zero == v.stats.count).map(|v| v.id).collect();
    let watched: BTreeSet<ValueId> = scene.values.iter().map(|v| v.id).collect();
    let responsible = scene.values.iter().filter(|v| zeros.contains(&v.id) && !scene.reads_one_of(v.id, &zeros, &watched));
    let finding = |v: &super::Watched| {
        let message = format!("all {} elements are 0", v.stats.count);
        Finding::new("all_zero", scene.decode_step, Some(v.at), message)
    };
    responsible.map(finding).collect()
}
