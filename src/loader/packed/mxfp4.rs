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
