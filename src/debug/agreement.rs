//! How far two models, or one model on two devices, agree over a text: Kullback-Leibler divergence of their next-token
//! distributions, the same likeliest token, the probability of the true token, perplexity. Both read the same tokens;
//! neither sees what the other would say. Never more than a few rows of logits are in memory.

mod measure;
mod reader;
mod rows;
mod text;
mod windows;

pub use measure::{Agreement, Divergence, Likelihood, NonFinite, Ranked, Ratio, Share, Worst};
pub use text::Shown;
pub(super) use text::brief;
pub use windows::{Cut, Window, cut, predicted};

use crate::error::{Error, Result};
use crate::exec::Executor;
use measure::Meter;
pub(super) use reader::{Reader, Reference};
use std::ops::ControlFlow;

/// How far a measurement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Tokens measured.
    pub done: usize,
    /// Tokens to measure.
    pub of: usize,
}

/// Progress; breaking ends the measurement with what was measured so far.
pub type OnProgress<'p> = &'p mut dyn FnMut(Progress) -> ControlFlow<()>;

/// Most bytes of logits that a step of one side may give.
const STEP_BYTES: usize = 64 << 20;
/// Most tokens of a step.
const STEP_TOKENS: usize = 256;

/// Measures `b` against the reference `a` over `windows`: every token after the first of a window is predicted from
/// those before it. `valid` is the size of the real vocabulary; rows of the head from there on are padding and belong
/// to neither distribution.
///
/// # Errors
/// `Kind::Invalid` for windows without a token to predict, for ids or a vocabulary that one side lacks, and for windows
/// longer than one side's context; what the executors report.
pub async fn agree<A: Executor, B: Executor>(
    a: &A,
    b: &B,
    windows: &[Window],
    valid: usize,
    progress: OnProgress<'_>,
) -> Result<Agreement> {
    check(&[a.plan(), b.plan()], windows, valid)?;
    let mut reference = Reference::new(a, b.plan(), windows, false)?;
    agree_with(&mut reference, b, windows, valid, progress).await
}

/// As [`agree`], against a reference that may be asked again for the same windows.
pub(super) async fn agree_with<A: Executor, B: Executor>(
    a: &mut Reference<'_, A>,
    b: &B,
    windows: &[Window],
    valid: usize,
    progress: OnProgress<'_>,
) -> Result<Agreement> {
    let of = check(&[a.plan(), b.plan()], windows, valid)?;
    let step = a.step();
    let (mut reads_b, mut meter) = (Reader::new(b, windows, step)?, Meter::new(valid));
    let steps = windows.iter().enumerate().flat_map(|(n, w)| (0..w.ids.len()).step_by(step).map(move |first| (n, w, first)));
    for (place, (number, window, first)) in steps.enumerate() {
        // Both are started before either is waited for.
        let (started_a, started_b) = (a.start(place, window, first)?, reads_b.start(window, first)?);
        let rows_b = reads_b.rows(started_b).await?;
        meter.take(number, window, first, a.rows(place, started_a).await?, &rows_b);
        if progress(Progress { done: meter.seen(), of }).is_break() {
            break;
        }
    }
    meter.finish(windows, of)
}

/// How well `executor` predicts the tokens of `windows`; arguments and errors as for [`agree`].
///
/// # Errors
/// As [`agree`]; `Kind::Finding` when logits are not finite.
pub async fn likelihood<E: Executor>(executor: &E, windows: &[Window], valid: usize, progress: OnProgress<'_>) -> Result<Likelihood> {
    let of = check(&[executor.plan()], windows, valid)?;
    let step = step_tokens(executor.plan().vocab_size);
    let mut reader = Reader::new(executor, windows, step)?;
    let mut surprises = Vec::with_capacity(of);
    'all: for (number, window) in windows.iter().enumerate() {
        for first in (0..window.ids.len()).step_by(step) {
            let started = reader.start(window, first)?;
            let rows = reader.rows(started).await?;
            for row in 0..step.min(window.ids.len() - first) {
                let Some(next) = window.ids.get(first + row + 1) else { continue };
                let Some(distribution) = rows::Row::new(&rows.row(row)[..valid]) else {
                    let text =
                        format!("logits are not finite at token {} of window {number} (`doppler debug` says where from)", first + row);
                    return Err(Error::finding(text));
                };
                surprises.push(-distribution.log_p(*next as usize));
            }
            if progress(Progress { done: surprises.len(), of }).is_break() {
                break 'all;
            }
        }
    }
    Ok(Likelihood::new(&surprises))
}

/// Tokens of a step whose logits stay within `STEP_BYTES`.
fn step_tokens(vocab: usize) -> usize {
    (STEP_BYTES / (4 * vocab.max(1))).clamp(1, STEP_TOKENS)
}

/// Whether every plan can read every window; how many tokens there are to predict.
pub(super) fn check(plans: &[&crate::plan::Plan], windows: &[Window], valid: usize) -> Result<usize> {
    let of = predicted(windows);
    if of == 0 {
        return Err(Error::invalid("text", "it has no token to predict: expected at least two tokens"));
    }
    let longest = windows.iter().map(|w| w.ids.len()).max().unwrap_or(0);
    let highest = windows.iter().flat_map(|w| &w.ids).max().copied().unwrap_or(0) as usize;
    for plan in plans {
        let (vocab, most) = (plan.vocab_size, plan.max_positions);
        if valid == 0 || valid > vocab {
            return Err(Error::invalid("vocabulary", format!("{valid} ids are to be compared, but a model has {vocab}")));
        }
        if highest >= valid {
            return Err(Error::invalid("text", format!("it has id {highest}, but the vocabulary that is compared has {valid} ids")));
        }
        if longest > most {
            return Err(Error::invalid("window", format!("{longest} tokens are longer than a model's context of {most}")));
        }
    }
    Ok(of)
}

/// An f64 in JSON; what is not finite is a text, as in all our JSON.
pub(super) fn json_real<S: serde::Serializer>(x: &f64, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    if x.is_finite() { serializer.serialize_f64(*x) } else { serializer.serialize_str(&super::number::significant(*x)) }
}

#[cfg(test)]
mod tests;
