//! Models in several files: `NAME-00001-of-00003.gguf`. The first file has the metadata; each says which one it is
//! (`split.no`, from 0), how many there are (`split.count`) and how many tensors all have (`split.tensors.count`).

use super::Header;
use crate::error::{Error, Result};
use std::collections::HashMap;

/// Files of one model, at most.
pub const MAX_FILES: u64 = 10_000;

/// Names of all files of the model of which `name` is one, in order; `None` for a file that its name calls whole.
pub fn split_files(name: &str) -> Option<Vec<String>> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (base, number) = rest.rsplit_once('-')?;
    let parsed = |digits: &str| -> Option<u64> {
        if digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
    };
    let (number, total) = (parsed(number)?, parsed(count)?);
    if number == 0 || number > total || total > MAX_FILES {
        return None;
    }
    Some(named(base, total))
}

/// Names of the files of a model of so many, whose name is `base`.
pub fn named(base: &str, count: u64) -> Vec<String> {
    (1..=count).map(|i| format!("{base}-{i:05}-of-{count:05}.gguf")).collect()
}

/// One header of those of a model's files, which are in order and called as in `names`.
///
/// # Errors
/// `Kind::Format` for files that are missing, in another order or of another model, and for a tensor that is in two of them.
pub fn join(headers: Vec<Header>, names: &[&str]) -> Result<Header> {
    let count = headers.len() as u64;
    let name = |i: usize| names.get(i).copied().unwrap_or("GGUF");
    let mut joined: Option<Header> = None;
    for (i, header) in headers.into_iter().enumerate() {
        let of = |key: &str| header.metadata.unsigned(key).map_err(|e| e.within(name(i)));
        let (number, total) = (of("split.no")?.unwrap_or(0), of("split.count")?.unwrap_or(1).max(1));
        if total != count {
            let message =
                format!("it is file {} of {total}, but {count} were given; all files of the model must be there", number.saturating_add(1));
            return Err(Error::format(name(i), message));
        }
        if number != i as u64 {
            let message = format!("it should be file {} of {total}, but says that it is file {}", i + 1, number.saturating_add(1));
            return Err(Error::format(name(i), message));
        }
        match &mut joined {
            None => joined = Some(header),
            Some(first) => {
                first.tensors.extend(header.tensors.into_iter().map(|mut tensor| {
                    tensor.file = i;
                    tensor
                }));
            }
        }
    }
    let joined = joined.ok_or_else(|| Error::format("GGUF", "expected at least one file"))?;
    let mut seen = HashMap::new();
    for tensor in &joined.tensors {
        if let Some(other) = seen.insert(tensor.name.as_str(), tensor.file) {
            let message = format!("tensor `{:.80}` is in {} too", tensor.name, name(other));
            return Err(Error::format(name(tensor.file), message));
        }
    }
    let total = joined.metadata.unsigned("split.tensors.count")?;
    if let Some(total) = total.filter(|total| count > 1 && *total != joined.tensors.len() as u64) {
        let found = joined.tensors.len();
        let message = format!("all files should have {total} tensors, but they have {found}: one is of another model, or truncated");
        return Err(Error::format(name(0), message));
    }
    Ok(joined)
}
