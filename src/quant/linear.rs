//! Blocks of 32 with one scale: Q8_0, Q4_0 and Q5_0 are d·q; Q4_1 and Q5_1 are d·q + m.
//!
//! | format | bytes |
//! | --- | --- |
//! | q8_0 | d f16, 32 × i8 |
//! | q4_0 | d f16, 16 bytes: low nibbles are elements 0 to 15, high ones 16 to 31, each q + 8 |
//! | q4_1 | d f16, m f16, 16 bytes of nibbles, each q |
//! | q5_0 | d f16, u32 of fifth bits (element i is bit i), 16 bytes of nibbles, together q + 16 |
//! | q5_1 | d f16, m f16, u32 of fifth bits, 16 bytes of nibbles, together q |

use super::blocks::{decode_each, half, nibbles, part};

pub(super) fn decode_q8_0(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 34], out: &mut [f32; 32]| {
        let d = half(b[0], b[1]);
        for (out, q) in out.iter_mut().zip(&b[2..]) {
            *out = d * f32::from(q.cast_signed());
        }
    });
}

pub(super) fn decode_q4_0(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 18], out: &mut [f32; 32]| {
        let d = half(b[0], b[1]);
        for (out, q) in out.iter_mut().zip(nibbles(&part(b, 2))) {
            *out = d * (f32::from(q) - 8.0);
        }
    });
}

pub(super) fn decode_q4_1(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 20], out: &mut [f32; 32]| {
        let (d, m) = (half(b[0], b[1]), half(b[2], b[3]));
        for (out, q) in out.iter_mut().zip(nibbles(&part(b, 4))) {
            *out = d * f32::from(q) + m;
        }
    });
}

pub(super) fn decode_q5_0(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 22], out: &mut [f32; 32]| {
        let d = half(b[0], b[1]);
        for (out, q) in out.iter_mut().zip(five_bits(part(b, 2), part(b, 6))) {
            *out = d * (f32::from(q) - 16.0);
        }
    });
}

pub(super) fn decode_q5_1(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 24], out: &mut [f32; 32]| {
        let (d, m) = (half(b[0], b[1]), half(b[2], b[3]));
        for (out, q) in out.iter_mut().zip(five_bits(part(b, 4), part(b, 8))) {
            *out = d * f32::from(q) + m;
        }
    });
}

/// Numbers of five bits: the fifth bits as a u32, the others as nibbles.
fn five_bits(high: [u8; 4], low: [u8; 16]) -> [u8; 32] {
    let high = u32::from_le_bytes(high);
    let mut q = nibbles(&low);
    for (at, q) in q.iter_mut().enumerate() {
        *q |= ((high >> at & 1) as u8) << 4;
    }
    q
}
