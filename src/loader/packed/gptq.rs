//! GPTQ, as AutoGPTQ and GPTQModel write it: code = `qweight`, packed along the inputs, of [columns · bits / 32, rows]; scale of
//! [groups, rows]; zero point = `qzeros`, packed along the outputs, of [groups, rows · bits / 32], less one in the first version;
//! `g_idx` of [columns], the group of each column. value = scale · (code − zero point).

use super::bits::{code, mask};
use super::{Groups, Part, Row, Shape};
use crate::model::GptqZeros;

/// Positions of the parts.
const QWEIGHT: usize = 0;
const QZEROS: usize = 1;
const SCALES: usize = 2;
const G_IDX: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gptq {
    pub bits: u32,
    /// Columns of a group, where groups follow each other.
    pub group: usize,
    /// Number of groups.
    pub groups: usize,
    pub ordered: bool,
    pub zeros: GptqZeros,
}

impl Gptq {
    /// The group of each column.
    ///
    /// # Errors
    /// The part and a message: indices out of range, or out of order where the config says that they are in order.
    pub fn groups(&self, parts: &[Part], shape: Shape) -> Result<Groups, (usize, String)> {
        let Some(indices) = parts.get(G_IDX) else { return Ok(Groups::Even(self.group)) };
        let all: Vec<u32> = (0..shape.columns).map(|column| indices.word(column)).collect();
        if let Some(column) = all.iter().position(|group| *group as usize >= self.groups) {
            let message = format!("column {column} has group {}, of {} groups", all[column].cast_signed(), self.groups);
            return Err((G_IDX, message));
        }
        if !self.ordered {
            return Ok(Groups::Listed(all));
        }
        match all.iter().enumerate().position(|(column, group)| *group as usize != column / self.group.max(1)) {
            None => Ok(Groups::Even(self.group)),
            Some(column) => {
                let message = format!(
                    "column {column} has group {}, though the config says that groups are in order; set `desc_act` to true there",
                    all[column]
                );
                Err((G_IDX, message))
            }
        }
    }
    pub fn row(&self, parts: &[Part], shape: Shape, row: usize, out: &mut Row) {
        let [qweight, qzeros, scales, ..] = parts else { return };
        let per = 32 / self.bits as usize;
        if 32 % self.bits == 0 {
            for (i, codes) in out.codes.chunks_mut(per).enumerate() {
                let mut word = qweight.word(i * shape.rows + row);
                for code in codes {
                    *code = (word & mask(self.bits)) as u8;
                    word >>= self.bits;
                }
            }
        } else {
            for (i, out) in out.codes.iter_mut().enumerate() {
                *out = code(self.bits, i, |word| qweight.word(word * shape.rows + row));
            }
        }
        let words = shape.rows * self.bits as usize / 32;
        out.scales.clear();
        out.scales.extend((0..self.groups).map(|group| scales.number(group * shape.rows + row)));
        out.offsets.clear();
        out.offsets.extend((0..self.groups).map(|group| {
            let zero = code(self.bits, row, |word| self.whole(word, qzeros.word(group * words + word)));
            f32::from(if (self.zeros, self.bits) == (GptqZeros::LessOne, 3) { (zero + 1) & mask(3) as u8 } else { zero })
        }));
    }
    /// Word `at` of a group's zero points as the second version has it. GPTQModel subtracts one number from whole words, borrows
    /// included, and adds it when it reads. At 3 bits, where zero points go on in the next word, it has done so since its
    /// version 7 with each zero point by itself, as others do; before, its number had the ones elsewhere.
    fn whole(&self, at: usize, word: u32) -> u32 {
        let less = match (self.zeros, self.bits) {
            (GptqZeros::Plain, _) | (GptqZeros::LessOne, 3) => 0,
            (GptqZeros::LessOneByWord, 3) => [0x2492_4924, 0x9249_2492, 0x4924_9249][at % 3],
            (_, 2) => 0x5555_5555,
            (_, 4) => 0x1111_1111,
            _ => 0x0101_0101,
        };
        word.wrapping_add(less)
    }
}

/// Names of the parts after the stem, in their order.
pub(super) const PARTS: [&str; 4] = {
    let mut names = [""; 4];
    names[QWEIGHT] = ".qweight";
    names[QZEROS] = ".qzeros";
    names[SCALES] = ".scales";
    names[G_IDX] = ".g_idx";
    names
};
