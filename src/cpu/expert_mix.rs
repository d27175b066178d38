//! y[t, n] = Σ_c w[t, e_c]·x[t, c·N + n], with e_c the c-th chosen expert of token t, in ascending order of experts
//!
//! An expert that there is not (number -1) adds nothing.

use super::chosen_experts::expert_of;
use super::real::Real;

/// The weighted sum of rows `x` [T, chosen·width] of the experts whose `numbers` are given, [T, chosen]; `weights` is [T, experts].
pub fn expert_mix<T: Real>(x: &[T], numbers: &[T], weights: &[T], experts: usize, chosen: usize) -> Vec<T> {
    let tokens = numbers.len() / chosen.max(1);
    let width = x.len() / numbers.len().max(1);
    let mut y = vec![T::default(); tokens * width];
    for (slot, number) in numbers.iter().enumerate() {
        let token = slot / chosen.max(1);
        let Some(expert) = expert_of(*number, experts) else { continue };
        let weight = weights[token * experts + expert];
        for (y, x) in y[token * width..][..width].iter_mut().zip(&x[slot * width..][..width]) {
            *y = *y + weight * *x;
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let weights = [0.5f32, 0.0, 0.25, 0.0, 2.0, 0.0];
        let y = expert_mix(&[1.0, 2.0, 4.0, 8.0, 3.0, 5.0, 7.0, 7.0], &[0.0, 2.0, 1.0, -1.0], &weights, 3, 2);
        assert_eq!(y, [1.5, 3.0, 6.0, 10.0]);
    }
}
