//! Rows of a matrix in a format: whole rows, on all processors where that is worth it.

use super::Format;
use crate::error::{Error, Result};
use crate::threads;

/// Elements that one thread takes at once, if they are whole rows.
const SHARE: usize = 1 << 16;

/// The rows of `values` [rows, columns] as `format` stores them. `importance` is one number per column, the same for
/// every row. The bytes do not depend on the number of processors.
///
/// # Errors
/// Those of [`Format::encode`]; `Kind::Invalid` for `columns` that are no whole blocks, or an importance of another length.
pub fn encode_rows(format: Format, values: &[f32], columns: usize, importance: Option<&[f32]>) -> Result<Vec<u8>> {
    let row_bytes = format.row_bytes(columns).filter(|bytes| *bytes > 0).ok_or_else(|| {
        Error::invalid("columns", format!("{format} has blocks of {}; found rows of {columns} elements", format.info().block))
    })?;
    if let Some(importance) = importance.filter(|importance| importance.len() != columns) {
        return Err(Error::invalid("importance", format!("expected one number per column, {columns}; found {}", importance.len())));
    }
    let rows = values.len() / columns;
    let mut out = vec![0; rows * row_bytes];
    let encode = |values: &[f32], out: &mut [u8]| -> Result<()> {
        values.chunks_exact(columns).zip(out.chunks_exact_mut(row_bytes)).try_for_each(|(row, out)| format.encode(row, importance, out))
    };
    let share = (SHARE / columns).max(1);
    let parts = values.chunks(share * columns).zip(out.chunks_mut(share * row_bytes));
    threads::each(parts, || (), |(), (values, out)| encode(values, out))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_give_what_one_row_gives() {
        let (rows, columns) = (7, 1 << 14);
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 1e7 - 0.8).collect();
        let importance: Vec<f32> = (0..columns).map(|i| (i % 5) as f32).collect();
        for importance in [None, Some(&importance[..])] {
            let together = encode_rows(Format::Q4K, &values, columns, importance).unwrap();
            let mut alone = Vec::new();
            for row in values.chunks(columns) {
                alone.extend(encode_rows(Format::Q4K, row, columns, importance).unwrap());
            }
            assert_eq!(together, alone);
        }
        let wrong = |columns, importance: Option<&[f32]>| encode_rows(Format::Q4K, &values, columns, importance).unwrap_err().message;
        assert!(wrong(100, None).contains("blocks of 256") && wrong(0, None).contains("rows of 0"));
        assert!(wrong(256, Some(&[1.0])).contains("one number per column, 256; found 1"));
        let mut broken = values.clone();
        broken[5 * columns] = f32::NAN;
        assert!(encode_rows(Format::Q4K, &broken, columns, None).unwrap_err().message.contains("finite"));
    }
}
