//! Running steps: `GpuExecutor` records a step, submits it once and reads back what was asked.

use super::buffers::{KvBuffers, storage_buffer};
use super::device::Gpu;
use super::layouts::{Candidate, structs};
use super::log::{Log, StepLog, StepTimer};
use super::pipelines::Extent;
use super::program::{Item, Program};
use super::readback::{Piece, Readback};
use super::recording::{Recorder, SERIAL};
use super::state::{GpuCache, GpuExecutor};
use crate::error::{Error, Result};
use crate::exec::{
    self, Cached, Chosen, DECODE_TOKENS, Editable, Executor, Group, Observed, Pick, Read, Replaceable, Rows, Step, StepOutput, Storage,
    Tokens, WeightSink,
};
use crate::geometry::geometry;
use crate::groups::shown;
use crate::plan::intervention::Intervention;
use crate::plan::{At, Plan, Stage, ValueId, WeightId};
use crate::quant::Format;
use crate::tensor::{DType, Tensor, product, to_f32};
use std::rc::Rc;

/// A submitted step.
#[derive(Debug)]
pub struct GpuPending {
    readback: Option<Readback>,
    layout: Vec<(Part, u64, u64)>,
    extent: Extent,
    batches: Vec<(usize, usize)>,
    program: Rc<Program>,
    valid: usize,
    timer: Option<StepTimer>,
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
        let pick = Some(Pick { valid: self.plan.vocab_size });
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
    /// Every variant of a kernel that was made since the executor was: `linear W_F16 BIAS WG=128 LANES=32`. Variants are
    /// made where they are dispatched.
    pub fn variants(&self) -> std::collections::BTreeSet<String> {
        self.pipelines.variants()
    }
    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes()
    }
    /// Bytes of the buffers of `cache` by what they hold, as the device has them.
    pub fn cache_bytes(&self, cache: &GpuCache) -> [(&'static str, u64); 6] {
        let kv = cache.kv.iter().map(|kv| kv.keys.size() + kv.values.size()).sum();
        let ropes = cache.ropes.iter().map(|rope| rope.buffer.size()).sum();
        let (values, decode) = (cache.values.bytes(&self.plan), cache.decode.bytes(&self.plan) + cache.partials.size());
        [("kv", kv), ("values", values), ("decode", decode), ("ropes", ropes), ("step", cache.step.size()), ("ids", cache.ids.size())]
    }

    /// Notes the dispatches of the steps to come, until this is called again; `take_log` hands them out.
    ///
    /// # Errors
    /// `Kind::Device` for times on an adapter without timestamps.
    pub fn set_log(&self, log: Log) -> Result<()> {
        if log == Log::Times && !self.gpu.caps.timestamps {
            return Err(Error::device("this adapter has no timestamps, so kernels cannot be timed"));
        }
        self.log.level.set(log);
        Ok(())
    }
    /// The steps that were noted and are finished, oldest first.
    pub fn take_log(&self) -> Vec<StepLog> {
        self.log.steps.take()
    }
}

impl WeightSink for GpuExecutor {
    fn expect(&mut self, formats: &[Format]) {
        self.weights.expect(formats);
    }
    fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> Result<()> {
        self.weights.put(&self.gpu, &self.plan, id, format, first_row, &bytes)
    }
}

impl Replaceable for GpuExecutor {
    fn clear(&mut self, id: WeightId) -> Result<()> {
        self.weights.clear(id)
    }
}

impl Editable for GpuExecutor {
    fn set_interventions(&mut self, interventions: &[(ValueId, Vec<Intervention>)]) -> Result<()> {
        self.plan.set_interventions(interventions)?;
        self.edition += 1;
        Ok(())
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
        GpuCache::new(self, capacity, chunk)
    }
    fn grow(&self, cache: &mut GpuCache, capacity: usize) -> Result<()> {
        if capacity <= cache.capacity {
            return Ok(());
        }
        let geometry = geometry(&self.plan, self.storage, capacity, cache.chunk);
        let grown = self.make_kv(&geometry.caches)?;
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
        cache.partials = storage_buffer(&self.gpu, "runs of attention", geometry.partials)?;
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
        let valid = key.pick.unwrap_or(self.plan.vocab_size);
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
            let capture = &program.captures[i];
            if self.plan.node(capture.id).at.stage.layout().is_scores() {
                product([self.plan.node(capture.id).width, tokens, position + tokens, 4])
            } else {
                product([if capture.head { batch_rows } else { tokens }, capture.value.row_bytes()])
            }
        };
        let mut inline: Vec<Piece> = Vec::new();
        for item in &program.body {
            if let Item::Copy(i) = item {
                inline.push(add(Part::Full(*i), &program.captures[*i].value.buffer, 0, rows_of(*i, 0)));
            }
        }
        for (_, count) in &batches {
            for item in &program.head {
                if let Item::Copy(i) = item {
                    inline.push(add(Part::Full(*i), &program.captures[*i].value.buffer, 0, rows_of(*i, *count)));
                }
            }
        }
        if let Some(top) = &program.top {
            pieces.push(add(Part::Top, top, 0, top.size().min((step_top(step) * size_of::<Candidate>()) as u64)));
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
        let mut timer = StepTimer::new(&self.gpu, self.log.level.get(), count);
        let size = timer.as_ref().map_or(0, |timer| timer.bytes(count));
        let times = if size > 0 { Some(self.times_buffer(size)?) } else { None };
        pieces.extend(times.as_ref().map(|times| add(Part::Times, times, 0, size)));
        let bytes = used + 4;
        let early = if inline.is_empty() { None } else { Some(self.pool.take(&self.gpu, bytes)?) };
        let mut inline = inline.into_iter();
        let mut recorder = Recorder { encoder: &mut encoder, pass: None, limit: self.gpu.caps.max_workgroups, timer: timer.as_mut() };
        recorder.items(&program.body, extent, 0, &mut inline, early.as_ref())?;
        for (slot, (_, count)) in batches.iter().enumerate() {
            recorder.items(&program.head, Extent { head_rows: *count, ..extent }, slot + 1, &mut inline, early.as_ref())?;
        }
        for dispatch in &program.picks {
            recorder.run(dispatch, At { stage: Stage::Sampled, layer: None }, extent, 0)?;
        }
        drop(recorder);
        if let (Some(timer), Some(times)) = (&timer, &times) {
            timer.resolve(&mut encoder, times);
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
            encoder.copy_buffer_to_buffer(&cache.step, SERIAL, &target, bytes - 4, 4);
            let submission = self.gpu.queue.submit([encoder.finish()]);
            self.gpu.check()?;
            Some(Readback::start(target, bytes, serial, submission))
        } else {
            Some(self.read_out(encoder, &pieces, bytes, &cache.step, serial)?)
        };
        Ok(GpuPending { readback, layout, extent, batches, program, valid, timer })
    }

    async fn finish(&self, pending: GpuPending) -> Result<StepOutput> {
        let GpuPending { readback, layout, extent, batches, program, valid, timer } = pending;
        let mut output = StepOutput { notes: program.notes.clone(), ..Default::default() };
        let mut ticks = Vec::new();
        let Some(readback) = readback else {
            self.keep(timer, extent, &ticks);
            return Ok(output);
        };
        self.pool
            .finish(&self.gpu, readback, |bytes| {
                let mut full: Vec<Vec<f32>> = vec![Vec::new(); program.captures.len()];
                let (mut stats, mut gathered): (&[u8], Vec<f32>) = (&[], Vec::new());
                for (part, offset, size) in &layout {
                    let part_bytes = &bytes[*offset as usize..(*offset + *size) as usize];
                    match part {
                        Part::Top => {
                            let top: Vec<(u32, f32)> = structs::<Candidate>(part_bytes).filter_map(Candidate::read).collect();
                            output.token = top.first().filter(|(id, x)| x.is_finite() && (*id as usize) < valid).map(|t| t.0);
                            output.top = Some(top);
                        }
                        Part::Logits => output.logits = Some(to_f32(part_bytes, DType::F32)[..self.plan.vocab_size].to_vec()),
                        Part::Full(i) => full[*i].extend(self.unpad(&program.captures[*i], part_bytes)),
                        Part::Stats => stats = part_bytes,
                        Part::Times => ticks = part_bytes.to_vec(),
                        Part::Gathered => gathered = to_f32(part_bytes, DType::F32),
                    }
                }
                for (i, capture) in program.captures.iter().enumerate() {
                    let content = self.content(capture, extent, &batches, std::mem::take(&mut full[i]), stats, &gathered)?;
                    output.values.push(Observed { at: self.plan.node(capture.id).at, first_token: extent.position, content });
                }
                Ok(())
            })
            .await??;
        self.keep(timer, extent, &ticks);
        Ok(output)
    }

    async fn eval(&self, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor> {
        super::eval::eval(self, id, inputs, first_position, long_rope).await
    }
    fn groups(&self) -> Result<Vec<Group>> {
        Ok(shown(&self.plan, self.groups_of(&[], true), self.groups_of(&[], false)))
    }
    async fn part(&self, cache: &mut GpuCache, part: &exec::Part<'_>) -> Result<Tensor> {
        super::part::part(self, cache, part).await
    }
    async fn cached(&self, cache: &GpuCache, index: usize) -> Result<Cached> {
        super::part::cached(self, cache, index).await
    }
    async fn choose(&self, cache: &mut GpuCache, logits: &[f32], rules: Pick, k: usize) -> Result<Chosen> {
        super::part::choose(self, cache, logits, rules, k).await
    }
}

/// Entries that a step reads of its candidates.
fn step_top(step: &Step<'_>) -> usize {
    if let Read::Top(k) = step.read { k.max(1) } else { 1 }
}
