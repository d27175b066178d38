//! Weights on the device: matrices as stored, rows padded to eight elements, split where a binding is too small;
//! vectors (norms, biases) as f32. Weights that kernels read as one lie in one buffer, one after the other.

use super::device::Gpu;
#[cfg(not(target_arch = "wasm32"))]
use super::staging::{SLOT_BYTES, Staging};
use crate::error::{Error, Result};
#[cfg(not(target_arch = "wasm32"))]
use crate::exec::StoredRows;
use crate::geometry::{device_row_bytes, stride, weight_layout};
use crate::groups::families;
use crate::plan::{Plan, WeightId};
use crate::quant::Format;
use crate::tensor::product;
use crate::threads;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

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
    /// Of bf16, the largest magnitude put so far, as its bits.
    largest: AtomicU16,
}

/// A band of rows.
#[derive(Debug)]
pub struct Piece {
    pub first: usize,
    pub rows: usize,
    pub buffer: wgpu::Buffer,
    /// Where it begins in the buffer: rows of a matrix, elements of a vector.
    pub at: usize,
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
    /// The power of two that brings the largest weight near the end of what f16 holds, where weights are bf16: what is
    /// then rounded is only what is far below it.
    pub fn scale(&self) -> f64 {
        let exponent = i32::from(self.largest.load(Ordering::Relaxed) >> 7);
        if self.format == Format::BF16 && (1..255).contains(&exponent) { f64::from(127 + 14 - exponent).exp2() } else { 1.0 }
    }
    /// All rows were put.
    fn is_filled(&self) -> bool {
        self.filled >= self.shape[0]
    }
    /// Where the only piece begins in its buffer.
    pub fn at(&self) -> usize {
        self.pieces.first().map_or(0, |piece| piece.at)
    }
    /// Whether the matrix `next` lies behind this one in the same buffer, stored alike.
    pub fn is_before(&self, next: &GpuWeight) -> bool {
        let ([here], [there]) = (&self.pieces[..], &next.pieces[..]) else { return false };
        let alike = self.format == next.format && self.shape[1] == next.shape[1];
        alike && here.buffer == there.buffer && here.at + here.rows == there.at
    }
    /// Whether both are in the same buffer.
    pub fn shares_buffer(&self, next: &GpuWeight) -> bool {
        self.pieces[0].buffer == next.pieces[0].buffer
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

/// How rows of a weight lie on the device: what threads may know of it.
#[derive(Debug, Clone, Copy)]
struct DeviceRows {
    format: Format,
    columns: usize,
    row_bytes: usize,
}

impl DeviceRows {
    /// Writes rows stored as `format`, `source_row` bytes each, as they lie on the device.
    fn lay(self, format: Format, from: &[u8], source_row: usize, to: &mut [u8]) -> Result<()> {
        for (to, from) in to.chunks_exact_mut(self.row_bytes).zip(from.chunks_exact(source_row)) {
            match self.format.planes() {
                Some(planes) => planes.pack(from, self.columns, to),
                None if self.format == format => to[..source_row].copy_from_slice(from),
                None => {
                    for (to, value) in to.as_chunks_mut::<4>().0.iter_mut().zip(format.values(from)?) {
                        *to = value.to_le_bytes();
                    }
                }
            }
        }
        Ok(())
    }
}

/// Bytes from which on work is shared among threads.
const WORTH: usize = 1 << 20;

impl GpuWeight {
    /// Whether rows stored as `format`, `source_row` bytes each, lie on the device just so.
    fn is_alike(&self, format: Format, source_row: usize) -> bool {
        self.format == format && format.planes().is_none() && self.row_bytes() == source_row
    }
    /// How its rows lie on the device.
    fn rows(&self) -> DeviceRows {
        DeviceRows { format: self.format, columns: self.shape[1], row_bytes: self.row_bytes() }
    }
    /// Rows stored as `format`, `source_row` bytes each, as they lie on the device.
    #[cfg(not(target_arch = "wasm32"))]
    fn lay(&self, format: Format, from: &[u8], source_row: usize, to: &mut [u8]) -> Result<()> {
        self.rows().lay(format, from, source_row, to)
    }
    /// Takes note of the largest magnitude of rows of bf16.
    fn look(&self, format: Format, rows: &[u8]) {
        if format == Format::BF16 {
            let magnitude = |pair: &[u8; 2]| u16::from_le_bytes(*pair) & 0x7fff;
            let largest = rows.as_chunks::<2>().0.iter().map(magnitude).fold(0, u16::max);
            self.largest.fetch_max(largest, Ordering::Relaxed);
        }
    }
    /// The rows of `rows` in each piece: of the weight, and from which byte of its buffer on they lie.
    fn places(&self, rows: Range<usize>) -> impl Iterator<Item = (&Piece, Range<usize>, u64)> {
        let row_bytes = self.row_bytes();
        self.pieces.iter().filter_map(move |piece| {
            let rows = rows.start.max(piece.first)..rows.end.min(piece.first + piece.rows);
            let at = product([(piece.at + rows.start).saturating_sub(piece.first), row_bytes]);
            (rows.start < rows.end).then_some((piece, rows, at))
        })
    }
}

/// All weights of a plan, being filled or full.
#[derive(Debug)]
pub struct Weights {
    slots: Vec<Option<GpuWeight>>,
    /// Weights that lie together where they can, and their buffer.
    families: Vec<Family>,
    /// The one of each weight that is in one.
    family_of: Vec<Option<usize>>,
    /// As what each weight will come.
    expected: Vec<Option<Format>>,
    /// Bytes handed to the queue since it was last flushed.
    pending: u64,
    /// What large weights pass through, until all are there.
    #[cfg(not(target_arch = "wasm32"))]
    staging: Staging,
}

/// Weights that kernels read as one.
#[derive(Debug)]
struct Family {
    members: Vec<WeightId>,
    buffer: Option<wgpu::Buffer>,
}

/// Staged bytes after which uploads wait for the device, so that host memory stays small.
const FLUSH_BYTES: u64 = 256 << 20;

impl Weights {
    /// No weight yet.
    pub fn new(plan: &Plan) -> Self {
        let families: Vec<Family> = families(plan).into_iter().map(|members| Family { members, buffer: None }).collect();
        let count = plan.weights.len();
        let mut family_of = vec![None; count];
        for (number, Family { members, .. }) in families.iter().enumerate() {
            members.iter().for_each(|id| family_of[id.0] = Some(number));
        }
        Self {
            slots: (0..count).map(|_| None).collect(),
            families,
            family_of,
            expected: vec![None; count],
            pending: 0,
            #[cfg(not(target_arch = "wasm32"))]
            staging: Staging::default(),
        }
    }
    /// Takes note as what every weight will come, before any is put, or put again.
    pub fn expect(&mut self, formats: &[Format]) {
        self.families.iter_mut().for_each(|family| family.buffer = None);
        self.expected = formats.iter().copied().map(Some).collect();
        self.expected.resize(self.slots.len(), None);
    }
    /// Weight `id`; an error when it was never put, or only in part.
    pub fn get(&self, plan: &Plan, id: WeightId) -> Result<&GpuWeight> {
        let slot = self.slots[id.0].as_ref().filter(|weight| weight.is_filled());
        slot.ok_or_else(|| Error::weights(format!("weight {} has not been loaded completely", plan.weights[id.0].label())))
    }
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        let rows = |w: &GpuWeight| w.pieces.iter().map(|p| p.rows).sum();
        self.slots.iter().flatten().map(|w| product([rows(w), w.row_bytes()])).sum()
    }

    /// Makes the buffers of weight `id`, stored as `format`.
    pub fn allocate(&mut self, gpu: &Gpu, plan: &Plan, id: WeightId, format: Format) -> Result<&mut GpuWeight> {
        let slot = &plan.weights[id.0];
        let (shape, format) = weight_layout(slot, format);
        let mut weight = GpuWeight { format, shape, pieces: Vec::new(), filled: 0, largest: AtomicU16::new(0) };
        let row_bytes = weight.row_bytes();
        let limit = gpu.caps.largest_buffer();
        // 4 GiB does not fit in wasm's 32-bit `usize`.
        let per_piece = (usize::try_from(limit).unwrap_or(usize::MAX) / row_bytes).min(u32::MAX as usize / weight.k8().max(weight.row4()));
        if per_piece == 0 {
            return Err(Error::memory(format!("one row of {} takes {row_bytes} bytes, a binding of this device {limit}", slot.label())));
        }
        let make = |label: &str, size: u64| {
            let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            gpu.check().map_err(|e| e.within(format!("allocating {label} ({size} bytes)"))).map(|()| buffer)
        };
        let vector = slot.shape.len() == 1;
        let most = if vector { usize::try_from(limit / 4).unwrap_or(usize::MAX) } else { per_piece };
        if let Some((number, before, all)) = self.together(plan, id, format).filter(|(_, _, all)| *all <= most) {
            let family = &mut self.families[number];
            let buffer = match &family.buffer {
                Some(buffer) => buffer.clone(),
                None => {
                    let unit = if vector { 4 } else { row_bytes };
                    let label = format!("{} and what is read with it", slot.label());
                    family.buffer.insert(make(&label, product([all, unit]))?).clone()
                }
            };
            weight.pieces.push(Piece { first: 0, rows: shape[0], buffer, at: before });
            return Ok(self.slots[id.0].insert(weight));
        }
        for first in (0..shape[0]).step_by(per_piece) {
            let rows = per_piece.min(shape[0] - first);
            let buffer = make(&slot.label(), product([rows, row_bytes]))?;
            weight.pieces.push(Piece { first, rows, buffer, at: 0 });
        }
        Ok(self.slots[id.0].insert(weight))
    }

    /// The family of weight `id`, if all of it comes as `format`: its number, the rows (elements, of vectors) of what lies
    /// before, and those of all.
    fn together(&self, plan: &Plan, id: WeightId, format: Format) -> Option<(usize, usize, usize)> {
        let number = self.family_of[id.0]?;
        let family = &self.families[number];
        let vector = plan.weights[id.0].shape.len() == 1;
        let alike =
            |id: &WeightId| self.expected[id.0].is_some_and(|expected| vector || weight_layout(&plan.weights[id.0], expected).1 == format);
        if !family.members.iter().all(alike) {
            return None;
        }
        let length = |id: &WeightId| {
            let ([rows, columns], _) = weight_layout(&plan.weights[id.0], format);
            if vector { stride(columns) } else { rows }
        };
        let before = family.members.iter().take_while(|member| **member != id).map(length).sum();
        Some((number, before, family.members.iter().map(length).sum()))
    }

    /// Clears weight `id`; its buffers live on in the programs that were made with them.
    pub fn clear(&mut self, id: WeightId) -> Result<()> {
        let slot = self.slots.get_mut(id.0).ok_or_else(|| Error::weights(format!("the plan has no weight {}", id.0)))?;
        *slot = None;
        // What replaces it may be stored otherwise: it gets a buffer of its own.
        self.expected[id.0] = None;
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
            let piece = &weight.pieces[0];
            gpu.queue.write_buffer(&piece.buffer, product([piece.at + first_row, 4]), bytemuck::cast_slice(&values));
            if first_row + rows == slot.shape[0] {
                weight.filled = 1;
            }
            return gpu.check();
        }
        weight.look(format, bytes);
        let row_bytes = weight.row_bytes();
        for (piece, rows, at) in weight.places(first_row..first_row + rows) {
            let stored = &bytes[(rows.start - first_row) * source_row..(rows.end - first_row) * source_row];
            if weight.is_alike(format, source_row) {
                gpu.queue.write_buffer(&piece.buffer, at, stored);
                continue;
            }
            let mut laid = vec![0; rows.len() * row_bytes];
            let share = (WORTH / row_bytes.max(source_row)).max(1);
            let parts = laid.chunks_mut(share * row_bytes).zip(stored.chunks(share * source_row));
            let lie = weight.rows();
            threads::each(parts, || (), |(), (laid, stored)| lie.lay(format, stored, source_row, laid))?;
            gpu.queue.write_buffer(&piece.buffer, at, &laid);
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

    /// As `put`, of rows that several threads read, each straight to where the device copies from.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn pull(&mut self, gpu: &Gpu, plan: &Plan, id: WeightId, format: Format, stored: &StoredRows<'_>) -> Result<()> {
        let (slot, source_row) = (&plan.weights[id.0], stored.row_bytes);
        let [columns] = slot.shape[1..] else { return self.put(gpu, plan, id, format, stored.rows.start, &stored.read()?) };
        if self.slots[id.0].is_none() {
            self.allocate(gpu, plan, id, format)?;
        }
        let Some(weight) = self.slots[id.0].as_mut() else { return Ok(()) };
        let row_bytes = weight.row_bytes();
        let fits = format.row_bytes(columns) == Some(source_row) && stored.rows.end <= slot.shape[0];
        if !fits || stored.bytes() < WORTH || row_bytes > SLOT_BYTES {
            return self.put(gpu, plan, id, format, stored.rows.start, &stored.read()?);
        }
        let alike = weight.is_alike(format, source_row);
        for (piece, rows, at) in weight.places(stored.rows.clone()) {
            for (number, rows) in threads::parts(rows, SLOT_BYTES / row_bytes).enumerate() {
                let at = at + product([number * (SLOT_BYTES / row_bytes), row_bytes]);
                self.staging.send(gpu, &piece.buffer, at, product([rows.len(), row_bytes]), |buffer| {
                    let parts = threads::parts(rows.clone(), stored.part(row_bytes));
                    threads::each(parts, Default::default, |(from, to): &mut (Vec<u8>, Vec<u8>), part| {
                        from.resize(part.len() * source_row, 0);
                        (stored.fill)(part.clone(), from)?;
                        weight.look(format, from);
                        let laid = if alike {
                            &*from
                        } else {
                            to.resize(part.len() * row_bytes, 0);
                            weight.lay(format, from, source_row, to)?;
                            &*to
                        };
                        let (first, bytes) = (product([part.start - rows.start, row_bytes]), product([part.len(), row_bytes]));
                        let mapped = buffer.get_mapped_range_mut(first..first + bytes);
                        mapped.map_err(|e| Error::device(format!("writing uploads: {e}")))?.copy_from_slice(laid);
                        Ok(())
                    })
                })?;
            }
        }
        weight.filled += stored.rows.len();
        if self.slots.iter().all(|weight| weight.as_ref().is_some_and(GpuWeight::is_filled)) {
            self.staging = Staging::default();
        }
        gpu.check()
    }
}
