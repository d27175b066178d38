//! Blocks of 32 with one scale: Q8_0, Q4_0 and Q5_0 are d·q; Q4_1 and Q5_1 are d·q + m.
//!
//! | format | bytes |
//! | --- | --- |
//! | q8_0 | d f16, 32 × i8 |
//! | q4_0 | d f16, 16 bytes: low nibbles are elements 0 to 15, high ones 16 to 31, each q + 8 |
//! | q4_1 | d f16, m f16, 16 bytes of nibbles, each q |
//! | q5_0 | d f16, u32 of fifth bits (element i is bit i), 16 bytes of nibbles, together q + 16 |
//! | q5_1 | d f16, m f16, u32 of fifth bits, 16 bytes of nibbles, together q |

use super::affine;
use super::blocks::{decode_each, encode_each, half, nibbles, pack_nibbles, part, put};
use super::fit::{Scaled, inverse, limit, round};
use super::multiple::{scale, starts, whole};
use half::f16;

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

pub(super) fn encode_q8_0(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<32>, b: &mut [u8; 34]| {
        let (d, q) = one_scale(v, 128.0);
        put(b, 0, d.to_le_bytes());
        put(b, 2, q.map(|q| q.wrapping_sub(128)));
    });
}

pub(super) fn encode_q4_0(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<32>, b: &mut [u8; 18]| {
        let (d, q) = one_scale(v, 8.0);
        put(b, 0, d.to_le_bytes());
        put(b, 2, pack_nibbles(&q));
    });
}

pub(super) fn encode_q5_0(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<32>, b: &mut [u8; 22]| {
        let (d, q) = one_scale(v, 16.0);
        put(b, 0, d.to_le_bytes());
        put(b, 2, fifth_bits(&q));
        put(b, 6, pack_nibbles(&q));
    });
}

pub(super) fn encode_q4_1(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<32>, b: &mut [u8; 20]| {
        let (d, m, q) = scale_and_offset(v, 15.0);
        put(b, 0, d.to_le_bytes());
        put(b, 2, m.to_le_bytes());
        put(b, 4, pack_nibbles(&q));
    });
}

pub(super) fn encode_q5_1(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<32>, b: &mut [u8; 24]| {
        let (d, m, q) = scale_and_offset(v, 31.0);
        put(b, 0, d.to_le_bytes());
        put(b, 2, m.to_le_bytes());
        put(b, 4, fifth_bits(&q));
        put(b, 8, pack_nibbles(&q));
    });
}

/// d, and q + `most` for q from −`most` to `most` − 1.
fn one_scale(v: &Scaled<32>, most: f32) -> (f16, [u8; 32]) {
    let level = whole(-most, most - 1.0);
    let (d, value) = v.half_outward(scale(&v.x, &v.w, level, &starts::<28>(most - 3.0, 0.25), 1));
    let inv = inverse(value);
    (d, v.x.map(|x| (level(x * inv) + most) as u8))
}

/// d, m, and q from 0 to `top`.
fn scale_and_offset(v: &Scaled<32>, top: f32) -> (f16, f16, [u8; 32]) {
    let line = affine::line(&v.x, &v.w, top, f32::INFINITY, 2);
    let ((d, scale), (m, offset)) = (v.half_outward(line.scale), v.half(line.offset));
    let inv = inverse(scale);
    (d, m, v.x.map(|x| round(limit((x - offset) * inv, 0.0, top)) as u8))
}

/// The fifth bits of numbers, as a u32.
fn fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    let bits = q.iter().enumerate().fold(0, |bits, (i, q)| bits | u32::from(q >> 4 & 1) << i);
    bits.to_le_bytes()
}
