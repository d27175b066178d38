//! `y[i] = (x[i] − m) / √(mean((x − m)²) + eps) · w[i] + b[i]`, with m = mean(x) of each group of elements
//!
//! Ba, Kiros and Hinton, "Layer Normalization" (arXiv 1607.06450). A group is a row (layer norms) or a head (q and k norms of
//! Cohere, whose heads have weights of their own).

use super::real::{Real, dot};

/// Norm of `x` [rows, width] in groups of `group` elements, which divides the width; returns [rows, width]. `weight` and `bias`
/// are as long as a group, or as a row.
pub fn layer_norm<T: Real>(x: &[T], weight: &[T], bias: Option<&[T]>, eps: f64, group: usize) -> Vec<T> {
    let (eps, count, one) = (T::from_f64(eps), T::from_f64(group as f64), T::from_f32(1.0));
    let ones = vec![one; group];
    let mut y = Vec::with_capacity(x.len());
    for (number, of) in x.chunks_exact(group).enumerate() {
        let mean = dot(of, &ones) / count;
        let centred: Vec<T> = of.iter().map(|&x| x - mean).collect();
        let inverse = one / (dot(&centred, &centred) / count + eps).sqrt();
        let first = number * group % weight.len();
        let weights = &weight[first..first + group];
        match bias {
            None => y.extend(centred.iter().zip(weights).map(|(&x, &w)| x * inverse * w)),
            Some(bias) => {
                let both = weights.iter().zip(&bias[first..first + group]);
                y.extend(centred.iter().zip(both).map(|(&x, (&w, &b))| x * inverse * w + b));
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
        // (3, 5) is 4 ± 1; (0, 4) is 2 ± 2: variances 1 and 4, each with 0.5 more.
        let x = [3.0f64, 5.0, 0.0, 4.0];
        let (a, b) = (1.0 / 1.5f64.sqrt(), 2.0 / 4.5f64.sqrt());
        let close = |found: Vec<f64>, expected: [f64; 4]| {
            assert!(found.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-15), "{found:?} {expected:?}")
        };
        close(layer_norm(&x, &[2.0, 3.0], None, 0.5, 2), [-2.0 * a, 3.0 * a, -2.0 * b, 3.0 * b]);
        close(layer_norm(&x, &[2.0, 3.0], Some(&[1.0, -1.0]), 0.5, 2), [1.0 - 2.0 * a, 3.0 * a - 1.0, 1.0 - 2.0 * b, 3.0 * b - 1.0]);
        // Weights of each group.
        close(layer_norm(&x, &[2.0, 3.0, 4.0, 5.0], None, 0.5, 2), [-2.0 * a, 3.0 * a, -4.0 * b, 5.0 * b]);
    }
}
