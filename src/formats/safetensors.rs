//! The safetensors format: 8 bytes of header length, a JSON header, tensor data. Reading checks everything that the
//! format promises (unique names, no overlaps, no gaps, lengths that fit shapes, no byte unaccounted for).
//! Source: the format description of huggingface/safetensors. It knows no model.

mod write;

pub use write::{Output, write, write_f32};

use super::{ByteSource, Stored, TensorEntry};
use crate::error::{Error, Result};
use crate::quant::Format;
use crate::tensor::DType;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// Longest header that is read, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// Types of the format with their size in bits.
const TYPES: &[(&str, u64)] = &[
    ("F32", 32),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("I16", 16),
    ("U16", 16),
    ("U32", 32),
    ("I64", 64),
    ("U64", 64),
    ("F64", 64),
    ("C64", 64),
];

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Header {
    /// Tensors by offset; their `file` is 0, their ranges count from the file's beginning.
    pub tensors: Vec<TensorEntry>,
    /// The `__metadata__` of the file.
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of `source`.
///
/// # Errors
/// `Kind::Format`, naming file and tensor; `Kind::Io` when reading fails.
pub async fn read_header(source: &impl ByteSource) -> Result<Header> {
    let (name, len) = (source.name(), source.len());
    let start = source.read(0..len.min(8)).await?;
    let header_len = header_length(name, len, &start)?;
    let json = source.read(8..8 + header_len).await?;
    parse(name, len, &json)
}

/// Length of the header in bytes, from the first (at most 8) bytes of a file of `file_len` bytes.
///
/// # Errors
/// `Kind::Format` when it cannot be a safetensors file, or ends within its header.
pub fn header_length(file: &str, file_len: u64, start: &[u8]) -> Result<u64> {
    let Ok(length) = <[u8; 8]>::try_from(start) else {
        return Err(Error::format(file, format!("expected a safetensors file, found {file_len} bytes: empty or truncated")));
    };
    if let Some(found) = foreign(&length) {
        return Err(Error::format(file, format!("expected a safetensors file, found {found}")));
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(Error::format(file, format!("not a safetensors file: its header would have {length} bytes (at most {MAX_HEADER})")));
    }
    if length > file_len - 8 {
        let expected = length + 8;
        return Err(Error::format(
            file,
            format!("truncated: its header ends at byte {expected}, but the file has {file_len}; download it again"),
        ));
    }
    Ok(length)
}

/// What a file is that begins with these bytes, if something common other than safetensors.
fn foreign(start: &[u8; 8]) -> Option<&'static str> {
    match start {
        b"version " => Some("a Git LFS pointer: the file itself was not downloaded (try `git lfs pull`)"),
        [b'G', b'G', b'U', b'F', ..] => Some("a GGUF file"),
        [b'P', b'K', 3, 4, ..] => Some("a zip archive (a PyTorch checkpoint?)"),
        [b'<', b'!' | b'h', ..] => Some("a web page: the download went wrong"),
        _ => None,
    }
}

/// Checks the JSON header of a file of `file_len` bytes.
///
/// # Errors
/// `Kind::Format`, naming the tensor.
pub fn parse(file: &str, file_len: u64, json: &[u8]) -> Result<Header> {
    let bad = |message: String| Error::format(file, message);
    // Blanks may come first, in the reference implementation too.
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(bad("not a safetensors file: its header does not begin with `{`".into()));
    }
    let raw: RawHeader = serde_json::from_slice(json).map_err(|e| bad(format!("corrupt header: {e}")))?;
    let data_start = 8 + json.len() as u64;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, entry) in raw.tensors {
        let tensor = check_entry(name, entry, data_start).map_err(bad)?;
        tensors.push(tensor);
    }
    tensors.sort_by(|a: &TensorEntry, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
    check_coverage(&tensors, data_start, file_len).map_err(bad)?;
    Ok(Header { tensors, metadata: raw.metadata })
}

/// One tensor: its length must be what its shape and type say.
fn check_entry(name: String, entry: RawEntry, data_start: u64) -> Result<TensorEntry, String> {
    let [begin, end] = entry.data_offsets;
    let shape = &entry.shape;
    let absolute = |offset: u64| data_start.checked_add(offset);
    let (Some(start), Some(stop), true) = (absolute(begin), absolute(end), begin <= end) else {
        return Err(format!("tensor `{name}`: data_offsets [{begin}, {end}] are no range of bytes"));
    };
    if let Some((_, bits)) = TYPES.iter().find(|(t, _)| *t == entry.dtype) {
        let expected = shape.iter().try_fold(*bits, |product, size| product.checked_mul(*size));
        let expected = expected.ok_or_else(|| format!("tensor `{name}`: shape {shape:?} is too large to be true"))?;
        if expected % 8 != 0 {
            return Err(format!("tensor `{name}`: shape {shape:?} of {} ends within a byte", entry.dtype));
        }
        if expected / 8 != end - begin {
            let (dtype, expected, found) = (&entry.dtype, expected / 8, end - begin);
            return Err(format!("tensor `{name}`: shape {shape:?} of {dtype} has {expected} bytes, but data_offsets span {found}"));
        }
    }
    let sizes: Option<Vec<usize>> = shape.iter().map(|size| usize::try_from(*size).ok()).collect();
    let shape = sizes.ok_or_else(|| format!("tensor `{name}`: shape {shape:?} is too large for this machine"))?;
    Ok(TensorEntry { name, dtype: stored(entry.dtype), shape, file: 0, range: start..stop })
}

fn stored(name: String) -> Stored {
    match name.as_str() {
        "F32" => Stored::Known(DType::F32),
        "F16" => Stored::Known(DType::F16),
        "BF16" => Stored::Known(DType::BF16),
        "I32" => Stored::Known(DType::I32),
        "F64" => Stored::Packed(Format::F64),
        "F8_E4M3" => Stored::Packed(Format::E4m3),
        "F8_E5M2" => Stored::Packed(Format::E5m2),
        _ => Stored::Other(name),
    }
}

/// Every byte behind the header must belong to exactly one of `tensors`, which are sorted by offset.
fn check_coverage(tensors: &[TensorEntry], data_start: u64, file_len: u64) -> Result<(), String> {
    let (mut end, mut before) = (data_start, "the header");
    for tensor in tensors {
        let start = tensor.range.start;
        if start < end {
            return Err(format!("tensors `{before}` and `{}` overlap by {} bytes", tensor.name, end - start));
        }
        if start > end {
            return Err(format!("{} bytes between `{before}` and `{}` belong to no tensor", start - end, tensor.name));
        }
        (end, before) = (tensor.range.end, tensor.name.as_str());
    }
    if end > file_len {
        let cut: Vec<&TensorEntry> = tensors.iter().filter(|t| t.range.end > file_len).collect();
        let first = cut.first().map_or("", |t| t.name.as_str());
        return Err(format!(
            "truncated: its tensors end at byte {end}, but the file has {file_len} ({} of {} tensors are cut off, first `{first}`); download it again",
            cut.len(),
            tensors.len()
        ));
    }
    if end < file_len {
        return Err(format!(
            "corrupt: {} bytes behind `{before}` belong to no tensor (expected a file of {end} bytes, found {file_len})",
            file_len - end
        ));
    }
    Ok(())
}

/// The header as it stands in the file, order kept.
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct RawEntry {
    /// Without one, the tensor cannot be read, but the file can.
    #[serde(default = "unstated")]
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

fn unstated() -> String {
    "no type".to_string()
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                let mut seen = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("two entries are called `{name}`")));
                    }
                    let within = |e: A::Error| A::Error::custom(format!("entry `{name}`: {e}"));
                    if name == "__metadata__" {
                        // Texts by the format's rules; what else stands there matters to nobody.
                        if let serde_json::Value::Object(all) = map.next_value().map_err(within)? {
                            let text = |(key, value): (String, serde_json::Value)| Some((key, value.as_str()?.to_string()));
                            header.metadata = all.into_iter().filter_map(text).collect();
                        }
                    } else {
                        let entry = map.next_value().map_err(within)?;
                        header.tensors.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::formats::InMemory;

    /// A file with this header and `data` zero bytes behind it.
    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn read(bytes: Vec<u8>) -> Result<Header> {
        pollster::block_on(read_header(&InMemory::new("t.safetensors", bytes)))
    }

    const TWO: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2,2],"data_offsets":[4,12]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}  "#;

    #[test]
    fn reads_tensors_in_file_order() {
        let header = read(file(TWO, 12)).unwrap();
        assert_eq!(header.metadata["format"], "pt");
        let names: Vec<&str> = header.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let start = 8 + TWO.len() as u64;
        assert_eq!(header.tensors[1].range, start + 4..start + 12);
        assert_eq!((&header.tensors[1].dtype, &header.tensors[1].shape[..]), (&Stored::Known(DType::F16), &[2, 2][..]));
        assert!(read(file("{}", 0)).unwrap().tensors.is_empty());
    }

    #[test]
    fn every_truncation_is_an_error_that_says_so() {
        let whole = file(TWO, 12);
        for len in 0..whole.len() {
            let error = read(whole[..len].to_vec()).unwrap_err();
            assert!(error.kind == Kind::Format && error.message.contains("truncated"), "{len}: {error}");
        }
    }

    #[test]
    fn every_broken_promise_is_named() {
        let one =
            |dtype: &str, shape: &str, offsets: &str| format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
        let cases = [
            (one("F32", "[3]", "[0,8]"), "has 12 bytes"),
            (one("F32", "[2]", "[8,0]"), "no range"),
            (one("F32", "[2]", "[4,12]"), "between `the header` and `x`"),
            (one("F32", "[1]", "[0,4]"), "4 bytes behind `x`"),
            (one("F32", "[18446744073709551615,2]", "[0,8]"), "too large"),
            (one("F32", "[2]", "[0,18446744073709551615]"), "no range"),
            (one("F4", "[3]", "[0,8]"), "within a byte"),
            (one("F32", "[-2]", "[0,8]"), "entry `x`"),
            (one("F32", "[2.5]", "[0,8]"), "entry `x`"),
            (one("F32", "[2]", "[0,8,9]"), "entry `x`"),
            (r#"{"x":{"dtype":"F32","shape":[2]}}"#.into(), "data_offsets"),
            (
                r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#.into(),
                "called `x`",
            ),
            (
                r#"{"x":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"y":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#.into(),
                "overlap by 1",
            ),
            ("[]".into(), "begin with"),
            ("{".into(), "corrupt header"),
            (format!("{{\"x\":{}", "[".repeat(400)), "corrupt header"),
        ];
        for (json, expected) in cases {
            let error = read(file(&json, 8)).unwrap_err();
            assert!(error.kind == Kind::Format && error.message.contains(expected), "{json}: {error}");
        }
    }

    #[test]
    fn other_files_are_recognised() {
        for (start, expected) in [
            ("version https://git-lfs", "git lfs pull"),
            ("GGUF\u{3}\0\0\0xxxx", "GGUF"),
            ("<!doctype html>", "web page"),
            ("PK\u{3}\u{4}aaaa", "zip"),
        ] {
            assert!(read(start.into()).unwrap_err().message.contains(expected));
        }
    }

    #[test]
    fn odd_metadata_is_no_error() {
        for (metadata, expected) in [("null", None), ("[]", None), (r#"{"n":1,"format":"pt","m":{"a":[]}}"#, Some("pt"))] {
            let header = read(file(&format!("{{\"__metadata__\":{metadata}}}"), 0)).unwrap();
            assert_eq!(header.metadata.get("format").map(String::as_str), expected, "{metadata}");
        }
    }

    #[test]
    fn unknown_types_are_kept_by_name() {
        let header = read(file(
            r#"{"x":{"dtype":"F9","shape":[3],"data_offsets":[0,7]},"y":{"dtype":"I64","shape":[1],"data_offsets":[7,15]},"z":{"shape":[2],"data_offsets":[15,23]}}"#,
            23,
        ))
        .unwrap();
        assert_eq!(header.tensors[2].dtype, Stored::Other("no type".into()));
        assert_eq!(header.tensors[0].dtype, Stored::Other("F9".into()));
        assert_eq!(header.tensors[1].dtype.known(), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(start in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40), at in 0usize..140, byte: u8) {
            let _ = read(start);
            let mut changed = file(TWO, 12);
            changed[at] = byte;
            let _ = read(changed);
        }
    }
}
