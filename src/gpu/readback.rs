//! Reading results: one buffer per step, mapped after its submission, with a guard word that must have arrived.

use super::device::Gpu;
use crate::error::{Error, Result};
use futures_channel::oneshot;
use std::cell::RefCell;

/// A copy into a readback buffer.
#[derive(Debug, Clone)]
pub struct Piece {
    pub source: wgpu::Buffer,
    pub source_offset: u64,
    pub offset: u64,
    pub bytes: u64,
}

/// Buffers waiting to be used again.
#[derive(Debug, Default)]
pub struct Pool {
    free: RefCell<Vec<wgpu::Buffer>>,
}

/// A submitted readback.
#[derive(Debug)]
pub struct Readback {
    pub buffer: wgpu::Buffer,
    receiver: oneshot::Receiver<std::result::Result<(), wgpu::BufferAsyncError>>,
    submission: wgpu::SubmissionIndex,
    bytes: u64,
    serial: u32,
}

impl Pool {
    /// A mappable buffer of at least `bytes`.
    pub fn take(&self, gpu: &Gpu, bytes: u64) -> Result<wgpu::Buffer> {
        let mut free = self.free.borrow_mut();
        if let Some(i) = free.iter().position(|b| b.size() >= bytes && b.size() <= bytes.max(1 << 16) * 4) {
            return Ok(free.swap_remove(i));
        }
        let size = bytes.next_power_of_two().max(256);
        let size = if size > gpu.caps.max_buffer { bytes } else { size };
        if size > gpu.caps.max_buffer {
            let message = format!(
                "the values wanted of one step take {bytes} bytes, a buffer of this device {}; ask for fewer stages or layers, or use a smaller prefill chunk",
                gpu.caps.max_buffer
            );
            return Err(Error::memory(message));
        }
        let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.check()?;
        Ok(buffer)
    }

    /// Waits for a readback, checks its guard, hands its bytes to `take` and returns the buffer to the pool.
    pub async fn finish<R>(&self, gpu: &Gpu, readback: Readback, take: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let Readback { buffer, receiver, submission, bytes, serial } = readback;
        let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
        gpu.device.poll(wait).map_err(|e| Error::device(format!("waiting for the device: {e}")))?;
        let mapped = receiver.await.map_err(|_| Error::device("the device was lost while a result was being read"))?;
        gpu.check()?;
        mapped.map_err(|e| Error::device(format!("mapping a result: {e}")))?;
        let result = {
            let view = buffer.get_mapped_range(..bytes).map_err(|e| Error::device(format!("reading a result: {e}")))?;
            let (body, guard) = view.split_at(bytes as usize - 4);
            let found = u32::from_le_bytes([guard[0], guard[1], guard[2], guard[3]]);
            if found != serial {
                let message = format!("a result of step {serial} carries the mark of step {found}: the device did not finish its copies");
                return Err(Error::device(message));
            }
            take(body)
        };
        buffer.unmap();
        let mut free = self.free.borrow_mut();
        if free.len() < 8 && bytes < 64 << 20 {
            free.push(buffer);
        }
        Ok(result)
    }
}

impl Readback {
    /// Starts mapping `buffer`, of which `bytes` are used, the last four the guard.
    pub fn start(buffer: wgpu::Buffer, bytes: u64, serial: u32, submission: wgpu::SubmissionIndex) -> Self {
        let (sender, receiver) = oneshot::channel();
        buffer.map_async(wgpu::MapMode::Read, ..bytes, move |result| {
            // The receiver is gone when a step was abandoned; its result is not needed then.
            let _ = sender.send(result);
        });
        Self { buffer, receiver, submission, bytes, serial }
    }
}
