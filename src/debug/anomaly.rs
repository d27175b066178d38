//! Anomalies: named rules over the statistics of every value, the rows that tokens are chosen from and the tokens.
//! Like is compared with like: a stage with itself in the layers before, or with a recorded healthy profile of the
//! model, which then decides. Of a prompt every value is looked at but scores and probabilities: attention is watched by what goes
//! in and what comes out. Of a decode step, whose fusions would be lost to it, what the step makes anyhow.

mod all_zero;
mod dim_spike;
mod growth;
mod logits;
mod non_finite;
mod profile;
mod repeated;
mod untrained;

pub use profile::{Accepted, NEVER, Profile, Range};

use crate::config::runtime::Anomalies;
use crate::debug::logits_view::{LastRow, RowView, view};
use crate::debug::places;
use crate::debug::record::{Finding, Record, Sink};
use crate::debug::summary::Summary;
use crate::error::{Error, Result};
use crate::exec::{Content, Observed, Observer, Request, StepInfo, Want};
use crate::plan::{At, Op, Plan, Stage, ValueId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A rule: one file, one row here.
pub struct Rule {
    /// The `kind` of its findings.
    pub name: &'static str,
    /// What it finds.
    pub about: &'static str,
    check: fn(&StepView<'_>, &mut Margins) -> Vec<Finding>,
}

/// Every rule, in the order in which a step is checked.
pub const RULES: &[Rule] = &[
    Rule { name: "non_finite", about: "NaN or Inf; the first stage that has any", check: non_finite::check },
    Rule { name: "all_zero", about: "a value that is zero everywhere although its inputs are not", check: all_zero::check },
    Rule { name: "explosion", about: "a stage far larger than in the layers before, or than in the profile", check: growth::explosion },
    Rule { name: "collapse", about: "a stage far smaller than in the layers before, or than in the profile", check: growth::collapse },
    Rule { name: "dim_spike", about: "one dimension that outweighs all others through all layers", check: dim_spike::check },
    Rule { name: "pad_wins", about: "the highest logit is that of PAD", check: logits::pad_wins },
    Rule { name: "padded_row_wins", about: "the highest logit is that of a row beyond the vocabulary", check: logits::padded_row_wins },
    Rule { name: "flat", about: "the logits tell next to nothing: destroyed probabilities", check: logits::flat },
    Rule { name: "saturated", about: "logits at their cap, or certainty step after step", check: logits::saturated },
    Rule { name: "repeated_tokens", about: "the same tokens again and again", check: repeated::check },
    Rule { name: "untrained", about: "the same two, of a model whose norms are as initialised: no fault", check: untrained::check },
];

/// What counts as an anomaly.
#[derive(Debug, Clone)]
pub struct AnomalyOptions {
    /// Position after the prompt's last token.
    pub prompt_end: usize,
    /// Ids from here on are padding of the head.
    pub valid_vocab: usize,
    /// The padding id; `None` too where it is also an end-of-sequence id, which may well win.
    pub pad: Option<u32>,
    /// End-of-sequence ids: repeated, they are no finding.
    pub eos: Vec<u32>,
    /// Growth (or its inverse) against the layers before that is an explosion (or a collapse).
    pub factor: f64,
    /// Growth against the profile's range.
    pub profile_factor: f64,
    /// A healthy run of this model; decides on the values that it holds.
    pub profile: Option<Profile>,
    /// Repetitions of the same tokens.
    pub repetitions: usize,
    /// End the generation at the first finding, with an error of `Kind::Finding`.
    pub stop: bool,
}

impl AnomalyOptions {
    /// The usual thresholds; no profile, no PAD, no stop.
    pub fn new(prompt_end: usize, valid_vocab: usize) -> Self {
        Self {
            prompt_end,
            valid_vocab,
            pad: None,
            eos: Vec::new(),
            factor: 10.0,
            profile_factor: 8.0,
            profile: None,
            repetitions: 8,
            stop: false,
        }
    }
    /// The thresholds of a runtime config; no profile, no stop. `eos` are end-of-sequence ids, raw runs too.
    pub fn of(config: &Anomalies, prompt_end: usize, valid_vocab: usize, pad: Option<u32>, eos: &[u32]) -> Self {
        let Anomalies { enabled: _, factor, profile_factor, repetitions } = *config;
        Self { pad, eos: eos.to_vec(), factor, profile_factor, repetitions, ..Self::new(prompt_end, valid_vocab) }
    }
}

/// How near a run came to the thresholds: what a quiet run was quiet by.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Margins {
    /// Largest growth of a stage over all layers before (threshold: the factor).
    pub explosion: f64,
    /// Its place.
    #[serde(skip)]
    pub explosion_at: Option<At>,
    /// Largest fall below all layers before, inverted (threshold: the factor).
    pub collapse: f64,
    /// Its place.
    #[serde(skip)]
    pub collapse_at: Option<At>,
    /// Largest share of the stream's energy in one dimension that leads in every layer (threshold 0.5).
    pub spike: f64,
    /// Largest entropy as a share of its maximum (threshold `logits::FLAT`).
    pub flat: f64,
    /// Smallest entropy, in nats.
    pub entropy: Option<f64>,
    /// Most repetitions of the same tokens.
    pub repetitions: usize,
}

/// A value and its statistics.
struct Watched {
    id: ValueId,
    at: At,
    stats: Summary,
}

/// The row of `logits_final` that a token is chosen from.
struct LogitsRow {
    token: usize,
    length: usize,
    view: RowView,
    /// Logits equal to the highest.
    ties: usize,
}

/// One step, as rules see it.
struct StepView<'s> {
    plan: &'s Plan,
    options: &'s AnomalyOptions,
    decode_step: usize,
    tokens: usize,
    first_token: usize,
    /// In the plan's order, up to the first that is not finite: what follows only inherits. That one is the last.
    values: Vec<Watched>,
    /// Indices of `values`, by layer, for every stage.
    by_stage: BTreeMap<Stage, Vec<usize>>,
    row: Option<LogitsRow>,
    history: &'s History,
    /// Ranges of the steps before.
    seen: &'s Profile,
}

/// What earlier steps left.
#[derive(Debug, Default)]
struct History {
    /// Tokens chosen so far, this step's included.
    generated: Vec<u32>,
    /// Findings of earlier steps, by kind.
    found: Vec<(&'static str, ValueId)>,
    /// Steps in a row that were certain, before this one.
    certain: usize,
    /// Dimension that outweighed all others in every layer, by step.
    spikes: Vec<usize>,
}

impl StepView<'_> {
    /// The statistics of `at` in this step.
    fn stats(&self, at: At) -> Option<&Summary> {
        self.of(at.stage).find(|v| v.at == at).map(|v| &v.stats)
    }
    /// The values of a stage, by layer.
    fn of(&self, stage: Stage) -> impl Iterator<Item = &Watched> {
        self.by_stage.get(&stage).into_iter().flatten().filter_map(|i| self.values.get(*i))
    }
    /// Whether one of the values that `id` reads is among `found`. Values that only pass on another, that are not watched
    /// or that are not among `telling` are looked through.
    fn reads_one_of(&self, id: ValueId, found: &[ValueId], telling: &BTreeSet<ValueId>) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = self.plan.node(id).inputs.clone();
        while let Some(id) = open.pop() {
            if found.contains(&id) {
                return true;
            }
            let node = self.plan.node(id);
            if seen.insert(id) && (node.op == Op::Same || !telling.contains(&id)) {
                open.extend(&node.inputs);
            }
        }
        false
    }
}

/// Checks every step against every rule, emits each new finding as a `Record::Anomaly`, and keeps a profile of the run.
pub struct AnomalyObserver<'a> {
    plan: &'a Plan,
    ids: BTreeMap<At, ValueId>,
    options: AnomalyOptions,
    requests: Vec<Request>,
    rows: Vec<LastRow>,
    head_dims: BTreeMap<At, usize>,
    history: History,
    findings: Vec<Finding>,
    margins: Margins,
    profile: Profile,
    sink: Sink<'a>,
}

impl<'a> AnomalyObserver<'a> {
    /// An observer of one prompt and its decode steps.
    pub fn new(plan: &'a Plan, options: AnomalyOptions, sink: Sink<'a>) -> Self {
        let mut stages = plan.stages();
        // What is cached is seen on its way there.
        let cached = |stage: &Stage| plan.nodes.iter().any(|node| node.at.stage == *stage && node.op.appends());
        stages.retain(|stage| !cached(stage));
        // Numbers of experts have no size that could be odd.
        stages.retain(|stage| *stage != Stage::ChosenExperts);
        stages.retain(|stage| stage.layout().is_rows() && !matches!(stage, Stage::Logits | Stage::LogitsFinal));
        let requests = stages.into_iter().map(|stage| Request { stage, layers: None, want: Want::Stats }).collect();
        // Logits: only the row a token is chosen from. A decode step has just that one.
        let rows = [Stage::Logits, Stage::LogitsFinal].iter().filter_map(|s| LastRow::new(plan, *s, options.prompt_end)).collect();
        let ids = plan.nodes.iter().enumerate().map(|(i, node)| (node.at, ValueId(i))).collect();
        let (head_dims, history, margins) = (places::head_dims(plan), History::default(), Margins::default());
        Self { plan, ids, options, requests, rows, head_dims, history, findings: Vec::new(), margins, profile: Profile::default(), sink }
    }
    /// Everything found so far.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }
    /// How near the run came to the thresholds.
    pub fn margins(&self) -> Margins {
        self.margins
    }
    /// The run's ranges, with what was found as accepted: the profile of a model that is known to be healthy.
    pub fn profile(&self) -> Profile {
        let mut profile = self.profile.clone();
        profile.accept(&self.findings);
        profile
    }

    /// The step as rules see it.
    fn step_view(&self, step: StepInfo<'_>, values: &[Observed]) -> StepView<'_> {
        let (decode_step, tokens) = (step.decode_step, step.tokens.len());
        let (plan, options, history, seen, first_token) = (self.plan, &self.options, &self.history, &self.profile, step.first_token);
        let (values_of_step, by_stage) = (Vec::with_capacity(values.len()), BTreeMap::new());
        let mut step_view =
            StepView { plan, options, decode_step, tokens, first_token, values: values_of_step, by_stage, row: None, history, seen };
        let last = (step.first_token + tokens).saturating_sub(1);
        for value in values {
            let row = self.rows.iter().find_map(|row| row.of(step, value));
            let stats = match (&value.content, &row) {
                (Content::Stats(stats), _) => {
                    Some(Summary::new(stats, value.at, value.first_token, tokens, self.head_dims.get(&value.at).copied()))
                }
                (_, Some(row)) if step.decode_step == 0 => {
                    Some(Summary::new(&crate::cpu::stats::stats(row, row.len()), value.at, last, 1, None))
                }
                _ => None,
            };
            if let (Stage::LogitsFinal, Some(row)) = (value.at.stage, row) {
                let view = view(&row, 1);
                let ties = view.top.first().map_or(0, |best| row.iter().filter(|x| **x == best.1).count());
                step_view.row = Some(LogitsRow { token: last, length: row.len(), view, ties });
            }
            let Some(stats) = stats else { continue };
            let inherits = step_view.values.last().is_some_and(|v| v.stats.nan + v.stats.inf > 0);
            if let (Some(id), false) = (self.ids.get(&value.at), inherits) {
                step_view.by_stage.entry(value.at.stage).or_default().push(step_view.values.len());
                step_view.values.push(Watched { id: *id, at: value.at, stats });
            }
        }
        step_view
    }
    /// Whether a finding is news: not one of an earlier step again, and not part of the model's healthy profile.
    fn is_new(&self, finding: &Finding) -> bool {
        let known = |f: &&Finding| f.kind == finding.kind && (f.at == finding.at || f.kind == "non_finite");
        !self.findings.iter().any(|f| known(&f)) && !self.options.profile.as_ref().is_some_and(|p| p.accepts(finding))
    }
}

impl Observer for AnomalyObserver<'_> {
    fn requests(&self, decode_step: usize) -> Vec<Request> {
        // A prompt's statistics would need every row. After it, only the row that a token is chosen from is looked at whole.
        let whole = |row: &&LastRow| decode_step == 0 || row.stage() == Stage::LogitsFinal;
        let rows = self.rows.iter().filter(whole).map(|row| row.request(decode_step));
        let reduced = self.rows.iter().filter(|_| decode_step > 0);
        let reduced = reduced.map(|row| Request { stage: row.stage(), layers: None, want: Want::Stats });
        let want = if decode_step == 0 { Want::Stats } else { Want::StatsIfMade };
        let values = self.requests.iter().map(|request| Request { want: want.clone(), ..request.clone() });
        values.chain(rows).chain(reduced).collect()
    }
    fn observe(&mut self, step: StepInfo<'_>, values: Vec<Observed>) -> Result<()> {
        self.history.generated.extend(step.chosen);
        let mut margins = self.margins;
        let step_view = self.step_view(step, &values);
        let mut found: Vec<Finding> = RULES.iter().flat_map(|rule| (rule.check)(&step_view, &mut margins)).collect();
        // Causes before what follows from them; findings about tokens last.
        found.sort_by_key(|f| f.at.and_then(|at| self.ids.get(&at)).map_or(usize::MAX, |id| id.0));
        let (spike, certain) = (dim_spike::leading(&step_view).map(|(dim, _)| dim), logits::is_certain(&step_view));
        let ranges: Vec<(At, Summary)> = step_view.values.iter().map(|v| (v.at, v.stats)).collect();
        self.history.spikes.extend(spike);
        self.history.certain = if certain { self.history.certain + 1 } else { 0 };
        self.margins = margins;
        self.profile.widen(step.decode_step, &ranges);
        let mut first = None;
        for finding in found {
            if self.is_new(&finding) {
                self.history.found.extend(finding.at.and_then(|at| Some((finding.kind, *self.ids.get(&at)?))));
                self.sink.put(Record::Anomaly(finding.clone()))?;
                first = first.or_else(|| Some((finding.text(), finding.at)));
                self.findings.push(finding);
            }
        }
        match first {
            Some((text, at)) if self.options.stop => {
                let error = Error::finding(format!("stopped at the first finding: {text}"));
                Err(at.map_or(error.clone(), |at| error.on(at.about())))
            }
            _ => Ok(()),
        }
    }
}

/// The values around `at` that explain it, in the plan's order: what it reads, itself, what reads it, and
/// the residual stream around its layer. A finding's run is repeated with these dumped.
pub fn surroundings(plan: &Plan, at: At) -> Vec<At> {
    let Some(id) = plan.find(at) else { return Vec::new() };
    let stream =
        |n: &crate::plan::Node| matches!(n.at.stage, Stage::LayerIn | Stage::LayerOut) && n.at.layer.is_some() && n.at.layer == at.layer;
    let near = |i: &usize| {
        let node = &plan.nodes[*i];
        *i == id.0 || plan.node(id).inputs.contains(&ValueId(*i)) || node.inputs.contains(&id) || stream(node)
    };
    (0..plan.nodes.len()).filter(near).map(|i| plan.nodes[i].at).collect()
}

#[cfg(test)]
mod tests;
