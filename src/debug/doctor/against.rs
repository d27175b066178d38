//! A model against a reference: which ops are wrong on the reference's own inputs, what explains the first of them, whether
//! that heals it and whatever else it touches; again with that mended, until nothing is left; then the whole run.

use super::Cause;
use super::case::{Case, Hypothesis};
use super::hypotheses;
use super::mend::{self, Files};
use super::numbers::CLOSE;
use super::report::{Fault, Fix, Suspect, Verdict};
use super::trial::{Patient, Trial, wrong};
use crate::debug::compare::{Choice, NotJudged, Report, number_of_floors};
use crate::debug::dump::Dump;
use crate::error::Result;
use crate::formats::{ByteSource, ModelTexts};
use crate::model::{LayerConfig, Router};
use crate::plan::edit::{ConfigEdit, Edit, Slot};
use crate::plan::{At, Op, Stage};
use std::collections::BTreeSet;

/// Faults that are looked for in one model; one that has more is another model.
const MOST_FAULTS: usize = 6;

/// What was found, and with what it is mended.
#[derive(Debug, Default)]
pub struct Examined {
    /// The verdict.
    pub verdict: Verdict,
    /// Changes that mend all faults that have a fix.
    pub edits: Vec<Edit>,
}

/// A hypothesis that was tried.
struct Tried {
    hypothesis: Hypothesis,
    /// Ops that were wrong and are right with it.
    healed: BTreeSet<At>,
    /// Ops that are wrong only with it.
    broken: Vec<At>,
    /// How far the op itself is from the reference with it, in floors.
    times: f64,
}

/// Examines `patient` against `reference`. `progress` is told what is done, and how many of how many steps of it.
///
/// # Errors
/// What reading the files and the oracles report; `Kind::Invalid` for a reference of another model.
pub async fn examine<S: ByteSource>(
    patient: &Patient<'_, S>,
    texts: Option<&ModelTexts>,
    reference: &Dump,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Examined> {
    let (mut found, mut explained) = (Examined::default(), BTreeSet::new());
    let files = Files { texts, resolved: patient.resolved };
    loop {
        let trial = Trial::new(patient, &found.edits)?;
        if let Some((of, at)) = count_of_experts(&trial, reference) {
            found.verdict.faults.push(fault(&files, &trial, patient, &found.edits, &of, at));
            found.edits.extend(of.hypothesis.edits);
            continue;
        }
        let report = trial
            .judge(patient, reference, &Choice::default(), &mut |done, of| progress("every op on the reference's inputs", done, of))
            .await?;
        if found.verdict.examined.is_empty() {
            let count = report.stages.iter().filter(|line| line.part.is_none()).count();
            found
                .verdict
                .examined
                .push(format!("{count} values of {} tokens, each computed by the oracle from the reference's inputs", report.tokens));
        }
        let mut all: Vec<At> = wrong(&report).iter().map(|line| line.at).collect();
        all.dedup();
        if let Some((of, at)) = rotations(patient, &trial, reference, &report, &all).await? {
            found.verdict.faults.push(fault(&files, &trial, patient, &found.edits, &of, at));
            found.edits.extend(of.hypothesis.edits);
            continue;
        }
        lacking(&report, &mut found.verdict, &mut explained);
        let open: Vec<At> = all.iter().copied().filter(|at| !explained.contains(at)).collect();
        let Some(first) = open.first().copied() else {
            not_judged(&report, &mut found.verdict);
            if explained.is_empty() {
                whole(&trial, patient, reference, &mut found.verdict, progress).await?;
            }
            return Ok(found);
        };
        if found.verdict.faults.len() == MOST_FAULTS {
            found
                .verdict
                .unexplained
                .push(format!("{first} and {} more ops differ after {MOST_FAULTS} faults: this may be another model", open.len() - 1));
            return Ok(found);
        }
        let line = wrong(&report).into_iter().find(|line| line.at == first);
        let near = line.is_some_and(|line| line.relative_l2 < CLOSE);
        let tried = tried(patient, &trial, reference, &all, (first, near), progress).await?;
        let distance = line.map_or(f64::INFINITY, |line| line.times_floor);
        match winner(&tried, first) {
            Some(of) => {
                let mut fault = fault(&files, &trial, patient, &found.edits, of, first);
                fault.evidence.insert(
                    0,
                    format!(
                        "{first} is the first op that is wrong on the reference's own inputs: {} rounding floors away",
                        number_of_floors(distance)
                    ),
                );
                fault.evidence.push(proof(of, &all));
                found.verdict.faults.push(fault);
                if of.hypothesis.edits.is_empty() {
                    // Nothing can be tried: what the same weight leads to is explained by it.
                    explained.extend(shares(&trial, of, &open, first));
                } else {
                    found.edits.extend(of.hypothesis.edits.iter().cloned());
                }
            }
            None => {
                found.verdict.unexplained.push(format!(
                    "{first} is {} rounding floors from the reference on the reference's own inputs, and {} more ops are wrong; no single change explains it",
                    number_of_floors(distance),
                    open.len() - 1
                ));
                found.verdict.suspects.extend(suspects(&trial, patient, tried, first));
                return Ok(found);
            }
        }
    }
}

/// Another number of experts for each token, which the widths of values show before anything is computed.
fn count_of_experts(trial: &Trial, reference: &Dump) -> Option<(Tried, At)> {
    let nodes = trial.plan.nodes.iter().filter(|node| matches!(node.op, Op::ChosenExperts));
    let widths: Vec<(At, usize, usize)> =
        nodes.filter_map(|node| Some((node.at, node.width, reference.parts(node.at).first()?.width))).collect();
    let (at, here, there) = widths.first().copied()?;
    let router = trial.config.experts().next()?.router;
    // Of layers that differ in it this is not the reason.
    if here == there || !(1..=router.experts).contains(&there) || widths.iter().any(|(_, a, b)| (*a, *b) != (here, there)) {
        return None;
    }
    let why = format!("the reference computes {there} experts of each token, and the model of these files {here}");
    let edits = vec![Edit::Config(ConfigEdit::Router(Router { chosen: there, ..router }))];
    Some((
        Tried { hypothesis: Hypothesis::new(Cause::Router, edits, why), healed: BTreeSet::from([at]), broken: Vec::new(), times: 0.0 },
        at,
    ))
}

/// Layers that rotate only here, or only in the reference, tried at once: the scores that read them must come right.
async fn rotations<S: ByteSource>(
    patient: &Patient<'_, S>,
    trial: &Trial,
    reference: &Dump,
    report: &Report,
    all: &[At],
) -> Result<Option<(Tried, At)>> {
    for (side, of) in [("A", None), ("B", trial.config.layers.iter().find_map(LayerConfig::rope))] {
        let Some(missing) = report.missing.iter().find(|missing| missing.side == side && missing.stage == Stage::QRope.name()) else {
            continue;
        };
        let Some(layer) = missing.layers.first().copied() else { continue };
        let first = At { stage: Stage::AttnScores, layer: Some(layer) };
        if !all.contains(&first) {
            continue;
        }
        let who = if side == "A" {
            "the model of these files rotates, and the reference does not"
        } else {
            "the reference rotates, and the model of these files does not"
        };
        let why = format!("in layers {:?} {who}", missing.layers);
        let edits = vec![Edit::Config(ConfigEdit::LayerRope(missing.layers.clone(), of))];
        let tried = attempt(patient, trial, reference, all, first, Hypothesis::new(Cause::RopeLayers, edits, why)).await?;
        if let Some(mut tried) = tried.filter(|tried| tried.healed.contains(&first) && tried.broken.is_empty()) {
            tried.hypothesis.why += &format!(". {}", proof(&tried, all));
            return Ok(Some((tried, first)));
        }
    }
    Ok(None)
}

/// Every hypothesis for the first op, tried on every op that it touches. Where its values are `near` those of the reference, what can
/// only be shown is not: it would be as close to them as the op itself.
async fn tried<S: ByteSource>(
    patient: &Patient<'_, S>,
    trial: &Trial,
    reference: &Dump,
    all: &[At],
    (first, near): (At, bool),
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Vec<Tried>> {
    let stored = trial.stored(patient);
    let weights = trial.edited(patient, &stored);
    let Some(id) = trial.plan.find(first) else { return Ok(Vec::new()) };
    let tokens = reference.input_ids()?.len();
    let case = Case { plan: &trial.plan, config: &trial.config, weights: &weights, reference, id, wrong: all, tokens };
    let mut tried = Vec::new();
    let hypotheses = hypotheses::enumerate(&case).await?;
    let count = hypotheses.len();
    for (i, hypothesis) in hypotheses.into_iter().enumerate() {
        progress("trying what would explain it", i, count);
        if hypothesis.edits.is_empty() {
            let shown = Tried { hypothesis, healed: BTreeSet::from([first]), broken: Vec::new(), times: 0.0 };
            tried.extend((!near).then_some(shown));
            continue;
        }
        tried.extend(attempt(patient, trial, reference, all, first, hypothesis).await?);
    }
    Ok(tried)
}

/// Tries one; `None` where it gives no model of these files.
async fn attempt<S: ByteSource>(
    patient: &Patient<'_, S>,
    trial: &Trial,
    reference: &Dump,
    all: &[At],
    first: At,
    hypothesis: Hypothesis,
) -> Result<Option<Tried>> {
    let before = trial.changes.iter().map(|(slot, change)| Edit::Weight(*slot, change.clone()));
    let edits: Vec<Edit> = before.chain(hypothesis.edits.iter().cloned()).collect();
    // The config of earlier faults is in the trial.
    let resolved = crate::model::Resolved { config: trial.config.clone(), ..patient.resolved.clone() };
    let mended = patient.with_config(&resolved);
    let Ok(with) = Trial::new(&mended, &edits) else { return Ok(None) };
    let changed = trial.changed(&with);
    let held = |at: &At| reference.parts(*at).first().is_some_and(|part| !part.sketch);
    let stages: BTreeSet<Stage> = changed.iter().chain([&first]).filter(|at| held(at)).map(|at| at.stage).collect();
    let layers: BTreeSet<usize> = changed.iter().chain([&first]).filter_map(|at| at.layer).collect();
    let choice = Choice { stages: Some(stages.into_iter().collect()), layers: (!layers.is_empty()).then(|| layers.into_iter().collect()) };
    let Ok(report) = with.judge(&mended, reference, &choice, &mut |_, _| {}).await else { return Ok(None) };
    let now: BTreeSet<At> = wrong(&report).iter().map(|line| line.at).collect();
    let judged: BTreeSet<At> = report.stages.iter().map(|line| line.at).collect();
    let healed = all.iter().copied().filter(|at| judged.contains(at) && !now.contains(at)).collect();
    let broken = now.iter().copied().filter(|at| !all.contains(at)).collect();
    let times = report.stages.iter().filter(|line| line.at == first).map(|line| line.times_floor).fold(0.0, f64::max);
    Ok(Some(Tried { hypothesis, healed, broken, times }))
}

/// The hypothesis that is meant: it heals the op, breaks none, and no other class explains as much.
fn winner(tried: &[Tried], first: At) -> Option<&Tried> {
    let mut holds: Vec<&Tried> = tried
        .iter()
        .filter(|t| t.healed.contains(&first) && t.broken.is_empty() && (t.hypothesis.proved || !t.hypothesis.edits.is_empty()))
        .collect();
    holds.sort_by_key(|t| (std::cmp::Reverse(t.healed.len()), t.hypothesis.rank));
    let best = *holds.first()?;
    let equal = |t: &&&Tried| t.healed == best.healed && t.hypothesis.rank == best.hypothesis.rank;
    let classes: BTreeSet<Cause> = holds.iter().filter(equal).map(|t| t.hypothesis.cause).collect();
    (classes.len() == 1).then_some(best)
}

fn fault<S>(files: &Files<'_>, trial: &Trial, patient: &Patient<'_, S>, before: &[Edit], of: &Tried, first: At) -> Fault {
    let hypothesis = &of.hypothesis;
    let tensor = hypothesis.slot.and_then(|slot| trial.tensor(patient, slot));
    let mut tensors: Vec<String> = hypothesis
        .edits
        .iter()
        .filter_map(|edit| if let Edit::Weight(slot, _) = edit { trial.tensor(patient, *slot) } else { None })
        .collect();
    tensors.dedup();
    let fixed = mend::fix(files, &hypothesis.edits, before, &tensors);
    let mut site = hypothesis.site(first, tensor);
    let mut fix = fixed.map(|(fix, key)| {
        site.config_key = key;
        fix
    });
    if fix.is_none() {
        fix = site.tensor.as_ref().map(|tensor| Fix {
            text: format!("fetch or convert the checkpoint again: {tensor} is not what the reference computed with"),
            ..Fix::default()
        });
    }
    Fault { cause: hypothesis.cause, site, fix, evidence: vec![hypothesis.why.clone()] }
}

fn proof(of: &Tried, all: &[At]) -> String {
    if of.hypothesis.edits.is_empty() {
        return "this follows from the reference's numbers alone; no change of the files was tried".into();
    }
    format!(
        "with it, this op is {} rounding floors from the reference (3 are allowed), {} of {} wrong ops are right, and none that was right is wrong",
        number_of_floors(of.times),
        of.healed.len(),
        all.len()
    )
}

/// Open ops that an explanation without an edit covers: those that read the same weight.
fn shares(trial: &Trial, of: &Tried, open: &[At], first: At) -> Vec<At> {
    let reads = |at: &At, slot: Slot| {
        trial.plan.find(*at).is_some_and(|id| trial.plan.node(id).op.weights().iter().any(|w| Slot::of(&trial.plan, *w) == slot))
    };
    match of.hypothesis.slot {
        Some(slot) => open.iter().copied().filter(|at| *at == first || reads(at, slot)).collect(),
        // A formula of an op without weights: the same op of every layer.
        None => open.iter().copied().filter(|at| at.stage == first.stage).collect(),
    }
}

fn suspects<S>(trial: &Trial, patient: &Patient<'_, S>, mut tried: Vec<Tried>, first: At) -> Vec<Suspect> {
    tried.sort_by(|a, b| (a.broken.len(), a.times).partial_cmp(&(b.broken.len(), b.times)).unwrap_or(std::cmp::Ordering::Equal));
    let one = |t: Tried| {
        let tensor = t.hypothesis.slot.and_then(|slot| trial.tensor(patient, slot));
        let why = format!(
            "{}; with it the op is {} rounding floors off, and {} others become wrong",
            t.hypothesis.why,
            number_of_floors(t.times),
            t.broken.len()
        );
        Suspect { cause: t.hypothesis.cause, site: t.hypothesis.site(first, tensor), why }
    };
    tried.into_iter().map(one).collect()
}

/// Stages that the reference has and the model does not compute are ops that the model lacks.
fn lacking(report: &Report, verdict: &mut Verdict, explained: &mut BTreeSet<At>) {
    for missing in report.missing.iter().filter(|missing| missing.side == "B") {
        let Ok(stage) = Stage::parse(missing.stage) else { continue };
        let cause = match stage {
            Stage::QNorm | Stage::KNorm => Cause::MissingQkNorm,
            Stage::PostAttnNorm | Stage::PostFfnNorm => Cause::MissingPostNorm,
            Stage::AttnNormed => Cause::NormOrder,
            Stage::QRope | Stage::KRope => Cause::RopeLayers,
            _ => continue,
        };
        if verdict.faults.iter().any(|fault| fault.cause == cause) {
            continue;
        }
        let layers: Vec<usize> = missing.layers.clone();
        explained.extend(layers.iter().map(|layer| At { stage, layer: Some(*layer) }));
        let evidence =
            vec![format!("the reference has values of {stage} in layers {layers:?}, which the model of these files does not compute")];
        let site = super::report::Site { layer: layers.first().copied(), stage: Some(stage.name()), ..Default::default() };
        verdict.faults.push(Fault { cause, site, fix: None, evidence });
    }
}

fn not_judged(report: &Report, verdict: &mut Verdict) {
    verdict.not_examined.extend(report.not_judged.iter().map(NotJudged::to_string));
    verdict.not_examined.extend(
        report.missing.iter().filter(|m| m.side == "A").map(|m| format!("{} of layers {:?}: the reference lacks it", m.stage, m.layers)),
    );
}

/// The whole run with all that was mended: what each op does alone they must do together, and in decode.
async fn whole<S: ByteSource>(
    trial: &Trial,
    patient: &Patient<'_, S>,
    reference: &Dump,
    verdict: &mut Verdict,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<()> {
    let (report, chosen) = trial.run(patient, reference, progress).await?;
    let mended = if verdict.faults.is_empty() { "" } else { "with the fixes, " };
    if let Some(first) = &report.first_divergence {
        verdict.unexplained.push(format!(
            "{mended}every op is right by itself, but the whole run parts from the reference at {}, {} rounding floors away",
            first.at,
            number_of_floors(first.times_floor)
        ));
        return Ok(());
    }
    let worst = report.worst().map_or(0.0, |line| line.times_floor);
    verdict.evidence.push(format!(
        "{mended}the whole run agrees with the reference at all {} values that both have: {} rounding floors at most (3 are allowed)",
        report.stages.len(),
        number_of_floors(worst)
    ));
    verdict.examined.push("the whole run of the oracle in the prompt, value by value".into());
    let generated = reference.generated_ids()?.unwrap_or_default();
    if generated.is_empty() {
        verdict.not_examined.push("decoding: the reference generated nothing".into());
        return Ok(());
    }
    match chosen.iter().zip(&generated).position(|(a, b)| a != b) {
        None => verdict.examined.push(format!("greedy decoding: the {} tokens that the reference generated", generated.len().min(chosen.len()))),
        Some(at) => verdict.unexplained.push(format!(
            "{mended}the prompt agrees, but greedy decoding parts from the reference at generated token {at}: {} here, {} there; what differs shows only beyond the prompt (a window, a stretched RoPE, the cache)",
            chosen[at], generated[at]
        )),
    }
    Ok(())
}
