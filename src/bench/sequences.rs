//! Decode of several sequences together, which read the weights of a step once.

use super::{Rate, decode};
use crate::error::Result;
use crate::exec::{Executor, Step};
use crate::gpu::{GpuCache, GpuExecutor};
use serde_json::{Value, json};

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task<'a> {
    /// A step of each sequence.
    pub step: Step<'a>,
    /// Sequences.
    pub count: usize,
    /// Steps each time.
    pub tokens: usize,
    /// How often.
    pub repeat: usize,
    /// Tokens per second of one sequence alone.
    pub alone: f64,
}

/// Measures forks of `cache` that decode together.
pub(super) async fn measure(
    executor: &GpuExecutor,
    cache: &GpuCache,
    task: Task<'_>,
    now: &dyn Fn() -> f64,
    say: &mut dyn FnMut(String) -> Result<()>,
) -> Result<Value> {
    let Task { step, count, tokens, repeat, alone } = task;
    let mut caches: Vec<GpuCache> = (0..count).map(|_| executor.fork(cache)).collect::<Result<_>>()?;
    let start = executor.len(cache);
    let mut seconds = Vec::new();
    let mut recording = Vec::new();
    // Once more than is counted: the first compiles pipelines.
    for _ in 0..=repeat {
        for cache in &mut caches {
            executor.truncate(cache, start);
        }
        let (of_step, of_host) = decode(executor, &mut caches, &step, tokens, now).await?;
        seconds.push(of_step);
        recording.push(of_host);
    }
    let rate = Rate::of(count as f64, &seconds[1..]);
    let of_host = recording[1..].iter().copied().fold(f64::INFINITY, f64::min);
    say(format!(
        "together {rate} of {count} sequences ({:.3} ms a step, of which {:.3} ms recording), {:.1} x one alone",
        count as f64 / rate.median * 1e3,
        of_host * 1e3,
        rate.median / alone
    ))?;
    Ok(
        json!({ "sequences": count, "decodeTokensPerSecond": rate.median, "decodeSpread": rate.spread, "timesOneAlone": rate.median / alone }),
    )
}
