//! `y[t, c] = Σ_j w[c, j] · x[t − (taps − 1) + j, c] + b[c]`, j from 0 to taps − 1; x before the first position is 0
//!
//! A causal convolution of each channel alone. What is made of it: times a gate (`Lfm2ShortConv` of transformers), or activated
//! (`causal_conv1d_fn` there).

use super::real::Real;

/// What is convolved from some position on, of which `before` rows come before the `rows` that are computed, the weights
/// [channels·taps] with their taps, and a bias. Returns [rows, channels].
pub fn short_conv<T: Real>(x: &[T], (weight, taps): (&[T], usize), bias: Option<&[T]>, rows: usize, before: usize) -> Vec<T> {
    let channels = weight.len() / taps;
    let mut y = Vec::with_capacity(rows * channels);
    for t in 0..rows {
        for c in 0..channels {
            let mut sum = T::default();
            for (j, &w) in weight[c * taps..][..taps].iter().enumerate() {
                if let Some(at) = (before + t + j).checked_sub(taps - 1) {
                    sum = sum + w * x[at * channels + c];
                }
            }
            y.push(bias.map_or(sum, |bias| sum + bias[c]));
        }
    }
    y
}

/// Rows `y` of `channels` times as many elements of the rows of a gate, from `first` on.
pub fn gate<T: Real>(y: &mut [T], channels: usize, rows: &[T], first: usize) {
    let width = rows.len() / (y.len() / channels).max(1);
    for (y, row) in y.chunks_exact_mut(channels).zip(rows.chunks_exact(width)) {
        y.iter_mut().zip(&row[first..]).for_each(|(y, g)| *y = *g * *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Two channels, three taps: the current position's weight is the last.
        let weight = [1.0f64, 2.0, 3.0, 10.0, 20.0, 30.0];
        let x = [1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0];
        // The gate is the second half of rows of four.
        let gates = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.5, 1.0];
        let all = [3.0, -30.0, 8.0, -160.0, 14.0, -140.0, 10.0, -200.0];
        let gated = |rows: usize, before: usize, bias: Option<&[f64]>| {
            let mut y = short_conv(&x, (&weight, 3), bias, rows, before);
            gate(&mut y, 2, &gates[before * 4..], 2);
            y
        };
        assert_eq!(gated(4, 0, None), all);
        // The last two tokens alone, with what came before.
        assert_eq!(gated(2, 2, None), all[4..]);
        assert_eq!(gated(2, 2, Some(&[1.0, -1.0])), [15.0, -141.0, 10.5, -201.0]);
    }
}
