//! Runs plans with the oracle's ops. Weights stay as stored; a cache holds every position of every layer.
//! With f16 storage, values are rounded exactly where `exec::matmul_inputs` and `Storage` say, and nowhere else.

use super::real::Real;
use super::weights::Weights;
use super::{
    act, add, apart, attn_mix, attn_probs, attn_scores, choose, chosen_experts, delta_in, embed, expert_linear, expert_mix, gated_act,
    gated_delta, intervention, layer_norm, linear, mul, rms_norm, rope, router_weights, scale, short_conv, sigmoid_scale, soft_cap, stats,
    unit_norm,
};
use crate::error::{About, Error, Result};
use crate::exec::{
    self, Content, Editable, Executor, Observed, Read, Replaceable, Rows, Step, StepOutput, Storage, Tokens, Want, WeightSink,
};
use crate::plan::intervention::Intervention;
use crate::plan::rope::RopeTable;
use crate::plan::{At, ConvEnding, Node, Op, Plan, Stage, StateId, StateKind, StatePart, ValueId, WeightId};
use crate::quant::Format;
use crate::tensor::{DType, Tensor};
use std::cell::RefCell;

/// Steps after which the matrices of a state are kept: those before the last step, and after it.
const MATRICES: usize = 2;

/// What tokens are chosen from.
const LOGITS: At = At { stage: Stage::LogitsFinal, layer: None };

/// The oracle: a plan, its weights as stored, and arithmetic in `T` (f32 or f64).
#[derive(Debug)]
pub struct CpuExecutor<T> {
    pub(super) plan: Plan,
    pub(super) storage: Storage,
    weights: Weights,
    /// Which values are stored as `storage.activations`.
    pub(super) stored: Vec<bool>,
    /// The last node that reads each value, or the node itself.
    last_reader: Vec<usize>,
    /// It rounds otherwise than another one of the same numbers (`apart`).
    apart: bool,
    numbers: std::marker::PhantomData<T>,
}

/// The states of one sequence, all positions of all layers, and the position tables.
#[derive(Debug, Clone)]
pub struct CpuCache<T> {
    /// Per state of the plan, each of its parts: all positions, [positions, width].
    states: Vec<Vec<Vec<T>>>,
    /// Per state the matrices before some positions, where it is one of matrices.
    matrices: Vec<Matrices<T>>,
    len: usize,
    capacity: usize,
    chunk: usize,
    picked: Option<u32>,
    tables: Tables,
}

/// Matrices of a state, each with the position that they come before, in ascending order.
type Matrices<T> = RefCell<Vec<(usize, Vec<T>)>>;

/// One table per position encoding of the plan.
#[derive(Debug, Clone, Default)]
pub(super) struct Tables {
    pub(super) ropes: Vec<RopeTable>,
    positions: usize,
    long: bool,
}

impl Tables {
    /// Covers positions `0..positions`, recomputed in doublings up to `limit`.
    pub(super) fn cover(&mut self, plan: &Plan, positions: usize, limit: usize, long: bool) {
        if self.positions < positions || self.long != long {
            let wanted = positions.max((2 * self.positions).min(limit));
            let ropes = plan.ropes.iter().map(|r| crate::plan::rope::table(r, wanted, long)).collect();
            *self = Tables { ropes, positions: wanted, long };
        }
    }
}

/// A computed value: rows `first_row..` of the step, [rows, width] or [heads, rows, positions].
struct Value<T> {
    first_row: usize,
    shape: Vec<usize>,
    data: Vec<T>,
}

/// Where an op's rows stand.
pub(super) struct Place<'a, T> {
    /// Rows to compute.
    pub(super) rows: usize,
    /// Position of the first of them.
    pub(super) first: usize,
    /// Position of the first key and value.
    pub(super) keys_first: usize,
    /// Token ids, one per row.
    pub(super) ids: &'a [u32],
    /// One table per position encoding.
    pub(super) ropes: &'a [RopeTable],
    /// Of each state the matrices that are kept; without, they are made from the first position on.
    pub(super) matrices: &'a [Matrices<T>],
}

impl<T: Real> CpuExecutor<T> {
    /// An executor without weights, which arrive by `WeightSink::put`. The plan is verified; activations and caches are
    /// stored as f32 (which rounds nothing, in f64 arithmetic either) or f16.
    pub fn new(plan: Plan, storage: Storage) -> Result<Self> {
        crate::plan::verify::verify(&plan)?;
        if let Some(other) = [storage.activations, storage.cache].into_iter().find(|d| !matches!(d, DType::F32 | DType::F16)) {
            return Err(Error::invalid("dtype", format!("activations and caches are stored as f32 or f16, not {other}")));
        }
        let stored = exec::matmul_inputs(&plan);
        let mut last_reader: Vec<usize> = (0..plan.nodes.len()).collect();
        for (reader, node) in plan.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|input| last_reader[input.0] = reader);
        }
        // The logits are read after the last node.
        plan.find(LOGITS).into_iter().for_each(|id| last_reader[id.0] = usize::MAX);
        Ok(Self { weights: Weights::new(&plan), plan, storage, stored, last_reader, apart: false, numbers: std::marker::PhantomData })
    }

    /// The same with other roundings, each as large: for floors, which no single draw of chance makes.
    #[must_use]
    pub fn apart(self) -> Self {
        Self { apart: true, ..self }
    }

    /// An error that names every weight slot whose rows have not all arrived.
    pub fn complete(&self) -> Result<()> {
        self.weights.complete()
    }

    /// Sets the plan's longest sequence, for sessions to come.
    pub fn set_max_positions(&mut self, positions: usize) {
        self.plan.max_positions = positions;
    }

    /// A value as `dtype` keeps it.
    pub(super) fn round(values: &mut [T], dtype: DType) {
        if dtype == DType::F16 {
            values.iter_mut().for_each(|x| *x = x.round_to_f16());
        }
    }

    /// The definition of a node's op on `inputs`; keys and values are those of all positions.
    pub(super) fn compute(&self, id: ValueId, inputs: &[&[T]], place: &Place<'_, T>) -> Result<Vec<T>> {
        let node = self.plan.node(id);
        let Node { op, width, interventions, .. } = node;
        let moved = if self.apart { apart::moved(op, id, inputs) } else { None };
        let moved: Option<Vec<&[T]>> = moved.as_ref().map(|inputs| inputs.iter().map(Vec::as_slice).collect());
        let inputs = moved.as_deref().unwrap_or(inputs);
        let mut y = match op {
            Op::Embed { table, scale } => {
                embed::embed(place.ids, self.plan.vocab_size, *width, *scale, |row, out| self.weights.read(*table, row, out))?
            }
            Op::Same => inputs[0].to_vec(),
            Op::RmsNorm { weight, offset, eps, .. } => rms_norm::rms_norm(inputs[0], &self.weights.vector(*weight)?, *offset, *eps),
            Op::UnitNorm { eps, group } => unit_norm::unit_norm(inputs[0], *eps, *group),
            Op::LayerNorm { weight, bias, eps, group } => {
                let bias = bias.map(|b| self.weights.vector(b)).transpose()?;
                layer_norm::layer_norm(inputs[0], &self.weights.vector(*weight)?, bias.as_deref(), *eps, *group)
            }
            Op::Linear { weight, bias, divisor } => {
                let bias = bias.map(|b| self.weights.vector(b)).transpose()?;
                let shape = [*width, inputs[0].len() / place.rows];
                linear::linear(inputs[0], shape, |row, out| self.weights.read(*weight, row, out), bias.as_deref(), *divisor)?
            }
            Op::Rope { rope, head_dim, .. } => rope::rope(inputs[0], *width, *head_dim, &place.ropes[*rope], place.first),
            Op::Append { .. } => {
                let mut rows = inputs[0].to_vec();
                Self::round(&mut rows, self.storage.of_appended(&self.plan, id).unwrap_or(DType::F32));
                rows
            }
            Op::AttnScores(a) => attn_scores::attn_scores(a, inputs[0], inputs[1], place.first, place.keys_first),
            Op::AttnProbs(a) => {
                let sinks = a.sinks.map(|sinks| self.weights.vector(sinks)).transpose()?;
                attn_probs::attn_probs(a, inputs[0], sinks.as_deref(), place.rows, place.first, place.keys_first)
            }
            Op::AttnMix(a) => attn_mix::attn_mix(a, inputs[0], inputs[1], place.first, place.keys_first),
            Op::GatedAct { act, first } => {
                let up = mul::part(inputs[1], inputs[1].len() / place.rows, *first, *width);
                gated_act::gated_act(*act, inputs[0], &up)
            }
            Op::RouterWeights { router, choice, scales } => {
                let [choice, scales] = [choice, scales].map(|w| w.map(|w| self.weights.vector(w)).transpose());
                let weights = router_weights::router_weights(router, inputs[0], choice?.as_deref());
                match scales? {
                    Some(scales) => router_weights::scaled(weights, &scales),
                    None => weights,
                }
            }
            Op::ChosenExperts => chosen_experts::chosen_experts(inputs[0], self.plan.node(node.inputs[0]).width, *width),
            Op::ExpertLinear { weight, bias, experts, chosen } => {
                let bias = bias.map(|b| self.weights.vector(b)).transpose()?;
                let columns = self.plan.weights[weight.0].shape.get(1).copied().unwrap_or(0);
                let shape = [*experts, width / chosen, columns];
                let read = |row: usize, out: &mut [T]| self.weights.read(*weight, row, out);
                expert_linear::expert_linear(inputs[0], inputs[1], shape, read, bias.as_deref())?
            }
            Op::ExpertMix { experts, chosen } => expert_mix::expert_mix(inputs[0], inputs[1], inputs[2], *experts, *chosen),
            Op::SigmoidScale => sigmoid_scale::sigmoid_scale(inputs[0], inputs[1]),
            Op::Act { act: activation } => act::act(*activation, inputs[0]),
            Op::Mul { left, right } => {
                let widths = [0, 1].map(|i| inputs[i].len() / place.rows);
                mul::mul([inputs[0], inputs[1]], widths, [*left, *right], *width)
            }
            Op::ShortConv { weight, bias, taps, ending, .. } => {
                let (weight, bias) = (self.weights.vector(*weight)?, bias.map(|b| self.weights.vector(b)).transpose()?);
                let before = place.first - place.keys_first;
                let mut y = short_conv::short_conv(inputs[1], (&weight, *taps), bias.as_deref(), place.rows, before);
                match ending {
                    ConvEnding::Gate(first) => short_conv::gate(&mut y, *width, inputs[0], *first),
                    ConvEnding::Act(activation) => y = act::act(*activation, &y),
                }
                y
            }
            Op::DeltaIn { heads, decay, step, eps } => {
                let (decay, step) = (self.weights.vector(*decay)?, self.weights.vector(*step)?);
                delta_in::delta_in(heads, inputs[0], [inputs[1], inputs[2]], [&decay, &step], *eps)
            }
            Op::GatedDelta { matrix, heads, eps, scale, .. } => {
                let mut kept = place.matrices.get(matrix.0).map(RefCell::borrow_mut);
                let mut from = (place.keys_first, vec![T::default(); heads.matrices()]);
                if let Some(kept) = &mut kept {
                    // What comes after this step's first token was of tokens that were taken back.
                    kept.retain(|(position, _)| *position <= place.first);
                    from = kept.last().cloned().unwrap_or(from);
                }
                let (first, mut matrices) = from;
                let rows = (inputs[0], inputs[0].len() / place.rows);
                let taken = &inputs[1][(first - place.keys_first) * heads.taken()..];
                let y = gated_delta::gated_delta(heads, rows, taken, &mut matrices, (*eps, *scale));
                if let Some(kept) = &mut kept {
                    kept.push((place.first + place.rows, matrices));
                    let old = kept.len().saturating_sub(MATRICES);
                    kept.drain(..old);
                }
                y
            }
            Op::Add { multiplier } => add::add(inputs[0], inputs[1], *multiplier),
            Op::Scale { factor, weight } => {
                let weight = weight.map(|w| self.weights.vector(w)).transpose()?;
                scale::scale(inputs[0], *factor, weight.as_deref())
            }
            Op::SoftCap { cap } => soft_cap::soft_cap(inputs[0], *cap),
        };
        let store = |y: &mut Vec<T>| {
            if self.stored[id.0] {
                Self::round(y, self.storage.activations)
            }
        };
        store(&mut y);
        let rows = intervention::Rows { count: place.rows, first: place.first, keys_first: place.keys_first };
        for one in interventions {
            intervention::intervention(&mut y, one, node, self.plan.head_dim(id), rows);
            store(&mut y);
        }
        Ok(y)
    }

    /// The step's ids, checked against the cache and the vocabulary.
    fn ids(&self, cache: &CpuCache<T>, step: &Step<'_>) -> Result<Vec<u32>> {
        let ids = match step.tokens {
            Tokens::Ids(ids) => ids.to_vec(),
            Tokens::Picked => {
                let nothing = || Error::invalid("tokens", "the step before picked no token").on(About::NothingPicked);
                vec![cache.picked.ok_or_else(nothing)?]
            }
        };
        if ids.is_empty() {
            return Err(Error::invalid("tokens", "a step needs at least one token"));
        }
        if ids.len() > cache.chunk {
            return Err(Error::invalid(
                "tokens",
                format!("a step of {} tokens; the cache was made for at most {}", ids.len(), cache.chunk),
            ));
        }
        if cache.len + ids.len() > cache.capacity {
            let message = format!("{} cached positions and {} more pass its capacity of {}", cache.len, ids.len(), cache.capacity);
            return Err(Error::invalid("cache", message));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.plan.vocab_size) {
            return Err(Error::invalid("token id", format!("there is no id {id}: the embedding has {} rows", self.plan.vocab_size)));
        }
        if step.rows == Rows::None && (step.pick.is_some() || step.read != Read::Nothing) {
            return Err(Error::invalid("rows", "logits are picked or read, but no row's logits are asked for"));
        }
        Ok(ids)
    }

    /// Runs the plan for a step. Keys and values are appended to the cache; its length is the caller's to raise.
    fn run(&self, cache: &mut CpuCache<T>, step: &Step<'_>, ids: &[u32]) -> Result<StepOutput> {
        let wanted = exec::match_requests(&self.plan, step.requests)?;
        let (tokens, first) = (ids.len(), cache.len);
        cache.tables.cover(&self.plan, first + tokens, cache.capacity, step.long_rope);

        // After the head's input only some rows are computed: here all from the first one on.
        let head_rows = exec::head_rows(&self.plan, &wanted, step.rows, first, tokens);
        let head_start = head_rows.map_or(0, |rows| rows.first().copied().unwrap_or(tokens));
        let mut values: Vec<Option<Value<T>>> = Vec::with_capacity(self.plan.nodes.len());
        let mut output = StepOutput::default();
        for (index, node) in self.plan.nodes.iter().enumerate() {
            let first_row = if self.plan.in_head(ValueId(index)) { head_start } else { 0 };
            if first_row == tokens {
                break;
            }
            let (rows, ids) = (tokens - first_row, &ids[first_row..]);
            let place = Place { rows, first: first + first_row, keys_first: 0, ids, ropes: &cache.tables.ropes, matrices: &cache.matrices };
            let mut inputs: Vec<&[T]> = node.inputs.iter().filter_map(|i| values[i.0].as_ref().map(|v| v.from(first_row))).collect();
            if let Some((state, part)) = node.op.reads_state() {
                inputs[1] = &cache.states[state.0][part.place()];
            }
            let data = self.compute(ValueId(index), &inputs, &place)?;
            if let Op::Append { state, part } = node.op {
                append(&mut cache.states, (state, part), first * node.width, &data);
            }
            let value = Value { first_row, shape: shape(node, rows, data.len()), data };
            for (_, want) in wanted.iter().filter(|(id, _)| id.0 == index) {
                output.values.push(observed(node.at, &value, first, want, self.plan.heads(ValueId(index)))?);
            }
            values.push(Some(value));
            // What no later node reads is let go.
            for input in node.inputs.iter().filter(|i| self.last_reader[i.0] == index) {
                values[input.0] = None;
            }
        }
        if step.pick.is_some() || step.read != Read::Nothing {
            let value = self.plan.find(LOGITS).and_then(|id| values.get(id.0)?.as_ref());
            let value = value.ok_or_else(|| Error::plan("the plan computes no logits_final"))?;
            let row: Vec<f32> = value.from(tokens - 1).iter().map(|x| x.to_f32()).collect();
            choose(row, step, &mut output)?;
        }
        Ok(output)
    }

    /// Some nodes of a step on given inputs. Inputs are rounded as a step would have stored them.
    fn run_part(&self, cache: &mut CpuCache<T>, part: &exec::Part<'_>) -> Result<Tensor> {
        let (tokens, first) = (part.ids.len(), cache.len);
        let reads = part.check(&self.plan, first)?;
        if tokens > cache.chunk || first + tokens > cache.capacity {
            return Err(Error::invalid("part of a step", format!("{tokens} tokens at position {first} do not fit the cache")));
        }
        cache.tables.cover(&self.plan, first + tokens, cache.capacity, part.long_rope);
        let mut values: Vec<Option<Vec<T>>> = self.plan.nodes.iter().map(|_| None).collect();
        for (id, input) in reads.iter().zip(part.inputs) {
            let mut data: Vec<T> = input.data.iter().map(|x| T::from_f32(*x)).collect();
            if self.stored[id.0] {
                Self::round(&mut data, self.storage.activations);
            }
            let node = self.plan.node(*id);
            if let Op::Append { state, part } = node.op {
                Self::round(&mut data, self.storage.of_appended(&self.plan, *id).unwrap_or(DType::F32));
                append(&mut cache.states, (state, part), first * node.width, &data);
            }
            values[id.0] = Some(data);
        }
        let place = Place { rows: tokens, first, keys_first: 0, ids: part.ids, ropes: &cache.tables.ropes, matrices: &cache.matrices };
        // What is wanted stands last, and others of the part may read it.
        let mut nodes = part.nodes.to_vec();
        nodes.sort_unstable();
        for id in &nodes {
            let node = self.plan.node(*id);
            let mut inputs: Vec<&[T]> = node.inputs.iter().filter_map(|i| values[i.0].as_deref()).collect();
            if let Some((state, part)) = node.op.reads_state() {
                inputs[1] = &cache.states[state.0][part.place()];
            }
            let data = self.compute(*id, &inputs, &place)?;
            if let Op::Append { state, part } = node.op {
                append(&mut cache.states, (state, part), first * node.width, &data);
            }
            values[id.0] = Some(data);
        }
        cache.len += tokens;
        let made = part.nodes.last().and_then(|id| Some((self.plan.node(*id), values[id.0].take()?)));
        let (node, data) = made.ok_or_else(|| Error::plan("a part of a step makes nothing"))?;
        Tensor::new(shape(node, tokens, data.len()), data.iter().map(|x| x.to_f32()).collect())
    }
}

/// Puts new rows behind the first `kept` elements of a part of a state.
fn append<T: Real>(states: &mut [Vec<Vec<T>>], (state, part): (StateId, StatePart), kept: usize, rows: &[T]) {
    let held = &mut states[state.0][part.place()];
    held.truncate(kept);
    held.extend_from_slice(rows);
}

impl<T: Real> Value<T> {
    /// The elements from row `row` of the step on. Only values laid out in rows begin elsewhere than at their start.
    fn from(&self, row: usize) -> &[T] {
        &self.data[(row - self.first_row) * self.shape.last().copied().unwrap_or(0)..]
    }
}

/// The shape of a node's value of `elements` elements in `rows` rows.
pub(super) fn shape(node: &Node, rows: usize, elements: usize) -> Vec<usize> {
    let layout = node.at.stage.layout();
    layout.shape(node.width, rows, elements / layout.rows(node.width, rows).max(1))
}

/// What is wanted of a value, the step's first token being at position `first`. A dim of scores counts through the
/// heads' rows of one token: head·positions + position.
fn observed<T: Real>(at: At, value: &Value<T>, first: usize, want: &Want, heads: Option<usize>) -> Result<Observed> {
    let first_token = first + value.first_row;
    let content = match want {
        Want::Full => Content::Full(Tensor::new(value.shape.clone(), value.data.iter().map(|x| x.to_f32()).collect())?),
        Want::Stats | Want::StatsIfMade => {
            let data: Vec<f32> = value.data.iter().map(|x| x.to_f32()).collect();
            Content::Stats(stats::stats(&data, value.shape.last().copied().unwrap_or(0)))
        }
        Want::HeadStats => {
            let data: Vec<f32> = value.data.iter().map(|x| x.to_f32()).collect();
            Content::HeadStats(stats::head_stats(&data, &value.shape, heads.unwrap_or(1)))
        }
        Want::Gather { tokens, dims } => {
            let (heads, rows, width) = match value.shape[..] {
                [heads, rows, positions] => (heads, rows, positions),
                _ => (1, value.shape[0], value.shape[1]),
            };
            let cells = tokens.iter().flat_map(|t| dims.iter().map(move |d| (*t, *d)));
            let inside = cells.filter(|(t, d)| (first_token..first_token + rows).contains(t) && *d < heads * width);
            let cell = |(t, d): (usize, usize)| (t, d, value.data[(d / width * rows + t - first_token) * width + d % width].to_f32());
            Content::Gather(inside.map(cell).collect())
        }
    };
    Ok(Observed { at, first_token, content })
}

/// Fills what is picked and read of the last row's logits.
fn choose(row: Vec<f32>, step: &Step<'_>, output: &mut StepOutput) -> Result<()> {
    output.token = step.pick.and_then(|rules| choose::greedy(&row, rules));
    match step.read {
        Read::Nothing => {}
        Read::Top(k) => output.top = Some(choose::top(&row, step.pick, k)),
        Read::Logits => output.logits = Some(row),
    }
    Ok(())
}

impl<T: Real> WeightSink for CpuExecutor<T> {
    fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> Result<()> {
        self.weights.put(id, format, first_row, bytes)
    }
}

impl<T: Real> Replaceable for CpuExecutor<T> {
    fn clear(&mut self, id: WeightId) -> Result<()> {
        self.weights.clear(id)
    }
}

impl<T: Real> Editable for CpuExecutor<T> {
    fn set_interventions(&mut self, interventions: &[(ValueId, Vec<Intervention>)]) -> Result<()> {
        self.plan.set_interventions(interventions)
    }
}

impl<T: Real> Executor for CpuExecutor<T> {
    type Cache = CpuCache<T>;
    type Pending = StepOutput;

    fn plan(&self) -> &Plan {
        &self.plan
    }
    fn describe(&self) -> String {
        let Storage { activations, cache } = self.storage;
        format!("CPU oracle, {} arithmetic, matmul inputs {activations}, cache {cache}", T::NAME)
    }
    fn storage(&self) -> Storage {
        self.storage
    }
    fn new_cache(&self, capacity: usize, chunk: usize) -> Result<CpuCache<T>> {
        if chunk == 0 {
            return Err(Error::invalid("chunk", "a cache must take steps of at least one token"));
        }
        let states = self.plan.states.iter().map(|state| vec![Vec::new(); state.kind.parts().len()]).collect();
        let matrices = self.plan.states.iter().map(|_| RefCell::default()).collect();
        Ok(CpuCache { states, matrices, len: 0, capacity, chunk, picked: None, tables: Tables::default() })
    }
    fn grow(&self, cache: &mut CpuCache<T>, capacity: usize) -> Result<()> {
        cache.capacity = cache.capacity.max(capacity);
        Ok(())
    }
    fn len(&self, cache: &CpuCache<T>) -> usize {
        cache.len
    }
    fn capacity(&self, cache: &CpuCache<T>) -> usize {
        cache.capacity
    }
    fn truncate(&self, cache: &mut CpuCache<T>, len: usize) -> bool {
        // The tensors themselves are cut when the next step appends.
        cache.len = cache.len.min(len);
        true
    }
    fn submit(&self, cache: &mut CpuCache<T>, step: &Step<'_>) -> Result<StepOutput> {
        self.weights.complete()?;
        let ids = self.ids(cache, step)?;
        let output = self.run(cache, step, &ids)?;
        cache.len += ids.len();
        cache.picked = output.token;
        Ok(output)
    }
    fn fork(&self, cache: &CpuCache<T>) -> Result<CpuCache<T>> {
        Ok(cache.clone())
    }
    async fn finish(&self, pending: StepOutput) -> Result<StepOutput> {
        Ok(pending)
    }
    async fn eval(&self, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor> {
        self.alone(id, inputs, first_position, long_rope)
    }
    fn groups(&self) -> Result<Vec<exec::Group>> {
        Ok(Vec::new())
    }
    async fn part(&self, cache: &mut CpuCache<T>, part: &exec::Part<'_>) -> Result<Tensor> {
        self.run_part(cache, part)
    }
    async fn cached(&self, cache: &CpuCache<T>, state: StateId) -> Result<exec::Cached> {
        let kind = self.plan.state(state).ok_or_else(|| Error::invalid("state", format!("the plan has no state {}", state.0)))?;
        let width = kind.width();
        if let StateKind::Matrix(_) = kind {
            let kept = cache.matrices[state.0].borrow();
            let held = kept.iter().find(|(position, _)| *position == cache.len);
            let held: Vec<f32> = held.iter().flat_map(|(_, matrices)| matrices).map(|x| x.to_f32()).collect();
            let first = cache.len - held.len() / width.max(1);
            return Ok(exec::Cached { first, parts: vec![Tensor::new(vec![cache.len - first, width], held)?] });
        }
        let rows = |held: &Vec<T>| {
            let held: Vec<f32> = held[..(cache.len * width).min(held.len())].iter().map(|x| x.to_f32()).collect();
            Tensor::new(vec![held.len() / width, width], held)
        };
        Ok(exec::Cached { first: 0, parts: cache.states[state.0].iter().map(rows).collect::<Result<_>>()? })
    }
    async fn choose(&self, _: &mut CpuCache<T>, logits: &[f32], rules: exec::Pick, k: usize) -> Result<exec::Chosen> {
        Ok(exec::Chosen { next: choose::greedy(logits, rules), top: choose::top(logits, Some(rules), k) })
    }
}
