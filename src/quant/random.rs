//! Random numbers in every format, those that are only read too: for tests of devices and for benchmarks, which need no
//! model.

use super::{Format, fp8};
use crate::error::Result;
use half::f16;

/// Fills `out`, whole blocks of `format`, with numbers that reach about as far as `range`, from what `next` gives in (−1, 1).
///
/// # Errors
/// Those of [`Format::encode`].
pub fn fill(format: Format, range: f32, next: &mut dyn FnMut() -> f32, out: &mut [u8]) -> Result<()> {
    let info = format.info();
    if info.encode.is_none() {
        out.chunks_exact_mut(info.bytes).for_each(|block| codes(format, range, next, block));
        return Ok(());
    }
    let values: Vec<f32> = (0..out.len() / info.bytes * info.block).map(|_| next() * range).collect();
    format.encode(&values, None, out)
}

/// A block of a format that is only read: codes at random after a scale and, where there is one, an offset.
fn codes(format: Format, range: f32, next: &mut dyn FnMut() -> f32, block: &mut [u8]) {
    use Format::*;
    if format == F64 {
        block.copy_from_slice(&f64::from(next() * range).to_le_bytes());
        return;
    }
    if let E4m3 | E5m2 = format {
        // Codes of numbers that reach as far as the range; the numbers are in the order of their codes.
        let number = if format == E4m3 { fp8::e4m3 } else { fp8::e5m2 };
        let top = (0..127u8).rev().find(|code| number(*code) <= range).unwrap_or(0);
        let x = next();
        block[0] = (x.abs() * (f32::from(top) + 1.0)) as u8 | if x < 0.0 { 128 } else { 0 };
        return;
    }
    // The largest number of a block whose scale is 1, and what is added; bytes before the codes.
    let (top, offset, head) = match format {
        Z4x32 | Z4x128 => (8.0, 0.0, 4),
        A4x32 | A4x64 => (8.0, -range, 8),
        A8x32 | A8x64 => (128.0, -range, 8),
        S8x32 | S8x128 => (128.0, 0.0, 4),
        E4m3x32 | E4m3x128 => (448.0, 0.0, 4),
        Iq2Xxs | Iq2Xs | Iq2S => (167.0, 0.0, 2),
        Iq3Xxs | Iq3S => (480.0, 0.0, 2),
        _ => (1.0, 0.0, 4),
    };
    let (start, codes) = block.split_at_mut(head);
    let scale: f32 = range / top * (1.0 + next() / 2.0);
    match head {
        2 => start.copy_from_slice(&f16::from_f32(scale).to_le_bytes()),
        // Affine checkpoints hold 16 bits of both: the product with a code is exact, and so it is all the same whether a device
        // fuses the addition with it, which no shader can forbid.
        8 => start.copy_from_slice(&[scale, offset].map(|x| f16::from_f32(x).to_f32().to_le_bytes()).concat()),
        _ => start.copy_from_slice(&[scale, offset].map(f32::to_le_bytes).concat()[..head]),
    }
    if matches!(format, Z4x32 | Z4x128) {
        // A zero point in place of the lowest bits.
        start[0] = ((next() * 8.0) as i8).cast_unsigned();
    }
    for code in codes {
        let byte = ((next() + 1.0) * 128.0) as u8;
        // All ones are NaN in eight bits of floating point.
        *code = if byte & 127 == 127 { byte - 1 } else { byte };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in (−1, 1).
    fn numbers(mut state: u32) -> impl FnMut() -> f32 {
        move || {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        }
    }

    #[test]
    fn offsets_are_added_to_exact_products() {
        for (format, most) in [(Format::A4x32, 15), (Format::A4x64, 15), (Format::A8x32, 255), (Format::A8x64, 255)] {
            let mut bytes = vec![0; format.row_bytes(4096).unwrap()];
            fill(format, 0.25, &mut numbers(format as u32), &mut bytes).unwrap();
            for block in bytes.chunks_exact(format.info().bytes) {
                let [scale, offset] = [0, 4].map(|at| f32::from_le_bytes(block[at..at + 4].try_into().unwrap()));
                assert!((0..=most).all(|q| scale * q as f32 + offset == scale.mul_add(q as f32, offset)), "{format}: {scale}, {offset}");
            }
        }
    }

    #[test]
    fn every_format_holds_finite_numbers_of_the_range() {
        for row in &super::super::TABLE {
            let mut next = numbers(row.format as u32);
            let mut bytes = vec![0; row.format.row_bytes(1024).unwrap()];
            fill(row.format, 0.25, &mut next, &mut bytes).unwrap();
            let values = row.format.values(&bytes).unwrap();
            let most = values.iter().fold(0f32, |most, x| if x.is_finite() { most.max(x.abs()) } else { f32::INFINITY });
            let distinct: std::collections::BTreeSet<u32> = values.iter().map(|x| x.to_bits()).collect();
            assert!((0.1..1.0).contains(&most) && distinct.len() >= 8, "{}: {most}, {} numbers", row.name, distinct.len());
        }
    }
}
