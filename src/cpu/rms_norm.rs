//! `y[i] = x[i] / √(mean(x²) + eps) · (w[i] + offset)`, the mean over each group of |w| elements
//!
//! Zhang and Sennrich, "Root Mean Square Layer Normalization" (arXiv 1910.07467). Offset 1 is Gemma's. A group is a row
//! (layer norms), a head (q and k norms of Gemma 3 and Qwen 3) or a whole projection (OLMo 2).

use super::real::{Real, dot};

/// Norm of `x` [rows, width] in groups as wide as `weight`, which divides the width; returns [rows, width].
pub fn rms_norm<T: Real>(x: &[T], weight: &[T], offset: f64, eps: f64) -> Vec<T> {
    let (offset, eps) = (T::from_f64(offset), T::from_f64(eps));
    let (one, count) = (T::from_f32(1.0), T::from_f64(weight.len() as f64));
    let mut y = Vec::with_capacity(x.len());
    for group in x.chunks_exact(weight.len()) {
        let inverse = one / (dot(group, group) / count + eps).sqrt();
        y.extend(group.iter().zip(weight).map(|(&x, &w)| x * inverse * (w + offset)));
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Mean of squares of (3, 4) is 12.5, plus 0.5 is 13; of (0, 2) is 2, plus 0.5 is 2.5.
        let y = rms_norm(&[3.0f64, 4.0, 0.0, 2.0], &[1.0, 0.5], 1.0, 0.5);
        let expected = [3.0 / 13f64.sqrt() * 2.0, 4.0 / 13f64.sqrt() * 1.5, 0.0, 2.0 / 2.5f64.sqrt() * 1.5];
        for (y, e) in y.iter().zip(expected) {
            assert!((y - e).abs() < 1e-15, "{y} {e}");
        }
    }
}
