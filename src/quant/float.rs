//! Formats whose elements are numbers of their own: binary32, binary16 and its upper-half cousin bfloat16.

use super::blocks::decode_each;
use half::{bf16, f16};

pub(super) fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |block: &[u8; 4], out: &mut [f32; 1]| out[0] = f32::from_le_bytes(*block));
}

pub(super) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |block: &[u8; 2], out: &mut [f32; 1]| out[0] = f16::from_le_bytes(*block).to_f32());
}

pub(super) fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |block: &[u8; 2], out: &mut [f32; 1]| out[0] = bf16::from_le_bytes(*block).to_f32());
}
