//! Comparing with a run: the tokens that it reads, what is kept of it, and floors measured by oracles that read the same.
//! It loads nothing and shows nothing: who compares gives executors, and is told how far the work is.

use super::live::{self, Task};
use super::unobserved::{Rowed, Unobserved, judge_unobserved};
use super::{Align, Choice, Floors, NotJudged, OracleDumps, Report, align, blame, cumulative, lacking_layers};
use crate::debug::dump::{Dump, DumpObserver};
use crate::debug::floor::{further, numbers, of_storage};
use crate::error::{Error, Result};
use crate::exec::{Executor, Storage};
use crate::loader::NonFinite;
use crate::plan::{At, Node, Plan, Stage};

/// Tokens of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Tokens behind it, to be read as they are; where they end, the most likely one follows.
    pub forced: Vec<u32>,
    /// Tokens to read behind the prompt.
    pub steps: usize,
}

impl Tokens {
    /// Those of a dump; with `prompt_only` without what follows its prompt.
    ///
    /// # Errors
    /// `Kind::Format` for dumps whose ids are none.
    pub fn of(dump: &Dump, prompt_only: bool) -> Result<Self> {
        let (prompt, forced, steps) = live::of_dump(dump)?;
        Ok(Self { prompt, forced, steps: if prompt_only { 0 } else { steps } })
    }
    /// Runs them on `executor`, the prompt in steps of `chunk` tokens, and keeps the chosen values as a dump called `name`.
    /// `progress` is told how many of how many tokens are read.
    ///
    /// # Errors
    /// `Kind::Invalid` where the model has nothing that is chosen, for ids that it lacks and for no token at all; what
    /// the executor says.
    pub async fn record<E: Executor>(
        &self,
        executor: &E,
        chunk: usize,
        choice: &Choice,
        name: &str,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Dump> {
        let chosen: Vec<At> = executor.plan().nodes.iter().map(|node| node.at).filter(|at| choice.has(*at)).collect();
        if chosen.is_empty() {
            return Err(Error::invalid("stages", "the model has none of these stages in these layers"));
        }
        let observer = DumpObserver::of(executor.plan(), &chosen)?;
        let task = Task { prompt: &self.prompt, forced: &self.forced, steps: self.steps, chunk };
        live::record(executor, task, observer, name, progress).await
    }
    /// Runs them on `executor` with nothing asked of any step, as users' runs are.
    ///
    /// # Errors
    /// As `record`.
    pub async fn unobserved<E: Executor>(
        &self,
        executor: &E,
        chunk: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Unobserved>> {
        let task = Task { prompt: &self.prompt, forced: &self.forced, steps: self.steps, chunk };
        Unobserved::run(executor, task, progress).await
    }
    /// As `record`, with rows of final logits.
    async fn record_logits<E: Executor>(
        &self,
        executor: &E,
        chunk: usize,
        choice: &Choice,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Dump, Rowed)> {
        let chosen: Vec<At> = executor.plan().nodes.iter().map(|node| node.at).filter(|at| choice.has(*at)).collect();
        let observer = DumpObserver::of(executor.plan(), &chosen)?;
        let task = Task { prompt: &self.prompt, forced: &self.forced, steps: self.steps, chunk };
        live::record_logits(executor, task, observer, "oracle", progress).await
    }
    /// Bytes of the chosen values of a run of `plan`, as a dump holds them.
    pub fn bytes(&self, plan: &Plan, choice: &Choice) -> u64 {
        let (prompt, steps) = (self.prompt.len(), self.steps);
        let elements = |node: &Node| {
            let of = |tokens, positions| node.at.stage.layout().elements(node.width, tokens, positions);
            // The n-th decode step sees prompt + n positions, and elements are linear in them.
            of(prompt, prompt) + (of(1, prompt + 1) + of(1, prompt + steps)) * steps as u64 / 2
        };
        plan.nodes.iter().filter(|node| choice.has(node.at)).map(|node| elements(node) * 4).sum()
    }
}

/// Storage of the run behind a dump, as an oracle imitates it.
///
/// # Errors
/// `Kind::Invalid` for metadata with an unknown type.
pub fn storage_of(dump: &Dump) -> Result<Storage> {
    Ok(numbers(dump.metadata.get("dtype").map(String::as_str))?.storage)
}

/// What of a run is worth keeping beside `a`: what there is something to compare with.
pub fn worth_keeping(a: &Dump, choice: &Choice) -> Choice {
    let held: Vec<Stage> = a.held().into_iter().map(|at| at.stage).collect();
    Choice { stages: choice.stages.clone().or(Some(held)), layers: choice.layers.clone() }
}

/// As `align` where B is a run: it could compute everything, so what the dump A left out is no finding, but is said.
///
/// # Errors
/// As `align`.
pub fn align_run(a: &Dump, b: &Dump, names: [String; 2], plan: &Plan, choice: &Choice) -> Result<Align> {
    let mut aligned = align(a, b, names, Some(plan), choice)?;
    aligned.missing.retain(|missing| missing.side != "A");
    aligned.missing.extend(lacking_layers(&a.held(), plan, choice));
    // Tokens that the run was not asked to read are left out on purpose.
    aligned.not_judged.retain(|left| !matches!(left, NotJudged::Absent(_)));
    let held = a.held();
    let wanted: Vec<At> = plan.nodes.iter().map(|node| node.at).filter(|at| choice.has(*at)).collect();
    let found = wanted.iter().filter(|at| held.contains(at)).count();
    if found < wanted.len() {
        let text = format!("A holds {found} of the {} values that the model computes: the rest is not compared", wanted.len());
        aligned.notes.push(text);
    }
    Ok(aligned)
}

/// Runs of the oracles on the tokens of a comparison: its floors.
#[derive(Debug)]
pub struct Measured {
    exact: (Dump, Rowed),
    rounded: Vec<(Dump, Rowed)>,
    /// Those of `rounded` that round as A did, and B: the first, and the one with other roundings.
    of: [[usize; 2]; 2],
}

impl Measured {
    /// Runs `exact`, the oracle in f64, and `rounded`, those in f32 with the storage of each side (`Oracles`), on the
    /// tokens of `aligned`, in steps of `chunk` tokens. Values that the model lacks are taken out of `aligned`, which a
    /// note says. `progress` is told what is done, and how many of how many tokens of it.
    ///
    /// # Errors
    /// `Kind::Invalid` for metadata with an unknown type; what the executors say.
    pub async fn new<X: Executor, R: Executor>(
        (exact, rounded): (&X, &[R]),
        [a, b]: [&Dump; 2],
        aligned: &mut Align,
        choice: &Choice,
        chunk: usize,
        progress: &mut dyn FnMut(&str, usize, usize),
    ) -> Result<Self> {
        let plan = exact.plan();
        let foreign: Vec<At> = aligned.both.iter().copied().filter(|at| plan.find(*at).is_none()).collect();
        if !foreign.is_empty() {
            aligned.both.retain(|at| !foreign.contains(at));
            let list: Vec<String> = foreign.iter().map(ToString::to_string).collect();
            aligned.notes.push(format!("not compared, as the model does not have it: {}", list.join(", ")));
        }
        let mut tokens = Tokens::of(a, false)?;
        tokens.steps = aligned.tokens.saturating_sub(tokens.prompt.len());
        // Of the oracles too only what is compared.
        let stages = aligned.both.iter().map(|at| at.stage).collect();
        let choice = Choice { stages: Some(stages), layers: choice.layers.clone() };
        let what = "measuring the floor, f64";
        let exact = tokens.record_logits(exact, chunk, &choice, &mut |done, of| progress(what, done, of)).await?;
        let of = [of_storage(rounded, storage_of(a)?), of_storage(rounded, storage_of(b)?)];
        let (mut runs, what) = (Vec::with_capacity(rounded.len()), "measuring the floor, f32");
        for oracle in rounded {
            runs.push(tokens.record_logits(oracle, chunk, &choice, &mut |done, of| progress(what, done, of)).await?);
        }
        if runs.is_empty() {
            return Err(Error::invalid("oracle", "expected one in f32 for each storage, found none"));
        }
        Ok(Self { exact, rounded: runs, of })
    }
    /// The comparison of `sides` by these floors, and which side departs from what the model's files say.
    ///
    /// # Errors
    /// As `cumulative`.
    pub fn judge(&self, [a, b]: [&Dump; 2], aligned: &Align, plan: &Plan, progress: &mut dyn FnMut(usize, usize)) -> Result<Report> {
        let floors = self.floors();
        let report = cumulative(a, b, aligned, Floors::Measured(floors), Some(plan), progress)?;
        blame(report, [a, b], floors, plan)
    }
    /// Adds to `report` what a run gave that nobody watched.
    ///
    /// # Errors
    /// As `judge`.
    pub fn judge_unobserved(&self, report: Report, run: Option<&Unobserved>, a: &Dump, aligned: &Align, plan: &Plan) -> Result<Report> {
        let exact = &self.exact.1;
        let [of_a, of_b] = self.of.map(|[first, second]| further_of(exact, &self.rounded[first].1, &self.rounded[second].1));
        judge_unobserved(report, run, a, aligned, Floors::Measured(self.floors()), Some([exact, &of_a, &of_b]), plan)
    }
    fn floors(&self) -> OracleDumps<'_> {
        let [[a, a_again], [b, b_again]] = self.of.map(|of| of.map(|i| &self.rounded[i].0));
        [&self.exact.0, a, b, a_again, b_again]
    }
}

/// Of two oracles' rows of logits, those that are further from the exact ones.
pub fn further_of(exact: &Rowed, a: &Rowed, b: &Rowed) -> Rowed {
    let of = |rows: &Rowed, token: usize| rows.iter().find(|(t, _)| *t == token).map(|(_, row)| row.clone());
    let one = |(token, a): &(usize, Vec<f32>)| match (of(exact, *token), of(b, *token)) {
        (Some(exact), Some(b)) => (*token, further(&exact, a, &b).to_vec()),
        _ => (*token, a.clone()),
    };
    a.iter().map(one).collect()
}

impl Report {
    /// Notes weights that are no numbers, of which a comparison's model has some.
    pub fn note_weights(&mut self, non_finite: &[NonFinite]) {
        for NonFinite { tensor, nan, inf, .. } in non_finite {
            self.notes.push(format!("ANOMALY kind=non_finite_weights tensor={tensor} nan={nan} inf={inf}"));
        }
    }
}
