//! One op alone on given inputs: the kernels of a node, run on buffers made for it.

use super::buffers::{StateBuffers, Value, Values, storage_buffer};
use super::layouts::{Origin, StepUniform};
use super::lower::Lowering;
use super::pipelines::Extent;
use super::readback::Piece;
use super::recording::record;
use super::state::GpuExecutor;
use super::workspace::{part_origins, step_slots};
use crate::error::{Error, Result};
use crate::exec::matmul_inputs;
use crate::geometry::{MATRIX_SLOTS, ORIGINS_BYTES, SLABS, STEP_SLOT, cache_bytes, dtype_of, stride};
use crate::plan::{Op, StateKind, ValueId};
use crate::tensor::{DType, Tensor, product, to_f32};
use half::f16;

/// As `Executor::eval`.
pub async fn eval(executor: &GpuExecutor, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor> {
    let (gpu, plan) = (&executor.gpu, &executor.plan);
    let node = plan.node(id);
    let narrow = matmul_inputs(plan);
    let expected = if matches!(node.op, Op::Embed { .. }) { 1 } else { node.inputs.len() };
    if inputs.len() != expected {
        return Err(Error::invalid("inputs", format!("{} takes {expected}, found {}", node.at, inputs.len())));
    }
    // T tokens; P positions where the op reads a cache.
    let (tokens, positions) = match &node.op {
        Op::AttnScores(_) | Op::ShortConv { .. } | Op::GatedDelta { .. } => (inputs[0].rows(), inputs[1].rows()),
        Op::Append { .. } => (inputs[0].rows(), inputs[0].rows()),
        Op::AttnProbs(_) | Op::AttnMix(_) => (inputs[0].shape[inputs[0].shape.len() - 2], inputs[0].width()),
        _ => (inputs[0].rows(), 0),
    };
    let stateful = node.op.appends() || node.op.reads_state().is_some() || node.op.attention().is_some();
    // Keys are counted from the first that is given.
    let position = if stateful { positions.saturating_sub(tokens) } else { first_position };
    let shift = first_position.saturating_sub(position);

    let mut values = Values::empty(plan);
    let mut ids = storage_buffer(gpu, "token ids", 16)?;
    if let Op::Embed { .. } = node.op {
        let list: Vec<u32> = inputs[0].data.iter().map(|v| *v as u32).collect();
        if let Some(bad) = list.iter().find(|v| **v as usize >= plan.vocab_size) {
            return Err(Error::invalid("token ids", format!("{bad} is outside the vocabulary of {} rows", plan.vocab_size)));
        }
        ids = storage_buffer(gpu, "token ids", (tokens * 4) as u64)?;
        gpu.queue.write_buffer(&ids, 0, bytemuck::cast_slice(&list));
    }
    for (input, tensor) in node.inputs.iter().zip(inputs) {
        let scores = plan.node(*input).at.stage.layout().is_scores();
        if !scores && tensor.width() != plan.node(*input).width {
            let message = format!("{} has width {}, found {}", plan.node(*input).at, plan.node(*input).width, tensor.width());
            return Err(Error::invalid("inputs", message));
        }
        values.set(*input, upload(executor, tensor, dtype_of(narrow[input.0], executor.storage), scores)?);
    }
    let layout = node.at.stage.layout();
    let dtype = executor.storage.of_appended(plan, id).unwrap_or(dtype_of(narrow[id.0], executor.storage));
    let row = if layout.is_scores() { positions } else { stride(node.width) };
    let bytes = product([layout.rows(node.width, tokens), row, dtype.size()]);
    let out = Value { buffer: storage_buffer(gpu, "output", bytes)?, dtype, stride: row };
    values.set(id, out.clone());

    let states = plan.states.iter().map(|state| {
        let dtype = executor.storage.of(&state.kind);
        // A slab of matrices begins at position 0.
        let (kind, slots) = if let StateKind::Matrix(_) = state.kind { (1, MATRIX_SLOTS) } else { (0, positions.max(1)) };
        let make = |_| storage_buffer(gpu, "cache", cache_bytes(&state.kind, slots, dtype));
        let parts = state.kind.parts().iter().map(make).collect::<Result<_>>()?;
        Ok(StateBuffers { parts, kind, slots, dtype })
    });
    let states: Vec<StateBuffers> = if stateful { states.collect::<Result<_>>()? } else { Vec::new() };
    let ropes = if matches!(node.op, Op::Rope { .. }) { executor.make_ropes(position + tokens)? } else { Vec::new() };
    let partials = storage_buffer(gpu, "runs of attention", 16)?;
    let expert_order = storage_buffer(gpu, "rows of experts", crate::geometry::expert_order(plan, tokens))?;
    let lowering = Lowering {
        gpu,
        plan,
        weights: &executor.weights,
        values: &values,
        states: &states,
        ropes: &ropes,
        ids: &ids,
        partials: &partials,
        expert_order: &expert_order,
        runs: 0,
        size: executor.size_of(tokens),
        head_block: 1,
        shift,
    };

    // What an op reads of a cache is put there first.
    let mut calls = Vec::new();
    if let Some((state, part)) = node.op.reads_state() {
        calls.push((lowering.kv_write(node.inputs[1], state, part)?, true));
    }
    calls.extend(lowering.node(id)?.into_iter().map(|call| (call, false)));
    if node.op.appends() {
        calls.push((lowering.kv_read(id)?, false));
    }

    // Slots of the step: the op, then filling the cache with all positions.
    let step = executor.uniform_buffer("step", 2 * STEP_SLOT as u64)?;
    let origins = executor.uniform_buffer("origins", 2 * ORIGINS_BYTES)?;
    let op = StepUniform {
        tokens: tokens as u32,
        position: position as u32,
        serial: 1,
        head_rows: tokens as u32,
        entries: 1,
        ..Default::default()
    };
    let fill = StepUniform { tokens: positions as u32, serial: 1, entries: 1, ..Default::default() };
    let mut slabs = [[0, 0]; SLABS];
    slabs[0] = [0, positions.max(1) as u32];
    let of_fill = Origin { slabs, ..Default::default() };
    let of_op = Origin { position: position as u32, long_rope: u32::from(long_rope), ..of_fill };
    gpu.queue.write_buffer(&step, 0, &step_slots(&[op, fill]));
    gpu.queue.write_buffer(&origins, 0, &part_origins(&[vec![of_op], vec![of_fill]]));
    let shared = executor.pipelines.share(gpu, &step, &origins);
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    for (call, fills) in calls {
        let dispatch = executor.pipelines.dispatch(gpu, call)?;
        let extent = if fills { Extent::of(positions, 0, 0) } else { Extent::of(tokens, position, tokens) };
        let mut pass = encoder.begin_compute_pass(&Default::default());
        shared.bind(&mut pass, usize::from(fills), usize::from(fills));
        record(&mut pass, &dispatch, extent, gpu.caps.max_workgroups)?;
    }
    if let Op::Same = node.op {
        return Ok(inputs[0].clone());
    }
    let piece = Piece { source: out.buffer.clone(), source_offset: 0, offset: 0, bytes };
    let readback = executor.read_out(encoder, &[piece], bytes + 4, &step, 1)?;
    let all = executor.pool.finish(gpu, readback, |b| to_f32(b, dtype)).await?;
    let width = layout.row_elements(node.width, positions);
    let data = all.chunks_exact(out.stride.max(1)).flat_map(|r| &r[..width]).copied().collect();
    Tensor::new(layout.shape(node.width, tokens, positions), data)
}

/// A tensor on the device as `dtype`, rows padded with zeros.
pub(super) fn upload(executor: &GpuExecutor, tensor: &Tensor, dtype: DType, scores: bool) -> Result<Value> {
    let width = tensor.width();
    let stride = if scores { width } else { stride(width) };
    let mut padded = vec![0.0f32; tensor.rows() * stride];
    for (to, from) in padded.chunks_exact_mut(stride.max(1)).zip(tensor.data.chunks_exact(width.max(1))) {
        to[..width].copy_from_slice(from);
    }
    let bytes: Vec<u8> = match dtype {
        DType::F16 => padded.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => bytemuck::cast_slice(&padded).to_vec(),
    };
    let buffer = storage_buffer(&executor.gpu, "input", bytes.len() as u64)?;
    executor.gpu.queue.write_buffer(&buffer, 0, &bytes);
    Ok(Value { buffer, dtype, stride })
}
