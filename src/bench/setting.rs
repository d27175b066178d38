//! What an intervention costs: decode while a value is changed, against a run that changes nothing, and against one that computes the
//! same kernels. Not in browsers, whose module has no room for it.

use super::median;
use super::watching::{Task, seconds};
use crate::debug::interventions;
use crate::error::{Error, Result};
use crate::exec::{Editable, Executor};
use crate::gpu::{GpuCache, GpuExecutor};
use crate::plan::ValueId;
use serde_json::{Value, json};

/// Turns that the runs take, so that a device that warms up or is shared slows each alike.
const TURNS: usize = 3;

/// Measures decode with the change that `task.what` says, as `--set` of `run` does.
///
/// # Errors
/// Those of `interventions::set`; what the device reports; those of `say`.
pub(super) async fn measure(
    executor: &mut GpuExecutor,
    cache: &mut GpuCache,
    task: Task<'_>,
    now: &dyn Fn() -> f64,
    say: &mut dyn FnMut(String) -> Result<()>,
) -> Result<Value> {
    let texts = [task.what.to_string()];
    let refused =
        |name: &str| Err(Error::invalid("set", format!("a benchmark changes values by zero and scale:F, and reads no file ({name})")));
    let changes = interventions::set(executor.plan(), &texts, None, &refused).await?.interventions();
    let changed: Vec<ValueId> = changes.iter().map(|(id, _)| *id).collect();
    let (mut plain, mut alike, mut set) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        plain.push(seconds(executor, cache, task, &[], now).await?);
        executor.set_opened(changed.clone());
        let opened = seconds(executor, cache, task, &[], now).await;
        executor.set_opened(Vec::new());
        alike.push(opened?);
        executor.set_interventions(&changes)?;
        let with = seconds(executor, cache, task, &[], now).await;
        executor.set_interventions(&[])?;
        set.push(with?);
    }
    let [plain, alike, set] = [plain, alike, set].map(|mut times| median(&mut times));
    let over = |other: f64| (set / other - 1.0) * 100.0;
    let (rate, count) = (1.0 / set, changed.len());
    say(format!(
        "changed  {} ({count} values): {rate:.1} tok/s, {:+.1} % a token, {:+.1} % against the same fusions unchanged",
        task.what,
        over(plain),
        over(alike)
    ))?;
    Ok(json!({
        "set": task.what, "values": count, "decodeTokensPerSecond": rate, "unchangedTokensPerSecond": 1.0 / plain,
        "sameFusionsTokensPerSecond": 1.0 / alike,
    }))
}
