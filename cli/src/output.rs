//! The lines of `debug` that people grep and their JSON twins: one record, two spellings. With `--json FILE` the file
//! gets an object per line; with `--json -` stdout gets the objects in place of the lines.

use crate::end::Stop;
use crate::terminal;
use doppler::inference::tokenizer::escape_line;
use doppler::{Error, Result, debug};
use serde::Serialize;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// One line. JSON keys are camelCase; what does not apply is null.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Record {
    /// What was resolved.
    Config {
        /// The model's name.
        model: String,
        /// The model preset.
        preset: String,
        layers: usize,
        hidden: usize,
        vocab: usize,
        /// Types of the stored weights.
        weights: String,
        /// Storage of activations and cache.
        dtype: String,
        /// Longest sequence.
        context: usize,
        /// The runtime config's name.
        config: String,
        /// Device, in words.
        device: String,
        /// Keys of config.json that were not understood and, as allowed, not used.
        ignored_keys: Vec<String>,
    },
    /// What had to change so that something could be done.
    Note { text: String },
    /// Something found.
    Anomaly {
        /// The rule's name.
        kind: &'static str,
        stage: Option<&'static str>,
        layer: Option<usize>,
        /// What there is to say, as `key=value`.
        details: String,
    },
    /// What was generated.
    Output {
        /// `None` without a tokenizer.
        text: Option<String>,
        input_ids: Vec<u32>,
        ids: Vec<u32>,
    },
    /// The end.
    Done {
        tokens: usize,
        milliseconds: f64,
        prefill_tokens: usize,
        prefill_tokens_per_second: Option<f64>,
        decode_tokens_per_second: Option<f64>,
        /// XXH64 of the logits that tokens were chosen from.
        logits: String,
        /// Why generation ended.
        stop: &'static str,
    },
    /// Why the command could not do its work. Its line is on stderr.
    Error { kind: String, message: String },
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Record::Config { model, preset, layers, hidden, vocab, weights, dtype, context, config, device, ignored_keys } => {
                write!(f, "Config model={model} preset={preset} layers={layers} hidden={hidden} vocab={vocab} weights={weights}")?;
                write!(f, " dtype={dtype} context={context} config={config}")?;
                if !ignored_keys.is_empty() {
                    write!(f, " ignored={}", ignored_keys.join(","))?;
                }
                write!(f, " device={device}")
            }
            Record::Note { text } => write!(f, "Note {text}"),
            Record::Anomaly { kind, stage, layer, details } => {
                write!(f, "ANOMALY kind={kind}")?;
                stage.map_or(Ok(()), |stage| write!(f, " stage={stage}"))?;
                layer.map_or(Ok(()), |layer| write!(f, " layer={layer}"))?;
                write!(f, " {details}")
            }
            Record::Output { text: Some(text), .. } => write!(f, "Output {}", escape_line(text)),
            Record::Output { text: None, ids, .. } => {
                let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
                write!(f, "Output ids {}", ids.join(","))
            }
            Record::Done { tokens, milliseconds, prefill_tokens_per_second, decode_tokens_per_second, logits, .. } => {
                let rate = |rate: &Option<f64>| rate.map_or("-".to_string(), |rate| format!("{rate:.1}"));
                let (prefill, decode) = (rate(prefill_tokens_per_second), rate(decode_tokens_per_second));
                write!(f, "Done {tokens} tokens in {milliseconds:.1} ms (prefill {prefill} tok/s, decode {decode} tok/s) logits={logits}")
            }
            Record::Error { message, .. } => write!(f, "Error {message}"),
        }
    }
}

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
    Seen(Box<debug::record::Record>, f64),
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
    pub fn put(&self, record: &Record) -> Result<(), Stop> {
        let json = serde_json::to_string(record).map_err(|e| Error::io("--json", e))?;
        self.hand(Job::Line(Some(record.to_string()), json));
        self.flush()
    }
    /// A line about a value. Where nobody reads any more, an error that [`Lines::closed`] explains.
    pub fn seen(&self, record: debug::record::Record) -> Result<()> {
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
        let kind = format!("{:?}", error.kind).to_lowercase();
        let record = Record::Error { kind, message: error.message.clone() };
        let json = serde_json::to_string(&record).map_err(|e| Error::io("--json", e))?;
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
pub struct Watched {
    to: Box<dyn Write>,
    closed: bool,
}

impl Watched {
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

impl Write for Watched {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_rates_are_numbers_or_absent() {
        let output = Record::Output { text: Some(" a\nb\u{1b}".into()), input_ids: vec![2], ids: vec![3, 4] };
        assert_eq!(output.to_string(), "Output  a\\nb\\u{1b}");
        let ids = Record::Output { text: None, input_ids: vec![2], ids: vec![3, 4] };
        assert_eq!(ids.to_string(), "Output ids 3,4");
        let done = Record::Done {
            tokens: 1,
            milliseconds: 12.34,
            prefill_tokens: 2,
            prefill_tokens_per_second: Some(170.0),
            decode_tokens_per_second: None,
            logits: "00".into(),
            stop: "eos",
        };
        assert_eq!(done.to_string(), "Done 1 tokens in 12.3 ms (prefill 170.0 tok/s, decode - tok/s) logits=00");
        let json = serde_json::to_value(&done).unwrap();
        assert_eq!((&json["type"], &json["decodeTokensPerSecond"]), (&"done".into(), &serde_json::Value::Null));
    }

    #[test]
    fn anomalies_name_their_rule_first() {
        let anomaly = Record::Anomaly { kind: "non_finite_weights", stage: None, layer: None, details: "tensor=w nan=1".into() };
        assert_eq!(anomaly.to_string(), "ANOMALY kind=non_finite_weights tensor=w nan=1");
    }
}
