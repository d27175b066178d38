//! What client and resident process say to each other: one JSON text per line.

use crate::model::Place;
use doppler::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::path::PathBuf;

/// What a client wants.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// A command to run.
    Run(Box<Job>),
    /// What it holds.
    Status,
    /// That it ends.
    Stop,
    /// That the run ends between two tokens.
    Interrupt,
}

/// A command to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The command line, the program's name first.
    pub line: Vec<String>,
    /// Where it was typed.
    pub folder: PathBuf,
    /// Who runs it.
    pub program: Program,
    /// Where its model is, if that came from the Hub: the client downloads.
    pub place: Option<Place>,
    /// To be told first.
    pub notes: Vec<String>,
    /// The client's umask: files that the run makes are the client's.
    pub umask: u32,
    /// The client's process.
    pub process: u32,
}

/// A binary and what of its environment reaches the GPU. Another one is no match for what is resident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    path: PathBuf,
    bytes: u64,
    modified_ns: u128,
    environment: Vec<(String, String)>,
}

impl Program {
    /// This one.
    ///
    /// # Errors
    /// `Kind::Io` when the system does not tell.
    pub fn this() -> Result<Self> {
        let failed = |e: std::io::Error| Error::io("this program", e);
        let path = std::env::current_exe().map_err(failed)?;
        let about = std::fs::metadata(&path).map_err(failed)?;
        let since = about.modified().map_err(failed)?.duration_since(std::time::UNIX_EPOCH);
        let matters = |name: &str| {
            ["VK_", "WGPU_", "LD_", "MESA_", "LIBGL_", "DOPPLER_BROWSER", "DOPPLER_WEB"].iter().any(|start| name.starts_with(start))
        };
        let mut environment: Vec<(String, String)> = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .filter(|(name, _)| matters(name))
            .collect();
        environment.sort();
        Ok(Self { path, bytes: about.len(), modified_ns: since.map_or(0, |since| since.as_nanos()), environment })
    }
    /// How `other` differs, in words.
    pub fn differs(&self, other: &Program) -> Option<String> {
        match () {
            () if self.environment != other.environment => {
                Some("the environment that the GPU's driver or the browser reads changed".into())
            }
            () if self != other => Some("the doppler binary changed".into()),
            () => None,
        }
    }
}

/// What the resident process says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Told {
    /// The job is taken.
    Accepted,
    /// It cannot run this job and ends; why.
    Stale(String),
    /// Another job runs; which. It is waited for, but not for long.
    Busy(String),
    /// The other job goes on, so this one is not taken; why.
    Declined(String),
    /// For stdout.
    Out(String),
    /// A line for stderr.
    Err(String),
    /// How far loading is.
    Progress { done: u64, total: u64, what: String },
    /// Whether an interruption is noticed between two tokens, or ends the client at once.
    Generating(bool),
    /// The end, with the exit code.
    Exit(u8),
    /// What it holds, in words.
    Status(String),
}

/// Sends one message.
///
/// # Errors
/// Those of `to`.
pub fn send(to: &mut impl Write, message: &impl Serialize) -> std::io::Result<()> {
    to.write_all(line(message)?.as_bytes())?;
    to.flush()
}

/// A message as it is sent.
///
/// # Errors
/// None that a message of ours can have.
pub fn line(message: &impl Serialize) -> std::io::Result<String> {
    Ok(serde_json::to_string(message).map_err(std::io::Error::other)? + "\n")
}

/// The next message; `None` at the end. `line` keeps what is there of it when reading is cut short by a timeout.
///
/// # Errors
/// Those of `from`; `InvalidData` for what is no message.
pub fn receive<T: DeserializeOwned>(from: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<Option<T>> {
    from.read_until(b'\n', line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let message = serde_json::from_slice(line).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e));
    line.clear();
    message.map(Some)
}
