//! What a device computes in place of an op. The op, or the group it is computed in, is evaluated again, and the result is held
//! against what the oracle gives under changes that kernels are known to make: another window, a query that sees one key more,
//! keys of other positions, another position of RoPE, rows or columns one place off. A class is named only when one of them
//! reproduces the device's numbers within the rounding floor.

use super::Cause;
use super::variants::{Composed, Composer, Variant};
use crate::debug::floor::{ALLOWED, Oracles, ulp};
use crate::error::Result;
use crate::exec::{Content, Executor, Group, Part, Read, Request, Rows, Step, Tokens, Want, reads};
use crate::plan::{At, Op, Plan, Stage, ValueId};
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::ops::Range;

/// A class, and what shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// The class.
    pub cause: Cause,
    /// What was measured, in a sentence.
    pub why: String,
}

/// Every value of a sequence, as the oracle has it, and what is needed to compute others.
pub struct Scene<'a> {
    /// The oracles.
    pub oracles: &'a Oracles,
    /// Which of `Oracles::rounded` rounds as the device does.
    pub rounded: usize,
    /// The tokens.
    pub ids: &'a [u32],
    /// How many of them are the prompt.
    pub prompt: usize,
    values: BTreeMap<ValueId, Tensor>,
    long_rope: bool,
}

/// What a device gave for rows of a value.
type Blocks = Vec<(Range<usize>, Tensor)>;

impl<'a> Scene<'a> {
    /// Computes every value of `ids` in one step.
    ///
    /// # Errors
    /// Those of the oracle.
    pub async fn new<E: Executor>(oracles: &'a Oracles, device: &E, ids: &'a [u32], prompt: usize) -> Result<Self> {
        let rounded = oracles.rounded(device.storage());
        let (oracle, plan) = (&oracles.rounded[rounded], device.plan());
        let requests: Vec<Request> = plan.stages().into_iter().map(|stage| Request { stage, layers: None, want: Want::Full }).collect();
        let long_rope = plan.is_long(ids.len());
        let step = Step { tokens: Tokens::Ids(ids), rows: Rows::All, pick: None, read: Read::Nothing, long_rope, requests: &requests };
        let mut cache = oracle.new_cache(ids.len(), ids.len())?;
        let output = oracle.step(&mut cache, &step).await?;
        let full = |value: crate::exec::Observed| match value.content {
            Content::Full(tensor) => Some((plan.find(value.at)?, tensor)),
            _ => None,
        };
        Ok(Self { oracles, rounded, ids, prompt, values: output.values.into_iter().filter_map(full).collect(), long_rope })
    }

    /// The right value of `id`.
    pub fn value(&self, id: ValueId) -> Option<&Tensor> {
        self.values.get(&id)
    }

    /// Names what is wrong with the value `at` in `part` of a report of `isolated`; `None` where nothing reproduces it.
    ///
    /// # Errors
    /// What the executors report.
    pub async fn name<E: Executor>(&self, device: &E, at: At, part: Option<&str>) -> Result<Option<Named>> {
        let plan = device.plan();
        if at.stage == Stage::Sampled || part == Some("choice") {
            return Ok(Some(Named {
                cause: Cause::SamplerOrder,
                why: "what is chosen is not the highest of the device's own logits".into(),
            }));
        }
        let Some(id) = plan.find(at) else { return Ok(None) };
        if let Some(step) = part.and_then(|part| part.strip_prefix("cache.")) {
            return self.cache(device, id, step).await;
        }
        let Some((nodes, found)) = self.observed(device, id, part).await? else { return Ok(None) };
        let Some((_, again)) = self.observed(device, id, part).await? else { return Ok(None) };
        let bits = |blocks: &Blocks| -> Vec<u32> { blocks.iter().flat_map(|(_, t)| t.data.iter().map(|x| x.to_bits())).collect() };
        if bits(&found) != bits(&again) {
            return Ok(Some(Named { cause: Cause::Race, why: "the same op on the same inputs gives other bits the second time".into() }));
        }
        // What is appended is what the cache holds: rows of other positions are its fault, whichever kernel wrote them.
        if plan.node(id).op.appends() {
            let right = &self.values[&id];
            return Ok(found.iter().find_map(|(rows, value)| moved_or_damaged(rows.start, value, right)));
        }
        let rounded = &self.oracles.rounded[self.rounded];
        let whole = Composer { plan, values: &self.values, ids: self.ids, nodes: &nodes, target: id, long_rope: self.long_rope };
        let exact = whole.compose(&self.oracles.exact, Variant::Right).await?;
        let right = whole.compose(rounded, Variant::Right).await?;
        // A table of its own has the rows of an op that is evaluated alone; a run's has those of its cache.
        let own_table = part.is_none_or(|part| !part.contains('.'));
        let gap = Gap { exact: &exact, right: &right, scores: at.stage.layout().is_scores(), own_table };
        if let Some(named) = gap.by_itself(plan, id, &nodes, &found) {
            return Ok(Some(named));
        }
        // Steps that are right need no explanation.
        let mut wrong = Blocks::new();
        for block in found {
            let (mut rights, mut same) = (Vec::new(), Vec::new());
            gap.elements(std::slice::from_ref(&block), &right, Variant::Right, [&mut rights, &mut same])?;
            wrong.extend((times(&rights) > ALLOWED).then_some(block));
        }
        let found = wrong;
        let mut fits: Vec<Named> = Vec::new();
        for variant in Variant::all(plan, &nodes) {
            let (mut others, mut rights) = (Vec::new(), Vec::new());
            if variant.wraps() {
                // Around the slots of the block's own cache.
                for block in &found {
                    let values = self.until(plan, block.0.end)?;
                    let of_block = Composer { values: &values, ids: &self.ids[..block.0.end], ..whole };
                    let Ok(composed) = of_block.compose(rounded, variant).await else { continue };
                    gap.elements(std::slice::from_ref(block), &composed, variant, [&mut others, &mut rights])?;
                }
            } else {
                let Ok(composed) = whole.compose(rounded, variant).await else { continue };
                gap.elements(&found, &composed, variant, [&mut others, &mut rights])?;
            }
            let explained = !others.is_empty() && times(&others) <= ALLOWED && times(&rights) > 3.0 * ALLOWED;
            if explained && fits.iter().all(|known| known.cause != variant.cause()) {
                let why = format!("the device's numbers are those of the op {variant}, within the rounding floor");
                fits.push(Named { cause: variant.cause(), why });
            }
        }
        Ok(if fits.len() == 1 { fits.pop() } else { None })
    }

    /// The values of the first `end` tokens.
    fn until(&self, plan: &Plan, end: usize) -> Result<BTreeMap<ValueId, Tensor>> {
        let one = |(id, value): (&ValueId, &Tensor)| Ok((*id, cut(value, plan.node(*id).at.stage.layout().is_scores(), &(0..end))?));
        self.values.iter().map(one).collect()
    }

    /// What the device makes of the value, and the nodes that it computed for it; `None` where it cannot be asked so.
    async fn observed<E: Executor>(&self, device: &E, id: ValueId, part: Option<&str>) -> Result<Option<(Vec<ValueId>, Blocks)>> {
        let (count, prompt) = (self.ids.len(), self.prompt);
        let decode = || (prompt..count).map(|token| token..token + 1);
        let blocks: Vec<Range<usize>> = match part {
            None => std::iter::once(0..prompt).chain(decode()).collect(),
            Some("prompt") => std::iter::once(0..count).collect(),
            Some("decode") => {
                let first = count.saturating_sub(7);
                [(0, 4), (4, 6), (6, 7)].map(|(a, b)| first + a..(first + b).min(count)).into_iter().filter(|r| !r.is_empty()).collect()
            }
            Some(part) => {
                let Some((name, step)) = part.rsplit_once('.') else { return Ok(None) };
                let groups = device.groups()?;
                let Some(group) = groups.iter().find(|group| group.name == name && group.makes.contains(&id)) else { return Ok(None) };
                let found = self.parts(device, group, id, step).await?;
                return Ok(Some((group.nodes.clone(), found.0)));
            }
        };
        let mut found = Vec::new();
        for rows in blocks {
            let inputs = self.inputs(device.plan(), id, &rows)?;
            found.push((rows.clone(), device.eval(id, &inputs, rows.start, self.long_rope).await?));
        }
        Ok(Some((vec![id], found)))
    }

    fn inputs(&self, plan: &Plan, id: ValueId, rows: &Range<usize>) -> Result<Vec<Tensor>> {
        let node = plan.node(id);
        if let Op::Embed { .. } = node.op {
            let ids = self.ids[rows.clone()].iter().map(|id| *id as f32).collect();
            return Ok(vec![Tensor::new(vec![rows.len(), 1], ids)?]);
        }
        let one = |(i, input): (usize, &ValueId)| {
            let keys = i == 1 && node.op.reads_state().is_some();
            let rows = if keys { 0..rows.end } else { rows.clone() };
            cut(&self.values[input], plan.node(*input).at.stage.layout().is_scores(), &rows)
        };
        node.inputs.iter().enumerate().map(one).collect()
    }

    /// A group in the prompt's step or in decode, and the cache that it leaves.
    async fn parts<E: Executor>(&self, device: &E, group: &Group, id: ValueId, step: &str) -> Result<(Blocks, E::Cache)> {
        let plan = device.plan();
        let nodes: Vec<ValueId> = group.nodes.iter().copied().filter(|node| *node != id).chain([id]).collect();
        let mut cache = device.new_cache(self.ids.len(), self.prompt)?;
        let mut found = Vec::new();
        let blocks = std::iter::once(0..self.prompt).chain((self.prompt..self.ids.len()).map(|token| token..token + 1));
        for rows in blocks {
            let cut = |id: &ValueId| cut(&self.values[id], plan.node(*id).at.stage.layout().is_scores(), &rows);
            let inputs = reads(plan, &nodes).iter().map(cut).collect::<Result<Vec<Tensor>>>()?;
            let part = Part { nodes: &nodes, inputs: &inputs, ids: &self.ids[rows.clone()], long_rope: self.long_rope, together: false };
            let value = device.part(&mut cache, &part).await?;
            let is_decode = rows.start >= self.prompt;
            if is_decode == (step == "decode") {
                found.push((rows, value));
            }
            if step == "prompt" {
                break;
            }
        }
        Ok((found, cache))
    }

    /// What is wrong with what the cache holds of `id`.
    async fn cache<E: Executor>(&self, device: &E, id: ValueId, step: &str) -> Result<Option<Named>> {
        let plan = device.plan();
        let Op::Append { state, part } = plan.node(id).op else { return Ok(None) };
        let groups = device.groups()?;
        // What its state is read for in the end.
        let mixes = |node: &ValueId| match &plan.node(*node).op {
            Op::AttnMix(of) => of.state == state,
            Op::ShortConv { state: of, .. } | Op::GatedDelta { state: of, .. } => *of == state,
            _ => false,
        };
        let Some(group) = groups.iter().find(|group| group.nodes.iter().any(mixes)) else { return Ok(None) };
        let Some(target) = group.nodes.iter().copied().find(|node| mixes(node)) else { return Ok(None) };
        let (_, cache) = self.parts(device, group, target, step).await?;
        let held = device.cached(&cache, state).await?;
        let (first, Some(rows)) = (held.first, held.part(part)) else { return Ok(None) };
        let named = moved_or_damaged(first, rows, &self.values[&id]);
        let key = plan.node(id).inputs.first().copied().unwrap_or(id);
        if !group.nodes.contains(&key) || named.as_ref().is_none_or(|named| named.cause == Cause::KvPosition) {
            return Ok(named);
        }
        // The same kernel computes the key: it may be wrong before it is stored.
        let composer = Composer { plan, values: &self.values, ids: self.ids, nodes: &[key], target: key, long_rope: self.long_rope };
        for variant in Variant::all(plan, &[key]).into_iter().filter(|variant| matches!(variant, Variant::Position(_))) {
            let composed = composer.compose(&self.oracles.rounded[self.rounded], variant).await?;
            // Beyond the table there is nothing to compare.
            let end = held_end(first, rows).min(self.ids.len().saturating_sub(variant.edge()));
            let near = (first.max(composed.valid.start)..end).all(|row| near(rows.row(row - first), composed.value.row(row)));
            if near && first < end {
                let why = format!("what is cached is the key {variant}");
                return Ok(Some(Named { cause: Cause::RopePosition, why }));
            }
        }
        Ok(None)
    }
}

/// The position after the last row of a cache.
fn held_end(first: usize, rows: &Tensor) -> usize {
    first + rows.rows()
}

/// Equal but for storage in f16, which rounds by 2⁻¹¹.
fn near(a: &[f32], b: &[f32]) -> bool {
    let size = b.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    size > 0.0 && crate::debug::floor::distance(a, b) <= 1e-3 * size
}

/// Rows of a cache, the first at position `first`, against those that were put into it: at other places, or other values; `None`
/// where they are right.
pub fn moved_or_damaged(first: usize, held: &Tensor, right: &Tensor) -> Option<Named> {
    let wrong: Vec<usize> = (0..held.rows()).filter(|row| !near(held.row(*row), right.row((first + row).min(right.rows() - 1)))).collect();
    if wrong.is_empty() {
        return None;
    }
    let elsewhere = |row: &usize| (0..right.rows()).any(|other| other != first + row && near(held.row(*row), right.row(other)));
    let moved = wrong.iter().filter(|row| elsewhere(row)).count();
    // A slot that nobody wrote is 0.
    let empty = wrong.iter().filter(|row| held.row(**row).iter().all(|x| *x == 0.0)).count();
    if moved > 0 && moved + empty == wrong.len() {
        let why = format!("{moved} of {} cached rows are those of other positions, as they were put in", held.rows());
        return Some(Named { cause: Cause::KvPosition, why });
    }
    let why = format!("{} of {} cached rows are not what was put into the cache, and no other position's", wrong.len(), held.rows());
    Some(Named { cause: Cause::KvCorruption, why })
}

/// Rows of a value; of scores, with the positions that they may see.
fn cut(value: &Tensor, scores: bool, rows: &Range<usize>) -> Result<Tensor> {
    if !scores {
        let width = value.width();
        return Tensor::new(vec![rows.len(), width], value.data[rows.start * width..rows.end * width].to_vec());
    }
    let (heads, tokens, positions) = (value.shape[0], value.shape[1], value.shape[2]);
    let mut data = Vec::with_capacity(heads * rows.len() * rows.end);
    for head in 0..heads {
        for row in rows.clone() {
            let from = (head * tokens + row) * positions;
            data.extend_from_slice(&value.data[from..from + rows.end]);
        }
    }
    Tensor::new(vec![heads, rows.len(), rows.end], data)
}

/// An element of the device, the same of another value, and its floor.
type Element = (f32, f32, f64);

/// What is right, and how far it is known.
struct Gap<'a> {
    exact: &'a Composed,
    right: &'a Composed,
    scores: bool,
    own_table: bool,
}

impl Gap<'_> {
    /// Adds the elements of `blocks` against `composed`, and against what is right, over the rows that `composed` has.
    fn elements(&self, blocks: &[(Range<usize>, Tensor)], composed: &Composed, variant: Variant, to: [&mut Vec<Element>; 2]) -> Result<()> {
        let [others, rights] = to;
        for (block, found) in blocks {
            // A step of few tokens may have a table that reaches further.
            let by = if block.len() > variant.edge() { variant.edge() } else { 0 };
            let edge = if self.own_table { block.end } else { self.right.valid.end };
            let end = block.end.min(composed.valid.end).min(edge.saturating_sub(by));
            let rows = block.start.max(composed.valid.start)..end;
            if rows.is_empty() {
                continue;
            }
            let of = |value: &Tensor| cut(value, self.scores, &rows);
            let (other, exact, right) = (of(&composed.value)?, of(&self.exact.value)?, of(&self.right.value)?);
            let found = part_of(found, self.scores, rows.start - block.start, rows.len(), rows.end)?;
            let top = exact.data.iter().fold(0f32, |m, x| if x.is_finite() { m.max(x.abs()) } else { m });
            let noise = crate::debug::floor::distance(&exact.data, &right.data) / (exact.data.len().max(1) as f64).sqrt();
            let floor = noise.max(ulp(top));
            others.extend(found.data.iter().zip(&other.data).map(|(a, b)| (*a, *b, floor)));
            rights.extend(found.data.iter().zip(&right.data).map(|(a, b)| (*a, *b, floor)));
        }
        Ok(())
    }
    /// What the wrong elements show by themselves.
    fn by_itself(&self, plan: &Plan, id: ValueId, nodes: &[ValueId], found: &Blocks) -> Option<Named> {
        // A distance that is no number is wrong too.
        let right = |(a, b, floor): &Element| (f64::from(*a) - f64::from(*b)).abs() <= 8.0 * ALLOWED * floor;
        let wrong = |element: &Element| !right(element);
        let (mut missing, mut all, mut odd) = (0, 0, 0);
        let (mut is_short, mut columns) = (true, None::<Vec<[usize; 2]>>);
        for block in found {
            let (mut elements, mut none) = (Vec::new(), Vec::new());
            self.elements(std::slice::from_ref(block), self.right, Variant::Right, [&mut elements, &mut none]).ok()?;
            let width = block.1.shape.last().copied().unwrap_or(1).max(1);
            all += elements.len();
            odd += elements.iter().filter(|(a, b, _)| !a.is_finite() && b.is_finite()).count();
            let bad: Vec<usize> = (0..elements.len()).filter(|i| wrong(&elements[*i])).collect();
            missing += bad.len();
            is_short &= bad.iter().all(|i| elements[*i].0 == 0.0) && is_end(&bad, elements.len(), width);
            let columns = columns.get_or_insert_with(Vec::new);
            columns.resize(columns.len().max(width), [0; 2]);
            for (i, element) in elements.iter().enumerate().filter(|(_, element)| element.1 != 0.0) {
                columns[i % width][usize::from(wrong(element))] += 1;
            }
        }
        if odd > 0 {
            let why = format!("{odd} of {all} elements are NaN or Inf, and right ones are finite");
            let softmax = nodes.iter().any(|id| matches!(plan.node(*id).op, Op::AttnProbs(_)));
            return softmax.then_some(Named { cause: Cause::SoftmaxNan, why });
        }
        if missing > 0 && is_short && !self.scores {
            let why = format!("{missing} of {all} elements, the last ones, are exactly 0 and should not be; the others are right");
            return Some(Named { cause: Cause::DispatchSize, why });
        }
        let columns = columns?;
        let (damaged, sound) = (columns.iter().filter(|c| c[1] > 0), columns.iter().filter(|c| c[0] > 0 && c[1] == 0).count());
        // Of a key that is right some cell is; where none is, and other keys are right, it is the key.
        if matches!(plan.node(id).op, Op::AttnScores(_))
            && nodes.len() == 1
            && sound > 1
            && damaged.clone().all(|c| c[0] == 0)
            && damaged.clone().count() > 0
        {
            let why =
                format!("the scores of {} keys are wrong for every query and head, and those of {sound} keys are right", damaged.count());
            return Some(Named { cause: Cause::KvCorruption, why });
        }
        None
    }
}

/// Whether wrong elements are the last columns of every row that has any, or the last rows.
fn is_end(bad: &[usize], count: usize, width: usize) -> bool {
    let Some(first) = bad.first() else { return true };
    let rows = bad.len() == count - first && first % width == 0;
    let column = bad.iter().map(|i| i % width).min().unwrap_or(0);
    let last = bad.iter().all(|i| i % width >= column) && bad.len() < count;
    // Each of these columns is wrong in at least half of the rows: a right element may be 0.
    let enough = |c: usize| bad.iter().filter(|i| *i % width == c).count() * 2 * width >= count;
    (rows && *first > 0) || (last && column > 0 && (column..width).all(enough))
}

/// Of a block's value the rows from `skipped` on.
fn part_of(value: &Tensor, scores: bool, skipped: usize, rows: usize, positions: usize) -> Result<Tensor> {
    if !scores {
        return cut(value, false, &(skipped..skipped + rows));
    }
    let (heads, tokens, width) = (value.shape[0], value.shape[1], value.shape[2]);
    let mut data = Vec::new();
    for head in 0..heads {
        for row in skipped..skipped + rows {
            let from = (head * tokens + row) * width;
            data.extend_from_slice(&value.data[from..from + positions.min(width)]);
        }
    }
    Tensor::new(vec![heads, rows, positions.min(width)], data)
}

/// Root of the mean of squared distances in floors.
fn times(elements: &[(f32, f32, f64)]) -> f64 {
    let sum: f64 = elements.iter().map(|(a, b, floor)| ((f64::from(*a) - f64::from(*b)) / floor.max(f64::MIN_POSITIVE)).powi(2)).sum();
    let times = (sum / elements.len().max(1) as f64).sqrt();
    if times.is_nan() { f64::INFINITY } else { times }
}
