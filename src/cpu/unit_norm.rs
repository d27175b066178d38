//! `y[i] = x[i] / √(mean(x²) + eps)`, the mean over each group of elements
//!
//! An RMS norm (arXiv 1910.07467) without a weight: of the heads of Gemma 4's values (transformers `Gemma4RMSNorm` with
//! `with_scale=False`).

use super::real::{Real, dot};

/// Norm of `x` [rows, width] in groups of `group` elements, which divides the width; returns [rows, width].
pub fn unit_norm<T: Real>(x: &[T], eps: f64, group: usize) -> Vec<T> {
    let (one, count, eps) = (T::from_f32(1.0), T::from_f64(group as f64), T::from_f64(eps));
    let mut y = Vec::with_capacity(x.len());
    for group in x.chunks_exact(group) {
        let inverse = one / (dot(group, group) / count + eps).sqrt();
        y.extend(group.iter().map(|&x| x * inverse));
    }
    y
}

#[cfg(test)]
mod tests {
    #[test]
    fn by_hand() {
        // Mean of squares of (3, 4) is 12.5, plus 0.5 is 13; of (0, 2) is 2, plus 0.5 is 2.5.
        let y = super::unit_norm(&[3.0f64, 4.0, 0.0, 2.0], 0.5, 2);
        let expected = [3.0 / 13f64.sqrt(), 4.0 / 13f64.sqrt(), 0.0, 2.0 / 2.5f64.sqrt()];
        assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-15), "{y:?}");
    }
}
