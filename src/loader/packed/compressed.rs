//! Whole numbers of compressed-tensors: `weight_packed` of [rows, words], or `weight` of [rows,
//! columns] bytes with a sign; `weight_scale` of [rows, groups]; `weight_zero_point`, packed along the **rows**, or bytes with a
//! sign; `weight_g_idx`; `weight_shape`. Codes and zero points are stored with 2^(bits − 1) added.
//! Words are a run of bits; older releases left those empty that hold no whole code, which differs at 3, 5, 6 and 7 bits.
//! value = scale · (code − zero point).

use super::bits::code;
use super::{Groups, Part, Row, Shape};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Compressed {
    pub bits: u32,
    /// Codes are in words, not bytes.
    pub packed: bool,
    /// Words are a run of bits.
    pub dense: bool,
    /// Columns of a group, where groups follow each other.
    pub group: usize,
    /// Scales for the columns of a row.
    pub groups: usize,
    /// One scale serves all rows.
    pub one_row: bool,
    /// Which parts there are, by their position, after codes and scales.
    pub zeros: Option<Zeros>,
    pub listed: Option<usize>,
    pub shape: Option<usize>,
}

/// Where zero points are, and whether they are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Zeros {
    pub part: usize,
    pub packed: bool,
}

impl Compressed {
    /// Words that hold so many codes.
    pub fn words(&self, codes: usize) -> usize {
        words(self.bits, self.dense, codes)
    }
    /// Code `i` of words that `word` gives.
    fn code(&self, i: usize, word: impl Fn(usize) -> u32) -> u8 {
        if self.dense {
            return code(self.bits, i, word);
        }
        let per = (32 / self.bits.max(1)) as usize;
        code(self.bits, i % per, |_| word(i / per))
    }
    /// Whether `weight_shape` says what the config says.
    ///
    /// # Errors
    /// The part and a message.
    pub fn check(&self, parts: &[Part], shape: Shape) -> Result<(), (usize, String)> {
        let Some((at, part)) = self.shape.and_then(|at| Some((at, parts.get(at)?))) else { return Ok(()) };
        let numbers: Vec<i64> = match part.bytes.len() {
            16 => part.bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
            _ => part.bytes.as_chunks::<4>().0.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect(),
        };
        if numbers != [shape.rows as i64, shape.columns as i64] {
            return Err((at, format!("expected [{}, {}], found {numbers:?}", shape.rows, shape.columns)));
        }
        Ok(())
    }
    /// The group of each column; −1 everywhere means that they are in order.
    ///
    /// # Errors
    /// The part and a message: indices out of range.
    pub fn groups(&self, parts: &[Part], shape: Shape) -> Result<Groups, (usize, String)> {
        let Some((at, part)) = self.listed.and_then(|at| Some((at, parts.get(at)?))) else { return Ok(Groups::Even(self.group)) };
        let all: Vec<u32> = (0..shape.columns).map(|column| part.word(column)).collect();
        if all.iter().all(|group| *group == u32::MAX) {
            return Ok(Groups::Even(self.group));
        }
        match all.iter().position(|group| *group as usize >= self.groups) {
            Some(column) => Err((at, format!("column {column} has group {}, of {} groups", all[column].cast_signed(), self.groups))),
            None => Ok(Groups::Listed(all)),
        }
    }
    pub fn row(&self, parts: &[Part], shape: Shape, row: usize, out: &mut Row) {
        let [weight, scales, ..] = parts else { return };
        if self.packed {
            let first = row * self.words(shape.columns);
            for (i, out) in out.codes.iter_mut().enumerate() {
                *out = self.code(i, |word| weight.word(first + word));
            }
        } else if let Some(bytes) = weight.bytes.get(row * shape.columns..(row + 1) * shape.columns) {
            for (code, byte) in out.codes.iter_mut().zip(bytes) {
                *code = byte ^ 128;
            }
        }
        let first = if self.one_row { 0 } else { row * self.groups };
        out.scales.clear();
        out.scales.extend((0..self.groups).map(|group| scales.number(first + group)));
        // What is added to codes and zero points: half of their range, of bytes always 128.
        let half = if self.packed { 1 << (self.bits - 1) } else { 128 };
        let zero = |group: usize| {
            let Some((zeros, part)) = self.zeros.and_then(|zeros| Some((zeros, parts.get(zeros.part)?))) else { return half };
            if zeros.packed {
                return i32::from(self.code(row, |word| part.word(word * self.groups + group)));
            }
            half + i32::from(part.byte(first + group).cast_signed())
        };
        out.offsets.clear();
        out.offsets.extend((0..self.groups).map(|group| zero(group) as f32));
    }
}

/// Words that hold so many codes of `bits` bits, 1 to 32.
pub(super) fn words(bits: u32, dense: bool, codes: usize) -> usize {
    if dense { (codes as u64 * u64::from(bits)).div_ceil(32) as usize } else { codes.div_ceil((32 / bits.max(1)) as usize) }
}
