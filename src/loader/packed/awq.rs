//! AWQ's `gemm` layout: codes `qweight` of [columns, rows / 8] and zero points `qzeros` of [groups, rows / 8], packed along the
//! outputs in the order 0 2 4 6 1 3 5 7; `scales` of [groups, rows]. value = scale · (code − zero point).

use super::{Part, Row, Shape};

/// Which nibble of a word holds each of eight rows.
const NIBBLES: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Awq {
    /// Columns of a group.
    pub group: usize,
    /// Number of groups.
    pub groups: usize,
}

impl Awq {
    pub fn row(&self, parts: &[Part], shape: Shape, row: usize, out: &mut Row) {
        let [qweight, qzeros, scales] = parts else { return };
        let (words, word, shift) = (shape.rows / 8, row / 8, 4 * NIBBLES[row % 8]);
        let nibble = |part: &Part, line: usize| (part.word(line * words + word) >> shift & 15) as u8;
        for (column, code) in out.codes.iter_mut().enumerate() {
            *code = nibble(qweight, column);
        }
        out.scales.clear();
        out.scales.extend((0..self.groups).map(|group| scales.number(group * shape.rows + row)));
        out.offsets.clear();
        out.offsets.extend((0..self.groups).map(|group| f32::from(nibble(qzeros, group))));
    }
}
