//! IQ2_XXS, IQ2_XS and IQ2_S: 256 elements; eight at a time are an entry of a grid of [`LEVELS`], with a sign each, times
//! d·(0.5 + s)/4 with s of 4 bits. They are read, not written.
//!
//! | format | bytes |
//! | --- | --- |
//! | iq2_xxs | d f16; for each 32 elements 4 bytes of entries, then a u32: 4 × 7 bits of signs, s |
//! | iq2_xs | d f16; 32 × u16: entry of 9 bits, 7 of signs; 8 bytes of s, a nibble for each 16 elements |
//! | iq2_s | d f16; 32 low bytes of entries; 32 bytes of signs; 8 bytes of 4 × upper 2 bits of entries; 8 bytes of s |
//!
//! Seven bits of signs are those of the first seven elements; the eighth makes the number of minus signs even.

use super::blocks::{decode_each, half};
use super::grids::{IQ2_S, IQ2_XS, IQ2_XXS};

/// What the digits of grid entries stand for. Digit 3 does not occur.
const LEVELS: [f32; 4] = [8.0, 25.0, 43.0, 0.0];

/// All eight signs from seven.
pub(super) fn eight_signs(seven: u8) -> u8 {
    let seven = seven & 127;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

/// Writes eight elements.
fn write(out: &mut [f32; 8], scale: f32, entry: u16, signs: u8) {
    for (i, out) in out.iter_mut().enumerate() {
        let value = scale * LEVELS[usize::from(entry >> (2 * i) & 3)];
        *out = if signs >> i & 1 == 1 { -value } else { value };
    }
}

/// The scale of elements whose s is the nibble `at` of `bytes`.
fn scale(d: f32, bytes: &[u8], at: usize) -> f32 {
    d * (0.5 + f32::from(bytes[at / 2] >> (at % 2 * 4) & 15)) * 0.25
}

pub(super) fn decode_xxs(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 66], out: &mut [f32; 256]| {
        let d = half(b[0], b[1]);
        for (b, out) in b[2..].as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let rest = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
            let scale = d * (0.5 + (rest >> 28) as f32) * 0.25;
            for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                write(out, scale, IQ2_XXS[usize::from(b[i])], eight_signs((rest >> (7 * i)) as u8));
            }
        }
    });
}

pub(super) fn decode_xs(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 74], out: &mut [f32; 256]| {
        let d = half(b[0], b[1]);
        for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let word = u16::from_le_bytes([b[2 + 2 * i], b[3 + 2 * i]]);
            write(out, scale(d, &b[66..], i / 2), IQ2_XS[usize::from(word & 511)], eight_signs((word >> 9) as u8));
        }
    });
}

pub(super) fn decode_s(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 82], out: &mut [f32; 256]| {
        let d = half(b[0], b[1]);
        for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let high = u16::from(b[66 + i / 4] >> (i % 4 * 2) & 3);
            let entry = u16::from(b[2 + i]) | high << 8;
            write(out, scale(d, &b[74..], i / 2), IQ2_S[usize::from(entry)], b[34 + i]);
        }
    });
}
