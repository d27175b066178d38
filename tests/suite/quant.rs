//! The storage formats against golden blocks of the Python package gguf.

use doppler::quant::{Format, TABLE};

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
    for format in TABLE.iter().filter(|row| row.block > 1).map(|row| row.format) {
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
