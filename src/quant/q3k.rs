//! Q3_K: 256 elements in 16 groups of 16, each d·s·q with q from −4 to 3 and s from −32 to 31.
//!
//! Bytes: 32 of high bits; 64 of low bits; 12 of scales; d f16. The third bit of element 32·k + i is bit k of high byte i; q is
//! the three bits − 4. Low bits stand as in Q2_K. Scales are s + 32: their low nibbles in 8 bytes (groups 0 to 7 low, 8 to 15
//! high), their upper two bits in 4 bytes (group g: byte g % 4, bits 2·(g / 4)).

use super::blocks::{decode_each, encode_each, half, put};
use super::fit::{Scaled, inverse};
use super::multiple::{self, Effort, starts, whole};

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 110], out: &mut [f32; 256]| {
        let d = half(b[108], b[109]);
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let low = b[96 + group % 8] >> (group / 8 * 4) & 15;
            let high = b[104 + group % 4] >> (group / 4 * 2) & 3;
            let scale = d * (f32::from(low | high << 4) - 32.0);
            let side = group % 2 * 16;
            let (first, shift, bit) = (32 + group / 8 * 32 + side, group % 8 / 2 * 2, group / 2);
            for (i, out) in out.iter_mut().enumerate() {
                let q = (b[first + i] >> shift & 3) | (b[side + i] >> bit & 1) << 2;
                *out = scale * (f32::from(q) - 4.0);
            }
        }
    });
}

pub(super) fn encode(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<256>, b: &mut [u8; 110]| {
        let level = whole(-4.0, 3.0);
        let effort = Effort { starts: &starts::<20>(2.6, 0.2), around: 1, turns: 2 };
        let found = multiple::block::<16, 16>(v, level, 32.0, &effort);
        put(b, 108, found.d.to_le_bytes());
        for (group, x) in v.x.as_chunks::<16>().0.iter().enumerate() {
            let s = (found.s[group] + 32).cast_unsigned();
            b[96 + group % 8] |= (s & 15) << (group / 8 * 4);
            b[104 + group % 4] |= (s >> 4) << (group / 4 * 2);
            let inv = inverse(found.unit * f32::from(found.s[group]));
            let side = group % 2 * 16;
            for (i, x) in x.iter().enumerate() {
                let q = (level(x * inv) + 4.0) as u8;
                b[32 + group / 8 * 32 + side + i] |= (q & 3) << (group % 8 / 2 * 2);
                b[side + i] |= (q >> 2) << (group / 2);
            }
        }
    });
}
