//! `y[i] = act(gate[i]) · up[i]`, or clamped `g·sigmoid(alpha·g) · (u + 1)`, where `g = min(gate[i], limit)` and
//! `u = min(max(up[i], −limit), limit)`
//!
//! Shazeer, "GLU Variants Improve Transformer" (arXiv 2002.05202). Activations as in torch:
//! silu(x) = x / (1 + e^−x);  gelu_tanh(x) = x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)));
//! gelu(x) = x/2 · (1 + erf(x/√2)). The clamped form is that of gpt-oss (transformers, `GptOssExperts`).

use super::real::Real;
use crate::model::Activation;

/// The gated activation of `gate` and `up`, of equal length.
pub fn gated_act<T: Real>(act: Activation, gate: &[T], up: &[T]) -> Vec<T> {
    gate.iter().zip(up).map(|(&gate, &up)| one(act, gate, up)).collect()
}

/// One element.
fn one<T: Real>(act: Activation, gate: T, up: T) -> T {
    match act {
        Activation::Clamped { alpha, limit } => {
            let limit = T::from_f64(limit);
            let (gate, up) = (at_most(gate, limit), -at_most(-at_most(up, limit), limit));
            (up + T::from_f32(1.0)) * (gate / (T::from_f32(1.0) + (-(gate * T::from_f64(alpha))).exp()))
        }
        _ => alone(act, gate) * up,
    }
}

/// An activation without a gate. One that needs a gate has 0 for `up`.
pub(super) fn alone<T: Real>(act: Activation, x: T) -> T {
    match act {
        Activation::Silu => silu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::Gelu => gelu(x),
        Activation::Clamped { .. } => one(act, x, T::default()),
    }
}

/// The smaller one; NaN stays.
fn at_most<T: Real>(x: T, limit: T) -> T {
    if x > limit { limit } else { x }
}

fn silu<T: Real>(x: T) -> T {
    x / (T::from_f32(1.0) + (-x).exp())
}

fn gelu_tanh<T: Real>(x: T) -> T {
    let inner = T::from_f64(0.797_884_560_802_865_4) * (x + T::from_f64(0.044715) * x * x * x);
    T::from_f32(0.5) * x * (T::from_f32(1.0) + inner.tanh())
}

fn gelu<T: Real>(x: T) -> T {
    T::from_f32(0.5) * x * (T::from_f32(1.0) + erf(x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)))
}

/// Coefficients 2/√π · (−1)ⁿ / (n!·(2n + 1)) of x²ⁿ⁺¹ in erf(x); the next one is below 1e−20.
const SERIES: [f64; 20] = {
    let (mut coefficients, mut factor, mut n) = ([0.0; 20], std::f64::consts::FRAC_2_SQRT_PI, 0);
    while n < 20 {
        coefficients[n] = factor / (2 * n + 1) as f64;
        factor /= -((n + 1) as f64);
        n += 1;
    }
    coefficients
};

/// The error function 2/√π ∫₀ˣ e^−t² dt, to the type's precision. Abramowitz and Stegun 7.1.5 (series) and 7.1.14
/// (continued fraction of the complement).
pub fn erf<T: Real>(x: T) -> T {
    let (one, two) = (T::from_f32(1.0), T::from_f32(2.0));
    let (a, square) = (x.abs(), x * x);
    if a < one {
        return x * SERIES.iter().rev().fold(T::default(), |total, &c| T::from_f64(c) + square * total);
    }
    if a > T::from_f32(6.0) {
        return if x > T::default() { one } else { -one };
    }
    // erfc(a) = e^−a²/√π · 1/(a + (1/2)/(a + 1/(a + (3/2)/(a + …)))), from the inside out; the larger a, the fewer terms.
    let terms = 10 + (240.0 / square.to_f32()) as u32;
    let mut below = a;
    for n in (1..=terms).rev() {
        below = a + T::from_f64(f64::from(n)) / two / below;
    }
    let complement = (-square).exp() * T::from_f64(std::f64::consts::FRAC_2_SQRT_PI) / two / below;
    if x > T::default() { one - complement } else { complement - one }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the tables of Abramowitz and Stegun 7.1 and Python's `math.erf`.
    const ERF: [(f64, f64); 11] = [
        (0.0, 0.0),
        (1e-3, 0.0011283787909692365),
        (0.5, 0.5204998778130465),
        (0.999_999, 0.8427003778418023),
        (1.0, 0.8427007929497149),
        (1.5, 0.9661051464753108),
        (1.1, 0.8802050695740817),
        (-2.0, -0.9953222650189527),
        (2.5, 0.999593047982555),
        (3.5, 0.9999992569016276),
        (10.0, 1.0),
    ];

    #[test]
    fn erf_to_precision() {
        for (x, expected) in ERF {
            let found = erf(x);
            assert!((found - expected).abs() <= 4e-16 * expected.abs(), "erf({x}) = {found}, not {expected}");
        }
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn erf_in_f32_everywhere() {
        let worst = (-7000..7000).map(|i| i as f32 / 1000.0).filter(|x| *x != 0.0);
        let worst =
            worst.map(|x| ((f64::from(erf(x)) / erf(f64::from(x)) - 1.0).abs(), x)).fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a });
        assert!(worst.0 < 2.4e-7, "relative error {worst:?}: two ulp at most");
    }

    #[test]
    fn activations_by_hand() {
        let up = [2.0f64];
        for (act, expected) in [
            (Activation::Silu, 0.731_058_578_630_004_9),
            (Activation::GeluTanh, 0.841_191_990_608_276_5),
            (Activation::Gelu, 0.841_344_746_068_542_9),
        ] {
            let y = gated_act(act, &[1.0], &up);
            assert!((y[0] - 2.0 * expected).abs() < 1e-14, "{act:?}: {y:?}");
            assert_eq!(gated_act(act, &[0.0f32], &[3.0]), [0.0]);
        }
        assert_eq!(gated_act(Activation::Silu, &[-200.0f32], &[1.0]), [0.0]);
    }

    #[test]
    fn clamped_by_hand() {
        let act = Activation::Clamped { alpha: 2.0, limit: 3.0 };
        // A gate is cut off above, up on both sides.
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (gate, up, expected) in [
            (1.0, 2.0, 3.0 * sigmoid(2.0)),
            (5.0, 2.0, 9.0 * sigmoid(6.0)),
            (-5.0, 2.0, -15.0 * sigmoid(-10.0)),
            (1.0, 4.0, 4.0 * sigmoid(2.0)),
            (1.0, -4.0, -2.0 * sigmoid(2.0)),
        ] {
            let y = gated_act(act, &[gate], &[up]);
            assert!((y[0] - expected).abs() < 1e-14, "{gate} {up}: {y:?}, not {expected}");
        }
        assert!(gated_act(act, &[f64::NAN], &[1.0])[0].is_nan() && gated_act(act, &[1.0], &[f64::NAN])[0].is_nan());
    }
}
