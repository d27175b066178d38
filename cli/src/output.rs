//! The lines of `debug` that people grep and their JSON twins: one record, two spellings. With `--json FILE` the file
//! gets an object per line; with `--json -` stdout gets the objects in place of the lines.

use crate::end::Stop;
use crate::terminal;
use doppler::inference::tokenizer::escape_line;
use doppler::{Error, Result, debug};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{BufWriter, Write};
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

/// Where lines go. Lines about values are kept until [`Lines::flush`], which callers do after each step; all others are
/// written at once.
pub struct Lines {
    start: Instant,
    text: bool,
    json: Option<RefCell<Json>>,
    waiting: RefCell<String>,
    closed: Cell<bool>,
}

/// Where JSON twins go.
enum Json {
    Stdout,
    File(BufWriter<File>),
}

impl Lines {
    /// Lines on stdout, and their twins where `--json` says.
    ///
    /// # Errors
    /// `Kind::Io` when the file cannot be written.
    pub fn new(json: Option<&str>) -> Result<Self> {
        let twins = match json {
            None => None,
            Some("-") => Some(Json::Stdout),
            Some(path) => Some(Json::File(BufWriter::new(File::create(path).map_err(|e| Error::io(path, e))?))),
        };
        let text = json != Some("-");
        let (waiting, closed) = (RefCell::default(), Cell::new(false));
        Ok(Self { start: Instant::now(), text, json: twins.map(RefCell::new), waiting, closed })
    }
    /// Writes a line and its twin, at once.
    pub fn put(&self, record: &Record) -> Result<(), Stop> {
        self.put_json(record)?;
        if self.text {
            let _ = writeln!(self.waiting.borrow_mut(), "{record}");
        }
        self.flush()
    }
    /// A line about a value. Where nobody reads any more, an error that [`Lines::closed`] explains.
    pub fn seen(&self, record: &debug::record::Record) -> Result<()> {
        let written = self.put_json(record).and_then(|()| {
            if self.text {
                let _ = writeln!(self.waiting.borrow_mut(), "{}", record.line(self.start.elapsed().as_secs_f64() * 1e3));
            }
            if self.waiting.borrow().len() > 1 << 16 { self.flush() } else { Ok(()) }
        });
        match written {
            Ok(()) => Ok(()),
            Err(Stop::Failed(error)) => Err(error),
            Err(Stop::Closed) => Err(Error::io("output", "nobody reads it")),
        }
    }
    /// Writes what waits.
    pub fn flush(&self) -> Result<(), Stop> {
        let text = self.waiting.take();
        let json = match self.json.as_ref().map(RefCell::borrow_mut).as_deref_mut() {
            Some(Json::File(file)) => file.flush().map_err(|e| Stop::Failed(Error::io("--json", e))),
            _ => Ok(()),
        };
        let written = if text.is_empty() { Ok(()) } else { terminal::out(&text).map_err(Stop::from) };
        self.closed.set(self.closed.get() || matches!(written, Err(Stop::Closed)));
        written.and(json)
    }
    /// Whether nobody reads any more.
    pub fn closed(&self) -> bool {
        self.closed.get()
    }
    /// The twin of the `Error` line.
    pub fn put_error(&self, error: &Error) -> Result<(), Stop> {
        let kind = format!("{:?}", error.kind).to_lowercase();
        self.put_json(&Record::Error { kind, message: error.message.clone() })?;
        self.flush()
    }
    fn put_json(&self, record: &impl Serialize) -> Result<(), Stop> {
        let Some(json) = &self.json else { return Ok(()) };
        let text = serde_json::to_string(record).map_err(|e| Error::io("--json", e))?;
        match &mut *json.borrow_mut() {
            Json::Stdout => {
                let _ = writeln!(self.waiting.borrow_mut(), "{text}");
            }
            Json::File(file) => writeln!(file, "{text}").map_err(|e| Error::io("--json", e))?,
        }
        Ok(())
    }
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
