//! score[h, t, s] = cap(q[t, h] · k[s, h / (heads / kv_heads)] · scale) where key s is visible to query t, else 0
//!
//! Vaswani et al. (arXiv 1706.03762); grouped heads: Ainslie et al. (arXiv 2305.13245); cap(x) = c·tanh(x / c): Gemma 2
//! (arXiv 2408.00118). A query at position p sees positions p − window + 1 ..= p, or 0 ..= p without a window.

use super::real::{Real, dot};
use super::soft_cap::capped;
use crate::plan::Attention;
use std::ops::Range;

/// Scores [heads, T, positions] of queries `q` [T, heads·head_dim], the first at position `first`, against keys `k`
/// [positions, kv_heads·head_dim], the first at position `keys_first`.
pub fn attn_scores<T: Real>(a: &Attention, q: &[T], k: &[T], first: usize, keys_first: usize) -> Vec<T> {
    let (q_width, k_width) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let (tokens, positions) = (q.len() / q_width, k.len() / k_width);
    let scale = T::from_f64(a.scale);
    let mut scores = vec![T::default(); a.heads * tokens * positions];
    for (row, scores) in scores.chunks_exact_mut(positions.max(1)).enumerate() {
        let (head, t) = (row / tokens, row % tokens);
        let q = &q[t * q_width + head * a.head_dim..][..a.head_dim];
        let kv_head = head / (a.heads / a.kv_heads);
        for s in visible(a, first + t, keys_first, positions) {
            let k = &k[s * k_width + kv_head * a.head_dim..][..a.head_dim];
            scores[s] = capped(dot(q, k) * scale, a.softcap);
        }
    }
    scores
}

/// Rows of keys, the first of `count` at position `keys_first`, that a query at `position` attends to.
pub fn visible(a: &Attention, position: usize, keys_first: usize, count: usize) -> Range<usize> {
    let end = (position + 1).saturating_sub(keys_first).min(count);
    let start = a.window.map_or(0, |w| (position + 1).saturating_sub(w).saturating_sub(keys_first));
    start.min(end)..end
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::plan::StateId;

    pub fn attention(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Attention {
        Attention { state: StateId(0), heads, kv_heads, head_dim, scale: 0.5, softcap: None, window, sinks: None }
    }

    #[test]
    fn window_counts_its_own_position() {
        let a = attention(1, 1, 1, Some(3));
        assert_eq!(visible(&a, 0, 0, 8), 0..1);
        assert_eq!(visible(&a, 5, 0, 8), 3..6);
        assert_eq!(visible(&a, 5, 4, 2), 0..2);
        assert_eq!(visible(&attention(1, 1, 1, None), 5, 0, 8), 0..6);
    }

    #[test]
    fn causal_grouped_scaled_and_capped() {
        // Two query heads share one key head; keys 2, 3, 4; queries of head 0: 1 and 2, of head 1: 10 and 20.
        let mut a = attention(2, 1, 1, None);
        let (q, k) = ([1.0f64, 10.0, 2.0, 20.0], [2.0, 3.0, 4.0]);
        let scores = attn_scores(&a, &q, &k, 1, 0);
        assert_eq!(scores, [1.0, 1.5, 0.0, 2.0, 3.0, 4.0, 10.0, 15.0, 0.0, 20.0, 30.0, 40.0]);
        a.softcap = Some(2.0);
        assert_eq!(attn_scores(&a, &q, &k, 1, 0)[3], 2.0 * 1f64.tanh());
        a.window = Some(1);
        assert_eq!(attn_scores(&a, &q, &k, 1, 0)[3..5], [0.0, 0.0]);
    }
}
