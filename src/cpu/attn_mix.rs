//! y[t, h] = Σ_s p[h, t, s] · v[s, h / (heads / kv_heads)] over the positions s that query t sees
//!
//! The second half of attention (arXiv 1706.03762). Masked cells are left out, not multiplied by 0, so that a
//! non-finite value at a masked position has no effect.

use super::attn_scores::visible;
use super::real::{Real, mix};
use crate::plan::Attention;

/// Mixtures [T, heads·head_dim] of values `v` [positions, kv_heads·head_dim], the first at position `keys_first`, under
/// probabilities `p` [heads, T, positions], the first query at position `first`.
pub fn attn_mix<T: Real>(a: &Attention, p: &[T], v: &[T], first: usize, keys_first: usize) -> Vec<T> {
    let (y_width, v_width) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let positions = v.len() / v_width;
    let tokens = p.len() / (a.heads * positions).max(1);
    let mut y = vec![T::default(); tokens * y_width];
    for (i, y) in y.chunks_exact_mut(a.head_dim).enumerate() {
        let (t, head) = (i / a.heads, i % a.heads);
        let kv_head = head / (a.heads / a.kv_heads);
        let seen = visible(a, first + t, keys_first, positions);
        let p = &p[(head * tokens + t) * positions..][seen.clone()];
        mix(p, |s| &v[(seen.start + s) * v_width + kv_head * a.head_dim..][..a.head_dim], y);
    }
    y
}

#[cfg(test)]
mod tests {
    use super::super::attn_scores::tests::attention;
    use super::*;

    #[test]
    fn by_hand() {
        // Two heads of width 2 over one value head; one query at position 1 sees both values.
        let v = [1.0f32, 2.0, 3.0, 4.0];
        let p = [0.25, 0.75, 1.0, 0.0];
        assert_eq!(attn_mix(&attention(2, 1, 2, None), &p, &v, 1, 0), [2.5, 3.5, 1.0, 2.0]);
    }

    #[test]
    fn what_is_not_seen_has_no_effect() {
        let v = [f32::NAN, 5.0, f32::NAN];
        assert_eq!(attn_mix(&attention(1, 1, 1, Some(1)), &[0.0, 1.0, 0.0], &v, 1, 0), [5.0]);
    }
}
