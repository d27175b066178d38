//! The two kinds of numbers that the oracle computes in, and how sums are taken in them.

use crate::error::{Error, Result};
use crate::quant::Format;
use crate::tensor::DType;
use half::f16;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// f32 or f64: arithmetic of the oracle. Every method rounds as the type itself does.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + 'static
{
    /// `f32` or `f64`.
    const NAME: &'static str;
    /// An f32, exactly.
    fn from_f32(x: f32) -> Self;
    /// The nearest value to an f64.
    fn from_f64(x: f64) -> Self;
    /// The nearest f32.
    fn to_f32(self) -> f32;
    /// The value after a stay in f16 storage: nearest, ties to even, infinite beyond 65,504.
    fn round_to_f16(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// e to this power.
    fn exp(self) -> Self;
    /// ln(1 + x), as exact for small x.
    fn ln_1p(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Magnitude.
    fn abs(self) -> Self;
    /// The next number up (1) or down (-1), or this one (0); of 0, and of what is not finite, itself.
    fn moved(self, by: i8) -> Self;
    /// `y[n] = dot(x, rows[n])`, of rows that are as long as `x` and lie one after another, with the bits of [`dot`].
    fn dots(x: &[Self], rows: &[Self], y: &mut [Self]);
}

macro_rules! real {
    ($t:ident $name:literal $from_f16:ident $to_f16:ident $wide:ident) => {
        impl Real for $t {
            const NAME: &'static str = $name;
            fn from_f32(x: f32) -> Self {
                $t::from(x)
            }
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            fn to_f32(self) -> f32 {
                self as f32
            }
            fn round_to_f16(self) -> Self {
                f16::$to_f16(self).$from_f16()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln_1p(self) -> Self {
                self.ln_1p()
            }
            fn tanh(self) -> Self {
                self.tanh()
            }
            fn abs(self) -> Self {
                self.abs()
            }
            fn moved(self, by: i8) -> Self {
                match by {
                    _ if self == 0.0 || !self.is_finite() => self,
                    0 => self,
                    1.. => self.next_up(),
                    _ => self.next_down(),
                }
            }
            fn dots(x: &[Self], rows: &[Self], y: &mut [Self]) {
                if x.is_empty() {
                    return y.fill(0.0);
                }
                #[cfg(target_arch = "x86_64")]
                if std::arch::is_x86_feature_detected!("avx") {
                    // SAFETY: this processor has AVX.
                    return unsafe { super::wide::$wide(x, rows, y, tree) };
                }
                for (y, row) in y.iter_mut().zip(rows.chunks_exact(x.len())) {
                    *y = dot(x, row);
                }
            }
        }
    };
}

real!(f32 "f32" to_f32 from_f32 dots_f32);
real!(f64 "f64" to_f64 from_f64 dots_f64);

/// Partial sums of a reduction. Several short sums round less than one long one, as on a GPU, and fill vector registers.
pub(super) const LANES: usize = 16;

/// `Σ a[i]·b[i]` over as many as both have: element i goes to partial sum i mod 16, these are added as a tree.
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut partial = [T::default(); LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            partial[lane] = partial[lane] + a[lane] * b[lane];
        }
    }
    // Where one of them is longer, its chunk goes on where the other's rest ends.
    let a_rest = a.get(b.len()).map_or(a_rest, |chunk| &chunk[..]);
    let b_rest = b.get(a.len()).map_or(b_rest, |chunk| &chunk[..]);
    for (sum, (a, b)) in partial.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum = *sum + *a * *b;
    }
    tree(partial)
}

/// `Σ x[i]`, in the order of `dot`.
pub fn sum<T: Real>(x: &[T]) -> T {
    let mut partial = [T::default(); LANES];
    for chunk in x.chunks(LANES) {
        for (sum, x) in partial.iter_mut().zip(chunk) {
            *sum = *sum + *x;
        }
    }
    tree(partial)
}

/// Σ over positions of `weights[i]·rows[i]` into `out`: position i goes to partial sum i mod 16, these are added as a tree.
/// `row` gives a position's row, as wide as `out`.
pub fn mix<'a, T: Real>(weights: &[T], row: impl Fn(usize) -> &'a [T], out: &mut [T]) {
    let width = out.len();
    let mut partial = vec![T::default(); LANES * width];
    for (i, &weight) in weights.iter().enumerate() {
        let lane = i % LANES;
        for (sum, x) in partial[lane * width..][..width].iter_mut().zip(row(i)) {
            *sum = *sum + weight * *x;
        }
    }
    for (d, out) in out.iter_mut().enumerate() {
        *out = tree(std::array::from_fn(|lane| partial[lane * width + d]));
    }
}

/// Sum of the partial sums, neighbours half the width apart first.
#[inline(always)]
fn tree<T: Real>(mut partial: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            partial[i] = partial[i] + partial[i + width];
        }
        width /= 2;
    }
    partial[0]
}

/// Decodes rows of `format` into `out`, exactly. `bytes` begins with the first row and holds all of them.
///
/// # Errors
/// Those of `Format::decode`.
pub fn decode<T: Real>(bytes: &[u8], format: Format, out: &mut [T]) -> Result<()> {
    match format.dtype() {
        Some(DType::F32) => each(bytes, out, f32::from_le_bytes),
        Some(DType::F16) => each(bytes, out, |b| widen(u16::from_le_bytes(b))),
        Some(DType::BF16) => each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Some(DType::I32) | None => {
            // Blocks of all formats fill this many elements evenly; rows are whole blocks.
            let mut values = [0.0f32; 1024];
            let mut at = 0;
            for out in out.chunks_mut(values.len()) {
                let length =
                    format.row_bytes(out.len()).ok_or_else(|| Error::invalid("weights", format!("{} elements of {format}", out.len())))?;
                let bytes = bytes.get(at..at + length).ok_or_else(|| Error::invalid("weights", format!("{format}: rows are cut off")))?;
                format.decode(bytes, &mut values[..out.len()])?;
                for (out, value) in out.iter_mut().zip(values) {
                    *out = T::from_f32(value);
                }
                at += length;
            }
        }
    }
    Ok(())
}

fn each<const N: usize, T: Real>(bytes: &[u8], out: &mut [T], value: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = T::from_f32(value(*bytes));
    }
}

/// The f32 of an f16's bits, without branches, so that whole rows go through vector registers.
fn widen(bits: u16) -> f32 {
    let bits = u32::from(bits);
    // In an f32's place the magnitude, subnormal or not, reads 2^(127 − 15) too small.
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let not_finite = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | not_finite | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn widens_every_f16() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (widen(bits), f16::from_bits(bits).to_f32());
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{bits:#x}: {found} {expected}");
        }
    }

    #[test]
    fn sums_of_every_length() {
        for n in [0usize, 1, 15, 16, 17, 33, 100] {
            let x: Vec<f32> = (1..=n).map(|i| i as f32).collect();
            let expected = (n * (n + 1) / 2) as f32;
            assert_eq!(sum(&x), expected);
            assert_eq!(dot(&x, &vec![1.0; n]), expected);
            for rows in 0..10 {
                let weights: Vec<f32> = (0..rows * n).map(|i| (i as f32 * 0.7).sin()).collect();
                let mut found = vec![f32::NAN; rows];
                f32::dots(&x, &weights, &mut found);
                let expected: Vec<f32> = (0..rows).map(|row| dot(&x, &weights[row * n..][..n])).collect();
                assert_eq!(found, expected, "{rows} rows of {n}");
            }
            let mut mixed = [0.0f32; 2];
            let rows: Vec<[f32; 2]> = x.iter().map(|x| [*x, 2.0 * x]).collect();
            mix(&vec![1.0; n], |i| &rows[i], &mut mixed);
            assert_eq!(mixed, [expected, 2.0 * expected]);
        }
    }

    #[test]
    fn partial_sums_round_less_than_one_sum() {
        let x = vec![0.1f32; 1 << 20];
        let exact = f64::from(0.1f32) * f64::from(1 << 20);
        let one: f32 = x.iter().sum();
        assert!((f64::from(sum(&x)) - exact).abs() * 10.0 < (f64::from(one) - exact).abs());
    }

    #[test]
    fn f16_rounds_to_even_and_overflows() {
        for (x, expected) in [
            (1.0, 1.0),
            (1.0 + 1.0 / 2048.0, 1.0),
            (1.0 + 3.0 / 2048.0, 1.0 + 2.0 / 1024.0),
            (65_519.0, 65_504.0),
            (65_520.0, f64::INFINITY),
            (1e-8, 0.0),
        ] {
            assert_eq!((x as f32).round_to_f16(), expected as f32);
            assert_eq!(x.round_to_f16(), expected);
        }
    }

    #[test]
    fn decodes_plain_values() {
        let mut out = [0.0f64; 1];
        for (bytes, format, expected) in [
            (&1.5f32.to_le_bytes()[..], Format::F32, 1.5),
            (&f16::from_f32(-2.25).to_le_bytes()[..], Format::F16, -2.25),
            (&bf16::from_f32(3.0).to_le_bytes()[..], Format::BF16, 3.0),
        ] {
            decode(bytes, format, &mut out).unwrap();
            assert_eq!(out, [expected]);
        }
    }
}
