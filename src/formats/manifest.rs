//! The manifest of a model in shards (docs/FORMAT.md): what `manifest.json` says, checked. It opens nothing and knows no
//! model: roles and layers are texts and numbers here.

use super::{Stored, TensorEntry, TensorIndex};
use crate::error::{Error, Result};
use crate::json;
use crate::quant::Format;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Name of the manifest in its folder.
pub const FILE: &str = "manifest.json";
/// Its `format`.
const KIND: &str = "doppler-manifest";
/// Its `version`.
const VERSION: u32 = 1;
/// Offsets of tensors in shards are multiples of this.
pub const ALIGNMENT: u64 = 256;
/// Bytes of a shard, unless one row has more.
pub const SHARD: u64 = 64 << 20;

/// What a manifest says. Keys of further versions are refused: they could change what is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Manifest {
    /// "doppler-manifest".
    pub format: String,
    /// 1.
    pub version: u32,
    /// Name of the model, for people.
    pub name: String,
    /// How it was made.
    pub provenance: Provenance,
    /// How its weights were encoded.
    pub quantization: Quantization,
    /// The resolved config, for readers: field, value, source. What counts is config.json.
    pub resolved: Vec<[String; 3]>,
    /// Texts of the model beside the manifest.
    pub texts: Vec<Hashed>,
    /// The shards, in order.
    pub shards: Vec<Hashed>,
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<Tensor>,
}

/// How a manifest was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Provenance {
    /// Program and version.
    pub tool: String,
    /// The command.
    pub command: String,
    /// What was converted: name and files.
    pub source: String,
    /// Its weight files.
    pub files: Vec<Hashed>,
}

/// How weights were encoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Quantization {
    /// A format, or a mixture by its name.
    pub recipe: String,
    /// Exceptions, `PATTERN=FORMAT`.
    pub keep: Vec<String>,
    /// The file of the importance matrix, if one was used.
    pub imatrix: Option<String>,
}

/// A file with its length and hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hashed {
    /// Its name in the folder.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 of them, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// A tensor: its bytes begin in a shard, and go on at the beginning of the next one where that one ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Tensor {
    /// Unique name: `layer.3.q_proj.weight`.
    pub name: String,
    /// What it is for, in the words of plans.
    pub role: String,
    /// Its layer, where it has one.
    pub layer: Option<usize>,
    /// Its format.
    pub format: Format,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Position of its first shard.
    pub shard: usize,
    /// Its first byte there.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
}

impl Manifest {
    /// A manifest of this version without files.
    pub fn new(name: &str, provenance: Provenance, quantization: Quantization) -> Self {
        let (format, version, name) = (KIND.into(), VERSION, name.into());
        let (resolved, texts, shards, tensors) = Default::default();
        Self { format, version, name, provenance, quantization, resolved, texts, shards, tensors }
    }
    /// Whether `text` is meant as a manifest, of any version: other programs have files of this name too.
    pub fn is_meant(text: &str) -> bool {
        json::parse(FILE, text).is_ok_and(|json| json["format"] == KIND)
    }
    /// Reads and checks the text of the manifest called `name`.
    ///
    /// # Errors
    /// `Kind::Format`, naming key, shard or tensor.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let json = json::parse(name, text)?;
        match (json["format"].as_str(), json["version"].as_u64()) {
            (Some(KIND), Some(version)) if version == u64::from(VERSION) => {}
            (Some(KIND), version) => {
                let found = version.map_or("none".into(), |version| version.to_string());
                return Err(Error::format(name, format!("version {found} of the format is not supported (supported: {VERSION})")));
            }
            (found, _) => return Err(Error::format(name, format!("no manifest: `format` should be {KIND:?}, found {found:.40?}"))),
        }
        let manifest: Self = serde_json::from_value(json).map_err(|e| Error::format(name, format!("corrupt manifest: {e}")))?;
        manifest.check().map_err(|message| Error::format(name, format!("corrupt manifest: {message}")))?;
        Ok(manifest)
    }
    /// Bytes before each shard, and after the last.
    pub fn starts(&self) -> Vec<u64> {
        let mut sum = 0u64;
        let ends = self.shards.iter().map(|shard| {
            sum = sum.saturating_add(shard.bytes);
            sum
        });
        std::iter::once(0).chain(ends).collect()
    }
    /// The tensors in one file that is made of all shards, one after the other.
    ///
    /// # Errors
    /// `Kind::Format` for two of one name, which [`Self::parse`] excludes.
    pub fn index(&self) -> Result<TensorIndex> {
        let starts = self.starts();
        let entry = |tensor: &Tensor| {
            let start = starts.get(tensor.shard).copied().unwrap_or(0).saturating_add(tensor.offset);
            let dtype = tensor.format.dtype().map_or(Stored::Packed(tensor.format), Stored::Known);
            let range = start..start.saturating_add(tensor.bytes);
            TensorEntry { name: tensor.name.clone(), dtype, shape: tensor.shape.clone(), file: 0, range }
        };
        TensorIndex::new(self.tensors.iter().map(entry).collect())
            .map_err(|(name, ..)| Error::format(FILE, format!("tensor `{name}` is there twice")))
    }
    fn check(&self) -> Result<(), String> {
        let mut names = HashSet::new();
        for file in self.texts.iter().chain(&self.shards) {
            let Hashed { name, sha256, .. } = file;
            if !is_plain(name) {
                return Err(format!("{name:.80?} is not the name of a file in the manifest's folder"));
            }
            if !names.insert(name.to_lowercase()) {
                return Err(format!("file `{name}` is there twice"));
            }
            if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
                return Err(format!("the SHA-256 of `{name}` is {sha256:.80?}, expected 64 hexadecimal digits in lower case"));
            }
        }
        if let Some(empty) = self.shards.iter().find(|shard| shard.bytes == 0) {
            return Err(format!("shard `{}` is empty", empty.name));
        }
        if self.shards.iter().try_fold(0u64, |sum, shard| sum.checked_add(shard.bytes)).is_none() {
            return Err("the shards have more bytes than can be counted".into());
        }
        let starts = self.starts();
        let mut tensors = HashSet::new();
        let mut end = 0;
        for tensor in &self.tensors {
            if !tensors.insert(tensor.name.as_str()) {
                return Err(format!("tensor `{:.80}` is there twice", tensor.name));
            }
            end = tensor.place(&starts, end).map_err(|message| format!("tensor `{:.80}`: {message}", tensor.name))?;
        }
        Ok(())
    }
}

impl Tensor {
    /// Where it ends among the bytes of all shards, which begin at `starts`; tensors before it end at `before`.
    fn place(&self, starts: &[u64], before: u64) -> Result<u64, String> {
        let Self { format, shape, shard, offset, bytes, .. } = self;
        let columns = shape.iter().skip(1).try_fold(1usize, |product, size| product.checked_mul(*size));
        let row = columns.and_then(|columns| format.row_bytes(columns)).map(|row| row as u64);
        let Some(row) = row else { return Err(format!("{shape:?} are no whole blocks of {format}, or too large to be true")) };
        let rows = shape.first().map_or(1, |rows| *rows as u64);
        if row.checked_mul(rows) != Some(*bytes) {
            return Err(format!("{shape:?} of {format} are not {bytes} bytes"));
        }
        let (Some(from @ [start, next, ..]), [.., all]) = (starts.get(*shard..), starts) else {
            return Err(format!("there is no shard {shard}"));
        };
        if !offset.is_multiple_of(ALIGNMENT) {
            return Err(format!("offset {offset} is no multiple of {ALIGNMENT}"));
        }
        if *offset > next - start {
            return Err(format!("offset {offset} is beyond its shard, which has {} bytes", next - start));
        }
        let begin = start + offset;
        if begin < before {
            return Err(format!("it overlaps the one before it by {} bytes", before - begin));
        }
        let end = begin.checked_add(*bytes).filter(|end| end <= all);
        let Some(end) = end else { return Err("it ends beyond the last shard".into()) };
        // A shard that it goes through ends between two rows.
        let mut inside = from.iter().take_while(|at| **at < end).filter(|at| begin < **at);
        match inside.find(|at| !(*at - begin).is_multiple_of(row.max(1))) {
            None => Ok(end),
            Some(at) => Err(format!("byte {at}, where a shard ends, is within one of its rows")),
        }
    }
}

/// The name of a file that is where it is put, on every system.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}
