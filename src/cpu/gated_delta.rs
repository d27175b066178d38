//! `S ← e^g · S`, `S ← S + β · (v − S·k) · kᵀ`, `y = S·q`, for each token and value head in this order; q is c · q / √(Σq² + eps)
//!
//! The gated delta rule (arXiv 2412.06464), token by token: `torch_recurrent_gated_delta_rule` of transformers. S is [value_dim,
//! key_dim], 0 before the first token.

use super::delta_in::unit;
use super::real::{Real, dot};
use crate::model::DeltaHeads;

/// Rows that begin with queries (the rows, their width), of the last tokens of those of `taken`, which is what `delta_in` gives; the
/// matrices before these, of all heads, which are changed. Returns [rows, value width].
pub fn gated_delta<T: Real>(
    heads: &DeltaHeads,
    (rows, width): (&[T], usize),
    taken: &[T],
    matrices: &mut [T],
    (eps, scale): (f64, f64),
) -> Vec<T> {
    let (keys, values, scale) = (heads.key_width(), heads.value_width(), T::from_f64(scale));
    let tokens = taken.len() / heads.taken();
    let before = tokens - rows.len() / width;
    let mut y = Vec::with_capacity((tokens - before) * values);
    for (t, row) in taken.chunks_exact(heads.taken()).enumerate() {
        let (k, v, rates, decays) = (&row[..keys], &row[keys..][..values], &row[keys + values..], &row[keys + values + heads.values..]);
        for head in 0..heads.values {
            let key = head / (heads.values / heads.keys) * heads.key_dim;
            let (k, rate, decay) = (&k[key..][..heads.key_dim], rates[head], decays[head].exp());
            let query: Option<Vec<T>> =
                t.checked_sub(before).map(|t| unit(&rows[t * width + key..][..heads.key_dim], eps).map(|q| q * scale).collect());
            let first = head * heads.value_dim;
            for (v, s) in v[first..].iter().zip(matrices[first * heads.key_dim..].chunks_exact_mut(heads.key_dim)).take(heads.value_dim) {
                s.iter_mut().for_each(|s| *s = *s * decay);
                let correction = rate * (*v - dot(s, k));
                s.iter_mut().zip(k).for_each(|(s, k)| *s = *s + correction * *k);
                y.extend(query.as_ref().map(|q| dot(s, q)));
            }
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // One head, keys of two elements, values of one. Queries are 2 and 4 long after scaling by 2, but for their own length.
        let heads = DeltaHeads { keys: 1, values: 1, key_dim: 2, value_dim: 1 };
        let half = 0.5f64.ln();
        let taken = [1.0, 0.0, 8.0, 0.5, half, 1.0, 0.0, 6.0, 1.0, half];
        let rows = [3.0, 0.0, 3.0, 4.0];
        let mut matrix = [0.0, 0.0];
        let y = gated_delta(&heads, (&rows, 2), &taken, &mut matrix, (0.0, 2.0));
        // S = (4, 0), read along (2, 0); then decayed to (2, 0) and corrected to (6, 0), read along (1.2, 1.6).
        assert!((y[0] - 8.0).abs() < 1e-12 && (y[1] - 7.2).abs() < 1e-12 && (matrix[0] - 6.0).abs() < 1e-12, "{y:?} {matrix:?}");
        // The last token alone: from the beginning, or from the matrices before it.
        let mut again = [0.0, 0.0];
        assert_eq!(gated_delta(&heads, (&rows[2..], 2), &taken, &mut again, (0.0, 2.0)), y[1..]);
        let mut before = [4.0, 0.0];
        assert_eq!(gated_delta(&heads, (&rows[2..], 2), &taken[5..], &mut before, (0.0, 2.0)), y[1..]);
    }
}
