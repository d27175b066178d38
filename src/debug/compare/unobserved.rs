//! The run that nobody watches: the same tokens with nothing asked of any step, so that everything is fused and chosen as
//! users have it. What it gives are logits and choices, and these are judged. Its end is computed once more in steps of
//! several sequences, with some that begin with the same tokens, as a device may compute those by other kernels.

use super::judge::{Basis, judge};
use super::live::{self, Task};
use super::sums::{Place, Sums};
use super::{Align, Floors, Heads, Mode, NotJudged, Report, StageLine};
use crate::debug::dump::Dump;
use crate::debug::floor::{distance, estimate, further, numbers};
use crate::error::{Error, Result};
use crate::exec::{DECODE_TOKENS, Entry, Executor, Group, Pick, Read, Rows, Step, StepOutput, Tokens};
use crate::plan::{At, Plan, Stage};

/// Candidates that are read of the last choice, where a vocabulary has them.
const TOP: usize = 40;
const LOGITS: At = At { stage: Stage::LogitsFinal, layer: None };
const SAMPLED: At = At { stage: Stage::Sampled, layer: None };

/// How many of its tokens each other sequence reads in the first step of several: with the end of the run's own there are more
/// rows than any tile of matrix units has.
const NEIGHBOURS: [usize; 8] = [1, 2, 3, 4, 1, 2, 3, 4];

/// What a run gave that nobody watched.
#[derive(Debug, Clone)]
pub struct Unobserved {
    /// Rows of final logits by position: of the prompt's last token and of every decode step.
    pub logits: Rowed,
    /// Likewise of steps of several sequences, which all read the run's tokens, each from the beginning.
    pub together: Rowed,
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
        // Made first, as they are small: what comes later takes its room once.
        let mut others = Vec::new();
        for _ in NEIGHBOURS {
            others.push(executor.new_cache(DECODE_TOKENS + 1, DECODE_TOKENS)?);
        }
        let mut choices = StageLine { part: Some("unobserved".into()), ..StageLine::new(SAMPLED) };
        let mut logits = Vec::new();
        let rules = Pick { valid: executor.plan().vocab_size };
        let mut take = |token: usize, output: &mut StepOutput| logits.extend(taken(token, output, &mut choices));
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
        let prompt = task.prompt.len();
        let of_prompt = executor.plan().longrope_limit().is_some_and(|limit| prompt > limit);
        // The cache takes no larger steps than the run had.
        let own = DECODE_TOKENS.min(task.chunk.clamp(1, prompt));
        let together = Together { ids: &ids, own, long_rope, of_prompt };
        let together = together.run(executor, &mut cache, &mut others, &mut choices).await?;
        Ok(Some(Self { logits, together, choices, groups }))
    }
}

/// The final logits of a step's last token, which is at position `token`; its choice among them is added to `choices`.
fn taken(token: usize, output: &mut StepOutput, choices: &mut StageLine) -> Option<(usize, Vec<f32>)> {
    let row = output.logits.take()?;
    let best = top(&row, 1);
    choices.choice(token, [&best, &best], [best.first().map(|best| best.0), output.token]);
    Some((token, row))
}

/// Steps of several sequences.
struct Together<'a> {
    /// The run's tokens.
    ids: &'a [u32],
    /// How many of the last of them are read in the first step.
    own: usize,
    /// Whether the end of the run has the other factors of longrope, and whether its prompt had them.
    long_rope: bool,
    of_prompt: bool,
}

impl Together<'_> {
    /// Reads the run's last tokens, which `cache` holds, again: with `others`, each with as many tokens as `NEIGHBOURS` says, so that
    /// all rows together take more than one tile of matrix units; then with one of them.
    async fn run<E: Executor>(
        &self,
        executor: &E,
        cache: &mut E::Cache,
        others: &mut [E::Cache],
        choices: &mut StageLine,
    ) -> Result<Rowed> {
        let pick = Some(Pick { valid: executor.plan().vocab_size });
        let step = |ids, long_rope| Step { tokens: Tokens::Ids(ids), rows: Rows::Last, pick, read: Read::Logits, long_rope, requests: &[] };
        let mut rows = Vec::new();
        for (own, count, of_others) in [(self.own, NEIGHBOURS.len(), NEIGHBOURS), (1, 1, [1; NEIGHBOURS.len()])] {
            let (mut places, mut batch) = (Vec::new(), Vec::new());
            let begin = self.ids.len().saturating_sub(own);
            if executor.truncate(cache, begin) {
                places.push(self.ids.len() - 1);
                batch.push(Entry { cache: &mut *cache, step: step(&self.ids[begin..], self.long_rope) });
            }
            for (cache, tokens) in others.iter_mut().zip(of_others).take(count) {
                let begin = executor.len(cache);
                let end = (begin + tokens).min(self.ids.len());
                if begin < end {
                    places.push(end - 1);
                    batch.push(Entry { cache, step: step(&self.ids[begin..end], self.of_prompt) });
                }
            }
            for (token, pending) in places.into_iter().zip(executor.submit_batch(&mut batch)?) {
                rows.extend(taken(token, &mut executor.finish(pending).await?, choices));
            }
        }
        Ok(rows)
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
    let numbers = numbers(a.metadata.get("dtype").map(String::as_str))?;
    let judging = Judging { a, tokens: aligned.tokens, floors, imitated: numbers.imitated, oracle };
    let estimated = Basis::Estimated(estimate(numbers, plan.num_layers));
    let alone = judging.line(&run.logits, estimated, plan, "unobserved")?;
    let Some(alone) = alone else {
        report.not_judged.push(NotJudged::Unobserved);
        return Ok(report);
    };
    let tied = report.not_judged.iter().any(|left| matches!(left, NotJudged::NearTie { .. }));
    let observed_agrees = report.first_divergence.is_none() && !tied;
    let (rows, departs) = (alone.rows, alone.diverged);
    report.covers.push(format!("the unwatched run's logits at {rows} tokens and {} choices", run.choices.rows));
    report.add(alone);
    match judging.line(&run.together, estimated, plan, "together")? {
        Some(together) => {
            report.covers.push(format!("logits of {} steps of sequences together", together.rows));
            report.add(together);
        }
        None => report.not_judged.push(NotJudged::Together),
    }
    report.add(run.choices.clone());
    report.leave_out_ties();
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

/// What rows of final logits are judged by.
struct Judging<'d> {
    a: &'d Dump,
    /// Tokens that are compared.
    tokens: usize,
    floors: Floors<'d>,
    imitated: bool,
    oracle: Option<[&'d Rowed; 3]>,
}

impl Judging<'_> {
    /// The line of `found`; `None` where nothing is known of any row.
    fn line(&self, found: &Rowed, estimated: Basis, plan: &Plan, part: &str) -> Result<Option<StageLine>> {
        let of_a = self.a.parts(LOGITS).first().filter(|part| !part.sketch);
        let measured = matches!(self.floors, Floors::Measured(_)) && self.imitated;
        let (mut sums, mut basis, mut row) = (Sums::default(), if measured { Basis::Known } else { estimated }, Vec::new());
        for (token, found) in found.iter().filter(|(token, _)| *token < self.tokens) {
            let place = Place { token: *token, head: None, elements: found.len() };
            let exact = self.exact(*token, found.len())?;
            match of_a.filter(|part| *token < part.tokens && part.width == found.len()) {
                Some(part) => self.a.read_rows(part, *token..*token + 1, &mut row)?,
                None => {
                    let Some([exact, _, b]) = &exact else { continue };
                    basis = Basis::Known;
                    sums.row(place, exact, found, None, Some(distance(exact, b)));
                    continue;
                }
            }
            if measured && exact.is_none() {
                continue;
            }
            let exact = exact.as_ref().filter(|_| measured).map(|[exact, a, b]| [&exact[..], &a[..], &b[..]]);
            sums.row(place, &row, found, exact, None);
        }
        let line = judge(LOGITS, &sums, basis, Heads::of(plan, LOGITS), Mode::Cumulative);
        Ok((!sums.rows.is_empty()).then_some(StageLine { part: Some(part.into()), ..line }))
    }

    /// The oracles' rows of a token: of the prompt's end and of decode steps they are kept, of other tokens where the dumps have them.
    fn exact(&self, token: usize, width: usize) -> Result<Option<[Vec<f32>; 3]>> {
        let kept = |rows: &Rowed| rows.iter().find(|(t, _)| *t == token).map(|(_, row)| row.clone());
        if let Some([Some(exact), Some(a), Some(b)]) = self.oracle.map(|rows| rows.map(kept)) {
            return Ok(Some([exact, a, b]));
        }
        let Floors::Measured(dumps) = self.floors else { return Ok(None) };
        let mut found: [Vec<f32>; 5] = Default::default();
        for (dump, row) in dumps.into_iter().zip(&mut found) {
            let Some(part) = dump.parts(LOGITS).first().filter(|part| token < part.tokens && part.width == width) else { return Ok(None) };
            dump.read_rows(part, token..token + 1, row)?;
        }
        let [exact, a, b, a_again, b_again] = found;
        let [a, b] = [further(&exact, &a, &a_again).to_vec(), further(&exact, &b, &b_again).to_vec()];
        Ok(Some([exact, a, b]))
    }
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
    Ok(judge(LOGITS, &sums, Basis::Known, Heads::of(plan, LOGITS), Mode::Cumulative))
}

/// Rows of final logits by position.
pub type Rowed = Vec<(usize, Vec<f32>)>;
