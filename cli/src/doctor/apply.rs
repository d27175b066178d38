//! `--apply`: a mended copy of a model's folder. It is written beside its place and moved there when it is whole; the model
//! itself is never written to.

use doppler::debug::doctor::against::Examined;
use doppler::debug::doctor::mend::patched;
use doppler::debug::doctor::mended::Patch;
use doppler::debug::doctor::report::Fix;
use doppler::{Error, Result};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// Copies the folder of `model` to `out` with the config of the verdict's fixes, and with `patches` of its weights.
///
/// # Errors
/// `Kind::Invalid` where a fault cannot be mended in the files; `Kind::Io`.
pub fn apply(model: &str, found: &Examined, patches: &[Patch], out: &Path) -> Result<()> {
    let fixes: Vec<&Fix> = found.verdict.faults.iter().filter_map(|fault| fault.fix.as_ref()).collect();
    let refuse = |why: &str| Err(Error::invalid("--apply", why));
    let folder = Path::new(model);
    if !folder.join("config.json").is_file() {
        return refuse("only folders with a config.json can be mended");
    }
    if fixes.len() < found.verdict.faults.len() || fixes.is_empty() || fixes.iter().any(|fix| !fix.applicable) {
        return refuse("not every fault can be mended in the model's files; the verdict says what to do");
    }
    let failed = |path: &Path, e: std::io::Error| Error::io(path.display(), e);
    let mut config = std::fs::read_to_string(folder.join("config.json")).map_err(|e| failed(folder, e))?;
    for fix in fixes.iter().filter(|fix| !fix.config.is_empty()) {
        config = patched(&config, &fix.config).ok_or_else(|| Error::invalid("--apply", "config.json has no place for the fix"))?;
    }
    let name = out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let part = out.with_file_name(format!(".{name}.part"));
    std::fs::create_dir(&part).map_err(|e| failed(&part, e))?;
    let written = copy(folder, &part, &config).and_then(|()| patch(&part, patches));
    let moved = written.and_then(|()| std::fs::rename(&part, out).map_err(|e| failed(out, e)));
    if moved.is_err() {
        let _ = std::fs::remove_dir_all(&part);
    }
    moved
}

/// Writes `patches` into the copies of their files.
fn patch(folder: &Path, patches: &[Patch]) -> Result<()> {
    for Patch { file, range, bytes } in patches {
        let name = Path::new(file).file_name().ok_or_else(|| Error::invalid("--apply", format!("{file} is no file of the folder")))?;
        let path = folder.join(name);
        let write = || -> std::io::Result<()> {
            let mut copy = std::fs::OpenOptions::new().write(true).open(&path)?;
            copy.seek(SeekFrom::Start(range.start))?;
            copy.write_all(bytes)
        };
        write().map_err(|e| Error::io(path.display(), e))?;
    }
    Ok(())
}

fn copy(folder: &Path, to: &Path, config: &str) -> Result<()> {
    let failed = |path: &Path, e: std::io::Error| Error::io(path.display(), e);
    for entry in std::fs::read_dir(folder).map_err(|e| failed(folder, e))? {
        let path = entry.map_err(|e| failed(folder, e))?.path();
        let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
        std::fs::copy(&path, to.join(name)).map_err(|e| failed(&path, e))?;
    }
    std::fs::write(to.join("config.json"), config).map_err(|e| failed(to, e))
}
