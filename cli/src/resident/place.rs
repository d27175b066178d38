//! Where the resident process is found: a folder that only its user can enter, with a socket and a lock in it.

use doppler::{Error, Result};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The folder.
pub struct Place(PathBuf);

impl Place {
    /// The user's folder, made where it is not there.
    ///
    /// # Errors
    /// `Kind::Io` when it cannot be made, or is not the user's alone.
    pub fn open() -> Result<Self> {
        let user = rustix::process::getuid().as_raw();
        let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = of("DOPPLER_RESIDENT_DIR")
            .or_else(|| of("XDG_RUNTIME_DIR").map(|runtime| runtime.join("doppler")))
            .unwrap_or_else(|| std::env::temp_dir().join(format!("doppler-{user}")));
        let failed = |e: std::io::Error| Error::io(folder.display(), e);
        if let Err(e) = DirBuilder::new().mode(0o700).create(&folder)
            && e.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(failed(e));
        }
        let about = std::fs::symlink_metadata(&folder).map_err(failed)?;
        if !about.is_dir() || about.uid() != user || about.mode() & 0o077 != 0 {
            let message = "expected a folder that only you can enter (mode 700); name another with DOPPLER_RESIDENT_DIR";
            return Err(Error::io(folder.display(), message));
        }
        Ok(Self(folder))
    }
    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
    /// The lock, if nobody has it. Held for as long as the file lives.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn lock(&self) -> Result<Option<File>> {
        let path = self.0.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| Error::io(path.display(), e))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(e)) => Err(Error::io(path.display(), e)),
        }
    }
    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}
