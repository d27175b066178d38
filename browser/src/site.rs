//! Whether what `cargo xtask web` made is as new as its sources, without asking Cargo: beside the site stands a list of
//! the sources with their times and sizes, and a source that was changed, added or removed makes another list.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The list, in Cargo's target folder beside the folders `web` and `site`.
const STAMP: &str = "site.sources";

/// What the package and the page are made of, from the repository's root.
const SOURCES: &[&str] = &[
    ".cargo/config.toml",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "THIRD-PARTY.txt",
    "models/demo",
    "rust-toolchain.toml",
    "src",
    "web",
    "xtask/Cargo.toml",
    "xtask/src/web.rs",
];

/// A line for each source of the repository at `root`: its path, its size in bytes, and when it was changed, in
/// nanoseconds since 1970. Names that begin with a dot or an underscore are left out.
pub fn sources(root: &Path) -> String {
    let mut open: Vec<PathBuf> = SOURCES.iter().map(|name| root.join(name)).collect();
    let mut lines = Vec::new();
    while let Some(path) = open.pop() {
        let Ok(about) = path.metadata() else { continue };
        if about.is_dir() {
            let hidden = |path: &PathBuf| path.file_name().is_none_or(|name| name.to_string_lossy().starts_with(['.', '_']));
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
            open.extend(entries.filter(|path| !hidden(path)));
        } else {
            let changed = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let name = path.strip_prefix(root).unwrap_or(&path);
            lines.push(format!("{} {} {}\n", name.display(), about.len(), changed.unwrap_or_default().as_nanos()));
        }
    }
    lines.sort();
    lines.concat()
}

/// Notes in the target folder that the site there is made of `sources`; `None` while it is being made.
///
/// # Errors
/// When the note cannot be written or removed.
pub fn note(target: &Path, sources: Option<&str>) -> std::io::Result<()> {
    let stamp = target.join(STAMP);
    match sources {
        Some(sources) => std::fs::write(stamp, sources),
        None => std::fs::remove_file(stamp).or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) }),
    }
}

/// Whether the target folder has a site and a package made of the sources at `root` as they are now.
pub fn is_fresh(target: &Path, root: &Path) -> bool {
    let made = ["site/index.html", "site/doppler/doppler_web_bg.wasm.gz", "web/index.js", "web/doppler_web_bg.wasm"];
    made.iter().all(|name| target.join(name).is_file())
        && std::fs::read_to_string(target.join(STAMP)).is_ok_and(|noted| noted == sources(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_changes_comes_or_goes_makes_the_site_old() {
        let base = std::env::temp_dir().join(format!("doppler-site-{}", std::process::id()));
        let (root, target) = (base.join("root"), base.join("target"));
        let write = |path: PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(root.join("src/lib.rs"), "one");
        write(root.join("web/src/lib.rs"), "one");
        for name in ["site/index.html", "site/doppler/doppler_web_bg.wasm.gz", "web/index.js", "web/doppler_web_bg.wasm"] {
            write(target.join(name), "");
        }
        assert!(!is_fresh(&target, &root), "nothing is noted");
        let renew = || {
            note(&target, Some(&sources(&root))).unwrap();
            assert!(is_fresh(&target, &root));
        };
        renew();
        write(root.join("src/.lib.rs.swp"), "an editor's");
        write(root.join("cli/src/main.rs"), "no source of it");
        assert!(is_fresh(&target, &root));
        write(root.join("src/lib.rs"), "another");
        assert!(!is_fresh(&target, &root), "changed");
        renew();
        write(root.join("web/demo/app.js"), "");
        assert!(!is_fresh(&target, &root), "added");
        renew();
        std::fs::remove_file(root.join("web/demo/app.js")).unwrap();
        assert!(!is_fresh(&target, &root), "removed");
        renew();
        // The same text written again may be another file: its time counts.
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options().append(true).open(root.join("src/lib.rs")).unwrap().set_modified(later).unwrap();
        assert!(!is_fresh(&target, &root), "touched");
        renew();
        std::fs::remove_file(target.join("web/index.js")).unwrap();
        assert!(!is_fresh(&target, &root), "what was made is gone");
        note(&target, None).unwrap();
        note(&target, None).unwrap();
        std::fs::remove_dir_all(base).unwrap();
    }
}
