//! Where the lines of `debug` and their JSON twins go: with `--json FILE` the file gets an object per line; with
//! `--json -` stdout gets the objects in place of the lines.

use crate::end::Stop;
use crate::terminal;
use doppler::debug::lines::Line;
use doppler::debug::record::Record;
use doppler::{Error, Result};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
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
    /// Lines on stdout, and their twins where `--json` says.
    ///
    /// # Errors
    /// `Kind::Io` when the file cannot be written.
    pub fn new(json: Option<&str>) -> Result<Self> {
        let twins = match json {
            None => Twins::None,
            Some("-") => Twins::Stdout,
            Some(path) => Twins::File(BufWriter::new(File::create(path).map_err(|e| Error::io(path, e))?)),
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

/// Writes a text file whole or not at all.
///
/// # Errors
/// `Kind::Io`.
pub fn file(path: &Path, text: &str) -> Result<()> {
    doppler::formats::source::write_atomically(path, |out| out.write_all(text.as_bytes()))
}

/// Refuses a file that cannot be written later: its folder must be there, and it must not be a folder itself.
///
/// # Errors
/// `Kind::Io`.
pub fn writable(path: &Path) -> Result<()> {
    if path == Path::new("-") {
        return Err(Error::io("-", "expected a file's name; only --json writes to stdout for `-` (a file of that name is ./-)"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Error::io(path.display(), format!("there is no folder {}", folder.display())));
    }
    if path.is_dir() {
        return Err(Error::io(path.display(), "expected a file to write, found a folder"));
    }
    Ok(())
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
        return Ok(writeln!(std::io::stdout().lock(), "{text}")?);
    }
    Ok(std::fs::write(path, text + "\n").map_err(|e| Error::io(path, e))?)
}
