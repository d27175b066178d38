//! Growth and fall of a stage from layer to layer. Without a profile a value is compared with the same stage in the
//! layers before: it must leave the range that they span. Healthy models have a few huge elements at single tokens
//! ("massive activations"); a value whose energy is in one element is therefore no evidence.

use super::{Finding, Margins, Range, Scene, Watched};
use crate::debug::record::{Summary, number, significant};
use crate::plan::{At, Op, ValueId};
use std::collections::BTreeSet;

/// Share of a value's energy in its largest element from which it says nothing about the others.
const SINGLE: f64 = 0.25;

/// How far a value is out of a range, and of which.
struct Outside {
    times: f64,
    against: String,
    is_profile: bool,
}

/// Values that grew by the factor or more and owe it to none that did.
pub(super) fn explosion(scene: &Scene<'_>, margins: &mut Margins) -> Vec<Finding> {
    let (found, margin) = outside(scene, "explosion", above);
    if let Some((times, at)) = margin.filter(|(times, _)| *times > margins.explosion) {
        (margins.explosion, margins.explosion_at) = (times, Some(at));
    }
    found.into_iter().map(|(v, out)| finding(scene, "explosion", v, &format!("{} times", significant(out.times)), &out)).collect()
}

/// Values that fell by the factor or more and owe it to none that did.
pub(super) fn collapse(scene: &Scene<'_>, margins: &mut Margins) -> Vec<Finding> {
    let (found, margin) = outside(scene, "collapse", below);
    if let Some((times, at)) = margin.filter(|(times, _)| *times > margins.collapse) {
        (margins.collapse, margins.collapse_at) = (times, Some(at));
    }
    found.into_iter().map(|(v, out)| finding(scene, "collapse", v, &format!("1/{} of", significant(out.times)), &out)).collect()
}

fn finding(scene: &Scene<'_>, kind: &'static str, value: &Watched, times: &str, out: &Outside) -> Finding {
    let (max, rms) = (number(value.stats.max_abs), significant(f64::from(value.stats.rms)));
    let message = format!("{times} {}; maxAbs={max} rms={rms}", out.against);
    Finding::new(kind, scene.decode_step, Some(value.at), message).of(&value.stats)
}

/// Values for which `measure` reaches the threshold, without those that inherit it from another, in this step or in an
/// earlier one; and the largest measure that was taken without a profile.
fn outside<'s>(
    scene: &'s Scene<'_>,
    kind: &str,
    measure: impl Fn(&Scene<'_>, &Watched) -> Option<Outside>,
) -> (Vec<(&'s Watched, Outside)>, Option<(f64, At)>) {
    let mut found: Vec<(&Watched, Outside)> = Vec::new();
    let (mut telling, mut margin) = (BTreeSet::new(), None);
    for value in scene.values.iter().filter(|v| v.stats.nan + v.stats.inf == 0 && v.stats.zero < v.stats.count) {
        // A value under another name is no other value, and the first layer reads the embeddings under the name of what
        // the others read.
        let same = scene.plan.node(value.id).op == Op::Same;
        let Some(out) = measure(scene, value).filter(|_| !same) else { continue };
        telling.insert(value.id);
        if !out.is_profile && margin.is_none_or(|(most, _)| out.times > most) {
            margin = Some((out.times, value.at));
        }
        if out.times >= if out.is_profile { scene.options.profile_factor } else { scene.options.factor } {
            found.push((value, out));
        }
    }
    let earlier = scene.history.found.iter().filter(|(known, _)| *known == kind).map(|(_, id)| *id);
    let ids: Vec<ValueId> = found.iter().map(|(v, _)| v.id).chain(earlier).collect();
    found.retain(|(v, _)| !scene.reads_one_of(v.id, &ids, &telling));
    (found, margin)
}

/// How many times larger a value is than its like.
fn above(scene: &Scene<'_>, value: &Watched) -> Option<Outside> {
    let size = |s: &Summary| (f64::from(s.max_abs), f64::from(s.rms));
    let (max, rms) = size(&value.stats);
    if let Some(range) = in_profile(scene, value) {
        // A single huge element weighs more in a short prompt than in a long one.
        let by_rms = if is_single(&value.stats) { 0.0 } else { rms / f64::from(range.rms.1) };
        let times = (max / f64::from(range.max_abs.1)).max(by_rms);
        return times.is_finite().then(|| Outside { times, against: "the profile's largest".into(), is_profile: true });
    }
    let earlier = earlier(scene, value.at);
    let largest = earlier.iter().map(|s| size(s)).fold((0.0f64, 0.0f64), |a, b| (a.0.max(b.0), a.1.max(b.1)));
    if is_single(&value.stats) || largest.0 == 0.0 || largest.1 == 0.0 {
        return None;
    }
    let against = format!("the largest {} of the layers before", value.at.stage);
    Some(Outside { times: (max / largest.0).max(rms / largest.1), against, is_profile: false })
}

/// How many times smaller a value is than its like.
fn below(scene: &Scene<'_>, value: &Watched) -> Option<Outside> {
    let (max, rms) = (f64::from(value.stats.max_abs), f64::from(value.stats.rms));
    if let Some(range) = in_profile(scene, value) {
        let times = (f64::from(range.max_abs.0) / max).min(f64::from(range.rms.0) / rms);
        return times.is_finite().then(|| Outside { times, against: "the profile's smallest".into(), is_profile: true });
    }
    let earlier = earlier(scene, value.at);
    if earlier.is_empty() || earlier.iter().any(|s| is_single(s)) {
        return None;
    }
    let smallest = |f: fn(&Summary) -> f32| earlier.iter().map(|s| f64::from(f(s))).fold(f64::INFINITY, f64::min);
    let times = (smallest(|s| s.max_abs) / max).min(smallest(|s| s.rms) / rms);
    let against = format!("the smallest {} of the layers before (unless those are too large)", value.at.stage);
    Some(Outside { times, against, is_profile: false })
}

/// The range that the profile has for a value.
fn in_profile(scene: &Scene<'_>, value: &Watched) -> Option<Range> {
    scene.options.profile.as_ref().and_then(|p| p.range(value.at, scene.decode_step, scene.first_token))
}

/// The same stage in the layers before, where it is finite and not all zero.
fn earlier<'s>(scene: &'s Scene<'_>, at: At) -> Vec<&'s Summary> {
    scene.of(at.stage).filter(|v| v.at.layer < at.layer && v.stats.zero < v.stats.count).map(|v| &v.stats).collect()
}

/// Whether most of what a value holds is in one element.
fn is_single(stats: &Summary) -> bool {
    let (max, rms) = (f64::from(stats.max_abs), f64::from(stats.rms));
    max * max >= SINGLE * rms * rms * stats.finite() as f64
}
