//! Models of the Hugging Face Hub: `-m org/name[@revision][:FILE]` and `doppler pull`. The files that a model needs come into
//! the cache that the Hub's own client has on this machine, and are opened from there like any others.

mod cache;
mod choice;
mod client;
mod download;
mod id;
mod settings;

pub use client::encoded;
pub use id::HubId;

use crate::progress;
use crate::terminal;
use cache::Cache;
use choice::{Choice, Files, INDEX, Weights};
use client::{Client, Failure};
use doppler::error::nearest;
use doppler::formats::gguf;
use doppler::formats::shards::ShardIndex;
use doppler::formats::text::{MAX_INDEX, MAX_TEXT, read_text};
use doppler::{Error, Result};
use download::Download;
use settings::Settings;
use std::path::PathBuf;

/// Bytes of the list of a repository's files, at most.
const MAX_LIST: u64 = 64 << 20;
/// How often the list is asked for where no server answers.
const LIST_TRIES: u32 = 2;

/// What of a model is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Its config alone, where that is a file of its own.
    Config,
    /// All that computing needs.
    Everything,
}

/// A model of the Hub on this machine.
#[derive(Debug)]
pub struct Fetched {
    /// Its folder, or its first GGUF file.
    pub path: PathBuf,
    pub is_gguf: bool,
    /// Name for people.
    pub name: String,
    /// What was done otherwise than asked.
    pub notes: Vec<String>,
}

/// Has the files of `id` in the cache, and says where they are.
///
/// # Errors
/// `Kind::Io`: what the Hub refuses, what cannot be downloaded or written, a model that is not here while no server answers;
/// `Kind::Invalid` for an environment that cannot be followed.
pub fn fetch(id: &HubId, need: Need) -> Result<Fetched> {
    let settings = Settings::of_process()?;
    let cache = Cache::new(&settings.cache, id);
    let client = Client::new(settings, id.clone())?;
    let source = Source::of(id, &client, &cache)?;
    let choice = match choice::choose(id, &source.files) {
        Err(error) => return Err(source.explained(error)),
        Ok(choice) => choice,
    };
    let snapshot = cache.snapshot(&source.commit);
    let (path, is_gguf) = match choice {
        Choice::Gguf(names) => {
            source.have(&names)?;
            let first = names.first().ok_or_else(|| Error::io(id, "no file was chosen"))?;
            (snapshot.join(first), true)
        }
        Choice::Folder(mut texts, weights) => {
            if need == Need::Config {
                texts.retain(|name| ["config.json", "generation_config.json"].contains(&name.as_str()));
                source.have(&texts)?;
            } else {
                let weights = match weights {
                    Weights::Files(names) => names,
                    Weights::OfIndex => source.shards()?,
                };
                // Weights come last: where they are, everything is.
                source.have(&[texts, weights].concat())?;
            }
            (snapshot, false)
        }
    };
    if source.offline.is_none() {
        cache.note_commit(&id.revision, &source.commit)?;
    }
    let of_cache = |why: &String| format!("{id}: from the cache, without asking the Hub whether it changed: {why}");
    Ok(Fetched { path, is_gguf, name: id.to_string(), notes: source.offline.iter().map(of_cache).collect() })
}

/// Where a commit's files are known from.
struct Source<'a> {
    id: &'a HubId,
    client: &'a Client,
    cache: &'a Cache,
    commit: String,
    /// All of its files; those that are in the cache, where the Hub is not asked.
    files: Files,
    /// Why it is not.
    offline: Option<String>,
}

impl<'a> Source<'a> {
    fn of(id: &'a HubId, client: &'a Client, cache: &'a Cache) -> Result<Self> {
        let endpoint = &client.settings().endpoint;
        let offline = match client.settings().offline {
            Some(variable) => format!("{variable} is set"),
            None => match client.retried(LIST_TRIES, || client.list(MAX_LIST)) {
                Ok(text) => {
                    let (commit, files) = choice::parse(id, &text)?;
                    return Ok(Self { id, client, cache, commit, files, offline: None });
                }
                Err(Failure::Passing { why, .. }) => format!("{endpoint} does not answer ({why})"),
                Err(Failure::Final(error)) => {
                    let known = cache.models();
                    let near = nearest(&id.repo, known.iter().map(String::as_str)).into_iter().find(|near| *near != id.repo);
                    let hint = near.map_or_else(String::new, |near| format!("; in the cache there is `{near}`"));
                    return Err(Error { message: format!("{}{hint}", error.message), ..error });
                }
            },
        };
        let Some(commit) = cache.commit(&id.revision) else {
            let (place, unfinished) = (cache.folder().display(), cache.unfinished());
            let message = format!("it is not in the cache ({place}), and the Hub cannot be asked: {offline}{unfinished}");
            return Err(Error::io(id.model(), message));
        };
        let files = cache.files(&commit);
        Ok(Self { id, client, cache, commit, files, offline: Some(offline) })
    }
    /// An error about what there is to choose from.
    fn explained(&self, error: Error) -> Error {
        match &self.offline {
            None => error,
            Some(why) => {
                let message = format!(
                    "{}\nOnly what is in the cache counts here, as the Hub cannot be asked: {why}{}",
                    error.message,
                    self.cache.unfinished()
                );
                Error { message, ..error }
            }
        }
    }
    /// The shards that the index names.
    fn shards(&self) -> Result<Vec<String>> {
        self.have(&[INDEX.to_string()])?;
        let path = self.cache.snapshot(&self.commit).join(INDEX);
        ShardIndex::parse(&path.display().to_string(), &read_text(&path, MAX_INDEX)?).map(|index| index.files)
    }
    /// Has `names` in the snapshot.
    fn have(&self, names: &[String]) -> Result<()> {
        let entry = |name: &String| self.files.get(name).cloned().unwrap_or_default();
        let size = |name: &String| entry(name).size;
        let missing: Vec<&String> = names.iter().filter(|name| !self.cache.has(&self.commit, name, size(name))).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        if let Some(why) = &self.offline {
            let (count, unfinished) = (missing.len(), self.cache.unfinished());
            let message = format!("{count} of its files are not in the cache (`{first}`), and the Hub cannot be asked: {why}{unfinished}");
            return Err(Error::io(self.id.model(), message));
        }
        if let Some(absent) = missing.iter().find(|name| !self.files.contains_key(**name)) {
            return Err(Error::weights(format!("{}: its index names `{absent}`, which is not in the repository", self.id.model())));
        }
        let total: u64 = missing.iter().filter_map(|name| size(name)).sum();
        check_room(&self.client.settings().cache, total, self.id)?;
        if total > MAX_TEXT {
            let (count, files) = (missing.len(), if missing.len() == 1 { "file" } else { "files" });
            let text = format!("downloading {}: {count} {files}, {}, to {}", self.id, gguf::size(total), self.cache.folder().display());
            terminal::tell(&text);
        }
        let progress = progress::Download::new(total);
        let download = Download { client: self.client, cache: self.cache, commit: &self.commit, progress: &progress };
        missing.into_iter().try_for_each(|name| download.file(name, &entry(name)).map_err(|e| e.within(self.id.model())))
    }
}

/// Refuses a download for which the disk has no room, as far as the system says.
#[cfg(unix)]
fn check_room(folder: &std::path::Path, bytes: u64, id: &HubId) -> Result<()> {
    let existing = folder.ancestors().find(|folder| folder.is_dir());
    let Some(about) = existing.and_then(|folder| rustix::fs::statvfs(folder).ok()) else { return Ok(()) };
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if bytes <= free {
        return Ok(());
    }
    let (needed, free) = (gguf::size(bytes), gguf::size(free));
    Err(Error::io(id, format!("{needed} are to be downloaded, but {} has room for {free}; set HF_HOME to a larger disk", folder.display())))
}

#[cfg(not(unix))]
fn check_room(_: &std::path::Path, _: u64, _: &HubId) -> Result<()> {
    Ok(())
}
