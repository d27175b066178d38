//! FP8 of the Open Compute Project: E4M3 without infinities, in blocks of n with an f32 scale (s f32, n bytes) or plain, and
//! plain E5M2.
//!
//! A number of E4M3 is a sign, 4 bits of exponent (bias 7) and 3 of mantissa; the largest is 448, all ones are NaN. One of
//! E5M2 is the upper half of an f16.

use super::blocks::decode_each;
use super::grouped::decode_levels;
use half::f16;

/// The number that a code stands for.
pub fn e4m3(code: u8) -> f32 {
    let magnitude = u32::from(code & 127);
    let value = match magnitude {
        127 => f32::NAN,
        0..8 => magnitude as f32 / 512.0,
        _ => f32::from_bits((magnitude << 20) + (120 << 23)),
    };
    if code > 127 { -value } else { value }
}

/// The same for E5M2.
pub(super) fn e5m2(code: u8) -> f32 {
    f16::from_bits(u16::from(code) << 8).to_f32()
}

pub(super) fn decode_e4m3(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |block: &[u8; 1], out: &mut [f32; 1]| out[0] = e4m3(block[0]));
}

pub(super) fn decode_e5m2(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |block: &[u8; 1], out: &mut [f32; 1]| out[0] = e5m2(block[0]));
}

pub(super) fn decode<const N: usize>(bytes: &[u8], out: &mut [f32]) {
    decode_levels::<N>(bytes, out, e4m3);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_standard() {
        for (code, value) in [(0, 0.0), (1, 0.001953125), (7, 0.013671875), (8, 0.015625), (0x38, 1.0), (0x7e, 448.0), (0xfe, -448.0)] {
            assert_eq!(e4m3(code), value, "{code:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan() && e4m3(0x80).is_sign_negative());
        for (code, value) in
            [(0, 0.0), (1, 2f32.powi(-16)), (4, 2f32.powi(-14)), (0x3c, 1.0), (0x7b, 57344.0), (0xfb, -57344.0), (0x7c, f32::INFINITY)]
        {
            assert_eq!(e5m2(code), value, "{code:#x}");
        }
        assert!((0x7d..=0x7f).all(|code| e5m2(code).is_nan()));
        // Codes are in the order of the numbers.
        assert!((0..0x7e).all(|code| e4m3(code) < e4m3(code + 1)));
    }
}
