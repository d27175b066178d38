//! `cargo xtask web`: the package for browsers, in `target/web`: the engine as wasm, its glue, and the files of
//! `web/package`.

use crate::{Result, cargo, root, run};
use std::path::{Path, PathBuf};
use wasm_bindgen_cli_support::Bindgen;

/// The browser's target.
pub const TARGET: &str = "wasm32-unknown-unknown";
/// The Cargo profile of the wasm, small before fast.
const PROFILE: &str = "wasm";

/// Builds what changed and returns the folder.
pub fn build() -> Result<PathBuf> {
    run(&mut cargo(&["build", "--quiet", "-p", "doppler-web", "--target", TARGET, "--profile", PROFILE]))?;
    let target = target_folder()?;
    let wasm = target.join(TARGET).join(PROFILE).join("doppler_web.wasm");
    let folder = target.join("web");
    let made = folder.join("doppler_web_bg.wasm");
    if modified(&made).is_none_or(|made| modified(&wasm).is_none_or(|wasm| made < wasm)) {
        if folder.is_dir() {
            // What an earlier version made is not part of this one.
            std::fs::remove_dir_all(&folder)?;
        }
        Bindgen::new()
            .input_path(&wasm)
            .web(true)?
            .omit_default_module_path(false)
            .typescript(false)
            .remove_name_section(true)
            .remove_producers_section(true)
            .generate(&folder)?;
    }
    for entry in std::fs::read_dir(root().join("web/package"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    eprintln!("{}: {} kB", made.display(), made.metadata()?.len() / 1000);
    Ok(folder)
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().ok()?.modified().ok()
}

/// Cargo's target folder, wherever it was configured.
fn target_folder() -> Result<PathBuf> {
    let output = cargo(&["metadata", "--no-deps", "--format-version", "1"]).output()?;
    let about: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let folder = about["target_directory"].as_str().ok_or("cargo metadata names no target folder")?;
    Ok(PathBuf::from(folder))
}
