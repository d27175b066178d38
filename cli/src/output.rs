//! Where the lines of `debug` and their JSON twins go: with `--json FILE` the file gets an object per line; with
//! `--json -` stdout gets the objects in place of the lines.

use crate::end::Stop;
use crate::terminal;
use doppler::debug::html::Facts;
use doppler::debug::lines::Line;
use doppler::debug::record::Record;
use doppler::formats::write::{check_writable, target, write_atomically};
use doppler::{Error, Result};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Where lines go. A thread of its own spells and writes them, so that a device need not wait for that: lines about
/// values are handed over as they come, all others are waited for.
pub struct Lines {
    start: Instant,
    queue: SyncSender<Job>,
    state: Arc<State>,
    writer: Option<JoinHandle<()>>,
}

/// What the writer is to do.
enum Job {
    /// A line about a value, seen so many milliseconds after the start.
    Seen(Box<Record>, f64),
    /// A line and its JSON twin.
    Line(Option<String>, String),
    /// Write what there is, and say so.
    Flush(Option<SyncSender<()>>),
}

/// How writing goes.
#[derive(Default)]
struct State {
    closed: AtomicBool,
    failed: Mutex<Option<Error>>,
}

/// Lines that may wait for the writer before a run waits too.
const QUEUE: usize = 1 << 14;

impl Lines {
    /// Lines on stdout, and their twins where `--json` says: written as they come, so that what a crash leaves explains
    /// it. A file that exists is emptied and keeps its mode.
    ///
    /// # Errors
    /// `Kind::Io` when the file cannot be written.
    pub fn new(json: Option<&str>) -> Result<Self> {
        let twins = match json {
            None => Twins::None,
            Some("-") => Twins::Stdout,
            Some(path) => Twins::File(BufWriter::new(stream(Path::new(path))?)),
        };
        let (queue, jobs) = mpsc::sync_channel(QUEUE);
        let state = Arc::new(State::default());
        let mut writer = Writer { client: terminal::client(), twins, waiting: String::new(), state: state.clone() };
        let writer = std::thread::Builder::new().name("lines".into()).spawn(move || jobs.iter().for_each(|job| writer.take(job)));
        Ok(Self { start: Instant::now(), queue, state, writer: Some(writer.map_err(|e| Error::io("thread", e))?) })
    }
    /// Writes a line and its twin, and waits for it.
    pub fn put(&self, line: &Line) -> Result<(), Stop> {
        let json = serde_json::to_string(line).map_err(|e| Error::io("--json", e))?;
        self.hand(Job::Line(Some(line.to_string()), json));
        self.flush()
    }
    /// A line about a value. Where nobody reads any more, an error that [`Lines::closed`] explains.
    pub fn seen(&self, record: Record) -> Result<()> {
        self.hand(Job::Seen(Box::new(record), self.start.elapsed().as_secs_f64() * 1e3));
        if self.closed() { Err(Error::io("output", "nobody reads it")) } else { Ok(()) }
    }
    /// Has what was handed over written soon, without waiting.
    ///
    /// # Errors
    /// Those of what was written before.
    pub fn step(&self) -> Result<(), Stop> {
        self.hand(Job::Flush(None));
        self.outcome()
    }
    /// Waits until everything is written.
    pub fn flush(&self) -> Result<(), Stop> {
        let (done, wait) = mpsc::sync_channel(1);
        self.hand(Job::Flush(Some(done)));
        // Nothing comes when the writer is gone, which only a panic in it could do.
        let _ = wait.recv();
        self.outcome()
    }
    /// Whether nobody reads any more.
    pub fn closed(&self) -> bool {
        self.state.closed.load(Ordering::SeqCst)
    }
    /// The twin of the `Error` line.
    pub fn put_error(&self, error: &Error) -> Result<(), Stop> {
        let line = Line::Error { kind: error.kind.name(), message: error.message.clone(), about: error.about.clone() };
        let json = serde_json::to_string(&line).map_err(|e| Error::io("--json", e))?;
        self.hand(Job::Line(None, json));
        self.flush()
    }
    fn hand(&self, job: Job) {
        // Only a writer that is gone takes nothing; `outcome` then has what it failed with.
        let _ = self.queue.send(job);
    }
    fn outcome(&self) -> Result<(), Stop> {
        if self.closed() {
            return Err(Stop::Closed);
        }
        let failed = self.state.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // The writer ends with its queue.
        let (closed, _) = mpsc::sync_channel(0);
        self.queue = closed;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Where JSON twins go.
enum Twins {
    None,
    /// In place of the lines.
    Stdout,
    File(BufWriter<File>),
}

/// The thread that writes.
struct Writer {
    client: Option<Arc<dyn terminal::Client>>,
    twins: Twins,
    waiting: String,
    state: Arc<State>,
}

impl Writer {
    fn take(&mut self, job: Job) {
        match job {
            Job::Seen(record, milliseconds) => {
                if !matches!(self.twins, Twins::None) {
                    match serde_json::to_string(&record) {
                        Ok(json) => self.twin(&json),
                        Err(e) => self.fail(Error::io("--json", e)),
                    }
                }
                if !matches!(self.twins, Twins::Stdout) {
                    let _ = writeln!(self.waiting, "{}", record.line(milliseconds));
                }
                if self.waiting.len() > 1 << 16 {
                    self.write();
                }
            }
            Job::Line(line, json) => {
                self.twin(&json);
                if let (Some(line), false) = (line, matches!(self.twins, Twins::Stdout)) {
                    let _ = writeln!(self.waiting, "{line}");
                }
            }
            Job::Flush(done) => {
                self.write();
                if let Some(done) = done {
                    let _ = done.send(());
                }
            }
        }
    }
    fn twin(&mut self, json: &str) {
        let written = match &mut self.twins {
            Twins::None => Ok(()),
            Twins::Stdout => writeln!(self.waiting, "{json}").map_err(std::io::Error::other),
            Twins::File(file) => writeln!(file, "{json}"),
        };
        if let Err(e) = written {
            self.fail(Error::io("--json", e));
        }
    }
    fn write(&mut self) {
        if let Twins::File(file) = &mut self.twins
            && let Err(e) = file.flush()
        {
            self.fail(Error::io("--json", e));
        }
        let text = std::mem::take(&mut self.waiting);
        if text.is_empty() || self.state.closed.load(Ordering::SeqCst) {
            return;
        }
        let written = match &self.client {
            Some(client) => client.out(&text),
            None => terminal::out(&text),
        };
        match written.map_err(Stop::from) {
            Ok(()) => {}
            Err(Stop::Closed) => self.state.closed.store(true, Ordering::SeqCst),
            Err(Stop::Failed(error)) => self.fail(error),
        }
    }
    fn fail(&self, error: Error) {
        self.state.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Writes a file whole or not at all; `/dev/stdout` and its like are written as they are.
///
/// # Errors
/// `Kind::Io`.
pub fn write(path: &Path, content: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    match own_stream(path) {
        Some(mut stream) => content(&mut stream).and_then(|()| stream.flush()).map_err(|e| Error::io(path.display(), e)),
        None => write_atomically(path, content),
    }
}

/// As [`write()`], a text.
///
/// # Errors
/// `Kind::Io`.
pub fn file(path: &Path, text: &str) -> Result<()> {
    write(path, |out| out.write_all(text.as_bytes()))
}

/// Facts of a report that this process writes: its command and the time.
pub fn facts() -> Facts {
    vec![("Command", terminal::line()), ("Date", crate::chat::now().strftime("%Y-%m-%d %H:%M UTC"))]
}

/// Replaces a text file by what `change` makes of it (`None`: there is no file), while no other process does the same.
///
/// # Errors
/// `Kind::Io`; those of `change`.
pub fn update(path: &Path, change: impl FnOnce(Option<&str>) -> Result<String>) -> Result<()> {
    let target = target(path)?;
    // The folder is what is locked: the file itself is replaced by another one. Where file systems have no locks, or
    // folders cannot be opened, the last one to write wins.
    let folder = target.parent().and_then(|folder| File::open(folder).ok());
    let _locked = folder.filter(|folder| folder.lock().is_ok());
    let old = match std::fs::read_to_string(&target) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(Error::io(path.display(), e)),
    };
    file(&target, &change(old.as_deref())?)
}

/// Output to `path` piece by piece.
fn stream(path: &Path) -> Result<File> {
    own_stream(path).map_or_else(|| File::create(path).map_err(|e| Error::io(path.display(), e)), Ok)
}

/// Stdout or stderr under the names that the system has for them. Opened by name, a file behind them would be written
/// from its beginning.
#[cfg(unix)]
fn own_stream(path: &Path) -> Option<File> {
    use std::os::fd::AsFd;
    let descriptor = match path.to_str()? {
        "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => std::io::stdout().as_fd().try_clone_to_owned(),
        "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => std::io::stderr().as_fd().try_clone_to_owned(),
        _ => return None,
    };
    descriptor.ok().map(File::from)
}

#[cfg(not(unix))]
fn own_stream(_: &Path) -> Option<File> {
    None
}

/// Refuses, before anything is done, files of options that cannot be written later, and two that are one file, by
/// whatever names. `-` is for `--json` alone.
///
/// # Errors
/// `Kind::Io`; `Kind::Invalid` for two options with one file.
pub fn check(outputs: &[(&'static str, Option<&Path>)]) -> Result<()> {
    let mut seen: Vec<(&str, PathBuf, Option<[u64; 2]>)> = Vec::new();
    for (option, path) in outputs {
        let Some(path) = path else { continue };
        match (*option, *path == Path::new("-")) {
            ("--json", true) => continue,
            (_, true) => {
                let message = "expected a file's name; only --json writes to stdout for `-` (a file of that name is ./-)";
                return Err(Error::io("-", message));
            }
            _ => check_writable(path).map_err(|e| e.within(option))?,
        }
        let about = std::fs::metadata(path).ok();
        // Pipes and devices give back nothing of what one writer took from another.
        if about.as_ref().is_some_and(|about| !about.is_file()) {
            continue;
        }
        let (target, file) = (target(path).map_err(|e| e.within(option))?, about.as_ref().and_then(identity));
        if let Some((other, ..)) = seen.iter().find(|(_, known, its)| *known == target || (file.is_some() && *its == file)) {
            let message = format!("{} is also the file of {other}: give each a file of its own", path.display());
            return Err(Error::invalid(*option, message));
        }
        seen.push((option, target, file));
    }
    Ok(())
}

/// Which file it is, under all its names.
#[cfg(unix)]
fn identity(about: &std::fs::Metadata) -> Option<[u64; 2]> {
    use std::os::unix::fs::MetadataExt;
    Some([about.dev(), about.ino()])
}

#[cfg(not(unix))]
fn identity(_: &std::fs::Metadata) -> Option<[u64; 2]> {
    None
}

/// Output that remembers whether its reader went away, for code that only knows errors of the engine.
pub struct PipeWriter {
    to: Box<dyn Write>,
    closed: bool,
}

impl PipeWriter {
    /// Output to `to`.
    pub fn new(to: Box<dyn Write>) -> Self {
        Self { to, closed: false }
    }
    /// Whether a write failed because nobody reads any more.
    pub fn closed(&self) -> bool {
        self.closed
    }
    fn watch<T>(&mut self, result: std::io::Result<T>) -> std::io::Result<T> {
        self.closed |= result.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe);
        result
    }
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let result = self.to.write(bytes);
        self.watch(result)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        let result = self.to.flush();
        self.watch(result)
    }
}

/// Writes one JSON document where `--json` says.
pub fn document(path: &str, value: &serde_json::Value) -> Result<(), Stop> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::io("--json", e))?;
    if path == "-" {
        return Ok(writeln!(terminal::stdout(), "{text}")?);
    }
    Ok(file(Path::new(path), &(text + "\n"))?)
}
