//! What an executor's steps are computed in, whichever sequence they are of: buffers of values, RoPE tables, the step
//! uniform, token ids, and the programs that bind them. It is as large as the sequences that live need.

use super::buffers::{RopeBuffer, Values, storage_buffer};
use super::layouts::{Origin, StepUniform};
use super::pipelines::Shared;
use super::program::{Program, ProgramKey};
use super::state::GpuExecutor;
use crate::error::Result;
use crate::geometry::{self, MOST_ENTRIES, ORIGINS_BYTES, Room, STEP_SLOT, value_buffers};
use std::collections::HashMap;
use std::rc::Rc;

/// Buffers of steps, and programs over them.
#[derive(Debug)]
pub struct Workspace {
    pub(super) room: Room,
    pub(super) values: Values,
    /// Those of steps that are computed as decode is, one for each value.
    pub(super) decode: Values,
    pub(super) ropes: Vec<RopeBuffer>,
    /// What the runs of attention give in a decode step.
    pub(super) partials: wgpu::Buffer,
    /// The order in which experts compute the rows of a step of many tokens.
    pub(super) expert_order: wgpu::Buffer,
    pub(super) step: wgpu::Buffer,
    pub(super) origins: wgpu::Buffer,
    pub(super) shared: Shared,
    pub(super) ids: wgpu::Buffer,
    pub(super) serial: u32,
    pub(super) programs: HashMap<ProgramKey, Rc<Program>>,
}

/// Room for `more` in addition to `old`. Of what each further sequence or step adds a little to, there is soon room enough, so
/// that programs need not be made anew each time.
fn grown(old: Room, more: Room) -> Room {
    let ahead = |old: usize, more: usize| if more > old { more.next_power_of_two() } else { old };
    let (ids, slots, parts) = (ahead(old.ids, more.ids), ahead(old.slots, more.slots), ahead(old.parts, more.parts));
    Room { ids, slots, parts, ..old.union(more) }
}

impl GpuExecutor {
    /// Makes room in the workspace: for `room` alone where `exactly`, else in addition to what there is room for. Where that
    /// fails, all stays as it was.
    pub(super) fn make_room(&self, room: Room, exactly: bool) -> Result<()> {
        let mut workspace = self.workspace.borrow_mut();
        if exactly && workspace.as_ref().is_some_and(|old| old.room != room) {
            // Nobody's any more: let go of it first.
            *workspace = None;
        }
        let room = workspace.as_ref().map_or(room, |old| grown(old.room, room));
        let (gpu, plan, storage) = (&self.gpu, &self.plan, self.storage);
        let values = |rows, share| Values::new(gpu, plan, storage, &value_buffers(plan, storage, rows, share));
        let partials = || storage_buffer(gpu, "runs of attention", geometry::partials(plan, room.capacity, room.rows));
        let expert_order = || storage_buffer(gpu, "rows of experts", geometry::expert_order(plan, room.chunk));
        let Some(old) = workspace.as_mut() else {
            let (step, origins) = self.step_buffers(room)?;
            *workspace = Some(Workspace {
                room,
                values: values(room.chunk, true)?,
                decode: values(room.rows, false)?,
                ropes: self.make_ropes(room.capacity)?,
                partials: partials()?,
                expert_order: expert_order()?,
                shared: self.pipelines.share(gpu, &step, &origins),
                step,
                origins,
                ids: self.ids_buffer(room)?,
                serial: 0,
                programs: HashMap::new(),
            });
            return Ok(());
        };
        let differ = |of: fn(&Room) -> usize| of(&old.room) != of(&room);
        let (rows, positions) = (differ(|r| r.rows), differ(|r| r.capacity));
        let step = (differ(|r| r.slots) || differ(|r| r.parts)).then(|| self.step_buffers(room)).transpose()?;
        let ids = differ(|r| r.ids).then(|| self.ids_buffer(room)).transpose()?;
        let of_chunk = differ(|r| r.chunk).then(|| Ok((values(room.chunk, true)?, expert_order()?))).transpose()?;
        let of_rows = rows.then(|| values(room.rows, false)).transpose()?;
        let ropes = positions.then(|| self.make_ropes(room.capacity)).transpose()?;
        let partials = (rows || positions).then(partials).transpose()?;
        if old.room == room {
            return Ok(());
        }
        old.programs.clear();
        old.room = room;
        if let Some((step, origins)) = step {
            old.shared = self.pipelines.share(gpu, &step, &origins);
            (old.step, old.origins) = (step, origins);
        }
        if let Some(ids) = ids {
            // What was picked is kept.
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&old.ids, 0, &ids, 0, old.ids.size().min(ids.size()));
            gpu.queue.submit([encoder.finish()]);
            old.ids = ids;
        }
        if let Some((values, expert_order)) = of_chunk {
            (old.values, old.expert_order) = (values, expert_order);
        }
        if let Some(values) = of_rows {
            old.decode = values;
        }
        if let Some(ropes) = ropes {
            old.ropes = ropes;
        }
        if let Some(partials) = partials {
            old.partials = partials;
        }
        Ok(())
    }

    fn ids_buffer(&self, room: Room) -> Result<wgpu::Buffer> {
        storage_buffer(&self.gpu, "token ids", room.ids())
    }
    fn step_buffers(&self, room: Room) -> Result<(wgpu::Buffer, wgpu::Buffer)> {
        let [step, origins] = room.step();
        Ok((self.uniform_buffer("step", step)?, self.uniform_buffer("origins", origins)?))
    }
    /// A uniform buffer that can be copied from and to.
    pub(super) fn uniform_buffer(&self, label: &str, size: u64) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let buffer = self.gpu.device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false });
        self.gpu.check()?;
        Ok(buffer)
    }
}

/// Bytes of the step uniform with `slots`, each at its place.
pub(super) fn step_slots(slots: &[StepUniform]) -> Vec<u8> {
    let mut bytes = vec![0u8; slots.len() * STEP_SLOT];
    for (place, slot) in bytes.chunks_mut(STEP_SLOT).zip(slots) {
        place[..size_of::<StepUniform>()].copy_from_slice(bytemuck::bytes_of(slot));
    }
    bytes
}

/// Bytes of the origins of each part of a step.
pub(super) fn part_origins(parts: &[Vec<Origin>]) -> Vec<u8> {
    let mut bytes = vec![0u8; parts.len() * ORIGINS_BYTES as usize];
    for (place, origins) in bytes.chunks_mut(ORIGINS_BYTES as usize).zip(parts) {
        let origins = &origins[..origins.len().min(MOST_ENTRIES)];
        place[..size_of_val(origins)].copy_from_slice(bytemuck::cast_slice(origins));
    }
    bytes
}
