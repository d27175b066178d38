//! Rows that are not stored as the model has them, but for their order: heads as columns, logarithms. Decoded where the format's
//! blocks do not let them be moved.

use crate::error::{Error, Result};
use crate::model::Tiles;
use crate::quant::Format;

/// What makes a weight's rows of those that are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Making {
    /// Columns are put into the usual order of heads.
    Columns(Tiles),
    /// x of −e^x.
    Logarithm,
}

impl Making {
    /// The format of the rows that are made of those in `stored`.
    pub fn format(&self, stored: Format) -> Format {
        match self {
            Making::Columns(tiles) if moved(tiles, stored).is_some() => stored,
            _ => Format::F32,
        }
    }
    /// Makes whole rows of `bytes`, rows of `columns` in `stored`.
    ///
    /// # Errors
    /// `Kind::Weights` for numbers of which there is no logarithm.
    pub fn rows(&self, bytes: &[u8], stored: Format, columns: usize) -> Result<Vec<u8>> {
        match self {
            Making::Columns(tiles) => match moved(tiles, stored) {
                Some((head, row)) => Ok(in_order(bytes, tiles, head, row)),
                None => {
                    let values: Vec<u8> = stored.values(bytes)?.iter().flat_map(|x| x.to_le_bytes()).collect();
                    Ok(in_order(&values, tiles, tiles.width * 4, columns * 4))
                }
            },
            Making::Logarithm => {
                let of = |x: &f32| match -x {
                    x if x < 0.0 => Err(Error::weights(format!("{} is not the negative number that a decay is here", -x))),
                    // Of 0 a finite number: e^-104 is 0 in f32. NaN stays what it is.
                    0.0 => Ok((-104f32).to_le_bytes()),
                    x => Ok(x.ln().to_le_bytes()),
                };
                Ok(stored.values(bytes)?.iter().map(of).collect::<Result<Vec<_>>>()?.concat())
            }
        }
    }
    /// The numbers that are stored for a weight's, in rows of `columns`: the inverse.
    pub fn stored(&self, values: &mut [f32], columns: usize) {
        match self {
            Making::Columns(tiles) => {
                for row in values.chunks_exact_mut(columns.max(1)) {
                    let made = row.to_vec();
                    for (i, value) in made.iter().enumerate() {
                        if let Some(to) = row.get_mut(tiles.stored(i).0) {
                            *to = *value;
                        }
                    }
                }
            }
            Making::Logarithm => values.iter_mut().for_each(|x| *x = -x.exp()),
        }
    }
    /// Why rows in `format` are decoded, where they are packed.
    pub fn why(&self, format: Format) -> Option<String> {
        let Making::Columns(tiles) = self else { return None };
        let width = tiles.width;
        let decoded = moved(tiles, format).is_none() && !format.is_plain();
        decoded.then(|| format!("the file has value heads of {width} columns in another order, and blocks of {format} are longer"))
    }
}

/// Bytes of a head's columns and of a row, where heads are whole blocks.
fn moved(tiles: &Tiles, format: Format) -> Option<(usize, usize)> {
    Some((format.row_bytes(tiles.width)?, format.row_bytes(tiles.all())?))
}

/// Rows of `row` bytes, made of heads of `head` bytes, in the usual order of heads.
fn in_order(bytes: &[u8], tiles: &Tiles, head: usize, row: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for row in bytes.chunks_exact(row.max(1)) {
        for i in 0..tiles.keys * tiles.share {
            let at = tiles.stored(i * tiles.width).0 / tiles.width.max(1) * head;
            out.extend_from_slice(row.get(at..at + head).unwrap_or_default());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_by_key_head_and_back() {
        // Two key heads with three value heads each, of two columns; stored are the first of both, then the second.
        let tiles = Tiles { before: 0, keys: 2, share: 3, width: 2, columns: true };
        let stored: Vec<f32> = [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11].map(|i| i as f32).to_vec();
        let bytes: Vec<u8> = stored.iter().flat_map(|x| x.to_le_bytes()).collect();
        let making = Making::Columns(tiles);
        let mut made = Format::F32.values(&making.rows(&bytes, Format::F32, 12).unwrap()).unwrap();
        assert_eq!(made, (0..12).map(|i| i as f32).collect::<Vec<_>>());
        making.stored(&mut made, 12);
        assert_eq!(made, stored);
        // Heads of 32 are whole blocks of q8_0, and no whole blocks of q4_k.
        let wide = |format| Making::Columns(Tiles { width: 128, ..tiles }).format(format);
        assert_eq!((wide(Format::Q8_0), wide(Format::BF16), wide(Format::Q4K)), (Format::Q8_0, Format::BF16, Format::F32));
        // Rows: those before the heads stay.
        let rows = Tiles { before: 3, keys: 2, share: 2, width: 2, columns: false };
        let at: Vec<usize> = (0..11).map(|i| rows.stored(i).0).collect();
        assert_eq!(at, [0, 1, 2, 3, 4, 7, 8, 5, 6, 9, 10]);
        assert_eq!((rows.stored(1).1, rows.stored(4).1, rows.all()), (2, 1, 11));
    }

    #[test]
    fn logarithms() {
        let bytes: Vec<u8> = [-1.0f32, -0.5, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let made = Format::F32.values(&Making::Logarithm.rows(&bytes, Format::F32, 1).unwrap()).unwrap();
        assert!(made[0] == 0.0 && (made[1] - 0.5f32.ln()).abs() < 1e-7 && made[2].exp() == 0.0, "{made:?}");
        assert!(Making::Logarithm.rows(&2.0f32.to_le_bytes(), Format::F32, 1).is_err());
    }
}
