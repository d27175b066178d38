//! What each block of a model adds to the difference between two logits: direct logit attribution. The residual stream is a
//! sum, and behind the last layer only a norm, whose divisor is taken as it is, and a matrix come; so is the difference
//! (arXiv 2209.02535; nostalgebraist, "interpreting GPT: the logit lens", 2020). A soft-cap comes after it.

use super::run;
use crate::error::{Error, Result};
use crate::exec::{Executor, Request, Want};
use crate::plan::{At, Op, Plan, Stage, ValueId};
use crate::tensor::Tensor;
use serde::Serialize;
use std::collections::BTreeMap;

/// What one part of the residual stream adds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Contribution {
    /// The value that is added to the stream.
    pub at: At,
    /// Its share of the logit of the answer less the other's.
    pub difference: f64,
}

/// Contributions at the last of `ids` to the logit of `answer` less that of `against`, before a soft-cap: the embeddings and
/// everything that layers add. Their sum is that difference, but for a bias of the head.
///
/// # Errors
/// `Kind::Unsupported` for plans whose residual stream is no sum from embeddings to the final norm; what the executor reports.
pub async fn contributions<E: Executor>(executor: &E, ids: &[u32], chunk: usize, answer: u32, against: u32) -> Result<Vec<Contribution>> {
    let plan = executor.plan();
    let (norm, parts) = parts(plan)?;
    let logits = plan.find(At { stage: Stage::Logits, layer: None }).ok_or_else(|| Error::unsupported("this model has no logits"))?;
    let mut last: BTreeMap<At, Vec<f32>> = BTreeMap::new();
    let mut stages: Vec<Stage> = parts.iter().map(|(id, _)| plan.node(*id).at.stage).collect();
    stages.sort_unstable();
    stages.dedup();
    for stage in stages {
        let (_, values) = run(executor, ids, chunk, &[Request { stage, layers: None, want: Want::Full }]).await?;
        for (layer, tensor) in values {
            let at = At { stage, layer: stage.info().per_layer.then_some(layer) };
            last.insert(at, tensor.row(tensor.rows() - 1).to_vec());
        }
    }
    let (eps, centred) = match plan.node(norm).op {
        Op::RmsNorm { eps, .. } => (eps, false),
        Op::LayerNorm { eps, .. } => (eps, true),
        _ => return Err(Error::unsupported("the head begins with no norm")),
    };
    let width = plan.node(norm).width;
    let row = |id: ValueId, factor: f64| {
        let at = plan.node(id).at;
        let values = last.get(&at).ok_or_else(|| Error::plan(format!("{at} was not seen")))?;
        // A layer norm takes the mean of what it reads, and so of each part.
        let mean = if centred { values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len().max(1) as f64 } else { 0.0 };
        Ok(values.iter().map(|x| (f64::from(*x) - mean) * factor).collect::<Vec<f64>>())
    };
    let rows = parts.iter().map(|(id, factor)| row(*id, *factor)).collect::<Result<Vec<Vec<f64>>>>()?;
    let stream: Vec<f64> = (0..width).map(|i| rows.iter().map(|row| row[i]).sum()).collect();
    let divisor = (stream.iter().map(|x| x * x).sum::<f64>() / width as f64 + eps).sqrt();
    let weights = weights(executor, norm, width, centred, eps).await?;
    let mut found = Vec::new();
    for ((id, _), row) in parts.iter().zip(&rows) {
        let normed = row.iter().zip(&weights).map(|(x, w)| (x / divisor * w) as f32).collect();
        let out = executor.eval(logits, &[Tensor::new(vec![1, width], normed)?], ids.len() - 1, false).await?;
        let logit = |id: u32| out.data.get(id as usize).map(|x| f64::from(*x));
        let absent = || Error::invalid("token", format!("there are {} ids", out.data.len()));
        let difference = logit(answer).zip(logit(against)).map(|(a, b)| a - b).ok_or_else(absent)?;
        found.push(Contribution { at: plan.node(*id).at, difference });
    }
    Ok(found)
}

/// What the norm multiplies by. Rows of ones and minus ones show it, half the difference of their norms: a bias cancels. A layer norm
/// takes their mean, so that signs must alternate.
async fn weights<E: Executor>(executor: &E, norm: ValueId, width: usize, centred: bool, eps: f64) -> Result<Vec<f64>> {
    let signs: Vec<f64> = (0..width).map(|i| if centred && i % 2 == 1 { -1.0 } else { 1.0 }).collect();
    let mean = if centred { signs.iter().sum::<f64>() / width as f64 } else { 0.0 };
    let square = signs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
    let mut normed = Vec::new();
    for sign in [1.0, -1.0] {
        let row = Tensor::new(vec![1, width], signs.iter().map(|x| (x * sign) as f32).collect())?;
        normed.push(executor.eval(norm, &[row], 0, false).await?.data);
    }
    let of = |i: usize| (f64::from(normed[0][i]) - f64::from(normed[1][i])) / 2.0 * (square + eps).sqrt() / (signs[i] - mean);
    Ok((0..width).map(of).collect())
}

/// The final norm, and what the stream that it reads is the sum of, with factors, from the embeddings on.
fn parts(plan: &Plan) -> Result<(ValueId, Vec<(ValueId, f64)>)> {
    let norm = plan.head.ok_or_else(|| Error::unsupported("this model has no head"))?;
    let (mut parts, mut id) = (Vec::new(), plan.node(norm).inputs.first().copied());
    while let Some(here) = id {
        let node = plan.node(here);
        if !node.interventions.is_empty() && !matches!(node.op, Op::Embed { .. }) {
            return Err(Error::unsupported(format!("{} is changed, so it is no sum of what layers add", node.at)));
        }
        id = match node.op {
            Op::Same => node.inputs.first().copied(),
            Op::Add { multiplier } => {
                parts.push((node.inputs[1], multiplier));
                node.inputs.first().copied()
            }
            Op::Embed { .. } => {
                parts.push((here, 1.0));
                None
            }
            _ => return Err(Error::unsupported(format!("{} is neither a sum nor an embedding", node.at))),
        };
    }
    parts.reverse();
    Ok((norm, parts))
}
