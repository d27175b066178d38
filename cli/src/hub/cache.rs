//! The Hub's cache on this machine, in the layout that its own client has, so that both use each other's files:
//!
//! ```text
//! models--ORG--NAME/refs/REVISION           the commit that a revision was when it was last asked for
//! models--ORG--NAME/blobs/ETAG              a content, by its hash; ETAG.incomplete while it is being fetched
//! models--ORG--NAME/snapshots/COMMIT/FILE   a link to its content
//! .locks/models--ORG--NAME/ETAG.lock        held by who is fetching that content
//! ```

use super::choice::{Entry, Files, is_hex};
use super::id::HubId;
use doppler::formats::write::write_atomically;
use doppler::{Error, Result};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Folders within each other that are looked into for a snapshot's files.
const DEPTH: usize = 8;

/// The cache of one model.
pub struct Cache {
    root: PathBuf,
    folder: PathBuf,
}

impl Cache {
    /// The cache of `id` below `root`. Nothing is made yet.
    pub fn new(root: &Path, id: &HubId) -> Self {
        Self { root: root.to_path_buf(), folder: root.join(folder_name(&id.repo)) }
    }
    /// The model's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    /// Where the files of `commit` are.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }
    /// Where the content `blob` is.
    pub fn blob(&self, blob: &str) -> PathBuf {
        self.folder.join("blobs").join(blob)
    }
    /// The commit that `revision` was, if a snapshot of it is here.
    pub fn commit(&self, revision: &str) -> Option<String> {
        let here = |commit: &str| self.snapshot(commit).is_dir();
        if is_hex(revision, 40) && here(revision) {
            return Some(revision.to_string());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_hex(commit, 40) && here(commit))
    }
    /// Notes that `revision` is `commit` now.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn note_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit) {
            return Ok(());
        }
        make_parent(&path)?;
        write_atomically(&path, |out| out.write_all(commit.as_bytes()))
    }
    /// The files of a snapshot that are here.
    pub fn files(&self, commit: &str) -> Files {
        let mut found = Files::new();
        collect(&self.snapshot(commit), "", DEPTH, &mut found);
        found
    }
    /// Whether `name` of `commit` is here, as long as it has to be.
    pub fn has(&self, commit: &str, name: &str, size: Option<u64>) -> bool {
        let about = fs::metadata(self.snapshot(commit).join(name));
        about.is_ok_and(|about| about.is_file() && size.is_none_or(|size| size == about.len()))
    }
    /// The lock of a content, which is to be taken before it is fetched.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn lock(&self, blob: &str) -> Result<fs::File> {
        let name = self.folder.file_name().unwrap_or_default();
        let path = self.root.join(".locks").join(name).join(format!("{blob}.lock"));
        make_parent(&path)?;
        fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| Error::io(path.display(), e))
    }
    /// Makes `name` of `commit` the content `blob`: a link where the system has them, else a copy.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn link(&self, commit: &str, name: &str, blob: &str) -> Result<()> {
        let path = self.snapshot(commit).join(name);
        let failed = |e: io::Error| Error::io(path.display(), e);
        make_parent(&path)?;
        let up = "../".repeat(2 + name.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{blob}"));
        if fs::read_link(&path).is_ok_and(|known| known == target) {
            return Ok(());
        }
        // Under another name first: what was there, a link to nothing or a damaged file, is replaced at once.
        let new = path.with_file_name(format!(".{blob}.{}.new", std::process::id()));
        let _ = fs::remove_file(&new);
        if symlink(&target, &new).is_err() {
            fs::copy(self.blob(blob), &new).map_err(failed)?;
        }
        fs::rename(&new, &path).map_err(|e| {
            let _ = fs::remove_file(&new);
            failed(e)
        })
    }
    /// Says so, after a semicolon, where a download did not finish.
    pub fn unfinished(&self) -> String {
        let names = fs::read_dir(self.folder.join("blobs")).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut partial: Vec<String> =
            names.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".incomplete")).collect();
        partial.sort_unstable();
        let Some(first) = partial.first() else { return String::new() };
        format!("; a download did not finish ({first}): run it again where the Hub can be asked")
    }
    /// Models of which something is in the cache, as `org/name`.
    pub fn models(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("models--")?.replacen("--", "/", 1)));
        names.filter(|name| name.contains('/')).collect()
    }
}

/// Of `org/name`.
fn folder_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

/// Makes the folder of a file.
///
/// # Errors
/// `Kind::Io`.
pub fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|e| Error::io(parent.display(), e))
}

fn collect(folder: &Path, before: &str, depth: usize, found: &mut Files) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), format!("{before}{}", entry.file_name().to_string_lossy()));
        // Of a link, what it leads to; one that leads nowhere is no file.
        let Ok(about) = fs::metadata(&path) else { continue };
        if about.is_file() {
            found.insert(name, Entry { size: Some(about.len()), ..Entry::default() });
        } else if depth > 0 {
            collect(&path, &format!("{name}/"), depth - 1, found);
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, path)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
