//! The files that browsers run: those in the binary, where it was built with them; else those of a checkout, which are
//! built when they are missing or older than their sources.

use super::build::build;
use crate::model;
use bytes::Bytes;
use doppler::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The engine and its JavaScript.
pub const PACKAGE: &str = "web";
/// The page, with the package and the built-in model.
pub const SITE: &str = "site";

/// The page's files in the binary, put here by build.rs.
mod embedded {
    include!(concat!(env!("OUT_DIR"), "/site.rs"));
}

/// Files in memory, by their paths.
pub type Files = BTreeMap<String, Bytes>;

/// Files to serve.
#[derive(Debug)]
pub enum Bundle {
    /// Those of a folder.
    Folder(PathBuf),
    /// Those in the binary, by their paths. Some are there only compressed, their names ending in `.gz`.
    Memory(Files),
}

/// The files of `what`, [`PACKAGE`] or [`SITE`].
///
/// # Errors
/// `Kind::Io` where there are none and none can be built, saying what to do.
pub fn find(what: &str) -> Result<Bundle> {
    if let Some(folder) = std::env::var_os("DOPPLER_WEB").map(PathBuf::from) {
        let missing = || Error::io(folder.display(), format!("$DOPPLER_WEB has no folder {what} in it"));
        return usable(folder.join(what)).ok_or_else(missing);
    }
    if !embedded::FILES.is_empty() {
        return Ok(Bundle::Memory(in_the_binary(what)));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let why = match root.join("xtask/Cargo.toml").is_file() {
        false => format!("this program was built without them, and the checkout that it was built in, {}, is gone", root.display()),
        true => match fresh(&root).map_or_else(|| build(&root), |target| Ok(Some(target)))? {
            Some(target) => {
                let none = || Error::io("the files for browsers", format!("`cargo xtask web` made no {what} in {}", target.display()));
                return usable(target.join(what)).ok_or_else(none);
            }
            None => "they are missing or older than their sources, and there is no cargo to build them".to_string(),
        },
    };
    let hint = "`cargo xtask install` in a checkout installs a doppler that has them inside; or make them there with `cargo xtask web` \
        and name the folder that holds web and site (target) in $DOPPLER_WEB";
    Err(Error::io("the files for browsers", format!("{why}; {hint}")))
}

/// The target folder whose files are as new as their sources at `root`: the one that Cargo is told to use, else one above
/// this program or in the checkout.
fn fresh(root: &Path) -> Option<PathBuf> {
    let is_fresh = |target: &PathBuf| doppler_browser::site::is_fresh(target, root);
    if let Some(named) = std::env::var_os("CARGO_TARGET_DIR") {
        return Some(root.join(named)).filter(is_fresh);
    }
    let exe = std::env::current_exe().ok();
    let above = exe.iter().flat_map(|exe| exe.ancestors().skip(1).take(4)).map(Path::to_path_buf);
    above.chain([root.join("target")]).find(is_fresh)
}

fn usable(folder: PathBuf) -> Option<Bundle> {
    let marks = ["index.js", "index.html"];
    let folder = if marks.iter().any(|mark| folder.join(mark).is_file()) { folder.canonicalize().ok() } else { None };
    folder.map(Bundle::Folder)
}

/// The binary's own files. The page's model is the one that `-m demo` opens.
fn in_the_binary(what: &str) -> Files {
    const PACKAGE_IN_SITE: &str = "doppler/";
    let page = embedded::FILES.iter().map(|(name, bytes)| ((*name).to_string(), Bytes::from_static(bytes)));
    if what == PACKAGE {
        return page.filter_map(|(name, bytes)| Some((name.strip_prefix(PACKAGE_IN_SITE)?.to_string(), bytes))).collect();
    }
    let demo = model::DEMO_FILES.iter().map(|(name, bytes)| (format!("models/{}/{name}", model::DEMO), Bytes::from_static(bytes)));
    page.chain(demo).collect()
}
