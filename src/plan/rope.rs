//! Host tables for rotary position encoding: frequencies, their published stretchings, cos and sin.
//! Angles are formed in f32 as transformers forms them (f32 frequency times f32 position), so that long
//! positions agree; cos and sin are then taken in f64 and rounded once.
//! Source of the formulas: transformers' `modeling_rope_utils` semantics; Llama 3.1 and YaRN (arXiv 2309.00071) papers.

use crate::model::{RopeConfig, RopePairing, RopeScaling};

/// cos and sin for every position, row-major [positions, rotary_dim / 2].
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    /// rotary_dim / 2.
    pub half_dim: usize,
    /// Which elements are rotated together.
    pub pairing: RopePairing,
    /// Cosines, already times the attention factor and what grows with the position.
    pub cos: Vec<f32>,
    /// Sines, likewise.
    pub sin: Vec<f32>,
}

/// Frequencies [rotary_dim / 2] in f32 and the factor on cos and sin. `long` chooses longrope's list.
pub fn frequencies(rope: &RopeConfig, long: bool) -> (Vec<f32>, f64) {
    let d = rope.rotary_dim as f64;
    let base: Vec<f32> = (0..rope.rotary_dim / 2)
        // transformers: 1 / base ** (arange(0, d, 2) / d) in f32; f64 is close enough to round as they do.
        .map(|i| (1.0f32) / (libm::pow(rope.theta, f64::from((2.0 * i as f64 / d) as f32)) as f32))
        .collect();
    match &rope.scaling {
        RopeScaling::None => (base, 1.0),
        RopeScaling::Proportional { rotated, factor } => {
            let of_pair = |(i, f): (usize, &f32)| if i < *rotated { f / *factor as f32 } else { 0.0 };
            (base.iter().enumerate().map(of_pair).collect(), 1.0)
        }
        RopeScaling::Linear { factor } => (base.iter().map(|f| f / *factor as f32).collect(), 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let original = *original_max_positions as f32;
            let (low, high, factor) = (*low_freq_factor as f32, *high_freq_factor as f32, *factor as f32);
            let stretched = base.iter().map(|&f| {
                let wavelength = 2.0 * std::f32::consts::PI / f;
                if wavelength < original / high {
                    f
                } else if wavelength > original / low {
                    f / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            });
            (stretched.collect(), 1.0)
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, truncate } => {
            let dimension = |rotations: f64| {
                d * libm::log(*original_max_positions as f64 / (rotations * 2.0 * std::f64::consts::PI)) / (2.0 * libm::log(rope.theta))
            };
            let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(d - 1.0));
            if low == high {
                high += 0.001;
            }
            let stretched = base.iter().enumerate().map(|(i, &f)| {
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
                let keep = 1.0 - ramp;
                (f / *factor as f32) * (1.0 - keep) + f * keep
            });
            (stretched.collect(), *attention_factor)
        }
        RopeScaling::LongRope { short_factor, long_factor, attention_factor, .. } => {
            let list = if long { long_factor } else { short_factor };
            let exponent = |i: usize| f64::from((2.0 * i as f64 / d) as f32);
            let divided = list.iter().enumerate().map(|(i, k)| 1.0 / (*k as f32 * libm::pow(rope.theta, exponent(i)) as f32));
            (divided.take(rope.rotary_dim / 2).collect(), *attention_factor)
        }
    }
}

/// The table for positions `0..positions`.
pub fn table(rope: &RopeConfig, positions: usize, long: bool) -> RopeTable {
    let (frequencies, factor) = frequencies(rope, long);
    let half_dim = frequencies.len();
    let (mut cos, mut sin) = (Vec::with_capacity(positions * half_dim), Vec::with_capacity(positions * half_dim));
    for position in 0..positions {
        let factor = factor as f32 * growth(rope, position);
        for &frequency in &frequencies {
            let angle = f64::from(position as f32 * frequency);
            // transformers multiplies by the factor in f32.
            cos.push(libm::cos(angle) as f32 * factor);
            sin.push(libm::sin(angle) as f32 * factor);
        }
    }
    RopeTable { half_dim, pairing: rope.pairing, cos, sin }
}

/// The factor that grows with the position: 1 + β·ln(1 + ⌊position / original⌋). Source: transformers' `get_llama_4_attn_scale`.
fn growth(rope: &RopeConfig, position: usize) -> f32 {
    let of = |growth: &crate::model::RopeGrowth| 1.0 + growth.beta * libm::log1p((position / growth.original_max_positions.max(1)) as f64);
    rope.growth.as_ref().map_or(1.0, of) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_frequency_is_one_and_position_zero_is_no_rotation() {
        let table = table(&RopeConfig::plain(10_000.0, 8), 3, false);
        assert_eq!(table.half_dim, 4);
        assert_eq!(&table.cos[..4], &[1.0; 4]);
        assert_eq!(&table.sin[..4], &[0.0; 4]);
        assert!((table.cos[4] - 1f32.cos()).abs() < 1e-7);
    }

    #[test]
    fn llama3_keeps_high_and_stretches_low_frequencies() {
        let mut rope = RopeConfig::plain(10_000.0, 32);
        let (before, _) = frequencies(&rope, false);
        rope.scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64 };
        let (after, _) = frequencies(&rope, false);
        assert_eq!(after[0], before[0]);
        assert_eq!(after[15], before[15] / 8.0);
    }

    #[test]
    fn growth_steps_at_multiples_of_the_original_context() {
        let plain = RopeConfig::plain(10_000.0, 2);
        let grown = RopeConfig { growth: Some(crate::model::RopeGrowth { beta: 0.5, original_max_positions: 4 }), ..plain.clone() };
        let (before, after) = (table(&plain, 9, false), table(&grown, 9, false));
        let factor = |p: usize| f64::from(after.cos[p]) / f64::from(before.cos[p]);
        for (position, blocks) in [(0, 0.0), (3, 0.0), (4, 1.0), (7, 1.0), (8, 2.0)] {
            assert!((factor(position) - (1.0 + 0.5 * f64::ln_1p(blocks))).abs() < 1e-6, "{position}");
        }
    }
}
