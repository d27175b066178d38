//! `y[t, n] = (Σ_k x[t, k]·W[n, k] + b[n]) / divisor`
//!
//! `torch.nn.functional.linear`: weights are [rows out, columns in]. The divisor is Granite's `logits_scaling`.

use super::real::Real;
use crate::error::Result;

/// Rows of the matrix that are decoded together, so that `x` is read once for all of them.
const BLOCK: usize = 8;

/// Product of `x` [T, columns] with a matrix [rows, columns]; returns [T, rows]. `read` decodes rows from the given one
/// on into its slice; `bias` is `[rows]`.
pub fn linear<T: Real>(
    x: &[T],
    [rows, columns]: [usize; 2],
    read: impl Fn(usize, &mut [T]) -> Result<()>,
    bias: Option<&[T]>,
    divisor: f64,
) -> Result<Vec<T>> {
    let divisor = T::from_f64(divisor);
    let mut y = vec![T::default(); x.len() / columns * rows];
    let mut block = vec![T::default(); BLOCK * columns];
    for first in (0..rows).step_by(BLOCK) {
        let block = &mut block[..BLOCK.min(rows - first) * columns];
        read(first, block)?;
        for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(rows)) {
            let y = &mut y[first..][..block.len() / columns];
            T::dots(x, block, y);
            for (n, y) in (first..).zip(y) {
                *y = bias.map_or(*y, |b| *y + b[n]) / divisor;
            }
        }
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let w = [1.0f32, 2.0, 3.0, -1.0, 0.0, 1.0]; // [2, 3]
        let read = |first: usize, out: &mut [f32]| {
            out.copy_from_slice(&w[first * 3..first * 3 + out.len()]);
            Ok(())
        };
        let x = [1.0, 1.0, 1.0, 0.0, 2.0, -2.0]; // [2, 3]
        assert_eq!(linear(&x, [2, 3], read, None, 1.0), Ok(vec![6.0, 0.0, -2.0, -2.0]));
        assert_eq!(linear(&x, [2, 3], read, Some(&[2.0, -4.0]), 2.0), Ok(vec![4.0, -2.0, 0.0, -3.0]));
    }

    #[test]
    fn more_rows_than_a_block() {
        // W[n, k] = n on the diagonal of ones: y[n] = n · x[0].
        let read = |first: usize, out: &mut [f64]| {
            out.iter_mut().enumerate().for_each(|(i, w)| *w = (first + i) as f64);
            Ok(())
        };
        let y = linear(&[2.0], [19, 1], read, None, 1.0).expect("reads never fail");
        assert_eq!(y, (0..19).map(|n| 2.0 * f64::from(n)).collect::<Vec<_>>());
    }
}
