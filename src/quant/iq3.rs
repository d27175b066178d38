//! IQ3_XXS and IQ3_S: 256 elements; four at a time are an entry of a grid of levels, with a sign each. They are read, not written.
//!
//! | format | element | bytes |
//! | --- | --- | --- |
//! | iq3_xxs | d·(0.5 + s)/2·level | d f16; 64 entries; for each 32 elements a u32: 4 × 7 bits of signs (as in IQ2_XXS), s |
//! | iq3_s | d·(1 + 2·s)·level | d f16; 64 low bytes of entries; 8 bytes of ninth bits; 32 bytes of signs; 4 bytes of s, a nibble for each 32 elements |

use super::blocks::{decode_each, half};
use super::grids::{IQ3_S, IQ3_XXS};
use super::iq2::eight_signs;

/// What the digits of grid entries stand for in IQ3_XXS. In IQ3_S digit n is 2·n + 1.
const LEVELS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];

/// Digit `i` of an entry.
fn digit(entry: u16, i: usize) -> u8 {
    (entry >> (4 * i) & 7) as u8
}

/// The value, or its negative where bit `i` of `signs` is set.
fn signed(value: f32, signs: u8, i: usize) -> f32 {
    if signs >> i & 1 == 1 { -value } else { value }
}

pub(super) fn decode_xxs(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 98], out: &mut [f32; 256]| {
        let d = half(b[0], b[1]);
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let at = 66 + 4 * group;
            let rest = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
            let scale = d * (0.5 + (rest >> 28) as f32) * 0.5;
            for (i, out) in out.iter_mut().enumerate() {
                let entry = IQ3_XXS[usize::from(b[2 + 8 * group + i / 4])];
                let value = scale * LEVELS[usize::from(digit(entry, i % 4))];
                *out = signed(value, eight_signs((rest >> (7 * (i / 8))) as u8), i % 8);
            }
        }
    });
}

pub(super) fn decode_s(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |b: &[u8; 110], out: &mut [f32; 256]| {
        let d = half(b[0], b[1]);
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let s = b[106 + group / 2] >> (group % 2 * 4) & 15;
            let scale = d * (1.0 + 2.0 * f32::from(s));
            for (i, out) in out.iter_mut().enumerate() {
                let high = u16::from(b[66 + group] >> (i / 4) & 1);
                let entry = IQ3_S[usize::from(u16::from(b[2 + 8 * group + i / 4]) | high << 8)];
                let value = scale * (1.0 + 2.0 * f32::from(digit(entry, i % 4)));
                *out = signed(value, b[74 + 4 * group + i / 8], i % 8);
            }
        }
    });
}
