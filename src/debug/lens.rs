//! The logit lens: what each layer would say if it were the last one. The final norm, the head and the soft-cap are
//! applied to the last token's `layer_out` with `Executor::eval`, so on the device that runs the model.

use crate::config::runtime::Position;
use crate::debug::logits_view::{LOGITS, LastRow, view};
use crate::debug::places;
use crate::debug::record::{Candidate, LensRecord, TokenText};
use crate::error::{Error, Result};
use crate::exec::{Executor, Observed, Observer, Request, StepInfo};
use crate::plan::{Op, Plan, Stage, ValueId};
use crate::tensor::Tensor;

/// Logits that are held at a time.
const MOST_LOGITS: usize = 1 << 23;

/// Outputs of the layers at one token.
#[derive(Debug, Clone, PartialEq)]
pub struct LensInput {
    /// As in `LensRecord`.
    pub step: usize,
    /// Absolute position of the token.
    pub token: usize,
    /// The token that was chosen.
    pub chosen: Option<u32>,
    /// Layer and its output `[hidden]`, in order.
    pub layers: Vec<(usize, Vec<f32>)>,
}

/// Keeps `layer_out` of the prompt's last token and of every decode step's.
#[derive(Debug)]
pub struct LensObserver {
    rows: Option<LastRow>,
    layers: Option<Vec<usize>>,
    inputs: Vec<LensInput>,
}

impl LensObserver {
    /// An observer of `layers`, or of all. `prompt_end` is the position after the prompt's last token.
    ///
    /// # Errors
    /// `Kind::Invalid` for layers that the model lacks.
    pub fn new(plan: &Plan, layers: Option<&[Position]>, prompt_end: usize) -> Result<Self> {
        let layers = layers.map(|list| places::layers(plan, list)).transpose()?;
        Ok(Self { rows: LastRow::new(plan, Stage::LayerOut, prompt_end), layers, inputs: Vec::new() })
    }
    /// What was kept, for `read`.
    pub fn inputs(&self) -> &[LensInput] {
        &self.inputs
    }
}

impl Observer for LensObserver {
    fn requests(&self, decode_step: usize) -> Vec<Request> {
        let request = |rows: &LastRow| Request { layers: self.layers.clone(), ..rows.request(decode_step) };
        self.rows.iter().map(request).collect()
    }
    fn observe(&mut self, step: StepInfo<'_>, values: Vec<Observed>) -> Result<()> {
        let Some(rows) = &self.rows else { return Ok(()) };
        let layers: Vec<(usize, Vec<f32>)> = values.iter().filter_map(|v| Some((v.at.layer?, rows.of(step, v)?))).collect();
        if !layers.is_empty() {
            let token = (step.first_token + step.tokens.len()).saturating_sub(1);
            self.inputs.push(LensInput { step: step.decode_step, token, chosen: step.chosen, layers });
        }
        Ok(())
    }
}

/// The `k` highest logits of every layer of `inputs`.
///
/// # Errors
/// `Kind::Plan` when the plan's head is not a chain after the final norm; what the executor says.
pub async fn read<E: Executor>(executor: &E, inputs: &[LensInput], k: usize, text: Option<&TokenText<'_>>) -> Result<Vec<LensRecord>> {
    let head = head(executor.plan())?;
    let rows: Vec<(&LensInput, usize, &[f32])> =
        inputs.iter().flat_map(|input| input.layers.iter().map(move |(layer, row)| (input, *layer, &row[..]))).collect();
    let batch = (MOST_LOGITS / executor.plan().vocab_size.max(1)).max(1);
    let mut records = Vec::with_capacity(rows.len());
    for rows in rows.chunks(batch) {
        let width = rows.first().map_or(0, |(_, _, row)| row.len());
        let data = rows.iter().flat_map(|(_, _, row)| row.iter().copied()).collect();
        let mut value = Tensor::new(vec![rows.len(), width], data)?;
        for id in &head {
            value = executor.eval(*id, &[value], 0, false).await?;
        }
        if value.rows() != rows.len() {
            return Err(Error::device(format!("logit lens: expected {} rows of logits, found {}", rows.len(), value.rows())));
        }
        for (i, (input, layer, _)) in rows.iter().enumerate() {
            let row = value.row(i);
            let seen = view(row, k);
            let candidate = |id: u32, logit: f32| {
                let text = text.map(|text| text(id));
                Candidate { id, text, logit, probability: seen.probability(logit) }
            };
            let top = seen.top.iter().map(|(id, logit, _)| candidate(*id, *logit)).collect();
            let chosen = input.chosen.and_then(|id| Some(candidate(id, *row.get(id as usize)?)));
            let LensInput { step, token, .. } = **input;
            records.push(LensRecord { step, token, layer: *layer, entropy: seen.entropy, top, chosen });
        }
    }
    Ok(records)
}

/// The ops from the final norm to the final logits, without those that compute nothing.
fn head(plan: &Plan) -> Result<Vec<ValueId>> {
    let (first, last) = (plan.head, plan.find(LOGITS));
    let (Some(first), Some(last)) = (first, last) else { return Err(Error::plan("the plan has no final norm or no logits_final")) };
    let mut chain = Vec::new();
    let mut id = last;
    loop {
        let node = plan.node(id);
        if node.op != Op::Same {
            chain.push(id);
        }
        match node.inputs[..] {
            _ if id == first => break,
            [input] if input >= first => id = input,
            _ => return Err(Error::plan(format!("{} reads more than the final norm's output, so a layer cannot be put there", node.at))),
        }
    }
    chain.reverse();
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{Content, Want};
    use crate::inference::pipeline;
    use crate::plan::At;

    #[test]
    fn the_head_is_a_chain() {
        let mut plan = pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap();
        let stages: Vec<Stage> = head(&plan).unwrap().iter().map(|id| plan.node(*id).at.stage).collect();
        assert_eq!(stages, [Stage::FinalNorm, Stage::Logits]);
        let logits = plan.nodes.len() - 2;
        plan.nodes[logits].inputs = vec![ValueId(0)];
        assert!(head(&plan).unwrap_err().message.contains("logits reads more"));
    }

    #[test]
    fn rows_of_the_prompts_last_token_and_of_decode() {
        let plan = pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap();
        let mut lens = LensObserver::new(&plan, Some(&[Position::At(-1)]), 3).unwrap();
        assert!(LensObserver::new(&plan, Some(&[Position::At(9)]), 3).is_err());
        let requests = lens.requests(0);
        assert_eq!(requests[0].layers, Some(vec![2]));
        assert_eq!(requests[0].want, Want::Gather { tokens: vec![2], dims: (0..8).collect() });
        assert_eq!(lens.requests(1)[0].want, Want::Full);
        let at = At { stage: Stage::LayerOut, layer: Some(2) };
        let value = |content| vec![Observed { at, first_token: 0, content }];
        let step = StepInfo { decode_step: 0, first_token: 0, tokens: &[1, 2, 3], chosen: Some(7), notes: &[] };
        lens.observe(step, value(Content::Gather(vec![]))).unwrap();
        lens.observe(step, value(Content::Gather((0..8).map(|d| (2, d, d as f32)).collect()))).unwrap();
        assert_eq!(lens.inputs().len(), 1);
        assert_eq!((lens.inputs()[0].token, lens.inputs()[0].layers[0].1[7]), (2, 7.0));
    }
}
