//! `y[t, n] = x[t, n] / (1 + e^−s)`, s of the row, s[t], or of the element, s[t, n]
//!
//! The gate of Qwen 2 MoE's shared expert; the gate of Qwen 3 Next's attention.

use super::real::Real;

/// Rows `x` [T, width] times the sigmoid of `s`, `[T]` or [T, width].
pub fn sigmoid_scale<T: Real>(x: &[T], s: &[T]) -> Vec<T> {
    let one = T::from_f32(1.0);
    let width = x.len() / s.len().max(1);
    x.chunks_exact(width.max(1)).zip(s).flat_map(|(row, s)| row.iter().map(move |x| *x * (one / (one + (-*s).exp())))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let s = [0.0, 3f64.ln()];
        for (x, y) in [(&[2.0f64, -4.0, 1.0, 1.0][..], &[1.0, -2.0, 0.75, 0.75][..]), (&[2.0, 4.0], &[1.0, 3.0])] {
            let found = sigmoid_scale(x, &s);
            assert!(found.len() == y.len() && found.iter().zip(y).all(|(a, b)| (a - b).abs() < 1e-15), "{found:?}");
        }
    }
}
