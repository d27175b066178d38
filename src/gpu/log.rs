//! The log of a device: every dispatch of the steps that it runs, in order, with GPU times where wanted. A step that is
//! timed runs the same kernels with the same bits, each in a pass of its own.

use super::device::Gpu;
use super::executor::GpuExecutor;
use crate::error::{Error, Result};
use crate::plan::At;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};

/// Passes that one query set can time: query sets hold 4096 entries at most.
const PASSES: usize = 2048;

/// What is noted of the steps to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Log {
    /// Nothing.
    #[default]
    Off,
    /// The dispatches.
    Names,
    /// The dispatches and their times.
    Times,
}

/// One dispatch.
#[derive(Debug, Clone, PartialEq)]
pub struct DispatchLog {
    /// Kernel name.
    pub kernel: &'static str,
    /// The value being computed, or watched.
    pub at: At,
    /// Start and duration in nanoseconds of the device's clock, where times are noted.
    pub time: Option<(f64, f64)>,
}

/// The dispatches of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepLog {
    /// Position of its first token.
    pub first_token: usize,
    /// Its tokens.
    pub tokens: usize,
    /// In the order in which they ran.
    pub dispatches: Vec<DispatchLog>,
}

/// What the executor keeps.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) log: Cell<Log>,
    pub(super) steps: RefCell<Vec<StepLog>>,
}

impl GpuExecutor {
    /// Notes the dispatches of the steps to come, until this is called again; `take_log` hands them out.
    ///
    /// # Errors
    /// `Kind::Device` for times on an adapter without timestamps.
    pub fn set_log(&self, log: Log) -> Result<()> {
        if log == Log::Times && !self.gpu.caps.timestamps {
            return Err(Error::device("this adapter has no timestamps, so kernels cannot be timed"));
        }
        self.kept.log.set(log);
        Ok(())
    }
    /// The steps that were noted and are finished, oldest first.
    pub fn take_log(&self) -> Vec<StepLog> {
        self.kept.steps.take()
    }
}

/// Notes of a step that is being recorded.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) dispatches: Vec<(&'static str, At)>,
    sets: Vec<wgpu::QuerySet>,
}

impl Noted {
    /// Room for `count` dispatches; query sets where they are timed.
    pub(super) fn new(gpu: &Gpu, log: Log, count: usize) -> Option<Self> {
        let set = |passes: usize| {
            let descriptor = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count: 2 * passes as u32 };
            gpu.device.create_query_set(&descriptor)
        };
        let sets = match log {
            Log::Off => return None,
            Log::Names => Vec::new(),
            Log::Times => (0..count).step_by(PASSES).map(|first| set(PASSES.min(count - first))).collect(),
        };
        Some(Self { dispatches: Vec::with_capacity(count), sets })
    }
    /// Notes a dispatch; where it is timed, the writes of its pass.
    pub(super) fn add(&mut self, kernel: &'static str, at: At) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let index = self.dispatches.len();
        self.dispatches.push((kernel, at));
        let (query_set, place) = (self.sets.get(index / PASSES)?, (index % PASSES) as u32);
        Some(wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(2 * place),
            end_of_pass_write_index: Some(2 * place + 1),
        })
    }
    /// Bytes of the times of `count` dispatches.
    pub(super) fn bytes(&self, count: usize) -> u64 {
        if self.sets.is_empty() { 0 } else { count as u64 * 16 }
    }
    /// Writes the times into `target`.
    pub(super) fn resolve(&self, encoder: &mut wgpu::CommandEncoder, target: &wgpu::Buffer) {
        for (i, set) in self.sets.iter().enumerate() {
            encoder.resolve_query_set(set, 0..set.count(), target, (i * PASSES * 16) as u64);
        }
    }
    /// The notes of a step with its times.
    pub(super) fn finish(self, first_token: usize, tokens: usize, ticks: &[u8], period: f64) -> StepLog {
        let times: Vec<f64> = ticks.chunks_exact(8).map(|tick| u64_le(tick) as f64 * period).collect();
        let pairs = times.as_chunks::<2>().0;
        let time = |i: usize| pairs.get(i).map(|[start, end]| (*start, (end - start).max(0.0)));
        let noted = self.dispatches.into_iter().enumerate();
        let dispatches = noted.map(|(i, (kernel, at))| DispatchLog { kernel, at, time: time(i) }).collect();
        StepLog { first_token, tokens, dispatches }
    }
}

fn u64_le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}
