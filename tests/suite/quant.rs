//! The storage formats: golden blocks of the Python package gguf; errors, bounds and bytes of what is written.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use doppler::quant::{Format, TABLE};
use proptest::prelude::*;

/// Of a format that is written: root mean square error on unit Gaussian numbers, as measured, relative; the same of ggml's
/// quantiser, or 0 (q4_0 to q8_0, mxfp4 and tq by gguf.quants; Q2_K to Q6_K by following its search on the same numbers); the
/// largest root mean square error of a block whose largest magnitude is 1; the FNV-1a hash of what pinned numbers become.
#[derive(Clone, Copy)]
struct Expected(Format, f64, f64, f64, u64);

#[rustfmt::skip]
const EXPECTED: [Expected; 20] = [
    Expected(Format::F32, 0.0, 0.0, 0.0, 0x8934_9566_5124_2b85),
    Expected(Format::F16, 0.00021, 0.0, 0.0005, 0xf1e4_5619_0c8d_1b14),
    Expected(Format::BF16, 0.0017, 0.0, 0.004, 0xdbb1_bd6e_e3ed_3109),
    Expected(Format::Q8_0, 0.00481, 0.00536, 0.0041, 0x5c59_481b_de19_45d6),
    Expected(Format::Q4_0, 0.0817, 0.0861, 0.0720, 0xc6f0_daea_9df5_bb73),
    Expected(Format::Q4_1, 0.0694, 0.0783, 0.0667, 0x0cf6_ac09_396d_ab83),
    Expected(Format::Q5_0, 0.0404, 0.0428, 0.0335, 0xc621_bf00_b4cd_ba78),
    Expected(Format::Q5_1, 0.0338, 0.0379, 0.0323, 0x4a22_548d_0a9e_b090),
    Expected(Format::Q2K, 0.2600, 0.297, 0.3600, 0xb5af_ea9d_3e58_ab17),
    Expected(Format::Q3K, 0.1440, 0.151, 0.1700, 0x666e_077d_3a63_d42b),
    Expected(Format::Q4K, 0.0703, 0.0714, 0.0720, 0x0730_2d13_2ac6_347d),
    Expected(Format::Q5K, 0.0351, 0.0361, 0.0360, 0xb641_e748_0885_5505),
    Expected(Format::Q6K, 0.0168, 0.0178, 0.0180, 0x15d9_6527_4e3c_0278),
    Expected(Format::Iq4Nl, 0.0741, 0.0, 0.0900, 0x4a1a_5675_22af_e536),
    Expected(Format::Iq4Xs, 0.0747, 0.0, 0.1000, 0xd225_ad93_8d58_ba94),
    Expected(Format::Mxfp4, 0.1120, 0.1154, 0.1250, 0x6ac4_813d_f70b_c204),
    Expected(Format::Tq1_0, 0.4354, 0.810, 0.5000, 0x6a29_cfb9_6b4d_ff7a),
    Expected(Format::Tq2_0, 0.4354, 0.810, 0.5000, 0xdb22_b4bb_a877_f491),
    Expected(Format::Q1_0, 0.6018, 0.0, 1.0000, 0x8618_8000_564c_7709),
    Expected(Format::Q2_0, 0.353, 0.0, 0.5000, 0x6d1e_453b_69e1_2bc0),
];

/// Numbers from 0 to 1, without the ends.
fn uniform(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
}

fn gaussian(count: usize) -> Vec<f32> {
    let mut uniform = uniform(0x0dd0_11e4_5eed);
    let mut one = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    (0..count).map(|_| one() as f32).collect()
}

fn encode(format: Format, values: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
    format.encode(values, importance, &mut bytes).unwrap();
    bytes
}

/// What remains of `values` after both directions.
fn stored(format: Format, values: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![f32::NAN; values.len()];
    format.decode(&encode(format, values, importance), &mut out).unwrap();
    out
}

fn rms(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0usize, 0.0), |(n, sum), v| (n + 1, sum + v * v));
    (sum / count as f64).sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    rms(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)))
}

/// Blocks and what they hold, from `tests/fixtures/quant/make.py`.
fn golden(format: Format) -> (Vec<u8>, Vec<f32>) {
    let path = format!("{}/tests/fixtures/quant/{format}.bin", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let info = format.info();
    let blocks = bytes.len() / (info.bytes + 4 * info.block);
    assert_eq!(bytes.len(), blocks * (info.bytes + 4 * info.block), "{path}");
    let values = bytes.split_off(blocks * info.bytes);
    (bytes, values.as_chunks().0.iter().map(|v| f32::from_le_bytes(*v)).collect())
}

#[test]
fn every_packed_format_decodes_bit_for_bit_as_gguf_does() {
    let mut seen = 0;
    // Formats of other files: `packed.rs`.
    for format in TABLE.iter().filter(|row| row.block > 1 && row.ggml.is_some()).map(|row| row.format) {
        let (bytes, expected) = golden(format);
        let mut found = vec![f32::NAN; expected.len()];
        format.decode(&bytes, &mut found).unwrap();
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{format}, element {at}: {found} instead of {expected}");
        }
        seen += expected.len();
    }
    assert!(seen > 20_000, "the golden blocks were not found");
}

#[test]
fn the_expectations_are_of_every_format_that_is_written() {
    let written: Vec<Format> = TABLE.iter().filter(|row| row.encode.is_some()).map(|row| row.format).collect();
    assert_eq!(EXPECTED.map(|e| e.0).to_vec(), written);
}

/// The table of errors: `cargo test -p doppler --test suite quant::errors -- --nocapture`.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn errors_on_gaussian_numbers_are_as_measured_and_below_those_of_ggml() {
    let values = gaussian(1 << 16);
    let size = rms(values.iter().map(|v| f64::from(*v)));
    let mut wrong = Vec::new();
    println!("format   bits    error    ggml");
    for Expected(format, expected, ggml, ..) in EXPECTED {
        let error = distance(&values, &stored(format, &values, None)) / size;
        println!("{:8} {:<7} {error:.5}  {ggml}", format.name(), format.bits());
        if error > expected * 1.01 || error < expected * 0.97 || (ggml > 0.0 && error > ggml) {
            wrong.push(format!("{format}: expected {expected}, found {error:.5}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn importance_lowers_the_weighted_error() {
    let values = gaussian(1 << 14);
    let mut uniform = uniform(77);
    let importance: Vec<f32> = values.iter().map(|_| (uniform() as f32).powi(4) * 9.0).collect();
    for Expected(format, ..) in EXPECTED.into_iter().filter(|e| e.0.info().block > 1) {
        let error = |importance_used: Option<&[f32]>| {
            let stored = stored(format, &values, importance_used);
            let parts = values.iter().zip(&stored).zip(&importance);
            parts.map(|((x, y), w)| f64::from(*w) * (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>()
        };
        let (with, without) = (error(Some(&importance)), error(None));
        println!("{format}: weighted error {:.4} of that without weights", with / without);
        assert!(with < without * 0.99, "{format}: {with} with importance, {without} without");
        // It is relative: a common factor changes nothing, and no importance at all is an equal one.
        let scaled: Vec<f32> = importance.iter().map(|w| w * 1024.0).collect();
        assert_eq!(encode(format, &values, Some(&importance)), encode(format, &values, Some(&scaled)), "{format}");
        let zero = vec![0.0; values.len()];
        assert_eq!(encode(format, &values, None), encode(format, &values, Some(&zero)), "{format}");
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn what_was_stored_is_stored_again_with_little_loss() {
    let values = gaussian(1 << 14);
    for Expected(format, ..) in EXPECTED {
        let once = stored(format, &values, None);
        let twice = stored(format, &once, None);
        let (first, second) = (distance(&values, &once), distance(&once, &twice));
        println!("{format}: {first:.5}, again {second:.5}");
        assert!(second <= first * 0.25, "{format}: {first} once, {second} more when stored again");
    }
}

#[test]
fn blocks_at_the_ends_of_the_range_stay_finite() {
    let (mut uniform, mut more) = (uniform(5), uniform(6));
    for Expected(format, ..) in EXPECTED {
        for scale in [f32::MAX, 1e30, 65504.0, 1.0, 1e-3, 1e-6, 1e-12, f32::MIN_POSITIVE, 1e-45, 0.0] {
            let signs: [&mut dyn FnMut() -> f32; 4] =
                [&mut || 1.0, &mut || -1.0, &mut || uniform() as f32 * 2.0 - 1.0, &mut || (more().round() * 2.0 - 1.0) as f32];
            for sign in signs {
                let values: Vec<f32> = (0..256).map(|_| scale * sign()).collect();
                let found = stored(format, &values, None);
                let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                for (at, (x, y)) in values.iter().zip(&found).enumerate() {
                    assert!(y.is_finite(), "{format}, {scale}: element {at} became {y}");
                    assert!(y.abs() <= largest * 2.0 + 1e-5, "{format}: {x} became {y}, the largest is {largest}");
                }
                if scale == 0.0 {
                    assert!(found.iter().all(|y| *y == 0.0), "{format}: zeros became {:?}", &found[..8]);
                }
            }
        }
    }
}

#[test]
fn constants_and_numbers_on_the_grid_are_kept() {
    // MXFP4 has powers of two for scales.
    for Expected(format, ..) in EXPECTED.into_iter().filter(|e| e.0 != Format::Mxfp4) {
        for constant in [1.0f32, -1.0, 0.0137, -250.0] {
            let found = stored(format, &[constant; 256], None);
            let worst = found.iter().fold(0.0f32, |m, y| m.max((y - constant).abs())) / constant.abs();
            // Q3_K's and IQ4_XS's d·s·q is a product of three roundings; the others have one.
            assert!(worst <= 0.004, "{format}: {constant} became {} ({worst} off)", found[0]);
        }
    }
    let ternary: Vec<f32> = (0..256).map(|i| [0.5, 0.0, -0.5, 0.0, 0.5][i * 7 % 5]).collect();
    for format in [Format::Tq1_0, Format::Tq2_0, Format::Q2_0, Format::Mxfp4] {
        assert_eq!(stored(format, &ternary, None), ternary, "{format}");
    }
    for format in [Format::Q8_0, Format::Q6K, Format::Q4_0] {
        assert!(distance(&ternary, &stored(format, &ternary, None)) < 0.001, "{format}");
    }
    // All positive and far from 0: the minimum of Q4_K takes the other sign.
    let far: Vec<f32> = gaussian(256).iter().map(|v| 10.0 + v * 0.1).collect();
    assert!(distance(&far, &stored(Format::Q4K, &far, None)) < 0.1 * 0.15, "a block around 10");
}

#[test]
fn equal_numbers_give_equal_bytes_on_every_platform() {
    // From whole numbers and one division: every platform has the same input.
    let pinned: Vec<f32> = (0..1024u32).map(|i| f32::from((i.wrapping_mul(40_503) >> 3) as u16 as i16) / 30_000.0).collect();
    let mut wrong = Vec::new();
    for Expected(format, .., expected) in EXPECTED {
        let hash = |bytes: &[u8]| bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
        let found = hash(&encode(format, &pinned, None));
        if found != expected {
            wrong.push(format!("{format}: {found:#018x}"));
        }
    }
    assert!(wrong.is_empty(), "the bytes have changed:\n{}", wrong.join("\n"));
}

#[test]
fn malformed_input_is_refused_with_the_element_named() {
    let text = |result: doppler::Result<()>| result.unwrap_err().to_string();
    let mut values = [1.0f32; 64];
    let mut bytes = [0u8; 36];
    assert!(Format::Q4_0.encode(&values, None, &mut bytes).is_ok());
    assert_eq!(text(Format::Q4_0.encode(&values[..40], None, &mut bytes)), "elements: q4_0 has blocks of 32; found 40 elements");
    assert_eq!(text(Format::Q4_0.encode(&values, None, &mut bytes[1..])), "bytes: 64 elements in q4_0 are 36 bytes; found 35");
    assert_eq!(text(Format::Q4_0.decode(&bytes[..18], &mut values)), "bytes: 64 elements in q4_0 are 36 bytes; found 18");
    let importance = Format::Q4_0.encode(&values, Some(&[1.0; 63]), &mut bytes);
    assert_eq!(text(importance), "importance: expected one number per element, 64; found 63");
    let mut weights = [1.0; 64];
    weights[9] = -0.5;
    let importance = Format::Q4_0.encode(&values, Some(&weights), &mut bytes);
    assert_eq!(text(importance), "importance: expected finite numbers from 0; element 9 is -0.5");
    values[41] = f32::NAN;
    assert_eq!(text(Format::Q4_0.encode(&values, None, &mut bytes)), "values: q4_0 holds finite numbers; element 41 is NaN");
    values[41] = f32::NEG_INFINITY;
    assert_eq!(text(Format::F32.encode(&values, None, &mut [0; 256])), "values: f32 holds finite numbers; element 41 is -inf");
    let only_read = Format::Iq3S.encode(&[0.0; 256], None, &mut [0; 110]);
    assert_eq!(text(only_read), "iq3_s: this format can be read, not written");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a block holds, its error is at most that of a plain grid over its range.
    #[test]
    fn no_block_exceeds_the_bound_of_its_format(
        shape in 0..4usize, exponent in -8..12i32, seed in 1..u64::MAX,
    ) {
        let mut uniform = uniform(seed);
        let mut next = || {
            let (a, b) = (uniform() * 2.0 - 1.0, uniform());
            match shape {
                0 => a,
                1 => a * b.powi(8),
                2 => b,
                _ => if b < 0.02 { a * 30.0 } else { a },
            }
        };
        let values: Vec<f32> = (0..256).map(|_| (next() * 2f64.powi(exponent)) as f32).collect();
        for Expected(format, .., bound, _) in EXPECTED {
            let found = stored(format, &values, None);
            let block = format.info().block.max(16);
            for (x, y) in values.chunks(block).zip(found.chunks(block)) {
                let largest = x.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
                // Scales have steps of 2^-24 near 0.
                let limit = bound * largest + 128.0 * 2f64.powi(-24);
                let error = distance(x, y);
                prop_assert!(error <= limit, "{format}: error {error}, at most {limit}; largest {largest}");
            }
        }
    }
}
