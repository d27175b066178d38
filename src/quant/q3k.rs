//! Q3_K: 256 elements in 16 groups of 16, each d·s·q with q from −4 to 3 and s from −32 to 31.
//!
//! Bytes: 32 of high bits; 64 of low bits; 12 of scales; d f16. The third bit of element 32·k + i is bit k of high byte i; q is
//! the three bits − 4. Low bits stand as in Q2_K. Scales are s + 32: their low nibbles in 8 bytes (groups 0 to 7 low, 8 to 15
//! high), their upper two bits in 4 bytes (group g: byte g % 4, bits 2·(g / 4)).

use super::blocks::{decode_each, half};

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
