//! The table of storage formats of weights: name, GGUF type number, sizes, and both directions between bytes and f32. One
//! file per family of formats. `tensor::DType` is for values; a [`Format`] is for weights as they are stored.
//! It knows no file, no plan and no device.
//!
//! A row of a matrix is a run of *blocks*; a block holds `block` elements in `bytes` bytes and stands alone. All numbers in
//! blocks are little-endian.

mod affine;
mod blocks;
mod fit;
mod float;
pub mod four_bit;
pub mod fp8;
mod grids;
pub mod grouped;
mod iq2;
mod iq3;
mod iq4;
mod linear;
mod multiple;
mod mxfp4;
mod plain;
pub mod planes;
mod q2k;
mod q3k;
mod q4k;
mod q6k;
mod ternary;

pub mod importance;
pub mod random;
pub mod recipe;
mod rows;

pub use rows::encode_rows;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How weights are stored. It serialises as its lower-case name, such as `q4_k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
#[expect(missing_docs, reason = "the names are those of the formats; `TABLE` says what they are")]
pub enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    Iq3Xxs,
    Iq3S,
    Tq1_0,
    Tq2_0,
    Q1_0,
    Q2_0,
    F64,
    Z4x32,
    Z4x128,
    A4x32,
    A4x64,
    A8x32,
    A8x64,
    S8x32,
    S8x128,
    E4m3x32,
    E4m3x128,
    Nf4,
    Fp4,
    E4m3,
    E5m2,
}

/// From the bytes of whole blocks to their elements. The lengths must belong together; [`Format::decode`] checks them.
pub type Decode = fn(&[u8], &mut [f32]);
/// From elements, finite, and their importance to the bytes of whole blocks; [`Format::encode`] checks all of them.
pub type Encode = fn(&[f32], Option<&[f32]>, &mut [u8]);

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct FormatInfo {
    /// The format.
    pub format: Format,
    /// Its name: lower case, as in ggml where ggml has it.
    pub name: &'static str,
    /// Its type number in GGUF files; `None` for formats of packed safetensors.
    pub ggml: Option<u32>,
    /// Elements of a block.
    pub block: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// Bytes to elements.
    pub decode: Decode,
    /// Elements to bytes; `None` for formats that are only read.
    pub encode: Option<Encode>,
}

/// A row of a format that is only read.
const fn read_only(format: Format, name: &'static str, ggml: u32, block: usize, bytes: usize, decode: Decode) -> FormatInfo {
    FormatInfo { format, name, ggml: Some(ggml), block, bytes, decode, encode: None }
}

/// A row of a format that only packed safetensors have.
const fn packed(format: Format, name: &'static str, block: usize, bytes: usize, decode: Decode) -> FormatInfo {
    FormatInfo { format, name, ggml: None, block, bytes, decode, encode: None }
}

/// A row.
const fn row(format: Format, name: &'static str, ggml: u32, block: usize, bytes: usize, decode: Decode, encode: Encode) -> FormatInfo {
    FormatInfo { encode: Some(encode), ..read_only(format, name, ggml, block, bytes, decode) }
}

/// Every format, in the order of [`Format`].
pub static TABLE: [FormatInfo; 40] = [
    row(Format::F32, "f32", 0, 1, 4, float::decode_f32, float::encode_f32),
    row(Format::F16, "f16", 1, 1, 2, float::decode_f16, float::encode_f16),
    row(Format::BF16, "bf16", 30, 1, 2, float::decode_bf16, float::encode_bf16),
    row(Format::Q8_0, "q8_0", 8, 32, 34, linear::decode_q8_0, linear::encode_q8_0),
    row(Format::Q4_0, "q4_0", 2, 32, 18, linear::decode_q4_0, linear::encode_q4_0),
    row(Format::Q4_1, "q4_1", 3, 32, 20, linear::decode_q4_1, linear::encode_q4_1),
    row(Format::Q5_0, "q5_0", 6, 32, 22, linear::decode_q5_0, linear::encode_q5_0),
    row(Format::Q5_1, "q5_1", 7, 32, 24, linear::decode_q5_1, linear::encode_q5_1),
    row(Format::Q2K, "q2_k", 10, 256, 84, q2k::decode, q2k::encode),
    row(Format::Q3K, "q3_k", 11, 256, 110, q3k::decode, q3k::encode),
    row(Format::Q4K, "q4_k", 12, 256, 144, q4k::decode_q4, q4k::encode_q4),
    row(Format::Q5K, "q5_k", 13, 256, 176, q4k::decode_q5, q4k::encode_q5),
    row(Format::Q6K, "q6_k", 14, 256, 210, q6k::decode, q6k::encode),
    row(Format::Iq4Nl, "iq4_nl", 20, 32, 18, iq4::decode_nl, iq4::encode_nl),
    row(Format::Iq4Xs, "iq4_xs", 23, 256, 136, iq4::decode_xs, iq4::encode_xs),
    row(Format::Mxfp4, "mxfp4", 39, 32, 17, mxfp4::decode, mxfp4::encode),
    read_only(Format::Iq2Xxs, "iq2_xxs", 16, 256, 66, iq2::decode_xxs),
    read_only(Format::Iq2Xs, "iq2_xs", 17, 256, 74, iq2::decode_xs),
    read_only(Format::Iq2S, "iq2_s", 22, 256, 82, iq2::decode_s),
    read_only(Format::Iq3Xxs, "iq3_xxs", 18, 256, 98, iq3::decode_xxs),
    read_only(Format::Iq3S, "iq3_s", 21, 256, 110, iq3::decode_s),
    row(Format::Tq1_0, "tq1_0", 34, 256, 54, ternary::decode_tq1, ternary::encode_tq1),
    row(Format::Tq2_0, "tq2_0", 35, 256, 66, ternary::decode_tq2, ternary::encode_tq2),
    row(Format::Q1_0, "q1_0", 41, 128, 18, ternary::decode_q1, ternary::encode_q1),
    row(Format::Q2_0, "q2_0", 42, 64, 18, ternary::decode_q2, ternary::encode_q2),
    read_only(Format::F64, "f64", 28, 1, 8, float::decode_f64),
    packed(Format::Z4x32, "z4_32", 32, 20, grouped::decode_z4::<32>),
    packed(Format::Z4x128, "z4_128", 128, 68, grouped::decode_z4::<128>),
    packed(Format::A4x32, "a4_32", 32, 24, grouped::decode_a4::<32>),
    packed(Format::A4x64, "a4_64", 64, 40, grouped::decode_a4::<64>),
    packed(Format::A8x32, "a8_32", 32, 40, grouped::decode_a8::<32>),
    packed(Format::A8x64, "a8_64", 64, 72, grouped::decode_a8::<64>),
    packed(Format::S8x32, "s8_32", 32, 36, grouped::decode_s8::<32>),
    packed(Format::S8x128, "s8_128", 128, 132, grouped::decode_s8::<128>),
    packed(Format::E4m3x32, "e4m3_32", 32, 36, fp8::decode::<32>),
    packed(Format::E4m3x128, "e4m3_128", 128, 132, fp8::decode::<128>),
    packed(Format::Nf4, "nf4", 64, 36, four_bit::decode_nf4),
    packed(Format::Fp4, "fp4", 64, 36, four_bit::decode_fp4),
    packed(Format::E4m3, "f8_e4m3", 1, 1, fp8::decode_e4m3),
    packed(Format::E5m2, "f8_e5m2", 1, 1, fp8::decode_e5m2),
];

impl Format {
    /// Its row of the table.
    pub fn info(self) -> &'static FormatInfo {
        &TABLE[self as usize]
    }
    /// Its lower-case name, such as `q4_k`.
    pub fn name(self) -> &'static str {
        self.info().name
    }
    /// The format of a name, in upper or lower case.
    pub fn parse(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.format)
    }
    /// The format of a GGUF type number.
    pub fn of_ggml(id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.ggml == Some(id)).map(|row| row.format)
    }
    /// Bytes of a row of `columns` elements. `None` if they are no whole blocks, or too many to count.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let info = self.info();
        columns.is_multiple_of(info.block).then(|| (columns / info.block).checked_mul(info.bytes)).flatten()
    }
    /// Bits per element.
    pub fn bits(self) -> f64 {
        let info = self.info();
        (info.bytes * 8) as f64 / info.block as f64
    }
    /// The elements of whole blocks. `out` decides how many; `bytes` must be exactly theirs.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        self.check_lengths(out.len(), bytes.len())?;
        (self.info().decode)(bytes, out);
        Ok(())
    }
    /// The blocks nearest to `values`: the sum of squared errors, each times its `importance`, is what is minimised.
    /// `importance` is one non-negative number per element, none is 1 for all. Equal inputs give equal bytes on every
    /// platform. Values beyond what the format holds become its largest; NaN, Inf and wrong lengths are errors.
    pub fn encode(self, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<()> {
        self.check_lengths(values.len(), out.len())?;
        let encode = self.info().encode.ok_or_else(|| Error::unsupported(format!("{self}: this format can be read, not written")))?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::invalid("values", format!("{self} holds finite numbers; element {at} is {}", values[at])));
        }
        if let Some(weights) = importance {
            if weights.len() != values.len() {
                let message = format!("expected one number per element, {}; found {}", values.len(), weights.len());
                return Err(Error::invalid("importance", message));
            }
            if let Some(at) = weights.iter().position(|w| !w.is_finite() || *w < 0.0) {
                return Err(Error::invalid("importance", format!("expected finite numbers from 0; element {at} is {}", weights[at])));
            }
        }
        encode(values, importance, out);
        Ok(())
    }
    /// Are `bytes` the bytes of `elements`?
    fn check_lengths(self, elements: usize, bytes: usize) -> Result<()> {
        let info = self.info();
        let Some(expected) = self.row_bytes(elements) else {
            return Err(Error::invalid("elements", format!("{self} has blocks of {}; found {elements} elements", info.block)));
        };
        if bytes != expected {
            return Err(Error::invalid("bytes", format!("{elements} elements in {self} are {expected} bytes; found {bytes}")));
        }
        Ok(())
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Format> for &'static str {
    fn from(format: Format) -> Self {
        format.name()
    }
}

impl TryFrom<String> for Format {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        Self::parse(&name).ok_or_else(|| {
            let known: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
            format!("unknown format `{name}`; known are {}", known.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_formats_and_each_has_its_own_name_and_number() {
        for (at, row) in TABLE.iter().enumerate() {
            assert_eq!(row.format as usize, at, "{}", row.name);
            assert_eq!(Format::parse(&row.name.to_uppercase()), Some(row.format));
            assert_eq!(row.ggml.and_then(Format::of_ggml), row.ggml.map(|_| row.format));
            assert_eq!(row.ggml.is_none(), row.format >= Format::Z4x32, "{}", row.name);
            let json = serde_json::to_string(&row.format).unwrap();
            assert_eq!(json, format!("\"{}\"", row.name));
            assert_eq!(serde_json::from_str::<Format>(&json).unwrap(), row.format);
            let bytes = postcard::to_allocvec(&row.format).unwrap();
            assert_eq!(postcard::from_bytes::<Format>(&bytes).unwrap(), row.format);
        }
        let unknown = serde_json::from_str::<Format>("\"q9\"").unwrap_err().to_string();
        assert!(unknown.contains("unknown format `q9`; known are f32, f16"), "{unknown}");
    }

    #[test]
    fn sizes_are_whole_blocks() {
        assert_eq!(Format::Q4K.row_bytes(512), Some(288));
        assert_eq!(Format::Q4K.row_bytes(0), Some(0));
        assert_eq!(Format::Q4K.row_bytes(320), None);
        assert_eq!(Format::F32.row_bytes(usize::MAX), None);
        assert_eq!(Format::Q6K.bits(), 6.5625);
    }
}
