//! Small pieces of arithmetic that hypotheses share: sums in f64, ratios, and from a measured number to the one that a file
//! would hold.

/// Numbers that are equal within this, relative to their size, may be the same rounded: a first sieve, after which the
/// rounding floor decides.
pub const CLOSE: f64 = 2e-5;

/// Σ ab in f64.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The factor c with b ≈ c·a, and how far c·a is from b, relative to b.
pub fn ratio(a: impl Iterator<Item = f64> + Clone, b: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.clone().zip(b.clone()) {
        (ab, aa, bb) = (ab + a * b, aa + a * a, bb + b * b);
    }
    if aa == 0.0 || bb == 0.0 {
        return (f64::NAN, f64::INFINITY);
    }
    let c = ab / aa;
    let left: f64 = a.zip(b).map(|(a, b)| (b - c * a).powi(2)).sum();
    (c, (left / bb).sqrt())
}

/// The shortest decimal number within `tolerance` of `x`, relative to it.
pub fn snap(x: f64, tolerance: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    for digits in 0..12 {
        if let Ok(near) = format!("{x:.digits$e}").parse::<f64>()
            && (near - x).abs() <= tolerance * x.abs()
        {
            return near;
        }
    }
    x
}

/// Where a rising function is 0, between two numbers.
pub fn root(mut low: f64, mut high: f64, f: impl Fn(f64) -> f64) -> Option<f64> {
    if !(f(low) <= 0.0 && f(high) >= 0.0) {
        return None;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if f(middle) < 0.0 { low = middle } else { high = middle }
    }
    Some(0.5 * (low + high))
}

/// The number between `low` and `high`, both above 0, at which `f` is least: a grid over its logarithm, refined.
pub fn least(low: f64, high: f64, f: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (libm::log(low), libm::log(high));
    const STEPS: usize = 64;
    for _ in 0..12 {
        let at = |i: usize| low + (high - low) * i as f64 / STEPS as f64;
        let best = (0..=STEPS).min_by(|a, b| f(libm::exp(at(*a))).total_cmp(&f(libm::exp(at(*b))))).unwrap_or(0);
        (low, high) = (at(best.saturating_sub(1)), at((best + 1).min(STEPS)));
    }
    libm::exp(0.5 * (low + high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_numbers_become_those_of_files() {
        assert_eq!(snap(0.020_000_003, 1e-5), 0.02);
        assert_eq!(snap(9_999.98, 1e-5), 10_000.0);
        assert_eq!(snap(1.234_567_8e-6, 1e-4), 1.2346e-6);
        assert_eq!(snap(-0.5, 0.0), -0.5);
    }

    #[test]
    fn roots_minima_and_ratios() {
        assert!((root(0.0, 2.0, |x| x * x - 2.0).unwrap() - 2f64.sqrt()).abs() < 1e-12);
        assert_eq!(root(2.0, 3.0, |x| x), None);
        assert!((least(1.0, 1e6, |x| (x - 5000.0).powi(2)) - 5000.0).abs() < 1e-3);
        let (c, off) = ratio([1.0, 2.0].into_iter(), [3.0, 6.0].into_iter());
        assert_eq!((c, off), (3.0, 0.0));
    }
}
