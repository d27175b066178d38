//! Q2_K: 256 elements in 16 groups of 16, each d·s·q − dmin·m with q of 2 bits, s and m of 4.
//!
//! Bytes: 16 × (s in the low nibble, m in the high one); 64 bytes of q; d f16; dmin f16. Byte i of each 32 of q holds elements
//! i, 32 + i, 64 + i and 96 + i of its 128, low bits first.

use super::affine::{self, Search};
use super::blocks::{decode_each, encode_each, half, put};
use super::fit::Scaled;

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 84], out: &mut [f32; 256]| {
        let (d, dmin) = (half(b[80], b[81]), half(b[82], b[83]));
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (scale, min) = (d * f32::from(b[group] & 15), dmin * f32::from(b[group] >> 4));
            let first = 16 + group / 8 * 32 + group % 2 * 16;
            let shift = group % 8 / 2 * 2;
            for (out, byte) in out.iter_mut().zip(&b[first..]) {
                *out = scale * f32::from(byte >> shift & 3) - min;
            }
        }
    });
}

pub(super) fn encode(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<256>, b: &mut [u8; 84]| {
        let found = affine::block::<16, 16>(v, &Search { top: 3.0, most: 15.0, around: 1, turns: 2 });
        put(b, 80, found.d.to_le_bytes());
        put(b, 82, found.dmin.to_le_bytes());
        for (group, q) in found.q.iter().enumerate() {
            b[group] = found.s[group] | found.m[group] << 4;
            let first = 16 + group / 8 * 32 + group % 2 * 16;
            for (i, q) in q.iter().enumerate() {
                b[first + i] |= q << (group % 8 / 2 * 2);
            }
        }
    });
}
