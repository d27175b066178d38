//! Files identified by name, size and XXH64 of their content, read in pieces.

use crate::error::Result;
use crate::formats::ByteSource;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh64::Xxh64;

/// Bytes that are hashed at once.
const PIECE: u64 = 16 << 20;

/// Identifies a file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fingerprint {
    /// Name within the model's folder.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// XXH64 (seed 0) of the content, 16 hexadecimal digits.
    pub xxh64: String,
}

/// A file that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Name within the model's folder.
    pub file: String,
    /// As it was; `None` for a file that was not there.
    pub expected: Option<Fingerprint>,
    /// As it is; `None` for a file that is not there.
    pub found: Option<Fingerprint>,
}

/// Fingerprint of `source` under `name`; `progress` hears how many bytes were read since it heard last.
///
/// # Errors
/// What the source reports.
pub async fn fingerprint(name: &str, source: &impl ByteSource, progress: &mut dyn FnMut(u64)) -> Result<Fingerprint> {
    let (len, mut hash) = (source.len(), Xxh64::new(0));
    let mut start = 0;
    while start < len {
        let end = len.min(start + PIECE);
        hash.update(&source.read(start..end).await?);
        progress(end - start);
        start = end;
    }
    Ok(Fingerprint { name: name.to_string(), bytes: len, xxh64: format!("{:016x}", hash.digest()) })
}

/// Fingerprint of a file that was read as text.
pub fn fingerprint_text(name: &str, text: &str) -> Fingerprint {
    let mut hash = Xxh64::new(0);
    hash.update(text.as_bytes());
    Fingerprint { name: name.to_string(), bytes: text.len() as u64, xxh64: format!("{:016x}", hash.digest()) }
}

/// Fingerprints of all files of a model that bear on a run: texts, then weights.
///
/// # Errors
/// What reading reports.
#[cfg(not(target_arch = "wasm32"))]
pub async fn fingerprints(files: &crate::loader::ModelFiles, progress: &mut dyn FnMut(u64)) -> Result<Vec<Fingerprint>> {
    let mut found: Vec<Fingerprint> = files.texts.iter().map(|(name, text)| fingerprint_text(name, text)).collect();
    for source in &files.sources {
        let path = std::path::Path::new(source.name());
        // As the index of shards calls it.
        let name = path.strip_prefix(&files.path).unwrap_or(path).to_string_lossy().replace('\\', "/");
        found.push(fingerprint(&name, source, progress).await?);
    }
    Ok(found)
}

/// Files of `expected` that `found` lacks or has otherwise, in order, then those that only `found` has.
pub fn differences(expected: &[Fingerprint], found: &[Fingerprint]) -> Vec<Difference> {
    let by_name = |list: &[Fingerprint], name: &str| list.iter().find(|f| f.name == name).cloned();
    let gone_or_other = expected.iter().filter_map(|e| {
        let now = by_name(found, &e.name);
        (now.as_ref() != Some(e)).then(|| Difference { file: e.name.clone(), expected: Some(e.clone()), found: now })
    });
    let new = found.iter().filter(|f| by_name(expected, &f.name).is_none());
    let new = new.map(|f| Difference { file: f.name.clone(), expected: None, found: Some(f.clone()) });
    gone_or_other.chain(new).collect()
}

impl Difference {
    /// `ANOMALY kind=other_file file=model.safetensors expected=… found=…`.
    pub fn text(&self) -> String {
        let told = |f: &Option<Fingerprint>| f.as_ref().map_or("absent".to_string(), |f| format!("{}:{}", f.bytes, f.xxh64));
        format!("ANOMALY kind=other_file file={} expected={} found={} (bytes:xxh64)", self.file, told(&self.expected), told(&self.found))
    }
}
