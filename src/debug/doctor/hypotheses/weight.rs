//! What hypotheses about weights share.

use crate::debug::doctor::numbers::CLOSE;

/// Places at which `values` are not `wanted`, for numbers of about `size`.
pub fn differing(wanted: &[f64], values: &[f32], size: f64) -> Vec<usize> {
    let apart =
        |(w, v): (&f64, &f32)| (w - f64::from(*v)).abs().partial_cmp(&(CLOSE * size.max(w.abs()))) != Some(std::cmp::Ordering::Less);
    (0..wanted.len().min(values.len())).filter(|i| apart((&wanted[*i], &values[*i]))).collect()
}

/// A measured weight as a checkpoint would hold it: in bf16 or f16 if that is well within `tolerance`, which a number of f32
/// seldom is by chance; else as measured.
pub fn stored_as(x: f64, tolerance: f64) -> f32 {
    let near = [half::bf16::from_f64(x).to_f32(), half::f16::from_f64(x).to_f32()];
    near.into_iter().find(|near| (f64::from(*near) - x).abs() <= 0.05 * tolerance).unwrap_or(x as f32)
}
