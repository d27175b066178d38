//! Activation patching: where in a model the difference between two prompts is decided. Values of a clean run are put, one
//! layer and token (or head) at a time, into a run of a corrupted prompt; what of the difference between two logits comes
//! back says what these values carry (Vig et al., arXiv 2004.12265; Meng et al., arXiv 2202.05262; arXiv 2309.16042).

mod contributions;
mod text;

pub use contributions::{Contribution, contributions};
pub use text::{html, text};

use crate::error::{Error, Result};
use crate::exec::{Content, Editable, Executor, Read, Request, Rows, Step, Tokens, Want};
use crate::plan::intervention::{Change, Given, Intervention, Span};
use crate::plan::{At, Plan, Stage, ValueId};
use crate::tensor::Tensor;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is put into the corrupted run at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Column {
    /// The value of one token.
    Token,
    /// The value of one head, at every token.
    Head,
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The prompt after which the model says `answer`.
    pub clean: &'a [u32],
    /// As many tokens, after which it does not.
    pub corrupted: &'a [u32],
    /// The value that is taken over.
    pub stage: Stage,
    /// By token or by head.
    pub column: Column,
    /// Layers; `None` is every one that has the stage.
    pub layers: Option<&'a [usize]>,
    /// The token that the clean run should say; `None` is the one that it says.
    pub answer: Option<u32>,
    /// The token that it is held against; `None` is the one that the corrupted run says.
    pub against: Option<u32>,
    /// Tokens of a step.
    pub chunk: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PatchMap {
    /// The value that was taken over.
    pub stage: Stage,
    /// What a column is.
    pub column: Column,
    /// The tokens whose logits are held against each other.
    pub answer: u32,
    /// Likewise.
    pub against: u32,
    /// Logit of the answer less the other's, in the clean run.
    pub clean: f64,
    /// Likewise in the corrupted run.
    pub corrupted: f64,
    /// First token at which the prompts differ: before it there is nothing to take over.
    pub first_difference: usize,
    /// The layers, a row each.
    pub layers: Vec<usize>,
    /// Share of the difference that comes back, `[layers][columns]`: 0 is the corrupted run, 1 the clean one.
    pub regained: Vec<Vec<f64>>,
}

impl PatchMap {
    /// Row and column of the largest share.
    pub fn best(&self) -> Option<(usize, usize)> {
        let cells = self.regained.iter().enumerate().flat_map(|(row, cells)| cells.iter().enumerate().map(move |(c, x)| ((row, c), *x)));
        cells.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(place, _)| place)
    }
}

/// Measures. What `executor` had of interventions is gone afterwards. `progress` is told how many of how many runs are done.
///
/// # Errors
/// `Kind::Invalid` for prompts of different lengths, or the same; where the stage is no row of tokens, or the two tokens are
/// one; `Kind::Finding` where the runs do not differ in the logits; what the executor reports.
pub async fn patch<E: Executor + Editable>(
    executor: &mut E,
    asked: &Question<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<PatchMap> {
    let (tokens, stage) = (asked.clean.len(), asked.stage);
    let first_difference = difference(asked)?;
    executor.set_interventions(&[])?;
    let rows = rows(executor.plan(), asked)?;
    let layers: Vec<usize> = rows.iter().map(|(layer, _)| *layer).collect();
    let request = Request { stage, layers: Some(layers.clone()), want: Want::Full };
    let (clean_logits, values) = run(executor, asked.clean, asked.chunk, &[request]).await?;
    let (corrupted_logits, _) = run(executor, asked.corrupted, asked.chunk, &[]).await?;
    let (answer, against) = (asked.answer.unwrap_or(highest(&clean_logits)), asked.against.unwrap_or(highest(&corrupted_logits)));
    if answer == against {
        let message = format!("token {answer} is both: say with --answer and --against which logits to compare");
        return Err(Error::invalid("patch", message));
    }
    let logit = |logits: &[f32], id: u32| {
        let absent = || Error::invalid("token", format!("there is no id {id}: the model has {}", logits.len()));
        logits.get(id as usize).map(|x| f64::from(*x)).ok_or_else(absent)
    };
    let difference = |logits: &[f32]| Ok::<_, Error>(logit(logits, answer)? - logit(logits, against)?);
    let (clean, corrupted) = (difference(&clean_logits)?, difference(&corrupted_logits)?);
    let whole = clean - corrupted;
    if whole == 0.0 || !whole.is_finite() {
        let message = format!("both runs have a difference of {clean} between tokens {answer} and {against}: there is nothing to regain");
        return Err(Error::finding(message));
    }
    let columns = columns(executor.plan(), asked, rows[0].1)?;
    let (mut regained, mut done) = (Vec::new(), 0);
    for (layer, id) in &rows {
        let value = values.get(layer).ok_or_else(|| Error::plan(format!("{stage} of layer {layer} was not seen")))?;
        let given = Given { name: "from:clean".into(), first: 0, tensor: value.clone() };
        let mut cells = Vec::with_capacity(columns);
        for column in 0..columns {
            done += 1;
            progress(done, rows.len() * columns);
            if asked.column == Column::Token && column < first_difference {
                cells.push(0.0); // no token sees a later one, so the values are the same
                continue;
            }
            let span: Span = (column, column);
            let (tokens, heads) = match asked.column {
                Column::Token => (vec![span], None),
                Column::Head => (vec![(0, tokens - 1)], Some(vec![span])),
            };
            let with = Intervention { tokens: Some(tokens), heads, dims: None, change: Change::Set(given.clone()) };
            executor.set_interventions(&[(*id, vec![with])])?;
            let (logits, _) = run(executor, asked.corrupted, asked.chunk, &[]).await?;
            cells.push((difference(&logits)? - corrupted) / whole);
        }
        regained.push(cells);
    }
    executor.set_interventions(&[])?;
    Ok(PatchMap { stage, column: asked.column, answer, against, clean, corrupted, first_difference, layers, regained })
}

/// The first token at which the prompts differ.
fn difference(asked: &Question<'_>) -> Result<usize> {
    let (a, b) = (asked.clean.len(), asked.corrupted.len());
    if a != b {
        let message = format!("the prompts have {a} and {b} tokens; expected as many, so that each value has one to take its place");
        return Err(Error::invalid("prompts", message));
    }
    let first = asked.clean.iter().zip(asked.corrupted).position(|(a, b)| a != b);
    first.ok_or_else(|| Error::invalid("prompts", "both are the same tokens, so nothing differs between their runs"))
}

/// Layers with the node of the stage.
fn rows(plan: &Plan, asked: &Question<'_>) -> Result<Vec<(usize, ValueId)>> {
    let stage = asked.stage;
    if !stage.layout().is_rows() || !stage.info().per_layer {
        return Err(Error::invalid("stage", format!("{stage} is no row of every token in every layer")));
    }
    let having = plan.layers_with(stage);
    let wanted = asked.layers.map_or_else(|| having.clone(), <[usize]>::to_vec);
    let node = |layer: usize| {
        let absent = || Error::invalid("layers", format!("layer {layer} has no {stage}; layers that have it: {having:?}"));
        Ok((layer, plan.find(At { stage, layer: Some(layer) }).ok_or_else(absent)?))
    };
    let found = wanted.into_iter().map(node).collect::<Result<Vec<_>>>()?;
    if found.is_empty() { Err(Error::invalid("stage", format!("this model has no {stage}"))) } else { Ok(found) }
}

fn columns(plan: &Plan, asked: &Question<'_>, id: ValueId) -> Result<usize> {
    match asked.column {
        Column::Token => Ok(asked.clean.len()),
        Column::Head => plan.heads(id).ok_or_else(|| Error::invalid("stage", format!("{} is not made of heads", asked.stage))),
    }
}

fn highest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, x)| if *x > best.1 { (i, *x) } else { best });
    best.0 as u32
}

/// Logits after `ids`, and the whole values that `requests` of one stage name, by layer (0 for a stage that exists once).
async fn run<E: Executor>(
    executor: &E,
    ids: &[u32],
    chunk: usize,
    requests: &[Request],
) -> Result<(Vec<f32>, BTreeMap<usize, Arc<Tensor>>)> {
    let long_rope = executor.plan().is_long(ids.len());
    let chunk = chunk.clamp(1, ids.len().max(1));
    let mut cache = executor.new_cache(ids.len(), chunk)?;
    let (mut logits, mut values) = (Vec::new(), BTreeMap::<usize, Tensor>::new());
    let mut left = ids.chunks(chunk).peekable();
    while let Some(tokens) = left.next() {
        let last = left.peek().is_none();
        let (rows, read) = if last { (Rows::Last, Read::Logits) } else { (Rows::None, Read::Nothing) };
        let step = Step { tokens: Tokens::Ids(tokens), rows, pick: None, read, long_rope, requests };
        let output = executor.step(&mut cache, &step).await?;
        logits = output.logits.unwrap_or_default();
        for value in output.values {
            let Content::Full(tensor) = value.content else { continue };
            match values.entry(value.at.layer.unwrap_or(0)) {
                std::collections::btree_map::Entry::Vacant(place) => drop(place.insert(tensor)),
                std::collections::btree_map::Entry::Occupied(mut known) => {
                    let known = known.get_mut();
                    known.shape[0] += tensor.shape[0];
                    known.data.extend(tensor.data);
                }
            }
        }
    }
    Ok((logits, values.into_iter().map(|(layer, tensor)| (layer, Arc::new(tensor))).collect()))
}

#[cfg(test)]
mod tests;
