//! `y[t, c] = g[t, c] · (Σ_j w[c, j] · x[t − (taps − 1) + j, c] + b[c])`, j from 0 to taps − 1; x before the first position is 0
//!
//! A causal convolution of each channel alone, gated: `Lfm2ShortConv` of transformers.

use super::real::Real;

/// Rows of gates (the rows, their width, the first element of the gate), what is convolved from some position on, of which
/// `before` rows come before the first gate's, the weights [channels·taps] with their taps, and a bias. Returns [rows, channels].
pub fn short_conv<T: Real>(
    (gates, gates_width, gate): (&[T], usize, usize),
    x: &[T],
    (weight, taps): (&[T], usize),
    bias: Option<&[T]>,
    before: usize,
) -> Vec<T> {
    let channels = weight.len() / taps;
    let mut y = Vec::with_capacity(gates.len() / gates_width * channels);
    for (t, row) in gates.chunks_exact(gates_width).enumerate() {
        for c in 0..channels {
            let mut sum = T::default();
            for (j, &w) in weight[c * taps..][..taps].iter().enumerate() {
                if let Some(at) = (before + t + j).checked_sub(taps - 1) {
                    sum = sum + w * x[at * channels + c];
                }
            }
            y.push(row[gate + c] * bias.map_or(sum, |bias| sum + bias[c]));
        }
    }
    y
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
        assert_eq!(short_conv((&gates, 4, 2), &x, (&weight, 3), None, 0), all);
        // The last two tokens alone, with what came before.
        assert_eq!(short_conv((&gates[8..], 4, 2), &x, (&weight, 3), None, 2), all[4..]);
        let biased = short_conv((&gates[8..], 4, 2), &x, (&weight, 3), Some(&[1.0, -1.0]), 2);
        assert_eq!(biased, [15.0, -141.0, 10.5, -201.0]);
    }
}
