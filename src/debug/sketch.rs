//! Sketches: 64 signed sums of a row in place of the row, from which distances of rows are estimated. The signs are
//! fixed (SplitMix64 of the element's number), so that sketches of different runs, and of the Python scripts, compare.
//! Source: random-sign projections (Achlioptas 2003). mean_j (s_j(a) − s_j(b))² estimates ‖a − b‖².

/// Numbers of a sketch.
pub const SIGNS: usize = 64;

/// How far a length that is estimated from a sketch may be off: within ±35 % but for once in 10,000 rows (chi-square of
/// 64 degrees: the square's standard deviation is √(2/64) = 18 %).
pub const SPREAD: f64 = 1.35;

/// The signs of element `i`: bit j is 1 where sum j adds the element, 0 where it subtracts it.
pub fn signs(i: u64) -> u64 {
    let z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sketches of rows of `width` elements, one after the other: s_j = Σ_i sign(i, j)·x_i, summed in f64. Elements that are
/// not finite count as 0.
pub fn sketches(rows: &[f32], width: usize) -> Vec<[f64; SIGNS]> {
    let count = rows.len().checked_div(width).unwrap_or(0);
    let mut sums = vec![[0.0; SIGNS]; count];
    for i in 0..width {
        let word = signs(i as u64);
        let sign: [f64; SIGNS] = std::array::from_fn(|j| if word >> j & 1 == 1 { 1.0 } else { -1.0 });
        for (row, sums) in rows.chunks_exact(width).zip(&mut sums) {
            let x = if row[i].is_finite() { f64::from(row[i]) } else { 0.0 };
            for (sum, sign) in sums.iter_mut().zip(&sign) {
                *sum += sign * x;
            }
        }
    }
    sums
}

/// Estimate of ‖a − b‖² from sketches of a and b.
pub fn square_distance(a: &[f64; SIGNS], b: &[f64; SIGNS]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>() / SIGNS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_those_of_the_format() {
        // SplitMix64 of seed 0 begins with these.
        assert_eq!([signs(0), signs(1), signs(2)], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
        let sums = sketches(&[2.0, 0.0, f32::NAN, 0.0, 1.0, f32::INFINITY], 3);
        assert_eq!(sums.len(), 2);
        for (j, (first, second)) in sums[0].iter().zip(&sums[1]).enumerate() {
            let sign = |i: u64| if signs(i) >> j & 1 == 1 { 1.0 } else { -1.0 };
            assert_eq!((*first, *second), (2.0 * sign(0), sign(1)));
        }
    }

    #[test]
    fn distances_are_within_the_spread() {
        let row = |seed: u64| (0..500).map(|i| (signs(seed * 500 + i) >> 40) as f32 / 8e6 - 1.0).collect::<Vec<f32>>();
        let mut outside = 0;
        for seed in 1..200 {
            let (a, b) = (row(seed), row(seed + 1000));
            let exact: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(x - y).powi(2)).sum();
            let estimate = square_distance(&sketches(&a, 500)[0], &sketches(&b, 500)[0]);
            let ratio = (estimate / exact).sqrt();
            outside += usize::from((ratio - 1.0).abs() > SPREAD - 1.0);
        }
        assert_eq!(outside, 0);
    }
}
