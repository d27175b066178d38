//! Statistics of a value: the definition that statistics reduced on a GPU are compared to.
//! count, NaN, infinite and zero elements; of the finite ones mean = Σx/n, rms = √(Σx²/n), minimum and maximum.

use crate::exec::Stats;

/// Exponent bits of an f32: all set in what is not finite.
const EXPONENT: u32 = 0x7f80_0000;
/// Mantissa bits: any set makes a non-finite value NaN.
const MANTISSA: u32 = 0x007f_ffff;

/// Statistics of `values`, rows of `width` elements ([rows, width], or [heads·T, positions] for scores).
/// Sums are taken in f64. The place of `max_abs` is the first NaN, else the first infinity, else the first element of
/// largest magnitude. Without finite elements mean, rms, min and max are 0.
pub fn stats(values: &[f32], width: usize) -> Stats {
    let mut s = Stats { count: values.len() as u64, ..Stats::default() };
    let (mut sum, mut squares, mut finite) = (0.0f64, 0.0f64, 0u64);
    let (mut rank, mut place) = (None, 0);
    for (i, &x) in values.iter().enumerate() {
        let (is_finite, is_nan) = (x.to_bits() & EXPONENT != EXPONENT, x.to_bits() & EXPONENT == EXPONENT && x.to_bits() & MANTISSA != 0);
        // Without its sign, an f32 orders as its bits do: finite magnitudes, infinity, then every NaN alike.
        let magnitude = if is_nan { u32::MAX } else { x.to_bits() & !(1 << 31) };
        if rank.is_none_or(|r| magnitude > r) {
            (rank, place) = (Some(magnitude), i);
        }
        if is_finite {
            sum += f64::from(x);
            squares += f64::from(x) * f64::from(x);
            s.min = if finite == 0 { x } else { s.min.min(x) };
            s.max = if finite == 0 { x } else { s.max.max(x) };
            finite += 1;
        }
        s.nan += u64::from(is_nan);
        s.inf += u64::from(!is_finite && !is_nan);
        s.zero += u64::from(x == 0.0);
    }
    if let (Some(x), true) = (values.get(place), width > 0) {
        s.max_abs = x.abs();
        (s.max_row, s.max_dim) = ((place / width) as u32, (place % width) as u32);
    }
    if finite > 0 {
        s.mean = (sum / finite as f64) as f32;
        s.rms = (squares / finite as f64).sqrt() as f32;
    }
    s
}

/// Statistics of each of `heads` heads of a value [rows, heads·head_dim] or [heads, T, positions]. Places count in the
/// whole value.
pub fn head_stats(values: &[f32], shape: &[usize], heads: usize) -> Vec<Stats> {
    let width = shape.last().copied().unwrap_or(0);
    let of = |head: usize| {
        if let [_, tokens, positions] = *shape {
            let cells = tokens * positions;
            let mut s = stats(values.get(head * cells..(head + 1) * cells).unwrap_or_default(), positions);
            s.max_row += (head * tokens) as u32;
            return s;
        }
        let dim = width / heads.max(1);
        let part: Vec<f32> = values.chunks_exact(width.max(1)).flat_map(|row| &row[head * dim..(head + 1) * dim]).copied().collect();
        let mut s = stats(&part, dim);
        s.max_dim += (head * dim) as u32;
        s
    };
    (0..heads).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let s = stats(&[1.0, -4.0, 0.0, 4.0, -0.0, 2.0], 3);
        let expected = Stats {
            count: 6,
            max_abs: 4.0,
            max_row: 0,
            max_dim: 1,
            mean: 0.5,
            rms: (37f64 / 6.0).sqrt() as f32,
            min: -4.0,
            max: 4.0,
            nan: 0,
            inf: 0,
            zero: 2,
        };
        assert_eq!(s, expected);
    }

    #[test]
    fn what_is_not_finite_is_counted_and_left_out() {
        let s = stats(&[3.0, f32::NEG_INFINITY, 1.0, f32::INFINITY], 2);
        assert_eq!((s.max_abs, s.max_row, s.max_dim, s.inf, s.nan), (f32::INFINITY, 0, 1, 2, 0));
        assert_eq!((s.mean, s.min, s.max), (2.0, 1.0, 3.0));
        let s = stats(&[3.0, f32::INFINITY, f32::NAN, -f32::NAN], 2);
        assert!(s.max_abs.is_nan());
        assert_eq!((s.max_row, s.max_dim, s.inf, s.nan, s.mean), (1, 0, 1, 2, 3.0));
        let s = stats(&[f32::NAN], 1);
        assert_eq!((s.mean, s.rms, s.min, s.max), (0.0, 0.0, 0.0, 0.0));
        assert_eq!(stats(&[], 4), Stats::default());
    }
}
