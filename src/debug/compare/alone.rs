//! Evaluating parts of a model on a reference's values: single ops in the steps of the run, and whole groups of ops with a
//! cache, in prompt chunks and in decode.

use super::sums::{Place, Sums};
use super::{Align, StageLine, held_as};
use crate::debug::dump::{Dump, Part as DumpPart};
use crate::debug::floor::{Numbers, Oracles, further_rows, of_storage};
use crate::error::{Error, Result};
use crate::exec::{Cached, DECODE_TOKENS, Executor, Group, Part, Pick, Storage, reads};
use crate::plan::{At, Node, Op, Stage, StateId, StatePart, ValueId};
use crate::tensor::Tensor;
use std::ops::Range;

/// Most elements of an op's output that are computed at once, unless one token has more.
const BLOCK: usize = 1 << 22;
/// Candidates that are asked of a choice, where a vocabulary has them.
const TOP: usize = 40;

pub(super) struct Work<'d, E> {
    pub reference: &'d Dump,
    pub executor: &'d E,
    pub oracles: &'d Oracles,
    /// Prompt and generated ids.
    pub ids: Vec<u32>,
    pub numbers: Numbers,
    pub prompt: usize,
    pub tokens: usize,
    /// The token at which a longrope model changed its factors.
    pub crossing: Option<usize>,
}

/// The node that appends, the state, and its part.
type Appended = (ValueId, StateId, StatePart);

/// Tokens of the steps in which groups are evaluated as steps of several sequences are: as many as read weights once in one way,
/// and in the other, which fill more than one tile of matrix units.
const TOGETHER: [usize; 2] = [3, 21];

/// Tokens that are computed together.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// 0, or a decode step, which is one token.
    step: usize,
    /// Absolute positions.
    tokens: Range<usize>,
}

/// What a group of nodes made.
#[derive(Default)]
pub(super) struct Whole {
    /// In steps computed as prompts are, and as decode is.
    pub sums: [Sums; 2],
    /// For what was appended to each part of a state: what the cache held of it after the prompt, and after decode.
    pub cached: Vec<(ValueId, [Sums; 2])>,
}

/// Caches that are used again from group to group: the executor's, for steps of one sequence and as of several, and the oracles'.
pub(super) struct Caches<C> {
    executor: [Option<C>; 2],
    exact: Option<crate::cpu::CpuCache<f64>>,
    rounded: Vec<crate::cpu::CpuCache<f32>>,
}

impl<C> Default for Caches<C> {
    fn default() -> Self {
        Self { executor: [None, None], exact: None, rounded: Vec::new() }
    }
}

impl<E: Executor> Work<'_, E> {
    /// What an op makes of the reference's values in the run's own steps, against what the reference has.
    pub async fn op(&self, id: ValueId) -> Result<Sums> {
        self.blocks_of(id, &self.blocks(self.executor.plan().node(id))).await
    }

    /// Likewise, in these blocks.
    pub async fn blocks_of(&self, id: ValueId, blocks: &[Block]) -> Result<Sums> {
        let node = self.executor.plan().node(id);
        let history = node.op.reads_state().is_some();
        let mut sums = Sums::default();
        for block in blocks.iter().filter(|block| !(history && self.is_after(block.tokens.start))) {
            let mut inputs = Vec::new();
            for input in &node.inputs {
                inputs.push(self.input(node, inputs.len(), self.executor.plan().node(*input).at, block)?);
            }
            if let Op::Embed { .. } = node.op {
                let ids: Vec<f32> = self.ids[block.tokens.clone()].iter().map(|id| *id as f32).collect();
                inputs.push(Some(Tensor::new(vec![ids.len(), 1], ids)?));
            }
            let Some(inputs) = inputs.into_iter().collect::<Option<Vec<Tensor>>>() else { continue };
            let Some(expected) = self.value(node.at, block, block.tokens.clone())? else { continue };
            self.evaluate(id, &inputs, &expected, block, &mut sums).await?;
        }
        Ok(sums)
    }

    /// Whether a token was computed with the other factors of a longrope model.
    fn is_after(&self, token: usize) -> bool {
        self.crossing.is_some_and(|limit| token >= limit)
    }
    fn long(&self, token: usize) -> bool {
        self.is_after(token) || self.executor.plan().longrope_limit().is_some_and(|limit| self.prompt > limit)
    }

    /// The prompt in blocks, then each decode step by itself, as runs compute them.
    fn blocks(&self, node: &Node) -> Vec<Block> {
        let prompt = self.prompt.min(self.tokens);
        let of_token = usize::try_from(node.at.stage.layout().elements(node.width, 1, prompt)).unwrap_or(usize::MAX);
        let most = (BLOCK / of_token.max(1)).max(1);
        let prompt_blocks = (0..prompt).step_by(most).map(|first| Block { step: 0, tokens: first..(first + most).min(prompt) });
        prompt_blocks.chain((prompt..self.tokens).map(|token| self.decode_step(token))).collect()
    }
    fn decode_step(&self, token: usize) -> Block {
        Block { step: token + 1 - self.prompt, tokens: token..token + 1 }
    }

    /// The last tokens in steps computed as decode is; where the prompt is that short, all of them as a prompt is computed.
    pub fn other_sizes(&self) -> Vec<(Vec<Block>, &'static str)> {
        let mut first = self.tokens.saturating_sub(7);
        let mut few = Vec::new();
        for size in [DECODE_TOKENS, 2, 1] {
            if first + size <= self.tokens {
                few.push(Block { step: 0, tokens: first..first + size });
                first += size;
            }
        }
        let mut sizes = vec![(few, "decode")];
        let end = self.crossing.unwrap_or(self.tokens);
        if self.prompt <= DECODE_TOKENS && end > DECODE_TOKENS {
            sizes.push((vec![Block { step: 0, tokens: 0..end }], "prompt"));
        }
        sizes
    }

    /// The steps in which groups are evaluated: the prompt in several chunks and its last tokens a few at a time, as a
    /// later turn is read, then each decode step. Chunks hold at most `BLOCK` scores of `heads`.
    fn steps(&self, heads: usize, tokens: usize) -> Vec<Block> {
        let prompt = self.prompt.min(tokens);
        let few: &[usize] = match prompt {
            0..=1 => &[],
            2..=7 => &[1],
            // What is left is enough to be computed as a prompt is.
            8..=12 => &[2, 1],
            _ => &[DECODE_TOKENS, 2, 1],
        };
        let rest = prompt - few.iter().sum::<usize>();
        let most = (BLOCK / (heads * tokens).max(1)).max(DECODE_TOKENS + 1);
        let chunk = if rest > 3 * DECODE_TOKENS { rest.div_ceil(3) } else { rest }.clamp(1, most);
        let mut blocks: Vec<Block> =
            (0..rest).step_by(chunk).map(|first| Block { step: 0, tokens: first..(first + chunk).min(rest) }).collect();
        let mut first = rest;
        for size in few {
            blocks.push(Block { step: 0, tokens: first..first + size });
            first += size;
        }
        blocks.extend((prompt..tokens).map(|token| self.decode_step(token)));
        blocks
    }

    /// What `nodes` make of the reference's values in steps that nobody watches, and what they leave in the cache.
    pub async fn whole(&self, nodes: &[ValueId], caches: &mut Caches<E::Cache>) -> Result<Whole> {
        let plan = self.executor.plan();
        let appended: Vec<Appended> = nodes.iter().filter_map(|id| self.appends(*id)).collect();
        // The dump holds no keys and values of tokens before the factors changed, as they are afterwards.
        let history = nodes.iter().any(|id| plan.node(*id).op.appends() || plan.node(*id).op.reads_state().is_some());
        let tokens = if history { self.crossing.unwrap_or(self.tokens).min(self.tokens) } else { self.tokens };
        let heads = plan.nodes.iter().filter_map(|node| node.at.stage.layout().heads(node.width)).max();
        let steps = self.steps(heads.unwrap_or(1), tokens);
        self.restart(caches, &steps, false)?;
        let cached = appended.iter().filter(|(id, ..)| self.holds(*id)).map(|(id, ..)| (*id, Default::default())).collect();
        let mut whole = Whole { cached, ..Whole::default() };
        let is_decode = |block: &Block| block.tokens.len() <= DECODE_TOKENS;
        for (i, block) in steps.iter().enumerate() {
            if !self.block(nodes, block, false, caches, &mut whole.sums[usize::from(is_decode(block))]).await? {
                break;
            }
            let next_is_decode = steps.get(i + 1).is_none_or(is_decode);
            let last_of_prompt = !is_decode(block) && next_is_decode;
            if last_of_prompt || i + 1 == steps.len() {
                self.read_cache(caches, &appended, &mut whole, usize::from(is_decode(block))).await?;
            }
        }
        Ok(whole)
    }

    /// What `nodes` make of the reference's first values as steps of several sequences compute them.
    pub async fn together(&self, nodes: &[ValueId], caches: &mut Caches<E::Cache>) -> Result<Sums> {
        let tokens = self.crossing.unwrap_or(self.tokens).min(self.tokens);
        let (mut steps, mut first) = (Vec::new(), 0);
        for size in TOGETHER {
            let end = (first + size).min(tokens);
            steps.extend((end > first).then_some(Block { step: 0, tokens: first..end }));
            first = end;
        }
        self.restart(caches, &steps, true)?;
        let mut sums = Sums::default();
        for block in &steps {
            if !self.block(nodes, block, true, caches, &mut sums).await? {
                break;
            }
        }
        Ok(sums)
    }

    /// Evaluates `nodes` on a block of the reference's values; false where it lacks some.
    async fn block(
        &self,
        nodes: &[ValueId],
        block: &Block,
        together: bool,
        caches: &mut Caches<E::Cache>,
        sums: &mut Sums,
    ) -> Result<bool> {
        let plan = self.executor.plan();
        let of = |id: ValueId| self.value(plan.node(id).at, block, block.tokens.clone());
        let inputs = reads(plan, nodes).into_iter().map(of).collect::<Result<Option<Vec<Tensor>>>>()?;
        let expected = nodes.last().map_or(Ok(None), |id| of(*id))?;
        let (Some(inputs), Some(expected)) = (inputs, expected) else { return Ok(false) };
        let part =
            Part { nodes, inputs: &inputs, ids: &self.ids[block.tokens.clone()], long_rope: self.long(block.tokens.start), together };
        self.run_part(&part, &expected, block, caches, sums).await?;
        Ok(true)
    }

    fn holds(&self, id: ValueId) -> bool {
        let plan = self.executor.plan();
        self.reference.parts(held_as(self.reference, plan, plan.node(id).at)).first().is_some_and(|part| !part.sketch)
    }

    /// What a node appends, if it does.
    fn appends(&self, id: ValueId) -> Option<Appended> {
        match self.executor.plan().node(id).op {
            Op::Append { state, part } => Some((id, state, part)),
            _ => None,
        }
    }

    /// Empty caches for these steps.
    fn restart(&self, caches: &mut Caches<E::Cache>, steps: &[Block], together: bool) -> Result<()> {
        let chunk = steps.iter().map(|block| block.tokens.len()).max().unwrap_or(1);
        let capacity = if together { TOGETHER.iter().sum::<usize>().min(self.tokens) } else { self.tokens };
        let cache = &mut caches.executor[usize::from(together)];
        // Sizes differ only where the factors of a longrope model change.
        let emptied = cache.as_mut().is_some_and(|cache| self.crossing.is_none() && self.executor.truncate(cache, 0));
        if !emptied {
            *cache = Some(self.executor.new_cache(capacity, chunk)?);
        }
        caches.exact = Some(self.oracles.exact.new_cache(capacity, chunk)?);
        caches.rounded = self.oracles.rounded.iter().map(|oracle| oracle.new_cache(capacity, chunk)).collect::<Result<_>>()?;
        Ok(())
    }

    async fn run_part(
        &self,
        part: &Part<'_>,
        expected: &Tensor,
        block: &Block,
        caches: &mut Caches<E::Cache>,
        sums: &mut Sums,
    ) -> Result<()> {
        let none = || Error::invalid("cache", "there is none");
        let found = self.executor.part(caches.executor[usize::from(part.together)].as_mut().ok_or_else(none)?, part).await?;
        if !self.numbers.imitated {
            return self.add(&[expected, &found], block, sums);
        }
        let exact = self.oracles.exact.part(caches.exact.as_mut().ok_or_else(none)?, part).await?;
        let mut rounded = Vec::with_capacity(caches.rounded.len());
        for (oracle, cache) in self.oracles.rounded.iter().zip(&mut caches.rounded) {
            rounded.push(oracle.part(cache, part).await?);
        }
        let worse = |storage| {
            let [first, second] = of_storage(&self.oracles.rounded, storage);
            further_rows(&exact, rounded[first].clone(), &rounded[second])
        };
        let [a, b] = [self.numbers.storage, self.executor.storage()].map(worse);
        self.add(&[expected, &found, &exact, &a, &b], block, sums)
    }

    /// Holds what the cache has against the reference's keys and values: after the prompt, and at the end. The floor is that of
    /// what the oracles' caches hold, as keys may be computed on the way into the cache.
    async fn read_cache(&self, caches: &Caches<E::Cache>, appended: &[Appended], whole: &mut Whole, when: usize) -> Result<()> {
        let [Some(cache), _] = &caches.executor else { return Ok(()) };
        let end = self.executor.len(cache);
        let mut last: Option<(StateId, Cached)> = None;
        let sides = [self.numbers.storage, self.executor.storage()].map(|s| of_storage(&self.oracles.rounded, s));
        for (id, state, of) in appended {
            let Some((_, sums)) = whole.cached.iter_mut().find(|(known, _)| known == id) else { continue };
            if last.as_ref().is_none_or(|(known, _)| known != state) {
                last = Some((*state, self.executor.cached(cache, *state).await?));
            }
            let Some((_, cached)) = &last else { continue };
            let absent = || Error::device(format!("the cache has no {}", of.name()));
            let found = cached.part(*of).ok_or_else(absent)?;
            let block = Block { step: 0, tokens: cached.first..end };
            let Some(expected) = self.value(self.executor.plan().node(*id).at, &block, block.tokens.clone())? else { continue };
            if found.shape != expected.shape {
                let text = format!("the cache holds {:?} of {:?}", found.shape, expected.shape);
                return Err(Error::device(text));
            }
            let part = |cached: Cached| cached.part(*of).cloned().ok_or_else(absent);
            let oracles = match (&caches.exact, self.numbers.imitated) {
                (Some(exact), true) => {
                    let exact = part(self.oracles.exact.cached(exact, *state).await?)?;
                    let mut worse = Vec::new();
                    for [first, second] in sides {
                        let first = part(self.oracles.rounded[first].cached(&caches.rounded[first], *state).await?)?;
                        let second = part(self.oracles.rounded[second].cached(&caches.rounded[second], *state).await?)?;
                        worse.push(further_rows(&exact, first, &second));
                    }
                    let [a, b] = <[Tensor; 2]>::try_from(worse).map_err(|_| absent())?;
                    Some([exact, a, b])
                }
                _ => None,
            };
            for (row, token) in block.tokens.clone().enumerate() {
                let right = expected.row(row);
                let exact = oracles.as_ref().map(|oracles| oracles.each_ref().map(|rows| rows.row(token)));
                sums[when].row(Place { token, head: None, elements: right.len() }, right, found.row(row), exact, None);
            }
        }
        Ok(())
    }

    /// The choice among the reference's logits, greedy and of the highest, at the end of the prompt and of all.
    pub async fn choices(&self, id: ValueId, caches: &mut Caches<E::Cache>) -> Result<StageLine> {
        let at = self.executor.plan().node(id).at;
        let mut line = StageLine { part: Some("choice".into()), ..StageLine::new(At { stage: Stage::Sampled, layer: None }) };
        if caches.executor[0].is_none() {
            self.restart(caches, &[Block { step: 0, tokens: 0..1 }], false)?;
        }
        let [Some(cache), _] = &mut caches.executor else { return Ok(line) };
        let exact = &mut self.oracles.exact.new_cache(1, 1)?;
        let rules = Pick { valid: self.executor.plan().vocab_size };
        for token in std::collections::BTreeSet::from([self.prompt - 1, self.tokens - 1]) {
            let block = Block { step: 0, tokens: token..token + 1 };
            let Some(logits) = self.value(at, &block, block.tokens.clone())? else { continue };
            for k in [1, TOP.min(rules.valid)] {
                let found = self.executor.choose(cache, &logits.data, rules, k).await?;
                let right = self.oracles.exact.choose(exact, &logits.data, rules, k).await?;
                line.choice(token, [&right.top, &found.top], [right.next, found.next]);
            }
        }
        Ok(line)
    }

    /// Says what the lines cover.
    pub fn covered(&self, align: &mut Align, groups: &[Group]) {
        if groups.is_empty() {
            align.covers.push("the ops, which compute the same watched or not".into());
            return;
        }
        let fused: std::collections::BTreeSet<&str> =
            groups.iter().filter(|group| group.nodes.len() > 1).map(|group| group.name.as_str()).collect();
        align.covers.push("ops as a watched run computes them".into());
        let fused: Vec<&str> = fused.into_iter().collect();
        let fused = if fused.is_empty() { String::new() } else { format!("{} and ", fused.join(", ")) };
        align
            .covers
            .push(format!("{fused}matrix products as an unwatched run computes them, in prompt, decode and steps of several sequences"));
        align.covers.push("the cache, and the choice among logits".into());
    }

    /// Input `number` of an op for a block: keys and values of all positions up to its end.
    fn input(&self, node: &Node, number: usize, at: At, block: &Block) -> Result<Option<Tensor>> {
        let all = number == 1 && node.op.reads_state().is_some();
        self.value(at, block, if all { 0..block.tokens.end } else { block.tokens.clone() })
    }

    /// Rows `tokens` of a value, scores with the positions up to the block's end; `None` for scores of steps that the
    /// dump lacks.
    fn value(&self, at: At, block: &Block, tokens: Range<usize>) -> Result<Option<Tensor>> {
        let at = held_as(self.reference, self.executor.plan(), at);
        let scores = at.stage.layout().is_scores();
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
            self.reference.read_rows(part, in_head(part, head, &rows), &mut row)?;
            data.extend(row.chunks_exact(part.width).flat_map(|row| &row[..positions]));
        }
        Tensor::new(vec![part.heads, rows.len(), positions], data).map(Some)
    }

    async fn evaluate(&self, id: ValueId, inputs: &[Tensor], expected: &Tensor, block: &Block, sums: &mut Sums) -> Result<()> {
        let (first, exact) = (block.tokens.start, &self.oracles.exact);
        let long = self.long(first);
        let found = self.executor.eval(id, inputs, first, long).await?;
        if !self.numbers.imitated {
            self.add(&[expected, &found], block, sums)?;
            return Ok(());
        }
        let exact = exact.eval(id, inputs, first, long).await?;
        let [a, b] = [self.numbers.storage, self.executor.storage()];
        let of_a = self.worse(id, inputs, &exact, a, first).await?;
        let other = if a == b { None } else { Some(self.worse(id, inputs, &exact, b, first).await?) };
        let of_b = other.as_ref().unwrap_or(&of_a);
        self.add(&[expected, &found, &exact, &of_a, of_b], block, sums)
    }

    /// What the oracles in f32 with this storage make of an op: of each row what is further from the exact one.
    async fn worse(&self, id: ValueId, inputs: &[Tensor], exact: &Tensor, storage: Storage, first: usize) -> Result<Tensor> {
        let [one, other] = self.oracles.both(storage);
        let one = one.eval(id, inputs, first, self.long(first)).await?;
        Ok(further_rows(exact, one, &other.eval(id, inputs, first, self.long(first)).await?))
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

fn in_head(part: &DumpPart, head: usize, rows: &Range<usize>) -> Range<usize> {
    head * part.tokens + rows.start..head * part.tokens + rows.end
}
