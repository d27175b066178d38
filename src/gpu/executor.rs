//! `GpuExecutor`: weights, pipelines and the programs that lowering makes; records a step, submits it once and
//! reads back what was asked.

use super::buffers::{Value, Values, storage_buffer};
use super::device::Gpu;
use super::lower::{self, KvBuffers, Lowering, MATVEC_ROWS, RopeBuffer};
use super::pipelines::{Call, Dispatch, Extent, Grid, Pipelines, RowCount, STEP_BYTES, STEP_SLOT, read, write};
use super::readback::{Piece, Pool, Readback};
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::exec::{Content, Executor, Observed, Pick, Read, Rows, Stats, Step, StepOutput, Storage, Tokens, Want, WeightSink, resolve};
use crate::plan::{At, Layout, Plan, Stage, ValueId, WeightId, rope};
use crate::tensor::{DType, Tensor, to_f32};
use std::collections::HashMap;
use std::rc::Rc;

/// Slots of the step uniform: the step itself and its batches of logits rows.
const STEP_SLOTS: u64 = 4096;
/// Spare positions of a windowed cache, so that decode steps run ahead of the host can be taken back.
const WINDOW_SLACK: usize = 16;
/// Words of a `Partial` in stats.wgsl, and the most of them per value.
const PARTIAL_WORDS: usize = 11;
const PARTIAL_GROUPS: usize = 64;
/// Candidates that one workgroup of top_k.wgsl reads.
const TOP_K_CHUNK: usize = 2048;
/// Most candidates that can be asked for.
pub const TOP_K_MAX: usize = 256;

/// A plan on a device.
#[derive(Debug)]
pub struct GpuExecutor {
    pub(super) gpu: Gpu,
    pub(super) plan: Plan,
    pub(super) storage: Storage,
    pub(super) weights: Weights,
    pub(super) pipelines: Pipelines,
    pub(super) pool: Pool,
}

/// One sequence's keys, values and step buffers.
#[derive(Debug)]
pub struct GpuCache {
    len: usize,
    /// Highest `len` since the last time it was zero.
    high: usize,
    capacity: usize,
    chunk: usize,
    kv: Vec<KvBuffers>,
    ropes: Vec<RopeBuffer>,
    values: Values,
    step: wgpu::Buffer,
    ids: wgpu::Buffer,
    serial: u32,
    programs: HashMap<ProgramKey, Rc<Program>>,
}

/// What makes two steps run the same dispatches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ProgramKey {
    tiled: bool,
    head: bool,
    top_k: usize,
    pick: Option<(usize, Option<u32>)>,
    requests: Vec<(ValueId, WantKey)>,
    /// [heads, T, positions] values are sized by the step.
    scores: Option<(usize, usize)>,
}

/// A `Want` without what changes from step to step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum WantKey {
    Full,
    Stats,
    Gather(Vec<usize>, Vec<usize>),
}

#[derive(Debug)]
struct Program {
    body: Vec<Item>,
    head: Vec<Item>,
    picks: Vec<Dispatch>,
    /// The last pass of top_k writes here.
    top: Option<wgpu::Buffer>,
    stats: Option<wgpu::Buffer>,
    gathered: Option<wgpu::Buffer>,
    gather_at: Option<wgpu::Buffer>,
    wanted: Vec<Wanted>,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Item {
    Run(Dispatch, At),
    /// Copy the value of `wanted[i]` out.
    Copy(usize),
}

/// A request of a program.
#[derive(Debug, Clone)]
struct Wanted {
    id: ValueId,
    value: Value,
    head: bool,
    kind: WantedKind,
}

#[derive(Debug, Clone)]
enum WantedKind {
    Full,
    Stats { slot: usize, groups: usize },
    Gather { first: usize, tokens: Vec<usize>, dims: Vec<usize> },
}

/// A submitted step.
#[derive(Debug)]
pub struct GpuPending {
    readback: Option<Readback>,
    layout: Vec<(Part, u64, u64)>,
    extent: Extent,
    batches: Vec<(usize, usize)>,
    program: Rc<Program>,
    valid: usize,
}

/// What a part of a readback holds.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    Top,
    Logits,
    /// Rows of `wanted[i]`.
    Full(usize),
    Stats,
    Gathered,
}

/// GPU time of one dispatch, from timestamps.
#[derive(Debug, Clone)]
pub struct DispatchTime {
    /// Kernel name.
    pub kernel: &'static str,
    /// The value being computed.
    pub at: At,
    /// Nanoseconds.
    pub nanoseconds: f64,
}

impl GpuExecutor {
    /// An executor of `plan` without weights. Plans that no kernel covers are refused.
    pub fn new(gpu: Gpu, plan: Plan, storage: Storage) -> Result<Self> {
        lower::supported(&plan)?;
        let weights = Weights::new(plan.weights.len());
        Ok(Self { gpu, plan, storage, weights, pipelines: Pipelines::default(), pool: Pool::default() })
    }
    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }
    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    /// Fills every weight with pseudo-random values of the spread of a trained model (uniform, 1/√columns; norms
    /// near 1 after their offset), made on the device. For benchmarks.
    pub fn fill_random(&mut self, dtype: DType) -> Result<()> {
        let step = step_buffer(&self.gpu)?;
        for index in 0..self.plan.weights.len() {
            let id = WeightId(index);
            let slot = &self.plan.weights[index];
            if slot.shape.len() == 1 {
                let ones = vec![if slot.bias { 0.0f32 } else { 1.0 }; slot.shape[0]];
                self.weights.put(&self.gpu, &self.plan, id, DType::F32, 0, bytemuck::cast_slice(&ones))?;
                continue;
            }
            let scale = 1.0 / (slot.shape[1] as f64).sqrt();
            let weight = self.weights.allocate(&self.gpu, &self.plan, id, dtype)?;
            let define = weight.define();
            let buffers: Vec<wgpu::Buffer> = weight.pieces.iter().map(|p| p.buffer.clone()).collect();
            for (i, buffer) in buffers.iter().enumerate() {
                let call = Call {
                    kernel: "fill",
                    defines: vec![define],
                    constants: Vec::new(),
                    params: vec![
                        ("words", (buffer.size() as usize / 4).into()),
                        ("seed", (index * 7919 + i).into()),
                        ("scale", scale.into()),
                    ],
                    buffers: vec![write(buffer)],
                    grid: Grid::Fixed(4096),
                };
                self.run_calls(vec![call], &step)?;
            }
            self.weights.mark_filled(id);
        }
        self.gpu.check()
    }

    /// Bytes per second, read and written, of a copy of `bytes`: the best of several runs, by the host's clock `now`
    /// (seconds).
    pub fn copy_bandwidth(&self, bytes: u64, now: &dyn Fn() -> f64) -> Result<f64> {
        let step = step_buffer(&self.gpu)?;
        let bytes = bytes.min(self.gpu.caps.max_binding).min(self.gpu.caps.max_buffer) / 16 * 16;
        let (a, b) = (storage_buffer(&self.gpu, "copy source", bytes)?, storage_buffer(&self.gpu, "copy target", bytes)?);
        let count = (bytes / 16) as usize;
        let call = Call {
            kernel: "copy",
            defines: Vec::new(),
            constants: Vec::new(),
            params: vec![("count", count.into())],
            buffers: vec![read(&a), write(&b)],
            grid: Grid::Items { rows: RowCount::One, per_row: count, per_group: 256 },
        };
        let mut best = 0.0f64;
        for _ in 0..5 {
            let start = now();
            self.run_calls(vec![call.clone(); 10], &step)?;
            self.wait()?;
            best = best.max(20.0 * bytes as f64 / (now() - start));
        }
        Ok(best)
    }

    /// Waits for everything submitted.
    pub fn wait(&self) -> Result<()> {
        self.gpu.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| Error::device(format!("waiting for the device: {e}")))?;
        self.gpu.check()
    }

    fn run_calls(&self, calls: Vec<Call>, step: &wgpu::Buffer) -> Result<()> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            let extent = Extent { tokens: 1, position: 0, head_rows: 1 };
            for call in calls {
                let dispatch = self.pipelines.dispatch(&self.gpu, call, step)?;
                record(&mut pass, &dispatch, extent, 0, self.gpu.caps.max_workgroups)?;
            }
        }
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.check()
    }

    fn make_kv(&self, capacity: usize, chunk: usize) -> Result<Vec<KvBuffers>> {
        let dtype = self.storage.cache;
        let make = |spec: &crate::plan::CacheSpec| {
            let slots = spec.window.map_or(capacity, |w| capacity.min(w + chunk + WINDOW_SLACK));
            let bytes = (slots * spec.kv_heads * spec.head_dim * dtype.size()) as u64;
            let buffer = |what: &str| storage_buffer(&self.gpu, &format!("{what} of layer {} for {slots} positions", spec.layer), bytes);
            Ok(KvBuffers { keys: buffer("keys")?, values: buffer("values")?, capacity: slots, dtype })
        };
        self.plan.caches.iter().map(make).collect()
    }

    pub(super) fn make_ropes(&self, positions: usize) -> Result<Vec<RopeBuffer>> {
        let make = |config: &crate::config::model::RopeConfig| {
            let long = matches!(config.scaling, crate::config::model::RopeScaling::LongRope { .. });
            let tables: Vec<_> = if long { vec![false, true] } else { vec![false] };
            let mut data: Vec<f32> = Vec::new();
            let mut half = 0;
            for variant in &tables {
                let table = rope::table(config, positions, *variant);
                half = table.half;
                data.extend(table.cos);
                data.extend(table.sin);
            }
            let buffer = storage_buffer(&self.gpu, "RoPE table", (data.len() * 4) as u64)?;
            self.gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&data));
            Ok(RopeBuffer { buffer, half, positions, variants: tables.len() })
        };
        self.plan.ropes.iter().map(make).collect()
    }

    /// The program of a step, from the cache's or newly lowered.
    fn program(&self, cache: &mut GpuCache, key: ProgramKey) -> Result<Rc<Program>> {
        if let Some(found) = cache.programs.get(&key) {
            return Ok(found.clone());
        }
        if cache.programs.len() > 32 {
            cache.programs.clear();
        }
        let program = Rc::new(self.lower(cache, &key)?);
        cache.programs.insert(key, program.clone());
        Ok(program)
    }

    fn lower(&self, cache: &mut GpuCache, key: &ProgramKey) -> Result<Program> {
        let (unfused, notes) = self.unfused(&key.requests);
        if let Some((tokens, positions)) = key.scores {
            self.make_scores(&mut cache.values, &unfused, tokens, positions)?;
        }
        let lowering = Lowering {
            gpu: &self.gpu,
            plan: &self.plan,
            weights: &self.weights,
            values: &cache.values,
            kv: &cache.kv,
            ropes: &cache.ropes,
            ids: &cache.ids,
            tiled: key.tiled,
            unfused: &unfused,
        };
        let mut wanted = Vec::new();
        let (mut partials, mut gathers) = (0, 0);
        for (id, want) in &key.requests {
            let value = cache.values.get(&self.plan, *id)?.clone();
            let head = self.plan.head_input().is_some_and(|h| *id > h);
            let kind = match want {
                WantKey::Full => WantedKind::Full,
                WantKey::Stats => {
                    let groups = if key.tiled || key.scores.is_some() {
                        PARTIAL_GROUPS
                    } else {
                        self.plan.node(*id).width.div_ceil(4096).clamp(1, PARTIAL_GROUPS)
                    };
                    let batches = if head { cache.chunk.div_ceil(cache.values.head_batch) } else { 1 };
                    partials += groups * batches;
                    WantedKind::Stats { slot: partials - groups * batches, groups }
                }
                WantKey::Gather(tokens, dims) => {
                    gathers += tokens.len() * dims.len();
                    WantedKind::Gather { first: gathers - tokens.len() * dims.len(), tokens: tokens.clone(), dims: dims.clone() }
                }
            };
            wanted.push(Wanted { id: *id, value, head, kind });
        }
        let make = |what: &str, count: usize, bytes: usize| {
            if count == 0 { Ok(None) } else { storage_buffer(&self.gpu, what, (count * bytes) as u64).map(Some) }
        };
        let stats = make("statistics", partials, PARTIAL_WORDS * 4)?;
        let gathered = make("gathered values", gathers, 4)?;
        let gather_at = make("gather indices", gathers, 8)?;

        let (mut body, mut head) = (Vec::new(), Vec::new());
        for index in 0..self.plan.nodes.len() {
            let id = ValueId(index);
            let at = self.plan.nodes[index].at;
            let is_head = self.plan.head_input().is_some_and(|h| id > h);
            if is_head && !key.head {
                continue;
            }
            let items = if is_head { &mut head } else { &mut body };
            for call in lowering.node(id)? {
                items.push(Item::Run(self.pipelines.dispatch(&self.gpu, call, &cache.step)?, at));
            }
            for (i, want) in wanted.iter().enumerate().filter(|(_, w)| w.id == id) {
                match self.observe_call(want, &stats, &gathered, &gather_at) {
                    Some(call) => items.push(Item::Run(self.pipelines.dispatch(&self.gpu, call, &cache.step)?, at)),
                    None => items.push(Item::Copy(i)),
                }
            }
        }
        let (picks, top) = self.picks(cache, key)?;
        Ok(Program { body, head, picks, top, stats, gathered, gather_at, wanted, notes })
    }

    /// Layers whose attention cannot be fused because its inside is wanted, and the note that says so.
    fn unfused(&self, requests: &[(ValueId, WantKey)]) -> (Vec<bool>, Vec<String>) {
        let mut unfused = vec![false; self.plan.num_layers];
        let mut stages = Vec::new();
        for (id, _) in requests {
            let at = self.plan.node(*id).at;
            if let (Layout::Scores, Some(layer)) = (at.stage.info().layout, at.layer) {
                unfused[layer] = true;
                if !stages.contains(&at.stage.name()) {
                    stages.push(at.stage.name());
                }
            }
        }
        let layers: Vec<usize> = (0..unfused.len()).filter(|l| unfused[*l]).collect();
        let notes = if layers.is_empty() {
            Vec::new()
        } else {
            let which = if layers.len() == self.plan.num_layers { "all layers".to_string() } else { format!("layers {layers:?}") };
            vec![format!(
                "fusion dropped: attention runs as attn_scores, attn_probs and attn_mix in {which}, because {} was asked for",
                stages.join(" and ")
            )]
        };
        (unfused, notes)
    }

    /// One buffer for the scores and one for the probabilities, shared by the layers that need them.
    fn make_scores(&self, values: &mut Values, unfused: &[bool], tokens: usize, positions: usize) -> Result<()> {
        for stage in [Stage::AttnScores, Stage::AttnProbs] {
            let mut shared: Option<wgpu::Buffer> = None;
            for (index, node) in self.plan.nodes.iter().enumerate() {
                if node.at.stage != stage || !unfused[node.at.layer.unwrap_or(0)] {
                    continue;
                }
                let bytes = (node.width * tokens * positions * 4) as u64;
                if shared.as_ref().is_none_or(|b| b.size() < bytes) {
                    shared = Some(storage_buffer(&self.gpu, stage.name(), bytes)?);
                }
                if let Some(buffer) = &shared {
                    values.set(ValueId(index), Value { buffer: buffer.clone(), dtype: DType::F32, stride: positions });
                }
            }
        }
        Ok(())
    }

    /// The dispatch that reduces or gathers a wanted value; `None` where it is copied whole.
    fn observe_call(
        &self,
        want: &Wanted,
        stats: &Option<wgpu::Buffer>,
        gathered: &Option<wgpu::Buffer>,
        gather_at: &Option<wgpu::Buffer>,
    ) -> Option<Call> {
        let node = self.plan.node(want.id);
        let mut defines = if want.value.dtype == DType::F16 { vec!["X_F16"] } else { Vec::new() };
        match &want.kind {
            WantedKind::Full => None,
            WantedKind::Stats { slot, groups } => {
                let scores = node.at.stage.info().layout == Layout::Scores;
                let kind: u32 = if scores { 2 } else { u32::from(want.head) };
                Some(Call {
                    kernel: "stats",
                    defines,
                    constants: Vec::new(),
                    params: vec![
                        ("width", node.width.into()),
                        ("stride", want.value.stride.into()),
                        ("kind", kind.into()),
                        ("heads", if scores { node.width } else { 1 }.into()),
                        ("groups", (*groups).into()),
                        ("slot", (*slot).into()),
                    ],
                    buffers: vec![read(&want.value.buffer), write(stats.as_ref()?)],
                    grid: Grid::Fixed(*groups as u32),
                })
            }
            WantedKind::Gather { first, tokens, dims } => {
                let count = tokens.len() * dims.len();
                if want.head {
                    defines.push("HEAD");
                }
                Some(Call {
                    kernel: "gather",
                    defines,
                    constants: Vec::new(),
                    params: vec![("count", count.into()), ("slot", (*first).into()), ("stride", want.value.stride.into())],
                    buffers: vec![read(&want.value.buffer), read(gather_at.as_ref()?), write(gathered.as_ref()?)],
                    grid: Grid::Fixed(count.div_ceil(64) as u32),
                })
            }
        }
    }

    /// The passes of top_k over the last row of logits.
    fn picks(&self, cache: &GpuCache, key: &ProgramKey) -> Result<(Vec<Dispatch>, Option<wgpu::Buffer>)> {
        let (Some((valid, masked)), true) = (key.pick, key.head && key.top_k > 0) else { return Ok((Vec::new(), None)) };
        let last = ValueId(self.plan.nodes.len() - 1);
        let logits = cache.values.get(&self.plan, last)?;
        let (mut count, mut input): (usize, Option<wgpu::Buffer>) = (self.plan.vocab_size, None);
        let mut dispatches = Vec::new();
        loop {
            let groups = count.div_ceil(TOP_K_CHUNK);
            let out = storage_buffer(&self.gpu, "candidates", (groups * key.top_k * 8) as u64)?;
            let mut defines = Vec::new();
            let mut buffers = match &input {
                None => {
                    defines.push("FIRST");
                    vec![read(&logits.buffer)]
                }
                Some(buffer) => vec![read(buffer)],
            };
            buffers.push(write(&out));
            if groups == 1 {
                defines.push("LAST");
                buffers.push(write(&cache.ids));
            }
            let call = Call {
                kernel: "top_k",
                defines,
                constants: Vec::new(),
                params: vec![
                    ("count", count.into()),
                    ("k", key.top_k.into()),
                    ("valid", valid.into()),
                    ("masked", masked.unwrap_or(u32::MAX).into()),
                    ("stride", logits.stride.into()),
                ],
                buffers,
                grid: Grid::Items { rows: RowCount::One, per_row: groups, per_group: 1 },
            };
            dispatches.push(self.pipelines.dispatch(&self.gpu, call, &cache.step)?);
            if groups == 1 {
                return Ok((dispatches, Some(out)));
            }
            count = groups * key.top_k;
            input = Some(out);
        }
    }

    /// What identifies the program of `step`, and its tokens.
    fn key(&self, cache: &GpuCache, step: &Step<'_>) -> Result<(ProgramKey, usize, Vec<(usize, usize)>)> {
        let tokens = match step.tokens {
            Tokens::Ids(ids) => {
                if let Some(id) = ids.iter().find(|id| **id as usize >= self.plan.vocab_size) {
                    let message = format!("token id {id} is outside the model's vocabulary of {} rows", self.plan.vocab_size);
                    return Err(Error::invalid("token ids", message));
                }
                ids.len()
            }
            Tokens::Picked => 1,
        };
        if tokens == 0 {
            return Err(Error::invalid("step", "no tokens"));
        }
        if tokens > cache.chunk || cache.len + tokens > cache.capacity {
            let message = format!(
                "{tokens} tokens at position {} do not fit a cache of {} positions and steps of {}",
                cache.len, cache.capacity, cache.chunk
            );
            return Err(Error::invalid("step", message));
        }
        let resolved = resolve(&self.plan, step.requests)?;
        let batches = self.head_batches(cache, tokens, step.rows, &resolved);
        let top_k = match (step.read, step.pick) {
            (Read::Top(k), Some(_)) if k <= TOP_K_MAX => k.max(1),
            (Read::Top(k), Some(_)) => return Err(Error::invalid("topK", format!("at most {TOP_K_MAX} candidates can be read, not {k}"))),
            (Read::Top(_), None) => return Err(Error::invalid("step", "candidates need the rules of a pick")),
            (_, pick) => usize::from(pick.is_some()),
        };
        if let Some(pick) = step.pick
            && (pick.valid == 0 || pick.valid > self.plan.vocab_size)
        {
            return Err(Error::invalid("step", format!("{} valid ids in a vocabulary of {}", pick.valid, self.plan.vocab_size)));
        }
        let scores = resolved.iter().any(|(id, _)| self.plan.node(*id).at.stage.info().layout == Layout::Scores);
        let last = cache.len + tokens;
        let requests = resolved.into_iter().map(|(id, want)| {
            let want = match want {
                Want::Full => WantKey::Full,
                Want::Stats => WantKey::Stats,
                Want::Gather { tokens, dims } => {
                    WantKey::Gather(tokens.into_iter().filter(|t| (cache.len..last).contains(t)).map(|t| t - cache.len).collect(), dims)
                }
            };
            (id, want)
        });
        let key = ProgramKey {
            tiled: tokens > MATVEC_ROWS,
            head: !batches.is_empty(),
            top_k: if batches.is_empty() { 0 } else { top_k },
            pick: step.pick.map(|p| (p.valid, p.masked)),
            requests: requests.filter(|(_, w)| !matches!(w, WantKey::Gather(t, d) if t.is_empty() || d.is_empty())).collect(),
            scores: scores.then_some((tokens, last)),
        };
        if key
            .requests
            .iter()
            .any(|(id, w)| matches!(w, WantKey::Gather(..)) && self.plan.node(*id).at.stage.info().layout == Layout::Scores)
        {
            return Err(Error::invalid("probe", "attn_scores and attn_probs are read whole or as statistics, not by dims"));
        }
        Ok((key, tokens, batches))
    }

    /// (first row, rows) of each batch of logits, the last token's last. Whole values and statistics take every row,
    /// chosen elements only their own.
    fn head_batches(&self, cache: &GpuCache, tokens: usize, rows: Rows, resolved: &[(ValueId, Want)]) -> Vec<(usize, usize)> {
        let mut all = rows == Rows::All;
        let mut single: Vec<usize> = if rows == Rows::Last { vec![tokens - 1] } else { Vec::new() };
        for (_, want) in resolved.iter().filter(|(id, _)| self.plan.head_input().is_some_and(|h| *id > h)) {
            match want {
                Want::Gather { tokens: at, .. } => {
                    single.extend(at.iter().filter(|t| (cache.len..cache.len + tokens).contains(t)).map(|t| t - cache.len))
                }
                Want::Full | Want::Stats => all = true,
            }
        }
        if all {
            let batch = cache.values.head_batch;
            return (0..tokens).step_by(batch).map(|first| (first, batch.min(tokens - first))).collect();
        }
        single.sort_unstable();
        single.dedup();
        single.into_iter().map(|row| (row, 1)).collect()
    }

    /// Runs one decode step with a timestamp around every dispatch. Needs an adapter with timestamps.
    pub async fn profile(&self, cache: &mut GpuCache, step: &Step<'_>) -> Result<Vec<DispatchTime>> {
        if !self.gpu.caps.timestamps {
            return Err(Error::device("this adapter has no timestamps, so kernels cannot be timed"));
        }
        let (key, tokens, batches) = self.key(cache, step)?;
        let program = self.program(cache, key)?;
        let extent = Extent { tokens, position: cache.len, head_rows: batches.last().map_or(0, |b| b.1) };
        let serial = self.begin(cache, step, extent, &batches)?;
        let items: Vec<(&Dispatch, At)> = program
            .body
            .iter()
            .chain(&program.head)
            .filter_map(|i| if let Item::Run(d, at) = i { Some((d, *at)) } else { None })
            .chain(program.picks.iter().map(|d| (d, At { stage: Stage::Sampled, layer: None })))
            .collect();
        let mut times = Vec::with_capacity(items.len());
        // Query sets hold 4096 entries at most.
        for batch in items.chunks(2000) {
            let count = 2 * batch.len() as u32;
            let queries =
                self.gpu.device.create_query_set(&wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count });
            let size = u64::from(count) * 8;
            let resolved = self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            for (i, (dispatch, _)) in batch.iter().enumerate() {
                let writes = wgpu::ComputePassTimestampWrites {
                    query_set: &queries,
                    beginning_of_pass_write_index: Some(2 * i as u32),
                    end_of_pass_write_index: Some(2 * i as u32 + 1),
                };
                let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: Some(writes) };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                record(&mut pass, dispatch, extent, 0, self.gpu.caps.max_workgroups)?;
            }
            encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
            let piece = Piece { source: resolved, source_offset: 0, offset: 0, bytes: size };
            let readback = self.read_out(encoder, &[piece], size + 4, &cache.step, serial)?;
            let period = f64::from(self.gpu.queue.get_timestamp_period());
            let ticks: Vec<u64> = self.pool.finish(&self.gpu, readback, |bytes| bytes.chunks_exact(8).map(u64_le).collect()).await?;
            for (i, (dispatch, at)) in batch.iter().enumerate() {
                let nanoseconds = ticks[2 * i + 1].saturating_sub(ticks[2 * i]) as f64 * period;
                times.push(DispatchTime { kernel: dispatch.kernel, at: *at, nanoseconds });
            }
        }
        cache.len += tokens;
        cache.high = cache.high.max(cache.len);
        Ok(times)
    }

    /// Names of the dispatches of an unobserved decode step with a greedy choice, in order: what a snapshot holds.
    pub fn decode_dispatches(&self, cache: &mut GpuCache, pick: Pick) -> Result<Vec<String>> {
        let key =
            ProgramKey { tiled: false, head: true, top_k: 1, pick: Some((pick.valid, pick.masked)), requests: Vec::new(), scores: None };
        let program = self.program(cache, key)?;
        let items = program.body.iter().chain(&program.head);
        let runs = items.filter_map(|i| if let Item::Run(d, at) = i { Some(format!("{} {at}", d.kernel)) } else { None });
        Ok(runs.chain(program.picks.iter().map(|d| format!("{} sampled", d.kernel))).collect())
    }

    /// Writes what a step's kernels read of it: slot 0 for all, then one slot per batch of logits rows.
    fn begin(&self, cache: &mut GpuCache, step: &Step<'_>, extent: Extent, batches: &[(usize, usize)]) -> Result<u32> {
        cache.serial = cache.serial.wrapping_add(1).max(1);
        if let Tokens::Ids(ids) = step.tokens {
            self.gpu.queue.write_buffer(&cache.ids, 0, bytemuck::cast_slice(ids));
        }
        if batches.len() as u64 >= STEP_SLOTS {
            return Err(Error::memory("too many rows of logits for one step; use a smaller prefill chunk"));
        }
        let slot = |batch: usize, first: usize, count: usize| {
            [
                extent.tokens as u32,
                extent.position as u32,
                cache.serial,
                first as u32,
                count as u32,
                u32::from(step.long_rope),
                batch as u32,
            ]
        };
        let mut bytes = vec![0u8; (STEP_SLOT as usize) * (batches.len() + 1)];
        let first = batches.last().copied().unwrap_or((0, 0));
        for (i, (from, count)) in std::iter::once(first).chain(batches.iter().copied()).enumerate() {
            let at = i * STEP_SLOT as usize;
            bytes[at..at + STEP_BYTES as usize].copy_from_slice(bytemuck::cast_slice(&slot(i.saturating_sub(1), from, count)));
        }
        self.gpu.queue.write_buffer(&cache.step, 0, &bytes);
        Ok(cache.serial)
    }

    /// Adds the copies and the guard, submits, and starts mapping.
    pub(super) fn read_out(
        &self,
        mut encoder: wgpu::CommandEncoder,
        pieces: &[Piece],
        bytes: u64,
        step: &wgpu::Buffer,
        serial: u32,
    ) -> Result<Readback> {
        let target = self.pool.take(&self.gpu, bytes)?;
        for piece in pieces {
            encoder.copy_buffer_to_buffer(&piece.source, piece.source_offset, &target, piece.offset, piece.bytes);
        }
        encoder.copy_buffer_to_buffer(step, 8, &target, bytes - 4, 4);
        let submission = self.gpu.queue.submit([encoder.finish()]);
        self.gpu.check()?;
        Ok(Readback::start(target, bytes, serial, submission))
    }
}

fn u64_le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

pub(super) fn step_buffer(gpu: &Gpu) -> Result<wgpu::Buffer> {
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    let descriptor = wgpu::BufferDescriptor { label: Some("step"), size: STEP_SLOT * STEP_SLOTS, usage, mapped_at_creation: false };
    let buffer = gpu.device.create_buffer(&descriptor);
    gpu.check()?;
    Ok(buffer)
}

pub(super) fn record(pass: &mut wgpu::ComputePass<'_>, dispatch: &Dispatch, extent: Extent, slot: usize, limit: u32) -> Result<()> {
    let [x, y, z] = dispatch.grid.size(extent, limit)?;
    if x == 0 || y == 0 || z == 0 {
        return Ok(());
    }
    pass.set_pipeline(&dispatch.pipeline);
    pass.set_bind_group(0, &dispatch.bind_group, &[(slot as u64 * STEP_SLOT) as u32]);
    pass.dispatch_workgroups(x, y, z);
    Ok(())
}

impl WeightSink for GpuExecutor {
    fn put(&mut self, id: WeightId, dtype: DType, first_row: usize, bytes: bytes::Bytes) -> Result<()> {
        self.weights.put(&self.gpu, &self.plan, id, dtype, first_row, &bytes)
    }
}

impl Executor for GpuExecutor {
    type Cache = GpuCache;
    type Pending = GpuPending;

    fn plan(&self) -> &Plan {
        &self.plan
    }
    fn describe(&self) -> String {
        let caps = &self.gpu.caps;
        let subgroup = caps.subgroup.map(|s| format!(", subgroups of {s}")).unwrap_or_default();
        format!("gpu {} ({}{subgroup})", caps.name, caps.driver)
    }
    fn storage(&self) -> Storage {
        self.storage
    }
    fn new_cache(&self, capacity: usize, chunk: usize) -> Result<GpuCache> {
        if capacity == 0 || chunk == 0 {
            return Err(Error::invalid("cache", format!("capacity {capacity} and chunk {chunk} must be above 0")));
        }
        let chunk = chunk.min(capacity);
        Ok(GpuCache {
            len: 0,
            high: 0,
            capacity,
            chunk,
            kv: self.make_kv(capacity, chunk)?,
            ropes: self.make_ropes(capacity)?,
            values: Values::new(&self.gpu, &self.plan, self.storage, chunk)?,
            step: step_buffer(&self.gpu)?,
            ids: storage_buffer(&self.gpu, "token ids", (chunk * 4) as u64)?,
            serial: 0,
            programs: HashMap::new(),
        })
    }
    fn grow(&self, cache: &mut GpuCache, capacity: usize) -> Result<()> {
        if capacity <= cache.capacity {
            return Ok(());
        }
        let grown = self.make_kv(capacity, cache.chunk)?;
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for (old, new) in cache.kv.iter_mut().zip(grown) {
            if new.capacity == old.capacity {
                continue; // a windowed layer that already has its full ring
            }
            // A cache that can still grow has never wrapped: position q is in slot q.
            encoder.copy_buffer_to_buffer(&old.keys, 0, &new.keys, 0, old.keys.size());
            encoder.copy_buffer_to_buffer(&old.values, 0, &new.values, 0, old.values.size());
            *old = new;
        }
        self.gpu.queue.submit([encoder.finish()]);
        cache.ropes = self.make_ropes(capacity)?;
        cache.capacity = capacity;
        cache.programs.clear();
        self.gpu.check()
    }
    fn len(&self, cache: &GpuCache) -> usize {
        cache.len
    }
    fn capacity(&self, cache: &GpuCache) -> usize {
        cache.capacity
    }
    fn truncate(&self, cache: &mut GpuCache, len: usize) -> bool {
        let lost = |spec: &crate::plan::CacheSpec, kv: &KvBuffers| {
            spec.window.is_some_and(|w| cache.high > kv.capacity && len + kv.capacity < cache.high + w)
        };
        if len > cache.len || (len > 0 && self.plan.caches.iter().zip(&cache.kv).any(|(s, k)| lost(s, k))) {
            return false;
        }
        cache.len = len;
        if len == 0 {
            cache.high = 0;
        }
        true
    }

    fn submit(&self, cache: &mut GpuCache, step: &Step<'_>) -> Result<GpuPending> {
        let (key, tokens, batches) = self.key(cache, step)?;
        let valid = key.pick.map_or(self.plan.vocab_size, |p| p.0);
        let program = self.program(cache, key)?;
        let position = cache.len;
        let extent = Extent { tokens, position, head_rows: batches.last().map_or(0, |b| b.1) };
        let serial = self.begin(cache, step, extent, &batches)?;
        self.write_gather_indices(&program);

        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut pieces = Vec::new();
        let mut layout: Vec<(Part, u64, u64)> = Vec::new();
        let mut used = 0u64;
        let mut add = |part: Part, source: &wgpu::Buffer, source_offset: u64, bytes: u64| {
            layout.push((part, used, bytes));
            used += bytes;
            Piece { source: source.clone(), source_offset, offset: used - bytes, bytes }
        };
        // Full values are copied where they arise, since their buffers are used again: sizes first, then recording.
        let rows_of = |i: usize, batch_rows: usize| {
            let wanted = &program.wanted[i];
            if self.plan.node(wanted.id).at.stage.info().layout == Layout::Scores {
                (self.plan.node(wanted.id).width * tokens * (position + tokens) * 4) as u64
            } else {
                (if wanted.head { batch_rows } else { tokens } * wanted.value.row_bytes()) as u64
            }
        };
        let mut inline: Vec<Piece> = Vec::new();
        for item in &program.body {
            if let Item::Copy(i) = item {
                inline.push(add(Part::Full(*i), &program.wanted[*i].value.buffer, 0, rows_of(*i, 0)));
            }
        }
        for (_, count) in &batches {
            for item in &program.head {
                if let Item::Copy(i) = item {
                    inline.push(add(Part::Full(*i), &program.wanted[*i].value.buffer, 0, rows_of(*i, *count)));
                }
            }
        }
        if let Some(top) = &program.top {
            pieces.push(add(Part::Top, top, 0, top.size().min((step_top(step) * 8) as u64)));
        }
        if step.read == Read::Logits && !batches.is_empty() {
            let logits = cache.values.get(&self.plan, ValueId(self.plan.nodes.len() - 1))?;
            let offset = ((extent.head_rows - 1) * logits.row_bytes()) as u64;
            pieces.push(add(Part::Logits, &logits.buffer, offset, logits.row_bytes() as u64));
        }
        for (part, buffer) in [(Part::Stats, &program.stats), (Part::Gathered, &program.gathered)] {
            if let Some(buffer) = buffer {
                pieces.push(add(part, buffer, 0, buffer.size()));
            }
        }
        let bytes = used + 4;
        let early = if inline.is_empty() { None } else { Some(self.pool.take(&self.gpu, bytes)?) };
        let mut inline = inline.into_iter();
        let mut recorder = Recorder { encoder: &mut encoder, pass: None, limit: self.gpu.caps.max_workgroups };
        recorder.items(&program.body, extent, 0, &mut inline, early.as_ref())?;
        for (slot, (_, count)) in batches.iter().enumerate() {
            recorder.items(&program.head, Extent { head_rows: *count, ..extent }, slot + 1, &mut inline, early.as_ref())?;
        }
        for dispatch in &program.picks {
            recorder.run(dispatch, extent, 0)?;
        }
        drop(recorder);
        cache.len += tokens;
        cache.high = cache.high.max(cache.len);
        let readback = if used == 0 {
            self.gpu.queue.submit([encoder.finish()]);
            self.gpu.check()?;
            None
        } else if let Some(target) = early {
            for piece in &pieces {
                encoder.copy_buffer_to_buffer(&piece.source, piece.source_offset, &target, piece.offset, piece.bytes);
            }
            encoder.copy_buffer_to_buffer(&cache.step, 8, &target, bytes - 4, 4);
            let submission = self.gpu.queue.submit([encoder.finish()]);
            self.gpu.check()?;
            Some(Readback::start(target, bytes, serial, submission))
        } else {
            Some(self.read_out(encoder, &pieces, bytes, &cache.step, serial)?)
        };
        Ok(GpuPending { readback, layout, extent, batches, program, valid })
    }

    async fn finish(&self, pending: GpuPending) -> Result<StepOutput> {
        let GpuPending { readback, layout, extent, batches, program, valid } = pending;
        let mut output = StepOutput { notes: program.notes.clone(), ..Default::default() };
        let Some(readback) = readback else { return Ok(output) };
        self.pool
            .finish(&self.gpu, readback, |bytes| {
                let mut full: Vec<Vec<f32>> = vec![Vec::new(); program.wanted.len()];
                let (mut stats, mut gathered): (&[u8], Vec<f32>) = (&[], Vec::new());
                for (part, offset, size) in &layout {
                    let part_bytes = &bytes[*offset as usize..(*offset + *size) as usize];
                    match part {
                        Part::Top => {
                            let top: Vec<(u32, f32)> = part_bytes.chunks_exact(8).filter_map(candidate).collect();
                            output.token = top.first().map(|t| t.0).filter(|t| (*t as usize) < valid);
                            output.top = Some(top);
                        }
                        Part::Logits => output.logits = Some(to_f32(part_bytes, DType::F32)[..self.plan.vocab_size].to_vec()),
                        Part::Full(i) => full[*i].extend(self.unpad(&program.wanted[*i], part_bytes)),
                        Part::Stats => stats = part_bytes,
                        Part::Gathered => gathered = to_f32(part_bytes, DType::F32),
                    }
                }
                for (i, wanted) in program.wanted.iter().enumerate() {
                    let content = self.content(wanted, extent, &batches, std::mem::take(&mut full[i]), stats, &gathered)?;
                    output.values.push(Observed { at: self.plan.node(wanted.id).at, first_token: extent.position, content });
                }
                Ok(())
            })
            .await??;
        Ok(output)
    }

    async fn eval(&self, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor> {
        super::eval::eval(self, id, inputs, first_position, long_rope).await
    }
}

/// Entries that a step reads of its candidates.
fn step_top(step: &Step<'_>) -> usize {
    if let Read::Top(k) = step.read { k.max(1) } else { 1 }
}

/// A (key, id) entry of top_k.wgsl as (id, logit); `None` for empty entries.
fn candidate(bytes: &[u8]) -> Option<(u32, f32)> {
    let key = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let id = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let bits = if key & 0x8000_0000 != 0 { key & 0x7fff_ffff } else { !key };
    (id != u32::MAX && key != 0).then_some((id, f32::from_bits(bits)))
}

/// Records dispatches, leaving the pass only where a value is copied.
struct Recorder<'e> {
    encoder: &'e mut wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
    limit: u32,
}

impl Recorder<'_> {
    fn run(&mut self, dispatch: &Dispatch, extent: Extent, slot: usize) -> Result<()> {
        let pass = self.pass.get_or_insert_with(|| self.encoder.begin_compute_pass(&Default::default()).forget_lifetime());
        record(pass, dispatch, extent, slot, self.limit)
    }
    fn items(
        &mut self,
        items: &[Item],
        extent: Extent,
        slot: usize,
        inline: &mut impl Iterator<Item = Piece>,
        target: Option<&wgpu::Buffer>,
    ) -> Result<()> {
        for item in items {
            match item {
                Item::Run(dispatch, _) => self.run(dispatch, extent, slot)?,
                Item::Copy(_) => {
                    self.pass = None;
                    if let (Some(piece), Some(target)) = (inline.next(), target) {
                        self.encoder.copy_buffer_to_buffer(&piece.source, piece.source_offset, target, piece.offset, piece.bytes);
                    }
                }
            }
        }
        Ok(())
    }
}

impl GpuExecutor {
    /// (row, dim) of every gathered element.
    fn write_gather_indices(&self, program: &Program) {
        let Some(buffer) = &program.gather_at else { return };
        let mut indices: Vec<u32> = Vec::new();
        for wanted in &program.wanted {
            if let WantedKind::Gather { tokens, dims, .. } = &wanted.kind {
                indices.extend(tokens.iter().flat_map(|t| dims.iter().flat_map(|d| [*t as u32, *d as u32])));
            }
        }
        self.gpu.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&indices));
    }

    /// Rows without their padding, as f32.
    fn unpad(&self, wanted: &Wanted, bytes: &[u8]) -> Vec<f32> {
        let all = to_f32(bytes, wanted.value.dtype);
        let node = self.plan.node(wanted.id);
        if node.at.stage.info().layout == Layout::Scores || wanted.value.stride == node.width {
            return all;
        }
        all.chunks_exact(wanted.value.stride).flat_map(|row| &row[..node.width]).copied().collect()
    }

    fn content(
        &self,
        wanted: &Wanted,
        extent: Extent,
        batches: &[(usize, usize)],
        full: Vec<f32>,
        stats: &[u8],
        gathered: &[f32],
    ) -> Result<Content> {
        let node = self.plan.node(wanted.id);
        let scores = node.at.stage.info().layout == Layout::Scores;
        Ok(match &wanted.kind {
            WantedKind::Full if scores => {
                Content::Full(Tensor::new(vec![node.width, extent.tokens, extent.position + extent.tokens], full)?)
            }
            WantedKind::Full => Content::Full(Tensor::new(vec![extent.tokens, node.width], full)?),
            WantedKind::Stats { slot, groups } => {
                let width = if scores { extent.position + extent.tokens } else { node.width };
                let bytes = |batch: usize| {
                    let first = slot + batch * groups;
                    &stats[first * PARTIAL_WORDS * 4..(first + groups) * PARTIAL_WORDS * 4]
                };
                let first_rows = if wanted.head { batches.iter().map(|b| b.0).collect() } else { vec![0] };
                let parts: Vec<(usize, &[u8])> = first_rows.into_iter().enumerate().map(|(i, row)| (row, bytes(i))).collect();
                Content::Stats(combine(&parts, width))
            }
            WantedKind::Gather { first, tokens, dims } => {
                let pairs = tokens.iter().flat_map(|t| dims.iter().map(move |d| (extent.position + t, *d)));
                Content::Gather(pairs.zip(&gathered[*first..]).map(|((t, d), v)| (t, d, *v)).collect())
            }
        })
    }
}

/// Combines the partial statistics of stats.wgsl, given with the row that each batch begins at; sums in f64.
fn combine(parts: &[(usize, &[u8])], width: usize) -> Stats {
    let mut stats = Stats { max_abs: -1.0, min: f32::MAX, max: f32::MIN, ..Default::default() };
    let (mut sum, mut squares, mut max_at, mut bad_at, mut any_nan) = (0.0f64, 0.0f64, u32::MAX, u32::MAX, false);
    let chunks = parts.iter().flat_map(|(row, bytes)| bytes.chunks_exact(PARTIAL_WORDS * 4).map(move |part| (*row, part)));
    for (row, part) in chunks {
        let raw = |i: usize| u32::from_le_bytes([part[4 * i], part[4 * i + 1], part[4 * i + 2], part[4 * i + 3]]);
        // places are counted from the batch's first row
        let word = |i: usize| if matches!(i, 1 | 9) { raw(i).saturating_add((row * width) as u32) } else { raw(i) };
        let real = |i: usize| f32::from_bits(word(i));
        if real(0) > stats.max_abs || (real(0) == stats.max_abs && word(1) < max_at) {
            (stats.max_abs, max_at) = (real(0), word(1));
        }
        sum += f64::from(real(2));
        squares += f64::from(real(3));
        stats.min = stats.min.min(real(4));
        stats.max = stats.max.max(real(5));
        let has_nan = word(6) > 0;
        if word(6) + word(7) > 0 && (has_nan && !any_nan || (has_nan == any_nan && word(9) < bad_at)) {
            bad_at = word(9);
        }
        any_nan |= has_nan;
        stats.nan += u64::from(word(6));
        stats.inf += u64::from(word(7));
        stats.zero += u64::from(word(8));
        stats.count += u64::from(word(10));
    }
    let finite = stats.count - stats.nan - stats.inf;
    if finite == 0 {
        (stats.min, stats.max, stats.max_abs) = (0.0, 0.0, 0.0);
    } else {
        stats.mean = (sum / finite as f64) as f32;
        stats.rms = (squares / finite as f64).sqrt() as f32;
    }
    if stats.nan > 0 {
        (stats.max_abs, max_at) = (f32::NAN, bad_at);
    } else if stats.inf > 0 {
        (stats.max_abs, max_at) = (f32::INFINITY, bad_at);
    }
    let at = if max_at == u32::MAX { 0 } else { max_at as usize };
    (stats.max_row, stats.max_dim) = ((at / width.max(1)) as u32, (at % width.max(1)) as u32);
    stats
}
