//! Buffers for the values of a plan: shared by values whose lives do not overlap, sized once for a cache's chunk.

use super::device::Gpu;
use crate::error::{Error, Result};
use crate::exec::{Storage, matmul_inputs};
use crate::plan::{Layout, Op, Plan, ValueId};
use crate::tensor::{DType, product};

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

/// A layer's cache on the device.
#[derive(Debug, Clone)]
pub struct KvBuffers {
    pub keys: wgpu::Buffer,
    pub values: wgpu::Buffer,
    /// Slots; position q is in slot q mod capacity.
    pub capacity: usize,
    /// `F32` or `F16`.
    pub dtype: DType,
}

/// A position encoding's table on the device.
#[derive(Debug, Clone)]
pub struct RopeBuffer {
    pub buffer: wgpu::Buffer,
    /// Half of the rotated elements of a head.
    pub half_dim: usize,
    pub positions: usize,
    pub variants: usize,
}

/// The value buffers of a plan. Values laid out [heads, T, positions] get theirs when a step wants them.
#[derive(Debug)]
pub struct Values {
    values: Vec<Option<Value>>,
    /// Rows for which logits fit at a time.
    pub head_batch: usize,
}

/// Elements from row to row for a width.
pub fn stride(width: usize) -> usize {
    width.next_multiple_of(8)
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
        size: size.max(16).next_multiple_of(16),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu.check().map_err(|e| e.within(format!("allocating {label} ({size} bytes)")))?;
    Ok(buffer)
}

/// Logits of at most this many bytes are computed at a time.
const HEAD_BATCH_BYTES: usize = 32 << 20;

impl Values {
    /// Plans and allocates buffers for steps of at most `chunk` tokens; with `share`, values take turns in them.
    pub fn new(gpu: &Gpu, plan: &Plan, storage: Storage, chunk: usize, share: bool) -> Result<Self> {
        let narrow = matmul_inputs(plan);
        let head_batch = (HEAD_BATCH_BYTES / (stride(plan.vocab_size) * 4)).clamp(1, chunk);
        let root = roots(plan);
        let mut last_use: Vec<usize> = (0..plan.nodes.len()).collect();
        for (i, node) in plan.nodes.iter().enumerate() {
            last_use[root[i].0] = i;
            // fused, the mixture also reads what the scores would have
            let mixed = if matches!(node.op, Op::AttnMix(_)) { attention_reads(plan, ValueId(i)) } else { Vec::new() };
            for input in node.inputs.iter().chain(&mixed) {
                last_use[root[input.0].0] = i;
            }
        }
        let mut slots: Vec<(u64, usize)> = Vec::new(); // bytes, last node that reads it
        let mut slot_of = vec![None; plan.nodes.len()];
        for (i, node) in plan.nodes.iter().enumerate() {
            if root[i].0 != i || node.at.stage.info().layout != Layout::Rows {
                continue;
            }
            let head = plan.head_input().is_some_and(|h| i > h.0);
            let rows = if head { head_batch } else { chunk };
            let size = product([rows, stride(node.width), dtype_of(narrow[i], storage).size()]);
            // logits stay readable after the step, and keep a buffer of their own
            let free = slots.iter().enumerate().filter(|(_, (_, until))| share && *until < i && !head);
            let best = free.min_by_key(|(_, (bytes, _))| bytes.abs_diff(size)).map(|(s, _)| s);
            let slot = best.unwrap_or_else(|| {
                slots.push((0, 0));
                slots.len() - 1
            });
            slots[slot] = (slots[slot].0.max(size), if head { usize::MAX } else { last_use[i] });
            slot_of[i] = Some(slot);
        }
        let buffers = slots.iter().map(|(size, _)| storage_buffer(gpu, "values", *size)).collect::<Result<Vec<_>>>()?;
        let value = |i: usize| {
            let r = root[i].0;
            let slot: Option<usize> = slot_of[r];
            slot.map(|s| Value { buffer: buffers[s].clone(), dtype: dtype_of(narrow[r], storage), stride: stride(plan.nodes[r].width) })
        };
        Ok(Self { values: (0..plan.nodes.len()).map(value).collect(), head_batch })
    }

    /// The buffer of a row value.
    pub fn get(&self, plan: &Plan, id: ValueId) -> Result<&Value> {
        self.values[id.0].as_ref().ok_or_else(|| Error::plan(format!("{} has no buffer", plan.node(id).at)))
    }
    /// Puts `id` (and whatever shares its storage) into `value`.
    pub fn set(&mut self, id: ValueId, value: Value) {
        self.values[id.0] = Some(value);
    }
    /// Values in which nothing is allocated, for single ops.
    pub fn empty(plan: &Plan) -> Self {
        Self { values: vec![None; plan.nodes.len()], head_batch: 1 }
    }
}

/// Storage type of a value.
pub fn dtype_of(matmul_input: bool, storage: Storage) -> DType {
    if matmul_input { storage.activations } else { DType::F32 }
}

/// For each node the node whose storage it shares: itself, or what `Same` renames.
pub fn roots(plan: &Plan) -> Vec<ValueId> {
    let mut root: Vec<ValueId> = Vec::with_capacity(plan.nodes.len());
    for (i, node) in plan.nodes.iter().enumerate() {
        root.push(if matches!(node.op, Op::Same) { root[node.inputs[0].0] } else { ValueId(i) });
    }
    root
}

/// What the attention of a layer reads beside its cache: the q and k of its scores and the v of its mixture.
pub fn attention_reads(plan: &Plan, mix: ValueId) -> Vec<ValueId> {
    let node = plan.node(mix);
    let scores = plan.node(plan.node(node.inputs[0]).inputs[0]);
    scores.inputs.iter().copied().chain([node.inputs[1]]).collect()
}
