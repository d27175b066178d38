//! Formats of one or two bits with one scale: TQ1_0 and TQ2_0 (−d, 0, d), Q1_0 (−d, d), Q2_0 (−d, 0, d, 2·d).
//!
//! | format | block | bytes |
//! | --- | --- | --- |
//! | tq1_0 | 256 | 32 + 16 bytes of five ternary digits, 4 of four; d f16 |
//! | tq2_0 | 256 | 64 bytes (byte i of each 32: elements i, 32 + i, 64 + i, 96 + i of its 128, low bits first); d f16 |
//! | q1_0 | 128 | d f16; 16 bytes, element i is bit i % 8 of byte i / 8, set for d |
//! | q2_0 | 64 | d f16; 16 bytes, element i is bits 2·(i % 4) of byte i / 4 |
//!
//! TQ1_0: a byte is ⌈256·t / 243⌉ of t with five digits, the first most significant, so that digit n is the carry into the ninth
//! bit of 3·(byte·3ⁿ mod 256). Digit n of byte i is element 32·n + i of the first 160, 16·n + i of the next 80, 4·n + i of the
//! last 16. Q1_0 and Q2_0 are as in ggml of 2026. GGUF type 42 has a second meaning: a fork's files have blocks of 128 in 34 bytes
//! under that number; the size of their tensors tells them apart.

use super::blocks::{decode_each, encode_each, half, put};
use super::fit::{Scaled, inverse};
use super::multiple::{scale, starts, whole};
use half::f16;

/// Where the digits of TQ1_0 stand: first byte, bytes, first element, digits.
const TQ1_PARTS: [(usize, usize, usize, usize); 3] = [(0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4)];

pub(super) fn decode_tq1(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 54], out: &mut [f32; 256]| {
        let d = half(b[52], b[53]);
        for (first, count, element, digits) in TQ1_PARTS {
            for i in 0..count {
                let mut rest = b[first + i];
                for n in 0..digits {
                    let digit = (u16::from(rest) * 3) >> 8;
                    out[element + n * count + i] = d * (f32::from(digit) - 1.0);
                    rest = rest.wrapping_mul(3);
                }
            }
        }
    });
}

pub(super) fn decode_tq2(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 66], out: &mut [f32; 256]| {
        let d = half(b[64], b[65]);
        for (i, out) in out.iter_mut().enumerate() {
            let q = b[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
            *out = d * (f32::from(q) - 1.0);
        }
    });
}

pub(super) fn decode_q1(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 18], out: &mut [f32; 128]| {
        let d = half(b[0], b[1]);
        for (i, out) in out.iter_mut().enumerate() {
            *out = if b[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
        }
    });
}

pub(super) fn decode_q2(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 18], out: &mut [f32; 64]| {
        let d = half(b[0], b[1]);
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * (f32::from(b[2 + i / 4] >> (i % 4 * 2) & 3) - 1.0);
        }
    });
}

/// The best d for −d, 0 and d, and q + 1. Whichever elements are not 0, they are those of largest magnitude; d is then their
/// mean. All numbers of them are tried.
fn three(v: &Scaled<256>) -> (f16, [u8; 256]) {
    let mut order: [(f32, f32); 256] = std::array::from_fn(|i| (v.x[i].abs(), v.w[i]));
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut d, mut most, mut wx, mut w) = (0.0, 0.0, 0.0, 0.0);
    for (x, weight) in order {
        wx += weight * x;
        w += weight;
        if wx * wx / w > most {
            (d, most) = (wx / w, wx * wx / w);
        }
    }
    let (d, value) = v.half(d);
    let (level, inv) = (whole(-1.0, 1.0), inverse(value));
    (d, v.x.map(|x| (level(x * inv) + 1.0) as u8))
}

pub(super) fn encode_tq1(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<256>, b: &mut [u8; 54]| {
        let (d, q) = three(v);
        put(b, 52, d.to_le_bytes());
        for (first, count, element, digits) in TQ1_PARTS {
            for i in 0..count {
                // A byte of four digits is one of five with the last 0.
                let number = (0..5).fold(0, |number, n| number * 3 + if n < digits { u16::from(q[element + n * count + i]) } else { 0 });
                b[first + i] = (number * 256).div_ceil(243) as u8;
            }
        }
    });
}

pub(super) fn encode_tq2(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<256>, b: &mut [u8; 66]| {
        let (d, q) = three(v);
        put(b, 64, d.to_le_bytes());
        for (i, q) in q.iter().enumerate() {
            b[i / 128 * 32 + i % 32] |= q << (i % 128 / 32 * 2);
        }
    });
}

pub(super) fn encode_q1(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<128>, b: &mut [u8; 18]| {
        // The best d is the mean magnitude.
        let (wx, w) = v.x.iter().zip(&v.w).fold((0.0, 0.0), |(wx, sum), (x, w)| (wx + w * x.abs(), sum + w));
        put(b, 0, v.half(wx / w).0.to_le_bytes());
        for (i, x) in v.x.iter().enumerate() {
            b[2 + i / 8] |= u8::from(*x >= 0.0) << (i % 8);
        }
    });
}

pub(super) fn encode_q2(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<64>, b: &mut [u8; 18]| {
        let level = whole(-1.0, 2.0);
        let (d, unit) = v.half(scale(&v.x, &v.w, level, &starts::<20>(1.0, 0.2), 2));
        let inv = inverse(unit);
        put(b, 0, d.to_le_bytes());
        for (i, x) in v.x.iter().enumerate() {
            b[2 + i / 4] |= ((level(x * inv) + 1.0) as u8) << (i % 4 * 2);
        }
    });
}
