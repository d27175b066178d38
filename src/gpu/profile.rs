//! What benchmarks need of a device: weights made on it, its copy bandwidth, the time of every dispatch.

use super::buffers::storage_buffer;
use super::executor::{GpuCache, GpuExecutor, record, step_buffer};
use super::pipelines::{Call, Dispatch, Extent, Grid, RowCount, read, write};
use super::program::Item;
use super::readback::Piece;
use crate::error::{Error, Result};
use crate::exec::{Pick, Read, Rows, Step, Tokens};
use crate::plan::{At, Stage, WeightId};
use crate::tensor::DType;

/// GPU time of one dispatch, from timestamps.
#[derive(Debug, Clone)]
pub struct DispatchTime {
    /// Kernel name.
    pub kernel: &'static str,
    /// The value being computed.
    pub at: At,
    /// Nanoseconds.
    pub nanoseconds: f64,
}

impl GpuExecutor {
    /// Fills every weight with pseudo-random values of the spread of a trained model (uniform, 1/√columns; norms
    /// near 1 after their offset), made on the device. For benchmarks.
    pub fn fill_random(&mut self, dtype: DType) -> Result<()> {
        let step = step_buffer(&self.gpu)?;
        for index in 0..self.plan.weights.len() {
            let id = WeightId(index);
            let slot = &self.plan.weights[index];
            if slot.shape.len() == 1 {
                let ones = vec![if slot.bias { 0.0f32 } else { 1.0 }; slot.shape[0]];
                self.weights.put(&self.gpu, &self.plan, id, DType::F32, 0, bytemuck::cast_slice(&ones))?;
                continue;
            }
            let scale = 1.0 / (slot.shape[1] as f64).sqrt();
            let weight = self.weights.allocate(&self.gpu, &self.plan, id, dtype)?;
            let define = weight.define();
            let buffers: Vec<wgpu::Buffer> = weight.pieces.iter().map(|p| p.buffer.clone()).collect();
            for (i, buffer) in buffers.iter().enumerate() {
                let call = Call {
                    kernel: "fill",
                    defines: vec![define],
                    constants: Vec::new(),
                    params: vec![
                        ("words", (buffer.size() as usize / 4).into()),
                        ("seed", (index * 7919 + i).into()),
                        ("scale", scale.into()),
                    ],
                    buffers: vec![write(buffer)],
                    grid: Grid::Fixed([4096, 1]),
                };
                self.run_calls(vec![call], &step)?;
            }
            self.weights.mark_filled(id);
        }
        self.gpu.check()
    }

    /// Bytes per second, read and written, of a copy of `bytes`: the best of several runs, by the host's clock `now`
    /// (seconds).
    pub fn copy_bandwidth(&self, bytes: u64, now: &dyn Fn() -> f64) -> Result<f64> {
        let step = step_buffer(&self.gpu)?;
        let bytes = bytes.min(self.gpu.caps.max_binding).min(self.gpu.caps.max_buffer) / 16 * 16;
        let (a, b) = (storage_buffer(&self.gpu, "copy source", bytes)?, storage_buffer(&self.gpu, "copy target", bytes)?);
        let count = (bytes / 16) as usize;
        let call = Call {
            kernel: "copy",
            defines: Vec::new(),
            constants: Vec::new(),
            params: vec![("count", count.into())],
            buffers: vec![read(&a), write(&b)],
            grid: Grid::Items { rows: RowCount::One, per_row: count, per_group: 256 },
        };
        let mut best = 0.0f64;
        for _ in 0..5 {
            let start = now();
            self.run_calls(vec![call.clone(); 10], &step)?;
            self.wait()?;
            best = best.max(20.0 * bytes as f64 / (now() - start));
        }
        Ok(best)
    }

    /// Waits for everything submitted.
    pub fn wait(&self) -> Result<()> {
        self.gpu.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| Error::device(format!("waiting for the device: {e}")))?;
        self.gpu.check()
    }

    fn run_calls(&self, calls: Vec<Call>, step: &wgpu::Buffer) -> Result<()> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            let extent = Extent { tokens: 1, position: 0, head_rows: 1 };
            for call in calls {
                let dispatch = self.pipelines.dispatch(&self.gpu, call, step)?;
                record(&mut pass, &dispatch, extent, 0, self.gpu.caps.max_workgroups)?;
            }
        }
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.check()
    }

    /// Runs one decode step with a timestamp around every dispatch. Needs an adapter with timestamps.
    pub async fn profile(&self, cache: &mut GpuCache, step: &Step<'_>) -> Result<Vec<DispatchTime>> {
        if !self.gpu.caps.timestamps {
            return Err(Error::device("this adapter has no timestamps, so kernels cannot be timed"));
        }
        let (key, tokens, batches) = self.key(cache, step)?;
        let program = self.program(cache, key)?;
        let extent = Extent { tokens, position: cache.len, head_rows: batches.last().map_or(0, |b| b.1) };
        let serial = self.begin(cache, step, extent, &batches)?;
        let items: Vec<(&Dispatch, At)> = program
            .body
            .iter()
            .chain(&program.head)
            .filter_map(|i| if let Item::Run(d, at) = i { Some((d, *at)) } else { None })
            .chain(program.picks.iter().map(|d| (d, At { stage: Stage::Sampled, layer: None })))
            .collect();
        let mut times = Vec::with_capacity(items.len());
        // Query sets hold 4096 entries at most.
        for batch in items.chunks(2000) {
            let count = 2 * batch.len() as u32;
            let queries =
                self.gpu.device.create_query_set(&wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count });
            let size = u64::from(count) * 8;
            let resolved = self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            for (i, (dispatch, _)) in batch.iter().enumerate() {
                let writes = wgpu::ComputePassTimestampWrites {
                    query_set: &queries,
                    beginning_of_pass_write_index: Some(2 * i as u32),
                    end_of_pass_write_index: Some(2 * i as u32 + 1),
                };
                let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: Some(writes) };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                record(&mut pass, dispatch, extent, 0, self.gpu.caps.max_workgroups)?;
            }
            encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
            let piece = Piece { source: resolved, source_offset: 0, offset: 0, bytes: size };
            let readback = self.read_out(encoder, &[piece], size + 4, &cache.step, serial)?;
            let period = f64::from(self.gpu.queue.get_timestamp_period());
            let ticks: Vec<u64> = self.pool.finish(&self.gpu, readback, |bytes| bytes.chunks_exact(8).map(u64_le).collect()).await?;
            for (i, (dispatch, at)) in batch.iter().enumerate() {
                let nanoseconds = ticks[2 * i + 1].saturating_sub(ticks[2 * i]) as f64 * period;
                times.push(DispatchTime { kernel: dispatch.kernel, at: *at, nanoseconds });
            }
        }
        cache.len += tokens;
        cache.high = cache.high.max(cache.len);
        Ok(times)
    }

    /// Names of the dispatches of an unobserved decode step with a greedy choice, in order: what a snapshot holds.
    pub fn decode_dispatches(&self, cache: &mut GpuCache, pick: Pick) -> Result<Vec<String>> {
        let step =
            Step { tokens: Tokens::Picked, rows: Rows::Last, pick: Some(pick), read: Read::Nothing, long_rope: false, requests: &[] };
        let (key, ..) = self.key(cache, &step)?;
        let program = self.program(cache, key)?;
        let items = program.body.iter().chain(&program.head);
        let runs = items.filter_map(|i| if let Item::Run(d, at) = i { Some(format!("{} {at}", d.kernel)) } else { None });
        Ok(runs.chain(program.picks.iter().map(|d| format!("{} sampled", d.kernel))).collect())
    }
}

fn u64_le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}
