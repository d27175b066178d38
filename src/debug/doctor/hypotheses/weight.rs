//! What hypotheses about weights share.

use crate::debug::doctor::numbers::{CLOSE, snap};

/// Places at which `values` are not `wanted`, for numbers of about `size`.
pub fn differing(wanted: &[f64], values: &[f32], size: f64) -> Vec<usize> {
    let apart = |(w, v): (&f64, &f32)| (w - f64::from(*v)).abs().partial_cmp(&(CLOSE * size.max(w.abs()))) != Some(std::cmp::Ordering::Less);
    (0..wanted.len().min(values.len())).filter(|i| apart((&wanted[*i], &values[*i]))).collect()
}

/// A measured weight as a checkpoint would hold it: in bf16 or f16 if that is within `tolerance`, else in f32.
pub fn stored_as(x: f64, tolerance: f64) -> f32 {
    let near = [half::bf16::from_f64(x).to_f32(), half::f16::from_f64(x).to_f32()];
    let plain = near.into_iter().find(|near| (f64::from(*near) - x).abs() <= tolerance);
    plain.unwrap_or_else(|| snap(x, tolerance / x.abs().max(1e-30) * 0.01) as f32)
}
