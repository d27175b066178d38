//! The house rules as code: who may name whom, what the engine never does, how long files are, what kernels are called.
//! A rule that must be broken is changed here, in the open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use doppler::config::presets;
use doppler::gpu::kernels::{KERNELS, SHARED};

/// What each module of `src/` may name of its siblings. `lib.rs` names them all, to declare them.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("threads", &["error"]),
    ("tensor", &["error"]),
    ("json", &["error"]),
    ("model", &[]),
    ("tuned", &[]),
    ("config", &["error", "json", "model", "tuned"]),
    ("formats", &["error", "json", "quant", "tensor", "threads"]),
    ("quant", &["error", "model", "tensor", "threads"]),
    ("plan", &["model", "error", "tensor"]),
    ("exec", &["model", "error", "plan", "quant", "tensor", "threads"]),
    ("cpu", &["model", "error", "exec", "plan", "quant", "tensor"]),
    ("groups", &["exec", "plan"]),
    ("geometry", &["exec", "groups", "model", "plan", "quant", "tensor"]),
    ("gpu", &["error", "exec", "geometry", "groups", "model", "plan", "quant", "tensor", "threads", "tuned"]),
    ("loader", &["model", "error", "exec", "formats", "json", "plan", "quant", "tensor"]),
    ("forecast", &["error", "exec", "geometry", "plan", "quant", "tensor"]),
    ("remote", &["error", "exec", "gpu", "plan", "quant", "tensor"]),
    ("inference", &["error", "exec", "formats::ModelTexts", "formats::gguf", "json", "model", "plan", "tensor"]),
    ("open", &["config", "error", "exec", "forecast", "formats", "inference", "loader", "model", "plan", "quant"]),
    ("convert", &["config", "error", "formats", "inference", "json", "loader", "model", "open", "plan", "quant"]),
    ("settings", &["config", "exec", "gpu", "inference"]),
    ("engine", &["config", "cpu", "error", "exec", "gpu", "plan", "quant", "remote", "settings", "tensor"]),
    (
        "debug",
        &[
            "config",
            "cpu",
            "error",
            "exec",
            "formats",
            "gpu::Log",
            "gpu::StepLog",
            "inference",
            "loader",
            "model",
            "plan",
            "quant",
            "settings",
            "tensor",
            "threads",
        ],
    ),
    (
        "bench",
        &["config", "debug", "error", "exec", "forecast", "geometry", "gpu", "groups", "inference", "plan", "quant", "tensor", "tuned"],
    ),
    ("front", &["config", "debug", "engine", "error", "exec", "inference", "loader", "open", "plan", "settings", "tensor"]),
    (
        "lib",
        &[
            "bench",
            "config",
            "convert",
            "cpu",
            "debug",
            "engine",
            "error",
            "exec",
            "formats",
            "front",
            "geometry",
            "gpu",
            "groups",
            "inference",
            "json",
            "loader",
            "model",
            "open",
            "plan",
            "quant",
            "remote",
            "settings",
            "tensor",
            "threads",
            "tuned",
        ],
    ),
];

/// What the engine never does: it prints nothing and asks neither the environment, processes nor a clock.
const NEVER: &[&str] =
    &["println!", "eprintln!", "print!(", "dbg!(", "std::env", "std::process", "std::time", "Instant::now", "SystemTime"];

/// Names of model families. Presets know them; code has plain conditions on what a model has.
const FAMILIES: &[&str] = &[
    "gemma",
    "llama",
    "mistral",
    "qwen",
    "phi",
    "smollm",
    "olmo",
    "granite",
    "exaone",
    "seed_oss",
    "hunyuan",
    "ministral",
    "mixtral",
    "glm",
    "cohere",
    "lfm",
    "starcoder",
    "gpt_oss",
    "gpt-oss",
    "neox",
];
/// Not a family but a way to scale RoPE that config files call so: where it is used and where it is declared.
const NO_FAMILY: [&str; 2] = ["RopeScaling::Llama3", "    Llama3 {"];

/// Folders whose files name each other in one direction.
const WITHOUT_CIRCLES: &[&str] = &["src/inference/chat"];

/// Longest file, in lines; a table may be longer if it is named here.
const MAX_LINES: usize = 600;
const LONG_TABLES: &[&str] = &[];

/// Folders of one machine. What the repository says holds on every machine.
const MACHINES: &[&str] = &["/home/", "/root/", "/Users/", "C:\\Users"];

/// A text file.
struct File {
    /// From the repository's root, with forward slashes.
    path: String,
    text: String,
}

impl File {
    fn has_extension(&self, extensions: &[&str]) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, e)| extensions.contains(&e))
    }
    /// Of an engine file, the first part of its path below `src`: its module.
    fn module(&self) -> Option<&str> {
        let below = self.path.strip_prefix("src/")?;
        Some(below.split(['/', '.']).next().unwrap_or(below))
    }
    /// Lines of code with their numbers: no comments, and not the tests at the end.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test = self.path.ends_with("/tests.rs") || self.path.contains("/tests/");
        let lines = (1..)
            .zip(self.text.lines())
            .take_while(move |(_, line)| !is_test && !line.starts_with("#[cfg(test)]") && !line.starts_with("#[cfg(all(test"));
        lines
            .map(|(number, line)| (number, line.split_once("//").map_or(line, |(code, _)| code)))
            .filter(|(_, code)| !code.trim().is_empty())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file below `folder`.
fn files(folder: &str) -> Vec<File> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root().join(folder)];
    while let Some(path) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&path) else { continue };
        for entry in entries {
            let path = entry.expect("a folder's entry").path();
            if path.is_dir() {
                open.push(path);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                let path = path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
                found.push(File { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The engine's Rust files.
fn engine() -> Vec<File> {
    let mut engine = files("src");
    engine.retain(|f| f.has_extension(&["rs"]));
    assert!(engine.len() > 50, "the engine's files were not found");
    engine
}

/// All Rust and WGSL.
fn all_code() -> Vec<File> {
    let folders = ["src", "cli", "web", "browser", "quant", "xtask", "tests", "examples"];
    let mut code: Vec<File> = folders.iter().flat_map(|folder| files(folder)).collect();
    code.retain(|f| f.has_extension(&["rs", "wgsl"]));
    code
}

fn none(found: Vec<String>, rule: &str) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

/// The modules that `crate::…` in `code` names, one level deep where it says more: `plan`, `model`.
fn named(code: &str) -> Vec<String> {
    let ident = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let two = |text: &str| {
        let first = ident(text);
        let second = text[first.len()..].strip_prefix("::").map(ident).unwrap_or_default();
        if second.is_empty() { first } else { format!("{first}::{second}") }
    };
    let mut found = Vec::new();
    for (at, start) in code.match_indices("crate::") {
        let rest = &code[at + start.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.push(two(item.trim()));
                        item.clear();
                        continue;
                    }
                    _ => {}
                }
                item.push(c);
            }
            found.push(two(item.trim()));
        } else {
            found.push(two(rest));
        }
    }
    // `crate::Error` and its like are names of `error`; an empty name is a trailing comma.
    found.retain(|name| !name.is_empty());
    found.into_iter().map(|name| if name.starts_with(char::is_uppercase) { "error".to_string() } else { name }).collect()
}

#[test]
fn modules_name_only_what_is_below_them() {
    let mut found = Vec::new();
    for file in engine() {
        let module = file.module().unwrap_or_default();
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == module) else {
            found.push(format!("{}: say in tests/suite/tidy.rs what `{module}` may name", file.path));
            continue;
        };
        let code: String = file.code().flat_map(|(_, line)| [line, "\n"]).collect();
        for name in named(&code) {
            let first = name.split("::").next().unwrap_or_default();
            let own = first == module || MAY_NAME.iter().all(|(known, _)| *known != first);
            if !own && !allowed.contains(&first) && !allowed.contains(&name.as_str()) {
                found.push(format!("{}: `{module}` must not name `{name}`", file.path));
            }
        }
    }
    none(found, "dependencies point one way");
}

/// A way from a file back to itself, if there is one. `names` has the files that each file names.
fn circle(names: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    // What names nothing that is left is in no circle.
    let mut left = names.clone();
    loop {
        let before = left.len();
        let known: BTreeSet<String> = left.keys().cloned().collect();
        left.retain(|file, named| named.iter().any(|other| other != file && known.contains(other)));
        if left.len() == before {
            break;
        }
    }
    let mut way = vec![left.keys().next()?.clone()];
    loop {
        let here = way.last()?;
        let next = left[here].iter().find(|other| *other != here && left.contains_key(*other))?.clone();
        let first = way.iter().position(|file| *file == next);
        way.push(next);
        if let Some(first) = first {
            return Some(way[first..].join(" → "));
        }
    }
}

#[test]
fn files_of_a_folder_name_each_other_in_one_direction() {
    let mut found = Vec::new();
    for folder in WITHOUT_CIRCLES {
        let stem = |file: &File| file.path.rsplit('/').next().and_then(|name| name.strip_suffix(".rs")).map(str::to_string);
        let all = files(folder);
        let stems: BTreeSet<String> = all.iter().filter_map(stem).collect();
        assert!(stems.len() > 3, "{folder}: its files were not found");
        let named = |file: &File| {
            let code: String = file.code().flat_map(|(_, line)| [line, "\n"]).collect();
            named(&code.replace("super::", "crate::")).into_iter().filter_map(|name| name.split("::").next().map(str::to_string)).collect()
        };
        let names = all.iter().filter_map(|file| Some((stem(file)?, named(file)))).collect();
        found.extend(circle(&names).map(|way| format!("{folder}: {way}")));
    }
    none(found, "circles of files");
    let names = |pairs: &[(&str, &str)]| {
        let one = |(file, named): &(&str, &str)| (file.to_string(), named.split(' ').map(str::to_string).collect());
        pairs.iter().map(one).collect::<BTreeMap<String, BTreeSet<String>>>()
    };
    assert_eq!(circle(&names(&[("a", "b c"), ("b", "c"), ("c", "d")])), None);
    assert_eq!(circle(&names(&[("a", "b"), ("b", "c"), ("c", "b")])).as_deref(), Some("b → c → b"));
}

#[test]
fn names_in_use_groups_are_found() {
    assert_eq!(named("use crate::exec::{A, b};\nuse crate::{Error, gpu::{x, y}, plan};"), ["exec", "error", "gpu", "plan"]);
    assert_eq!(named("let x = crate::config::runtime::Y + crate::cpu::stats::z;"), ["config::runtime", "cpu::stats"]);
}

#[test]
fn the_engine_neither_prints_nor_asks_the_world() {
    let mut found = Vec::new();
    for file in engine() {
        for (number, line) in file.code() {
            found.extend(NEVER.iter().filter(|n| line.contains(*n)).map(|n| format!("{}:{number}: {n}", file.path)));
        }
    }
    none(found, "callers print, and give times and settings");
}

#[test]
fn only_config_knows_families() {
    let presets: Vec<String> = presets().iter().map(|p| p.name().to_lowercase()).collect();
    let unknown: Vec<String> = presets.iter().filter(|p| !FAMILIES.iter().any(|f| p.contains(f))).cloned().collect();
    none(unknown, "presets of families that tests/suite/tidy.rs does not list");
    let mut found = Vec::new();
    for file in files("src").iter().filter(|f| f.has_extension(&["rs", "wgsl"]) && f.module() != Some("config")) {
        for (number, line) in file.code() {
            let line = NO_FAMILY.iter().fold(line.to_string(), |line, name| line.replace(name, "")).to_lowercase();
            let begins = |f: &&&str| line.match_indices(**f).any(|(i, _)| !line[..i].ends_with(char::is_alphabetic));
            found.extend(FAMILIES.iter().filter(begins).map(|f| format!("{}:{number}: {f}", file.path)));
        }
    }
    none(found, "what differs between families is a field of ModelConfig");
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut found = Vec::new();
    for file in all_code() {
        let lines = file.text.lines().count();
        if lines > MAX_LINES && !LONG_TABLES.contains(&file.path.as_str()) {
            found.push(format!("{}: {lines} lines, at most {MAX_LINES}", file.path));
        }
        let header = if file.has_extension(&["rs"]) { "//! " } else { "// " };
        if !file.text.starts_with(header) {
            found.push(format!("{}: the first line says what the file is, after `{header}`", file.path));
        }
    }
    none(found, "files");
}

/// What leaves through `terminal.rs` is printable; there is no way around it but the two that it names.
#[test]
fn the_command_line_prints_through_its_terminal() {
    let ways = ["io::stdout()", "io::stderr()", "println!", "print!(", "eprintln!"];
    let mut found = Vec::new();
    for file in files("cli/src").iter().filter(|f| f.has_extension(&["rs"]) && f.path != "cli/src/terminal.rs") {
        let around = file.code().filter(|(_, code)| ways.iter().any(|way| code.contains(way)) && !code.contains(".as_fd()"));
        found.extend(around.map(|(number, code)| format!("{}:{number}: {}", file.path, code.trim())));
    }
    none(found, "texts reach stdout and stderr through `terminal`, which shows what a terminal would obey");
}

/// Limits that SECURITY.md promises are those of the code.
#[test]
fn limits_are_what_the_document_says() {
    let document = std::fs::read_to_string(root().join("SECURITY.md")).expect("SECURITY.md");
    let mut wrong = Vec::new();
    let mut rows = 0;
    for row in document.lines().filter(|line| line.starts_with("| ") && line.contains(".rs`")) {
        // Between backquotes: the number, the file, the name.
        let parts: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        let [.., number, file, name] = parts[..] else { panic!("expected a number, a file and a name: {row}") };
        let code = std::fs::read_to_string(root().join(file)).unwrap_or_default();
        let declared = code.lines().find(|line| line.contains(&format!("const {name}: ")));
        let value = declared.and_then(|line| line.split_once(" = ")).map(|(_, value)| value.trim_end_matches(';'));
        let value = value.map(|value| value.trim_start_matches("Duration::from_secs(").trim_end_matches(')'));
        rows += 1;
        if value != Some(number) {
            wrong.push(format!("{name} of {file}: expected {number}, found {value:?}"));
        }
    }
    assert!(rows > 10, "the table was not found");
    none(wrong, "limits");
}

#[test]
fn kernels_are_files_of_their_names() {
    let stems = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(root().join(folder)).expect("the kernels' folder");
        let paths = entries.map(|entry| entry.expect("a folder's entry").path());
        let wgsl = paths.filter(|p| p.extension().is_some_and(|e| e == "wgsl"));
        wgsl.filter_map(|p| p.file_stem().map(|s| s.to_string_lossy().into_owned())).collect()
    };
    let set = |names: &mut dyn Iterator<Item = &'static str>| -> BTreeSet<String> { names.map(str::to_string).collect() };
    assert_eq!(stems("src/gpu/kernels"), set(&mut KERNELS.iter().map(|k| k.name)), "files and rows of KERNELS");
    assert_eq!(stems("src/gpu/kernels/shared"), set(&mut SHARED.iter().map(|(name, _)| *name)), "files and rows of SHARED");
    // A dtype, a size or a version would be a variant, and those are constants and defines.
    let digits = KERNELS.iter().filter(|k| k.name.contains(|c: char| c.is_ascii_digit())).map(|k| k.name.to_string()).collect();
    none(digits, "kernels are named after their op alone");
}

/// A file outside `src` that the crate includes is in its package too.
#[test]
fn the_package_has_what_the_crate_includes() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let listed = manifest.lines().find(|line| line.starts_with("include = [")).expect("what the package includes");
    let (mut found, mut outside) = (Vec::new(), 0);
    for file in engine() {
        for (number, line) in file.code() {
            for (_, name) in line.match_indices("include_").filter_map(|(at, _)| line[at..].split_once("!(\"")) {
                let name = name.split('"').next().unwrap_or_default();
                let mut path: Vec<&str> = file.path.split('/').collect();
                path.pop();
                for part in name.split('/') {
                    if part == ".." {
                        path.pop();
                    } else {
                        path.push(part);
                    }
                }
                let path = path.join("/");
                outside += usize::from(!path.starts_with("src/"));
                if !path.starts_with("src/") && !listed.contains(&format!("\"/{path}\"")) {
                    found.push(format!("{}:{number}: {path}", file.path));
                }
            }
        }
    }
    assert!(outside > 0, "no file was found that lies outside");
    none(found, "files that Cargo.toml does not put into the package");
}

#[test]
fn nothing_depends_on_one_machine() {
    let folders =
        ["src", "cli", "web", "browser", "quant", "xtask", "tests", "docs", "models", "skills", "examples", "python", ".ci", ".cargo"];
    let documents = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "Cargo.toml", "package.json"];
    let documents = documents.iter().filter_map(|name| {
        let text = std::fs::read_to_string(root().join(name)).ok()?;
        Some(File { path: (*name).to_string(), text })
    });
    let mut found = Vec::new();
    for file in folders.iter().flat_map(|folder| files(folder)).chain(documents) {
        // This file lists what it looks for.
        if file.path == "tests/suite/tidy.rs" {
            continue;
        }
        for (number, line) in (1..).zip(file.text.lines()) {
            found.extend(MACHINES.iter().filter(|m| line.contains(*m)).map(|m| format!("{}:{number}: {m}", file.path)));
        }
    }
    none(found, "paths of one machine");
}
