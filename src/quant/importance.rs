//! Importance of the columns of matrices: the mean square of what a product reads there, over a calibration text. An error in
//! a column counts as much as its input is large, so encoders weigh squared errors by it. Plain data; it knows no file.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// The importance of a model's matrices, by the names that GGUF has for them (`blk.3.attn_q.weight`).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Importance {
    /// By tensor.
    pub tensors: BTreeMap<String, Sums>,
    /// Names of the texts that it was measured on.
    pub datasets: Vec<String>,
    /// Windows of the texts.
    pub chunks: u32,
    /// Tokens of a window.
    pub chunk_size: u32,
}

/// What was read by one tensor, or by each of the experts that it holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sums {
    /// Sum of squares [experts, columns]; one expert where there are none.
    pub squares: Vec<f32>,
    /// Rows of inputs that were summed up `[experts]`.
    pub counts: Vec<f32>,
}

impl Sums {
    /// Columns of the tensor.
    pub fn columns(&self) -> usize {
        self.squares.len().checked_div(self.counts.len()).unwrap_or(0)
    }
    /// Mean squares of the inputs of `expert` `[columns]`; `None` where it read nothing, so that nothing is known.
    pub fn means(&self, expert: usize) -> Option<Vec<f32>> {
        let (columns, count) = (self.columns(), *self.counts.get(expert)?);
        let squares = self.squares.get(expert * columns..(expert + 1) * columns)?;
        (count > 0.0).then(|| squares.iter().map(|sum| sum / count).collect())
    }
    /// Whether the parts belong together and are numbers that weights of errors can be.
    ///
    /// # Errors
    /// `Kind::Invalid` saying what is wrong.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::invalid("importance", what));
        if self.counts.is_empty() || self.squares.is_empty() || !self.squares.len().is_multiple_of(self.counts.len()) {
            return wrong(format!("{} sums do not belong to {} counts", self.squares.len(), self.counts.len()));
        }
        match self.squares.iter().chain(&self.counts).find(|x| !x.is_finite() || **x < 0.0) {
            Some(x) => wrong(format!("expected sums of squares and counts, finite and from 0; found {x}")),
            None => Ok(()),
        }
    }
}

impl Importance {
    /// The importance of the columns of the tensor that GGUF calls `name`; `None` where nothing is known of it.
    ///
    /// # Errors
    /// `Kind::Invalid` where it is known of another number of columns.
    pub fn of(&self, name: &str, columns: usize) -> Result<Option<Vec<f32>>> {
        let Some(sums) = self.tensors.get(name) else { return Ok(None) };
        if sums.columns() != columns {
            let message = format!("`{name}` has {columns} columns, the importance is of {}: of another model?", sums.columns());
            return Err(Error::invalid("importance", message));
        }
        Ok(sums.means(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_the_expert_that_read() {
        let sums = Sums { squares: vec![2.0, 4.0, 9.0, 9.0], counts: vec![2.0, 0.0] };
        assert_eq!((sums.columns(), sums.means(0), sums.means(1), sums.means(2)), (2, Some(vec![1.0, 2.0]), None, None));
        assert_eq!(sums.check(), Ok(()));
        let with = |squares: &[f32], counts: &[f32]| Sums { squares: squares.to_vec(), counts: counts.to_vec() }.check().is_err();
        assert!(with(&[1.0], &[]) && with(&[1.0; 3], &[1.0; 2]) && with(&[-1.0], &[1.0]) && with(&[1.0], &[f32::NAN]) && with(&[], &[1.0]));

        let importance = Importance { tensors: BTreeMap::from([("a".to_string(), sums)]), ..Importance::default() };
        assert_eq!(importance.of("b", 2), Ok(None));
        assert_eq!(importance.of("a", 2), Ok(Some(vec![1.0, 2.0])));
        assert!(importance.of("a", 3).unwrap_err().message.contains("`a` has 3 columns, the importance is of 2"));
    }
}
