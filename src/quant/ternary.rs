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

use super::blocks::{decode_each, half};

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
