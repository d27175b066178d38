//! Other people's software in what we ship: `cargo xtask licences` writes THIRD-PARTY.txt, with the licence texts that lie
//! in the crates' sources; the check refuses licences that nobody agreed to, and a file that is not up to date. Without a
//! network: Cargo must have downloaded the crates before.

use crate::{Result, cargo, root};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// The file, in the repository's root.
const FILE: &str = "THIRD-PARTY.txt";

/// What is shipped: a package, and the target that it is built for.
const SHIPPED: &[(&str, &str)] = &[
    ("doppler-cli", "x86_64-unknown-linux-gnu"),
    ("doppler-cli", "aarch64-apple-darwin"),
    ("doppler-cli", "x86_64-pc-windows-msvc"),
    ("doppler-web", "wasm32-unknown-unknown"),
];

/// Licences that ask for no more than that their text goes with what is shipped.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// How the names of licence files begin.
const TEXTS: &[&str] = &["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

const ABOUT: &str = "Software of others in Doppler's binary and web package: name, version, licence, and the numbers of the
texts below that come with it. Where there is a choice that includes MIT, the text of MIT stands for it.
Written by `cargo xtask licences`.
";

/// A crate that is shipped.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shipped {
    name: String,
    version: String,
    licence: String,
    /// Licence files as they are, by name.
    texts: Vec<String>,
    /// Who wrote it, where it has no such file.
    authors: String,
}

/// Writes the file.
pub fn write() -> Result {
    let mut shipped = BTreeSet::new();
    for (package, target) in SHIPPED {
        let about = metadata(target)?.ok_or_else(|| format!("{target}: crates are not downloaded: `cargo fetch --locked`"))?;
        refuse_unknown(&about)?;
        shipped.extend(linked(&about, package)?);
    }
    std::fs::write(root().join(FILE), page(&shipped))?;
    Ok(())
}

/// Fails where a licence is none of [`ALLOWED`], and where the file is not what [`write`] would write. Of targets whose
/// crates are not on this machine, nothing is known, which is said.
pub fn check() -> Result {
    let file = std::fs::read_to_string(root().join(FILE)).map_err(|e| format!("{FILE}: {e}; `cargo xtask licences` writes it"))?;
    let lines: BTreeSet<&str> = file.lines().collect();
    let (mut shipped, mut complete) = (BTreeSet::new(), true);
    for (package, target) in SHIPPED {
        let Some(about) = metadata(target)? else {
            println!("not checked for {target}: its crates are not downloaded (`cargo fetch --locked`)");
            complete = false;
            continue;
        };
        refuse_unknown(&about)?;
        shipped.extend(linked(&about, package)?);
    }
    // Numbers of texts depend on all targets.
    let known = |one: &Shipped| lines.iter().any(|line| line.starts_with(&heading(one)));
    match shipped.iter().find(|one| !known(one)) {
        Some(one) => Err(format!("{FILE} lacks {} {}: run `cargo xtask licences`", one.name, one.version).into()),
        None if complete && file != page(&shipped) => Err(format!("{FILE} is not up to date: run `cargo xtask licences`").into()),
        None => Ok(()),
    }
}

/// What Cargo knows of the workspace's packages for `target`; `None` where it would have to download some.
fn metadata(target: &str) -> Result<Option<Value>> {
    let output = cargo(&["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", target]).output()?;
    if output.status.success() {
        return Ok(Some(serde_json::from_slice(&output.stdout)?));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("--offline was specified") { Ok(None) } else { Err(format!("cargo metadata: {said}").into()) }
}

/// Fails for the first package, whatever it is used for, whose licence is not allowed.
fn refuse_unknown(about: &Value) -> Result {
    for package in packages(about) {
        let expression = text(package, "license");
        if !is_allowed(expression) {
            let name = format!("{} {}", text(package, "name"), text(package, "version"));
            return Err(format!("{name}: its licence {expression:?} is none of those in xtask/src/licences.rs").into());
        }
    }
    Ok(())
}

/// Packages of others.
fn packages(about: &Value) -> impl Iterator<Item = &Value> {
    about["packages"].as_array().into_iter().flatten().filter(|package| package["source"].is_string())
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

/// Whether an SPDX expression can be met by what is allowed. An old `/` means OR; AND binds closer.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    any(&mut rest) && rest.is_empty()
}

fn any(rest: &mut &[&str]) -> bool {
    let mut allowed = all(rest);
    while let Some(("OR", after)) = rest.split_first().map(|(word, after)| (*word, after)) {
        *rest = after;
        allowed |= all(rest);
    }
    allowed
}

fn all(rest: &mut &[&str]) -> bool {
    let mut allowed = one(rest);
    while let Some(("AND", after)) = rest.split_first().map(|(word, after)| (*word, after)) {
        *rest = after;
        allowed &= one(rest);
    }
    allowed
}

fn one(rest: &mut &[&str]) -> bool {
    match **rest {
        ["(", ref inside @ ..] => {
            *rest = inside;
            let allowed = any(rest);
            let closed = rest.first() == Some(&")");
            *rest = rest.get(1..).unwrap_or_default();
            allowed && closed
        }
        [name, "WITH", exception, ref after @ ..] => {
            *rest = after;
            ALLOWED.contains(&&*format!("{name} WITH {exception}"))
        }
        [name, ref after @ ..] => {
            *rest = after;
            ALLOWED.contains(&name)
        }
        [] => false,
    }
}

/// The crates of others that are linked into `package`: no build scripts' and tests' dependencies, no macros.
fn linked(about: &Value, package: &str) -> Result<BTreeSet<Shipped>> {
    let by_id = |list: &'static str, part: &Value| -> HashMap<String, Value> {
        part[list].as_array().into_iter().flatten().map(|one| (text(one, "id").to_string(), one.clone())).collect()
    };
    let (packages, nodes) = (by_id("packages", about), by_id("nodes", &about["resolve"]));
    let start = packages.values().find(|known| known["name"] == package).ok_or_else(|| format!("there is no package {package}"))?;
    let (mut open, mut seen, mut found) = (vec![text(start, "id").to_string()], BTreeSet::new(), BTreeSet::new());
    while let Some(id) = open.pop() {
        let (Some(about), Some(node)) = (packages.get(&id), nodes.get(&id)) else {
            return Err(format!("cargo metadata lacks {id}").into());
        };
        let is_macro = about["targets"].as_array().into_iter().flatten().any(|target| target["kind"][0] == "proc-macro");
        if is_macro || !seen.insert(id) {
            continue;
        }
        for dependency in node["deps"].as_array().into_iter().flatten() {
            let kinds = dependency["dep_kinds"].as_array();
            if kinds.into_iter().flatten().any(|kind| kind["kind"].is_null()) {
                open.push(text(dependency, "pkg").to_string());
            }
        }
        if about["source"].is_string() {
            found.insert(shipped(about)?);
        }
    }
    Ok(found)
}

/// What is to be said of a package.
fn shipped(about: &Value) -> Result<Shipped> {
    let licence = text(about, "license").to_string();
    let folder = Path::new(text(about, "manifest_path")).parent().ok_or("a manifest lies in a folder")?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if entry.path().is_file() && TEXTS.iter().any(|begin| name.starts_with(begin)) {
            files.push((name, String::from_utf8_lossy(&std::fs::read(entry.path())?).into_owned()));
        }
    }
    files.sort();
    if !licence.contains("AND") && files.iter().any(|(name, _)| name.contains("MIT")) {
        files.retain(|(name, _)| name.contains("MIT"));
    }
    let lines = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_matches('\n').to_string();
    let authors: Vec<&str> = about["authors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    Ok(Shipped {
        name: text(about, "name").into(),
        version: text(about, "version").into(),
        licence,
        texts: files.iter().map(|(_, text)| lines(text)).collect(),
        authors: authors.join(", "),
    })
}

fn heading(one: &Shipped) -> String {
    format!("{} {}: {}", one.name, one.version, one.licence)
}

/// The file's text. A licence text that comes with several crates stands once.
fn page(shipped: &BTreeSet<Shipped>) -> String {
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut page, mut texts) = (format!("{ABOUT}\n"), String::new());
    for one in shipped {
        let mut of_one = Vec::new();
        for text in &one.texts {
            let next = numbers.len() + 1;
            let number = *numbers.entry(text).or_insert_with(|| {
                texts.push_str(&format!("\n==== text {next}\n\n{text}\n"));
                next
            });
            of_one.push(number.to_string());
        }
        let by = if one.authors.is_empty() { "its authors" } else { &one.authors };
        let said = if of_one.is_empty() { format!("by {by}, with no text of its own") } else { format!("text {}", of_one.join(", ")) };
        page.push_str(&format!("{} ({said})\n", heading(one)));
    }
    page + &texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_or_not() {
        for allowed in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR GPL-2.0) AND Unicode-3.0", "Apache-2.0 WITH LLVM-exception"] {
            assert!(is_allowed(allowed), "{allowed}");
        }
        for refused in
            ["", "GPL-3.0", "MIT AND GPL-3.0", "MIT WITH Some-exception", "GPL-3.0 AND MIT OR LGPL-3.0", "(MIT", "MIT Apache-2.0", "mit"]
        {
            assert!(!is_allowed(refused), "{refused}");
        }
    }

    #[test]
    fn a_package_with_another_licence_is_named() {
        let about = serde_json::json!({ "packages": [
            { "name": "ours", "source": null, "license": "Ours" },
            { "name": "good", "version": "1.0.0", "source": "registry", "license": "MIT" },
            { "name": "other", "version": "2.0.0", "source": "registry", "license": "AGPL-3.0" },
        ] });
        assert!(refuse_unknown(&about).unwrap_err().to_string().contains("other 2.0.0"));
        let unnamed = serde_json::json!({ "packages": [{ "name": "unnamed", "version": "1.0.0", "source": "registry" }] });
        assert!(refuse_unknown(&unnamed).is_err());
    }
}
