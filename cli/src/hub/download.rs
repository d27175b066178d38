//! One file from the Hub into the cache: resumed where a download broke, checked by length and hash, and under its own name
//! only when it is whole.

use super::cache::{Cache, make_parent};
use super::choice::{Entry, is_hex};
use super::client::{Client, Failure, TRIES, broken};
use crate::progress;
use crate::terminal;
use doppler::formats::sharded::hexadecimal;
use doppler::{Error, Result};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// Fetches files of one commit.
pub struct Download<'a> {
    pub client: &'a Client,
    pub cache: &'a Cache,
    pub commit: &'a str,
    pub progress: &'a progress::Download,
}

/// What a file has to be.
struct Identity {
    /// Name of its content in the cache.
    blob: String,
    size: u64,
    hash: Hash,
}

/// How a content is known.
enum Hash {
    Sha256(String),
    /// As Git names its blobs.
    Git(String),
    /// By its length alone.
    Unknown,
}

/// Bytes under way: a file that grows, and the digest of what is in it.
struct Partial {
    path: PathBuf,
    file: File,
    digest: Option<Context>,
    length: u64,
}

impl Download<'_> {
    /// Has `name`, of which the list says `entry`, in the snapshot.
    ///
    /// # Errors
    /// `Kind::Io`: the server's refusal, what the disk says, bytes that are not those of the file.
    pub fn file(&self, name: &str, entry: &Entry) -> Result<()> {
        let identity = self.identity(name, entry)?;
        self.progress.begin(name);
        let blob = self.cache.blob(&identity.blob);
        let whole = || std::fs::metadata(&blob).is_ok_and(|about| about.is_file() && about.len() == identity.size);
        if whole() {
            self.progress.add(identity.size);
        } else {
            let _lock = self.locked(&identity.blob, name)?;
            if whole() {
                self.progress.add(identity.size);
            } else {
                self.fetch(name, &identity, &blob)?;
            }
        }
        self.cache.link(self.commit, name, &identity.blob)
    }
    /// What `name` has to be: as the list says, else as the server does.
    fn identity(&self, name: &str, entry: &Entry) -> Result<Identity> {
        let hash = match entry {
            Entry { sha256: Some(sha256), .. } => Hash::Sha256(sha256.clone()),
            Entry { git: Some(git), .. } => Hash::Git(git.clone()),
            _ => Hash::Unknown,
        };
        if let (Hash::Sha256(blob) | Hash::Git(blob), Some(size)) = (&hash, entry.size) {
            return Ok(Identity { blob: blob.clone(), size, hash });
        }
        let asked = self.client.retried(TRIES, || self.client.file(self.commit, name, 0));
        let version = asked.map_err(|failure| self.error(name, failure))?.version;
        let missing = |what: &str| Error::io(name, format!("neither the Hub's list nor its answer says {what}"));
        let blob = version.etag.ok_or_else(|| missing("which content it is (ETag)"))?;
        let size = entry.size.or(version.size).ok_or_else(|| missing("how long it is"))?;
        let hash = match hash {
            Hash::Unknown if is_hex(&blob, 64) => Hash::Sha256(blob.to_lowercase()),
            hash => hash,
        };
        Ok(Identity { blob, size, hash })
    }
    /// The lock of a content, when whoever has it is done.
    fn locked(&self, blob: &str, name: &str) -> Result<File> {
        let lock = self.cache.lock(blob)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                terminal::tell(&format!("{name}: another process is downloading it: waiting"));
                lock.lock().map_err(|e| Error::io(name, e))?;
            }
            // A file system without locks; the worst is that bytes are fetched twice and found to be wrong.
            Err(TryLockError::Error(_)) => {}
        }
        Ok(lock)
    }
    fn fetch(&self, name: &str, identity: &Identity, blob: &Path) -> Result<()> {
        let path = blob.with_file_name(format!("{}.incomplete", identity.blob));
        make_parent(&path)?;
        let mut partial = Partial::open(path, identity)?;
        let resumed = partial.length;
        self.progress.resume(resumed);
        self.receive(name, identity, &mut partial)?;
        if let Err(found) = partial.check(identity) {
            // What an earlier process left may have been of something else.
            self.progress.take_back(identity.size);
            partial.restart(identity)?;
            if resumed == 0 {
                let _ = std::fs::remove_file(&partial.path);
                return Err(Error::io(name, format!("{found}; what came was thrown away, try again")));
            }
            self.receive(name, identity, &mut partial)?;
            if let Err(found) = partial.check(identity) {
                let _ = std::fs::remove_file(&partial.path);
                return Err(Error::io(name, format!("{found}; what came was thrown away, try again")));
            }
        }
        let failed = |e: std::io::Error| Error::io(blob.display(), e);
        partial.file.sync_all().map_err(failed)?;
        std::fs::rename(&partial.path, blob).map_err(failed)
    }
    /// Receives what is missing, going on where a connection breaks.
    fn receive(&self, name: &str, identity: &Identity, partial: &mut Partial) -> Result<()> {
        loop {
            let before = partial.length;
            let received = self.client.retried(TRIES, || {
                let start = partial.length;
                let received = self.body(name, identity, partial);
                // A connection that brought something may break as often as it wants.
                if partial.length > start && matches!(received, Err(Failure::Passing { .. })) { Ok(()) } else { received }
            });
            received.map_err(|failure| self.error(name, failure))?;
            if partial.length >= identity.size {
                return Ok(());
            }
            if partial.length <= before {
                return Err(Error::io(name, format!("it ended after {} of {} bytes", partial.length, identity.size)));
            }
        }
    }
    /// One answer, as far as it comes.
    fn body(&self, name: &str, identity: &Identity, partial: &mut Partial) -> Result<(), Failure> {
        if partial.length >= identity.size {
            return Ok(());
        }
        let mut answer = self.client.file(self.commit, name, partial.length)?;
        let changed = |what: String| Error::io(name, format!("the answer is not the file of the Hub's list: {what}; try again"));
        if let Some(size) = answer.version.size.filter(|size| *size != identity.size) {
            return Err(changed(format!("expected {} bytes, found {size}", identity.size)).into());
        }
        if let (Hash::Sha256(expected), Some(found)) = (&identity.hash, &answer.version.etag)
            && is_hex(found, 64)
            && !expected.eq_ignore_ascii_case(found)
        {
            return Err(changed(format!("expected SHA-256 {expected}, found {found}")).into());
        }
        if answer.from != partial.length {
            // The server knows no ranges.
            if answer.from != 0 {
                return Err(changed(format!("expected bytes from {} on, found some from {}", partial.length, answer.from)).into());
            }
            self.progress.take_back(partial.length);
            partial.restart(identity)?;
        }
        let mut chunk = vec![0; CHUNK];
        while partial.length < identity.size {
            let most = usize::try_from(identity.size - partial.length).map_or(CHUNK, |left| left.min(CHUNK));
            match answer.body.read(&mut chunk[..most]) {
                Ok(0) => {
                    let why = format!("it ended after {} of {} bytes", partial.length, identity.size);
                    return Err(Failure::passing(why));
                }
                Ok(count) => {
                    partial.add(&chunk[..count])?;
                    self.progress.add(count as u64);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(broken(&e)),
            }
        }
        Ok(())
    }
    fn error(&self, name: &str, failure: Failure) -> Error {
        match failure {
            Failure::Final(error) => error,
            Failure::Passing { why, .. } => {
                let hint = "what came is kept: the same command goes on from there";
                Error::io(name, format!("it could not be downloaded from {}: {why}; {hint}", self.client.settings().endpoint))
            }
        }
    }
}

impl Partial {
    /// Opens what an earlier process left at `path`, or begins.
    fn open(path: PathBuf, identity: &Identity) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io(path.display(), e);
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut digest = identity.hash.begin(identity.size);
        if length <= identity.size {
            let (mut chunk, mut left) = (vec![0; CHUNK], length);
            while left > 0 {
                let most = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
                file.read_exact(&mut chunk[..most]).map_err(failed)?;
                digest.iter_mut().for_each(|digest| digest.update(&chunk[..most]));
                left -= most as u64;
            }
            return Ok(Self { path, file, digest, length });
        }
        let mut partial = Self { path, file, digest, length };
        partial.restart(identity)?;
        Ok(partial)
    }
    /// Forgets everything.
    fn restart(&mut self, identity: &Identity) -> Result<()> {
        let failed = |e: std::io::Error| Error::io(self.path.display(), e);
        self.file.set_len(0).map_err(failed)?;
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        (self.digest, self.length) = (identity.hash.begin(identity.size), 0);
        Ok(())
    }
    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(self.path.display(), e))?;
        self.digest.iter_mut().for_each(|digest| digest.update(bytes));
        self.length += bytes.len() as u64;
        Ok(())
    }
    /// Whether this is the file that it has to be; else what it is, in words.
    fn check(&self, identity: &Identity) -> Result<(), String> {
        let found = self.digest.clone().map(|digest| hexadecimal(digest.finish().as_ref())).unwrap_or_default();
        match &identity.hash {
            Hash::Sha256(expected) if *expected != found => {
                Err(format!("the bytes that came are not those of the file: expected SHA-256 {expected}, found {found}"))
            }
            Hash::Git(expected) if *expected != found => {
                Err(format!("the bytes that came are not those of the file: expected Git's blob {expected}, found {found}"))
            }
            _ => Ok(()),
        }
    }
}

impl Hash {
    /// The digest before the first byte of a file of `size` bytes.
    fn begin(&self, size: u64) -> Option<Context> {
        match self {
            Hash::Sha256(_) => Some(Context::new(&SHA256)),
            Hash::Git(_) => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {size}\0").as_bytes());
                Some(context)
            }
            Hash::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_of_the_hub() {
        let digest = |hash: Hash, bytes: &[u8]| {
            let mut context = hash.begin(bytes.len() as u64).unwrap();
            context.update(bytes);
            hexadecimal(context.finish().as_ref())
        };
        // As `git hash-object` and `sha256sum` say.
        assert_eq!(digest(Hash::Git(String::new()), b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(digest(Hash::Sha256(String::new()), b"hello\n"), sha256);
    }
}
