//! `y[i] = residual[i] + multiplier · x[i]`
//!
//! The residual stream. The multiplier is Granite's `residual_multiplier`, 1 elsewhere.

use super::real::Real;

/// Sum of `residual` and `multiplier` times `x`, of equal length.
pub fn add<T: Real>(residual: &[T], x: &[T], multiplier: f64) -> Vec<T> {
    let multiplier = T::from_f64(multiplier);
    residual.iter().zip(x).map(|(&r, &x)| r + multiplier * x).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn by_hand() {
        assert_eq!(super::add(&[1.0f32, 2.0], &[4.0, -8.0], 0.25), [2.0, 0.0]);
    }
}
