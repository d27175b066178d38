//! A tab that runs the web package's `remote.js`: commands to it and their answers as JSON, calls on its executor as
//! bytes.

use super::bundle;
use super::server::{Conversation, Files, Heard, Server};
use crate::terminal::tell;
use axum::extract::ws::Message;
use doppler::config::runtime::Inference;
use doppler::formats::{ByteSource, Local};
use doppler::gpu::Caps;
use doppler::loader::{Checkpoint, LoadReport, Matched, NonFinite, Progress};
use doppler::plan::Plan;
use doppler::remote::{Link, number};
use doppler::{Error, Kind, Result};
use doppler_browser::{Adapter, Browser, Page};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// How often the browser is looked at while nothing comes.
const LOOK: Duration = Duration::from_millis(500);
/// How long the package may take until it talks.
const START: Duration = Duration::from_secs(120);

/// A tab with an open device.
pub struct Tab {
    talk: Talk,
    caps: Caps,
    version: String,
}

/// The conversation with a tab; its browser and its server end with it.
struct Talk {
    commands: Cell<u64>,
    conversation: Conversation,
    /// Answers that nobody waited for yet.
    answers: RefCell<HashMap<u32, Vec<u8>>>,
    page: RefCell<Page>,
    browser: RefCell<Browser>,
    server: Server,
}

impl Tab {
    /// Starts a browser and opens its device as `inference` says, with replacement `kernels`.
    ///
    /// # Errors
    /// `Kind::Device` when no browser is found, it does not come up, or it has no device; those of the bundle.
    pub fn open(inference: &Inference, kernels: Vec<(String, String)>) -> Result<Self> {
        doppler_browser::find().map_err(|e| Error::device(format!("--surface browser: {e}")))?;
        let package = bundle::find(bundle::PACKAGE)?;
        let secret = doppler_browser::secret().map_err(Error::device)?;
        let (server, conversation) = Server::tab(package, &secret)?;
        let address = format!("http://127.0.0.1:{}/{secret}/page", server.port);
        let mut browser = Browser::start(Adapter::present()).map_err(Error::device)?;
        if let Some(why) = browser.unsandboxed() {
            tell(&format!("note: the browser runs without its sandbox: {why}"));
        }
        let version = browser.version().map_err(Error::device)?;
        let page = RefCell::new(browser.open(&address).map_err(Error::device)?);
        let (commands, answers, browser) = (Cell::default(), RefCell::default(), RefCell::new(browser));
        let talk = Talk { commands, conversation, answers, page, browser, server };
        while !matches!(talk.hear(Some(Instant::now() + START))?, Heard::Opened) {}
        let caps = talk.command("open", json!({ "runtime": patch(inference), "kernels": kernels }), &mut |_| Ok(()))?;
        let caps = serde_json::from_value(caps).map_err(|e| Error::device(format!("the browser's device: {e}")))?;
        Ok(Self { talk, caps, version })
    }
    /// What its device offers.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }
    /// Device and browser, in words.
    pub fn describe(&self) -> String {
        format!("{} in {}", self.caps.describe(), self.version)
    }
    /// Has the tab read the weights in `checkpoint` of the model that `about` describes. `plan` is what must come of it.
    ///
    /// # Errors
    /// What the engine in the tab reports; `Kind::Plan` when it is of another version.
    pub fn load(
        &self,
        plan: &Plan,
        checkpoint: &Checkpoint<Local>,
        matched: &Matched,
        mut about: Value,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<LoadReport> {
        let mut files = Files::new();
        let mut weights = Vec::new();
        for (number, source) in checkpoint.sources.iter().flat_map(Local::files).enumerate() {
            // Names of its own: those on disk may not be fit for addresses.
            let address = format!("weights-{number}");
            weights.push(json!({ "name": source.name(), "size": source.len(), "address": address }));
            files.insert(address, source.clone());
        }
        self.talk.server.give(files);
        about["weights"] = weights.into();
        let total = matched.bytes();
        // The tensor that is being read; it is complete when the next one comes.
        let mut last: Option<(String, u64)> = None;
        let mut tell = |name: &str, done: u64, complete: bool| {
            let weight = matched.weights.iter().find(|weight| checkpoint.index.entries()[weight.tensor].name == name);
            if let Some(weight) = weight {
                let (format, shape) = (weight.format, &weight.shape);
                progress(Progress { bytes_done: done, bytes_total: total, tensor: name, format, shape, complete });
            }
        };
        let report = self.talk.command("load", about, &mut |told| {
            let (Some(name), Some(done)) = (told["tensor"].as_str(), told["loaded"].as_f64()) else { return Ok(()) };
            if let Some((before, bytes)) = last.take_if(|(before, _)| before != name) {
                tell(&before, bytes, true);
            }
            tell(name, done as u64, false);
            last = Some((name.to_string(), done as u64));
            Ok(())
        })?;
        if let Some((before, bytes)) = last {
            tell(&before, bytes, true);
        }
        self.talk.server.give(Files::new());
        if report["plan"].as_str() != Some(&*plan.fingerprint()) {
            return Err(Error::plan(
                "the files for browsers are of another version than this program: build both again (`cargo xtask web`)",
            ));
        }
        let found: Vec<NonFinite> =
            serde_json::from_value(report["nonFinite"].clone()).map_err(|e| Error::format("the tab's report", e))?;
        Ok(LoadReport { bytes: total, non_finite: found })
    }
    /// Has the tab do a command with `about`; what it says on the way goes to `told`.
    ///
    /// # Errors
    /// What the tab reports; those of `told`; `Kind::Device` when it is gone.
    pub fn command(&self, name: &str, about: Value, told: &mut dyn FnMut(&Value) -> Result<()>) -> Result<Value> {
        self.talk.command(name, about, told)
    }
}

impl Talk {
    fn command(&self, name: &str, about: Value, told: &mut dyn FnMut(&Value) -> Result<()>) -> Result<Value> {
        self.commands.set(self.commands.get() + 1);
        let id = self.commands.get();
        self.say(Message::text(json!({ "id": id, "command": name, "about": about }).to_string()))?;
        loop {
            let text = match self.hear(None)? {
                Heard::Text(text) => text,
                Heard::Bytes(bytes) => {
                    self.keep(bytes)?;
                    continue;
                }
                Heard::Opened => continue,
                Heard::Closed => return Err(self.gone()),
            };
            let mut answer: Value = serde_json::from_str(&text).map_err(|e| Error::format("the tab's answer", e))?;
            if answer["id"] != id {
                continue;
            }
            if let Some(error) = answer.get("error") {
                let kind = serde_json::from_value(error["kind"].clone()).unwrap_or(Kind::Device);
                return Err(Error::new(kind, error["message"].as_str().unwrap_or("the tab says no more")));
            }
            match answer.get("told") {
                Some(what) => told(what)?,
                None => return Ok(answer["value"].take()),
            }
        }
    }
    fn say(&self, message: Message) -> Result<()> {
        self.conversation.say.send(message).map_err(|_| self.gone())
    }
    /// The next message, which must come `before` then. Looks after the browser meanwhile.
    fn hear(&self, before: Option<Instant>) -> Result<Heard> {
        loop {
            match self.conversation.hear.recv_timeout(LOOK) {
                Ok(heard) => return Ok(heard),
                Err(RecvTimeoutError::Disconnected) => return Err(self.gone()),
                Err(RecvTimeoutError::Timeout) => self.look()?,
            }
            if before.is_some_and(|before| Instant::now() > before) {
                let console = self.page.borrow().console().join("\n");
                return Err(Error::device(format!("the browser's tab does not answer; its console:\n{console}")));
            }
        }
    }
    /// Whether the browser and its page are well.
    fn look(&self) -> Result<()> {
        if !self.browser.borrow_mut().runs() {
            return Err(self.gone());
        }
        let mut page = self.page.borrow_mut();
        match page.evaluate("globalThis.failed ?? null") {
            Ok(Value::Null) => Ok(()),
            Ok(failed) => Err(Error::device(format!("the browser's tab failed: {}", failed.as_str().unwrap_or_default()))),
            Err(why) => Err(Error::device(format!("the browser's tab failed: {why}"))),
        }
    }
    /// The answer to call `wanted`.
    fn answer(&self, wanted: u32) -> Result<Vec<u8>> {
        loop {
            if let Some(answer) = self.answers.borrow_mut().remove(&wanted) {
                return Ok(answer);
            }
            match self.hear(None)? {
                Heard::Bytes(bytes) => self.keep(bytes)?,
                Heard::Closed => return Err(self.gone()),
                Heard::Text(_) | Heard::Opened => {}
            }
        }
    }
    fn keep(&self, bytes: Vec<u8>) -> Result<()> {
        self.answers.borrow_mut().insert(number(&bytes)?, bytes);
        Ok(())
    }
    /// The error of a tab that is no more.
    fn gone(&self) -> Error {
        let said = self.browser.borrow().messages();
        let last = said.lines().rev().find(|line| line.contains("FATAL") || line.contains("Out of memory")).unwrap_or_default();
        let hint = "a crash, or out of memory: try a smaller model, or a shorter --context";
        Error::device(format!("the browser's tab ended ({hint}) {last}").trim_end().to_string())
    }
}

impl Link for Tab {
    fn send(&self, call: Vec<u8>) -> Result<()> {
        self.talk.say(Message::binary(call))
    }
    fn wait(&self, wanted: u32) -> Result<Vec<u8>> {
        self.talk.answer(wanted)
    }
}

/// The patch of the runtime config that says what `inference` says.
pub fn patch(inference: &Inference) -> Value {
    json!({ "runtime": { "inference": inference } })
}
