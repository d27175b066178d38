//! Weights on the device: matrices as stored, rows padded to eight elements, split where a binding is too small;
//! vectors (norms, biases) as f32.

use super::device::Gpu;
use crate::error::{Error, Result};
use crate::geometry::{device_row_bytes, stride, weight_layout};
use crate::plan::{Plan, WeightId};
use crate::quant::Format;
use crate::tensor::product;

/// One weight.
#[derive(Debug)]
pub struct GpuWeight {
    /// Format of a matrix; f32 for vectors.
    pub format: Format,
    /// Rows [0] and columns [1]; vectors have one row.
    pub shape: [usize; 2],
    /// Bands of rows, each in a buffer of its own.
    pub pieces: Vec<Piece>,
    /// Rows put so far.
    filled: usize,
}

/// A band of rows.
#[derive(Debug)]
pub struct Piece {
    pub first: usize,
    pub rows: usize,
    pub buffer: wgpu::Buffer,
}

impl GpuWeight {
    /// Row length in eights.
    pub fn k8(&self) -> usize {
        stride(self.shape[1]) / 8
    }
    /// Bytes of a padded row.
    pub fn row_bytes(&self) -> usize {
        device_row_bytes(self.format, self.shape[1])
    }
    /// Words of a packed row.
    pub fn row4(&self) -> usize {
        self.row_bytes() / 4
    }
    /// The defines that make kernels read this format.
    pub fn defines(&self) -> Vec<&'static str> {
        match (self.format, self.format.planes()) {
            (_, Some(planes)) => planes.defines.to_vec(),
            (Format::F16, _) => vec!["W_F16"],
            (Format::BF16, _) => vec!["W_BF16"],
            _ => vec!["W_F32"],
        }
    }
}

/// Rows stored as `format`, `source_row` bytes each, as they lie on the device.
fn device_rows(format: Format, weight: &GpuWeight, bytes: &[u8], source_row: usize) -> Result<Vec<u8>> {
    let (row_bytes, columns) = (weight.row_bytes(), weight.shape[1]);
    let mut out = vec![0u8; bytes.len() / source_row * row_bytes];
    let rows = |out: &mut [u8], bytes: &[u8]| -> Result<()> {
        for (to, from) in out.chunks_exact_mut(row_bytes).zip(bytes.chunks_exact(source_row)) {
            match weight.format.planes() {
                Some(planes) => planes.pack(from, columns, to),
                None if weight.format == format => to[..source_row].copy_from_slice(from),
                None => {
                    for (to, value) in to.as_chunks_mut::<4>().0.iter_mut().zip(format.values(from)?) {
                        *to = value.to_le_bytes();
                    }
                }
            }
        }
        Ok(())
    };
    #[cfg(not(target_arch = "wasm32"))]
    {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(bytes.len() >> 20);
        if threads > 1 {
            let each = (bytes.len() / source_row).div_ceil(threads);
            return std::thread::scope(|scope| {
                let parts = out.chunks_mut(each * row_bytes).zip(bytes.chunks(each * source_row));
                let running: Vec<_> = parts.map(|(out, bytes)| scope.spawn(move || rows(out, bytes))).collect();
                running
                    .into_iter()
                    .try_for_each(|thread| thread.join().map_err(|_| Error::device("a thread that lays out weights ended early"))?)
            })
            .map(|()| out);
        }
    }
    rows(&mut out, bytes)?;
    Ok(out)
}

/// All weights of a plan, being filled or full.
#[derive(Debug)]
pub struct Weights {
    slots: Vec<Option<GpuWeight>>,
    /// Bytes handed to the queue since it was last flushed.
    pending: u64,
}

/// Staged bytes after which uploads wait for the device, so that host memory stays small.
const FLUSH_BYTES: u64 = 256 << 20;

impl Weights {
    /// No weight yet.
    pub fn new(count: usize) -> Self {
        Self { slots: (0..count).map(|_| None).collect(), pending: 0 }
    }
    /// Weight `id`; an error when it was never put, or only in part.
    pub fn get(&self, plan: &Plan, id: WeightId) -> Result<&GpuWeight> {
        let slot = self.slots[id.0].as_ref().filter(|w| w.filled >= w.shape[0]);
        slot.ok_or_else(|| Error::weights(format!("weight {} has not been loaded completely", plan.weights[id.0].label())))
    }
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().flatten().flat_map(|w| &w.pieces).map(|p| p.buffer.size()).sum()
    }

    /// Makes the buffers of weight `id`, stored as `format`.
    pub fn allocate(&mut self, gpu: &Gpu, plan: &Plan, id: WeightId, format: Format) -> Result<&mut GpuWeight> {
        let slot = &plan.weights[id.0];
        let (shape, format) = weight_layout(slot, format);
        let mut weight = GpuWeight { format, shape, pieces: Vec::new(), filled: 0 };
        let row_bytes = weight.row_bytes();
        let limit = gpu.caps.largest_buffer();
        // 4 GiB does not fit in wasm's 32-bit `usize`.
        let per_piece = (usize::try_from(limit).unwrap_or(usize::MAX) / row_bytes).min(u32::MAX as usize / weight.k8().max(weight.row4()));
        if per_piece == 0 {
            return Err(Error::memory(format!("one row of {} takes {row_bytes} bytes, a binding of this device {limit}", slot.label())));
        }
        for first in (0..shape[0]).step_by(per_piece) {
            let rows = per_piece.min(shape[0] - first);
            let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(&slot.label()),
                size: product([rows, row_bytes]),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            gpu.check().map_err(|e| e.within(format!("allocating {} ({} bytes)", slot.label(), product([rows, row_bytes]))))?;
            weight.pieces.push(Piece { first, rows, buffer });
        }
        Ok(self.slots[id.0].insert(weight))
    }

    /// Clears weight `id`; its buffers live on in the programs that were made with them.
    pub fn clear(&mut self, id: WeightId) -> Result<()> {
        let slot = self.slots.get_mut(id.0).ok_or_else(|| Error::weights(format!("the plan has no weight {}", id.0)))?;
        *slot = None;
        Ok(())
    }

    /// Marks weight `id` as filled by other means than `put`.
    pub fn mark_filled(&mut self, id: WeightId) {
        if let Some(weight) = &mut self.slots[id.0] {
            weight.filled = weight.shape[0];
        }
    }

    /// Rows `first_row..` of weight `id` (elements, for vectors).
    pub fn put(&mut self, gpu: &Gpu, plan: &Plan, id: WeightId, format: Format, first_row: usize, bytes: &[u8]) -> Result<()> {
        let slot = &plan.weights[id.0];
        let columns = slot.shape.get(1).copied().unwrap_or(1);
        let source_row = format.row_bytes(columns).unwrap_or(0);
        let rows = bytes.len().checked_div(source_row).unwrap_or(0);
        if rows * source_row != bytes.len() || first_row + rows > slot.shape[0] {
            let message = format!("{}: {} bytes from row {first_row} do not fit {:?} of {format}", slot.label(), bytes.len(), slot.shape);
            return Err(Error::weights(message));
        }
        if self.slots[id.0].is_none() {
            self.allocate(gpu, plan, id, format)?;
        }
        let Some(weight) = self.slots[id.0].as_mut() else { return Ok(()) };
        if slot.shape.len() == 1 {
            let mut values = vec![0.0; rows];
            format.decode(bytes, &mut values)?;
            gpu.queue.write_buffer(&weight.pieces[0].buffer, (first_row * 4) as u64, bytemuck::cast_slice(&values));
            if first_row + rows == slot.shape[0] {
                weight.filled = 1;
            }
            return gpu.check();
        }
        let row_bytes = weight.row_bytes();
        for piece in &weight.pieces {
            let begin = first_row.max(piece.first);
            let end = (first_row + rows).min(piece.first + piece.rows);
            if begin >= end {
                continue;
            }
            let part = &bytes[(begin - first_row) * source_row..(end - first_row) * source_row];
            let at = product([begin - piece.first, row_bytes]);
            if weight.format == format && format.planes().is_none() && row_bytes == source_row {
                gpu.queue.write_buffer(&piece.buffer, at, part);
            } else {
                gpu.queue.write_buffer(&piece.buffer, at, &device_rows(format, weight, part, source_row)?);
            }
        }
        weight.filled += rows;
        self.pending += bytes.len() as u64;
        if self.pending > FLUSH_BYTES {
            self.pending = 0;
            gpu.queue.submit([]);
            gpu.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| Error::device(format!("waiting for uploads: {e}")))?;
        }
        gpu.check()
    }
}
