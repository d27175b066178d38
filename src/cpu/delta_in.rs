//! `y = [k / √(Σk² + eps), v, σ(b), −e^d · ln(1 + e^(a + s))]`, the sum over each head's key; d and s of each value head
//!
//! What a gated delta rule takes of a token: unit keys, values, rates and the logarithms of decays (Yang, Kautz and Hatamizadeh, "Gated
//! Delta Networks", arXiv 2412.06464, whose gate is Mamba 2's). `Qwen3_5GatedDeltaNet` and `l2norm` of transformers.

use super::real::{Real, dot};
use crate::model::DeltaHeads;

/// Rows `qkv` of queries, keys and values, `b` and `a` [rows, value heads], d and s `[value heads]`. Returns [rows, taken].
pub fn delta_in<T: Real>(heads: &DeltaHeads, qkv: &[T], [b, a]: [&[T]; 2], [d, s]: [&[T]; 2], eps: f64) -> Vec<T> {
    let (one, keys) = (T::from_f32(1.0), heads.key_width());
    let mut y = Vec::new();
    for (t, row) in qkv.chunks_exact(heads.width()).enumerate() {
        for key in row[keys..2 * keys].chunks_exact(heads.key_dim) {
            y.extend(unit(key, eps));
        }
        y.extend_from_slice(&row[2 * keys..]);
        y.extend(b[t * heads.values..][..heads.values].iter().map(|b| one / (one + (-*b).exp())));
        let of_heads = a[t * heads.values..][..heads.values].iter().zip(d.iter().zip(s));
        y.extend(of_heads.map(|(a, (d, s))| -(d.exp() * softplus(*a + *s))));
    }
    y
}

/// A vector made as long as 1.
pub(super) fn unit<T: Real>(x: &[T], eps: f64) -> impl Iterator<Item = T> {
    let inverse = T::from_f32(1.0) / (dot(x, x) + T::from_f64(eps)).sqrt();
    x.iter().map(move |x| *x * inverse)
}

/// ln(1 + e^x), without overflow: max(x, 0) + ln(1 + e^−|x|).
fn softplus<T: Real>(x: T) -> T {
    let zero = T::default();
    (if x > zero { x } else { zero }) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // One key head of two elements, two value heads of one.
        let heads = DeltaHeads { keys: 1, values: 2, key_dim: 2, value_dim: 1 };
        let y =
            delta_in(&heads, &[9.0f64, 9.0, 3.0, 4.0, 5.0, 6.0], [&[0.0, 3f64.ln()], &[1.0, -2000.0]], [&[0.0, 1.0], &[-1.0, 0.0]], 0.0);
        let expected = [0.6, 0.8, 5.0, 6.0, 0.5, 0.75, -2f64.ln(), 0.0];
        assert!(y.len() == 8 && y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-15), "{y:?}");
        assert_eq!(softplus(2000.0f64), 2000.0);
    }
}
