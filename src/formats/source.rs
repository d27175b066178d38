//! Where bytes come from: asynchronous ranges of a file, a download or memory. It knows nothing of what the bytes mean.

use crate::error::{Error, Result};
#[cfg(not(target_arch = "wasm32"))]
use crate::threads;
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
    /// The same, where it is a file of this machine, from which several threads can read at once.
    fn local(&self) -> Option<&Local> {
        None
    }
}

/// Bytes in memory: downloaded, built in, or made by a test. Reading copies nothing.
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
    /// Reads the whole file at `path`.
    ///
    /// # Errors
    /// Those of [`LocalFile::open`] and [`LocalFile::slice`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(path: &std::path::Path) -> Result<Self> {
        let file = LocalFile::open(path)?;
        let bytes = file.slice(0..file.len)?;
        Ok(Self { name: file.name, bytes })
    }
    /// As [`ByteSource::read`], at once.
    pub fn slice(&self, range: Range<u64>) -> Result<Bytes> {
        let (start, end) = check(&self.name, &range, self.bytes.len() as u64)?;
        Ok(self.bytes.slice(start..end))
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

/// `range` as places in memory, if a source of `len` bytes has it.
fn check(name: &str, range: &Range<u64>, len: u64) -> Result<(usize, usize)> {
    match (usize::try_from(range.start), usize::try_from(range.end)) {
        (Ok(start), Ok(end)) if start <= end && range.end <= len => Ok((start, end)),
        _ => Err(Error::format(name, format!("expected bytes {} to {}, but it has {len}", range.start, range.end))),
    }
}

/// Bytes that one thread reads at once.
#[cfg(not(target_arch = "wasm32"))]
const PART: usize = 4 << 20;

/// A regular file of this machine. What is read is copied: a map of the file would change with it, or end the process
/// when the file is cut short (docs/decisions/0007). A file that was changed since it was opened is an error when it is
/// read.
#[cfg(not(target_arch = "wasm32"))]
#[derive(Debug, Clone)]
pub struct LocalFile {
    name: String,
    file: std::sync::Arc<std::fs::File>,
    len: u64,
    state: FileState,
    links: u64,
}

/// What tells one state of a file from another: change of content and, where the system has it, of status, in seconds
/// and nanoseconds; device and number.
#[cfg(not(target_arch = "wasm32"))]
pub type FileState = [i64; 6];

#[cfg(not(target_arch = "wasm32"))]
fn state(about: &std::fs::Metadata) -> FileState {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let file = [about.dev().cast_signed(), about.ino().cast_signed()];
        [file[0], file[1], about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()]
    }
    #[cfg(windows)]
    {
        use std::os::windows::fs::MetadataExt;
        [about.last_write_time().cast_signed(), about.creation_time().cast_signed(), 0, 0, 0, 0]
    }
}

/// Names of the file. Replacing it by renaming takes one away, which changes its status but not its content.
#[cfg(not(target_arch = "wasm32"))]
fn links(about: &std::fs::Metadata) -> u64 {
    #[cfg(unix)]
    {
        std::os::unix::fs::MetadataExt::nlink(about)
    }
    #[cfg(windows)]
    {
        let _ = about;
        1
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl LocalFile {
    /// Opens the file at `path`, through links.
    ///
    /// # Errors
    /// `Kind::Io` when it cannot be opened, or is not a regular file.
    pub fn open(path: &std::path::Path) -> Result<Self> {
        let name = path.display().to_string();
        let (file, about) = super::text::open_regular(path)?;
        Ok(Self { name, file: file.into(), len: about.len(), state: state(&about), links: links(&about) })
    }
    /// As [`ByteSource::read`], at once.
    ///
    /// # Errors
    /// `Kind::Format` for bytes that it does not have; `Kind::Io` when reading fails, or the file was changed after it
    /// was opened.
    pub fn slice(&self, range: Range<u64>) -> Result<Bytes> {
        let (start, end) = check(&self.name, &range, self.len)?;
        let mut bytes = vec![0; end - start];
        let parts = bytes.chunks_mut(PART).enumerate();
        threads::each(parts, || (), |(), (part, bytes)| self.fill(range.start + (part * PART) as u64, bytes))?;
        Ok(bytes.into())
    }
    /// Reads as many bytes as `out` has, from the `at`-th on.
    ///
    /// # Errors
    /// Those of [`Self::slice`].
    pub fn fill(&self, at: u64, out: &mut [u8]) -> Result<()> {
        check(&self.name, &(at..at.saturating_add(out.len() as u64)), self.len)?;
        let read = read_exact_at(&self.file, out, at);
        // First whether it changed, which explains every other error.
        let about = self.file.metadata().map_err(|e| Error::io(&self.name, e))?;
        let now = state(&about);
        let content = now[..4] == self.state[..4] && about.len() == self.len;
        let status = now == self.state || links(&about) != self.links;
        if !content || !status {
            return Err(Error::io(&self.name, "the file was changed while it was read; run again when it is complete"));
        }
        read.map_err(|e| Error::io(&self.name, e))
    }
}

#[cfg(unix)]
fn read_exact_at(file: &std::fs::File, out: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(windows)]
fn read_exact_at(file: &std::fs::File, mut out: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, at)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => (out, at) = (&mut out[n..], at + n as u64),
        }
    }
    Ok(())
}

/// A file of this machine, or the bytes of one in memory.
#[derive(Debug, Clone)]
pub enum Local {
    /// Built in, downloaded, or just made.
    Memory(InMemory),
    /// On a file system.
    #[cfg(not(target_arch = "wasm32"))]
    File(LocalFile),
    /// The shards of a manifest.
    Sharded(std::sync::Arc<super::sharded::Sharded<Local>>),
}

impl From<super::sharded::Sharded<Local>> for Local {
    fn from(shards: super::sharded::Sharded<Local>) -> Self {
        Local::Sharded(shards.into())
    }
}

impl Local {
    /// The files that it is made of: the shards of a manifest, else itself.
    pub fn files(&self) -> &[Local] {
        match self {
            Local::Sharded(shards) => shards.shards(),
            one => std::slice::from_ref(one),
        }
    }
    /// As [`ByteSource::read`], at once.
    ///
    /// # Errors
    /// Those of [`InMemory::slice`] and [`LocalFile::slice`].
    pub fn slice(&self, range: Range<u64>) -> Result<Bytes> {
        match self {
            Local::Memory(bytes) => bytes.slice(range),
            #[cfg(not(target_arch = "wasm32"))]
            Local::File(file) => file.slice(range),
            Local::Sharded(shards) => shards.slice(range),
        }
    }
    /// Reads as many bytes as `out` has, from the `at`-th on.
    ///
    /// # Errors
    /// Those of [`Self::slice`].
    pub fn fill(&self, at: u64, out: &mut [u8]) -> Result<()> {
        match self {
            Local::Memory(bytes) => out.copy_from_slice(&bytes.slice(at..at.saturating_add(out.len() as u64))?),
            #[cfg(not(target_arch = "wasm32"))]
            Local::File(file) => file.fill(at, out)?,
            Local::Sharded(shards) => shards.fill(at, out)?,
        }
        Ok(())
    }
    /// The file's state when it was opened; of several, those of all in one.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn state(&self) -> Option<FileState> {
        match self {
            Local::Memory(_) => None,
            Local::File(file) => Some(file.state),
            Local::Sharded(shards) => {
                let states = shards.shards().iter().filter_map(Local::state);
                states.reduce(|all, one| std::array::from_fn(|i| all[i].wrapping_mul(31).wrapping_add(one[i])))
            }
        }
    }
}

impl ByteSource for Local {
    fn name(&self) -> &str {
        match self {
            Local::Memory(bytes) => &bytes.name,
            #[cfg(not(target_arch = "wasm32"))]
            Local::File(file) => &file.name,
            Local::Sharded(shards) => shards.name(),
        }
    }
    fn len(&self) -> u64 {
        match self {
            Local::Memory(bytes) => bytes.bytes.len() as u64,
            #[cfg(not(target_arch = "wasm32"))]
            Local::File(file) => file.len,
            Local::Sharded(shards) => shards.len(),
        }
    }
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.slice(range)
    }
    fn local(&self) -> Option<&Local> {
        match self {
            // What is in memory needs no reading.
            Local::Memory(_) => None,
            #[cfg(not(target_arch = "wasm32"))]
            Local::File(_) => Some(self),
            Local::Sharded(_) => Some(self),
        }
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::io::Write;

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
    fn files_are_read_and_what_is_no_file_is_refused() {
        let folder = folder("reads");
        for content in [&b""[..], b"abc"] {
            std::fs::write(folder.join("f"), content).unwrap();
            let source = LocalFile::open(&folder.join("f")).unwrap();
            assert_eq!(&source.slice(0..source.len).unwrap()[..], content);
            assert_eq!(source.slice(0..source.len + 1).unwrap_err().kind, Kind::Format);
            assert_eq!(InMemory::open(&folder.join("f")).unwrap().len(), content.len() as u64);
        }
        assert_eq!(LocalFile::open(&folder).unwrap_err().kind, Kind::Io);
        assert_eq!(LocalFile::open(&folder.join("none")).unwrap_err().kind, Kind::Io);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_that_changes_after_it_was_opened_is_an_error_not_other_bytes() {
        let folder = folder("changes");
        let path = folder.join("f");
        let changes: [&dyn Fn(); 3] = [
            &|| std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(b"xyz").unwrap(),
            &|| std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(2).unwrap(),
            &|| std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap(),
        ];
        for change in changes {
            std::fs::write(&path, b"abcdef").unwrap();
            let source = LocalFile::open(&path).unwrap();
            assert_eq!(&source.slice(1..3).unwrap()[..], b"bc");
            // Longer than the clock of any file system takes to tick.
            std::thread::sleep(std::time::Duration::from_millis(30));
            change();
            let error = source.slice(0..6).unwrap_err();
            assert!(error.kind == Kind::Io && error.message.contains("changed while it was read"), "{error}");
        }
        // Replaced by renaming, the old file is still there for those who have it open.
        let source = LocalFile::open(&path).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        std::fs::write(folder.join("g"), b"uvwxyz").unwrap();
        if cfg!(unix) {
            std::fs::rename(folder.join("g"), &path).unwrap();
            assert_eq!(&source.slice(0..3).unwrap()[..], b"abc");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
