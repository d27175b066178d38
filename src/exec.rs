//! What an executor of plans is, and the plain data that goes in and out: steps, requests, values, statistics.
//! It knows no device. Executors learn of requests before they lower a step, so that nothing wanted is fused away.

mod storage;

pub use storage::{Storage, matmul_inputs};

use crate::error::{Error, Result};
use crate::plan::intervention::Intervention;
use crate::plan::{At, Plan, Stage, StateId, StatePart, ValueId, WeightId};
use crate::quant::Format;
use crate::tensor::Tensor;
use crate::threads;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What is wanted of some values of each step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The stage.
    pub stage: Stage,
    /// Layers, for stages that exist per layer; `None` is every layer that has the stage.
    pub layers: Option<Vec<usize>>,
    /// How much of it.
    pub want: Want,
}

/// How much of a value is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// Every element.
    Full,
    /// Statistics, reduced where the value is.
    Stats,
    /// Likewise, of a value that the step makes anyhow; of another nothing. So what is only looked over costs no fusion.
    StatsIfMade,
    /// Statistics of every head, for values made of heads (`Plan::heads`).
    HeadStats,
    /// Chosen elements of chosen tokens (absolute positions; those outside the step give nothing).
    Gather {
        /// Absolute positions.
        tokens: Vec<usize>,
        /// Elements of a row.
        dims: Vec<usize>,
    },
}

/// Where a step's token ids come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens<'a> {
    /// These ids.
    Ids(&'a [u32]),
    /// The token that the step before picked, wherever it is; it need not have been read.
    Picked,
}

/// Rows for which logits are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rows {
    /// None: a prompt chunk that is not the last.
    None,
    /// The last token's.
    Last,
    /// Every token's.
    All,
}

/// Greedy choice by the executor: the lowest id among the highest logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pick {
    /// Ids from here on are padding of the head and never win.
    pub valid: usize,
}

/// What comes back of the last row's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Read {
    /// Nothing.
    Nothing,
    /// All of them.
    Logits,
    /// The k highest under `Pick`'s rules, in descending order, NaN first, ties by ascending id.
    Top(usize),
}

/// One step: some tokens through the whole plan, appended to the cache.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Token ids; at most the cache's chunk size.
    pub tokens: Tokens<'a>,
    /// Rows with logits.
    pub rows: Rows,
    /// Greedy choice from the last row.
    pub pick: Option<Pick>,
    /// What to read of the last row.
    pub read: Read,
    /// Use the long list of a longrope model.
    pub long_rope: bool,
    /// Values wanted.
    pub requests: &'a [Request],
}

/// A step of one of several sequences.
#[derive(Debug)]
pub struct Entry<'a, C> {
    /// The sequence.
    pub cache: &'a mut C,
    /// Its step.
    pub step: Step<'a>,
}

/// What a step gives.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StepOutput {
    /// The greedy choice; `None` where an eligible logit is NaN or +Inf, or none is finite, which the caller must report.
    pub token: Option<u32>,
    /// The last row of `logits_final`.
    pub logits: Option<Vec<f32>>,
    /// The highest candidates.
    pub top: Option<Vec<(u32, f32)>>,
    /// Requested values, in the plan's order.
    pub values: Vec<Observed>,
    /// What had to change so that the requests could be met (fusions dropped).
    pub notes: Vec<String>,
}

/// A requested value of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// Its name.
    pub at: At,
    /// Absolute position of its first row.
    pub first_token: usize,
    /// Its content.
    pub content: Content,
}

/// The content of a requested value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Content {
    /// [T, width], or [heads, T, positions].
    Full(Tensor),
    /// Over all rows of the step.
    Stats(Stats),
    /// Likewise, by head; rows and elements are counted as in `Stats` of the whole value.
    HeadStats(Vec<Stats>),
    /// (token, dim, value) in the order asked.
    Gather(Vec<(usize, usize, f32)>),
}

/// Statistics of a value. Non-finite elements are counted by their exponent bits and left out of the rest.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Elements.
    pub count: u64,
    /// Largest magnitude; NaN or infinite if any element is (NaN first).
    pub max_abs: f32,
    /// Row of the largest magnitude, counted from the value's first row (heads·T + t for scores).
    pub max_row: u32,
    /// Its element within the row.
    pub max_dim: u32,
    /// Mean of the finite elements.
    pub mean: f32,
    /// Root of the mean square of the finite elements.
    pub rms: f32,
    /// Smallest finite element.
    pub min: f32,
    /// Largest finite element.
    pub max: f32,
    /// NaN elements.
    pub nan: u64,
    /// Infinite elements.
    pub inf: u64,
    /// Elements equal to zero.
    pub zero: u64,
}

/// Sequences for which there is to be room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequences {
    /// How many of them at a time.
    pub count: usize,
    /// Positions of each, at most.
    pub capacity: usize,
    /// Tokens of the largest step of one.
    pub chunk: usize,
}

impl Sequences {
    /// A sequence alone.
    pub fn one(capacity: usize, chunk: usize) -> Self {
        Self { count: 1, capacity, chunk }
    }
}

/// Most tokens of a step that is computed as decode is: weights times one token's vector, and one more.
pub const DECODE_TOKENS: usize = 4;

/// Nodes that an executor computes together in a step of which nobody wants a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// What computes them: the name of a fusion, such as `attention`, or of the op.
    pub name: String,
    /// In the plan's order.
    pub nodes: Vec<ValueId>,
    /// What exists afterwards; of the other nodes nothing does.
    pub makes: Vec<ValueId>,
    /// Another kernel computes it in steps of at most `DECODE_TOKENS` tokens than in larger ones.
    pub by_size: bool,
    /// Steps of several sequences compute it so too, and what it reads of weights or of positions is there in other blocks.
    pub together: bool,
}

/// Part of a step of which nobody wants a value: some nodes on given inputs, with the cache of a sequence.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The value of the last is what is wanted.
    pub nodes: &'a [ValueId],
    /// The values `reads` of the nodes, in that order, for the tokens of the step: [T, width], or [heads, T, positions].
    pub inputs: &'a [Tensor],
    /// The tokens of the step: T ids.
    pub ids: &'a [u32],
    /// Use the long list of a longrope model.
    pub long_rope: bool,
    /// As a step of several sequences is computed: every token by itself, few enough at a time.
    pub together: bool,
}

impl Part<'_> {
    /// Checks the nodes and the shapes of the inputs for a step from `position` on; the values that are read.
    ///
    /// # Errors
    /// `Kind::Invalid` for nodes that the plan lacks, ids outside its vocabulary and inputs of other shapes.
    pub fn check(&self, plan: &Plan, position: usize) -> Result<Vec<ValueId>> {
        let wrong = |what: String| Error::invalid("part of a step", what);
        if self.nodes.is_empty() || self.ids.is_empty() || self.nodes.iter().any(|id| id.0 >= plan.nodes.len()) {
            return Err(wrong("expected nodes of the plan and at least one token".into()));
        }
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= plan.vocab_size) {
            return Err(wrong(format!("id {id} is outside the vocabulary of {} rows", plan.vocab_size)));
        }
        let reads = reads(plan, self.nodes);
        if reads.len() != self.inputs.len() {
            return Err(wrong(format!("expected {} inputs, found {}", reads.len(), self.inputs.len())));
        }
        let tokens = self.ids.len();
        for (id, input) in reads.iter().zip(self.inputs) {
            let node = plan.node(*id);
            let expected = node.at.stage.layout().shape(node.width, tokens, position + tokens);
            if input.shape != expected {
                return Err(wrong(format!("{}: expected shape {expected:?}, found {:?}", node.at, input.shape)));
            }
        }
        Ok(reads)
    }
}

/// Values that `nodes` read and none of them makes, in the plan's order.
pub fn reads(plan: &Plan, nodes: &[ValueId]) -> Vec<ValueId> {
    let inputs = nodes.iter().flat_map(|id| &plan.node(*id).inputs).copied();
    inputs.filter(|input| !nodes.contains(input)).collect::<BTreeSet<_>>().into_iter().collect()
}

/// What a cache holds of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cached {
    /// Position of the first row.
    pub first: usize,
    /// Each part of the state, in the order of `StateKind::parts`: [positions, width].
    pub parts: Vec<Tensor>,
}

impl Cached {
    /// A part, if the state has it.
    pub fn part(&self, part: StatePart) -> Option<&Tensor> {
        self.parts.get(part.place())
    }
}

/// What an executor chooses among the logits of a row.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Chosen {
    /// The id that `Tokens::Picked` stands for in the next step, if one can be picked.
    pub next: Option<u32>,
    /// The highest candidates, as of `Read::Top`.
    pub top: Vec<(u32, f32)>,
}

/// Takes a plan's weights, in bands of whole rows, as they are stored in the checkpoint.
pub trait WeightSink {
    /// Tells, before the first `put`, as what every weight of the plan will come, so that weights that are read together may
    /// lie together.
    fn expect(&mut self, formats: &[Format]) {
        let _ = formats;
    }
    /// Rows `first_row..` of weight `id` as `format` stores them, little-endian, row-major. Vectors are one column wide.
    fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> Result<()>;
    /// As [`Self::put`], of rows that are read where they are needed, by several threads.
    ///
    /// # Errors
    /// Those of [`Self::put`] and of `rows`.
    fn pull(&mut self, id: WeightId, format: Format, rows: &StoredRows<'_>) -> Result<()> {
        let bytes = rows.read()?;
        self.put(id, format, rows.rows.start, bytes.into())
    }
}

/// Reads rows of a weight into bytes of just their size.
pub type ReadRows<'a> = dyn Fn(Range<usize>, &mut [u8]) -> Result<()> + Sync + 'a;

/// Rows of a weight that can be read at once, by several threads.
pub struct StoredRows<'a> {
    /// Which rows of the weight.
    pub rows: Range<usize>,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Reads some of them.
    pub fill: &'a ReadRows<'a>,
}

impl StoredRows<'_> {
    /// Bytes that a thread reads at once: few enough to be in its processor's cache while something is done with them.
    const PART: usize = 256 << 10;

    /// Bytes of all rows.
    pub fn bytes(&self) -> usize {
        self.rows.len() * self.row_bytes
    }
    /// Rows that a thread reads at once, where what is made of a row has `bytes`.
    pub fn part(&self, bytes: usize) -> usize {
        (Self::PART / self.row_bytes.max(bytes).max(1)).max(1)
    }
    /// All rows.
    ///
    /// # Errors
    /// Those of `fill`.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes()];
        let part = self.part(0);
        let parts = threads::parts(self.rows.clone(), part).zip(bytes.chunks_mut(part * self.row_bytes.max(1)));
        threads::each(parts, || (), |(), (rows, bytes)| (self.fill)(rows, bytes))?;
        Ok(bytes)
    }
}

/// A sink whose weights can be put again, with other values and as another type.
pub trait Replaceable: WeightSink {
    /// Clears weight `id`. All of it must be put again before the next step, and caches made before are of no use.
    ///
    /// # Errors
    /// `Kind::Weights` when the plan has no such weight.
    fn clear(&mut self, id: WeightId) -> Result<()>;
}

/// An executor whose values can be changed while it computes them.
pub trait Editable {
    /// Puts `interventions` in place of those that its plan has, for the steps to come.
    ///
    /// # Errors
    /// Those of `Plan::set_interventions`; what the device reports.
    fn set_interventions(&mut self, interventions: &[(ValueId, Vec<Intervention>)]) -> Result<()>;
}

/// Runs a plan over weights that it holds. Methods take `&self`; sequences live in caches, several at a time.
#[expect(async_fn_in_trait, reason = "single-threaded by design: no Send bounds, so that it runs in browsers")]
pub trait Executor {
    /// Keys and values of one sequence, and what its steps need.
    type Cache;
    /// A step under way.
    type Pending;

    /// The plan.
    fn plan(&self) -> &Plan;
    /// Device and storage, in words, for the `Config` line.
    fn describe(&self) -> String;
    /// How values are stored.
    fn storage(&self) -> Storage;
    /// A cache for `capacity` positions, filled in steps of at most `chunk` tokens.
    fn new_cache(&self, capacity: usize, chunk: usize) -> Result<Self::Cache>;
    /// Makes room for `sequences` once and for all: while there are no more and no larger ones, making and dropping them makes no
    /// buffer and lowers no step anew. A count of 0 takes that back. Nothing to do where sequences share nothing.
    ///
    /// # Errors
    /// `Kind::Memory` where there is not so much.
    fn reserve(&self, sequences: Sequences) -> Result<()> {
        let _ = sequences;
        Ok(())
    }
    /// Makes room for `capacity` positions; what is cached stays.
    fn grow(&self, cache: &mut Self::Cache, capacity: usize) -> Result<()>;
    /// Cached positions.
    fn len(&self, cache: &Self::Cache) -> usize;
    /// Positions that fit.
    fn capacity(&self, cache: &Self::Cache) -> usize;
    /// Drops positions from `len` on. False, and nothing done, when a windowed layer no longer has what it needs.
    fn truncate(&self, cache: &mut Self::Cache, len: usize) -> bool;
    /// Starts a step: its results may be fetched after later steps have been started.
    fn submit(&self, cache: &mut Self::Cache, step: &Step<'_>) -> Result<Self::Pending>;
    /// Starts a step of each of several sequences. Where a device gains by it, they are computed together; what a sequence
    /// gives does not depend on the others, to the bit.
    ///
    /// # Errors
    /// Those of a step. A wrong entry is refused before any is computed where they are computed together, else when its turn
    /// comes.
    fn submit_batch(&self, batch: &mut [Entry<'_, Self::Cache>]) -> Result<Vec<Self::Pending>> {
        batch.iter_mut().map(|entry| self.submit(entry.cache, &entry.step)).collect()
    }
    /// Another sequence with the same positions, which goes on by itself: what sequences begin with is computed once.
    ///
    /// # Errors
    /// `Kind::Unsupported` for executors that copy no caches; `Kind::Memory` where there is no room.
    fn fork(&self, cache: &Self::Cache) -> Result<Self::Cache> {
        let _ = cache;
        Err(Error::unsupported("this executor copies no caches"))
    }
    /// Waits for a step and returns its results.
    async fn finish(&self, pending: Self::Pending) -> Result<StepOutput>;
    /// A step from start to end.
    async fn step(&self, cache: &mut Self::Cache, step: &Step<'_>) -> Result<StepOutput> {
        let pending = self.submit(cache, step)?;
        self.finish(pending).await
    }
    /// One op alone on given inputs, as the definition of the op or as the device computes it.
    /// Keys and values come as [positions, width] with the queries' T rows the last of them;
    /// `first_position` is the position of row 0 of the other inputs. `Embed` takes ids [T, 1].
    async fn eval(&self, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor>;

    /// What a step of which nobody wants a value computes together: every node but renamings is in one group, in the
    /// plan's order of what they make. Empty where steps compute the same, op by op, watched or not.
    fn groups(&self) -> Result<Vec<Group>>;
    /// Some nodes as such a step computes them, with the same kernels; appends the step's tokens to the cache. The value
    /// of the last node.
    async fn part(&self, cache: &mut Self::Cache, part: &Part<'_>) -> Result<Tensor> {
        let _ = (cache, part);
        Err(Error::unsupported("this executor computes no parts of steps"))
    }
    /// What the cache holds of a state of keys and values: the positions that are still there.
    async fn cached(&self, cache: &Self::Cache, state: StateId) -> Result<Cached> {
        let _ = (cache, state);
        Err(Error::unsupported("this executor does not show its cache"))
    }
    /// What a step chooses where its last row of `logits_final` is `logits`.
    async fn choose(&self, cache: &mut Self::Cache, logits: &[f32], rules: Pick, k: usize) -> Result<Chosen> {
        let _ = (cache, logits, rules, k);
        Err(Error::unsupported("this executor chooses in whole steps only"))
    }
}

/// Facts about a step, passed to observers with its values.
#[derive(Debug, Clone, Copy)]
pub struct StepInfo<'a> {
    /// 0 for the prompt, whatever its chunks; n for the step that reads the n-th generated token.
    pub decode_step: usize,
    /// Absolute position of the step's first token.
    pub first_token: usize,
    /// The step's token ids.
    pub tokens: &'a [u32],
    /// The token chosen after this step, if one was.
    pub chosen: Option<u32>,
    /// What had to change so that the requests could be met.
    pub notes: &'a [String],
}

/// Is offered finished values. Sessions know this trait only; traces, probes and dumps implement it above.
pub trait Observer {
    /// What is wanted of a step (`decode_step` as in `StepInfo`). Empty means that the step runs unobserved.
    fn requests(&self, decode_step: usize) -> Vec<Request>;
    /// Receives a step's values, in the plan's order.
    fn observe(&mut self, step: StepInfo<'_>, values: Vec<Observed>) -> Result<()>;
}

/// Matches requests with a plan: for each node, what is wanted of it. Unknown layers and dims are errors.
pub fn match_requests(plan: &Plan, requests: &[Request]) -> Result<Vec<(ValueId, Want)>> {
    let mut found = Vec::new();
    let mut of_stage: BTreeMap<Stage, Vec<(Option<usize>, ValueId)>> = BTreeMap::new();
    for (i, node) in plan.nodes.iter().enumerate() {
        of_stage.entry(node.at.stage).or_default().push((node.at.layer, ValueId(i)));
    }
    for request in requests {
        let stage = request.stage;
        let all = of_stage.get(&stage).map(Vec::as_slice).unwrap_or_default();
        let missing = |layer: Option<usize>| absent(plan, stage, layer, &plan.layers_with(stage));
        let ids: Vec<ValueId> = match &request.layers {
            Some(layers) if all.iter().all(|(layer, _)| layer.is_some()) => {
                let of = |layer: &usize| all.iter().find(|(l, _)| *l == Some(*layer)).map(|(_, id)| *id);
                layers.iter().map(|l| of(l).ok_or_else(|| missing(Some(*l)))).collect::<Result<_>>()?
            }
            _ => all.iter().map(|(_, id)| *id).collect(),
        };
        if ids.is_empty() {
            return Err(missing(None));
        }
        for id in ids {
            let node = plan.node(id);
            if let Want::Gather { dims, .. } = &request.want
                && let Some(dim) = dims.iter().find(|d| **d >= node.width)
            {
                return Err(Error::invalid("dim", format!("{} has {} elements per token, so there is no dim {dim}", node.at, node.width)));
            }
            if request.want == Want::HeadStats && plan.heads(id).is_none() {
                return Err(Error::invalid("stage", format!("{} is not made of heads", node.at)));
            }
            found.push((id, request.want.clone()));
        }
    }
    found.sort_by_key(|(id, _)| *id);
    let wanted: BTreeSet<ValueId> = found.iter().filter(|(_, want)| *want == Want::Stats).map(|(id, _)| *id).collect();
    found.retain(|(id, want)| *want != Want::StatsIfMade || !wanted.contains(id));
    Ok(found)
}

/// Rows of logits that a step needs: every one where values or statistics of the head are wanted, as these exist for every
/// token; the last one's where a token is chosen. Chosen elements bring their own rows.
pub fn rows_of_logits(plan: &Plan, requests: &[Request], chooses: bool) -> Rows {
    let in_head = |r: &Request| plan.nodes.iter().position(|n| n.at.stage == r.stage).is_some_and(|i| plan.in_head(ValueId(i)));
    match requests.iter().any(|r| !matches!(r.want, Want::Gather { .. }) && in_head(r)) {
        true => Rows::All,
        false if chooses => Rows::Last,
        false => Rows::None,
    }
}

/// The rows, counted from the step's first token at position `first`, for which the head is computed, in ascending order:
/// those of `rows`, and those that `wanted` asks for. `None` is every row.
pub fn head_rows(plan: &Plan, wanted: &[(ValueId, Want)], rows: Rows, first: usize, tokens: usize) -> Option<Vec<usize>> {
    let mut found = match rows {
        Rows::All => return None,
        Rows::Last => tokens.checked_sub(1).into_iter().collect(),
        Rows::None => Vec::new(),
    };
    for (_, want) in wanted.iter().filter(|(id, _)| plan.in_head(*id)) {
        match want {
            Want::Gather { tokens: at, .. } => found.extend(at.iter().filter(|t| (first..first + tokens).contains(t)).map(|t| t - first)),
            Want::Full | Want::Stats | Want::StatsIfMade | Want::HeadStats => return None,
        }
    }
    found.sort_unstable();
    found.dedup();
    Some(found)
}

/// The error for a stage or layer that a model lacks.
fn absent(plan: &Plan, stage: Stage, layer: Option<usize>, having: &[usize]) -> Error {
    let names: Vec<&str> = plan.stages().iter().map(|s| s.name()).collect();
    match layer {
        Some(layer) if layer >= plan.num_layers => Error::invalid(
            "layer",
            format!("this model has layers 0 to {}, so there is no layer {layer}", plan.num_layers.saturating_sub(1)),
        ),
        Some(layer) if !having.is_empty() => {
            Error::invalid("layer", format!("layer {layer} has no stage `{stage}`; layers that have it: {having:?}"))
        }
        _ => {
            let near = crate::error::near_text(stage.name(), names);
            Error::invalid("stage", format!("this model has no stage `{stage}`{near}"))
        }
    }
}
