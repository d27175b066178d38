//! GPU time of the kernels of a step, and how near the device's limits products come.

use crate::error::Result;
use crate::exec::{DECODE_TOKENS, Executor, Step, Tokens};
use crate::geometry::weight_bytes;
use crate::gpu::{GpuCache, GpuExecutor, KernelSum, Log, StepLog};
use crate::groups::{Question, groups};
use crate::plan::{Plan, Stage};
use crate::quant::Format;
use crate::tensor::product;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What the kernels of unwatched steps have to do, and what the device can.
pub(super) struct Work {
    /// Of steps of few tokens, then of many: bytes of weights that the products of a group read, and their multiplications and
    /// additions for each token, by the stage at which the group ends.
    products: [BTreeMap<Stage, (u64, u64)>; 2],
    /// Bytes per second of a copy.
    bandwidth: f64,
}

impl Work {
    /// Of `plan` with weights of these formats.
    pub(super) fn of(plan: &Plan, formats: &[Format], bandwidth: f64) -> Self {
        let of_steps = |few: bool| {
            let mut products = BTreeMap::new();
            for group in groups(plan, Question::unwatched(few)) {
                let (mut bytes, mut operations) = (0, 0);
                for (weight, part) in group.nodes.iter().filter_map(|id| plan.node(*id).op.matrix()) {
                    let (slot, of) = (&plan.weights[weight.0], |all: u64| (all as f64 * part).round() as u64);
                    bytes += of(weight_bytes(slot, formats[weight.0]));
                    operations += of(2 * product(slot.shape.iter().copied()));
                }
                if let (Some(end), true) = (group.nodes.last(), bytes > 0) {
                    products.insert(plan.node(*end).at.stage, (bytes, operations));
                }
            }
            products
        };
        Self { products: [of_steps(true), of_steps(false)], bandwidth }
    }
    /// How near the device's limit a kernel of a step of `tokens` comes, in words and as figures.
    fn judged(&self, sum: &KernelSum, tokens: usize) -> Option<(String, Value)> {
        let products = &self.products[usize::from(tokens > DECODE_TOKENS)];
        let (bytes, operations) = products.get(&sum.stage).filter(|_| sum.kernel.starts_with("linear"))?;
        let seconds = sum.nanoseconds / 1e9 / sum.count as f64;
        if tokens == 1 {
            let share = *bytes as f64 / seconds / self.bandwidth;
            let text = format!("{:.1} MB, {:.0} % of copy", *bytes as f64 / 1e6, share * 100.0);
            return Some((text, json!({"bytes": bytes, "bandwidthShare": share})));
        }
        let rate = (*operations * tokens as u64) as f64 / seconds;
        Some((format!("{:.1} TFLOP/s", rate / 1e12), json!({"operations": operations * tokens as u64, "operationsPerSecond": rate})))
    }
}

/// GPU time of the kernels of `step`, where the device reports times, judged by `work`. Of a chunk of a prompt, the sequence stands
/// at its begin.
pub(super) async fn kernels(
    executor: &GpuExecutor,
    cache: &mut GpuCache,
    step: &Step<'_>,
    work: Option<&Work>,
    say: &mut dyn FnMut(String) -> Result<()>,
) -> Result<Vec<Value>> {
    if !executor.gpu().caps.timestamps {
        return Ok(Vec::new());
    }
    let tokens = if let Tokens::Ids(ids) = step.tokens { ids.len() } else { 1 };
    executor.set_log(Log::Times)?;
    let begin = executor.len(cache);
    // The first compiles pipelines.
    for _ in 0..2 {
        executor.take_log();
        if tokens > 1 {
            executor.truncate(cache, begin);
        }
        executor.step(cache, step).await?;
    }
    let sums = StepLog::sums(&executor.take_log());
    executor.set_log(Log::Off)?;
    let total: f64 = sums.iter().map(|sum| sum.nanoseconds).sum();
    let what = if tokens > 1 { format!("a step of {tokens} tokens") } else { "one decode step".into() };
    say(format!("kernels  {:.3} ms of GPU time in {what} at position {begin}, each dispatch timed alone", total / 1e6))?;
    let mut figures = Vec::new();
    for sum in sums {
        let judged = work.and_then(|work| work.judged(&sum, tokens));
        let KernelSum { kernel, stage, count, nanoseconds: time } = sum;
        let (name, each) = (format!("{kernel} {stage}"), time / count as f64 / 1e3);
        let (text, limits) = judged.unwrap_or_default();
        let line =
            format!("         {name:<28} {count:>4} x {each:>8.2} us = {:>8.3} ms {:>5.1} %  {text}", time / 1e6, time / total * 100.0);
        say(line.trim_end().to_string())?;
        let mut figure = json!({"kernel": name, "count": count, "microseconds": time / 1e3});
        if let (Some(figure), Value::Object(limits)) = (figure.as_object_mut(), limits) {
            figure.extend(limits);
        }
        figures.push(figure);
    }
    Ok(figures)
}
