//! What lives on a device: an executor (its weights, pipelines, workspace and the caches of all sequences) and a sequence
//! (its slots of the caches).

use super::buffers::{RopeBuffer, storage_buffer};
use super::caches::{Caches, Slabs};
use super::device::Gpu;
use super::layouts::Origin;
use super::log::LogStore;
use super::lower;
use super::pipelines::Pipelines;
use super::program::Size;
use super::readback::Pool;
use super::weights::Weights;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::exec::{Sequences, Storage};
use crate::geometry::{MATRIX_SLOTS, Room, kept_before, rope_variants};
use crate::groups::{Group, Question, groups};
use crate::model::RopeConfig;
use crate::plan::{Plan, ValueId, rope};
use crate::tensor::DType;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A plan on a device.
#[derive(Debug)]
pub struct GpuExecutor {
    pub(super) gpu: Gpu,
    pub(super) plan: Plan,
    pub(super) storage: Storage,
    pub(super) weights: Weights,
    pub(super) pipelines: Pipelines,
    pub(super) pool: Pool,
    pub(super) log: LogStore,
    pub(super) caches: Rc<RefCell<Caches>>,
    /// Made with the first sequence.
    pub(super) workspace: RefCell<Option<Workspace>>,
    pub(super) programs_made: Cell<usize>,
    /// Values that groups do not hide, wanted or not.
    pub(super) opened: Vec<ValueId>,
    /// What was last asked for where it is made, and of that, what is.
    pub(super) if_made: RefCell<Option<IfMade>>,
}

/// Of a step of some size of which values are wanted, and others welcome: those of the others that it makes.
#[derive(Debug)]
pub(super) struct IfMade {
    pub(super) wanted: Vec<ValueId>,
    pub(super) welcome: Vec<ValueId>,
    pub(super) size: Size,
    pub(super) made: Vec<ValueId>,
}

/// One sequence: its positions and where they are cached.
#[derive(Debug)]
pub struct GpuCache {
    pub(super) len: usize,
    /// Highest `len` since the last time it was zero.
    pub(super) high: usize,
    pub(super) capacity: usize,
    pub(super) chunk: usize,
    pub(super) slabs: Slabs,
    pub(super) matrices: Matrices,
}

/// The positions that the matrices in a sequence's two slots come before, if there are some; the slots are at an even place.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Matrices([Option<usize>; MATRIX_SLOTS]);

impl Matrices {
    /// The slot that a step from position `len` on starts from, and the position that its matrices come before: 0 where there are none.
    fn start(self, len: usize) -> (usize, usize) {
        let [a, b] = self.0.map(|position| position.filter(|position| *position <= len));
        if b > a { (1, b.unwrap_or(0)) } else { (0, a.unwrap_or(0)) }
    }
    /// A step from position `len` on was started, `tokens` long.
    fn advance(&mut self, len: usize, tokens: usize) {
        let (slot, base) = self.start(len);
        self.0[slot] = (base > 0).then_some(base);
        self.0[1 - slot] = Some(len + tokens);
    }
    /// Whether those before position `len` can be made again of others, where a ring with `window` has what was taken of the
    /// positions from `first` on.
    pub(super) fn reach(self, len: usize, first: usize, window: usize) -> bool {
        let base = self.start(len).1;
        base >= first && len - base <= kept_before(window)
    }
    /// The slot of those before position `len`, if there are such.
    pub(super) fn slot(self, len: usize) -> Option<usize> {
        self.0.iter().position(|position| *position == Some(len))
    }
}

impl GpuExecutor {
    /// An executor of `plan` without weights. Plans that no kernel covers are refused.
    pub fn new(gpu: Gpu, plan: Plan, storage: Storage) -> Result<Self> {
        lower::supported(&plan)?;
        Ok(Self {
            weights: Weights::new(&plan),
            caches: Rc::new(RefCell::new(Caches::new(&plan)?)),
            gpu,
            plan,
            storage,
            pipelines: Pipelines::default(),
            pool: Pool::default(),
            log: LogStore::default(),
            workspace: RefCell::new(None),
            programs_made: Cell::new(0),
            opened: Vec::new(),
            if_made: RefCell::new(None),
        })
    }
    /// The side of the tiles in which matrix units compute the products of decode steps, if they do.
    pub(super) fn thin(&self) -> Option<u32> {
        let caps = &self.gpu.caps;
        // What linear_thin.wgsl takes of a workgroup.
        let fits = |side: &u32| 8 * (4 * side * 10 * 8 + side * side * 4) <= caps.workgroup_memory;
        caps.matrix.filter(|side| self.gpu.batched && self.storage.activations == DType::F16 && fits(side))
    }
    /// For what size of a step the dispatches of `tokens` tokens of one sequence are.
    pub(super) fn size_of(&self, tokens: usize) -> Size {
        Size::of(tokens, self.thin())
    }
    /// The groups of a step of which `wanted` is wanted.
    pub(super) fn groups_of(&self, wanted: &[ValueId], size: Size) -> Vec<Group> {
        self.groups_with(wanted, &[], size)
    }
    /// Likewise, where values are `welcome` that open no group.
    pub(super) fn groups_with(&self, wanted: &[ValueId], welcome: &[ValueId], size: Size) -> Vec<Group> {
        // Products of several rows find them normalised: no workgroup would hold them.
        let norm_row = if size == Size::One { self.gpu.caps.norm_row(self.storage.activations) } else { 0 };
        let wanted = &[wanted, &self.opened].concat();
        let (few, expert_tiles) = (size != Size::Many, size.has_expert_tiles(&self.gpu.caps));
        groups(&self.plan, Question { wanted, welcome, fuse: !self.gpu.no_fusion, few, expert_tiles, norm_row })
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
            Ok(RopeBuffer { buffer, half_dim, pairing: config.pairing, positions, variants })
        };
        self.plan.ropes.iter().map(make).collect()
    }
}

/// The error for steps before there is a sequence.
pub(super) fn no_workspace() -> Error {
    Error::invalid("step", "no sequence was made on this device")
}

impl GpuCache {
    /// An empty sequence of at most `capacity` positions, in steps of at most `chunk` tokens.
    pub(super) fn new(executor: &GpuExecutor, capacity: usize, chunk: usize) -> Result<Self> {
        if capacity == 0 || chunk == 0 {
            return Err(Error::invalid("cache", format!("capacity {capacity} and chunk {chunk} must be above 0")));
        }
        let chunk = chunk.min(capacity);
        let first = executor.caches.borrow().is_empty();
        let slabs = executor.take_slabs(capacity, chunk)?;
        let cache = Self { len: 0, high: 0, capacity, chunk, slabs, matrices: Matrices::default() };
        let (room, reserved) = (cache.room(executor), executor.caches.borrow().reserved());
        executor.make_room(reserved.map_or(room, |reserved| room.union(reserved)), first)?;
        Ok(cache)
    }
    /// What its steps need of the workspace.
    pub(super) fn room(&self, executor: &GpuExecutor) -> Room {
        let alone = Room::of(Sequences::one(self.capacity, self.chunk));
        Room { ids: executor.caches.borrow().sequences() + self.chunk, ..alone }
    }
    /// Where the tokens of its next step are from, whose ids are at `id`.
    pub(super) fn origin(&self, id: usize, long_rope: bool) -> Origin {
        Origin {
            position: self.len as u32,
            long_rope: u32::from(long_rope),
            id: id as u32,
            picked: self.slabs.picked as u32,
            slabs: self.slabs.origins(self.matrices.start(self.len)),
        }
    }
    /// A step of `tokens` tokens was started.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.matrices.advance(self.len, tokens);
        self.len += tokens;
        self.high = self.high.max(self.len);
    }
}
