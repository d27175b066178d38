//! Q6_K: 256 elements in 16 groups of 16, each d·s·q with q from −32 to 31 and s of 8 bits with a sign.
//!
//! Bytes: 128 of low nibbles; 64 of upper bits; 16 × s i8; d f16. Of each 128 elements, with 64 and 32 bytes: nibble byte i holds
//! elements i (low) and 64 + i (high); upper byte i holds those of i, 32 + i, 64 + i and 96 + i, low bits first. Stored is q + 32.

use super::blocks::{decode_each, encode_each, half, put};
use super::fit::{Scaled, inverse};
use super::multiple::{self, Effort, starts, whole};

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 210], out: &mut [f32; 256]| {
        let d = half(b[208], b[209]);
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(b[192 + group].cast_signed());
            let (side, quarter) = (group / 8, group % 8 / 2);
            let low = side * 64 + group % 4 * 16;
            let high = 128 + side * 32 + group % 2 * 16;
            for (i, out) in out.iter_mut().enumerate() {
                let q = b[low + i] >> (quarter / 2 * 4) & 15 | (b[high + i] >> (quarter * 2) & 3) << 4;
                *out = scale * (f32::from(q) - 32.0);
            }
        }
    });
}

pub(super) fn encode(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_each(values, importance, out, |v: &Scaled<256>, b: &mut [u8; 210]| {
        let level = whole(-32.0, 31.0);
        let effort = Effort { starts: &starts::<20>(29.5, 1.0 / 3.0), around: 2, turns: 2 };
        let found = multiple::block::<16, 16>(v, level, 128.0, &effort);
        put(b, 208, found.d.to_le_bytes());
        for (group, x) in v.x.as_chunks::<16>().0.iter().enumerate() {
            b[192 + group] = found.s[group].cast_unsigned();
            let inv = inverse(found.unit * f32::from(found.s[group]));
            let (side, quarter) = (group / 8, group % 8 / 2);
            let low = side * 64 + group % 4 * 16;
            let high = 128 + side * 32 + group % 2 * 16;
            for (i, x) in x.iter().enumerate() {
                let q = (level(x * inv) + 32.0) as u8;
                b[low + i] |= (q & 15) << (quarter / 2 * 4);
                b[high + i] |= (q >> 4) << (quarter * 2);
            }
        }
    });
}
