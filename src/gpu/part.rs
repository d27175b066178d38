//! Part of a step on given inputs: the kernels that a step of which nobody wants a value runs for some nodes, with the
//! real cache. Then what a cache holds, and the choice among given logits.

use super::buffers::{Value, Values, storage_buffer};
use super::eval::upload;
use super::layouts::{Candidate, structs};
use super::lower::Lowering;
use super::pipelines::Extent;
use super::program::ProgramKey;
use super::readback::Piece;
use super::recording::record;
use super::state::{GpuCache, GpuExecutor};
use crate::error::{Error, Result};
use crate::exec::{Cached, Chosen, DECODE_TOKENS, Part, Pick, Read, Rows, Step, Tokens, matmul_inputs};
use crate::geometry::{dtype_of, runs, stride};
use crate::plan::{Op, Plan, ValueId};
use crate::tensor::{DType, Tensor, product, to_f32};

/// As `Executor::part`.
pub async fn part(executor: &GpuExecutor, cache: &mut GpuCache, part: &Part<'_>) -> Result<Tensor> {
    let (plan, gpu) = (&executor.plan, &executor.gpu);
    let (tokens, position) = (part.ids.len(), cache.len);
    let reads = part.check(plan, position)?;
    if tokens > cache.chunk || position + tokens > cache.capacity {
        return Err(Error::invalid("part of a step", format!("{tokens} tokens at position {position} do not fit the cache")));
    }
    let values = values(executor, part, &reads, position + tokens)?;
    let mut fused = executor.groups_of(&[], tokens <= DECODE_TOKENS);
    fused.retain(|group| group.nodes.iter().all(|id| part.nodes.contains(id)));
    let lowering = Lowering {
        gpu,
        plan,
        weights: &executor.weights,
        values: &values,
        kv: &cache.kv,
        ropes: &cache.ropes,
        ids: &cache.ids,
        partials: &cache.partials,
        runs: runs(cache.capacity),
        tiled: tokens > DECODE_TOKENS,
        shift: 0,
    };
    let mut calls = Vec::new();
    for (i, id) in part.nodes.iter().enumerate() {
        match fused.iter().find(|group| group.nodes.contains(id)) {
            None => calls.extend(lowering.node(*id)?),
            // A group is computed where the last of its nodes is.
            Some(group) if group.nodes.iter().all(|id| part.nodes[..=i].contains(id)) => calls.extend(lowering.group(group)?),
            Some(_) => {}
        }
    }
    let extent = Extent { tokens, position, head_rows: tokens };
    let serial = begin(executor, cache, Tokens::Ids(part.ids), part.long_rope, extent)?;
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    for call in calls {
        let dispatch = executor.pipelines.dispatch(gpu, call, &cache.step)?;
        record(&mut encoder.begin_compute_pass(&Default::default()), &dispatch, extent, 0, gpu.caps.max_workgroups)?;
    }
    let last = part.nodes.last().copied().unwrap_or(ValueId(0));
    let (node, out) = (plan.node(last), values.get(plan, last)?.clone());
    let layout = node.at.stage.layout();
    let (rows, width) = (layout.rows(node.width, tokens), layout.row_elements(node.width, position + tokens));
    let bytes = product([rows, out.stride, out.dtype.size()]);
    let piece = Piece { source: out.buffer.clone(), source_offset: 0, offset: 0, bytes };
    let readback = executor.read_out(encoder, &[piece], bytes + 4, &cache.step, serial)?;
    cache.len += tokens;
    cache.high = cache.high.max(cache.len);
    let all = executor.pool.finish(gpu, readback, |b| to_f32(b, out.dtype)).await?;
    let data = all.chunks_exact(out.stride).flat_map(|row| &row[..width]).copied().collect();
    Tensor::new(layout.shape(node.width, tokens, position + tokens), data)
}

/// Writes the step uniform of `extent`, with a row of logits for each of its `head_rows`.
fn begin(executor: &GpuExecutor, cache: &mut GpuCache, tokens: Tokens<'_>, long_rope: bool, extent: Extent) -> Result<u32> {
    let step = Step { tokens, rows: Rows::All, pick: None, read: Read::Nothing, long_rope, requests: &[] };
    executor.begin(cache, &step, extent, &[(0, extent.head_rows)])
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
        let dtype = if is_scores(*id) { DType::F32 } else { dtype_of(narrow[id.0], executor.storage) };
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
pub async fn cached(executor: &GpuExecutor, cache: &GpuCache, index: usize) -> Result<Cached> {
    let known = executor.plan.caches.get(index).zip(cache.kv.get(index));
    let (spec, kv) = known.ok_or_else(|| Error::invalid("cache", format!("the plan has no cache {index}")))?;
    let width = spec.kv_heads * spec.head_dim;
    let bytes = product([kv.capacity, width, kv.dtype.size()]);
    let piece = |buffer: &wgpu::Buffer, offset| Piece { source: buffer.clone(), source_offset: 0, offset, bytes };
    let pieces = [piece(&kv.keys, 0), piece(&kv.values, bytes)];
    let encoder = executor.gpu.device.create_command_encoder(&Default::default());
    let readback = executor.read_out(encoder, &pieces, 2 * bytes + 4, &cache.step, cache.serial)?;
    let all = executor.pool.finish(&executor.gpu, readback, |b| to_f32(b, kv.dtype)).await?;
    let first = cache.len.saturating_sub(kv.capacity);
    let rows = |ring: &[f32]| {
        let row = |position: usize| &ring[position % kv.capacity * width..][..width];
        Tensor::new(vec![cache.len - first, width], (first..cache.len).flat_map(row).copied().collect())
    };
    Ok(Cached { first, keys: rows(&all[..kv.capacity * width])?, values: rows(&all[kv.capacity * width..])? })
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
    let key = ProgramKey { tiled: false, head: true, top_k: k.max(1), pick, requests: Vec::new(), scores: None, edition: executor.edition };
    let (dispatches, top) = executor.picks(cache, &value, &key)?;
    let Some(top) = top else { return Ok(Chosen::default()) };
    let extent = Extent { tokens: 1, position: 0, head_rows: 1 };
    let serial = begin(executor, cache, Tokens::Picked, false, extent)?;
    let mut encoder = executor.gpu.device.create_command_encoder(&Default::default());
    for dispatch in &dispatches {
        record(&mut encoder.begin_compute_pass(&Default::default()), dispatch, extent, 0, executor.gpu.caps.max_workgroups)?;
    }
    let bytes = product([k.max(1), size_of::<Candidate>()]);
    let pieces = [
        Piece { source: top, source_offset: 0, offset: 0, bytes },
        Piece { source: cache.ids.clone(), source_offset: 0, offset: bytes, bytes: 4 },
    ];
    let readback = executor.read_out(encoder, &pieces, bytes + 8, &cache.step, serial)?;
    let read = |all: &[u8]| {
        let top: Vec<(u32, f32)> = structs::<Candidate>(&all[..bytes as usize]).filter_map(Candidate::read).collect();
        let next = structs::<u32>(&all[bytes as usize..]).next().filter(|_| !top.is_empty());
        Chosen { next, top }
    };
    executor.pool.finish(&executor.gpu, readback, read).await
}
