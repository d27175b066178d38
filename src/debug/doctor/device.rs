//! A device without any reference: every op and group as it computes it against the oracle on the same inputs, then the
//! relations that hold between runs, at every length at which something changes for the model. What is wrong is named by
//! what reproduces it (`wrong_op.rs`), or by which relations break and which hold.

use super::relations::{self, Broken, Length, Relation, Relations};
use super::wrong_op::{Scene, moved_or_damaged};
use super::{Cause, Fault, Site, Suspect, Verdict};
use crate::debug::compare::run::Tokens;
use crate::debug::compare::{Choice, Report, StageLine, isolated, number_of_floors};
use crate::debug::dump::Dump;
use crate::debug::floor::Oracles;
use crate::error::Result;
use crate::exec::{Content, Editable, Executor, Read, Request, Rows, Step, Want};
use crate::plan::{At, Stage};

/// Tokens that are generated after a prompt.
const DECODE: usize = 4;
/// Wrong values for which a name is looked for.
const MOST: usize = 6;

/// Examines `device`. `oracles` hold the same weights, one of them in f32 throughout. `prompt` are some ids, `most` how many
/// multiplications with weights the relations may take.
///
/// # Errors
/// What the executors report.
pub async fn examine<E: Executor + Editable>(
    device: &mut E,
    oracles: &Oracles,
    prompt: &[u32],
    most: u64,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    if let Some(fault) = ops(device, oracles, prompt, &mut verdict, progress).await? {
        verdict.faults.push(fault);
        return Ok(verdict);
    }
    let (lengths, left_out) = relations::lengths(device.plan(), most);
    verdict.not_examined.extend(left_out);
    let found = relations::examine(device, oracles, prompt, &lengths, &mut |done, of| progress("relations between runs", done, of)).await?;
    verdict.not_examined.extend(found.left_out.iter().cloned());
    if let Some(first) = found.broken.first() {
        let fault = named(device, oracles, prompt, &found, first, &mut verdict, progress).await?;
        verdict.faults.extend(fault);
    } else {
        verdict.examined.push(kept(&found, &lengths));
    }
    Ok(verdict)
}

/// What holds, in a sentence.
fn kept(found: &Relations, lengths: &[Length]) -> String {
    let lengths: Vec<String> = lengths.iter().map(|length| format!("{} ({})", length.tokens, length.why)).collect();
    let mut texts: Vec<&str> = found.kept.iter().map(|(relation, _)| relation.text()).collect();
    let mut seen = std::collections::BTreeSet::new();
    texts.retain(|text| seen.insert(*text));
    format!("relations between runs of {} tokens: {}", lengths.join(", "), texts.join("; "))
}

/// Every op and group on the oracle's own values; the fault, if one is wrong.
async fn ops<E: Executor>(
    device: &E,
    oracles: &Oracles,
    prompt: &[u32],
    verdict: &mut Verdict,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Option<Fault>> {
    let own = own(oracles, prompt, progress).await?;
    let names = ["oracle".to_string(), device.describe()];
    let report = isolated(&own, device, oracles, names, &Choice::default(), &mut |done, of| progress("the device's ops", done, of)).await?;
    let wrong: Vec<&StageLine> = report.stages.iter().filter(|line| line.diverged).collect();
    let Some(first) = wrong.first().copied() else {
        let worst = report.worst().map_or(0.0, |line| line.times_floor);
        verdict.examined.push(format!(
            "every op of the device against the oracle on the same inputs, watched and unwatched: {} values of {} tokens, {} rounding floors at most",
            report.stages.len(),
            report.tokens,
            number_of_floors(worst)
        ));
        return Ok(None);
    };
    let ids: Vec<u32> = prompt.iter().chain(&own.generated_ids()?.unwrap_or_default()).copied().take(report.tokens).collect();
    let scene = Scene::new(oracles, device, &ids, prompt.len()).await?;
    let mut evidence = vec![said(first, &wrong, &report)];
    for line in wrong.iter().take(MOST) {
        if let Some(named) = scene.name(device, line.at, line.part.as_deref()).await? {
            evidence.push(format!("{}: {}", place(line), named.why));
            return Ok(Some(Fault { cause: named.cause, site: site(line.at), fix: None, evidence }));
        }
    }
    evidence.push("no change of the op that is known here gives these numbers".into());
    Ok(Some(Fault { cause: Cause::WrongKernel, site: site(first.at), fix: None, evidence }))
}

/// What the oracle computes of a prompt and of some tokens after it.
async fn own(oracles: &Oracles, prompt: &[u32], progress: &mut dyn FnMut(&str, usize, usize)) -> Result<Dump> {
    let oracle = &oracles.rounded[oracles.rounded(crate::exec::Storage::F32)];
    let steps = DECODE.min(oracle.plan().max_positions.saturating_sub(prompt.len()));
    let tokens = Tokens { prompt: prompt.to_vec(), forced: Vec::new(), steps };
    tokens.record(oracle, usize::MAX, &Choice::default(), "oracle", &mut |done, of| progress("the oracle", done, of)).await
}

fn site(at: At) -> Site {
    Site { layer: at.layer, stage: Some(at.stage.name()), ..Site::default() }
}

fn place(line: &StageLine) -> String {
    format!("{}{}", line.at, line.part.as_ref().map(|part| format!(" [{part}]")).unwrap_or_default())
}

fn said(first: &StageLine, wrong: &[&StageLine], report: &Report) -> String {
    format!(
        "{}: the device is {} rounding floors from the oracle on the same inputs (3 are allowed); {} of {} values are wrong, all of them in {}",
        place(first),
        number_of_floors(first.times_floor),
        wrong.len(),
        report.stages.len(),
        if wrong.iter().all(|line| line.part.as_ref().is_some_and(|part| part.ends_with("decode"))) {
            "decode"
        } else if wrong.iter().all(|line| line.part.as_ref().is_some_and(|part| part.ends_with("prompt"))) {
            "the prompt"
        } else {
            "prompt and decode, or in runs that are watched"
        }
    )
}

/// The name of a broken relation.
async fn named<E: Executor + Editable>(
    device: &mut E,
    oracles: &Oracles,
    prompt: &[u32],
    found: &Relations,
    first: &Broken,
    verdict: &mut Verdict,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Option<Fault>> {
    let mut evidence: Vec<String> = found.broken.iter().map(Broken::to_string).collect();
    let held: Vec<String> = found.kept.iter().filter(|(_, length)| *length == first.length).map(|(kept, _)| kept.to_string()).collect();
    evidence.extend((!held.is_empty()).then(|| format!("what holds at this length: {}", held.join("; "))));
    let fault = |cause, site, evidence| Ok(Some(Fault { cause, site, fix: None, evidence }));
    // What is not the same twice explains whatever else is wrong.
    if found.breaks(Relation::Repeated) {
        return fault(Cause::Race, Site::default(), evidence);
    }
    if found.breaks(Relation::Rerun) || found.breaks(Relation::Poisoned) {
        return fault(Cause::UninitialisedMemory, Site::default(), evidence);
    }
    let numbers = [Relation::Whole, Relation::Single, Relation::Chunks, Relation::Watched];
    if numbers.iter().any(|relation| found.breaks(*relation)) {
        // At this length some op may be wrong that was right in a short sequence.
        if first.length > prompt.len() + DECODE {
            let ids = relations::sequence(prompt, first.length - DECODE, device.plan().vocab_size);
            if let Some(mut fault) = ops(device, oracles, &ids, &mut Verdict::default(), progress).await? {
                fault.evidence.splice(0..0, evidence);
                return Ok(Some(fault));
            }
        }
        if let Some((at, named)) = cached(device, oracles, prompt, first.length).await? {
            evidence.push(format!("{at}: {}", named.why));
            return fault(named.cause, site(at), evidence);
        }
        verdict.unexplained.extend(evidence);
        let suspects = [Cause::KvPosition, Cause::KvCorruption, Cause::WrongKernel];
        let why = "every op is right by itself, and runs are not";
        verdict.suspects.extend(suspects.map(|cause| Suspect { cause, site: Site::default(), why: why.into() }));
        return Ok(None);
    }
    let state = [Relation::Grown, Relation::CutBack, Relation::Afterwards];
    // Where nothing of it stays in the cache, rows of the step itself were mixed.
    let cause = if state.iter().any(|relation| found.breaks(*relation)) { Cause::KvCorruption } else { Cause::IndexMisaligned };
    fault(cause, Site::default(), evidence)
}

/// What is wrong with the cache after a sequence was read token by token, if anything is.
async fn cached<E: Executor>(device: &E, oracles: &Oracles, prompt: &[u32], length: usize) -> Result<Option<(At, super::wrong_op::Named)>> {
    let plan = device.plan();
    let ids = relations::sequence(prompt, length, plan.vocab_size);
    let scene = Scene::new(oracles, device, &ids, ids.len()).await?;
    let mut cache = device.new_cache(ids.len(), 1)?;
    for id in &ids {
        let tokens = crate::exec::Tokens::Ids(std::slice::from_ref(id));
        let step = Step { tokens, rows: Rows::None, pick: None, read: Read::Nothing, long_rope: plan.is_long(ids.len()), requests: &[] };
        device.step(&mut cache, &step).await?;
    }
    for node in &plan.nodes {
        let Some((state, part)) = node.op.reads_state() else { continue };
        let Ok(held) = device.cached(&cache, state).await else { return Ok(None) };
        let (Some(rows), Some(right)) = (held.part(part), scene.value(node.inputs[1])) else { continue };
        if let Some(named) = moved_or_damaged(held.first, rows, right) {
            return Ok(Some((plan.node(node.inputs[1]).at, named)));
        }
    }
    Ok(None)
}

/// The first value that is not finite with values in f16, and is in f32; of a prompt, on the oracle.
///
/// # Errors
/// What the oracle reports.
pub async fn overflow<E: Executor>(halves: &E, full: &E, ids: &[u32]) -> Result<Option<At>> {
    let mut found = Vec::new();
    for oracle in [halves, full] {
        let plan = oracle.plan();
        let requests: Vec<Request> = plan
            .stages()
            .into_iter()
            .filter(|stage| *stage != Stage::AttnScores)
            .map(|stage| Request { stage, layers: None, want: Want::Stats })
            .collect();
        let mut cache = oracle.new_cache(ids.len(), ids.len())?;
        let tokens = crate::exec::Tokens::Ids(ids);
        let step =
            Step { tokens, rows: Rows::All, pick: None, read: Read::Nothing, long_rope: plan.is_long(ids.len()), requests: &requests };
        let output = oracle.step(&mut cache, &step).await?;
        let odd = output.values.into_iter().find(|value| matches!(value.content, Content::Stats(stats) if stats.nan + stats.inf > 0));
        found.push(odd.map(|value| value.at));
    }
    Ok(if found[1].is_none() { found[0] } else { None })
}
