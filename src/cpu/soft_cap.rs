//! y = cap · tanh(x / cap)
//!
//! Gemma 2 (arXiv 2408.00118): keeps values within (−cap, cap), monotone, slope 1 at 0. On attention scores it is part
//! of `attn_scores`.

use super::real::Real;

/// Every element of `x` capped.
pub fn soft_cap<T: Real>(x: &[T], cap: f64) -> Vec<T> {
    x.iter().map(|&x| capped(x, Some(cap))).collect()
}

/// One value under a cap; unchanged without one.
pub fn capped<T: Real>(x: T, cap: Option<f64>) -> T {
    cap.map_or(x, |cap| T::from_f64(cap) * (x / T::from_f64(cap)).tanh())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(soft_cap(&[0.0f64, 30.0, -1e9], 30.0), [0.0, 30.0 * 1f64.tanh(), -30.0]);
        assert_eq!(capped(7.0f32, None), 7.0);
    }
}
