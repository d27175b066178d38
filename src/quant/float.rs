//! Formats whose elements are numbers of their own: binary32, binary16 and its upper-half cousin bfloat16.

use super::blocks::decode_each;
use super::fit::limit;
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

/// Rounded to the nearest, as transformers does where a model runs in f32.
pub(super) fn decode_f64(bytes: &[u8], out: &mut [f32]) {
    decode_each(bytes, out, |block: &[u8; 8], out: &mut [f32; 1]| out[0] = f64::from_le_bytes(*block) as f32);
}

pub(super) fn encode_f32(values: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    for (value, out) in values.iter().zip(out.as_chunks_mut().0) {
        *out = value.to_le_bytes();
    }
}

pub(super) fn encode_f16(values: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    for (value, out) in values.iter().zip(out.as_chunks_mut().0) {
        *out = f16::from_f32(limit(*value, -65504.0, 65504.0)).to_le_bytes();
    }
}

pub(super) fn encode_bf16(values: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    let most = bf16::MAX.to_f32();
    for (value, out) in values.iter().zip(out.as_chunks_mut().0) {
        *out = bf16::from_f32(limit(*value, -most, most)).to_le_bytes();
    }
}
