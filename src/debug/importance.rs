//! Measures the importance of columns: the mean squares of what every matrix product of a plan reads, over a text. Inputs of
//! products are values with stages, so this asks for them as every observer does.

use super::agreement::{self, Reader, Window};
use crate::error::{Error, Result};
use crate::exec::{Content, Executor, Observed, Request, Want};
use crate::formats::gguf::names::tensors_of;
use crate::model::TensorNames;
use crate::plan::{At, Op, Plan, WeightId};
use crate::quant::importance::{Importance, Sums};
use std::collections::BTreeMap;

/// Most bytes of values that a step may give.
const STEP_BYTES: usize = 64 << 20;
/// Most tokens of a step.
const STEP_TOKENS: usize = 256;

/// Reads `windows` with `executor` and sums up the squares of what each matrix reads, column by column. `tensors` says which
/// matrices share a tensor. `dataset` is the text's name. Ended early, it is the importance over what was read.
///
/// # Errors
/// `Kind::Invalid` for texts that the model cannot read; `Kind::Finding` for values that are not finite; what the executor
/// reports.
pub async fn collect<E: Executor>(
    executor: &E,
    tensors: &TensorNames,
    windows: &[Window],
    dataset: &str,
    progress: agreement::OnProgress<'_>,
) -> Result<Importance> {
    let plan = executor.plan();
    agreement::check(&[plan], windows, plan.vocab_size)?;
    let of = windows.iter().map(|w| w.ids.len()).sum();
    let readers = readers(plan, tensors);
    let mut sums: BTreeMap<At, (Vec<f64>, usize)> = BTreeMap::new();
    let width: usize = plan.nodes.iter().filter(|node| readers.contains_key(&node.at)).map(|node| node.width).sum();
    let step = (STEP_BYTES / (4 * (width + plan.vocab_size)).max(1)).clamp(1, STEP_TOKENS);
    let mut reader = Reader::of(executor, windows, step, requests(readers.keys()))?;
    let (mut done, mut chunks) = (0, 0);
    'all: for window in windows {
        for first in (0..window.ids.len()).step_by(step) {
            let started = reader.start(window, first)?;
            for value in reader.values(started).await? {
                add(&mut sums, value)?;
            }
            done += step.min(window.ids.len() - first);
            if progress(agreement::Progress { done, of }).is_break() {
                break 'all;
            }
        }
        chunks += 1;
    }
    let longest = windows.iter().map(|w| w.ids.len()).max().unwrap_or(0);
    let mut importance = Importance { datasets: vec![dataset.to_string()], chunks, chunk_size: longest as u32, ..Importance::default() };
    for (at, (squares, rows)) in sums {
        let sums = Sums { squares: squares.iter().map(|x| *x as f32).collect(), counts: vec![rows as f32] };
        sums.check().map_err(|e| e.within(at).on(at.about()))?;
        for name in readers.get(&at).into_iter().flatten() {
            importance.tensors.insert(name.clone(), sums.clone());
        }
    }
    Ok(importance)
}

/// The values that matrix products read, each with the tensors that do.
fn readers(plan: &Plan, tensors: &TensorNames) -> BTreeMap<At, Vec<String>> {
    let mut readers: BTreeMap<At, Vec<String>> = BTreeMap::new();
    for node in &plan.nodes {
        let (Op::Linear { weight, .. }, Some(input)) = (&node.op, node.inputs.first()) else { continue };
        let slot = &plan.weights[weight.0];
        let shared = tensors.names.iter().any(|(role, name)| *role == slot.role && !name.fused.is_empty());
        // A shared tensor is wanted by its own name and, where it is taken apart, by those of its parts.
        let names = tensors_of(slot.role.name(), slot.layer).into_iter().take(if shared { 2 } else { 1 });
        readers.entry(plan.node(*input).at).or_default().extend(names);
    }
    readers
}

/// Requests for all of these values.
fn requests<'a>(values: impl Iterator<Item = &'a At>) -> Vec<Request> {
    let mut layers: BTreeMap<crate::plan::Stage, Vec<usize>> = BTreeMap::new();
    for at in values {
        layers.entry(at.stage).or_default().extend(at.layer);
    }
    let one = |(stage, layers): (_, Vec<usize>)| Request { stage, layers: (!layers.is_empty()).then_some(layers), want: Want::Full };
    layers.into_iter().map(one).collect()
}

/// Adds the squares of a value's rows to those of its stage.
fn add(sums: &mut BTreeMap<At, (Vec<f64>, usize)>, value: Observed) -> Result<()> {
    let Content::Full(rows) = value.content else { return Ok(()) };
    let count = rows.rows();
    let (squares, seen) = sums.entry(value.at).or_insert_with(|| (vec![0.0; rows.data.len().checked_div(count).unwrap_or(0)], 0));
    for row in 0..count {
        for (sum, x) in squares.iter_mut().zip(rows.row(row)) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    *seen += count;
    match squares.iter().all(|sum| sum.is_finite()) {
        true => Ok(()),
        false => Err(Error::finding(format!("{}: not finite (`doppler debug` says where from)", value.at)).on(value.at.about())),
    }
}

/// The importance of the columns of each weight of `plan`; `None` where nothing is known, as of vectors.
///
/// # Errors
/// `Kind::Invalid` where it is of another number of columns; where it has nothing of any weight.
pub fn of_weights(importance: &Importance, plan: &Plan) -> Result<Vec<Option<Vec<f32>>>> {
    let one = |id: WeightId| {
        let slot = &plan.weights[id.0];
        let Some(columns) = slot.shape.get(1).filter(|_| !slot.bias) else { return Ok(None) };
        for name in tensors_of(slot.role.name(), slot.layer) {
            if let Some(found) = importance.of(&name, *columns)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    };
    let all = super::cost::ids(plan).map(one).collect::<Result<Vec<_>>>()?;
    if all.iter().all(Option::is_none) {
        return Err(Error::invalid("importance", "it has nothing of this model's tensors: of another model?"));
    }
    Ok(all)
}
