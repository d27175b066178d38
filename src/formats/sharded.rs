//! Several files as one, in order, each of known SHA-256. Downloads are hashed on the way, where they are read from their
//! beginning to their end in order, as loading does. Files of this machine are hashed before anything of them is read, by
//! several threads, as loading does not read them in order: what is read then comes from the system's cache.

use super::manifest::{Hashed, Manifest};
use super::{ByteSource, Local};
use crate::error::{Error, Result};
use crate::threads;
use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Bytes between two reads that still count as one after the other: what aligns tensors.
const GAP: u64 = super::manifest::ALIGNMENT;
/// Bytes that are hashed at once where a whole file is.
const PIECE: usize = 4 << 20;

/// Files as one.
#[derive(Debug)]
pub struct Sharded<S> {
    name: String,
    shards: Vec<S>,
    expected: Vec<Hashed>,
    /// Bytes before each shard, and after the last.
    starts: Vec<u64>,
    states: Mutex<Vec<State>>,
}

/// How far a shard is hashed.
#[derive(Debug, Clone)]
enum State {
    Until(u64, Box<Sha256>),
    /// It is as it should be, or whoever asked knows that it is not.
    Known,
}

impl<S> Sharded<S> {
    /// The shards that `manifest` lists, in its order, under the name `name`.
    ///
    /// # Errors
    /// `Kind::Format` for another number of them.
    pub fn new(name: String, manifest: &Manifest, shards: Vec<S>) -> Result<Self>
    where
        S: ByteSource,
    {
        let expected = manifest.shards.clone();
        if shards.len() != expected.len() {
            return Err(Error::format(name, format!("it has {} shards, but {} were given", expected.len(), shards.len())));
        }
        for (source, expected) in shards.iter().zip(&expected) {
            if source.len() != expected.bytes {
                let hint = "truncated, or of another model: download or convert it again";
                let message = format!("expected {} bytes, as the manifest says, found {}: {hint}", expected.bytes, source.len());
                return Err(Error::format(source.name(), message));
            }
        }
        let states = expected.iter().map(|_| State::Until(0, Box::default())).collect();
        Ok(Self { name, shards, starts: manifest.starts(), expected, states: Mutex::new(states) })
    }
    /// What the shards should be.
    pub fn expected(&self) -> &[Hashed] {
        &self.expected
    }
    /// The files.
    pub fn shards(&self) -> &[S] {
        &self.shards
    }
    /// No hash of this shard any more: whoever asks compares it, or has.
    pub fn trust(&self, shard: usize) {
        if let Some(state) = self.states.lock().unwrap_or_else(PoisonError::into_inner).get_mut(shard) {
            *state = State::Known;
        }
    }
    /// The parts of `range`: which shard, and which bytes of it.
    ///
    /// # Errors
    /// `Kind::Format` for bytes that there are not.
    pub fn parts(&self, range: &Range<u64>) -> Result<Vec<(usize, Range<u64>)>> {
        let all = self.starts.last().copied().unwrap_or(0);
        if range.start > range.end || range.end > all {
            return Err(Error::format(&self.name, format!("expected bytes {} to {}, but it has {all}", range.start, range.end)));
        }
        let part = |(shard, ends): (usize, &[u64])| {
            let [start, end] = ends else { return None };
            let (from, to) = (range.start.max(*start), range.end.min(*end));
            (from < to).then(|| (shard, from - start..to - start))
        };
        Ok(self.starts.windows(2).enumerate().filter_map(part).collect())
    }
    /// From which byte of a shard reading `range` would go on with its hash; `None` where it would not.
    fn hashed_until(&self, shard: usize, range: &Range<u64>) -> Option<u64> {
        match self.states.lock().unwrap_or_else(PoisonError::into_inner).get(shard) {
            Some(State::Until(at, _)) if *at <= range.start && range.start - at <= GAP => Some(*at),
            _ => None,
        }
    }
    /// Goes on with a shard's hash by the bytes from `from` on, and compares it at the end.
    fn hash(&self, shard: usize, from: u64, bytes: &[u8]) -> Result<()> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(state), Some(expected)) = (states.get_mut(shard), self.expected.get(shard)) else { return Ok(()) };
        let State::Until(at, hash) = state else { return Ok(()) };
        if *at != from {
            return Ok(());
        }
        hash.update(bytes);
        *at += bytes.len() as u64;
        if *at < expected.bytes {
            return Ok(());
        }
        let found = hexadecimal(&std::mem::take(&mut **hash).finalize());
        if found == expected.sha256 {
            *state = State::Known;
            return Ok(());
        }
        *state = State::Until(0, Box::default());
        Err(wrong(&self.name, expected, &found))
    }
}

fn wrong(name: &str, expected: &Hashed, found: &str) -> Error {
    let Hashed { name: shard, sha256, .. } = expected;
    Error::format(name, format!("shard {shard} is corrupt: its SHA-256 is {found}, expected {sha256}; download or convert it again"))
}

/// SHA-256 of `bytes`, in hexadecimal digits.
pub fn sha256_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Bytes as hexadecimal digits in lower case.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl<S: ByteSource> Sharded<S> {
    /// Hashes every shard as a whole, and says of each that is not as it should be what is wrong. `progress` hears how many
    /// bytes were read since it heard last. Afterwards nothing is hashed on the way any more.
    ///
    /// # Errors
    /// `Kind::Io` when reading fails.
    pub async fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<Vec<Error>> {
        let mut found = Vec::new();
        for (shard, (source, expected)) in self.shards.iter().zip(&self.expected).enumerate() {
            let sha256 = sha256(source, progress).await?;
            if sha256 != expected.sha256 {
                found.push(wrong(&self.name, expected, &sha256));
            }
            self.trust(shard);
        }
        Ok(found)
    }
}

/// SHA-256 of a whole source.
///
/// # Errors
/// `Kind::Io` when reading fails.
pub async fn sha256(source: &impl ByteSource, progress: &mut dyn FnMut(u64)) -> Result<String> {
    let (len, mut start, mut hash) = (source.len(), 0, Sha256::new());
    while start < len {
        let end = len.min(start + PIECE as u64);
        hash.update(&source.read(start..end).await?);
        progress(end - start);
        start = end;
    }
    Ok(hexadecimal(&hash.finalize()))
}

/// Bytes of parts that were read, as one.
fn joined(parts: Vec<Bytes>) -> Bytes {
    match <[Bytes; 1]>::try_from(parts) {
        Ok([one]) => one,
        Err(parts) => parts
            .iter()
            .fold(BytesMut::new(), |mut all, part| {
                all.extend_from_slice(part);
                all
            })
            .freeze(),
    }
}

impl<S: ByteSource> ByteSource for Sharded<S> {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let mut parts = Vec::new();
        for (shard, range) in self.parts(&range)? {
            let (source, hashed) = (&self.shards[shard], self.hashed_until(shard, &range));
            if let Some(from) = hashed.filter(|from| *from < range.start) {
                self.hash(shard, from, &source.read(from..range.start).await?)?;
            }
            let bytes = source.read(range.clone()).await?;
            if hashed.is_some() {
                self.hash(shard, range.start, &bytes)?;
            }
            parts.push(bytes);
        }
        Ok(joined(parts))
    }
}

impl Sharded<Local> {
    /// As [`ByteSource::read`], at once, of shards that are as they should be.
    ///
    /// # Errors
    /// Those of reading, and of [`Self::check`].
    pub fn slice(&self, range: Range<u64>) -> Result<Bytes> {
        self.check(&range)?;
        let parts = self.parts(&range)?.into_iter().map(|(shard, range)| self.shards[shard].slice(range));
        Ok(joined(parts.collect::<Result<_>>()?))
    }
    /// Reads as many bytes as `out` has, from the `at`-th on, of shards that are as they should be.
    ///
    /// # Errors
    /// Those of reading, and of [`Self::check`].
    pub fn fill(&self, at: u64, mut out: &mut [u8]) -> Result<()> {
        let range = at..at.saturating_add(out.len() as u64);
        self.check(&range)?;
        for (shard, range) in self.parts(&range)? {
            let (part, rest) = out.split_at_mut((range.end - range.start) as usize);
            self.shards[shard].fill(range.start, part)?;
            out = rest;
        }
        Ok(())
    }
    /// Hashes the shards of `range` that were not yet, and as many of those after them as there are threads to do it.
    ///
    /// # Errors
    /// `Kind::Format` for a shard that is not as the manifest says; `Kind::Io` when reading fails.
    pub fn check(&self, range: &Range<u64>) -> Result<()> {
        let parts = self.parts(range)?;
        let unknown = |shard: &usize| {
            let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
            states.get(*shard).is_some_and(|state| !matches!(state, State::Known))
        };
        let (Some((last, _)), Some(first)) = (parts.last(), parts.iter().map(|(shard, _)| *shard).find(unknown)) else { return Ok(()) };
        let end = (last + 1).max(first + threads::count()).min(self.shards.len());
        let shards: Vec<usize> = (first..end).filter(unknown).collect();
        threads::each(shards.into_iter(), Vec::new, |piece: &mut Vec<u8>, shard| {
            let (source, expected, mut hash) = (&self.shards[shard], &self.expected[shard], Sha256::new());
            for start in (0..expected.bytes).step_by(PIECE) {
                piece.resize((expected.bytes - start).min(PIECE as u64) as usize, 0);
                source.fill(start, piece)?;
                hash.update(&piece);
            }
            let found = hexadecimal(&hash.finalize());
            if found != expected.sha256 {
                return Err(wrong(&self.name, expected, &found));
            }
            self.trust(shard);
            Ok(())
        })
    }
}
