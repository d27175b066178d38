//! MLX: codes of 2, 3, 4, 5, 6 or 8 bits, a run of bits along each row in words; `scales` and `biases` of [rows, groups].
//! value = scale · code + bias.

use super::bits::code;
use super::{Part, Row, Shape};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mlx {
    pub bits: u32,
    /// Columns of a group.
    pub group: usize,
    /// Number of groups.
    pub groups: usize,
}

impl Mlx {
    pub fn row(&self, parts: &[Part], shape: Shape, row: usize, out: &mut Row) {
        let [weight, scales, biases] = parts else { return };
        let first = row * (shape.columns * self.bits as usize / 32);
        for (i, out) in out.codes.iter_mut().enumerate() {
            *out = code(self.bits, i, |word| weight.word(first + word));
        }
        for (list, part) in [(&mut out.scales, scales), (&mut out.offsets, biases)] {
            list.clear();
            list.extend((0..self.groups).map(|group| part.number(row * self.groups + group)));
        }
    }
}
