//! Which tensors the error of stored weights comes from: the noise of each against a reference checkpoint, and how much
//! of the divergence over a text goes away when that tensor alone is given the reference's values. It knows no format:
//! weights come in bands of rows from a [`WeightSource`]. Tensors are told apart by role and layer, so the two may be of files
//! with other names and conventions.

mod noise;
mod text;

pub(super) use noise::encoded_error;
pub use noise::{Noise, noise};

use super::agreement::{self, Reference, Window, json_real};
use super::weight_source::{InConvention, WeightSource, put};
use crate::error::Result;
use crate::exec::{Executor, Replaceable};
use crate::plan::Plan;
use serde::Serialize;
use std::ops::ControlFlow;

/// What each tensor's values do to the output.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attribution {
    /// Mean divergence from the reference with all weights as stored, in nats; `None` when it was not measured.
    pub kl: Option<f64>,
    /// Tokens that it was measured over.
    pub tokens: usize,
    /// Tensors that differ: by divergence regained, then by noise, the worst first.
    pub tensors: Vec<Tensor>,
    /// Tensors whose values are the reference's.
    pub equal: usize,
    /// Tensors that were given the reference's values, one at a time.
    pub restored: usize,
    /// Whether all that was asked for was done.
    pub complete: bool,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tensor {
    /// How its values differ.
    #[serde(flatten)]
    pub noise: Noise,
    /// Divergence with this tensor alone restored, and what that regained, in nats; `None` when it was not tried.
    pub restored: Option<Restored>,
}

/// What restoring a tensor did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// Mean divergence that is left.
    #[serde(serialize_with = "json_real")]
    pub kl: f64,
    /// What went away; below 0 where the tensor's error made up for another's.
    #[serde(serialize_with = "json_real")]
    pub regained: f64,
    /// `regained` as a share of all divergence.
    #[serde(serialize_with = "json_real")]
    pub share: f64,
    /// `regained` for each unit of the tensor's relative squared error: what errors there do to the output.
    #[serde(serialize_with = "json_real")]
    pub sensitivity: f64,
}

/// How far an attribution is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress<'a> {
    /// The tensor that is looked at; `None` while all weights are as stored.
    pub tensor: Option<&'a str>,
    /// Measurements done, of the text or, before that, of tensors.
    pub done: usize,
    /// Measurements to do.
    pub of: usize,
}

/// Progress; breaking ends the attribution with what is known so far.
pub type OnProgress<'p> = &'p mut dyn FnMut(Progress<'_>) -> ControlFlow<()>;

/// What to measure divergence over.
#[derive(Debug, Clone, Copy)]
pub struct Text<'t> {
    /// Its windows.
    pub windows: &'t [Window],
    /// Size of the real vocabulary.
    pub valid: usize,
    /// Tensors to restore, those with most noise: `None` is all that differ.
    pub most: Option<usize>,
}

/// Attributes the divergence of `executor`, which holds the weights of `own`, from `exact`, which holds those of
/// `reference`. Each of the noisiest tensors is given the reference's values, measured, and put back; when this returns,
/// with an error too unless putting back itself failed, `executor` holds its own weights.
///
/// # Errors
/// `Kind::Invalid` when the plans need other weights; what the sources, the executors and `agree` report.
pub async fn attribute<A: Executor, B: Executor + Replaceable>(
    exact: &A,
    executor: &mut B,
    reference: &impl WeightSource,
    own: &impl WeightSource,
    text: Text<'_>,
    progress: OnProgress<'_>,
) -> Result<Attribution> {
    let plan = executor.plan().clone();
    same_weights(exact.plan(), &plan)?;
    let mut found = noise([exact.plan(), &plan], reference, own, progress).await?;
    if !found.complete {
        return Ok(found);
    }
    agreement::check(&[exact.plan(), &plan], text.windows, text.valid)?;
    let reference = &InConvention::new(reference, exact.plan(), &plan);
    let mut exact = Reference::new(exact, &plan, text.windows, true)?;
    let count = text.most.unwrap_or(found.tensors.len()).min(found.tensors.len());
    let of = 1 + count;
    let (all, tokens, complete) = measure(&mut exact, executor, text, &mut || progress(Progress { tensor: None, done: 0, of })).await?;
    if !complete {
        found.complete = false;
        return Ok(found);
    }
    (found.kl, found.tokens) = (Some(all), tokens);
    // `noise` sorted them: the noisiest come first.
    for done in 0..count {
        let Noise { name, id, squared_error, .. } = found.tensors[done].noise.clone();
        let report = Progress { tensor: Some(&name), done: done + 1, of };
        put(&plan, reference, id, executor).await?;
        let measured = measure(&mut exact, executor, text, &mut || progress(report)).await;
        put(&plan, own, id, executor).await?;
        let (kl, _, complete) = measured?;
        if !complete {
            found.complete = false;
            break;
        }
        let regained = all - kl;
        let share = if all > 0.0 { regained / all } else { 0.0 };
        let sensitivity = if squared_error > 0.0 { regained / squared_error } else { 0.0 };
        found.tensors[done].restored = Some(Restored { kl, regained, share, sensitivity });
        found.restored += 1;
    }
    // A stable sort: what was not restored stays behind, by noise.
    let regained = |t: &Tensor| t.restored.map_or(f64::NEG_INFINITY, |r| r.regained);
    found.tensors.sort_by(|a, b| regained(b).total_cmp(&regained(a)));
    Ok(found)
}

/// Mean divergence, tokens, and whether all of the text was read.
async fn measure<A: Executor, B: Executor>(
    exact: &mut Reference<'_, A>,
    executor: &B,
    text: Text<'_>,
    heard: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<(f64, usize, bool)> {
    let agreement = agreement::agree_with(exact, executor, text.windows, text.valid, &mut |_| heard()).await?;
    Ok((agreement.kl.mean, agreement.tokens, agreement.complete))
}

/// Whether two plans read the same weights, slot by slot.
///
/// # Errors
/// `Kind::Invalid` naming the first that differs.
pub fn same_weights(a: &Plan, b: &Plan) -> Result<()> {
    let wrong = |text: String| Err(crate::error::Error::invalid("checkpoints", text));
    if a.weights.len() != b.weights.len() {
        return wrong(format!(
            "one model has {} weights, the other {}: expected two copies of one model",
            a.weights.len(),
            b.weights.len()
        ));
    }
    for (a, b) in a.weights.iter().zip(&b.weights) {
        if (a.role, a.layer, a.bias, &a.shape) != (b.role, b.layer, b.bias, &b.shape) {
            let text = format!("{} {:?} stands against {} {:?}: expected two copies of one model", a.label(), a.shape, b.label(), b.shape);
            return wrong(text);
        }
    }
    Ok(())
}
