//! A Hub on this machine: lists, files, redirects to a second port for large ones, ETags, ranges, and what goes wrong.

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// The only commit.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that came.
#[derive(Debug, Clone)]
pub struct Request {
    /// To the port of large files.
    pub stored: bool,
    pub path: String,
    pub token: Option<String>,
    pub range: Option<String>,
}

/// What the server has, how it behaves, and what it was asked.
#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Names that the list has in addition.
    pub listed: Vec<String>,
    /// So many answers with large files end after so many bytes.
    pub breaks: (usize, usize),
    /// Large files come with one bit changed.
    pub damaged: bool,
    /// Ranges are not known.
    pub whole: bool,
    /// Every request to the Hub itself is refused with this status and code.
    pub refusal: Option<(u16, &'static str)>,
    /// So many requests to the Hub itself are too many, with this further header.
    pub busy: (usize, &'static str),
    pub requests: Vec<Request>,
}

/// A running server; it ends with the test's process.
pub struct Hub {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    /// Serves one repository, whatever its name.
    pub fn serve(files: BTreeMap<String, Vec<u8>>) -> Self {
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let stored = listen(state.clone(), None);
        let hub = listen(state.clone(), Some(stored));
        Self { address: format!("http://{hub}"), state }
    }
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
    /// What was asked since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }
    /// Of them, the names of files, sorted.
    pub fn names(&self) -> Vec<String> {
        let start = format!("/resolve/{COMMIT}/");
        let name = |r: Request| r.path.split_once(&start).map(|(_, name)| name.to_string());
        let mut names: Vec<String> = self.requests().into_iter().filter(|r| !r.stored).filter_map(name).collect();
        names.sort();
        names
    }
}

/// The files of a folder.
pub fn folder(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.path().is_file() && entry.file_name() != "golden.safetensors");
    files.map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap())).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

pub fn git(bytes: &[u8]) -> String {
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the Hub stores a file apart.
fn is_large(name: &str) -> bool {
    [".safetensors", ".gguf", ".bin"].iter().any(|end| name.ends_with(end))
}

/// A port of the Hub, which redirects to `stored`, or that port itself.
fn listen(state: Arc<Mutex<State>>, stored: Option<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = state.clone();
            // A client that goes away needs no answer.
            std::thread::spawn(move || answer(stream, &state, stored));
        }
    });
    address
}

fn answer(stream: TcpStream, state: &Mutex<State>, stored: Option<SocketAddr>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_string());
    }
    let header = |name: &str| {
        let found = lines.iter().skip(1).find_map(|line| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)));
        found.map(|(_, value)| value.trim().to_string())
    };
    let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else { return Ok(()) };
    let mut state = state.lock().unwrap();
    let range = header("range");
    state.requests.push(Request { stored: stored.is_none(), path: path.to_string(), token: header("authorization"), range: range.clone() });
    let (status, headers, body) = match stored {
        Some(stored) => of_hub(&mut state, path, stored),
        None => of_storage(&state, path),
    };
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let from = from.filter(|from| status == 200 && !state.whole && *from < body.len());
    let (status, part) = from.map_or((status, &body[..]), |from| (206, &body[from..]));
    let mut text = format!("HTTP/1.1 {status} Some\r\nConnection: close\r\nContent-Length: {}\r\n{headers}", part.len());
    if let Some(from) = from {
        text += &format!("Content-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
    }
    let mut sent = part;
    if stored.is_none() && state.breaks.0 > 0 {
        state.breaks.0 -= 1;
        sent = &part[..state.breaks.1.min(part.len())];
    }
    drop(state);
    (&stream).write_all(text.as_bytes())?;
    (&stream).write_all(b"\r\n")?;
    (&stream).write_all(sent)
}

/// What the Hub itself answers: status, headers, body.
fn of_hub(state: &mut State, path: &str, stored: SocketAddr) -> (u16, String, Vec<u8>) {
    if state.busy.0 > 0 {
        state.busy.0 -= 1;
        return (429, format!("{}\r\n", state.busy.1), Vec::new());
    }
    if let Some((status, code)) = state.refusal {
        return (status, format!("X-Error-Code: {code}\r\n"), Vec::new());
    }
    if path.starts_with("/api/models/") {
        let row = |name: &String| {
            let bytes = state.files.get(name).cloned().unwrap_or_default();
            let lfs = is_large(name).then(|| json!({ "sha256": sha256(&bytes), "size": bytes.len(), "pointerSize": 134 }));
            let mut row = json!({ "rfilename": name, "size": bytes.len(), "blobId": git(&bytes) });
            lfs.into_iter().for_each(|lfs| row["lfs"] = lfs);
            row
        };
        let rows: Vec<Value> = state.files.keys().chain(&state.listed).map(row).collect();
        let list = json!({ "id": "org/tiny", "sha": COMMIT, "siblings": rows });
        return (200, "Content-Type: application/json\r\n".into(), list.to_string().into_bytes());
    }
    let name = path.split_once(&format!("/resolve/{COMMIT}/")).map(|(_, name)| name).unwrap_or_default();
    let Some(bytes) = state.files.get(name) else { return (404, "X-Error-Code: EntryNotFound\r\n".into(), Vec::new()) };
    let commit = format!("X-Repo-Commit: {COMMIT}\r\n");
    if !is_large(name) {
        // As the Hub does by now: another path of its own first.
        return match path.starts_with("/cache/") {
            true => (200, format!("{commit}ETag: W/\"{}\"\r\n", git(bytes)), bytes.clone()),
            false => (307, format!("{commit}ETag: \"{}\"\r\nLocation: /cache{path}\r\n", git(bytes)), Vec::new()),
        };
    }
    let (hash, size) = (sha256(bytes), bytes.len());
    let headers = format!("{commit}X-Linked-ETag: \"{hash}\"\r\nX-Linked-Size: {size}\r\nLocation: http://{stored}/{name}?signed=1\r\n");
    (302, headers, Vec::new())
}

/// What the port of large files answers.
fn of_storage(state: &State, path: &str) -> (u16, String, Vec<u8>) {
    let name = path.trim_start_matches('/').split('?').next().unwrap_or_default();
    let Some(bytes) = state.files.get(name) else { return (404, String::new(), Vec::new()) };
    let mut bytes = bytes.clone();
    if state.damaged {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    (200, "ETag: \"of-the-storage\"\r\n".into(), bytes)
}
