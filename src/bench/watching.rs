//! What it costs to watch: decode while statistics are taken, against a run that nobody watches.

use super::kernels::kernels;
use super::{Prompt, decode, median};
use crate::debug::anomaly::{AnomalyObserver, AnomalyOptions};
use crate::debug::categories::Categories;
use crate::debug::record::Sink;
use crate::debug::trace::{TraceObserver, TraceOptions};
use crate::error::{Error, Result};
use crate::exec::{Executor, Observer, Request, Step, Want, match_requests};
use crate::gpu::{GpuCache, GpuExecutor};
use crate::plan::{Plan, ValueId};
use serde_json::{Value, json};

/// The name of what `debug` watches unless told otherwise, among categories.
pub const RULES: &str = "rules";

/// What is measured.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    /// A category of traces, or the rules.
    pub what: &'a str,
    pub prompt: &'a Prompt<'a>,
    /// A step that nobody watches.
    pub step: Step<'a>,
    /// Tokens of the sequence before it.
    pub start: usize,
    /// Steps each time.
    pub tokens: usize,
    /// How often.
    pub repeat: usize,
    /// Whether to time kernels.
    pub kernels: bool,
}

/// Measures decode watched, unwatched, and unwatched with the groups opened that watching opens: of two runs that compute
/// alike, the difference is what taking the statistics costs.
pub(super) async fn measure(
    executor: &mut GpuExecutor,
    cache: &mut GpuCache,
    task: Task<'_>,
    now: &dyn Fn() -> f64,
    say: &mut dyn FnMut(String) -> Result<()>,
) -> Result<Value> {
    let requests = requests(executor.plan(), task.what)?;
    let resolved = match_requests(executor.plan(), &requests)?;
    let wanted: Vec<ValueId> = resolved.into_iter().filter(|(_, want)| *want != Want::StatsIfMade).map(|(id, _)| id).collect();
    let plain = seconds(executor, cache, task, &[], now).await?;
    executor.set_opened(wanted);
    let alike = seconds(executor, cache, task, &[], now).await;
    executor.set_opened(Vec::new());
    let (alike, seen) = (alike?, seconds(executor, cache, task, &requests, now).await?);
    let over = |other: f64| (seen / other - 1.0) * 100.0;
    let (rate, cost, of_alike) = (1.0 / seen, over(plain), over(alike));
    say(format!("watched  {}: {rate:.1} tok/s, {cost:+.1} % a token, {of_alike:+.1} % against the same fusions unwatched", task.what))?;
    let step = Step { requests: &requests, ..task.step };
    let kernels = if task.kernels { kernels(executor, cache, &step, None, say).await? } else { Vec::new() };
    Ok(json!({
        "categories": task.what, "decodeTokensPerSecond": rate, "unwatchedTokensPerSecond": 1.0 / plain,
        "sameFusionsTokensPerSecond": 1.0 / alike, "kernels": kernels,
    }))
}

/// The median of seconds a step, after one that compiles and lowers.
pub(super) async fn seconds(
    executor: &GpuExecutor,
    cache: &mut GpuCache,
    task: Task<'_>,
    requests: &[Request],
    now: &dyn Fn() -> f64,
) -> Result<f64> {
    let step = Step { requests, ..task.step };
    task.prompt.back(executor, cache, &task.step, task.start).await?;
    executor.step(cache, &step).await?;
    let mut times = Vec::new();
    for _ in 0..task.repeat {
        task.prompt.back(executor, cache, &task.step, task.start).await?;
        times.push(decode(executor, std::slice::from_mut(cache), &step, task.tokens, now).await?.0);
    }
    Ok(median(&mut times))
}

/// What `debug` asks of a decode step, with `--trace CATEGORY` or for its rules.
fn requests(plan: &Plan, what: &str) -> Result<Vec<Request>> {
    if what == RULES {
        return Ok(AnomalyObserver::new(plan, AnomalyOptions::new(1, plan.vocab_size), Sink::new(|_| Ok(()))).requests(1));
    }
    let categories = Categories::parse([what]).map_err(|e| e.within("watch"))?;
    let options = TraceOptions { categories, layers: None, prompt_end: 1, text: None };
    let found = TraceObserver::new(plan, options, Sink::new(|_| Ok(())))?.requests(1);
    if found.is_empty() { Err(Error::invalid("watch", format!("this model has no stage of category `{what}`"))) } else { Ok(found) }
}
