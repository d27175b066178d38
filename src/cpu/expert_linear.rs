//! y[t, c·N + n] = Σ_k x[t, k]·W[e·N + n, k] + b[e·N + n], with e the c-th chosen expert of token t
//!
//! x is one row for all experts of a token, or has a row for each: x[t, c·K + k]. The matrices of the experts lie one after the
//! other. Rows of an expert that there is not (number -1) are 0.

use super::chosen_experts::expert_of;
use super::linear::linear;
use super::real::Real;
use crate::error::Result;

/// Products of `x` [T, columns] or [T, chosen·columns] with the matrices [rows, columns] of the experts whose `numbers` are given,
/// [T, chosen]. `read` decodes rows of all matrices from the given one on; `bias` is [experts·rows].
pub fn expert_linear<T: Real>(
    x: &[T],
    numbers: &[T],
    [experts, rows, columns]: [usize; 3],
    read: impl Fn(usize, &mut [T]) -> Result<()>,
    bias: Option<&[T]>,
) -> Result<Vec<T>> {
    let mut y = vec![T::default(); numbers.len() * rows];
    // Rows of x: one for each number, or one for all of a token.
    let share = numbers.len() * columns / x.len().max(1);
    for expert in 0..experts {
        let slots: Vec<usize> = (0..numbers.len()).filter(|slot| expert_of(numbers[*slot], experts) == Some(expert)).collect();
        if slots.is_empty() {
            continue;
        }
        let of_expert: Vec<T> = slots.iter().flat_map(|slot| &x[slot / share.max(1) * columns..][..columns]).copied().collect();
        let bias = bias.map(|b| &b[expert * rows..][..rows]);
        let found = linear(&of_expert, [rows, columns], |row, out| read(expert * rows + row, out), bias, 1.0)?;
        for (slot, found) in slots.iter().zip(found.chunks_exact(rows.max(1))) {
            y[slot * rows..][..rows].copy_from_slice(found);
        }
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_meets_its_own_experts() {
        // Expert e has the matrix [2, 1] of e + 1 and -e - 1.
        let read = |row: usize, out: &mut [f32]| {
            let weight = |row: usize| (row / 2 + 1) as f32 * if row.is_multiple_of(2) { 1.0 } else { -1.0 };
            out.iter_mut().enumerate().for_each(|(i, w)| *w = weight(row + i));
            Ok(())
        };
        let numbers = [0.0, 2.0, 1.0, -1.0];
        let shared = expert_linear(&[1.0, 10.0], &numbers, [3, 2, 1], read, None);
        assert_eq!(shared, Ok(vec![1.0, -1.0, 3.0, -3.0, 20.0, -20.0, 0.0, 0.0]));
        let own = expert_linear(&[1.0, 10.0, 100.0, 7.0], &numbers, [3, 2, 1], read, Some(&[0.5, 0.0, 0.0, 0.0, 0.25, 0.0]));
        assert_eq!(own, Ok(vec![1.5, -1.0, 30.25, -30.0, 200.0, -200.0, 0.0, 0.0]));
    }
}
