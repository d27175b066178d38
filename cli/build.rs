//! Puts the built-in model and its exam into the binary, so that they are found wherever the binary is run from; with the
//! feature `site` also the page. A checkout without the model builds too; the binary then says that it has none.

#![allow(clippy::print_stdout, reason = "this is how a build script talks to cargo")]

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Without these there is no model.
const NEEDED: &[&str] = &["config.json", "tokenizer.json", "model.safetensors"];
/// These come along where they exist. The last two are the exam.
const OPTIONAL: &[&str] = &[
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "exam.jsonl",
    "heldout.txt",
];

/// What the page takes from the binary's own model, or compressed.
const LEFT_OUT: &[&str] = &["models/", ".wasm"];

fn main() {
    let manifest = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let folder = manifest.join("../models/demo");
    let complete = NEEDED.iter().all(|name| folder.join(name).is_file());
    let names = NEEDED.iter().chain(OPTIONAL).filter(|name| complete && folder.join(name).is_file());
    let model = names.map(|name| ((*name).to_string(), folder.join(name))).collect();
    write(&out.join("demo.rs"), "Files of the built-in model", model);
    if !complete {
        // The folder's time changes when a file appears in it.
        println!("cargo::rerun-if-changed={}", folder.display());
    }

    let mut page = Vec::new();
    if std::env::var_os("CARGO_FEATURE_SITE").is_some() {
        // `cargo xtask web` writes into the target folder, in which OUT_DIR is.
        let site = out.ancestors().map(|above| above.join("site")).find(|site| site.join("index.html").is_file());
        let site = site.expect("the feature `site` puts the page into the binary: make it first, with `cargo xtask web`");
        println!("cargo::rerun-if-changed={}", site.display());
        list(&site, "", &mut page);
        page.retain(|(name, _)| !LEFT_OUT.iter().any(|part| name.starts_with(part) || name.ends_with(part)));
        page.sort();
    }
    write(&out.join("site.rs"), "Files of the page", page);
}

/// The files below `folder`, with names that begin with `prefix`.
fn list(folder: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) {
    for path in std::fs::read_dir(folder).expect("a folder of the site").map(|entry| entry.expect("its entry").path()) {
        let name = format!("{prefix}{}", path.file_name().expect("a name").to_str().expect("names of the site are plain"));
        if path.is_dir() {
            list(&path, &format!("{name}/"), found);
        } else {
            found.push((name, path));
        }
    }
}

/// Writes the code that embeds `files`.
fn write(to: &Path, about: &str, files: Vec<(String, PathBuf)>) {
    let mut code = format!("/// {about}: name and content; none if this build has none.\npub static FILES: &[(&str, &[u8])] = &[\n");
    for (name, path) in files {
        println!("cargo::rerun-if-changed={}", path.display());
        let path = path.canonicalize().unwrap_or(path);
        writeln!(code, "    ({name:?}, include_bytes!({path:?})),").expect("a string takes everything");
    }
    code.push_str("];\n");
    std::fs::write(to, code).expect("OUT_DIR can be written to");
}
