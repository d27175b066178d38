//! Probes: chosen elements, or the statistics of a row, of chosen tokens, layers and stages, gathered where the values
//! are. All that a model or prompt lacks is found before anything runs.

use crate::config::runtime::{Dims, Position, Probe};
use crate::cpu::stats::stats;
use crate::debug::observers::answers;
use crate::debug::places;
use crate::debug::record::{ProbeRecord, ProbeValue, Record, Sink};
use crate::debug::summary::Summary;
use crate::error::{Error, Result};
use crate::exec::{Content, Observed, Observer, Request, StepInfo, Want, match_requests};
use crate::plan::{At, Plan, Stage};
use crate::tensor::Tensor;

/// A probe whose layers and tokens this model and prompt have.
#[derive(Debug)]
struct Checked {
    id: String,
    stage: Stage,
    /// `None`: all that have the stage.
    layers: Option<Vec<usize>>,
    /// Positions in the prompt; `None` is every one.
    tokens: Option<Vec<usize>>,
    /// The token of each decode step too: all tokens, or the last, were asked for.
    decode: bool,
    dims: Dims,
    scores: bool,
    /// Elements of a row.
    width: usize,
}

/// Emits a `Record::Probe` for every probed token of every layer.
pub struct ProbeObserver<'a> {
    probes: Vec<Checked>,
    prompt_end: usize,
    head_dims: std::collections::BTreeMap<At, usize>,
    sink: Sink<'a>,
}

impl<'a> ProbeObserver<'a> {
    /// An observer of a prompt of `prompt_end` tokens and its decode steps. Tokens count from the prompt's start, negative
    /// ones from its end; in a decode step −1 is that step's token. Tokens that a session has cached are not computed and
    /// so not shown.
    ///
    /// # Errors
    /// `Kind::Invalid`, naming the probe, for a stage, layer, token or dim that this model or prompt lacks.
    pub fn new(plan: &Plan, probes: &[Probe], prompt_end: usize, sink: Sink<'a>) -> Result<Self> {
        let check = |probe: &Probe| check(plan, probe, prompt_end).map_err(|e| e.within(format!("probe `{}`", probe.id)));
        let probes = probes.iter().map(check).collect::<Result<_>>()?;
        Ok(Self { probes, prompt_end, head_dims: places::head_dims(plan), sink })
    }
}

/// Finds what a probe asks for.
fn check(plan: &Plan, probe: &Probe, prompt_end: usize) -> Result<Checked> {
    let stage = Stage::parse(&probe.stage)?;
    if stage == Stage::Sampled {
        return Err(Error::invalid("stage", "`sampled` has no elements: trace category `sample` shows the chosen tokens"));
    }
    let layers = match &probe.layers {
        Some(_) if !stage.info().per_layer => {
            return Err(Error::invalid("layers", format!("the model has `{stage}` once, not per layer: leave layers out")));
        }
        layers => layers.as_ref().map(|list| places::layers(plan, list)).transpose()?,
    };
    let scores = stage.layout().is_scores();
    let want = match &probe.dims {
        Dims::List(dims) if !scores => Want::Gather { tokens: Vec::new(), dims: dims.clone() },
        Dims::List(dims) => match dims.iter().find(|d| **d >= prompt_end) {
            Some(dim) => {
                let message = format!("dims of `{stage}` are positions attended to; the prompt has {prompt_end}, so there is no {dim}");
                return Err(Error::invalid("dims", message));
            }
            None => Want::Full,
        },
        Dims::Stats => Want::Stats,
    };
    let found = match_requests(plan, &[Request { stage, layers: layers.clone(), want }])?;
    let tokens = probe.tokens.as_ref().map(|list| places::tokens(prompt_end, list)).transpose()?;
    let decode = probe.tokens.as_ref().is_none_or(|list| list.contains(&Position::At(-1)));
    let width = found.first().map_or(0, |(id, _)| plan.node(*id).width);
    Ok(Checked { id: probe.id.clone(), stage, layers, tokens, decode, dims: probe.dims.clone(), scores, width })
}

impl Checked {
    /// What is wanted of a step; `position` is that of a decode step's token.
    fn request(&self, decode_step: usize, prompt_end: usize) -> Option<Request> {
        let prompt = || self.tokens.clone().unwrap_or_else(|| (0..prompt_end).collect());
        let want = match (&self.dims, decode_step) {
            (_, 1..) if !self.decode => return None,
            (Dims::Stats, 1..) => Want::Stats,
            (Dims::Stats, 0) if self.scores || self.tokens.is_none() => Want::Full,
            (Dims::Stats, 0) => Want::Gather { tokens: prompt(), dims: (0..self.width).collect() },
            (Dims::List(_), _) if self.scores => Want::Full,
            (Dims::List(dims), 0) => Want::Gather { tokens: prompt(), dims: dims.clone() },
            (Dims::List(dims), n) => Want::Gather { tokens: vec![prompt_end + n - 1], dims: dims.clone() },
        };
        Some(Request { stage: self.stage, layers: self.layers.clone(), want })
    }
    /// Tokens of a step that are probed.
    fn tokens(&self, step: StepInfo<'_>) -> Vec<usize> {
        let mut tokens: Vec<usize> = (step.first_token..step.first_token + step.tokens.len()).collect();
        if let (0, Some(list)) = (step.decode_step, &self.tokens) {
            tokens.retain(|t| list.contains(t));
        }
        tokens
    }
}

impl ProbeObserver<'_> {
    /// What `probe` finds in `value`, which answers its request.
    fn records(&self, probe: &Checked, step: StepInfo<'_>, value: &Observed) -> Vec<ProbeRecord> {
        let at = value.at;
        let record = |token: usize, values: Option<Vec<ProbeValue>>, stats: Option<Summary>| ProbeRecord {
            id: probe.id.clone(),
            step: step.decode_step,
            at,
            token,
            values,
            stats,
        };
        let chosen = |token, values| record(token, Some(values), None);
        let summary = |token: usize, row: &[f32], width: usize| {
            record(token, None, Some(Summary::new(&stats(row, width), at, token, 1, self.head_dims.get(&at).copied())))
        };
        let of_token = |token: usize| match (&value.content, &probe.dims) {
            (Content::Stats(stats), _) => {
                Some(record(token, None, Some(Summary::new(stats, at, token, 1, self.head_dims.get(&at).copied()))))
            }
            (Content::Gather(cells), dims) => {
                let cells = cells.iter().filter(|c| c.0 == token);
                Some(match dims {
                    Dims::List(_) => chosen(token, cells.map(|c| ProbeValue { head: None, dim: c.1, value: c.2 }).collect()),
                    Dims::Stats => summary(token, &cells.map(|c| c.2).collect::<Vec<f32>>(), probe.width),
                })
            }
            // Never asked for here.
            (Content::HeadStats(_), _) => None,
            (Content::Full(tensor), Dims::List(dims)) => Some(chosen(token, cells(tensor, token, value.first_token, dims))),
            (Content::Full(tensor), Dims::Stats) if probe.scores => {
                let visible: Vec<usize> = (0..=token).collect();
                let row: Vec<f32> = cells(tensor, token, value.first_token, &visible).iter().map(|v| v.value).collect();
                Some(summary(token, &row, visible.len()))
            }
            (Content::Full(tensor), Dims::Stats) => {
                let row = token.checked_sub(value.first_token).filter(|row| *row < tensor.rows())?;
                Some(summary(token, tensor.row(row), tensor.width()))
            }
        };
        probe.tokens(step).into_iter().filter_map(of_token).collect()
    }
}

/// Elements `positions` of a token's row in each head of scores [heads, T, positions] of tokens from `first` on. A
/// position that the token's chunk could not see is a masked cell: 0.
fn cells(scores: &Tensor, token: usize, first: usize, positions: &[usize]) -> Vec<ProbeValue> {
    let [heads, tokens, width] = scores.shape[..] else { return Vec::new() };
    let Some(row) = token.checked_sub(first).filter(|row| *row < tokens) else { return Vec::new() };
    let cell = |head: usize, dim: usize| {
        let value = if dim < width { scores.data.get((head * tokens + row) * width + dim).copied() } else { None };
        ProbeValue { head: Some(head), dim, value: value.unwrap_or(0.0) }
    };
    (0..heads).flat_map(|head| positions.iter().map(move |dim| cell(head, *dim))).collect()
}

impl Observer for ProbeObserver<'_> {
    fn requests(&self, decode_step: usize) -> Vec<Request> {
        let mut requests: Vec<Request> = Vec::new();
        for request in self.probes.iter().filter_map(|p| p.request(decode_step, self.prompt_end)) {
            if !requests.contains(&request) {
                requests.push(request);
            }
        }
        requests
    }
    fn observe(&mut self, step: StepInfo<'_>, values: Vec<Observed>) -> Result<()> {
        let requests: Vec<Option<Request>> = self.probes.iter().map(|p| p.request(step.decode_step, self.prompt_end)).collect();
        let mut seen: Vec<At> = Vec::new();
        for at in values.iter().map(|value| value.at) {
            if seen.contains(&at) {
                continue;
            }
            seen.push(at);
            for (probe, request) in self.probes.iter().zip(&requests) {
                let Some(request) = request else { continue };
                let Some(value) = values.iter().find(|v| v.at == at && answers(request, v, step)) else { continue };
                for record in self.records(probe, step, value) {
                    self.sink.put(Record::Probe(record))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
