//! The folder of a browser's profile: new, with a name that nobody can guess, and open to its user only.

use crate::{Result, secret};
use std::path::{Path, PathBuf};

/// The folder; it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Profile(PathBuf);

impl Profile {
    /// Makes it. What is there already under that name, a link as well, is an error and stays as it is.
    pub fn new() -> Result<Self> {
        Self::make(std::env::temp_dir().join(format!("doppler-browser-{}", secret()?)))
    }
    fn make(path: PathBuf) -> Result<Self> {
        let mut folder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
        folder.create(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self(path))
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        // The browser's processes may still be writing for a moment.
        for _ in 0..20 {
            if std::fs::remove_dir_all(&self.0).is_ok() || !self.0.exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn it_is_new_and_private_and_no_links_target() {
        let (one, other) = (Profile::new().unwrap(), Profile::new().unwrap());
        assert_ne!(one.path(), other.path());
        let about = std::fs::symlink_metadata(one.path()).unwrap();
        assert!(about.is_dir() && about.mode() & 0o777 == 0o700, "{:o}", about.mode());
        let (path, link) = (one.path().to_path_buf(), other.path().join("link"));
        symlink(&path, &link).unwrap();
        assert!(Profile::make(link).is_err(), "a link is not followed");
        assert!(Profile::make(path.clone()).is_err(), "what exists is not used");
        drop(one);
        assert!(!path.exists());
    }
}
