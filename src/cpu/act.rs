//! `y[i] = act(x[i])`: the activation of feed-forward blocks without a gate. `gated_act` has the functions.

use super::gated_act::alone;
use super::real::Real;
use crate::model::Activation;

/// The activation of every element.
pub fn act<T: Real>(act: Activation, x: &[T]) -> Vec<T> {
    x.iter().map(|&x| alone(act, x)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_gate_of_a_gated_one() {
        for of in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            let x = [-3.0f64, -0.5, 0.0, 1.0, 4.0];
            assert_eq!(act(of, &x), crate::cpu::gated_act::gated_act(of, &x, &[1.0; 5]), "{of:?}");
        }
        assert!((act(Activation::Silu, &[1.0f64])[0] - 0.731_058_578_630_004_9).abs() < 1e-15);
    }
}
