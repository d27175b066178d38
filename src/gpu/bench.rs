//! What benchmarks need of a device: weights made on it, its copy bandwidth, the dispatches of a step.

use super::buffers::storage_buffer;
use super::layouts::StepUniform;
use super::pipelines::{Call, Extent, Grid, RowCount, read, write};
use super::program::Item;
use super::recording::record;
use super::state::{GpuCache, GpuExecutor};
use super::workspace::step_slots;
use crate::error::{Error, Result};
use crate::exec::{Pick, Read, Rows, Step, Tokens};
use crate::geometry::{ORIGINS_BYTES, STEP_SLOT};
use crate::plan::WeightId;
use crate::quant::{Format, random};
use futures_channel::oneshot;

impl GpuExecutor {
    /// Fills every weight with pseudo-random values of the spread of a trained model (uniform, 1/√columns; norms
    /// near 1 after their offset), made on the device. For benchmarks.
    pub fn fill_random(&mut self, format: Format) -> Result<()> {
        self.weights.expect(&vec![format; self.plan.weights.len()]);
        for index in 0..self.plan.weights.len() {
            let id = WeightId(index);
            let slot = &self.plan.weights[index];
            if slot.shape.len() == 1 {
                let ones = vec![if slot.bias { 0.0f32 } else { 1.0 }; slot.shape[0]];
                self.weights.put(&self.gpu, &self.plan, id, Format::F32, 0, bytemuck::cast_slice(&ones))?;
                continue;
            }
            let scale = 1.0 / (slot.shape[1] as f64).sqrt();
            if format.dtype().is_none() {
                self.fill_packed(id, format, scale as f32)?;
                continue;
            }
            let weight = self.weights.allocate(&self.gpu, &self.plan, id, format)?;
            let defines = weight.defines();
            let buffers: Vec<wgpu::Buffer> = weight.pieces.iter().map(|p| p.buffer.clone()).collect();
            for (i, buffer) in buffers.iter().enumerate() {
                let call = Call {
                    kernel: "fill",
                    defines: defines.clone(),
                    constants: Vec::new(),
                    params: vec![
                        ("words", (buffer.size() as usize / 4).into()),
                        ("seed", (index * 7919 + i).into()),
                        ("scale", scale.into()),
                    ],
                    buffers: vec![write(buffer)],
                    grid: Grid::Fixed([4096, 1]),
                };
                self.run_calls(vec![call])?;
            }
            self.weights.mark_filled(id);
        }
        self.gpu.check()
    }

    /// Fills a matrix with packed rows, a few of them again and again, the way that loading does.
    fn fill_packed(&mut self, id: WeightId, format: Format, scale: f32) -> Result<()> {
        const ROWS: usize = 16;
        let (rows, columns) = (self.plan.weights[id.0].shape[0], self.plan.weights[id.0].shape[1]);
        let row_bytes = format.row_bytes(columns).ok_or_else(|| {
            let slot = self.plan.weights[id.0].label();
            Error::invalid("format", format!("{slot} has rows of {columns} elements, which are no whole blocks of {format}"))
        })?;
        let mut state = id.0 as u32;
        let mut next = || {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        let mut few = vec![0; ROWS * row_bytes];
        random::fill(format, scale, &mut next, &mut few)?;
        let band = (64 << 20) / (ROWS * row_bytes) * ROWS;
        let bytes = few.repeat(band.max(ROWS) / ROWS);
        for first in (0..rows).step_by(band.max(ROWS)) {
            let count = band.max(ROWS).min(rows - first);
            self.weights.put(&self.gpu, &self.plan, id, format, first, &bytes[..count * row_bytes])?;
        }
        Ok(())
    }

    /// Bytes per second, read and written, of a large copy: the best of several runs, by the host's clock `now` (seconds).
    pub async fn copy_bandwidth(&self, now: &dyn Fn() -> f64) -> Result<f64> {
        // Software copies slowly, and no cache of it is larger than this. Waiting takes a browser a while: of a fast copy
        // there must be many.
        let (bytes, copies) = if self.gpu.caps.software { (64 << 20, 10) } else { (1 << 30, 50) };
        let bytes = self.gpu.caps.largest_buffer().min(bytes) / 16 * 16;
        let (a, b) = (storage_buffer(&self.gpu, "copy source", bytes)?, storage_buffer(&self.gpu, "copy target", bytes)?);
        let count = (bytes / 16) as usize;
        let call = Call {
            kernel: "copy",
            defines: Vec::new(),
            constants: Vec::new(),
            params: vec![("count", count.into())],
            buffers: vec![read(&a), write(&b)],
            grid: Grid::Items { rows: RowCount::Tokens, per_row: count, per_group: 256 },
        };
        let mut best = 0.0f64;
        for _ in 0..5 {
            let start = now();
            self.run_calls(vec![call.clone(); copies])?;
            self.wait().await?;
            best = best.max((2 * copies) as f64 * bytes as f64 / (now() - start));
        }
        Ok(best)
    }

    /// Waits for everything submitted.
    pub async fn wait(&self) -> Result<()> {
        let (done, waiting) = oneshot::channel();
        self.gpu.queue.on_submitted_work_done(move || {
            // Nobody waits when this was dropped.
            let _ = done.send(());
        });
        self.gpu.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| Error::device(format!("waiting for the device: {e}")))?;
        waiting.await.map_err(|_| Error::device("the device was lost"))?;
        self.gpu.check()
    }

    /// Runs kernels that depend on no sequence, as a step of one token.
    fn run_calls(&self, calls: Vec<Call>) -> Result<()> {
        let (step, origins) = (self.uniform_buffer("step", STEP_SLOT as u64)?, self.uniform_buffer("origins", ORIGINS_BYTES)?);
        self.gpu.queue.write_buffer(&step, 0, &step_slots(&[StepUniform { tokens: 1, entries: 1, ..Default::default() }]));
        let shared = self.pipelines.share(&self.gpu, &step, &origins);
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            shared.bind(&mut pass, 0, 0);
            for call in calls {
                let dispatch = self.pipelines.dispatch(&self.gpu, call)?;
                record(&mut pass, &dispatch, Extent::of(1, 0, 1), self.gpu.caps.max_workgroups)?;
            }
        }
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.check()
    }

    /// Names of the dispatches of an unobserved decode step with a greedy choice, in order: what a snapshot holds.
    pub fn decode_dispatches(&self, cache: &GpuCache, pick: Pick) -> Result<Vec<String>> {
        let step =
            Step { tokens: Tokens::Picked, rows: Rows::Last, pick: Some(pick), read: Read::Nothing, long_rope: false, requests: &[] };
        let (key, ..) = self.key(cache, &step)?;
        let program = self.program(key)?;
        let items = program.body.iter().chain(&program.head);
        let runs = items.filter_map(|i| if let Item::Run(d, at) = i { Some(format!("{} {at}", d.kernel)) } else { None });
        Ok(runs.chain(program.picks.iter().map(|d| format!("{} sampled", d.kernel))).collect())
    }
}
