//! Tensors that are stored twice, and what an index of shards says of tensors that are not where it says.

use super::BAND_BYTES;
use crate::error::{Error, Result};
use crate::formats::shards::ShardIndex;
use crate::formats::{ByteSource, TensorEntry, TensorIndex};
use crate::tensor::element;
use std::collections::HashMap;

/// Keeps one of the entries that share a name: the one in the file that `shards` maps, else the last file's, as
/// transformers does. Without an index, copies must be equal.
///
/// # Errors
/// `Kind::Format` for copies that differ and no index to choose; `Kind::Io` when reading fails.
pub(super) async fn resolve<S: ByteSource>(
    entries: Vec<TensorEntry>,
    sources: &[S],
    shards: Option<&ShardIndex>,
    notes: &mut Vec<String>,
) -> Result<Vec<TensorEntry>> {
    let mut copies: HashMap<&str, Vec<usize>> = HashMap::with_capacity(entries.len());
    for (i, entry) in entries.iter().enumerate() {
        copies.entry(&entry.name).or_default().push(i);
    }
    let mapped: HashMap<&str, usize> = shards.iter().flat_map(|s| &s.tensors).map(|(name, file)| (name.as_str(), *file)).collect();
    let mut dropped = vec![false; entries.len()];
    let mut several: Vec<Vec<usize>> = copies.into_values().filter(|all| all.len() > 1).collect();
    several.sort_unstable();
    let (mut passed_over, mut otherwise) = (Vec::new(), Vec::new());
    for all in several {
        let last = all[all.len() - 1];
        let place = mapped.get(entries[last].name.as_str());
        let kept = all.iter().copied().find(|i| place == Some(&entries[*i].file)).unwrap_or(last);
        for other in all.into_iter().filter(|i| *i != kept) {
            dropped[other] = true;
            let (copy, kept) = (&entries[other], &entries[kept]);
            // Only what transformers would read, the last file, need be compared where an index chooses.
            if (shards.is_none() || other == last)
                && let Some(what) = difference(sources, copy, kept, BAND_BYTES).await?
            {
                if shards.is_none() {
                    let (name, file) = (&copy.name, sources[copy.file].name());
                    let hint = "and no model.safetensors.index.json says which counts";
                    return Err(Error::format(
                        sources[kept.file].name(),
                        format!("tensor `{name}` is also in {file}, with other values ({what}), {hint}"),
                    ));
                }
                otherwise.push(format!("`{}` in {}", copy.name, sources[copy.file].name()));
            }
            passed_over.push(format!("`{}` in {}", copy.name, sources[copy.file].name()));
        }
    }
    if let Some(first) = passed_over.first() {
        let which = shards.map_or("their copies are equal".to_string(), |s| format!("what {} maps counts", s.name));
        notes.push(format!("{} stored in two files, {which}; passed over: {first}{}", are(passed_over.len()), more(passed_over.len())));
    }
    if let Some(first) = otherwise.first() {
        let rest = more(otherwise.len());
        notes.push(format!("transformers reads the last file's copy, which has other values: {first}{rest}"));
    }
    Ok(entries.into_iter().zip(dropped).filter(|(_, dropped)| !dropped).map(|(entry, _)| entry).collect())
}

/// What `shards` says wrongly of the tensors that there are.
pub(super) fn stale(shards: &ShardIndex, index: &TensorIndex) -> Vec<String> {
    let (mut absent, mut elsewhere) = (Vec::new(), Vec::new());
    for (name, file) in &shards.tensors {
        match index.get(name) {
            None => absent.push(name),
            Some(entry) if entry.file != *file => elsewhere.push(name),
            Some(_) => {}
        }
    }
    let note = |names: Vec<&String>, what: &str| {
        let first = names.first()?;
        Some(format!("{}: {} {what}: `{first}`{}", shards.name, are(names.len()), more(names.len())))
    };
    let notes = [note(absent, "listed that no file has, and passed over"), note(elsewhere, "in another file than it says")];
    notes.into_iter().flatten().collect()
}

fn are(count: usize) -> String {
    if count == 1 { "1 tensor is".into() } else { format!("{count} tensors are") }
}

fn more(count: usize) -> String {
    if count > 1 { format!(" and {} more", count - 1) } else { String::new() }
}

/// In which way the values of two tensors differ, in words; NaN equals NaN. Both are read in bands of `band_bytes`.
///
/// # Errors
/// What the sources report.
pub(super) async fn difference<S: ByteSource>(
    sources: &[S],
    a: &TensorEntry,
    b: &TensorEntry,
    band_bytes: usize,
) -> Result<Option<String>> {
    if a.shape != b.shape {
        return Ok(Some(format!("shapes {:?} and {:?}", a.shape, b.shape)));
    }
    let (a_type, b_type) = (a.dtype.known(), b.dtype.known());
    if (a_type.is_none() || b_type.is_none()) && a.dtype != b.dtype {
        return Ok(Some(format!("types {} and {}", a.dtype, b.dtype)));
    }
    // Of a type that Doppler does not know, bytes are compared.
    let (a_size, b_size) = (a_type.map_or(1, |t| t.size() as u64), b_type.map_or(1, |t| t.size() as u64));
    let (count, band) = (a.bytes() / a_size, (band_bytes as u64 / 4).max(1));
    let mut first = 0;
    while first < count {
        let elements = band.min(count - first);
        let range = |start: u64, size: u64| start + first * size..start + (first + elements) * size;
        let x = sources[a.file].read(range(a.range.start, a_size)).await?;
        let y = sources[b.file].read(range(b.range.start, b_size)).await?;
        if a_type != b_type || x != y {
            let (Some(a_type), Some(b_type)) = (a_type, b_type) else { return Ok(Some("bytes".into())) };
            let mut values = (0..elements as usize).map(|i| (element(&x, a_type, i), element(&y, b_type, i)));
            let same = |(x, y): (f32, f32)| x == y || (x.is_nan() && y.is_nan());
            if let Some(i) = values.position(|pair| !same(pair)) {
                let (x, y) = (element(&x, a_type, i), element(&y, b_type, i));
                return Ok(Some(format!("first at element {}: {x} and {y}", first + i as u64)));
            }
        }
        first += elements;
    }
    Ok(None)
}
