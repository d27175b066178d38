//! The GGUF format, versions 2 and 3: a header with typed metadata and a table of tensors, then aligned tensor data,
//! in one file or several. Only the header is read, as far as it goes. It knows no model: what keys mean is for others.
//! Source: the description of the format in ggml's `docs/gguf.md`.
//!
//! Layout, little-endian: `GGUF`, version u32, count of tensors u64, count of metadata u64; each metadatum a text (u64
//! length, bytes), a type u32 and the value; each tensor its name, count of sizes u32, sizes u64 (innermost first), type
//! u32, offset u64. Offsets count from the end of the table, rounded up to the alignment.

mod bytes;
mod choice;
pub mod importance;
mod metadata;
pub mod names;
mod split;
mod tensors;
mod types;
mod write;

pub use choice::{Sizes, choose, is_gguf, size};
pub use metadata::{Array, Metadata, Scalar, Value};
pub use split::{MAX_FILES, join, named, split_files};
pub use tensors::Tensor;
pub use types::{TypeInfo, type_info};
pub use write::{Output, Part, write, write_part};

use super::{ByteSource, TensorIndex};
use crate::error::{Error, Result};
use bytes::{Cursor, Stop};

/// Bytes that are read first; a header without a vocabulary fits.
const FIRST_READ: u64 = 1 << 20;
/// Longest header that is read. The largest vocabularies known, with their merges, have some 30 MB.
const MAX_HEADER: u64 = 256 << 20;

/// What the header of one file holds, or those of all files of a split model together.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Version of the format: 2 or 3.
    pub version: u32,
    /// Typed metadata by key.
    pub metadata: Metadata,
    /// Tensors in the order of the table.
    pub tensors: Vec<Tensor>,
    /// Bytes up to the end of the table.
    pub header_bytes: u64,
}

impl Header {
    /// The tensors by name, as every other format gives them.
    ///
    /// # Errors
    /// `Kind::Format` for two of one name, which [`read_header`] and [`join`] have excluded.
    pub fn index(&self) -> Result<TensorIndex> {
        let entries = self.tensors.iter().map(Tensor::entry).collect();
        TensorIndex::new(entries).map_err(|(name, _, _)| Error::format("GGUF", format!("tensor `{name}` is there twice")))
    }
}

/// Reads and checks the header of `source`, in growing ranges from its beginning: never tensor data beyond the last of them.
///
/// # Errors
/// `Kind::Format`, naming file and key or tensor; `Kind::Io` when reading fails.
pub async fn read_header(source: &impl ByteSource) -> Result<Header> {
    let (name, len) = (source.name(), source.len());
    let mut read: Vec<u8> = Vec::new();
    let mut wanted = FIRST_READ.min(len);
    loop {
        let more = source.read(read.len() as u64..wanted).await?;
        read.extend_from_slice(&more);
        match parse(&read, len) {
            Ok(header) => return Ok(header),
            Err(Stop::Bad(message)) => return Err(Error::format(name, message)),
            Err(Stop::More(end)) if end > MAX_HEADER || end > len => {
                let message = format!("not a GGUF file: its header would have {end} bytes or more (at most {})", MAX_HEADER.min(len));
                return Err(Error::format(name, message));
            }
            Err(Stop::More(end)) => wanted = (end + FIRST_READ).max(wanted.saturating_mul(3) / 2).min(len).min(MAX_HEADER),
        }
    }
}

/// Reads the header in `read`, the first bytes of a file of `file_len`. [`Stop::More`] says how far it must be read.
fn parse(read: &[u8], file_len: u64) -> Result<Header, Stop> {
    let mut cursor = Cursor::new(read, file_len);
    let version = check_start(&mut cursor, read, file_len)?;
    let tensor_count = cursor.u64()?;
    let value_count = cursor.u64()?;
    let metadata = Metadata::read(&mut cursor, value_count)?;
    let alignment = alignment(&metadata)?;
    let tensors = tensors::read(&mut cursor, tensor_count, alignment)?;
    Ok(Header { version, metadata, tensors, header_bytes: cursor.at() })
}

/// The four letters and the version.
fn check_start(cursor: &mut Cursor, read: &[u8], file_len: u64) -> Result<u32, Stop> {
    if file_len < 24 {
        return Err(Stop::Bad(format!("expected a GGUF file, found {file_len} bytes: empty or truncated")));
    }
    if cursor.take(4)? != b"GGUF" {
        let found = match read {
            [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', ..] => {
                "a Git LFS pointer: the file itself was not downloaded (try `git lfs pull`)"
            }
            [b'<', b'!' | b'h', ..] => "a web page: the download went wrong",
            [b'F', b'U', b'G', b'G', ..] => "the bytes of its name reversed: big-endian files are not supported",
            [b'g', b'g', b'm' | b'j' | b'l', _, ..] | [b'l' | b't' | b'f', _, b'g', b'g', ..] => {
                "a file of the formats before GGUF; convert the model again"
            }
            _ => "other bytes",
        };
        return Err(Stop::Bad(format!("expected a GGUF file, found {found}")));
    }
    match cursor.u32()? {
        version @ (2 | 3) => Ok(version),
        1 => Err(Stop::Bad("GGUF version 1 is not supported (supported: 2, 3); convert the model again".into())),
        version if version & 0xffff == 0 => {
            Err(Stop::Bad("a big-endian GGUF file is not supported; convert the model again for little-endian machines".into()))
        }
        version => Err(Stop::Bad(format!("GGUF version {version} is not supported (supported: 2, 3)"))),
    }
}

/// `general.alignment`, or 32, which the format says where the key is absent.
fn alignment(metadata: &Metadata) -> Result<u64, Stop> {
    const KEY: &str = "general.alignment";
    let Some(value) = metadata.get(KEY) else { return Ok(32) };
    match value.unsigned().filter(|n| n.is_power_of_two() && *n <= 1 << 20) {
        Some(alignment) => Ok(alignment),
        None => Err(Stop::Bad(format!("metadata `{KEY}`: expected a power of two up to 1048576, found {value}"))),
    }
}

#[cfg(test)]
mod tests;
