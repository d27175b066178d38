//! The log of a device: every dispatch of the steps that it runs, in order, with GPU times where wanted. A step that is
//! timed runs the same kernels with the same bits, each in a pass of its own.

use super::device::Gpu;
use crate::plan::{At, Stage};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

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

/// What the dispatches of one kernel for one stage took together.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelSum {
    /// Kernel name.
    pub kernel: &'static str,
    /// The stage computed, or watched, in whatever layer.
    pub stage: Stage,
    /// Dispatches.
    pub count: usize,
    /// Their GPU time.
    pub nanoseconds: f64,
}

impl StepLog {
    /// The timed dispatches of `steps` by kernel and stage, the longest first.
    pub fn sums(steps: &[StepLog]) -> Vec<KernelSum> {
        let mut table: BTreeMap<(&str, Stage), KernelSum> = BTreeMap::new();
        for DispatchLog { kernel, at, time } in steps.iter().flat_map(|step| &step.dispatches) {
            let Some((_, duration)) = time else { continue };
            let none = KernelSum { kernel, stage: at.stage, count: 0, nanoseconds: 0.0 };
            let sum = table.entry((kernel, at.stage)).or_insert(none);
            (sum.count, sum.nanoseconds) = (sum.count + 1, sum.nanoseconds + duration);
        }
        let mut sums: Vec<KernelSum> = table.into_values().collect();
        sums.sort_by(|a, b| b.nanoseconds.total_cmp(&a.nanoseconds));
        sums
    }
    /// `step=0` for a step of a prompt of `prompt` tokens, `step=n` for the one that reads the n-th generated token.
    pub fn name(&self, prompt: usize) -> String {
        format!("step={}", (self.first_token + self.tokens).saturating_sub(prompt))
    }
    /// What category `kernels` shows: a line for each dispatch, `step=0 3 rms_norm L0 attn_normed`.
    pub fn kernel_lines(&self, prompt: usize) -> Vec<String> {
        let name = self.name(prompt);
        self.dispatches.iter().enumerate().map(|(i, d)| format!("{name} {i} {} {}", d.kernel, d.at)).collect()
    }
    /// What category `perf` shows: the whole, then kernels by their share. Nothing of a step that was not timed.
    pub fn time_lines(&self, prompt: usize) -> Vec<String> {
        let (name, sums) = (self.name(prompt), Self::sums(std::slice::from_ref(self)));
        if sums.is_empty() {
            return Vec::new();
        }
        let total: f64 = sums.iter().map(|sum| sum.nanoseconds).sum();
        let row = |KernelSum { kernel, stage, count, nanoseconds }: &KernelSum| {
            // Clocks of browsers are coarse: a short step may take no time at all.
            let share = if total > 0.0 { 100.0 * nanoseconds / total } else { 0.0 };
            format!("{name} kernel={kernel} stage={stage} count={count} gpu={:.3}ms share={share:.1}%", nanoseconds / 1e6)
        };
        let whole = format!("{name} tokens={} dispatches={} gpu={:.3}ms", self.tokens, self.dispatches.len(), total / 1e6);
        std::iter::once(whole).chain(sums.iter().map(row)).collect()
    }
}

/// What the executor keeps.
#[derive(Debug, Default)]
pub(super) struct LogStore {
    pub(super) level: Cell<Log>,
    pub(super) steps: RefCell<Vec<StepLog>>,
}

/// Notes of a step that is being recorded.
#[derive(Debug)]
pub(super) struct StepTimer {
    pub(super) dispatches: Vec<(&'static str, At)>,
    sets: Vec<wgpu::QuerySet>,
}

impl StepTimer {
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
        let times: Vec<f64> = ticks.as_chunks::<8>().0.iter().map(|tick| u64_le(tick) as f64 * period).collect();
        let pairs = times.as_chunks::<2>().0;
        let time = |i: usize| pairs.get(i).map(|[start, end]| (*start, (end - start).max(0.0)));
        let dispatches = self.dispatches.into_iter().enumerate();
        let dispatches = dispatches.map(|(i, (kernel, at))| DispatchLog { kernel, at, time: time(i) }).collect();
        StepLog { first_token, tokens, dispatches }
    }
}

fn u64_le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_added_up_by_kernel_and_stage() {
        let dispatch = |kernel, stage, layer, microseconds: Option<f64>| DispatchLog {
            kernel,
            at: At { stage, layer: Some(layer) },
            time: microseconds.map(|time| (1e6, time * 1e3)),
        };
        let dispatches = vec![
            dispatch("linear", Stage::QProj, 0, Some(30.0)),
            dispatch("rms_norm", Stage::AttnNormed, 0, Some(100.0)),
            dispatch("linear", Stage::QProj, 1, Some(50.0)),
            dispatch("linear", Stage::KProj, 1, Some(20.0)),
        ];
        let step = StepLog { first_token: 7, tokens: 1, dispatches };
        let sums = StepLog::sums(&[step.clone(), step.clone()]);
        let found: Vec<_> = sums.iter().map(|s| (s.kernel, s.stage, s.count, s.nanoseconds)).collect();
        let expected = [("rms_norm", Stage::AttnNormed, 2, 2e5), ("linear", Stage::QProj, 4, 1.6e5), ("linear", Stage::KProj, 2, 4e4)];
        assert_eq!(found, expected);

        // Of a prompt of 7 tokens this is the first decode step; of one of 8 it is the end of the prompt.
        let lines = step.time_lines(7);
        assert_eq!(lines[0], "step=1 tokens=1 dispatches=4 gpu=0.200ms");
        assert_eq!(lines[2], "step=1 kernel=linear stage=q_proj count=2 gpu=0.080ms share=40.0%");
        assert_eq!(step.kernel_lines(8)[3], "step=0 3 linear L1 k_proj");

        // A clock that did not move says so; a step that was not timed says nothing.
        let still = StepLog { dispatches: vec![dispatch("linear", Stage::QProj, 0, Some(0.0))], ..step.clone() };
        assert_eq!(still.time_lines(7)[1], "step=1 kernel=linear stage=q_proj count=1 gpu=0.000ms share=0.0%");
        let untimed = StepLog { dispatches: vec![dispatch("linear", Stage::QProj, 0, None)], ..step };
        assert!(untimed.time_lines(7).is_empty());
    }
}
