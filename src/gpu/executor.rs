//! `GpuExecutor`: weights, pipelines and the programs that lowering makes; records a step, submits it once and
//! reads back what was asked.

use super::buffers::{Values, storage_buffer};
use super::device::Gpu;
use super::log::{Kept, Noted};
use super::lower::{self, KvBuffers, RopeBuffer};
use super::observe::candidate;
use super::pipelines::{Dispatch, Extent, Pipelines, STEP_BYTES, STEP_SLOT};
use super::program::{Item, Program, ProgramKey};
use super::readback::{Piece, Pool, Readback};
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::exec::{DECODE_TOKENS, Executor, Observed, Pick, Read, Replaceable, Rows, Step, StepOutput, Storage, Tokens, WeightSink};
use crate::plan::{At, Layout, Plan, Stage, ValueId, WeightId, rope};
use crate::tensor::{DType, Tensor, product, to_f32};
use std::collections::HashMap;
use std::rc::Rc;

/// Slots of the step uniform: the step itself and its batches of logits rows.
const STEP_SLOTS: u64 = 4096;
/// Spare positions of a windowed cache, so that decode steps run ahead of the host can be taken back.
const WINDOW_SLACK: usize = 16;

/// A plan on a device.
#[derive(Debug)]
pub struct GpuExecutor {
    pub(super) gpu: Gpu,
    pub(super) plan: Plan,
    pub(super) storage: Storage,
    pub(super) weights: Weights,
    pub(super) pipelines: Pipelines,
    pub(super) pool: Pool,
    pub(super) kept: Kept,
}

/// One sequence's keys, values and step buffers.
#[derive(Debug)]
pub struct GpuCache {
    pub(super) len: usize,
    /// Highest `len` since the last time it was zero.
    pub(super) high: usize,
    pub(super) capacity: usize,
    pub(super) chunk: usize,
    pub(super) kv: Vec<KvBuffers>,
    pub(super) ropes: Vec<RopeBuffer>,
    pub(super) values: Values,
    /// Those of decode steps, one for each value: what does not depend on each other then runs beside each other, and
    /// statistics and copies can wait and go together.
    pub(super) decode: Values,
    pub(super) step: wgpu::Buffer,
    pub(super) ids: wgpu::Buffer,
    pub(super) serial: u32,
    pub(super) programs: HashMap<ProgramKey, Rc<Program>>,
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
    noted: Option<Noted>,
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
    Times,
}

impl GpuExecutor {
    /// An executor of `plan` without weights. Plans that no kernel covers are refused.
    pub fn new(gpu: Gpu, plan: Plan, storage: Storage) -> Result<Self> {
        lower::supported(&plan)?;
        let weights = Weights::new(plan.weights.len());
        Ok(Self { gpu, plan, storage, weights, pipelines: Pipelines::default(), pool: Pool::default(), kept: Kept::default() })
    }
    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }
    /// Switches fusions on or off for the steps to come.
    pub fn set_fusion(&mut self, on: bool) {
        self.gpu.no_fusion = !on;
    }
    /// Sets the plan's longest sequence, for sessions to come.
    pub fn set_max_positions(&mut self, positions: usize) {
        self.plan.max_positions = positions;
    }
    /// Makes the pipelines of a prompt and of a greedy decode step, and lets go of them: where making the same again is
    /// quick, the first token then need not wait for compilers.
    ///
    /// # Errors
    /// What the device reports.
    pub fn build(&self) -> Result<()> {
        let pick = Some(Pick { valid: self.plan.vocab_size, masked: None });
        // More tokens than are computed one by one.
        let prompt = vec![0; (DECODE_TOKENS + 1).min(self.plan.max_positions)];
        let mut cache = self.new_cache(prompt.len(), prompt.len())?;
        for tokens in [Tokens::Picked, Tokens::Ids(&prompt)] {
            for rows in [Rows::Last, Rows::None] {
                let pick = pick.filter(|_| rows == Rows::Last);
                let step = Step { tokens, rows, pick, read: Read::Nothing, long_rope: false, requests: &[] };
                let (key, ..) = self.key(&cache, &step)?;
                self.program(&mut cache, key)?;
            }
        }
        self.pipelines.clear();
        Ok(())
    }
    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    fn make_kv(&self, capacity: usize, chunk: usize) -> Result<Vec<KvBuffers>> {
        let dtype = self.storage.cache;
        let make = |spec: &crate::plan::CacheSpec| {
            let slots = spec.window.map_or(capacity, |w| capacity.min(w + chunk + WINDOW_SLACK));
            let bytes = product([slots, spec.kv_heads, spec.head_dim, dtype.size()]);
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

    /// Writes what a step's kernels read of it: slot 0 for all, then one slot per batch of logits rows.
    pub(super) fn begin(&self, cache: &mut GpuCache, step: &Step<'_>, extent: Extent, batches: &[(usize, usize)]) -> Result<u32> {
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

    /// A buffer for the times of a step's dispatches.
    fn times_buffer(&self, size: u64) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let buffer =
            self.gpu.device.create_buffer(&wgpu::BufferDescriptor { label: Some("times"), size, usage, mapped_at_creation: false });
        self.gpu.check()?;
        Ok(buffer)
    }
    /// Keeps the notes of a finished step.
    fn keep(&self, noted: Option<Noted>, extent: Extent, ticks: &[u8]) {
        if let Some(noted) = noted {
            let period = f64::from(self.gpu.queue.get_timestamp_period());
            self.kept.steps.borrow_mut().push(noted.finish(extent.position, extent.tokens, ticks, period));
        }
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

impl Replaceable for GpuExecutor {
    fn forget(&mut self, id: WeightId) -> Result<()> {
        self.weights.forget(id)
    }
}

impl Executor for GpuExecutor {
    type Cache = GpuCache;
    type Pending = GpuPending;

    fn plan(&self) -> &Plan {
        &self.plan
    }
    fn describe(&self) -> String {
        self.gpu.caps.describe()
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
            values: Values::new(&self.gpu, &self.plan, self.storage, chunk, true)?,
            decode: Values::new(&self.gpu, &self.plan, self.storage, DECODE_TOKENS.min(chunk), false)?,
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
                product([self.plan.node(wanted.id).width, tokens, position + tokens, 4])
            } else {
                product([if wanted.head { batch_rows } else { tokens }, wanted.value.row_bytes()])
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
            let logits = &program.logits;
            let offset = product([extent.head_rows - 1, logits.row_bytes()]);
            pieces.push(add(Part::Logits, &logits.buffer, offset, logits.row_bytes() as u64));
        }
        for (part, buffer) in [(Part::Stats, &program.stats), (Part::Gathered, &program.gathered)] {
            if let Some(buffer) = buffer {
                pieces.push(add(part, buffer, 0, buffer.size()));
            }
        }
        let runs = |items: &[Item]| items.iter().filter(|item| matches!(item, Item::Run(..))).count();
        let count = runs(&program.body) + batches.len() * runs(&program.head) + program.picks.len();
        let mut noted = Noted::new(&self.gpu, self.kept.log.get(), count);
        let size = noted.as_ref().map_or(0, |noted| noted.bytes(count));
        let times = if size > 0 { Some(self.times_buffer(size)?) } else { None };
        pieces.extend(times.as_ref().map(|times| add(Part::Times, times, 0, size)));
        let bytes = used + 4;
        let early = if inline.is_empty() { None } else { Some(self.pool.take(&self.gpu, bytes)?) };
        let mut inline = inline.into_iter();
        let mut recorder = Recorder { encoder: &mut encoder, pass: None, limit: self.gpu.caps.max_workgroups, noted: noted.as_mut() };
        recorder.items(&program.body, extent, 0, &mut inline, early.as_ref())?;
        for (slot, (_, count)) in batches.iter().enumerate() {
            recorder.items(&program.head, Extent { head_rows: *count, ..extent }, slot + 1, &mut inline, early.as_ref())?;
        }
        for dispatch in &program.picks {
            recorder.run(dispatch, At { stage: Stage::Sampled, layer: None }, extent, 0)?;
        }
        drop(recorder);
        if let (Some(noted), Some(times)) = (&noted, &times) {
            noted.resolve(&mut encoder, times);
        }
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
        Ok(GpuPending { readback, layout, extent, batches, program, valid, noted })
    }

    async fn finish(&self, pending: GpuPending) -> Result<StepOutput> {
        let GpuPending { readback, layout, extent, batches, program, valid, noted } = pending;
        let mut output = StepOutput { notes: program.notes.clone(), ..Default::default() };
        let mut ticks = Vec::new();
        let Some(readback) = readback else {
            self.keep(noted, extent, &ticks);
            return Ok(output);
        };
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
                        Part::Times => ticks = part_bytes.to_vec(),
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
        self.keep(noted, extent, &ticks);
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

/// Records dispatches, leaving the pass only where a value is copied.
struct Recorder<'e> {
    encoder: &'e mut wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
    limit: u32,
    noted: Option<&'e mut Noted>,
}

impl Recorder<'_> {
    fn run(&mut self, dispatch: &Dispatch, at: At, extent: Extent, slot: usize) -> Result<()> {
        if let Some(writes) = self.noted.as_mut().and_then(|noted| noted.add(dispatch.kernel, at)) {
            self.pass = None;
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: Some(writes) };
            return record(&mut self.encoder.begin_compute_pass(&descriptor), dispatch, extent, slot, self.limit);
        }
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
                Item::Run(dispatch, at) => self.run(dispatch, *at, extent, slot)?,
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
