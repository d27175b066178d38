//! Trying changes: the model with some edits, held against the reference op by op, or from end to end.

use crate::debug::compare::run::{Measured, Tokens, align_run, storage_of, worth_keeping};
use crate::debug::compare::{Choice, Report, StageLine, isolated};
use crate::debug::dump::Dump;
use crate::debug::floor::Oracles;
use crate::debug::weight_source::{Edited, InConvention, Stored, WeightSource, bands};
use crate::error::Result;
use crate::exec::WeightSink;
use crate::formats::ByteSource;
use crate::inference::pipeline;
use crate::loader::{Checkpoint, Matched, match_slots};
use crate::model::{ModelConfig, Resolved};
use crate::plan::edit::{Edit, Slot, weight::Change};
use crate::plan::{At, Op, Plan, ValueId, WeightId};
use std::collections::BTreeSet;

/// A model that is examined.
#[derive(Debug)]
pub struct Patient<'a, S> {
    /// Name for people.
    pub name: String,
    /// Its config, with sources.
    pub resolved: &'a Resolved,
    /// Its files.
    pub checkpoint: &'a Checkpoint<S>,
    /// A right copy, where the reference is one.
    pub right: Option<&'a Right<'a, S>>,
}

/// The weights of a right copy of a model.
#[derive(Debug)]
pub struct Right<'a, S> {
    /// Its plan.
    pub plan: &'a Plan,
    /// Its weights.
    pub weights: Stored<'a, S>,
}

impl<'a, S> Patient<'a, S> {
    /// A model without a right copy.
    pub fn new(name: &str, resolved: &'a Resolved, checkpoint: &'a Checkpoint<S>) -> Self {
        Self { name: name.to_string(), resolved, checkpoint, right: None }
    }
    /// The same model under another config.
    pub fn with_config<'b>(&'b self, resolved: &'b Resolved) -> Patient<'b, S> {
        Patient { right: self.right, ..Patient::new(&self.name, resolved, self.checkpoint) }
    }
}

/// A model with edits.
#[derive(Debug)]
pub struct Trial {
    /// Its config.
    pub config: ModelConfig,
    /// Its plan.
    pub plan: Plan,
    /// Where its weights are.
    pub matched: Matched,
    /// Changes of its weights.
    pub changes: Vec<(Slot, Change)>,
}

impl Trial {
    /// The model of `patient` with `edits`. No weight is read yet.
    ///
    /// # Errors
    /// Where the edits give no model of these files.
    pub fn new<S>(patient: &Patient<'_, S>, edits: &[Edit]) -> Result<Self> {
        let (config, plan) = pipeline::edited(&patient.resolved.config, edits)?;
        let of_weight = |edit: &Edit| if let Edit::Weight(slot, change) = edit { Some((*slot, change.clone())) } else { None };
        let changes = edits.iter().filter_map(of_weight).collect();
        // What the plan leaves out is told where the model is opened.
        let matched = match_slots(&plan, &config.tensors, &patient.checkpoint.index, true)?;
        Ok(Self { config, plan, matched, changes })
    }
    /// The weights as stored.
    pub fn stored<'s, S>(&'s self, patient: &'s Patient<'_, S>) -> Stored<'s, S> {
        Stored { checkpoint: patient.checkpoint, matched: &self.matched }
    }
    /// The weights with the edits; `stored` is `self.stored(patient)`.
    pub fn edited<'s, S: ByteSource>(&'s self, patient: &'s Patient<'s, S>, stored: &'s Stored<'s, S>) -> Edited<'s, Stored<'s, S>> {
        Edited::new(stored, &self.plan, &self.changes).with_right(patient.right.map(|right| (&right.weights, right.plan)))
    }
    /// The tensor of a weight, by its name in the checkpoint.
    pub fn tensor<S>(&self, patient: &Patient<'_, S>, slot: Slot) -> Option<String> {
        let placed = &self.matched.weights[slot.find(&self.plan)?.0];
        patient.checkpoint.index.entries().get(placed.tensor).map(|entry| entry.name.clone())
    }
    /// Oracles with the weights that `nodes` read.
    async fn oracles<S: ByteSource>(
        &self,
        patient: &Patient<'_, S>,
        reference: &Dump,
        nodes: impl Iterator<Item = ValueId>,
    ) -> Result<Oracles> {
        let mut oracles = Oracles::new(&self.plan, &[storage_of(reference)?])?;
        let stored = self.stored(patient);
        let edited = self.edited(patient, &stored);
        let needed: BTreeSet<WeightId> = nodes.flat_map(|id| self.plan.node(id).op.weights()).collect();
        for id in needed {
            self.put(&edited, id, &mut oracles).await?;
        }
        Ok(oracles)
    }
    /// Gives `sink` all rows of a weight.
    async fn put<W: WeightSource>(&self, source: &W, id: WeightId, sink: &mut impl WeightSink) -> Result<()> {
        for rows in bands(&self.plan.weights[id.0], 64 << 20) {
            let first = rows.start;
            let (format, bytes) = source.rows(id, rows).await?;
            sink.put(id, format, first, bytes).map_err(|e| e.within(self.plan.weights[id.0].label()))?;
        }
        Ok(())
    }
    /// Gives `sink` all weights, which are those of the plan `from`, as this plan reads them.
    ///
    /// # Errors
    /// What the files and the sink report.
    pub async fn load_in_convention<S: ByteSource>(&self, patient: &Patient<'_, S>, from: &Plan, sink: &mut impl WeightSink) -> Result<()> {
        let stored = self.stored(patient);
        self.put_all(&InConvention::new(&stored, from, &self.plan), sink).await
    }
    /// Gives `sink` all rows of all weights.
    async fn put_all<W: WeightSource>(&self, source: &W, sink: &mut impl WeightSink) -> Result<()> {
        for id in (0..self.plan.weights.len()).map(WeightId) {
            self.put(source, id, sink).await?;
        }
        Ok(())
    }
    /// Gives `sink` all weights.
    ///
    /// # Errors
    /// What the files and the sink report.
    pub async fn load<S: ByteSource>(&self, patient: &Patient<'_, S>, sink: &mut impl WeightSink) -> Result<()> {
        let stored = self.stored(patient);
        self.put_all(&self.edited(patient, &stored), sink).await
    }
    /// The chosen ops on the reference's inputs.
    ///
    /// # Errors
    /// Those of `isolated`.
    pub async fn judge<S: ByteSource>(
        &self,
        patient: &Patient<'_, S>,
        reference: &Dump,
        choice: &Choice,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Report> {
        let nodes = self.needed(reference, choice);
        let oracles = self.oracles(patient, reference, nodes.into_iter()).await?;
        let executor = &oracles.rounded[0];
        isolated(reference, executor, &oracles, [reference.name().into(), patient.name.clone()], choice, progress).await
    }
    /// The chosen ops, and those that compute for them what the reference lacks.
    fn needed(&self, reference: &Dump, choice: &Choice) -> BTreeSet<ValueId> {
        let held = |id: ValueId| reference.parts(self.plan.node(id).at).first().is_some_and(|part| !part.sketch);
        let mut open: Vec<ValueId> =
            (0..self.plan.nodes.len()).map(ValueId).filter(|id| choice.has(self.plan.node(*id).at) && held(*id)).collect();
        let mut needed = BTreeSet::new();
        while let Some(id) = open.pop() {
            if needed.insert(id) {
                open.extend(self.plan.node(id).inputs.iter().copied().filter(|input| !held(*input)));
            }
        }
        needed
    }
    /// Values whose ops are not those of `other`, or read other weights.
    pub fn changed(&self, other: &Self) -> BTreeSet<At> {
        let differs = |plan: &Plan, of: &Self, at: At| {
            let node = &plan.nodes[plan.find(at)?.0];
            let edited: Vec<&(Slot, Change)> =
                of.changes.iter().filter(|(slot, _)| node.op.weights().iter().any(|id| Slot::of(plan, *id) == *slot)).collect();
            let weights: Vec<Slot> = node.op.weights().into_iter().map(|id| Slot::of(plan, id)).collect();
            let rope = if let Op::Rope { rope, .. } = node.op { plan.ropes.get(rope) } else { None };
            let inputs: Vec<At> = node.inputs.iter().map(|id| plan.node(*id).at).collect();
            let op = match &node.op {
                // Numbers of weights and ropes mean nothing in another plan.
                Op::Rope { .. } | Op::Embed { .. } | Op::Linear { .. } | Op::ExpertLinear { .. } => numbers(&node.op),
                Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::ShortConv { .. } | Op::RouterWeights { .. } => numbers(&node.op),
                Op::Scale { .. } | Op::DeltaIn { .. } => numbers(&node.op),
                other => format!("{other:?}"),
            };
            Some(format!("{op} {weights:?} {edited:?} {rope:?} {inputs:?}"))
        };
        let all = self.plan.nodes.iter().chain(&other.plan.nodes).map(|node| node.at);
        all.filter(|at| differs(&self.plan, self, *at) != differs(&other.plan, other, *at)).collect()
    }
    /// The whole run on the reference's tokens, every value held against it; and what greedy decoding chooses.
    ///
    /// # Errors
    /// What the oracles report.
    pub async fn run<S: ByteSource>(
        &self,
        patient: &Patient<'_, S>,
        reference: &Dump,
        progress: &mut dyn FnMut(&str, usize, usize),
    ) -> Result<(Report, Vec<u32>)> {
        let all = (0..self.plan.nodes.len()).map(ValueId);
        let Oracles { exact, rounded } = self.oracles(patient, reference, all).await?;
        let (tokens, choice) = (Tokens::of(reference, false)?, Choice::default());
        let run = tokens
            .record(&rounded[0], usize::MAX, &worth_keeping(reference, &choice), &patient.name, &mut |done, of| {
                progress("the whole run", done, of)
            })
            .await?;
        let names = [reference.name().to_string(), patient.name.clone()];
        let mut aligned = align_run(reference, &run, names, &self.plan, &choice)?;
        let measured = Measured::new((&exact, &rounded), [reference, &run], &mut aligned, &choice, usize::MAX, progress).await?;
        let report = measured.judge([reference, &run], &aligned, &self.plan, &mut |done, of| progress("the whole run", done, of))?;
        let generated = reference.generated_ids()?.unwrap_or_default();
        let free = Tokens { prompt: reference.input_ids()?, forced: Vec::new(), steps: generated.len().saturating_sub(1) };
        let none = Choice { stages: Some(vec![crate::plan::Stage::LogitsFinal]), layers: None };
        let chosen = free.record(&rounded[0], usize::MAX, &none, &patient.name, &mut |done, of| progress("decoding", done, of)).await?;
        Ok((report, chosen.generated_ids()?.unwrap_or_default()))
    }
}

/// An op's numbers, without the indices of what it reads.
fn numbers(op: &Op) -> String {
    match op {
        Op::Rope { heads, head_dim, .. } => format!("rope {heads} {head_dim}"),
        Op::Linear { bias, divisor, .. } => format!("linear {} {divisor}", bias.is_some()),
        Op::ExpertLinear { bias, experts, chosen, .. } => format!("expert_linear {} {experts} {chosen}", bias.is_some()),
        Op::RouterWeights { router, .. } => format!("router_weights {router:?}"),
        Op::Embed { scale, .. } => format!("embed {scale}"),
        Op::RmsNorm { offset, eps, group, .. } => format!("rms_norm {offset} {eps} {group}"),
        Op::Scale { factor, weight } => format!("scale {factor} {}", weight.is_some()),
        Op::LayerNorm { bias, eps, group, .. } => format!("layer_norm {} {eps} {group}", bias.is_some()),
        Op::ShortConv { state, bias, taps, ending, .. } => format!("short_conv {} {} {taps} {ending:?}", state.0, bias.is_some()),
        Op::DeltaIn { heads, eps, .. } => format!("delta_in {heads:?} {eps}"),
        other => format!("{other:?}"),
    }
}

/// The values that are wrong in a report, in the order of computation.
pub fn wrong(report: &Report) -> Vec<&StageLine> {
    report.stages.iter().filter(|line| line.diverged).collect()
}
