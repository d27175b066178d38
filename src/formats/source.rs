//! Where bytes come from: asynchronous ranges of a file, a download or memory; and how files are written whole.
//! It knows nothing of what the bytes mean.

use crate::error::{Error, Result};
use bytes::Bytes;
use std::ops::Range;

/// Something of known length from which ranges of bytes can be read.
#[expect(async_fn_in_trait, reason = "single-threaded by design: no Send bounds, so that it runs in browsers")]
pub trait ByteSource {
    /// Name for messages: a path or an address.
    fn name(&self) -> &str;
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether there is nothing to read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Exactly the bytes of `range`; an error when the source ends before or reading fails.
    async fn read(&self, range: Range<u64>) -> Result<Bytes>;
}

/// Bytes that are addressable as they are: downloaded, made by a test, or a mapped file. Reading copies nothing.
#[derive(Debug, Clone)]
pub struct InMemory {
    name: String,
    bytes: Bytes,
}

impl InMemory {
    /// `bytes` under `name`.
    pub fn new(name: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
    /// Maps the file at `path`. A file that another process shortens while it is mapped ends the program, as it does
    /// for every user of mapped files; one that is replaced by renaming does not.
    ///
    /// # Errors
    /// `Kind::Io` when it cannot be opened, or is not a regular file.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(path: &std::path::Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = std::fs::File::open(path).map_err(|e| Error::io(&name, e))?;
        let about = file.metadata().map_err(|e| Error::io(&name, e))?;
        if !about.is_file() {
            return Err(Error::io(&name, "expected a regular file"));
        }
        if about.len() == 0 {
            return Ok(Self::new(name, Bytes::new()));
        }
        // SAFETY: the map is read-only and private to `Bytes`, which hands out shared slices of plain bytes only.
        // What the compiler may not know of is another process writing to the file: bytes would then change under
        // us, but they are only ever copied or decoded as numbers, for which every bit pattern is valid.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(&name, e))?;
        Ok(Self::new(name, Bytes::from_owner(map)))
    }
    /// As [`ByteSource::read`], at once.
    pub fn slice(&self, range: Range<u64>) -> Result<Bytes> {
        let ends = (usize::try_from(range.start), usize::try_from(range.end));
        match ends {
            (Ok(start), Ok(end)) if start <= end && end <= self.bytes.len() => Ok(self.bytes.slice(start..end)),
            _ => {
                let (start, end, len) = (range.start, range.end, self.bytes.len());
                Err(Error::format(&self.name, format!("expected bytes {start} to {end}, but it has {len}")))
            }
        }
    }
}

impl ByteSource for InMemory {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.slice(range)
    }
}

/// Writes a file so that it is either whole or not there: into a temporary file beside it, which is flushed to the disk
/// and renamed. What exists under `path` stays until then. Pipes and devices are written directly.
///
/// # Errors
/// `Kind::Io`; the temporary file is then removed.
#[cfg(not(target_arch = "wasm32"))]
pub fn write_atomically(path: &std::path::Path, content: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> Result<()> {
    use std::io::Write;
    let failed = |e: std::io::Error| Error::io(path.display(), e);
    // A link's target is replaced, not the link.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    if std::fs::metadata(&target).is_ok_and(|about| !about.is_file()) {
        let mut file = std::fs::OpenOptions::new().write(true).open(&target).map_err(failed)?;
        return content(&mut file).and_then(|()| file.flush()).map_err(failed);
    }
    let (partial, file) = create_partial(&target).map_err(failed)?;
    let written = write_and_sync(file, content).and_then(|()| std::fs::rename(&partial, &target));
    if let Err(e) = written {
        // The first error matters; a partial file that cannot be removed still has a name that says what it is.
        let _ = std::fs::remove_file(&partial);
        return Err(failed(e));
    }
    // The new name itself reaches the disk with its folder; where folders cannot be opened (Windows) it does anyway.
    if let Some(Ok(folder)) = target.parent().map(std::fs::File::open) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// A new file `NAME.partial-N` beside `target`.
#[cfg(not(target_arch = "wasm32"))]
fn create_partial(target: &std::path::Path) -> std::io::Result<(std::path::PathBuf, std::fs::File)> {
    let name = target.file_name().ok_or_else(|| std::io::Error::other("the path names no file"))?;
    let mut attempt = 0;
    loop {
        let mut partial = name.to_os_string();
        partial.push(format!(".partial-{attempt}"));
        let partial = target.with_file_name(partial);
        match std::fs::OpenOptions::new().write(true).create_new(true).open(&partial) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && attempt < 1000 => attempt += 1,
            Err(e) => return Err(e),
            Ok(file) => return Ok((partial, file)),
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn write_and_sync(file: std::fs::File, content: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    content(&mut out)?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("doppler-source-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the temporary folder takes folders");
        folder
    }

    #[test]
    fn ranges_are_exact_or_errors() {
        let source = InMemory::new("x", vec![1u8, 2, 3]);
        assert_eq!(&source.slice(1..3).unwrap()[..], [2, 3]);
        assert_eq!(source.slice(3..3).unwrap().len(), 0);
        for (start, end) in [(2, 4), (4, 4), (3, 2), (u64::MAX - 1, u64::MAX)] {
            assert_eq!(source.slice(start..end).unwrap_err().kind, Kind::Format);
        }
    }

    #[test]
    fn maps_files_empty_ones_included() {
        let folder = folder("maps");
        for content in [&b""[..], b"abc"] {
            std::fs::write(folder.join("f"), content).unwrap();
            let source = InMemory::open(&folder.join("f")).unwrap();
            assert_eq!(&source.slice(0..source.len()).unwrap()[..], content);
        }
        assert_eq!(InMemory::open(&folder).unwrap_err().kind, Kind::Io);
        assert_eq!(InMemory::open(&folder.join("none")).unwrap_err().kind, Kind::Io);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = folder("atomic");
        let path = folder.join("out");
        write_atomically(&path, |out| out.write_all(b"first")).unwrap();
        let broken = write_atomically(&path, |out| {
            out.write_all(b"half")?;
            Err(std::io::Error::other("the disk is full"))
        });
        assert!(broken.unwrap_err().message.contains("the disk is full"));
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(write_atomically(&folder, |_| Ok(())).unwrap_err().kind, Kind::Io);
        assert!(write_atomically(&folder.join("no/such"), |_| Ok(())).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
