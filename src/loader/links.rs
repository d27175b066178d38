//! Links out of a model's folder. A folder from elsewhere may hold a link to any file of this user, and what a model's texts
//! say goes into what is made of it for others: GGUF files, bundles, the answers of a server. So texts that do not lie in the
//! folder or in a Hub's cache are read to run the model, with a note, and go into nothing else. Weights may be links to
//! anywhere, as to another disk: they are checked as what they are.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Where `file` of the model folder `folder` is, if it is a link out of it, unless that leads to a content of a Hub's cache
/// (`models--ORG--NAME/blobs/HASH`), to which the files of a snapshot there are links.
///
/// # Errors
/// `Kind::Io` where one of the two is not there.
pub fn leads_out(folder: &Path, file: &Path) -> Result<Option<PathBuf>> {
    let whole = |path: &Path| path.canonicalize().map_err(|e| Error::io(path.display(), e));
    let (folder, target) = (whole(folder)?, whole(file)?);
    Ok(if target.starts_with(&folder) || is_of_cache(&target) { None } else { Some(target) })
}

/// Refuses `file` of the model folder `folder` where it [`leads_out`].
///
/// # Errors
/// `Kind::Io`, also where one of the two is not there.
pub fn check_within(folder: &Path, file: &Path) -> Result<()> {
    let Some(target) = leads_out(folder, file)? else { return Ok(()) };
    let message =
        format!("a link to {}, out of the model's folder, which is not followed: copy that file into the folder", target.display());
    Err(Error::io(file.display(), message))
}

/// Whether a path without links is that of a content in a Hub's cache.
fn is_of_cache(path: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(blobs) = path.parent() else { return false };
    name(blobs) == "blobs" && blobs.parent().is_some_and(|model| name(model).starts_with("models--"))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn texts_are_links_within_the_folder_or_into_a_cache() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tmp/links");
        let _ = fs::remove_dir_all(&root);
        let (model, blobs) = (root.join("model"), root.join("models--a--b/blobs"));
        for folder in [&model, &blobs, &root.join("blobs"), &model.join("parts")] {
            fs::create_dir_all(folder).unwrap();
        }
        for file in [root.join("secret"), blobs.join("0f"), root.join("blobs/0f"), model.join("parts/text"), model.join("plain")] {
            fs::write(file, "x").unwrap();
        }
        let check = |to: &str| {
            let link = model.join("config.json");
            let _ = fs::remove_file(&link);
            symlink(to, &link).unwrap();
            check_within(&model, &link).map_err(|e| e.message)
        };
        for fine in ["plain", "parts/text", "../models--a--b/blobs/0f"] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        for out in ["../secret", "../blobs/0f", "/etc/hosts"] {
            assert!(check(out).unwrap_err().contains("out of the model's folder"), "{out}");
        }
        // A cache of one's own making leads to no secret either.
        symlink("../../secret", blobs.join("1f")).unwrap();
        assert!(check("../models--a--b/blobs/1f").is_err() && check("nowhere").is_err());
        // The folder itself may be a link.
        symlink("model", root.join("other")).unwrap();
        assert_eq!(check_within(&root.join("other"), &root.join("other/plain")).map_err(|e| e.message), Ok(()));
    }
}
