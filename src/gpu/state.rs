//! What lives on a device: an executor (its weights, pipelines and readback buffers) and a sequence (its keys and values,
//! RoPE tables, activations, step uniform and programs).

use super::buffers::{KvBuffers, RopeBuffer, Values, storage_buffer};
use super::device::Gpu;
use super::layouts::StepUniform;
use super::log::LogStore;
use super::lower;
use super::pipelines::{Extent, Pipelines};
use super::program::{Program, ProgramKey};
use super::readback::Pool;
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::exec::{Step, Storage, Tokens};
use crate::geometry::{Ring, STEP_SLOT, geometry, rope_variants};
use crate::groups::{Group, Question, groups};
use crate::model::RopeConfig;
use crate::plan::{CacheSpec, Plan, ValueId, rope};
use crate::tensor::product;
use std::collections::HashMap;
use std::rc::Rc;

/// A plan on a device.
#[derive(Debug)]
pub struct GpuExecutor {
    pub(super) gpu: Gpu,
    pub(super) plan: Plan,
    pub(super) storage: Storage,
    /// How often its plan's interventions were changed.
    pub(super) edition: u64,
    pub(super) weights: Weights,
    pub(super) pipelines: Pipelines,
    pub(super) pool: Pool,
    pub(super) log: LogStore,
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
    /// Those of decode steps, one for each value.
    pub(super) decode: Values,
    pub(super) step: wgpu::Buffer,
    pub(super) ids: wgpu::Buffer,
    /// What the runs of attention give in a decode step.
    pub(super) partials: wgpu::Buffer,
    pub(super) serial: u32,
    pub(super) programs: HashMap<ProgramKey, Rc<Program>>,
}

impl GpuExecutor {
    /// An executor of `plan` without weights. Plans that no kernel covers are refused.
    pub fn new(gpu: Gpu, plan: Plan, storage: Storage) -> Result<Self> {
        lower::supported(&plan)?;
        let weights = Weights::new(&plan);
        Ok(Self {
            gpu,
            plan,
            storage,
            edition: 0,
            weights,
            pipelines: Pipelines::default(),
            pool: Pool::default(),
            log: LogStore::default(),
        })
    }
    /// The groups of a step of which `wanted` is wanted, of few tokens or many.
    pub(super) fn groups_of(&self, wanted: &[ValueId], few: bool) -> Vec<Group> {
        let norm_row = self.gpu.caps.norm_row(self.storage.activations);
        groups(&self.plan, Question { wanted, fuse: !self.gpu.no_fusion, few, norm_row })
    }
    pub(super) fn make_kv(&self, rings: &[Ring]) -> Result<Vec<KvBuffers>> {
        let dtype = self.storage.cache;
        let make = |(spec, ring): (&CacheSpec, &Ring)| {
            let label = |what: &str| format!("{what} of layer {} for {} positions", spec.layer, ring.slots);
            let buffer = |what: &str| storage_buffer(&self.gpu, &label(what), ring.bytes);
            Ok(KvBuffers { keys: buffer("keys")?, values: buffer("values")?, capacity: ring.slots, dtype })
        };
        self.plan.caches.iter().zip(rings).map(make).collect()
    }

    pub(super) fn make_ropes(&self, positions: usize) -> Result<Vec<RopeBuffer>> {
        let make = |config: &RopeConfig| {
            let variants = rope_variants(config);
            let mut data: Vec<f32> = Vec::new();
            let mut half_dim = 0;
            for variant in 0..variants {
                let table = rope::table(config, positions, variant == 1);
                half_dim = table.half_dim;
                data.extend(table.cos);
                data.extend(table.sin);
            }
            let buffer = storage_buffer(&self.gpu, "RoPE table", (data.len() * 4) as u64)?;
            self.gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&data));
            Ok(RopeBuffer { buffer, half_dim, positions, variants })
        };
        self.plan.ropes.iter().map(make).collect()
    }

    /// Writes what a step's kernels read of it: slot 0 for all, then one slot per batch of logits rows.
    pub(super) fn begin(&self, cache: &mut GpuCache, step: &Step<'_>, extent: Extent, batches: &[(usize, usize)]) -> Result<u32> {
        cache.serial = cache.serial.wrapping_add(1).max(1);
        if let Tokens::Ids(ids) = step.tokens {
            self.gpu.queue.write_buffer(&cache.ids, 0, bytemuck::cast_slice(ids));
        }
        let slot = |batch: usize, (first, rows): (usize, usize)| StepUniform {
            tokens: extent.tokens as u32,
            position: extent.position as u32,
            serial: cache.serial,
            head_first: first as u32,
            head_rows: rows as u32,
            long_rope: u32::from(step.long_rope),
            batch: batch as u32,
        };
        let whole = slot(0, batches.last().copied().unwrap_or_default());
        let slots: Vec<StepUniform> = std::iter::once(whole).chain(batches.iter().enumerate().map(|(i, b)| slot(i, *b))).collect();
        self.gpu.queue.write_buffer(&cache.step, 0, &step_slots(&slots));
        Ok(cache.serial)
    }
}

impl GpuCache {
    /// An empty sequence of at most `capacity` positions, in steps of at most `chunk` tokens.
    pub(super) fn new(executor: &GpuExecutor, capacity: usize, chunk: usize) -> Result<Self> {
        if capacity == 0 || chunk == 0 {
            return Err(Error::invalid("cache", format!("capacity {capacity} and chunk {chunk} must be above 0")));
        }
        let geometry = geometry(&executor.plan, executor.storage, capacity, chunk);
        let values = |buffers| Values::new(&executor.gpu, &executor.plan, executor.storage, buffers);
        Ok(Self {
            len: 0,
            high: 0,
            capacity,
            chunk: geometry.chunk,
            kv: executor.make_kv(&geometry.caches)?,
            ropes: executor.make_ropes(capacity)?,
            values: values(&geometry.values)?,
            decode: values(&geometry.decode)?,
            step: step_buffer(&executor.gpu, geometry.step_slots)?,
            ids: storage_buffer(&executor.gpu, "token ids", geometry.ids)?,
            partials: storage_buffer(&executor.gpu, "runs of attention", geometry.partials)?,
            serial: 0,
            programs: HashMap::new(),
        })
    }
}

/// Bytes of the step uniform with `slots`, each at its place.
pub(super) fn step_slots(slots: &[StepUniform]) -> Vec<u8> {
    let mut bytes = vec![0u8; slots.len() * STEP_SLOT];
    for (place, slot) in bytes.chunks_exact_mut(STEP_SLOT).zip(slots) {
        place[..size_of::<StepUniform>()].copy_from_slice(bytemuck::bytes_of(slot));
    }
    bytes
}

/// A step uniform of `slots`.
pub(super) fn step_buffer(gpu: &Gpu, slots: usize) -> Result<wgpu::Buffer> {
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    let size = product([slots, STEP_SLOT]);
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor { label: Some("step"), size, usage, mapped_at_creation: false });
    gpu.check()?;
    Ok(buffer)
}
