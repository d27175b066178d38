//! IQ4_NL and IQ4_XS: q of 4 bits chooses one of sixteen [`LEVELS`], which are denser near zero.
//!
//! IQ4_NL: blocks of 32, d·level: d f16, 16 bytes of nibbles (low ones are elements 0 to 15). IQ4_XS: 256 elements in 8 groups of
//! 32, d·s·level with s from −32 to 31: d f16; u16 with the upper two bits of s + 32 (group g: bits 2·g); 4 bytes with their low
//! nibbles (group g: byte g / 2); 8 × 16 bytes of nibbles as in IQ4_NL.

use super::blocks::{decode_each, encode_each, half, nibbles, pack_nibbles, part, put};
use super::fit::{Scaled, inverse};
use super::multiple::{self, Effort, scale, starts};

/// What the sixteen values of q stand for.
const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn level(q: u8) -> f32 {
    f32::from(LEVELS[usize::from(q & 15)])
}

pub(super) fn decode_nl(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 18], out: &mut [f32; 32]| {
        let d = half(b[0], b[1]);
        for (out, q) in out.iter_mut().zip(nibbles(&part(b, 2))) {
            *out = d * level(q);
        }
    });
}

pub(super) fn decode_xs(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 136], out: &mut [f32; 256]| {
        let (d, high) = (half(b[0], b[1]), u16::from_le_bytes([b[2], b[3]]));
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = b[4 + group / 2] >> (group % 2 * 4) & 15;
            let s = low | ((high >> (group * 2) & 3) as u8) << 4;
            let scale = d * (f32::from(s) - 32.0);
            for (out, q) in out.iter_mut().zip(nibbles(&part(b, 8 + group * 16))) {
                *out = scale * level(q);
            }
        }
    });
}

/// The level nearest to `v`.
#[inline(always)]
fn nearest(v: f32) -> f32 {
    let mut level = f32::from(LEVELS[0]);
    for pair in LEVELS.windows(2) {
        let (below, above) = (f32::from(pair[0]), f32::from(pair[1]));
        level = if v > (below + above) * 0.5 { above } else { level };
    }
    level
}

/// The q of the level nearest to `v`.
fn nearest_q(v: f32) -> u8 {
    let above = LEVELS.windows(2).filter(|pair| v > (f32::from(pair[0]) + f32::from(pair[1])) * 0.5);
    above.count() as u8
}

pub(super) fn encode_nl(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<32>, b: &mut [u8; 18]| {
        let (d, unit) = v.half_outward(scale(&v.x, &v.w, nearest, &starts::<10>(99.0, 7.0), 2));
        let inv = inverse(unit);
        put(b, 0, d.to_le_bytes());
        put(b, 2, pack_nibbles(&v.x.map(|x| nearest_q(x * inv))));
    });
}

pub(super) fn encode_xs(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<256>, b: &mut [u8; 136]| {
        let effort = Effort { starts: &starts::<10>(99.0, 7.0), around: 1, turns: 2 };
        let found = multiple::block::<8, 32>(v, nearest, 32.0, &effort);
        put(b, 0, found.d.to_le_bytes());
        let mut high = 0;
        for (group, x) in v.x.as_chunks::<32>().0.iter().enumerate() {
            let s = (found.s[group] + 32).cast_unsigned();
            b[4 + group / 2] |= (s & 15) << (group % 2 * 4);
            high |= u16::from(s >> 4) << (group * 2);
            let inv = inverse(found.unit * f32::from(found.s[group]));
            put(b, 8 + group * 16, pack_nibbles(&x.map(|x| nearest_q(x * inv))));
        }
        put(b, 2, high.to_le_bytes());
    });
}
