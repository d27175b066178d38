//! The run that nobody watches: the same tokens with nothing asked of any step, so that everything is fused and chosen as
//! users have it. What it gives are logits and choices, and these are judged.

use super::judge::{Basis, judge};
use super::live::{self, Task};
use super::sums::{Place, Sums};
use super::{Align, Floors, Heads, Mode, NotJudged, Report, StageLine};
use crate::debug::dump::Dump;
use crate::debug::floor::{distance, estimate, numbers};
use crate::error::{Error, Result};
use crate::exec::{Executor, Group, Pick, Read, Rows, Step, Tokens};
use crate::plan::{At, Plan, Stage};

/// Candidates that are read of the last choice, where a vocabulary has them.
const TOP: usize = 40;
const LOGITS: At = At { stage: Stage::LogitsFinal, layer: None };
const SAMPLED: At = At { stage: Stage::Sampled, layer: None };

/// What a run gave that nobody watched.
#[derive(Debug, Clone)]
pub struct Unobserved {
    /// Rows of final logits by position: of the prompt's last token and of every decode step.
    pub logits: Vec<(usize, Vec<f32>)>,
    /// Whether what was chosen is the highest of the run's own logits.
    choices: StageLine,
    /// What the run computed together.
    groups: Vec<Group>,
}

impl Unobserved {
    /// Whether what was chosen is the highest of the run's own logits: a line whose values are ids.
    pub fn choices(&self) -> &StageLine {
        &self.choices
    }
    /// Runs `task` on `executor`; `None` where steps compute the same, watched or not.
    ///
    /// # Errors
    /// As `live::record`.
    pub async fn run<E: Executor>(executor: &E, task: Task<'_>, progress: &mut dyn FnMut(usize, usize)) -> Result<Option<Self>> {
        let groups = executor.groups()?;
        if groups.is_empty() {
            return Ok(None);
        }
        let mut choices = StageLine { part: Some("unobserved".into()), ..StageLine::new(SAMPLED) };
        let mut logits = Vec::new();
        let rules = Pick { valid: executor.plan().vocab_size };
        let mut take = |token: usize, output: &mut crate::exec::StepOutput| {
            let Some(row) = output.logits.take() else { return };
            let best = top(&row, 1);
            choices.choice(token, [&best, &best], [best.first().map(|best| best.0), output.token]);
            logits.push((token, row));
        };
        let (mut cache, ids, long_rope) = live::unobserved(executor, task, &mut take, progress).await?;
        // The last token again, its candidates read as sampling reads them.
        let last = ids.len().saturating_sub(1);
        if executor.truncate(&mut cache, last) {
            let tokens = Tokens::Ids(&ids[last..]);
            let step = Step { tokens, rows: Rows::Last, pick: Some(rules), read: Read::Logits, long_rope, requests: &[] };
            let row = executor.step(&mut cache, &step).await?.logits.unwrap_or_default();
            let k = TOP.min(rules.valid);
            if executor.truncate(&mut cache, last) {
                let output = executor.step(&mut cache, &Step { read: Read::Top(k), ..step }).await?;
                let (right, found) = (top(&row, k), output.top.unwrap_or_default());
                choices.choice(last, [&right, &found], [right.first().map(|best| best.0), output.token]);
            }
        }
        Ok(Some(Self { logits, choices, groups }))
    }
}

/// The highest `k` logits in descending order, ties by ascending id.
fn top(row: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).filter(|(_, x)| *x > f32::NEG_INFINITY).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    // Zeros of both signs are equal.
    all.iter_mut().for_each(|(_, x)| *x += 0.0);
    all.sort_unstable_by(order);
    all.truncate(k);
    all
}

/// Adds to `report` how far the logits of `run` are from those of A, or where A has none from the oracle's (`exact`, by
/// position) in f64 and in f32 as B rounds.
///
/// # Errors
/// `Kind::Io`.
pub fn judge_unobserved(
    mut report: Report,
    run: Option<&Unobserved>,
    a: &Dump,
    aligned: &Align,
    floors: Floors<'_>,
    oracle: Option<[&Rowed; 3]>,
    plan: &Plan,
) -> Result<Report> {
    let Some(run) = run else {
        report.covers.push("a run that is the same watched or not".into());
        return Ok(report);
    };
    let of_a = a.parts(LOGITS).first().filter(|part| !part.sketch);
    let numbers = numbers(a.metadata.get("dtype").map(String::as_str))?;
    let measured = matches!(floors, Floors::Measured(_)) && numbers.imitated;
    let estimated = Basis::Estimated(estimate(numbers, plan.num_layers));
    let (mut sums, mut basis, mut row) = (Sums::default(), if measured { Basis::Known } else { estimated }, Vec::new());
    let at_token = |rows: &Rowed, token: usize| rows.iter().find(|(t, _)| *t == token).map(|(_, row)| row.clone());
    for (token, found) in run.logits.iter().filter(|(token, _)| *token < aligned.tokens) {
        let exact = oracle.and_then(|rows| Some([at_token(rows[0], *token)?, at_token(rows[1], *token)?, at_token(rows[2], *token)?]));
        let place = Place { token: *token, head: None, elements: found.len() };
        match of_a.filter(|part| *token < part.tokens && part.width == found.len()) {
            Some(part) => a.read_rows(part, *token..*token + 1, &mut row)?,
            None => {
                let Some([exact, _, b]) = &exact else { continue };
                basis = Basis::Known;
                sums.row(place, exact, found, None, Some(distance(exact, b)));
                continue;
            }
        }
        let exact = exact.as_ref().filter(|_| measured).map(|[exact, a, b]| [&exact[..], &a[..], &b[..]]);
        sums.row(place, &row, found, exact, None);
    }
    if sums.rows.is_empty() {
        report.not_judged.push(NotJudged::Unobserved);
        return Ok(report);
    }
    let line = judge(LOGITS, &sums, basis, Heads::of_plan(plan), Mode::Cumulative);
    let (rows, departs) = (line.rows, line.diverged);
    let observed_agrees = report.first_divergence.is_none();
    report.add(StageLine { part: Some("unobserved".into()), ..line });
    report.add(run.choices.clone());
    report.covers.push(format!("the unwatched run's logits at {rows} tokens and {} choices", run.choices.rows));
    if departs && observed_agrees {
        let fused = run.groups.iter().filter(|group| group.nodes.len() > 1);
        let names: std::collections::BTreeSet<String> = fused
            .map(|group| {
                let stages: Vec<&str> = group.nodes.iter().map(|id| plan.node(*id).at.stage.name()).collect();
                format!("{} ({})", group.name, stages.join(" + "))
            })
            .collect();
        let names: Vec<String> = names.into_iter().collect();
        let names = if names.is_empty() { "no ops".to_string() } else { names.join(", ") };
        report.notes.push(format!(
            "every value of the watched run agrees, and the run that nobody watches departs: it computes {names} in one kernel each, and chooses; --isolated names the group"
        ));
    }
    Ok(report)
}

/// How far rows of final logits are from the oracle's of the same positions: `exact` in f64, `rounded` in f32 as the rows were
/// rounded. Rows that the oracle lacks are left out.
///
/// # Errors
/// `Kind::Invalid` for rows of another width.
pub fn judge_rows(found: &Rowed, [exact, rounded]: [&Rowed; 2], plan: &Plan) -> Result<StageLine> {
    let of = |rows: &Rowed, token: usize| rows.iter().find(|(t, _)| *t == token).map(|(_, row)| row.clone());
    let mut sums = Sums::default();
    for (token, found) in found {
        let (Some(exact), Some(rounded)) = (of(exact, *token), of(rounded, *token)) else { continue };
        if exact.len() != found.len() {
            return Err(Error::invalid("logits", format!("expected {} of a row, found {}", exact.len(), found.len())));
        }
        let place = Place { token: *token, head: None, elements: found.len() };
        sums.row(place, &exact, found, None, Some(distance(&exact, &rounded)));
    }
    Ok(judge(LOGITS, &sums, Basis::Known, Heads::of_plan(plan), Mode::Cumulative))
}

/// Rows of final logits by position.
pub type Rowed = Vec<(usize, Vec<f32>)>;
