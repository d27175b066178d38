//! `y[t] = table[id(t)] · scale`
//!
//! The embedding lookup of every decoder. The factor is Gemma's √hidden or Granite's multiplier, rounded to the type
//! computed in (transformers `Gemma2Model.forward`: `torch.tensor(hidden_size**0.5, dtype=hidden_states.dtype)`).

use super::real::Real;
use crate::error::{Error, Result};

/// Rows of a table [vocab, width] for `ids` `[T]`; returns [T, width]. `row` decodes one row of the table.
/// An id at or beyond `vocab` is an error.
pub fn embed<T: Real>(ids: &[u32], vocab: usize, width: usize, scale: f64, row: impl Fn(usize, &mut [T]) -> Result<()>) -> Result<Vec<T>> {
    let scale = T::from_f64(scale);
    let mut y = vec![T::default(); ids.len() * width];
    for (y, &id) in y.chunks_exact_mut(width).zip(ids) {
        if id as usize >= vocab {
            return Err(Error::invalid("token id", format!("there is no id {id}: the embedding has {vocab} rows")));
        }
        row(id as usize, y)?;
        y.iter_mut().for_each(|y| *y = *y * scale);
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_times_scale() {
        let table = [[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]];
        let row = |i: usize, out: &mut [f32]| {
            out.copy_from_slice(&table[i]);
            Ok(())
        };
        assert_eq!(embed(&[2, 0], 3, 2, 0.5, row), Ok(vec![2.5, 3.0, 0.5, 1.0]));
        let message = embed(&[3], 3, 2, 1.0, row).expect_err("no such row").to_string();
        assert!(message.contains("no id 3"), "{message}");
    }
}
