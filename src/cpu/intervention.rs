//! y = 0, factor · x, x + factor · g or g at the chosen tokens, heads and elements; x everywhere else
//!
//! g is given: one row for every token, or a row for each (activation patching, steering vectors and ablation, as in
//! arXiv 2309.16042). Of scores only cells that their token sees are changed, so that masked ones stay 0.

use super::attn_scores::visible;
use super::real::Real;
use crate::plan::intervention::{Change, Intervention, holds};
use crate::plan::{Node, Op};

/// Where the rows of a value stand.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// Tokens.
    pub count: usize,
    /// Position of the first.
    pub first: usize,
    /// Position of the first key, of scores.
    pub keys_first: usize,
}

/// Changes the value `x` of `node`, [T, width] or [heads, T, positions]; `head_dim` is the width of its heads, if it has any.
pub fn intervention<T: Real>(x: &mut [T], change: &Intervention, node: &Node, head_dim: Option<usize>, rows: Rows) {
    let layout = node.at.stage.layout();
    let columns = change.columns(layout, node.width, head_dim);
    let width = x.len() / layout.rows(node.width, rows.count).max(1);
    for (row, x) in x.chunks_exact_mut(width.max(1)).enumerate() {
        let (head, token) = layout.place(row, rows.count);
        let at = rows.first + token;
        if !holds(change.tokens.as_deref(), at) {
            continue;
        }
        let seen = match &node.op {
            Op::AttnScores(a) | Op::AttnProbs(a) => visible(a, at, rows.keys_first, width),
            _ => 0..width,
        };
        for i in seen {
            // Elements of scores are positions.
            let column = if head.is_some() { rows.keys_first + i } else { i };
            let chosen = match head {
                Some(head) => columns.as_ref().is_none_or(|c| c[head]) && holds(change.dims.as_deref(), column),
                None => columns.as_ref().is_none_or(|c| c[i]),
            };
            if chosen {
                x[i] = changed(x[i], change, head.unwrap_or(0), at, column);
            }
        }
    }
}

/// What becomes of an element of token `at`; `column` is its element or, of scores, the position that is attended to.
fn changed<T: Real>(x: T, change: &Intervention, head: usize, at: usize, column: usize) -> T {
    let given = || {
        let Some(given) = change.given() else { return T::default() };
        let (per_token, per_head) = given.strides();
        T::from_f32(given.tensor.data[head * per_head + (at - given.first) * per_token + column])
    };
    match &change.change {
        Change::Zero => T::default(),
        Change::Scale(factor) => T::from_f64(*factor) * x,
        Change::Add { factor, .. } => x + T::from_f64(*factor) * given(),
        Change::Set(_) => given(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::intervention::Given;
    use crate::plan::{At, Attention, Stage, StateId};
    use crate::tensor::Tensor;
    use std::sync::Arc;

    fn given(first: usize, shape: &[usize]) -> Given {
        let data = (0..shape.iter().product::<usize>()).map(|i| 100.0 + i as f32).collect();
        Given { name: "from:x".into(), first, tensor: Arc::new(Tensor::new(shape.to_vec(), data).unwrap()) }
    }
    /// Tokens 5, 6 and 7 of two heads of two elements each.
    fn rows(change: Change, choose: impl FnOnce(&mut Intervention)) -> Vec<f32> {
        let node = Node {
            op: Op::Add { multiplier: 1.0 },
            inputs: Vec::new(),
            at: At { stage: Stage::AttnCoreOut, layer: Some(0) },
            width: 4,
            interventions: Vec::new(),
        };
        let mut one = Intervention::of(change);
        choose(&mut one);
        let mut x: Vec<f32> = (0..12).map(|i| i as f32).collect();
        // Of an op by itself, keys begin where its rows do; this value has none.
        intervention(&mut x, &one, &node, Some(2), Rows { count: 3, first: 5, keys_first: 5 });
        x
    }

    #[test]
    fn rows_by_hand() {
        let zeroed = rows(Change::Zero, |i| i.tokens = Some(vec![(6, 6)]));
        assert_eq!(zeroed, [0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 8.0, 9.0, 10.0, 11.0]);
        let scaled = rows(Change::Scale(-2.0), |i| (i.heads, i.dims) = (Some(vec![(1, 1)]), Some(vec![(0, 0)])));
        assert_eq!(scaled, [0.0, 1.0, -4.0, 3.0, 4.0, 5.0, -12.0, 7.0, 8.0, 9.0, -20.0, 11.0]);
        let steered = rows(Change::Add { given: given(0, &[4]), factor: 0.5 }, |i| i.dims = Some(vec![(3, usize::MAX)]));
        assert_eq!(steered, [0.0, 1.0, 2.0, 54.5, 4.0, 5.0, 6.0, 58.5, 8.0, 9.0, 10.0, 62.5]);
        let set = rows(Change::Set(given(6, &[2, 4])), |i| i.tokens = Some(vec![(7, 7)]));
        assert_eq!(set[..8], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(set[8..], [104.0, 105.0, 106.0, 107.0]);
    }

    #[test]
    fn zero_is_zero_whatever_was_there() {
        let mut x = [f32::NAN, f32::INFINITY];
        let at = At { stage: Stage::LayerOut, layer: Some(0) };
        let node = Node { op: Op::Add { multiplier: 1.0 }, inputs: Vec::new(), at, width: 2, interventions: Vec::new() };
        intervention(&mut x, &Intervention::of(Change::Zero), &node, None, Rows { count: 1, first: 0, keys_first: 0 });
        assert_eq!(x, [0.0, 0.0]);
    }

    #[test]
    fn masked_cells_of_scores_stay() {
        let a =
            Attention { state: StateId(0), heads: 2, kv_heads: 1, head_dim: 1, scale: 1.0, softcap: None, window: Some(2), sinks: None };
        let at = At { stage: Stage::AttnProbs, layer: Some(0) };
        let node = Node { op: Op::AttnProbs(a), inputs: Vec::new(), at, width: 2, interventions: Vec::new() };
        // Two queries at positions 1 and 2 of three.
        let mut x = [1.0f32; 12];
        let mut one = Intervention::of(Change::Set(given(1, &[2, 2, 3])));
        one.tokens = Some(vec![(1, 2)]);
        one.heads = Some(vec![(1, 1)]);
        intervention(&mut x, &one, &node, Some(1), Rows { count: 2, first: 1, keys_first: 0 });
        assert_eq!(x, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 106.0, 107.0, 1.0, 1.0, 110.0, 111.0]);
        (one.change, one.dims) = (Change::Zero, Some(vec![(2, 2)]));
        intervention(&mut x, &one, &node, Some(1), Rows { count: 2, first: 1, keys_first: 0 });
        assert_eq!(x[6..], [106.0, 107.0, 1.0, 1.0, 110.0, 0.0]);
    }
}
