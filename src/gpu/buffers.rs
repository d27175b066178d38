//! Buffers on the device, made as `geometry` says.

use super::device::Gpu;
use crate::error::{Error, Result};
use crate::exec::{Storage, matmul_inputs};
use crate::geometry::{ValueBuffers, buffer_bytes, dtype_of, stride};
use crate::model::RopePairing;
use crate::plan::{Op, Plan, StatePart, ValueId};
use crate::tensor::DType;

/// Where a value is and how it is stored.
#[derive(Debug, Clone)]
pub struct Value {
    pub buffer: wgpu::Buffer,
    /// `F32` or `F16`.
    pub dtype: DType,
    /// Elements from row to row, a multiple of eight.
    pub stride: usize,
}

impl Value {
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.stride * self.dtype.size()
    }
}

/// A state on the device, of all sequences.
#[derive(Debug, Clone)]
pub struct StateBuffers {
    /// One for each of its parts.
    pub parts: Vec<wgpu::Buffer>,
    /// Which of its slabs a sequence has in it.
    pub kind: usize,
    pub slots: usize,
    /// `F32` or `F16`.
    pub dtype: DType,
}

impl StateBuffers {
    /// The buffer of a part.
    pub fn part(&self, part: StatePart) -> Result<&wgpu::Buffer> {
        self.parts.get(part.place()).ok_or_else(|| Error::plan(format!("a state without {}", part.name())))
    }
}

/// A position encoding's table on the device.
#[derive(Debug, Clone)]
pub struct RopeBuffer {
    pub buffer: wgpu::Buffer,
    /// Half of the rotated elements of a head.
    pub half_dim: usize,
    pub pairing: RopePairing,
    pub positions: usize,
    pub variants: usize,
}

/// The value buffers of a plan. Values laid out [heads, T, positions], and what is in a cache, get theirs when a step wants them.
#[derive(Debug)]
pub struct Values {
    values: Vec<Option<Value>>,
    /// Rows for which logits fit at a time.
    pub head_batch: usize,
}

/// A storage buffer that can be copied from and to.
pub fn storage_buffer(gpu: &Gpu, label: &str, size: u64) -> Result<wgpu::Buffer> {
    let limit = gpu.caps.largest_buffer();
    if size > limit {
        return Err(Error::memory(format!(
            "{label} needs {size} bytes in one binding, this device allows {limit}; use a smaller chunk or a shorter context"
        )));
    }
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: buffer_bytes(size),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu.check().map_err(|e| e.within(format!("allocating {label} ({size} bytes)")))?;
    Ok(buffer)
}

impl Values {
    /// Makes the buffers.
    pub fn new(gpu: &Gpu, plan: &Plan, storage: Storage, buffers: &ValueBuffers) -> Result<Self> {
        let narrow = matmul_inputs(plan);
        let made = buffers.buffers.iter().map(|size| storage_buffer(gpu, "values", *size)).collect::<Result<Vec<_>>>()?;
        let value = |(i, place): (usize, &Option<usize>)| {
            let node = &plan.nodes[i];
            // `Same` is stored as what it renames.
            let mut source = i;
            while let (Op::Same, [input]) = (&plan.nodes[source].op, &plan.nodes[source].inputs[..]) {
                source = input.0;
            }
            let dtype = dtype_of(narrow[source], storage);
            place.map(|place| Value { buffer: made[place].clone(), dtype, stride: stride(node.width) })
        };
        Ok(Self { values: buffers.places.iter().enumerate().map(value).collect(), head_batch: buffers.head_batch })
    }

    /// The buffer of a row value.
    pub fn get(&self, plan: &Plan, id: ValueId) -> Result<&Value> {
        self.values[id.0].as_ref().ok_or_else(|| Error::plan(format!("{} has no buffer", plan.node(id).at)))
    }
    /// Puts `id` (and whatever shares its storage) into `value`.
    pub fn set(&mut self, id: ValueId, value: Value) {
        self.values[id.0] = Some(value);
    }
    /// Whether it has a buffer.
    pub fn has(&self, id: ValueId) -> bool {
        self.values[id.0].is_some()
    }
    /// Values in which nothing is allocated, for single ops.
    pub fn empty(plan: &Plan) -> Self {
        Self { values: vec![None; plan.nodes.len()], head_batch: 1 }
    }
    /// Bytes of the buffers that hold rows, each counted once.
    pub fn bytes(&self, plan: &Plan) -> u64 {
        let mut seen: Vec<&wgpu::Buffer> = Vec::new();
        for (value, node) in self.values.iter().zip(&plan.nodes) {
            let buffer = value.as_ref().filter(|_| node.at.stage.layout().is_rows() && !node.op.appends()).map(|value| &value.buffer);
            seen.extend(buffer.filter(|buffer| !seen.contains(buffer)));
        }
        seen.iter().map(|buffer| buffer.size()).sum()
    }
}
