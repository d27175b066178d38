//! The numbers of the experts whose weight is not 0, ascending; -1 where there are fewer than a token has.

use super::real::Real;

/// Numbers [T, chosen] of `weights` [T, experts]. Of more than `chosen` weights other than 0 the first ones count.
pub fn chosen_experts<T: Real>(weights: &[T], experts: usize, chosen: usize) -> Vec<T> {
    let of_token = |row: &[T]| {
        let numbers = row.iter().enumerate().filter(|(_, w)| **w != T::default()).map(|(e, _)| T::from_f64(e as f64));
        numbers.chain(std::iter::repeat(T::from_f32(-1.0))).take(chosen).collect::<Vec<T>>()
    };
    weights.chunks_exact(experts.max(1)).flat_map(of_token).collect()
}

/// The expert that a number means; `None` for -1 and what else is no expert.
pub fn expert_of<T: Real>(number: T, experts: usize) -> Option<usize> {
    let number = number.to_f32();
    (number >= 0.0 && number < experts as f32).then_some(number as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ascend_and_lacking_ones_are_minus_one() {
        assert_eq!(chosen_experts(&[0.0f32, 0.5, 0.0, 0.25, 0.0, 0.0, 1.0, 0.0], 4, 2), [1.0, 3.0, 2.0, -1.0]);
        assert_eq!(chosen_experts(&[1.0f32, f32::NAN, 1.0], 3, 2), [0.0, 1.0]);
        assert_eq!([2.0f32, -1.0, 4.0, f32::NAN].map(|n| expert_of(n, 4)), [Some(2), None, None, None]);
    }
}
