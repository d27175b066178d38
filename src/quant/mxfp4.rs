//! MXFP4 of the Open Compute Project, as in GGUF: blocks of 32, 2^(e − 127) times an E2M1 number.
//!
//! Bytes: e u8; 16 of nibbles: low ones are elements 0 to 15, high ones 16 to 31. e = 255 is NaN in the standard; in ggml, and
//! here, it is 2^128; what then exceeds f32 is Inf. E2M1 numbers are kept doubled, with half the scale: whole numbers.

use super::blocks::{decode_each, nibbles, part};

/// Twice the E2M1 numbers, in the order of their codes.
const LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 2^(e − 128), half the block's scale.
fn half_scale(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 17], out: &mut [f32; 32]| {
        let d = half_scale(b[0]);
        for (out, q) in out.iter_mut().zip(nibbles(&part(b, 1))) {
            *out = d * f32::from(LEVELS[usize::from(q & 15)]);
        }
    });
}
