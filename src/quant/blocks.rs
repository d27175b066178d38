//! What the formats share: runs of blocks, small numbers in bytes.

use super::fit::Scaled;
use half::f16;

/// Decodes block after block of `B` bytes into `N` elements.
pub(super) fn decode_each<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&[u8; B], &mut [f32; N])) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

/// Encodes block after block of `N` elements into `B` bytes, which are 0 before.
pub(super) fn encode_each<const N: usize, const B: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    encode: impl Fn(&Scaled<N>, &mut [u8; B]),
) {
    let mut importance = importance.map(|all| all.as_chunks().0.iter());
    for (values, out) in values.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        out.fill(0);
        encode(&Scaled::new(values, importance.as_mut().and_then(Iterator::next)), out);
    }
}

/// Writes `bytes` at `at`.
pub(super) fn put<const N: usize, const B: usize>(block: &mut [u8; B], at: usize, bytes: [u8; N]) {
    for (i, byte) in bytes.into_iter().enumerate() {
        block[at + i] = byte;
    }
}

/// The inverse of [`nibbles`], of the low four bits.
pub(super) fn pack_nibbles(q: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| q[i] & 15 | q[i + 16] << 4)
}

/// The binary16 number in two bytes.
pub(super) fn half(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

/// The low four bits of sixteen bytes, then their high four.
pub(super) fn nibbles(bytes: &[u8; 16]) -> [u8; 32] {
    let mut out = [0; 32];
    for (at, byte) in bytes.iter().enumerate() {
        out[at] = byte & 15;
        out[at + 16] = byte >> 4;
    }
    out
}

/// `N` bytes of a block from `at`.
pub(super) fn part<const N: usize, const B: usize>(block: &[u8; B], at: usize) -> [u8; N] {
    std::array::from_fn(|i| block[at + i])
}

/// The nibbles of bytes, the low one of each first.
pub(super) fn half_bytes(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    bytes.iter().flat_map(|byte| [byte & 15, byte >> 4])
}
