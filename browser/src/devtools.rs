//! What is needed of the DevTools protocol: calls and their answers over a pair of pipes, each message a JSON text with
//! a NUL after it. One connection serves the browser and all its tabs, each of which is a session.
//! <https://chromedevtools.github.io/devtools-protocol/>

use crate::Result;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer may take. Calls that wait for a page poll.
const ANSWER: Duration = Duration::from_secs(120);
/// How often a page is asked whether something came true.
const LOOK: Duration = Duration::from_millis(25);
/// How many messages of a page's console are kept.
const KEPT: usize = 100;

/// The connection to a browser, shared by its tabs.
pub type Shared = Arc<Mutex<DevTools>>;

/// The session of the browser itself; a tab's is the id that the browser gave it.
pub const BROWSER: &str = "";

/// A connection.
#[derive(Debug)]
pub struct DevTools {
    pipe: ChildStdin,
    /// What the browser writes; disconnected when it ended.
    messages: Receiver<Value>,
    calls: u64,
    tabs: HashMap<String, Tab>,
}

/// What is known of a tab.
#[derive(Debug, Default)]
struct Tab {
    /// Console messages and errors of the page, oldest first.
    console: Vec<String>,
    /// Why it answers no more.
    ended: Option<&'static str>,
}

/// The connection, whatever became of another thread that used it.
pub fn lock(devtools: &Shared) -> MutexGuard<'_, DevTools> {
    devtools.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DevTools {
    /// A connection over the pipes of a browser.
    pub fn new(pipe: ChildStdin, answers: ChildStdout) -> Self {
        let (heard, messages) = channel();
        std::thread::spawn(move || {
            let (mut answers, mut message) = (BufReader::new(answers), Vec::new());
            while answers.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                if message.last() == Some(&0) {
                    message.pop();
                }
                // A message cut off by the browser's end is no message; a receiver that is gone needs none.
                let Ok(value) = serde_json::from_slice(&message) else { break };
                if heard.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        Self { pipe, messages, calls: 0, tabs: HashMap::new() }
    }
    /// The result of a method in `session`.
    ///
    /// # Errors
    /// What the browser answers; a tab or browser that ended; no answer in time.
    pub fn call(&mut self, session: &str, method: &str, parameters: Value) -> Result<Value> {
        self.call_within(ANSWER, session, method, parameters)
    }
    /// As [`Self::call`], with another limit of time.
    ///
    /// # Errors
    /// Those of [`Self::call`].
    pub fn call_within(&mut self, within: Duration, session: &str, method: &str, parameters: Value) -> Result<Value> {
        self.calls += 1;
        let (id, since) = (self.calls, Instant::now());
        let failed = |e: &dyn std::fmt::Display| format!("DevTools, {method}: {e}");
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if session != BROWSER {
            message["sessionId"] = session.into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.pipe.write_all(&bytes).and_then(|()| self.pipe.flush()).map_err(|e| failed(&e))?;
        loop {
            let left = within.saturating_sub(since.elapsed());
            let mut answer = self.messages.recv_timeout(left).map_err(|e| match e {
                RecvTimeoutError::Timeout => failed(&format_args!("no answer within {} s", within.as_secs())),
                RecvTimeoutError::Disconnected => failed(&"the browser ended"),
            })?;
            if answer["id"] == id {
                return match answer["error"]["message"].as_str() {
                    Some(error) => Err(failed(&error)),
                    None => Ok(answer["result"].take()),
                };
            }
            self.event(&answer);
            if let Some(why) = self.tabs.get(session).and_then(|tab| tab.ended) {
                return Err(failed(&why));
            }
        }
    }
    /// What the page of `session` wrote to its console, and its errors, oldest first, as far as they are known: they
    /// arrive with answers.
    pub fn console(&self, session: &str) -> Vec<String> {
        self.tabs.get(session).map(|tab| tab.console.clone()).unwrap_or_default()
    }
    fn event(&mut self, event: &Value) {
        let about = &event["params"];
        // The browser tells itself of a tab that it closed; all else is told in the tab's session.
        let detached = about["sessionId"].as_str().filter(|_| event["method"] == "Target.detachedFromTarget");
        let Some(session) = detached.or(event["sessionId"].as_str()) else { return };
        let tab = self.tabs.entry(session.to_string()).or_default();
        match event["method"].as_str() {
            Some("Target.detachedFromTarget") => tab.ended = tab.ended.or(Some("the tab was closed")),
            Some("Inspector.targetCrashed") => tab.ended = Some("the tab crashed"),
            Some("Runtime.exceptionThrown") => tab.keep(thrown(&about["exceptionDetails"])),
            Some("Runtime.consoleAPICalled") => {
                let words = about["args"].as_array().map(Vec::as_slice).unwrap_or_default();
                let word = |arg: &Value| arg["value"].as_str().map_or_else(|| arg["description"].to_string(), str::to_string);
                tab.keep(words.iter().map(word).collect::<Vec<_>>().join(" "));
            }
            Some("Log.entryAdded") => tab.keep(about["entry"]["text"].as_str().unwrap_or_default().to_string()),
            _ => {}
        }
    }
}

impl Tab {
    fn keep(&mut self, text: String) {
        if self.console.len() == KEPT {
            self.console.remove(0);
        }
        self.console.push(text);
    }
}

/// What an exception says.
fn thrown(details: &Value) -> String {
    let text = details["exception"]["description"].as_str().or(details["exception"]["value"].as_str());
    text.or(details["text"].as_str()).unwrap_or("an exception").to_string()
}

/// A tab.
#[derive(Debug)]
pub struct Page {
    devtools: Shared,
    session: String,
}

impl Page {
    /// A new tab of the browser behind `devtools`, with nothing in it.
    pub(crate) fn new(devtools: Shared) -> Result<Self> {
        let mut browser = lock(&devtools);
        let target = browser.call(BROWSER, "Target.createTarget", json!({ "url": "about:blank" }))?;
        let about = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call(BROWSER, "Target.attachToTarget", about)?;
        let session = attached["sessionId"].as_str().ok_or("the browser made no tab")?.to_string();
        for domain in ["Page", "Runtime", "Log", "Inspector", "DOM"] {
            browser.call(&session, &format!("{domain}.enable"), json!({}))?;
        }
        drop(browser);
        Ok(Self { devtools, session })
    }
    /// Any method of the protocol.
    ///
    /// # Errors
    /// What the browser says; a tab that crashed or was closed.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        lock(&self.devtools).call(&self.session, method, parameters)
    }
    /// Goes to `address`, without waiting for what is there.
    ///
    /// # Errors
    /// When nothing answers there.
    pub fn navigate(&mut self, address: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({ "url": address }))?;
        match answer["errorText"].as_str() {
            Some(error) => Err(format!("{address}: {error}")),
            None => Ok(()),
        }
    }
    /// The value of an expression, awaited if it is a promise. Values that JSON lacks are null.
    ///
    /// # Errors
    /// What was thrown.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true });
        let mut answer = self.call("Runtime.evaluate", parameters)?;
        match answer.get("exceptionDetails") {
            Some(details) => Err(thrown(details)),
            None => Ok(answer["result"]["value"].take()),
        }
    }
    /// Waits until an expression is true (as JavaScript has it), and returns its value.
    ///
    /// # Errors
    /// What was thrown; when it is not true in time, with what the page wrote to its console.
    pub fn wait_for(&mut self, expression: &str, within: Duration) -> Result<Value> {
        let since = Instant::now();
        loop {
            let value = self.evaluate(expression)?;
            let holds = match &value {
                Value::Null | Value::Bool(false) => false,
                Value::Number(number) => number.as_f64() != Some(0.0),
                Value::String(text) => !text.is_empty(),
                _ => true,
            };
            if holds {
                return Ok(value);
            }
            if since.elapsed() > within {
                let console = self.console().join("\n");
                return Err(format!("`{expression}` is not true after {} s; the page wrote:\n{console}", within.as_secs()));
            }
            std::thread::sleep(LOOK);
        }
    }
    /// Chooses files in the `<input type=file>` that `selector` finds.
    ///
    /// # Errors
    /// When there is none.
    pub fn set_files(&mut self, selector: &str, paths: &[&Path]) -> Result<()> {
        let document = self.call("DOM.getDocument", json!({}))?;
        let found = self.call("DOM.querySelector", json!({ "nodeId": document["root"]["nodeId"], "selector": selector }))?;
        if found["nodeId"].as_u64().unwrap_or(0) == 0 {
            return Err(format!("the page has no `{selector}`"));
        }
        self.call("DOM.setFileInputFiles", json!({ "files": paths, "nodeId": found["nodeId"] }))?;
        Ok(())
    }
    /// Shows the page as on a screen of this size, in CSS pixels; as on a phone, or not; in the dark, or not.
    ///
    /// # Errors
    /// What the browser says.
    pub fn screen(&mut self, width: u32, height: u32, phone: bool, dark: bool) -> Result<()> {
        let scale = if phone { 2 } else { 1 };
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone });
        self.call("Emulation.setDeviceMetricsOverride", size)?;
        let scheme = if dark { "dark" } else { "light" };
        self.call("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] }))?;
        Ok(())
    }
    /// What the page wrote to its console, and its errors, oldest first, as far as they are known: they arrive with
    /// answers.
    pub fn console(&self) -> Vec<String> {
        lock(&self.devtools).console(&self.session)
    }
}
