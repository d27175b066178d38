//! NF4 and FP4 of bitsandbytes: blocks of 64, s times one of sixteen levels. Bytes: s f32, 32 of nibbles; neighbours share a
//! byte, the first in its low nibble.

use super::grouped::decode_table;

/// Quantiles of the normal distribution, as QLoRA states them.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A sign, and twelfths: 0, 1/16, 8, 12, 4, 6, 2, 3.
pub const FP4: [f32; 16] = {
    let twelfths = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut levels = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        levels[i] = twelfths[i] / 12.0;
        levels[i + 8] = -(twelfths[i] / 12.0);
        i += 1;
    }
    levels
};

pub(super) fn decode_nf4(bytes: &[u8], out: &mut [f32]) {
    decode_table::<64>(bytes, out, &NF4);
}

pub(super) fn decode_fp4(bytes: &[u8], out: &mut [f32]) {
    decode_table::<64>(bytes, out, &FP4);
}
