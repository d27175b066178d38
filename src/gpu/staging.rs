//! The way of large weights to the device: a few buffers that the host writes and the device copies from, used in turn, so
//! that rows are read while those before them are copied. New memory for each would cost more than the copy.

use super::device::Gpu;
use crate::error::{Error, Result};
use futures_channel::oneshot;

/// Buffers in use; they are made when they are first needed.
const SLOTS: usize = 3;
/// Bytes of each.
pub const SLOT_BYTES: usize = 32 << 20;

/// Buffers that the host writes.
#[derive(Debug, Default)]
pub struct Staging {
    slots: Vec<Slot>,
    /// The slot that is used next.
    next: usize,
}

#[derive(Debug)]
struct Slot {
    buffer: wgpu::Buffer,
    /// The copy that has to be done before the host writes again, and what says that it may.
    copy: Option<(wgpu::SubmissionIndex, oneshot::Receiver<std::result::Result<(), wgpu::BufferAsyncError>>)>,
}

impl Staging {
    /// Copies what `fill` writes to the beginning of a mapped buffer, `bytes` at most [`SLOT_BYTES`], to `target` from its
    /// byte `at` on.
    ///
    /// # Errors
    /// Those of `fill`; `Kind::Device` when the device is lost, `Kind::Memory` when it has no memory.
    pub fn send(
        &mut self,
        gpu: &Gpu,
        target: &wgpu::Buffer,
        at: u64,
        bytes: u64,
        fill: impl FnOnce(&wgpu::Buffer) -> Result<()>,
    ) -> Result<()> {
        let lost = |e: &dyn std::fmt::Display| Error::device(format!("waiting for uploads: {e}"));
        if self.slots.len() == self.next {
            self.slots.push(Slot { buffer: buffer(gpu)?, copy: None });
        }
        let Some(slot) = self.slots.get_mut(self.next) else { return Ok(()) };
        self.next = (self.next + 1) % SLOTS;
        if let Some((submission, mut mapped)) = slot.copy.take() {
            let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
            gpu.device.poll(wait).map_err(|e| lost(&e))?;
            gpu.check()?;
            // Polling called back.
            let mapped = mapped.try_recv().ok().flatten().ok_or_else(|| lost(&"the buffer was not mapped"))?;
            mapped.map_err(|e| lost(&e))?;
        }
        fill(&slot.buffer)?;
        slot.buffer.unmap();
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&slot.buffer, 0, target, at, bytes);
        let submission = gpu.queue.submit([encoder.finish()]);
        let (sender, receiver) = oneshot::channel();
        slot.buffer.map_async(wgpu::MapMode::Write, .., move |result| {
            // The receiver is gone when loading ended.
            let _ = sender.send(result);
        });
        slot.copy = Some((submission, receiver));
        gpu.check()
    }
}

fn buffer(gpu: &Gpu) -> Result<wgpu::Buffer> {
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("weights on their way"),
        size: SLOT_BYTES as u64,
        usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    });
    gpu.check().map(|()| buffer)
}
