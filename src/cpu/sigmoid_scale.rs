//! `y[t, n] = x[t, n] / (1 + e^−s[t])`
//!
//! The gate of Qwen 2 MoE's shared expert.

use super::real::Real;

/// Rows `x` [T, width] times the sigmoid of `s` `[T]`.
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
        let y = sigmoid_scale(&[2.0f64, -4.0, 1.0, 1.0], &[0.0, 3f64.ln()]);
        let expected = [1.0, -2.0, 0.75, 0.75];
        assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-15), "{y:?}");
    }
}
