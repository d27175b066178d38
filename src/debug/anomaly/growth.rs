//! Growth and fall of a stage from layer to layer. Without a profile a value is compared with the same stage in the
//! layers before: it must leave the range that they span. Healthy models have a few huge elements at single tokens
//! ("massive activations"); a value whose energy is in one element is therefore no evidence.

use super::{Margins, Range, StepView, Watched};
use crate::debug::number::{number, significant};
use crate::debug::record::Finding;
use crate::debug::summary::Summary;
use crate::plan::{At, Op, Stage, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Share of a value's energy in its largest element from which it says nothing about the others.
const SINGLE: f64 = 0.25;

/// How far a value is out of a range, and whether it is the profile's.
struct Excess {
    times: f64,
    is_profile: bool,
}

/// Values that grew by the factor or more and owe it to none that did.
pub(super) fn explosion(step: &StepView<'_>, margins: &mut Margins) -> Vec<Finding> {
    let (found, margin) = outside(step, "explosion", above);
    if let Some((times, at)) = margin.filter(|(times, _)| *times > margins.explosion) {
        (margins.explosion, margins.explosion_at) = (times, Some(at));
    }
    let words = |v: &Watched, out: &Excess| {
        let like = if out.is_profile { "the profile's largest".into() } else { format!("the largest {} of the layers before", v.at.stage) };
        format!("{} times {like}", significant(out.times))
    };
    found.into_iter().map(|(v, out)| finding(step, "explosion", v, &words(v, &out))).collect()
}

/// Values that fell by the factor or more and owe it to none that did.
pub(super) fn collapse(step: &StepView<'_>, margins: &mut Margins) -> Vec<Finding> {
    // What a gate scales may rightly be nearly 0.
    let measure = |step: &StepView<'_>, v: &Watched, usual: &Baseline| match step.plan.node(v.id).op {
        Op::SigmoidScale => None,
        _ => below(step, v, usual),
    };
    let (found, margin) = outside(step, "collapse", measure);
    if let Some((times, at)) = margin.filter(|(times, _)| *times > margins.collapse) {
        (margins.collapse, margins.collapse_at) = (times, Some(at));
    }
    let words = |v: &Watched, out: &Excess| {
        let before = || format!("the smallest {} of the layers before (unless those are too large)", v.at.stage);
        let like = if out.is_profile { "the profile's smallest".into() } else { before() };
        format!("1/{} of {like}", significant(out.times))
    };
    found.into_iter().map(|(v, out)| finding(step, "collapse", v, &words(v, &out))).collect()
}

fn finding(step: &StepView<'_>, kind: &'static str, value: &Watched, words: &str) -> Finding {
    let (max, rms) = (number(value.stats.max_abs), significant(f64::from(value.stats.rms)));
    Finding::new(kind, step.decode_step, Some(value.at), format!("{words}; maxAbs={max} rms={rms}")).of(&value.stats)
}

/// Values beyond a threshold, and the largest measure with its place.
type Outsiders<'s> = (Vec<(&'s Watched, Excess)>, Option<(f64, At)>);

/// Values for which `measure` reaches the threshold, without those that inherit it from another, in this step or in an
/// earlier one; and the largest measure that was taken without a profile.
fn outside<'s>(
    step: &'s StepView<'_>,
    kind: &str,
    measure: impl Fn(&StepView<'_>, &Watched, &Baseline) -> Option<Excess>,
) -> Outsiders<'s> {
    let mut found: Vec<(&Watched, Excess)> = Vec::new();
    let (mut telling, mut margin) = (BTreeSet::new(), None);
    // Values come layer by layer.
    let mut baselines: BTreeMap<Stage, Baseline> = BTreeMap::new();
    for value in step.values.iter().filter(|v| v.stats.nan + v.stats.inf == 0 && v.stats.zero < v.stats.count) {
        // `Same` renames its input and is skipped: layer 0's `layer_in` would otherwise be compared although it is
        // `embed_out`.
        if step.plan.node(value.id).op == Op::Same {
            continue;
        }
        let baseline = baselines.entry(value.at.stage).or_default();
        let out = measure(step, value, baseline);
        baseline.add(step, value);
        let Some(out) = out else { continue };
        telling.insert(value.id);
        if !out.is_profile && margin.is_none_or(|(most, _)| out.times > most) {
            margin = Some((out.times, value.at));
        }
        if out.times >= if out.is_profile { step.options.profile_factor } else { step.options.factor } {
            found.push((value, out));
        }
    }
    let earlier = step.history.found.iter().filter(|(known, _)| *known == kind).map(|(_, id)| *id);
    let ids: Vec<ValueId> = found.iter().map(|(v, _)| v.id).chain(earlier).collect();
    found.retain(|(v, _)| !step.reads_one_of(v.id, &ids, &telling));
    (found, margin)
}

/// The same stage in the layers before, in this step and in earlier ones: a single token varies more than a prompt.
#[derive(Default)]
struct Baseline {
    range: Option<Range>,
    /// Most of what one of them holds is in one element.
    single: bool,
}

impl Baseline {
    fn add(&mut self, step: &StepView<'_>, value: &Watched) {
        let ranges = [self.range, Range::of(&value.stats), step.seen.range(value.at, 0, 1)];
        self.range = ranges.into_iter().flatten().reduce(Range::union);
        self.single |= is_single(&value.stats);
    }
}

/// How many times larger a value is than its baseline.
fn above(step: &StepView<'_>, value: &Watched, baseline: &Baseline) -> Option<Excess> {
    let (max, rms) = (f64::from(value.stats.max_abs), f64::from(value.stats.rms));
    let single = is_single(&value.stats);
    if let Some(range) = in_profile(step, value) {
        // A single huge element weighs more in a short prompt than in a long one.
        let by_rms = if single { 0.0 } else { rms / f64::from(range.rms.1) };
        return Some(Excess { times: (max / f64::from(range.max_abs.1)).max(by_rms), is_profile: true });
    }
    let range = baseline.range.filter(|_| !single)?;
    Some(Excess { times: (max / f64::from(range.max_abs.1)).max(rms / f64::from(range.rms.1)), is_profile: false })
}

/// How many times smaller a value is than its baseline.
fn below(step: &StepView<'_>, value: &Watched, baseline: &Baseline) -> Option<Excess> {
    let (max, rms) = (f64::from(value.stats.max_abs), f64::from(value.stats.rms));
    let profile = in_profile(step, value);
    let range = profile.or(baseline.range.filter(|_| !baseline.single))?;
    let times = (f64::from(range.max_abs.0) / max).min(f64::from(range.rms.0) / rms);
    Some(Excess { times, is_profile: profile.is_some() })
}

/// The range that the profile has for a value.
fn in_profile(step: &StepView<'_>, value: &Watched) -> Option<Range> {
    step.options.profile.as_ref().and_then(|p| p.range(value.at, step.decode_step, step.first_token))
}

/// Whether most of what a value holds is in one element.
fn is_single(stats: &Summary) -> bool {
    let (max, rms) = (f64::from(stats.max_abs), f64::from(stats.rms));
    max * max >= SINGLE * rms * rms * stats.finite() as f64
}
