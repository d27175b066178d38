//! Formats of packed checkpoints as other libraries write them: groups of whole numbers with a scale and a zero point or an
//! offset. A group of the file is one block, or several that repeat its header.
//!
//! | format | bytes of a block of n | value |
//! | --- | --- | --- |
//! | z4_n | u32: s, of which the lowest byte is z (i8); n / 2 bytes of nibbles | s·((q − 8) − z) |
//! | a4_n | s f32, o f32; n / 2 bytes of nibbles | s·q + o |
//! | a8_n | s f32, o f32; n bytes | s·q + o |
//! | s8_n | s f32; n × i8 | s·q |
//!
//! Neighbours share a byte, the first in its low nibble. The s of z4 is an f32 whose lowest byte is 0, as all of f16 and
//! bf16 are; its products are exact then.

use super::blocks::half_bytes;

/// s and z of a z4 block in its first word; `None` where `scale` has more than 16 bits of mantissa.
pub fn scale_and_zero(scale: f32, zero: i8) -> Option<[u8; 4]> {
    let bits = scale.to_bits();
    (bits & 0xff == 0).then(|| (bits | u32::from(zero.cast_unsigned())).to_le_bytes())
}

/// The f32 in the first four bytes.
fn float(bytes: &[u8]) -> f32 {
    bytes.first_chunk().map_or(0.0, |bytes| f32::from_le_bytes(*bytes))
}

pub(super) fn decode_z4<const N: usize>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(4 + N / 2).zip(out.as_chunks_mut::<N>().0.iter_mut()) {
        let zero = f32::from(block[0].cast_signed());
        let scale = float(&[0, block[1], block[2], block[3]]);
        for (out, q) in out.iter_mut().zip(half_bytes(&block[4..])) {
            *out = scale * (f32::from(q) - 8.0 - zero);
        }
    }
}

pub(super) fn decode_a4<const N: usize>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(8 + N / 2).zip(out.as_chunks_mut::<N>().0.iter_mut()) {
        let (scale, offset) = (float(block), float(&block[4..]));
        for (out, q) in out.iter_mut().zip(half_bytes(&block[8..])) {
            *out = scale * f32::from(q) + offset;
        }
    }
}

pub(super) fn decode_a8<const N: usize>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(8 + N).zip(out.as_chunks_mut::<N>().0.iter_mut()) {
        let (scale, offset) = (float(block), float(&block[4..]));
        for (out, q) in out.iter_mut().zip(&block[8..]) {
            *out = scale * f32::from(*q) + offset;
        }
    }
}

pub(super) fn decode_s8<const N: usize>(bytes: &[u8], out: &mut [f32]) {
    decode_levels::<N>(bytes, out, |q| f32::from(q.cast_signed()));
}

/// As s8, of codes that stand for `level`.
pub(super) fn decode_levels<const N: usize>(bytes: &[u8], out: &mut [f32], level: impl Fn(u8) -> f32) {
    for (block, out) in bytes.chunks_exact(4 + N).zip(out.as_chunks_mut::<N>().0.iter_mut()) {
        let scale = float(block);
        for (out, q) in out.iter_mut().zip(&block[4..]) {
            *out = scale * level(*q);
        }
    }
}

/// As z4 without a zero point, of codes that stand for one of `levels`.
pub(super) fn decode_table<const N: usize>(bytes: &[u8], out: &mut [f32], levels: &[f32; 16]) {
    for (block, out) in bytes.chunks_exact(4 + N / 2).zip(out.as_chunks_mut::<N>().0.iter_mut()) {
        let scale = float(block);
        for (out, q) in out.iter_mut().zip(half_bytes(&block[4..])) {
            *out = scale * levels[usize::from(q & 15)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Format;
    use half::{bf16, f16};

    #[test]
    fn every_f16_and_bf16_is_a_scale_of_z4() {
        for bits in 0..=u16::MAX {
            for scale in [f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32()] {
                let [zero, a, b, c] = scale_and_zero(scale, -3).unwrap();
                assert_eq!(zero.cast_signed(), -3);
                assert_eq!(f32::from_le_bytes([0, a, b, c]).to_bits(), scale.to_bits());
            }
        }
        assert_eq!(scale_and_zero(0.1, 0), None);
    }

    #[test]
    fn blocks_mean_what_the_table_says() {
        let header = |s: f32, o: f32| [s.to_le_bytes(), o.to_le_bytes()].concat();
        let mut z4 = scale_and_zero(0.5, -1).unwrap().to_vec();
        z4.extend([0x1f; 16]);
        assert_eq!(Format::Z4x32.values(&z4).unwrap()[..3], [4.0, -3.0, 4.0]);
        let mut a4 = header(0.1, -0.3);
        a4.extend([0x1f; 32]);
        assert_eq!(Format::A4x64.values(&a4).unwrap()[..2], [0.1 * 15.0 - 0.3, 0.1 - 0.3]);
        let mut a8 = header(0.1, -0.3);
        a8.extend([200; 32]);
        assert_eq!(Format::A8x32.values(&a8).unwrap()[31], 0.1 * 200.0 - 0.3);
        let mut s8 = 0.1f32.to_le_bytes().to_vec();
        s8.extend([200; 128]);
        assert_eq!(Format::S8x128.values(&s8).unwrap()[127], 0.1 * -56.0);
    }
}
