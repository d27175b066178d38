//! Part of a step on given inputs: the kernels that a step of which nobody wants a value runs for some nodes, with the
//! real cache. Then what a cache holds, and the choice among given logits.

use super::buffers::{Value, Values, storage_buffer};
use super::eval::upload;
use super::layouts::{Candidate, StepUniform, structs};
use super::lower::Lowering;
use super::pipelines::Extent;
use super::program::{ProgramKey, Size};
use super::readback::{Piece, Readback};
use super::recording::record;
use super::state::{GpuCache, GpuExecutor, no_workspace};
use super::workspace::{part_origins, step_slots};
use crate::error::{Error, Result};
use crate::exec::{Cached, Chosen, Part, Pick, matmul_inputs};
use crate::geometry::{MOST_ENTRIES, Room, cache_bytes, dtype_of, runs, stride};
use crate::plan::{Op, Plan, StateId, StateKind, ValueId};
use crate::tensor::{DType, Tensor, product, to_f32};

/// As `Executor::part`.
pub async fn part(executor: &GpuExecutor, cache: &mut GpuCache, part: &Part<'_>) -> Result<Tensor> {
    let (tokens, position) = (part.ids.len(), cache.len);
    let (readback, out) = submit(executor, cache, part)?;
    let last = part.nodes.last().copied().unwrap_or(ValueId(0));
    let node = executor.plan.node(last);
    let layout = node.at.stage.layout();
    let width = layout.row_elements(node.width, position + tokens);
    let all = executor.pool.finish(&executor.gpu, readback, |b| to_f32(b, out.dtype)).await?;
    let data = all.chunks_exact(out.stride).flat_map(|row| &row[..width]).copied().collect();
    Tensor::new(layout.shape(node.width, tokens, position + tokens), data)
}

/// Starts a part; the value of its last node comes back.
fn submit(executor: &GpuExecutor, cache: &mut GpuCache, part: &Part<'_>) -> Result<(Readback, Value)> {
    let (plan, gpu) = (&executor.plan, &executor.gpu);
    let (tokens, position) = (part.ids.len(), cache.len);
    let reads = part.check(plan, position)?;
    if tokens > cache.chunk || position + tokens > cache.capacity {
        return Err(Error::invalid("part of a step", format!("{tokens} tokens at position {position} do not fit the cache")));
    }
    if part.together && tokens > MOST_ENTRIES {
        return Err(Error::invalid("part of a step", format!("{tokens} tokens together, at most {MOST_ENTRIES} are computed at a time")));
    }
    let size = if part.together { Size::few(tokens, executor.thin()) } else { executor.size_of(tokens) };
    if size != Size::Many {
        // The runs of attention of all of them.
        executor.make_room(Room { rows: tokens, ..cache.room(executor) }, false)?;
    }
    let values = values(executor, part, &reads, position + tokens)?;
    let mut fused = executor.groups_of(&[], size);
    let extent = Extent::of(tokens, position, tokens);
    let serial = begin(executor, cache, Some(part), extent)?;
    let (caches, workspace) = (executor.caches.borrow(), executor.workspace.borrow());
    let workspace = workspace.as_ref().ok_or_else(no_workspace)?;
    fused.retain(|group| group.nodes.iter().all(|id| part.nodes.contains(id)));
    let lowering = Lowering {
        gpu,
        plan,
        weights: &executor.weights,
        values: &values,
        states: &caches.states,
        ropes: &workspace.ropes,
        ids: &workspace.ids,
        partials: &workspace.partials,
        expert_order: &workspace.expert_order,
        runs: runs(workspace.room.capacity),
        size,
        head_block: if part.together { size.block() } else { 1 },
        shift: 0,
    };
    let mut calls = Vec::new();
    // What was appended by nodes outside the part is read from the cache.
    for id in &reads {
        if let Op::Append { state, part } = plan.node(*id).op {
            calls.push(lowering.kv_write(*id, state, part)?);
        }
    }
    for (i, id) in part.nodes.iter().enumerate() {
        match fused.iter().find(|group| group.nodes.contains(id)) {
            None => calls.extend(lowering.node(*id)?),
            // A group is computed where the last of its nodes is.
            Some(group) if group.nodes.iter().all(|id| part.nodes[..=i].contains(id)) => calls.extend(lowering.group(group)?),
            Some(_) => {}
        }
    }
    let last = part.nodes.last().copied().unwrap_or(ValueId(0));
    if plan.node(last).op.appends() {
        calls.push(lowering.kv_read(last)?);
    }
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    for call in calls {
        let dispatch = executor.pipelines.dispatch(gpu, call)?;
        let mut pass = encoder.begin_compute_pass(&Default::default());
        workspace.shared.bind(&mut pass, 0, 0);
        record(&mut pass, &dispatch, extent, gpu.caps.max_workgroups)?;
    }
    let (node, out) = (plan.node(last), values.get(plan, last)?.clone());
    let layout = node.at.stage.layout();
    let bytes = product([layout.rows(node.width, tokens), out.stride, out.dtype.size()]);
    let piece = Piece { source: out.buffer.clone(), source_offset: 0, offset: 0, bytes };
    let readback = executor.read_out(encoder, &[piece], bytes + 4, &workspace.step, serial)?;
    cache.advance(tokens);
    Ok((readback, out))
}

/// Writes what kernels read of a step of `extent`, of the ids of `part` or of the one that was picked, with a row of logits for
/// each of its `head_rows` and a token to be picked from the last. The step's number.
fn begin(executor: &GpuExecutor, cache: &GpuCache, part: Option<&Part<'_>>, extent: Extent) -> Result<u32> {
    let first_id = executor.caches.borrow().sequences();
    let mut workspace = executor.workspace.borrow_mut();
    let workspace = workspace.as_mut().ok_or_else(no_workspace)?;
    workspace.serial = workspace.serial.wrapping_add(1).max(1);
    let id = if part.is_some() { first_id } else { cache.slabs.picked };
    let origin = cache.origin(id, part.is_some_and(|part| part.long_rope));
    let origins = match part {
        Some(part) if part.together => (0..extent.tokens as u32).map(|i| origin.of_token(i, i + 1 == extent.tokens as u32)).collect(),
        _ => vec![origin],
    };
    let slot = StepUniform {
        tokens: extent.tokens as u32,
        position: extent.position as u32,
        serial: workspace.serial,
        head_rows: extent.head_rows as u32,
        entries: origins.len() as u32,
        pick_first: extent.head_rows.saturating_sub(1) as u32,
        ..Default::default()
    };
    let queue = &executor.gpu.queue;
    if let Some(part) = part {
        queue.write_buffer(&workspace.ids, (first_id * 4) as u64, bytemuck::cast_slice(part.ids));
    }
    queue.write_buffer(&workspace.step, 0, &step_slots(&[slot]));
    queue.write_buffer(&workspace.origins, 0, &part_origins(&[origins]));
    Ok(workspace.serial)
}

/// Buffers of the nodes of a part, and of what they read with its contents.
fn values(executor: &GpuExecutor, part: &Part<'_>, reads: &[ValueId], positions: usize) -> Result<Values> {
    let (plan, tokens) = (&executor.plan, part.ids.len());
    let narrow = matmul_inputs(plan);
    let mut values = Values::empty(plan);
    let is_scores = |id: ValueId| plan.node(id).at.stage.layout().is_scores();
    for (id, input) in reads.iter().zip(part.inputs) {
        let dtype = dtype_of(narrow[root(plan, *id).0], executor.storage);
        values.set(*id, upload(executor, input, dtype, is_scores(*id))?);
    }
    for id in part.nodes {
        let node = plan.node(*id);
        if let (Op::Same, [input]) = (&node.op, &node.inputs[..]) {
            values.set(*id, values.get(plan, *input)?.clone());
            continue;
        }
        let (rows, stride) = (node.at.stage.layout().rows(node.width, tokens), if is_scores(*id) { positions } else { stride(node.width) });
        let dtype = match &node.op {
            Op::Append { .. } => executor.storage.of_appended(plan, *id).unwrap_or(DType::F32),
            _ if is_scores(*id) => DType::F32,
            _ => dtype_of(narrow[id.0], executor.storage),
        };
        let buffer = storage_buffer(&executor.gpu, "part of a step", product([rows, stride, dtype.size()]))?;
        values.set(*id, Value { buffer, dtype, stride });
    }
    Ok(values)
}

/// What `Same` renames, or the value itself.
fn root(plan: &Plan, mut id: ValueId) -> ValueId {
    while let (Op::Same, [input]) = (&plan.node(id).op, &plan.node(id).inputs[..]) {
        id = *input;
    }
    id
}

/// As `Executor::cached`. Position q is in slot q mod the ring's slots.
pub async fn cached(executor: &GpuExecutor, cache: &GpuCache, state: StateId) -> Result<Cached> {
    let no_state = || Error::invalid("state", format!("the plan has no state {}", state.0));
    let kind = executor.plan.state(state).ok_or_else(no_state)?;
    let mut slab = cache.slabs.of(kind.window());
    if let StateKind::Matrix(_) = kind {
        // One row, that after the last position, if it is not still to be made again.
        let Some(slot) = cache.matrices.slot(cache.len).map(|slot| slab.start + slot) else {
            return Ok(Cached { first: cache.len, parts: vec![Tensor::new(vec![0, kind.width()], Vec::new())?] });
        };
        slab = slot..slot + 1;
    }
    let (width, slots) = (kind.width(), slab.len());
    let (readback, dtype) = {
        let (caches, workspace) = (executor.caches.borrow(), executor.workspace.borrow());
        let (held, workspace) = (caches.states.get(state.0).ok_or_else(no_state)?, workspace.as_ref().ok_or_else(no_workspace)?);
        let (bytes, source_offset) = (cache_bytes(kind, slots, held.dtype), cache_bytes(kind, slab.start, held.dtype));
        let piece = |(i, buffer): (usize, &wgpu::Buffer)| Piece { source: buffer.clone(), source_offset, offset: i as u64 * bytes, bytes };
        let pieces: Vec<Piece> = held.parts.iter().enumerate().map(piece).collect();
        let encoder = executor.gpu.device.create_command_encoder(&Default::default());
        let all = pieces.len() as u64 * bytes + 4;
        (executor.read_out(encoder, &pieces, all, &workspace.step, workspace.serial)?, held.dtype)
    };
    let all = executor.pool.finish(&executor.gpu, readback, |b| to_f32(b, dtype)).await?;
    let first = cache.len.saturating_sub(slots);
    let rows = |ring: &[f32]| {
        let row = |position: usize| &ring[position % slots * width..][..width];
        Tensor::new(vec![cache.len - first, width], (first..cache.len).flat_map(row).copied().collect())
    };
    Ok(Cached { first, parts: all.chunks_exact((slots * width).max(1)).take(kind.parts().len()).map(rows).collect::<Result<_>>()? })
}

/// As `Executor::choose`.
pub async fn choose(executor: &GpuExecutor, cache: &mut GpuCache, logits: &[f32], rules: Pick, k: usize) -> Result<Chosen> {
    let vocab = executor.plan.vocab_size;
    if logits.len() != vocab || rules.valid == 0 || rules.valid > vocab {
        return Err(Error::invalid("choice", format!("{} logits and {} valid ids, expected {vocab}", logits.len(), rules.valid)));
    }
    let row = Tensor::new(vec![1, vocab], logits.to_vec())?;
    let value = upload(executor, &row, DType::F32, false)?;
    let pick = Some(rules.valid);
    let bytes = product([k.max(1), size_of::<Candidate>()]);
    let key = ProgramKey { size: Size::One, together: false, head: true, top_k: k.max(1), pick, requests: Vec::new(), scores: None };
    let serial = begin(executor, cache, None, Extent::of(1, 0, 1))?;
    let readback = {
        let workspace = executor.workspace.borrow();
        let workspace = workspace.as_ref().ok_or_else(no_workspace)?;
        let (dispatches, top) = executor.picks(workspace, &value, &key)?;
        let Some(top) = top else { return Ok(Chosen::default()) };
        let extent = Extent { picks: 1, ..Extent::of(1, 0, 1) };
        let mut encoder = executor.gpu.device.create_command_encoder(&Default::default());
        for dispatch in &dispatches {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            workspace.shared.bind(&mut pass, 0, 0);
            record(&mut pass, dispatch, extent, executor.gpu.caps.max_workgroups)?;
        }
        let picked = (cache.slabs.picked * 4) as u64;
        let pieces = [
            Piece { source: top, source_offset: 0, offset: 0, bytes },
            Piece { source: workspace.ids.clone(), source_offset: picked, offset: bytes, bytes: 4 },
        ];
        executor.read_out(encoder, &pieces, bytes + 8, &workspace.step, serial)?
    };
    let read = |all: &[u8]| {
        let top: Vec<(u32, f32)> = structs::<Candidate>(&all[..bytes as usize]).filter_map(Candidate::read).collect();
        let next = structs::<u32>(&all[bytes as usize..]).next().filter(|_| !top.is_empty());
        Chosen { next, top }
    };
    executor.pool.finish(&executor.gpu, readback, read).await
}
