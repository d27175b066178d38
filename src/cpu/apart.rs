//! A second rounding. Some inputs of an op are moved to a neighbouring number, so that its sums and products round otherwise, as those of
//! another right implementation do. The first rounding may be small by chance, above all where a value has few numbers: a floor is
//! the larger of two.

use super::real::Real;
use crate::plan::{Op, ValueId};

/// One of so many numbers is moved up, and one down: a move is as large as the largest rounding, on the whole less than half.
const EVERY: u64 = 8;

/// The inputs of the node `id`, some moved; `None` for ops whose result says what was put in, or chooses.
pub fn moved<T: Real>(op: &Op, id: ValueId, inputs: &[&[T]]) -> Option<Vec<Vec<T>>> {
    let exact = |input: usize| match op {
        Op::Embed { .. } | Op::Same | Op::Append { .. } | Op::Add { .. } | Op::Scale { .. } => true,
        Op::RouterWeights { .. } | Op::ChosenExperts => true,
        // Numbers of experts.
        Op::ExpertLinear { .. } | Op::ExpertMix { .. } => input == 1,
        _ => false,
    };
    if (0..inputs.len()).all(exact) {
        return None;
    }
    let one = |(input, x): (usize, &&[T])| {
        if exact(input) {
            return x.to_vec();
        }
        let seed = (id.0 as u64) << 40 ^ (input as u64) << 32;
        x.iter().enumerate().map(|(i, x)| x.moved(direction(seed ^ i as u64))).collect()
    };
    Some(inputs.iter().enumerate().map(one).collect())
}

/// Up, down or neither, by chance but always the same.
fn direction(seed: u64) -> i8 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    match (x ^ (x >> 31)) % EVERY {
        0 => 1,
        1 => -1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_moved_by_one_unit_and_zero_is_not() {
        let x: Vec<f32> = (0..800).map(|i| i as f32 * 0.37 - 100.0).chain([0.0; 100]).collect();
        let moved = moved(&Op::SigmoidScale, ValueId(3), &[&x[..], &x[..]]).expect("it has sums");
        let by = |of: &[f32]| x.iter().zip(of).map(|(a, b)| (a.to_bits() as i64 - b.to_bits() as i64).abs()).collect::<Vec<i64>>();
        let [first, second] = [by(&moved[0]), by(&moved[1])];
        assert!(first != second && first.iter().chain(&second).all(|by| *by <= 1));
        let count = first[..800].iter().sum::<i64>();
        assert!((150..250).contains(&count) && first[800..].iter().all(|by| *by == 0), "{count}");
        assert!(super::moved(&Op::Same, ValueId(0), &[&x[..]]).is_none());
    }
}
