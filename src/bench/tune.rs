//! Which variants of matrix products are fastest on a device, measured in whole steps: a decode step for products of a vector,
//! a prompt's chunk for those of many rows.

use super::{Prompt, decode};
use crate::error::Result;
use crate::exec::{Executor, Step};
use crate::gpu::variants::Product;
use crate::gpu::{GpuCache, GpuExecutor};
use crate::tuned::Variant;
use serde_json::{Value, json};

/// What is measured.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub prompt: &'a Prompt<'a>,
    pub step: Step<'a>,
    /// Tokens of the sequence before it.
    pub start: usize,
    /// Decode steps each time.
    pub tokens: usize,
    /// How often.
    pub repeat: usize,
}

/// Seconds of some steps: the least, the median and the most.
type Spread = [f64; 3];

/// A gain that is worth another variant, which gives other bits.
const WORTH: f64 = 0.005;

/// Tokens of a chunk that shows which tiles are fastest: those that long prompts are read in.
const WHOLE_CHUNK: usize = 512;

/// Measures one product after the other, each variant with what was found for those before. A variant is taken where its slowest
/// measurement is faster than the fastest of the one before, by half a percent of a step. The executor keeps what was found,
/// which comes back with the names of the products and the seconds of a decode step and of a chunk, before and after.
pub(super) async fn measure(
    executor: &mut GpuExecutor,
    cache: &mut GpuCache,
    task: Task<'_>,
    now: &dyn Fn() -> f64,
    say: &mut dyn FnMut(String) -> Result<()>,
) -> Result<Value> {
    let mut table = executor.gpu().untuned();
    executor.set_tuned(None);
    let mut products = executor.tunable()?;
    // Tiles that suit a short chunk are not those of a whole one.
    products.retain(|(product, _)| !product.many || task.prompt.chunk >= WHOLE_CHUNK);
    say(format!("tune     {} products have a choice", products.len()))?;
    if products.is_empty() {
        say("         each is computed in the one way that this device has: nothing is measured".to_string())?;
        return Ok(json!({ "table": table, "measured": [] }));
    }
    let before = [seconds(executor, cache, task, false, now).await?, seconds(executor, cache, task, true, now).await?];
    for (product, variants) in &products {
        let usual = seconds(executor, cache, task, product.many, now).await?;
        let (mut best, mut chosen) = (usual, None);
        let mut times = vec![(variants[0], usual[1])];
        for variant in &variants[1..] {
            table.products.insert(product.to_string(), *variant);
            executor.set_tuned(Some(table.clone()));
            let found = seconds(executor, cache, task, product.many, now).await?;
            times.push((*variant, found[1]));
            if found[2] < best[0] && found[1] < usual[1] * (1.0 - WORTH) {
                (best, chosen) = (found, Some(*variant));
            }
        }
        say(told(product, &times, chosen))?;
        match chosen {
            Some(variant) => table.products.insert(product.to_string(), variant),
            None => table.products.remove(&product.to_string()),
        };
        executor.set_tuned(Some(table.clone()));
    }
    let after = [seconds(executor, cache, task, false, now).await?, seconds(executor, cache, task, true, now).await?];
    for (what, before, after) in [("decode", before[0], after[0]), ("prefill", before[1], after[1])] {
        let gain = (before[1] / after[1] - 1.0) * 100.0;
        say(format!("tuned    {what}: {:.3} -> {:.3} ms a step, {gain:+.1} %", before[1] * 1e3, after[1] * 1e3))?;
    }
    let measured: Vec<String> = products.iter().map(|(product, _)| product.to_string()).collect();
    Ok(json!({ "table": table, "measured": measured, "before": before, "after": after }))
}

/// Every variant with the time of a step in which it is taken, the chosen one last.
fn told(product: &Product, times: &[(Variant, f64)], chosen: Option<Variant>) -> String {
    let all: Vec<String> = times.iter().map(|(variant, seconds)| format!("{variant} {:.3}", seconds * 1e3)).collect();
    let (usual, time) =
        (times[0], |of: Variant| times.iter().find(|(variant, _)| *variant == of).map_or(f64::NAN, |(_, seconds)| *seconds));
    let end = match chosen {
        Some(variant) => format!("{variant}, {:+.1} % of a step", (time(variant) / usual.1 - 1.0) * 100.0),
        None => "the usual".to_string(),
    };
    format!("         {product}: {} ms -> {end}", all.join(", "))
}

/// Seconds of a decode step, or of a prompt's last chunk, after one that compiles and lowers.
async fn seconds(executor: &GpuExecutor, cache: &mut GpuCache, task: Task<'_>, many: bool, now: &dyn Fn() -> f64) -> Result<Spread> {
    let Task { prompt, step, start, tokens, repeat } = task;
    let mut times = Vec::new();
    for _ in 0..=repeat {
        if many {
            prompt.rewind(executor, cache).await?;
            let begin = now();
            prompt.read(executor, cache, prompt.ids.len()).await?;
            times.push(now() - begin);
            while executor.len(cache) < start {
                executor.step(cache, &step).await?;
            }
        } else {
            prompt.back(executor, cache, &step, start).await?;
            times.push(decode(executor, std::slice::from_mut(cache), &step, tokens, now).await?.0);
        }
    }
    let times = &mut times[1..];
    times.sort_by(f64::total_cmp);
    Ok([times[0], times[times.len() / 2], times[times.len() - 1]])
}
