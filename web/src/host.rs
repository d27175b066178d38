//! The JavaScript side as Rust sees it: files that are read in ranges, a queue of jobs, clocks; errors both ways.

use bytes::Bytes;
use doppler::formats::ByteSource;
use doppler::formats::sharded::Sharded;
use doppler::inference::chat::Clock;
use doppler::{Error, Result};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::js_sys::{self, Function, Uint8Array};

#[wasm_bindgen]
extern "C" {
    /// The weight files of a model, by number.
    #[derive(Clone)]
    pub type Files;
    /// A promise of the bytes from `start` to `end`, as a `Uint8Array`.
    #[wasm_bindgen(method, catch)]
    async fn read(this: &Files, file: usize, start: f64, end: f64) -> std::result::Result<JsValue, JsValue>;
    /// Ranges (start, end, start, …, ascending) that are going to be read of `file`, so that they can be on their way.
    #[wasm_bindgen(method)]
    pub fn expect(this: &Files, file: usize, ranges: Vec<f64>);
    /// `done` of `total` bytes of weights are on the device, those of `tensor` last.
    #[wasm_bindgen(method)]
    pub fn progress(this: &Files, done: f64, total: f64, tensor: &str);
    /// A record of loading, as a JSON array.
    #[wasm_bindgen(method)]
    pub fn records(this: &Files, json: &str);

    /// What a session is to do, one after the other.
    pub type Jobs;
    /// The session is there.
    #[wasm_bindgen(method)]
    pub fn opened(this: &Jobs);
    /// A promise of the next job; null when there are to be no more.
    #[wasm_bindgen(method, catch)]
    pub async fn next(this: &Jobs) -> std::result::Result<JsValue, JsValue>;

    /// One generation, and who is told of it.
    pub type Job;
    /// What is wanted, as JSON.
    #[wasm_bindgen(method, getter)]
    pub fn request(this: &Job) -> String;
    /// Whether it is to end here.
    #[wasm_bindgen(method, getter)]
    pub fn stopped(this: &Job) -> bool;
    /// `done` of `total` tokens of the prompt are read.
    #[wasm_bindgen(method)]
    pub fn prefill(this: &Job, done: usize, total: usize);
    /// A piece of text, and the token that completed it.
    #[wasm_bindgen(method)]
    pub fn part(this: &Job, text: &str, id: Option<u32>, step: Option<usize>);
    /// Records, as a JSON array.
    #[wasm_bindgen(method)]
    pub fn records(this: &Job, json: &str);
    /// The end: what was generated, as JSON, and the dump and the report if they were wanted.
    #[wasm_bindgen(method)]
    pub fn finished(this: &Job, json: &str, dump: Option<Vec<u8>>, report: Option<String>);
    /// The end, by an error.
    #[wasm_bindgen(method)]
    pub fn failed(this: &Job, kind: &str, message: &str, dump: Option<Vec<u8>>, report: Option<String>);

    /// Long work that is no generation, and who is told of it.
    pub type Task;
    /// Whether it is to end here.
    #[wasm_bindgen(method, getter)]
    pub fn stopped(this: &Task) -> bool;
    /// `done` of `total` parts of `what` are done.
    #[wasm_bindgen(method)]
    pub fn progress(this: &Task, what: &str, done: f64, total: f64);
    /// A promise that settles when messages that waited have come in.
    #[wasm_bindgen(method, catch)]
    pub async fn pause(this: &Task) -> std::result::Result<JsValue, JsValue>;

    /// Milliseconds since some moment, for differences.
    #[wasm_bindgen(js_namespace = performance)]
    pub fn now() -> f64;
    #[wasm_bindgen(js_namespace = Date, js_name = now)]
    fn unix_milliseconds() -> f64;
}

/// What a chat template may show as the time: UTC.
pub fn clock() -> Clock {
    Clock { unix_seconds: (unix_milliseconds() / 1e3) as i64, utc_offset: 0 }
}

thread_local! {
    static PANICKED: RefCell<Option<Function>> = const { RefCell::new(None) };
}

/// Calls `listener` with the message of a panic, after which nothing of this module may be used any more. Without it,
/// promises under way would never settle.
#[wasm_bindgen]
pub fn on_panic(listener: Function) {
    PANICKED.with(|slot| slot.replace(Some(listener)));
    std::panic::set_hook(Box::new(|info| {
        let tell = |slot: &RefCell<Option<Function>>| {
            let listener = slot.try_borrow().ok().and_then(|listener| listener.clone());
            listener.map(|listener| listener.call1(&JsValue::NULL, &JsValue::from_str(&info.to_string())))
        };
        // A listener that throws changes nothing: what follows is a trap.
        let _ = PANICKED.try_with(tell);
    }));
}

/// An `Error` of JavaScript whose name is the kind, with what it is about.
pub fn thrown(error: &Error) -> JsValue {
    let thrown = js_sys::Error::new(&error.message);
    thrown.set_name(&error.kind.name());
    let about = error.about.as_ref().and_then(|about| js_sys::JSON::parse(&serde_json::to_string(about).ok()?).ok());
    if let Some(about) = about {
        // Setting a property of a fresh object cannot fail.
        let _ = js_sys::Reflect::set(&thrown, &"about".into(), &about);
    }
    thrown.into()
}

/// A weight file.
#[derive(Clone)]
pub struct HostFile {
    pub files: Files,
    pub number: usize,
    pub name: String,
    pub len: u64,
}

impl ByteSource for HostFile {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> u64 {
        self.len
    }
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        if range.start > range.end || range.end > self.len {
            let (start, end, len) = (range.start, range.end, self.len);
            return Err(Error::format(&self.name, format!("expected bytes {start} to {end}, but it has {len}")));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        // Sizes of files are far below 2^53.
        let read = self.files.read(self.number, range.start as f64, range.end as f64).await;
        let bytes = read.map_err(|e| Error::new(doppler::Kind::Io, message(&e)))?;
        match bytes.dyn_into::<Uint8Array>() {
            Ok(bytes) if u64::from(bytes.length()) == range.end - range.start => Ok(bytes.to_vec().into()),
            _ => Err(Error::io(&self.name, "the bytes that came are not those that were asked for")),
        }
    }
}

/// Where weights are read: in a file, or in the shards of a manifest as one.
#[derive(Clone)]
pub enum WeightSource {
    File(HostFile),
    Shards(Rc<Sharded<HostFile>>),
}

impl From<Sharded<HostFile>> for WeightSource {
    fn from(shards: Sharded<HostFile>) -> Self {
        Self::Shards(shards.into())
    }
}

impl WeightSource {
    /// The numbers of the files that have the bytes of `range`, and which of them.
    ///
    /// # Errors
    /// `Kind::Format` for bytes that there are not.
    pub fn parts(&self, range: &Range<u64>) -> Result<Vec<(usize, Range<u64>)>> {
        match self {
            Self::File(file) => Ok(vec![(file.number, range.clone())]),
            Self::Shards(shards) => shards.parts(range),
        }
    }
}

impl ByteSource for WeightSource {
    fn name(&self) -> &str {
        match self {
            Self::File(file) => file.name(),
            Self::Shards(shards) => shards.name(),
        }
    }
    fn len(&self) -> u64 {
        match self {
            Self::File(file) => file.len(),
            Self::Shards(shards) => shards.len(),
        }
    }
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        match self {
            Self::File(file) => file.read(range).await,
            Self::Shards(shards) => shards.read(range).await,
        }
    }
}

/// What a JavaScript exception says.
fn message(thrown: &JsValue) -> String {
    match thrown.dyn_ref::<js_sys::Error>() {
        Some(error) => error.message().into(),
        None => thrown.as_string().unwrap_or_else(|| format!("{thrown:?}")),
    }
}
