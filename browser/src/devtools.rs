//! What is needed of the DevTools protocol: calls and their answers over a WebSocket, one connection per tab.
//! <https://chromedevtools.github.io/devtools-protocol/>

use crate::Result;
use serde_json::{Value, json};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

/// How long an answer may take. Calls that wait for a page poll.
const ANSWER: Duration = Duration::from_secs(120);
/// How often a page is asked whether something came true.
const LOOK: Duration = Duration::from_millis(25);
/// What a page wrote to its console and is kept, in messages.
const KEPT: usize = 100;

/// A connection.
#[derive(Debug)]
pub struct DevTools {
    socket: WebSocket<TcpStream>,
    calls: u64,
    /// Console messages and errors of the page, oldest first.
    console: Vec<String>,
    crashed: bool,
}

impl DevTools {
    pub fn connect(port: u16, path: &str) -> Result<Self> {
        let failed = |e: &dyn std::fmt::Display| format!("DevTools do not answer: {e}");
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| failed(&e))?;
        stream.set_read_timeout(Some(ANSWER)).and_then(|()| stream.set_nodelay(true)).map_err(|e| failed(&e))?;
        // Values of a page may be large.
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let address = format!("ws://127.0.0.1:{port}{path}");
        let (socket, _) = tungstenite::client::client_with_config(address, stream, Some(config)).map_err(|e| failed(&e))?;
        Ok(Self { socket, calls: 0, console: Vec::new(), crashed: false })
    }
    /// The result of a method.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.calls += 1;
        let id = self.calls;
        let failed = |e: tungstenite::Error| format!("DevTools, {method}: {e}");
        let message = json!({ "id": id, "method": method, "params": parameters }).to_string();
        self.socket.send(Message::text(message)).map_err(failed)?;
        loop {
            let text = match self.socket.read().map_err(failed)? {
                Message::Text(text) => text,
                Message::Close(_) => return Err(format!("DevTools, {method}: the tab was closed")),
                _ => continue,
            };
            let mut answer: Value = serde_json::from_str(&text).map_err(|e| format!("DevTools, {method}: {e}"))?;
            if answer["id"] == id {
                return match answer["error"]["message"].as_str() {
                    Some(error) => Err(format!("DevTools, {method}: {error}")),
                    None => Ok(answer["result"].take()),
                };
            }
            self.event(&answer);
            if self.crashed {
                return Err("the tab crashed".into());
            }
        }
    }
    fn event(&mut self, event: &Value) {
        let about = &event["params"];
        match event["method"].as_str() {
            Some("Inspector.targetCrashed") => self.crashed = true,
            Some("Runtime.exceptionThrown") => self.keep(thrown(&about["exceptionDetails"])),
            Some("Runtime.consoleAPICalled") => {
                let words = about["args"].as_array().map(Vec::as_slice).unwrap_or_default();
                let word = |arg: &Value| arg["value"].as_str().map_or_else(|| arg["description"].to_string(), str::to_string);
                self.keep(words.iter().map(word).collect::<Vec<_>>().join(" "));
            }
            Some("Log.entryAdded") => self.keep(about["entry"]["text"].as_str().unwrap_or_default().to_string()),
            _ => {}
        }
    }
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
    devtools: DevTools,
}

impl Page {
    pub(crate) fn new(mut devtools: DevTools) -> Result<Self> {
        for domain in ["Page", "Runtime", "Log", "Inspector", "DOM"] {
            devtools.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(Self { devtools })
    }
    /// Any method of the protocol.
    ///
    /// # Errors
    /// What the browser says; a tab that crashed or was closed.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.devtools.call(method, parameters)
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
    pub fn console(&self) -> &[String] {
        &self.devtools.console
    }
}
