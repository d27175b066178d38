//! A second rounding. Some inputs of an op are moved to a neighbouring number, so that its sums and products round otherwise, as those of
//! another right implementation do. The first rounding may be small by chance, above all where a value has few numbers: a floor is
//! the larger of two.

use super::real::Real;
use crate::model::DeltaHeads;
use crate::plan::{Op, ValueId};

/// One of so many numbers is moved up, and one down: a move is as large as the largest rounding, on the whole less than half.
const EVERY: u64 = 8;

/// Half the spacing of f32 numbers next to 1.
const HALF: f64 = 1.0 / (1u64 << 24) as f64;
/// Tokens of a chunk of delta rules, as transformers and its kernels have it.
const CHUNK: usize = 64;

/// The inputs of the node `id`, some moved; `None` for ops whose result says what was put in, or chooses.
pub fn moved<T: Real>(op: &Op, id: ValueId, inputs: &[&[T]]) -> Option<Vec<Vec<T>>> {
    let exact = |input: usize| match op {
        Op::Embed { .. } | Op::Same | Op::Append { .. } | Op::Add { .. } | Op::Scale { .. } => true,
        Op::RouterWeights { .. } | Op::ChosenExperts => true,
        // The powers take differences of scores, which are nearly exact: to move large scores would be no rounding.
        Op::AttnProbs(_) => true,
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
        // By what a number is, not by where it is: the same ones, in whatever pieces a prompt is read.
        let mut moved: Vec<T> = x.iter().map(|x| x.moved(direction(seed ^ u64::from(x.to_f32().to_bits())))).collect();
        if let (Op::GatedDelta { heads, .. }, 1) = (op, input) {
            exponents(x, &mut moved, heads, seed);
        }
        moved
    };
    Some(inputs.iter().enumerate().map(one).collect())
}

/// The logarithms of decays among what a delta rule takes of tokens. Implementations by chunks add them up, and take powers of
/// differences of sums: each is off by what its sum is rounded by, and by what the power is.
fn exponents<T: Real>(taken: &[T], to: &mut [T], heads: &DeltaHeads, seed: u64) {
    let width = heads.taken();
    let mut sums = vec![0.0f64; heads.values];
    for (t, (row, to)) in taken.chunks_exact(width).zip(to.chunks_exact_mut(width)).enumerate() {
        for (head, sum) in sums.iter_mut().enumerate() {
            let at = width - heads.values + head;
            let before = if t % CHUNK == 0 { 0.0 } else { *sum };
            *sum = before + f64::from(row[at].to_f32());
            let by = match hash(seed ^ (t * width + at) as u64) % 3 {
                0 => HALF,
                1 => -HALF,
                _ => 0.0,
            };
            to[at] = row[at] + T::from_f64(by * sum.abs().max(1.0));
        }
    }
}

/// Up, down or neither, by chance but always the same.
fn direction(seed: u64) -> i8 {
    match hash(seed) % EVERY {
        0 => 1,
        1 => -1,
        _ => 0,
    }
}

/// A number of 64 bits that depends on all of another.
fn hash(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
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
