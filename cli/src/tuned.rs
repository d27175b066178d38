//! What `doppler tune` measured, kept for this user: one file for each device in the cache folder.

use doppler::formats::text::{MAX_TEXT, read_text};
use doppler::formats::write::write_atomically;
use doppler::tuned::{Tuned, short_hash};
use doppler::{Error, Result};
use std::path::{Path, PathBuf};

/// Where the tables are; `None` for a user without a home folder.
fn folder() -> Option<PathBuf> {
    let given = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    Some(given.or_else(|| Some(std::env::home_dir()?.join(".cache")))?.join("doppler").join("tuned"))
}

/// Every table that was kept.
///
/// # Errors
/// A file that is no table; the hint says how to go on.
pub fn tables() -> Result<Vec<Tuned>> {
    let Some(entries) = folder().and_then(|folder| std::fs::read_dir(folder).ok()) else { return Ok(Vec::new()) };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect();
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Result<Tuned> {
    serde_json::from_str(&read_text(path, MAX_TEXT)?)
        .map_err(|e| Error::format(path.display(), format!("{e}: delete this file, which `doppler tune` writes anew, or use --tune off")))
}

/// Keeps `table`. What the file knows of other products, with the same kernels, stays.
///
/// # Errors
/// `Kind::Io` where there is no folder or it cannot be written.
pub fn keep(mut table: Tuned, measured: &[String]) -> Result<PathBuf> {
    let folder = folder().ok_or_else(|| Error::io("cache", "this user has no home folder; set XDG_CACHE_HOME"))?;
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(folder.display(), e))?;
    let path = folder.join(format!("{}.json", short_hash([table.device.as_str()])));
    // A file that cannot be read is replaced.
    if let Ok(old) = read(&path)
        && old.is_of(&table.device, &table.kernels)
    {
        let others = old.products.into_iter().filter(|(product, _)| !measured.contains(product));
        table.products.extend(others);
    }
    let text = serde_json::to_string_pretty(&table).map_err(|e| Error::io(path.display(), e))?;
    write_atomically(&path, |out| writeln!(out, "{text}"))?;
    Ok(path)
}
