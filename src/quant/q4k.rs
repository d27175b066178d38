//! Q4_K and Q5_K: 256 elements in 8 groups of 32, each d·s·q − dmin·m with q of 4 or 5 bits, s and m of 6.
//!
//! Bytes: d f16; dmin f16; 12 of scales; Q5_K: 32 of fifth bits (element 32·g + i: bit g of byte i); 128 of nibbles (byte i of
//! each 32 holds elements i and 32 + i of its 64). Scales: s of groups 0 to 3 are the low 6 bits of bytes 0 to 3, m those of
//! bytes 4 to 7. Of groups 4 to 7, bytes 8 to 11 hold the low nibbles (s low, m high), and the upper bits of bytes 0 to 3 and
//! 4 to 7 the upper two.

use super::affine::{self, Block, Search};
use super::blocks::{decode_each, encode_each, half, put};
use super::fit::Scaled;

/// Scale and minimum of a group, from the 12 bytes at 4.
fn scale_min<const B: usize>(b: &[u8; B], group: usize) -> (f32, f32) {
    let (s, m) = if group < 4 {
        (b[4 + group] & 63, b[8 + group] & 63)
    } else {
        let low = b[8 + group];
        (low & 15 | b[group] >> 6 << 4, low >> 4 | b[4 + group] >> 6 << 4)
    };
    (f32::from(s), f32::from(m))
}

pub(super) fn decode_q4(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 144], out: &mut [f32; 256]| {
        let (d, dmin) = (half(b[0], b[1]), half(b[2], b[3]));
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (s, m) = scale_min(b, group);
            let (scale, min) = (d * s, dmin * m);
            let (first, shift) = (16 + group / 2 * 32, group % 2 * 4);
            for (out, byte) in out.iter_mut().zip(&b[first..]) {
                *out = scale * f32::from(byte >> shift & 15) - min;
            }
        }
    });
}

pub(super) fn decode_q5(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 176], out: &mut [f32; 256]| {
        let (d, dmin) = (half(b[0], b[1]), half(b[2], b[3]));
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (s, m) = scale_min(b, group);
            let (scale, min) = (d * s, dmin * m);
            let (first, shift) = (48 + group / 2 * 32, group % 2 * 4);
            for (i, out) in out.iter_mut().enumerate() {
                let q = b[first + i] >> shift & 15 | (b[16 + i] >> group & 1) << 4;
                *out = scale * f32::from(q) - min;
            }
        }
    });
}

pub(super) fn encode_q4(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<256>, b: &mut [u8; 144]| {
        let found = affine::block::<8, 32>(v, &Search { top: 15.0, most: 63.0, around: 1, turns: 2 });
        write(b, 16, &found);
    });
}

pub(super) fn encode_q5(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<256>, b: &mut [u8; 176]| {
        let found = affine::block::<8, 32>(v, &Search { top: 31.0, most: 63.0, around: 2, turns: 2 });
        write(b, 48, &found);
        for (group, q) in found.q.iter().enumerate() {
            for (i, q) in q.iter().enumerate() {
                b[16 + i] |= (q >> 4) << group;
            }
        }
    });
}

/// Writes all but fifth bits; nibbles begin at `nibbles`.
fn write<const B: usize>(b: &mut [u8; B], nibbles: usize, found: &Block<8, 32>) {
    put(b, 0, found.d.to_le_bytes());
    put(b, 2, found.dmin.to_le_bytes());
    for group in 0..4 {
        let (s, m) = (found.s[group + 4], found.m[group + 4]);
        b[4 + group] = found.s[group] | s >> 4 << 6;
        b[8 + group] = found.m[group] | m >> 4 << 6;
        b[12 + group] = s & 15 | m << 4;
    }
    for (group, q) in found.q.iter().enumerate() {
        for (i, q) in q.iter().enumerate() {
            b[nibbles + group / 2 * 32 + i] |= (q & 15) << (group % 2 * 4);
        }
    }
}
