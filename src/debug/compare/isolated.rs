//! Each op alone: an executor computes it on the reference's own inputs, and its output is held against the reference's.
//! What is wrong then shows in the op that is wrong, and not in those that inherit it. The floor is that of the op: both
//! oracles on the same inputs.

use super::judge::{Basis, judge};
use super::sums::{Place, Sums};
use super::{Align, Heads, Missing, Mode, Report};
use crate::debug::compare::align::Choice;
use crate::debug::dump::{Dump, Part};
use crate::debug::floor::{Numbers, Oracles, estimate, numbers};
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::plan::{At, Layout, Node, Op, Plan, ValueId};
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::ops::Range;

/// Most elements of an op's output that are computed at once, unless one token has more.
const BLOCK: usize = 1 << 22;

/// Evaluates the chosen ops of `executor` on the values of `reference`. `names` are those of the reference and of the
/// run. `progress` is told how many of how many ops are done.
///
/// # Errors
/// `Kind::Invalid` where the reference has sketches in place of values, or lacks values that an op needs: all of them
/// are listed. What the executors say.
pub async fn isolated<E: Executor>(
    reference: &Dump,
    executor: &E,
    oracles: &Oracles,
    names: [String; 2],
    choice: &Choice,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    let plan = executor.plan();
    choice.check(plan.nodes.iter().map(|node| &node.at), "the model does not have")?;
    let chosen: Vec<ValueId> = (0..plan.nodes.len()).map(ValueId).filter(|id| choice.has(plan.node(*id).at)).collect();
    let prompt = reference.input_ids()?;
    let mut align = Align { names, prompt: prompt.len(), ..Align::default() };
    check(reference, plan, &chosen, &prompt, &mut align)?;
    let dtype = reference.metadata.get("dtype").map(String::as_str);
    let numbers = numbers(dtype)?;
    let basis = if numbers.imitated { Basis::Known } else { Basis::Estimated(estimate(numbers, 0)) };
    let generated = reference.generated_ids()?.unwrap_or_default();
    let ids: Vec<u32> = prompt.iter().chain(&generated).copied().collect();
    let mut work = Work { reference, executor, oracles, ids, numbers, prompt: prompt.len(), tokens: align.tokens };
    work.tokens = work.without_crossing(&mut align).min(work.ids.len());
    align.tokens = work.tokens;
    let mut lines = Vec::with_capacity(chosen.len());
    for (i, id) in chosen.iter().enumerate() {
        progress(i, chosen.len());
        let sums = work.op(*id).await.map_err(|e| e.within(plan.node(*id).at))?;
        lines.push(judge(plan.node(*id).at, &sums, basis, Heads::of_plan(plan), Mode::Isolated));
    }
    progress(chosen.len(), chosen.len());
    align.missing = extra(reference, plan, choice);
    let storage = [numbers.storage, executor.storage()].map(|s| s.activations.to_string());
    let mut floor =
        format!("measured: every op in f64 against f32 on the same inputs, with {} (A) and {} (B) storage", storage[0], storage[1]);
    if !numbers.imitated {
        floor = format!(
            "ESTIMATED, not measured, from the type that the metadata names ({}), in which the oracle does not compute; give a float32 dump to have it measured",
            numbers.name
        );
    }
    Ok(Report::new(&align, Mode::Isolated, floor, lines))
}

/// Whether the reference has what the ops need; sets how many tokens it has.
fn check(reference: &Dump, plan: &Plan, chosen: &[ValueId], prompt: &[u32], align: &mut Align) -> Result<()> {
    if chosen.is_empty() {
        return Err(Error::invalid("isolated", "no op of the model is chosen"));
    }
    if let Some(id) = prompt.iter().find(|id| **id as usize >= plan.vocab_size) {
        let text = format!("the dump has id {id}, but the model has {} ids: it is of another model", plan.vocab_size);
        return Err(Error::invalid("input_ids", text));
    }
    let (mut lacking, mut sketched): (BTreeMap<_, Vec<usize>>, BTreeMap<_, Vec<usize>>) = Default::default();
    let mut tokens = usize::MAX;
    for id in chosen {
        let node = plan.node(*id);
        for at in node.inputs.iter().map(|input| plan.node(*input).at).chain([node.at]) {
            let Some(part) = reference.parts(at).first() else {
                lacking.entry(at.stage).or_default().extend(at.layer);
                continue;
            };
            if part.sketch {
                sketched.entry(at.stage).or_default().extend(at.layer);
                continue;
            }
            let source = plan.find(at).map_or(node, |id| plan.node(id));
            let (found, expected, what) = match at.stage.info().layout {
                Layout::Scores => (part.heads, source.width, "heads"),
                _ => (part.width, source.width, "elements per token"),
            };
            if found != expected {
                let text = format!("`{}` has {found} {what} in the dump, {expected} in the model: these are different models", at.key());
                return Err(Error::invalid("widths", text));
            }
            let steps = reference.parts(at).iter().map(|part| part.step).max().unwrap_or(0);
            tokens = tokens.min(match at.stage.info().layout {
                Layout::Rows => part.tokens,
                _ if steps > 0 => prompt.len() + steps,
                _ => part.tokens,
            });
        }
    }
    for (found, what) in [(sketched, "the dump has sketches, not values, of"), (lacking, "the dump lacks values that ops need:")] {
        let list: Vec<String> = found
            .into_iter()
            .map(|(stage, mut layers)| {
                layers.sort_unstable();
                layers.dedup();
                if layers.is_empty() { stage.to_string() } else { format!("{stage} (layers {})", super::text::ranges(&layers)) }
            })
            .collect();
        if !list.is_empty() {
            let text = format!("{what} {}; write it again with all stages, or choose stages and layers that it has", list.join(", "));
            return Err(Error::invalid("isolated", text));
        }
    }
    align.tokens = if tokens == usize::MAX { prompt.len() } else { tokens };
    if align.tokens < prompt.len() || prompt.is_empty() {
        let text = format!("the dump has values of {} of its {} prompt tokens", align.tokens, prompt.len());
        return Err(Error::invalid("tokens", text));
    }
    Ok(())
}

/// Values of the reference that the model does not compute.
fn extra(reference: &Dump, plan: &Plan, choice: &Choice) -> Vec<Missing> {
    let mut stages: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for at in reference.held().into_iter().filter(|at| choice.has(*at) && plan.find(*at).is_none()) {
        stages.entry(at.stage).or_default().extend(at.layer);
    }
    stages.into_iter().map(|(stage, layers)| Missing { stage: stage.name(), layers, side: "B" }).collect()
}

struct Work<'d, E> {
    reference: &'d Dump,
    executor: &'d E,
    oracles: &'d Oracles,
    /// Prompt and generated ids.
    ids: Vec<u32>,
    numbers: Numbers,
    prompt: usize,
    tokens: usize,
}

/// Tokens that an op is evaluated on.
struct Block {
    /// 0, or a decode step, which is one token.
    step: usize,
    /// Absolute positions.
    tokens: Range<usize>,
}

impl<E: Executor> Work<'_, E> {
    /// Tokens before the one at which a longrope model changes its factors: rows behind it were computed with keys that
    /// the dump does not hold.
    fn without_crossing(&self, align: &mut Align) -> usize {
        let limit = self.executor.plan().longrope_limit().unwrap_or(usize::MAX);
        if self.prompt <= limit && self.tokens > limit {
            align.notes.push(format!("tokens from {limit} on are left out: there the model's position encoding changes for all keys"));
            return limit;
        }
        self.tokens
    }

    /// What an op makes of the reference's values, against what the reference has.
    async fn op(&self, id: ValueId) -> Result<Sums> {
        let node = self.executor.plan().node(id);
        let mut sums = Sums::default();
        for block in self.blocks(node) {
            let mut inputs = Vec::new();
            for input in &node.inputs {
                inputs.push(self.input(node, inputs.len(), self.executor.plan().node(*input).at, &block)?);
            }
            if let Op::Embed { .. } = node.op {
                let ids: Vec<f32> = self.ids[block.tokens.clone()].iter().map(|id| *id as f32).collect();
                inputs.push(Some(Tensor::new(vec![ids.len(), 1], ids)?));
            }
            let Some(inputs) = inputs.into_iter().collect::<Option<Vec<Tensor>>>() else { continue };
            let Some(expected) = self.value(node.at, &block, block.tokens.clone())? else { continue };
            self.evaluate(id, &inputs, &expected, &block, &mut sums).await?;
        }
        Ok(sums)
    }

    /// The prompt in blocks, then each decode step by itself, as runs compute them.
    fn blocks(&self, node: &Node) -> Vec<Block> {
        let prompt = self.prompt.min(self.tokens);
        let width = if node.at.stage.info().layout == Layout::Scores { node.width * prompt } else { node.width };
        let most = (BLOCK / width.max(1)).max(1);
        let prompt_blocks = (0..prompt).step_by(most).map(|first| Block { step: 0, tokens: first..(first + most).min(prompt) });
        let steps = (prompt..self.tokens).map(|token| Block { step: token + 1 - self.prompt, tokens: token..token + 1 });
        prompt_blocks.chain(steps).collect()
    }

    /// Input `number` of an op for a block: keys and values of all positions up to its end.
    fn input(&self, node: &Node, number: usize, at: At, block: &Block) -> Result<Option<Tensor>> {
        let all = number == 1 && matches!(node.op, Op::AttnScores(_) | Op::AttnMix(_));
        self.value(at, block, if all { 0..block.tokens.end } else { block.tokens.clone() })
    }

    /// Rows `tokens` of a value, scores with the positions up to the block's end; `None` for scores of steps that the
    /// dump lacks.
    fn value(&self, at: At, block: &Block, tokens: Range<usize>) -> Result<Option<Tensor>> {
        let scores = at.stage.info().layout == Layout::Scores;
        let step = if scores { block.step } else { 0 };
        let Some(part) = self.reference.parts(at).iter().find(|part| part.step == step && !part.sketch) else { return Ok(None) };
        let mut data = Vec::new();
        if !scores {
            self.reference.read_rows(part, tokens.clone(), &mut data)?;
            return Tensor::new(vec![tokens.len(), part.width], data).map(Some);
        }
        let positions = block.tokens.end;
        if part.width < positions {
            return Err(Error::invalid("scores", format!("`{}` has {} positions, expected {positions}", at.key(), part.width)));
        }
        let rows = if step == 0 { tokens.clone() } else { 0..1 };
        let mut row = Vec::new();
        for head in 0..part.heads {
            self.reference.read_rows(part, self.in_head(part, head, &rows), &mut row)?;
            data.extend(row.chunks_exact(part.width).flat_map(|row| &row[..positions]));
        }
        Tensor::new(vec![part.heads, rows.len(), positions], data).map(Some)
    }

    fn in_head(&self, part: &Part, head: usize, rows: &Range<usize>) -> Range<usize> {
        head * part.tokens + rows.start..head * part.tokens + rows.end
    }

    async fn evaluate(&self, id: ValueId, inputs: &[Tensor], expected: &Tensor, block: &Block, sums: &mut Sums) -> Result<()> {
        let (first, Oracles { exact, rounded }) = (block.tokens.start, self.oracles);
        let long = self.executor.plan().longrope_limit().is_some_and(|limit| self.prompt > limit);
        let found = self.executor.eval(id, inputs, first, long).await?;
        if !self.numbers.imitated {
            self.add(&[expected, &found], block, sums)?;
            return Ok(());
        }
        let exact = exact.eval(id, inputs, first, long).await?;
        let [a, b] = [self.numbers.storage, self.executor.storage()].map(|s| self.oracles.rounded(s));
        let of_a = rounded[a].eval(id, inputs, first, long).await?;
        let other = if a == b { None } else { Some(rounded[b].eval(id, inputs, first, long).await?) };
        let of_b = other.as_ref().unwrap_or(&of_a);
        self.add(&[expected, &found, &exact, &of_a, of_b], block, sums)
    }

    /// Takes in rows of A, of B, and of the oracles where they were asked.
    fn add(&self, tensors: &[&Tensor], block: &Block, sums: &mut Sums) -> Result<()> {
        let [expected, found, oracles @ ..] = tensors else { return Ok(()) };
        for tensor in &tensors[1..] {
            if tensor.shape != expected.shape {
                let text = format!("expected a result of shape {:?}, found {:?}", expected.shape, tensor.shape);
                return Err(Error::device(text));
            }
        }
        let scores = expected.shape.len() == 3;
        for row in 0..expected.rows() {
            let token = block.tokens.start + row % block.tokens.len();
            let elements = if scores { token + 1 } else { expected.width() };
            let place = Place { token, head: scores.then_some(row / block.tokens.len()), elements };
            let exact = if let [exact, a, b] = oracles { Some([exact.row(row), a.row(row), b.row(row)]) } else { None };
            sums.row(place, expected.row(row), found.row(row), exact, None);
        }
        Ok(())
    }
}
