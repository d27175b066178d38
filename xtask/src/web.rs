//! `cargo xtask web`: the package for browsers, in `target/web`: the engine as wasm, its glue, and the files of
//! `web/package`; and the page, in `target/site`, with the package and the built-in model: a folder for any static host.
//! A list of the sources beside them says whether they are up to date.

/// The scripts and the style of reports, which the crate has too.
#[path = "../../src/debug/html/picture.rs"]
mod picture;

use crate::{Result, cargo, root, run};
use doppler_browser::site;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use wasm_bindgen_cli_support::Bindgen;

/// The browser's target.
pub const TARGET: &str = "wasm32-unknown-unknown";
/// The Cargo profile of the wasm, small before fast.
const PROFILE: &str = "wasm";

/// What reports of a browser draw, as they name it.
const DRAWN: &[&[&str]] = &[&["run", "attention"], &["comparison"]];

/// The files of the built-in model that loading it takes.
const DEMO: &[&str] = &["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];

/// Builds what changed, puts the site together, and returns the package's folder.
pub fn build() -> Result<PathBuf> {
    need_target()?;
    // Listed before they are read: what is changed meanwhile is built the next time.
    let sources = site::sources(root());
    run(&mut cargo(&["build", "--locked", "--quiet", "-p", "doppler-web", "--target", TARGET, "--profile", PROFILE]))?;
    let target = target_folder()?;
    let wasm = target.join(TARGET).join(PROFILE).join("doppler_web.wasm");
    let folder = target.join("web");
    // Until all is done, nothing is.
    site::note(&target, None)?;
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
    let ours = [files(&root().join("web/package"))?, vec![root().join("LICENSE"), root().join("THIRD-PARTY.txt")]].concat();
    for path in ours {
        std::fs::copy(&path, folder.join(path.file_name().ok_or("a file has a name")?))?;
    }
    std::fs::write(folder.join("drawn.js"), drawn())?;
    let small = target.join("doppler_web_bg.wasm.gz");
    if modified(&small).is_none_or(|small| modified(&made).is_none_or(|made| small < made)) {
        let mut file = GzEncoder::new(std::fs::File::create(&small)?, Compression::best());
        file.write_all(&std::fs::read(&made)?)?;
        file.finish()?;
    }
    eprintln!("{}: {} kB, {} kB compressed", made.display(), made.metadata()?.len() / 1000, small.metadata()?.len() / 1000);
    put_together(&folder, &small, &target.join("site"))?;
    site::note(&target, Some(&sources))?;
    Ok(folder)
}

/// Installs the command line with the page inside, as `cargo install` does with these options.
pub fn install(options: &[&str]) -> Result {
    build()?;
    let target = target_folder()?;
    let mut command = cargo(&["install", "--locked", "--path", "cli", "--features", "site", "--target-dir"]);
    run(command.arg(target).args(options))
}

/// The toolchain's part for the target. `rust-toolchain.toml` has rustup install it by itself; where rustup is set to
/// install nothing by itself, it is called here.
pub fn need_target() -> Result {
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).current_dir(root()).output();
    if output.is_ok_and(|o| o.status.success() && Path::new(String::from_utf8_lossy(&o.stdout).trim()).is_dir()) {
        return Ok(());
    }
    run(Command::new("rustup").args(["target", "add", TARGET]).current_dir(root()))
        .map_err(|e| format!("Rust's target {TARGET} is missing and could not be installed: {e}").into())
}

/// The module of the package that has the style of reports and their scripts, which the wasm has not.
fn drawn() -> String {
    let of = |names: &&[&str]| (names.join(" "), serde_json::Value::from(picture::script(names)));
    let scripts = serde_json::Value::Object(DRAWN.iter().map(of).collect());
    let style = serde_json::Value::from(picture::style());
    format!(
        "// Made by `cargo xtask web` of src/debug/html: the style of reports, and their scripts by what they draw.\nexport const style = {style};\nexport const scripts = {scripts};\n"
    )
}

/// Puts the page, the package with its compressed wasm, and the built-in model into `site`.
fn put_together(package: &Path, small: &Path, site: &Path) -> Result {
    mirror(&files(&root().join("web/demo"))?, site)?;
    mirror(&files(&root().join("src/debug/html/picture"))?, &site.join("picture"))?;
    mirror(&[files(package)?, vec![small.to_path_buf()]].concat(), &site.join("doppler"))?;
    let demo = root().join("models/demo");
    mirror(&DEMO.iter().map(|name| demo.join(name)).collect::<Vec<_>>(), &site.join("models/demo"))
}

/// The files of a folder, not those of folders in it.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<_>>()?;
    Ok(entries.into_iter().filter(|path| path.is_file()).collect())
}

/// Makes the files of `to` those of `from`. What is the same stays untouched: it may be being served.
fn mirror(from: &[PathBuf], to: &Path) -> Result {
    std::fs::create_dir_all(to)?;
    for path in from {
        let copy = to.join(path.file_name().ok_or("a file has a name")?);
        if std::fs::read(&copy).ok() != Some(std::fs::read(path)?) {
            std::fs::copy(path, &copy)?;
        }
    }
    for known in files(to)? {
        if !from.iter().any(|path| path.file_name() == known.file_name()) {
            std::fs::remove_file(known)?;
        }
    }
    Ok(())
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().ok()?.modified().ok()
}

/// Cargo's target folder, wherever it was configured.
fn target_folder() -> Result<PathBuf> {
    let output = cargo(&["metadata", "--locked", "--no-deps", "--format-version", "1"]).output()?;
    let about: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let folder = about["target_directory"].as_str().ok_or("cargo metadata names no target folder")?;
    Ok(PathBuf::from(folder))
}
