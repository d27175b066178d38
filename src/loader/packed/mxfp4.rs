//! MXFP4 as Hugging Face's files and MLX have it, where neighbours share a byte, the first in its low nibble, and scales are a
//! tensor of their own, into blocks of `Format::Mxfp4`.

use super::{Part, Shape};

/// Blocks of 17 bytes from 16 bytes of nibbles and one of scale each. What is left over is left out.
pub(super) fn repack(nibbles: &[u8], scales: &[u8], out: &mut [u8]) {
    for ((out, block), scale) in out.as_chunks_mut::<17>().0.iter_mut().zip(nibbles.as_chunks::<16>().0).zip(scales) {
        let element = |i: usize| block[i / 2] >> (i % 2 * 4) & 15;
        *out = std::array::from_fn(|i| if i == 0 { *scale } else { element(i - 1) | element(i + 15) << 4 });
    }
}

/// Row `row` of a matrix: `parts` are nibbles and scales.
pub(super) fn row(parts: &[Part], shape: Shape, row: usize, out: &mut [u8]) {
    let [nibbles, scales] = parts else { return };
    let blocks = shape.columns / 32;
    let nibbles = nibbles.bytes.get(row * blocks * 16..).unwrap_or_default();
    repack(nibbles, scales.bytes.get(row * blocks..).unwrap_or_default(), out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Format;

    #[test]
    fn neighbours_become_the_halves_of_a_block() {
        // Elements 0 to 31 have codes 0 to 15 twice; 2^(128 − 127), and the same a quarter as large.
        let nibbles: Vec<u8> = (0..32).map(|i: u8| (2 * i % 16) | (((2 * i + 1) % 16) << 4)).collect();
        let mut out = [0; 34];
        repack(&nibbles, &[128, 126], &mut out);
        let values = Format::Mxfp4.values(&out).unwrap();
        let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (i, value) in values.iter().enumerate() {
            let level = if i % 16 < 8 { levels[i % 8] } else { -levels[i % 8] };
            assert_eq!(*value, level * if i < 32 { 2.0 } else { 0.5 }, "{i}");
        }
        repack(&nibbles[..5], &[], &mut out);
    }
}
