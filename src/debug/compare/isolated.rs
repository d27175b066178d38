//! Each op alone: an executor computes it on the reference's own inputs, and its output is held against the reference's.
//! What is wrong then shows in the op that is wrong, and not in those that inherit it. The floor is that of the op: both
//! oracles on the same inputs.
//!
//! A run that nobody watches computes some ops together, and some by other kernels in decode than in the prompt. Those
//! kernels are judged too (`Executor::groups`), with the cache that they leave and the choice among logits: lines with a
//! `part`. What the reference lacks is computed from what it holds: a value then stands for all ops since.

use super::alone::{Caches, Work};
use super::judge::{Basis, judge};
use super::sums::Sums;
use super::{Align, Heads, Missing, Mode, NotJudged, Report, StageLine};
use crate::debug::compare::align::{Choice, held_as, lacking_layers};
use crate::debug::dump::Dump;
use crate::debug::floor::{Oracles, estimate, numbers};
use crate::error::{Error, Result};
use crate::exec::{Executor, Group, reads};
use crate::plan::{Plan, Stage, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Evaluates the chosen ops of `executor` on the values of `reference`. `names` are those of the reference and of the
/// run. `progress` is told how many of how many ops are done.
///
/// # Errors
/// `Kind::Invalid` where the reference has sketches in place of values, or nothing of what is chosen. What the executors
/// say.
pub async fn isolated<E: Executor>(
    reference: &Dump,
    executor: &E,
    oracles: &Oracles,
    names: [String; 2],
    choice: &Choice,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    let plan = executor.plan();
    choice.check(plan.nodes.iter().map(|node| &node.at), "the model does not have")?;
    let prompt = reference.input_ids()?;
    let mut align = Align { names, prompt: prompt.len(), ..Align::default() };
    let held = Held::of(reference, plan, choice, &prompt, &mut align)?;
    let dtype = reference.metadata.get("dtype").map(String::as_str);
    let numbers = numbers(dtype)?;
    let basis = if numbers.imitated { Basis::Known } else { Basis::Estimated(estimate(numbers, 0)) };
    let generated = reference.generated_ids()?.unwrap_or_default();
    let ids: Vec<u32> = prompt.iter().chain(&generated).copied().collect();
    align.tokens = align.tokens.min(ids.len());
    let (tokens, crossing) = (align.tokens, crossing(plan, prompt.len(), align.tokens));
    let work = Work { reference, executor, oracles, ids, numbers, prompt: prompt.len(), tokens, crossing };
    let groups = executor.groups()?;
    let mut found = Found { plan, basis, lines: Vec::new() };
    let mut caches = Caches::default();
    for (i, id) in held.chosen.iter().enumerate() {
        progress(i, held.chosen.len());
        let at = plan.node(*id).at;
        let nodes = held.needed(plan, *id);
        let judged = if nodes[..] == [*id] {
            found.op(*id, work.op(*id).await, None)
        } else {
            let since: Vec<String> = reads(plan, &nodes).iter().map(|id| plan.node(*id).at.stage.to_string()).collect();
            let since = if since.is_empty() { "ids".to_string() } else { since.join("+") };
            work.whole(&nodes, &mut caches).await.map(|whole| found.whole(*id, whole, &format!("since.{since}")))
        };
        judged.map_err(|e| e.within(at))?;
        // What a group leaves in a cache is read when its last value is judged.
        let own = groups.iter().filter(|group| group.makes.contains(id) && !plan.node(*id).op.appends());
        for group in own.filter(|group| held.has_all(&reads(plan, &group.nodes))) {
            found.group(*id, group, &work, &mut caches).await.map_err(|e| e.within(format!("{at} ({})", group.name)))?;
        }
    }
    progress(held.chosen.len(), held.chosen.len());
    let logits = plan.nodes.len().checked_sub(1).map(ValueId).filter(|id| held.chosen.contains(id));
    if let Some(id) = logits.filter(|_| !groups.is_empty()) {
        found.lines.push(work.choices(id, &mut caches).await?);
    }
    if let Some(limit) = work.crossing {
        align.not_judged.extend(after(plan, &held.chosen, limit, work.tokens));
    }
    work.covered(&mut align, &groups);
    align.missing = held.missing;
    align.missing.extend(extra(reference, plan, choice));
    let storage = [numbers.storage, executor.storage()].map(|s| s.activations.to_string());
    let mut floor =
        format!("measured: every op in f64 against f32 on the same inputs, with {} (A) and {} (B) storage", storage[0], storage[1]);
    if !numbers.imitated {
        floor = format!(
            "ESTIMATED, not measured, from the type that the metadata names ({}), in which the oracle does not compute; give a float32 dump to have it measured",
            numbers.name
        );
    }
    let mut lines = found.lines;
    lines.sort_by_key(|line| plan.find(line.at).map_or(usize::MAX, |id| id.0));
    Ok(Report::new(&align, Mode::Isolated, floor, lines))
}

/// The lines so far.
struct Found<'p> {
    plan: &'p Plan,
    basis: Basis,
    lines: Vec<StageLine>,
}

impl Found<'_> {
    fn line(&mut self, id: ValueId, sums: &Sums, part: Option<&str>) {
        if !sums.rows.is_empty() {
            let at = self.plan.node(id).at;
            let line = judge(at, sums, self.basis, Heads::of(self.plan, at), Mode::Isolated);
            self.lines.push(StageLine { part: part.map(str::to_string), ..line });
        }
    }
    fn op(&mut self, id: ValueId, sums: Result<Sums>, part: Option<&str>) -> Result<()> {
        sums.map(|sums| self.line(id, &sums, part))
    }
    /// What some nodes made in prompt and decode, and what they left in the cache.
    fn whole(&mut self, id: ValueId, whole: super::alone::Whole, name: &str) {
        for (sums, step) in whole.sums.iter().zip(["prompt", "decode"]) {
            self.line(id, sums, Some(&format!("{name}.{step}")));
        }
        for (value, [prompt, decode]) in &whole.cached {
            self.line(*value, prompt, Some("cache.prompt"));
            self.line(*value, decode, Some("cache.decode"));
        }
    }
    /// What a group makes of `id` as steps compute it that nobody watches.
    async fn group<E: Executor>(&mut self, id: ValueId, group: &Group, work: &Work<'_, E>, caches: &mut Caches<E::Cache>) -> Result<()> {
        // What is wanted comes last.
        let nodes: Vec<ValueId> = group.nodes.iter().copied().filter(|node| *node != id).chain([id]).collect();
        if group.by_size {
            for (blocks, part) in work.other_sizes() {
                self.op(id, work.blocks_of(id, &blocks).await, Some(part))?;
            }
        }
        if nodes.len() > 1 {
            let whole = work.whole(&nodes, caches).await?;
            self.whole(id, whole, &group.name);
        }
        if group.together {
            let sums = work.together(&nodes, caches).await;
            self.op(id, sums, Some(&format!("{}.together", group.name)))?;
        }
        Ok(())
    }
}

/// The token at which a longrope model changed its factors while the tokens were generated: rows from it on were computed
/// with keys and values that the dump does not hold, as everything before was then read again.
fn crossing(plan: &Plan, prompt: usize, tokens: usize) -> Option<usize> {
    plan.longrope_limit().filter(|limit| prompt <= *limit && tokens > *limit)
}

/// What cannot be judged after the factors changed.
fn after(plan: &Plan, chosen: &[ValueId], first: usize, tokens: usize) -> Option<NotJudged> {
    let history = |id: &&ValueId| plan.node(**id).op.reads_state().is_some();
    let stages: BTreeSet<Stage> = chosen.iter().filter(history).map(|id| plan.node(*id).at.stage).collect();
    (!stages.is_empty()).then(|| NotJudged::AfterCrossing { stages: stages.into_iter().collect(), first, last: tokens - 1 })
}

/// What the reference has of the model's values.
struct Held {
    held: Vec<bool>,
    /// Values to judge, in the plan's order.
    chosen: Vec<ValueId>,
    /// Chosen values of stages that the reference has in other layers.
    missing: Vec<Missing>,
}

impl Held {
    fn has_all(&self, values: &[ValueId]) -> bool {
        values.iter().all(|id| self.held[id.0])
    }

    /// The nodes that make `id` of what is held, in the plan's order.
    fn needed(&self, plan: &Plan, id: ValueId) -> Vec<ValueId> {
        let (mut nodes, mut open) = (BTreeSet::new(), vec![id]);
        while let Some(id) = open.pop() {
            if nodes.insert(id) {
                open.extend(plan.node(id).inputs.iter().filter(|input| !self.held[input.0]));
            }
        }
        nodes.into_iter().collect()
    }

    /// Looks what there is of the chosen values; sets how many tokens it has.
    fn of(reference: &Dump, plan: &Plan, choice: &Choice, prompt: &[u32], align: &mut Align) -> Result<Self> {
        if let Some(id) = prompt.iter().find(|id| **id as usize >= plan.vocab_size) {
            let text = format!("the dump has id {id}, but the model has {} ids: it is of another model", plan.vocab_size);
            return Err(Error::invalid("input_ids", text));
        }
        let wanted: Vec<ValueId> = (0..plan.nodes.len()).map(ValueId).filter(|id| choice.has(plan.node(*id).at)).collect();
        let part = |id: &ValueId| reference.parts(held_as(reference, plan, plan.node(*id).at)).first();
        let held: Vec<bool> = (0..plan.nodes.len()).map(|i| part(&ValueId(i)).is_some_and(|part| !part.sketch)).collect();
        let chosen: Vec<ValueId> = wanted.iter().copied().filter(|id| held[id.0]).collect();
        sketched(plan, &wanted, &part)?;
        nothing_of(plan, &wanted, &chosen, choice)?;
        let this = Self { missing: lacking_layers(&reference.held(), plan, choice), held, chosen };
        let mut needed: BTreeSet<ValueId> = this.chosen.iter().copied().collect();
        this.chosen.iter().for_each(|id| needed.extend(reads(plan, &this.needed(plan, *id))));
        let mut tokens = usize::MAX;
        for id in needed {
            let (node, Some(part)) = (plan.node(id), part(&id)) else { continue };
            let scores = node.at.stage.layout().is_scores();
            let (found, what) = if scores { (part.heads, "heads") } else { (part.width, "elements per token") };
            if found != node.width {
                let text =
                    format!("`{}` has {found} {what} in the dump, {} in the model: these are different models", node.at.key(), node.width);
                return Err(Error::invalid("widths", text));
            }
            let steps = reference.parts(node.at).iter().map(|part| part.step).max().unwrap_or(0);
            tokens = tokens.min(if scores && steps > 0 { prompt.len() + steps } else { part.tokens });
        }
        align.tokens = if tokens == usize::MAX { prompt.len() } else { tokens };
        if align.tokens < prompt.len() || prompt.is_empty() {
            let text = format!("the dump has values of {} of its {} prompt tokens", align.tokens, prompt.len());
            return Err(Error::invalid("tokens", text));
        }
        let (found, of) = (this.chosen.len(), wanted.len());
        if found < of {
            align.notes.push(format!(
                "A holds {found} of the {of} values that the model computes: the others are computed from these, and judged by what they lead to"
            ));
        }
        Ok(this)
    }
}

/// Refuses sketches: an op needs values.
fn sketched<'d>(plan: &Plan, wanted: &[ValueId], part: &dyn Fn(&ValueId) -> Option<&'d crate::debug::dump::Part>) -> Result<()> {
    let mut sketched: BTreeMap<Stage, BTreeSet<usize>> = BTreeMap::new();
    for id in wanted.iter().flat_map(|id| plan.node(*id).inputs.iter().chain([id])) {
        if part(id).is_some_and(|part| part.sketch) {
            sketched.entry(plan.node(*id).at.stage).or_default().extend(plan.node(*id).at.layer);
        }
    }
    let list: Vec<String> = sketched
        .into_iter()
        .map(|(stage, layers)| {
            let layers: Vec<usize> = layers.into_iter().collect();
            if layers.is_empty() { stage.to_string() } else { format!("{stage} (layers {})", super::text::ranges(&layers)) }
        })
        .collect();
    if list.is_empty() {
        return Ok(());
    }
    let text = format!(
        "the dump has sketches, not values, of {}; write it again without --sketch, or choose stages and layers that it has",
        list.join(", ")
    );
    Err(Error::invalid("isolated", text))
}

/// Refuses a choice of which the reference has nothing, and stages that were named and are not there.
fn nothing_of(plan: &Plan, wanted: &[ValueId], chosen: &[ValueId], choice: &Choice) -> Result<()> {
    let has = |stage: &Stage| chosen.iter().any(|id| plan.node(*id).at.stage == *stage);
    if let Some(stage) = choice.stages.iter().flatten().find(|stage| !has(stage)) {
        return Err(Error::invalid("isolated", format!("the dump has no values of `{stage}`; write it again with all stages")));
    }
    if chosen.is_empty() {
        let what = if wanted.is_empty() { "no op of the model is chosen" } else { "the dump has no value that the model computes" };
        return Err(Error::invalid("isolated", what));
    }
    Ok(())
}

/// Values of the reference that the model does not compute.
fn extra(reference: &Dump, plan: &Plan, choice: &Choice) -> Vec<Missing> {
    let mut stages: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for at in reference.held().into_iter().filter(|at| choice.has(*at) && plan.find(*at).is_none()) {
        stages.entry(at.stage).or_default().extend(at.layer);
    }
    stages.into_iter().map(|(stage, layers)| Missing { stage: stage.name(), layers, side: "B" }).collect()
}
