//! An op, or ops after one another, as a kernel that is wrong in a known way would compute them: the oracle on inputs that were
//! moved, or with another window. Nothing is judged here.

use super::Cause;
use crate::cpu::{CpuExecutor, Real};
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::model::DeltaHeads;
use crate::plan::edit::{Edit, Parameter, apply};
use crate::plan::{Attention, Op, Plan, ValueId};
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// A way to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// None.
    Right,
    /// Attention with this window.
    Window(Option<usize>),
    /// The query sees so many keys more, or fewer, at its own end.
    Mask {
        /// Keys.
        by: isize,
        /// The window moves along, so that it sees as many as before.
        slides: bool,
    },
    /// Keys, values or both are those of so many positions before.
    Cached {
        /// Positions.
        by: isize,
        /// Keys are.
        keys: bool,
        /// Values are.
        values: bool,
        /// What is beyond the last slot is in the first.
        wraps: bool,
    },
    /// Query heads read key and value heads in turn, not in blocks.
    HeadsInTurn,
    /// RoPE counts from so many positions later.
    Position(isize),
    /// Rows are those of so many tokens before.
    Rows(isize),
    /// Elements are those of so many places before.
    Columns(isize),
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => write!(f, "as it is"),
            Self::Window(None) => write!(f, "without a window"),
            Self::Window(Some(window)) => write!(f, "with a window of {window}"),
            Self::Mask { by, .. } if *by > 0 => write!(f, "where a query sees {by} position(s) after its own"),
            Self::Mask { by, .. } => write!(f, "where a query does not see the last {} position(s)", -by),
            Self::Cached { by, keys, values, .. } => {
                let what = match (keys, values) {
                    (true, true) => "keys and values",
                    (true, false) => "keys",
                    _ => "values",
                };
                write!(f, "with {what} of {by} position(s) before")
            }
            Self::HeadsInTurn => write!(f, "where query heads read key and value heads in turn"),
            Self::Position(by) => write!(f, "with positions counted from {by}"),
            Self::Rows(by) => write!(f, "with rows of {by} token(s) before"),
            Self::Columns(by) => write!(f, "with elements of {by} place(s) before"),
        }
    }
}

impl Variant {
    /// The class of a kernel that is wrong so.
    pub fn cause(self) -> Cause {
        match self {
            Self::Right => Cause::WrongKernel,
            Self::Window(Some(_)) => Cause::WindowOffByOne,
            Self::Window(None) => Cause::WindowPattern,
            Self::Mask { .. } => Cause::AttentionMask,
            Self::Cached { .. } => Cause::KvPosition,
            Self::HeadsInTurn => Cause::GqaMapping,
            Self::Position(_) => Cause::RopePosition,
            Self::Rows(_) | Self::Columns(_) => Cause::IndexMisaligned,
        }
    }
    /// Whether it depends on how many slots there are.
    pub fn wraps(self) -> bool {
        matches!(self, Self::Cached { wraps: true, .. })
    }
    /// Rows at the end whose positions a table of as many rows does not have.
    pub fn edge(self) -> usize {
        if let Self::Position(by) = self { by.max(0).unsigned_abs() } else { 0 }
    }
    /// Those that `nodes` can have.
    pub fn all(plan: &Plan, nodes: &[ValueId]) -> Vec<Self> {
        let mut all = Vec::new();
        if let Some(a) = nodes.iter().find_map(|id| attention(&plan.node(*id).op)) {
            if let Some(window) = a.window {
                all.extend(
                    [window.checked_sub(1).filter(|w| *w > 0), Some(window + 1)].into_iter().flatten().map(|w| Self::Window(Some(w))),
                );
                all.push(Self::Window(None));
            }
            all.extend([-1, 1, 2].map(|by| Self::Mask { by, slides: false }));
            if a.window.is_some() {
                all.extend([-1, 1, 2].map(|by| Self::Mask { by, slides: true }));
            }
            for (by, wraps) in [-2, -1, 1, 2].into_iter().flat_map(|by| [(by, false), (by, true)]) {
                all.extend([(true, true), (true, false), (false, true)].map(|(keys, values)| Self::Cached { by, keys, values, wraps }));
            }
            if a.kv_heads > 1 && a.heads > a.kv_heads {
                all.push(Self::HeadsInTurn);
            }
        }
        let of_delta =
            |id: &ValueId| matches!(&plan.node(*id).op, Op::GatedDelta { heads, .. } if heads.keys > 1 && heads.values > heads.keys);
        if nodes.iter().any(of_delta) {
            all.push(Self::HeadsInTurn);
        }
        if nodes.iter().any(|id| matches!(plan.node(*id).op, Op::Rope { .. })) {
            all.extend((-8..=8).filter(|by| *by != 0).map(Self::Position));
        }
        for by in [-2, -1, 1, 2] {
            all.extend([Self::Rows(by), Self::Columns(by)]);
        }
        all
    }
}

fn attention(op: &Op) -> Option<&Attention> {
    match op {
        Op::AttnScores(a) | Op::AttnProbs(a) | Op::AttnMix(a) => Some(a),
        _ => None,
    }
}

/// A value of a sequence, and the rows of it that are known.
pub struct Composed {
    /// All rows.
    pub value: Tensor,
    /// Those that mean something.
    pub valid: Range<usize>,
}

/// Computes the last of some nodes from the values before them.
#[derive(Clone, Copy)]
pub struct Composer<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Right values of the whole sequence.
    pub values: &'a BTreeMap<ValueId, Tensor>,
    /// Its tokens.
    pub ids: &'a [u32],
    /// What is computed, in any order.
    pub nodes: &'a [ValueId],
    /// What is wanted.
    pub target: ValueId,
    /// Longrope's long list.
    pub long_rope: bool,
}

impl Composer<'_> {
    /// The value under `variant`.
    ///
    /// # Errors
    /// Those of the oracle; where the plan cannot have the variant.
    pub async fn compose<T: Real>(&self, oracle: &CpuExecutor<T>, variant: Variant) -> Result<Composed> {
        let count = self.ids.len();
        let mut valid = 0..count;
        let other = self.other_window(variant)?;
        let other = other.as_ref().map(|plan| CpuExecutor::<T>::new(plan.clone(), oracle.storage())).transpose()?;
        let mut nodes = self.nodes.to_vec();
        nodes.sort_unstable();
        let first_attention = nodes.iter().copied().find(|id| attention(&self.plan.node(*id).op).is_some());
        let mut made: BTreeMap<ValueId, Tensor> = BTreeMap::new();
        for id in nodes {
            let node = self.plan.node(id);
            let mut inputs = match node.op {
                Op::Embed { .. } => vec![Tensor::new(vec![count, 1], self.ids.iter().map(|id| *id as f32).collect())?],
                _ => node
                    .inputs
                    .iter()
                    .map(|input| made.get(input).or_else(|| self.values.get(input)).cloned())
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| Error::plan("a value is not there"))?,
            };
            let is_attention = attention(&node.op).is_some();
            match (variant, &node.op) {
                (Variant::Mask { by, .. }, _) if first_attention == Some(id) => {
                    let scores = !matches!(node.op, Op::AttnScores(_));
                    inputs[0] = if scores { tokens_moved(&inputs[0], by) } else { moved(&inputs[0], by) };
                }
                (Variant::Cached { by, keys: true, wraps, .. }, Op::AttnScores(_)) => inputs[1] = slots_moved(&inputs[1], by, wraps),
                (Variant::Cached { by, values: true, wraps, .. }, Op::AttnMix(_)) => inputs[1] = slots_moved(&inputs[1], by, wraps),
                (Variant::HeadsInTurn, Op::AttnScores(a)) => inputs[0] = heads(&inputs[0], a, false),
                (Variant::HeadsInTurn, Op::AttnMix(a)) if first_attention == Some(id) => inputs[0] = head_planes(&inputs[0], a, false),
                (Variant::HeadsInTurn, Op::GatedDelta { heads, .. }) => {
                    let parts = [(heads.key_width(), heads.value_dim), (heads.key_width() + heads.value_width(), 1)];
                    let last = (parts[1].0 + heads.values, 1);
                    [parts[0], parts[1], last].into_iter().for_each(|part| value_heads(&mut inputs[1], heads, part, false));
                }
                _ => {}
            }
            let executor = if is_attention { other.as_ref().unwrap_or(oracle) } else { oracle };
            let mut value = match (variant, &node.op) {
                (Variant::Position(by), Op::Rope { .. }) => {
                    let skipped = by.min(0).unsigned_abs();
                    valid.start = valid.start.max(skipped);
                    let rows = rows_from(&inputs[0], skipped)?;
                    let turned = executor.eval(id, &[rows], by.max(0).unsigned_abs(), self.long_rope).await?;
                    // Rows that would stand before position 0 stay as they are.
                    let mut value = inputs[0].clone();
                    value.data[skipped * turned.width()..].copy_from_slice(&turned.data);
                    value
                }
                _ => executor.eval(id, &inputs, 0, self.long_rope).await?,
            };
            if let (Variant::HeadsInTurn, Op::AttnMix(a)) = (variant, &node.op) {
                value = heads(&value, a, true);
            }
            if let (Variant::HeadsInTurn, Op::GatedDelta { heads, .. }) = (variant, &node.op) {
                value_heads(&mut value, heads, (0, heads.value_dim), true);
            }
            if let (Variant::HeadsInTurn, Op::AttnScores(a)) = (variant, &node.op)
                && id == self.target
            {
                value = head_planes(&value, a, true);
            }
            made.insert(id, value);
        }
        let mut value = made.remove(&self.target).ok_or_else(|| Error::plan("the target is not computed"))?;
        let scores = value.shape.len() == 3;
        match variant {
            Variant::Mask { by, .. } if first_attention.is_some() => {
                value = if scores { tokens_moved(&value, -by) } else { moved(&value, -by) };
                valid = if by > 0 { 0..count.saturating_sub(by.unsigned_abs()) } else { by.unsigned_abs()..count };
            }
            Variant::Rows(by) => {
                value = if scores { tokens_moved(&value, by) } else { moved(&value, by) };
                valid = by.max(0).unsigned_abs()..count - by.min(0).unsigned_abs();
            }
            Variant::Columns(by) => columns_moved(&mut value, by),
            _ => {}
        }
        Ok(Composed { value, valid })
    }

    /// The plan with the variant's window, which for a mask goes with the query.
    fn other_window(&self, variant: Variant) -> Result<Option<Plan>> {
        let Some((at, a)) = self.nodes.iter().find_map(|id| Some((self.plan.node(*id).at, attention(&self.plan.node(*id).op)?))) else {
            return Ok(None);
        };
        let window = match variant {
            Variant::Window(window) => window,
            Variant::Mask { by, slides: false } if a.window.is_some() => {
                a.window.and_then(|window| window.checked_add_signed(by)).filter(|w| *w > 0)
            }
            _ => return Ok(None),
        };
        apply(self.plan, &[Edit::Parameter { at, to: Parameter::Window(window) }]).map(Some)
    }
}

/// Row t is what row t − by was; 0 where there was none.
fn moved(value: &Tensor, by: isize) -> Tensor {
    let (rows, width) = (value.rows(), value.width());
    let mut to = value.clone();
    for row in 0..rows {
        let out = &mut to.data[row * width..(row + 1) * width];
        match row.checked_add_signed(-by).filter(|from| *from < rows) {
            Some(from) => out.copy_from_slice(&value.data[from * width..(from + 1) * width]),
            None => out.fill(0.0),
        }
    }
    to
}

/// Likewise, and around.
fn slots_moved(value: &Tensor, by: isize, wraps: bool) -> Tensor {
    if !wraps {
        return moved(value, by);
    }
    let (rows, width) = (value.rows().max(1), value.width());
    let mut to = value.clone();
    to.data.rotate_right(by.rem_euclid(rows as isize).unsigned_abs() * width);
    to
}

/// Likewise of scores, whose rows are tokens of heads.
fn tokens_moved(value: &Tensor, by: isize) -> Tensor {
    let [heads, tokens, positions] = value.shape[..] else { return value.clone() };
    let mut to = value.clone();
    for head in 0..heads {
        for token in 0..tokens {
            let at = (head * tokens + token) * positions;
            match token.checked_add_signed(-by).filter(|from| *from < tokens) {
                Some(from) => {
                    let from = (head * tokens + from) * positions;
                    to.data[at..at + positions].copy_from_slice(&value.data[from..from + positions]);
                }
                None => to.data[at..at + positions].fill(0.0),
            }
        }
    }
    to
}

fn columns_moved(value: &mut Tensor, by: isize) {
    let width = value.shape.last().copied().unwrap_or(1).max(1);
    let by = by.rem_euclid(width as isize).unsigned_abs();
    value.data.chunks_mut(width).for_each(|row| row.rotate_right(by.min(row.len())));
}

fn rows_from(value: &Tensor, first: usize) -> Result<Tensor> {
    let width = value.width();
    Tensor::new(vec![value.rows() - first.min(value.rows()), width], value.data[(first * width).min(value.data.len())..].to_vec())
}

/// Where the head that reads key head h mod kv_heads stands among those that read it in blocks.
fn place(head: usize, a: &Attention) -> usize {
    head % a.kv_heads * (a.heads / a.kv_heads) + head / a.kv_heads
}

/// Elements of a delta rule's value heads, so many each, from some element of the rows on, each head at the place of one that has the
/// key head which it has in turn, or back.
fn value_heads(value: &mut Tensor, of: &DeltaHeads, (first, width): (usize, usize), back: bool) {
    let row = value.width().max(1);
    for out in value.data.chunks_mut(row) {
        let from = out.to_vec();
        for head in 0..of.values {
            let place = head % of.keys * (of.values / of.keys) + head / of.keys;
            let (x, y) = if back { (place, head) } else { (head, place) };
            out[first + y * width..][..width].copy_from_slice(&from[first + x * width..][..width]);
        }
    }
}

/// Rows of heads, each at its place, or back.
fn heads(value: &Tensor, a: &Attention, back: bool) -> Tensor {
    let mut to = value.clone();
    for (from, out) in value.data.chunks(a.heads * a.head_dim).zip(to.data.chunks_mut(a.heads * a.head_dim)) {
        for head in 0..a.heads {
            let (x, y) = if back { (place(head, a), head) } else { (head, place(head, a)) };
            out[y * a.head_dim..(y + 1) * a.head_dim].copy_from_slice(&from[x * a.head_dim..(x + 1) * a.head_dim]);
        }
    }
    to
}

/// Likewise of scores.
fn head_planes(value: &Tensor, a: &Attention, back: bool) -> Tensor {
    let size = value.data.len() / a.heads.max(1);
    let mut to = value.clone();
    for head in 0..a.heads {
        let (x, y) = if back { (place(head, a), head) } else { (head, place(head, a)) };
        to.data[y * size..(y + 1) * size].copy_from_slice(&value.data[x * size..(x + 1) * size]);
    }
    to
}
