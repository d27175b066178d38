//! Puts the built-in model into the binary, so that it is found wherever the binary is run from. A checkout without
//! it builds too; the binary then says that it has none.

#![allow(clippy::print_stdout, reason = "this is how a build script talks to cargo")]

use std::fmt::Write;
use std::path::Path;

/// Without these there is no model.
const NEEDED: &[&str] = &["config.json", "tokenizer.json", "model.safetensors"];
/// These come along where they exist.
const OPTIONAL: &[&str] =
    &["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json", "chat_template.jinja"];

fn main() {
    let manifest = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let folder = Path::new(&manifest).join("../models/demo");
    let mut code = String::from("/// Files of the built-in model: name and content; none if this build has no such model.\n");
    code.push_str("pub const FILES: &[(&str, &[u8])] = &[\n");
    let complete = NEEDED.iter().all(|name| folder.join(name).is_file());
    for name in NEEDED.iter().chain(OPTIONAL) {
        let file = folder.join(name);
        if complete && file.is_file() {
            println!("cargo::rerun-if-changed={}", file.display());
            let path = file.canonicalize().unwrap_or(file);
            writeln!(code, "    ({name:?}, include_bytes!({path:?})),").expect("a string takes everything");
        }
    }
    code.push_str("];\n");
    if !complete {
        // The folder's time changes when a file appears in it.
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    std::fs::write(Path::new(&out).join("demo.rs"), code).expect("OUT_DIR can be written to");
}
