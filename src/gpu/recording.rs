//! Recording a step's dispatches and copies into an encoder, and reading back what was asked.

use super::layouts::StepUniform;
use super::log::StepTimer;
use super::pipelines::{Dispatch, Extent, Shared};
use super::program::{Item, Program};
use super::readback::{Piece, Readback};
use super::state::GpuExecutor;
use crate::error::Result;
use crate::plan::At;

/// Where the step uniform holds the step's number, which comes back as the readback's guard.
pub(super) const SERIAL: u64 = std::mem::offset_of!(StepUniform, serial) as u64;

/// Records a dispatch; what it shares with others is bound.
pub(super) fn record(pass: &mut wgpu::ComputePass<'_>, dispatch: &Dispatch, extent: Extent, limit: u32) -> Result<()> {
    let [x, y, z] = dispatch.grid.size(extent, limit)?;
    if x == 0 || y == 0 || z == 0 {
        return Ok(());
    }
    pass.set_pipeline(&dispatch.pipeline);
    pass.set_bind_group(1, &dispatch.bind_group, &[]);
    pass.dispatch_workgroups(x, y, z);
    Ok(())
}

/// Records dispatches, leaving the pass only where a value is copied.
pub(super) struct Recorder<'e> {
    pub(super) encoder: &'e mut wgpu::CommandEncoder,
    pub(super) pass: Option<wgpu::ComputePass<'static>>,
    pub(super) limit: u32,
    pub(super) timer: Option<&'e mut StepTimer>,
    pub(super) shared: &'e Shared,
    /// The part of the step that is recorded.
    pub(super) part: usize,
    /// The slot that is bound in the open pass.
    pub(super) bound: Option<usize>,
}

impl Recorder<'_> {
    pub(super) fn run(&mut self, dispatch: &Dispatch, at: At, extent: Extent, slot: usize) -> Result<()> {
        if let Some(writes) = self.timer.as_mut().and_then(|timer| timer.add(dispatch.kernel, at)) {
            (self.pass, self.bound) = (None, None);
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: Some(writes) };
            let mut pass = self.encoder.begin_compute_pass(&descriptor);
            self.shared.bind(&mut pass, slot, self.part);
            return record(&mut pass, dispatch, extent, self.limit);
        }
        let pass = self.pass.get_or_insert_with(|| self.encoder.begin_compute_pass(&Default::default()).forget_lifetime());
        if self.bound.replace(slot) != Some(slot) {
            self.shared.bind(pass, slot, self.part);
        }
        record(pass, dispatch, extent, self.limit)
    }
    /// Records `items`; whole values go to the places of `full` in `target`, in that order.
    pub(super) fn items(
        &mut self,
        program: &Program,
        items: &[Item],
        extent: Extent,
        slot: usize,
        full: &mut impl Iterator<Item = (u64, u64)>,
        target: Option<&wgpu::Buffer>,
    ) -> Result<()> {
        for item in items {
            match item {
                Item::Run(dispatch, at) => self.run(dispatch, *at, extent, slot)?,
                Item::Copy(i) => {
                    if let (Some((offset, bytes)), Some(target)) = (full.next(), target) {
                        let source = program.captures[*i].value.buffer.clone();
                        self.copy(Some(Piece { source, source_offset: 0, offset, bytes }), target);
                    }
                }
            }
        }
        Ok(())
    }
    /// Copies what there is to copy, outside of any pass.
    pub(super) fn copy(&mut self, piece: Option<Piece>, target: &wgpu::Buffer) {
        let Some(piece) = piece else { return };
        (self.pass, self.bound) = (None, None);
        self.encoder.copy_buffer_to_buffer(&piece.source, piece.source_offset, target, piece.offset, piece.bytes);
    }
}

impl GpuExecutor {
    /// A buffer for the times of a step's dispatches.
    pub(super) fn times_buffer(&self, size: u64) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let buffer =
            self.gpu.device.create_buffer(&wgpu::BufferDescriptor { label: Some("times"), size, usage, mapped_at_creation: false });
        self.gpu.check()?;
        Ok(buffer)
    }
    /// Keeps the notes of a finished step.
    pub(super) fn keep(&self, timer: Option<StepTimer>, extent: Extent, ticks: &[u8]) {
        if let Some(timer) = timer {
            let period = f64::from(self.gpu.queue.get_timestamp_period());
            self.log.steps.borrow_mut().push(timer.finish(extent.position, extent.tokens, ticks, period));
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
        encoder.copy_buffer_to_buffer(step, SERIAL, &target, bytes - 4, 4);
        let submission = self.gpu.queue.submit([encoder.finish()]);
        self.gpu.check()?;
        Ok(Readback::start(target, bytes, serial, submission))
    }
}
