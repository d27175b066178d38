//! The server that browsers are given their files by: folders, a model's files by range, and a socket to a tab. It
//! listens on this machine only unless another address is asked for. A tab's path is a secret.

use super::bundle::Bundle;
use super::{packed, pieces};
use crate::http::{self, Names};
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path as UrlPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use doppler::formats::{ByteSource, Local};
use doppler::{Error, Result};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc as later;
use tower_http::set_header::SetResponseHeaderLayer;

/// Connections at a time; further ones wait.
const CONNECTIONS: usize = 64;

/// A model's files, by name. Those of this machine are read when they are asked for.
pub type Files = BTreeMap<String, Local>;

/// What a tab says.
pub enum Heard {
    Text(String),
    Bytes(Vec<u8>),
    /// It is there, or gone.
    Opened,
    Closed,
}

/// A running server. It ends when this is dropped.
pub struct Server {
    pub port: u16,
    files: Arc<Mutex<Files>>,
    _running: http::Running,
}

/// Both ends of the conversation with a tab.
pub struct Conversation {
    pub say: later::UnboundedSender<Message>,
    pub hear: mpsc::Receiver<Heard>,
}

/// What handlers share.
struct Shared {
    files: Arc<Mutex<Files>>,
    /// Taken by the tab that comes.
    talk: Mutex<Option<(later::UnboundedReceiver<Message>, mpsc::Sender<Heard>)>>,
}

/// The page of a tab: everything happens in a worker.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>Doppler</title><script type="module">
const worker = new Worker("./package/remote.js", { type: "module", name: "doppler" });
worker.onerror = (event) => { globalThis.failed = `${event.message ?? "the worker could not be started"}`; };
</script>"#;

impl Server {
    /// Serves `page` and, under `model/` and under `model/` with any name of a folder, `files`, at `host` and `port` (0 is any free one).
    ///
    /// # Errors
    /// `Kind::Io` when the address cannot be had.
    pub fn site(page: Bundle, files: Files, host: IpAddr, port: u16) -> Result<Self> {
        let files = Arc::new(Mutex::new(files));
        let shared = Arc::new(Shared { files: files.clone(), talk: Mutex::default() });
        let model = Router::new().route("/model/{name}", get(file)).route("/model/{folder}/{name}", get(named));
        let app = model.with_state(shared).fallback_service(packed::serve(page));
        // What is built anew is to be seen on reload.
        let fresh = SetResponseHeaderLayer::if_not_present(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Self::start(app.layer(fresh), files, host, port)
    }
    /// Serves a tab that runs `package` under `secret`, and the way to talk to it.
    ///
    /// # Errors
    /// `Kind::Io` when there is no port.
    pub fn tab(package: Bundle, secret: &str) -> Result<(Self, Conversation)> {
        let files: Arc<Mutex<Files>> = Arc::default();
        let (say, to_say) = later::unbounded_channel();
        let (heard, hear) = mpsc::channel();
        let shared = Arc::new(Shared { files: files.clone(), talk: Mutex::new(Some((to_say, heard))) });
        let inner = Router::new()
            .route("/page", get(|| async { Html(PAGE) }))
            .route("/socket", get(socket))
            .route("/model/{name}", get(file))
            .with_state(shared)
            .nest_service("/package", packed::serve(package));
        let app = Router::new().nest(&format!("/{secret}"), inner);
        Ok((Self::start(app, files, Ipv4Addr::LOCALHOST.into(), 0)?, Conversation { say, hear }))
    }
    /// Gives these files under `model/` from now on.
    pub fn give(&self, files: Files) {
        *self.files.lock().unwrap_or_else(PoisonError::into_inner) = files;
    }
    fn start(app: Router, files: Arc<Mutex<Files>>, host: IpAddr, port: u16) -> Result<Self> {
        let (listener, port) = http::listen(host, port)?;
        let names = Names { host, port, others: Vec::new() };
        let app = app.layer(from_fn_with_state(Arc::new(names), known_names_only));
        Ok(Self { port, files, _running: http::serve(listener, app, CONNECTIONS, CONNECTIONS)? })
    }
}

/// Refuses requests to another name and from pages of another origin, and those that would change something.
async fn known_names_only(State(names): State<Arc<Names>>, request: Request, next: Next) -> Response {
    if !names.has_host(request.headers()) || !names.is_of_ours(request.headers()) {
        let message = format!("This server answers to http://localhost:{} only, and to no page of another origin.\n", names.port);
        return (StatusCode::FORBIDDEN, message).into_response();
    }
    if !matches!(request.method().as_str(), "GET" | "HEAD") {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    next.run(request).await
}

/// A file of the model, or a range of it.
async fn file(State(shared): State<Arc<Shared>>, UrlPath(name): UrlPath<String>, headers: HeaderMap) -> Response {
    let found = shared.files.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
    let Some(source) = found else { return StatusCode::NOT_FOUND.into_response() };
    give(source, if name.ends_with(".json") { "application/json" } else { "application/octet-stream" }, &headers).await
}

/// Likewise, in a folder that has the model's name.
async fn named(state: State<Arc<Shared>>, UrlPath((_, name)): UrlPath<(String, String)>, headers: HeaderMap) -> Response {
    file(state, UrlPath(name), headers).await
}

/// What `source` has, of this kind, or the range of it that the request's headers name.
pub async fn give(source: Local, kind: &'static str, headers: &HeaderMap) -> Response {
    let basics = [(header::CONTENT_TYPE, kind), (header::ACCEPT_RANGES, "bytes")];
    let length = source.len();
    let Some(range) = headers.get(header::RANGE) else {
        return pieces::body(source, 0..length).await.map_or_else(unread, |body| (basics, body).into_response());
    };
    let Some((start, end)) = range.to_str().ok().and_then(|text| part(text, length)) else {
        return (StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, format!("bytes */{length}"))]).into_response();
    };
    let about = [(header::CONTENT_RANGE, format!("bytes {start}-{}/{length}", end - 1))];
    pieces::body(source, start..end).await.map_or_else(unread, |body| (StatusCode::PARTIAL_CONTENT, basics, about, body).into_response())
}

fn unread(error: Error) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

/// Start and end of the one range that a header names.
fn part(text: &str, length: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = match (first.trim(), last.trim()) {
        ("", count) => (length.saturating_sub(count.parse().ok()?), length),
        (first, "") => (first.parse().ok()?, length),
        (first, last) => (first.parse().ok()?, last.parse::<u64>().ok()?.saturating_add(1).min(length)),
    };
    (start < end).then_some((start, end))
}

/// The first tab that comes is the one.
async fn socket(State(shared): State<Arc<Shared>>, upgrade: WebSocketUpgrade) -> Response {
    let taken = shared.talk.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((say, heard)) = taken else { return StatusCode::CONFLICT.into_response() };
    upgrade.max_message_size(usize::MAX).max_frame_size(usize::MAX).on_upgrade(move |socket| talk(socket, say, heard))
}

async fn talk(mut socket: WebSocket, mut say: later::UnboundedReceiver<Message>, heard: mpsc::Sender<Heard>) {
    // Who no longer listens has ended, and the socket with it.
    let _ = heard.send(Heard::Opened);
    loop {
        tokio::select! {
            message = say.recv() => match message {
                Some(message) => if socket.send(message).await.is_err() { break },
                None => break,
            },
            message = socket.recv() => {
                let told = match message {
                    Some(Ok(Message::Text(text))) => Heard::Text(text.to_string()),
                    Some(Ok(Message::Binary(bytes))) => Heard::Bytes(bytes.to_vec()),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                };
                if heard.send(told).is_err() {
                    break;
                }
            }
        }
    }
    let _ = heard.send(Heard::Closed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_within_the_file() {
        assert_eq!(part("bytes=0-3", 10), Some((0, 4)));
        assert_eq!(part("bytes=4-", 10), Some((4, 10)));
        assert_eq!(part("bytes=-3", 10), Some((7, 10)));
        assert_eq!(part("bytes=8-99", 10), Some((8, 10)));
        for none in ["bytes=10-", "bytes=5-4", "bytes=a-b", "bytes=-0", "lines=0-1", "bytes=0-18446744073709551615x"] {
            assert_eq!(part(none, 10), None, "{none}");
        }
        assert_eq!(part("bytes=3-18446744073709551615", 10), Some((3, 10)));
    }
}
