//! MXFP4 of the Open Compute Project, as in GGUF: blocks of 32, 2^(e − 127) times an E2M1 number.
//!
//! Bytes: e u8; 16 of nibbles: low ones are elements 0 to 15, high ones 16 to 31. e = 255 is NaN in the standard; in ggml, and
//! here, it is 2^128; what then exceeds f32 is Inf. E2M1 numbers are kept doubled, with half the scale: whole numbers.

use super::blocks::{decode_each, encode_each, nibbles, pack_nibbles, part, put};
use super::fit::{Scaled, inverse};

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

/// The code nearest to `v`, which is in half scales; of two as near the one of smaller magnitude.
fn nearest(v: f32) -> u8 {
    let code = LEVELS[..8].windows(2).filter(|pair| v.abs() > f32::from(pair[0] + pair[1]) * 0.5).count() as u8;
    if v < 0.0 && code > 0 { code + 8 } else { code }
}

pub(super) fn encode(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<32>, b: &mut [u8; 17]| {
        // The scale at which the largest element becomes 4 to 8 of at most 6, and its neighbours. Above 252 a level is Inf.
        let middle = (v.unit.to_bits() >> 23) as i32 - 2;
        let mut best = f32::INFINITY;
        for e in middle - 1..=middle + 1 {
            let e = e.clamp(0, 252) as u8;
            let unit = half_scale(e) / v.unit;
            let q = v.x.map(|x| nearest(x * inverse(unit)));
            let error = v.x.iter().zip(&v.w).zip(&q).fold(0.0, |sum, ((x, w), q)| {
                let rest = x - unit * f32::from(LEVELS[usize::from(q & 15)]);
                sum + w * rest * rest
            });
            if error < best {
                best = error;
                b[0] = e;
                put(b, 1, pack_nibbles(&q));
            }
        }
    });
}
