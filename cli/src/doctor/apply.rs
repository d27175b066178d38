//! `--apply`: a mended copy of a model's folder. It is written beside its place and moved there when it is whole.

use doppler::debug::doctor::against::Examined;
use doppler::debug::doctor::mend::patched;
use doppler::debug::doctor::report::Fix;
use doppler::{Error, Result};
use std::path::Path;

/// Copies the folder of `model` to `out` with the config of the verdict's fixes.
///
/// # Errors
/// `Kind::Invalid` where nothing can be mended in config.json; `Kind::Io`.
pub fn apply(model: &str, found: &Examined, out: &Path) -> Result<()> {
    let fixes: Vec<&Fix> = found.verdict.faults.iter().filter_map(|fault| fault.fix.as_ref()).collect();
    let refuse = |why: &str| Err(Error::invalid("--apply", why));
    let folder = Path::new(model);
    if !folder.join("config.json").is_file() {
        return refuse("only folders with a config.json can be mended");
    }
    if fixes.is_empty() || fixes.iter().any(|fix| fix.config.is_empty()) {
        return refuse("not every fault can be mended in config.json; the verdict says what to do");
    }
    let failed = |path: &Path, e: std::io::Error| Error::io(path.display(), e);
    let mut config = std::fs::read_to_string(folder.join("config.json")).map_err(|e| failed(folder, e))?;
    for fix in fixes {
        config = patched(&config, &fix.config).ok_or_else(|| Error::invalid("--apply", "config.json has no place for the fix"))?;
    }
    let name = out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let part = out.with_file_name(format!(".{name}.part"));
    std::fs::create_dir(&part).map_err(|e| failed(&part, e))?;
    let copied = copy(folder, &part, &config).and_then(|()| std::fs::rename(&part, out).map_err(|e| failed(out, e)));
    if copied.is_err() {
        let _ = std::fs::remove_dir_all(&part);
    }
    copied
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
