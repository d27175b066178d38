//! The server of the browser's tests: files by range, as real ones do it, and as they fail. A path that begins with
//! `/fault/NAME/` gives the file behind it in the way that `Fault::parse` lists; one that begins with `/tagged/` gives it
//! with an `ETag`, answers `HEAD`, and is gone when the page says so at `/set/KEY/VALUE`; `/hub/` is a Hub. What was
//! asked for is kept.

use super::made::{self, Made};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What may be fetched, and how.
pub struct Site {
    /// Folders on disk, by the beginning of the path.
    pub folders: Vec<(&'static str, PathBuf)>,
    /// Single files.
    pub texts: BTreeMap<&'static str, Vec<u8>>,
    /// Every request for a range of weights: path and first byte.
    pub asked: Mutex<Vec<(String, u64)>>,
    /// What the page has set: `down`, `version`, `sha256`, `token`.
    set: Mutex<BTreeMap<String, String>>,
    /// Ranges whose connection was closed before its end.
    closed: Mutex<BTreeSet<(String, u64)>>,
}

/// What goes wrong with a file of weights.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The server knows no ranges.
    Whole,
    /// Each range's connection ends in its middle, the first time.
    Breaks,
    /// Each connection ends after a thousand bytes.
    Short,
    /// Nothing comes after a thousand bytes.
    Stalls,
    /// The file ends before its header says so.
    Cut,
    /// After the first request the file is another, longer one.
    Changes,
    /// A byte in the middle is another one.
    Corrupt,
}

impl Fault {
    fn parse(name: &str) -> Self {
        match name {
            "whole" => Self::Whole,
            "breaks" => Self::Breaks,
            "short" => Self::Short,
            "stalls" => Self::Stalls,
            "cut" => Self::Cut,
            "changes" => Self::Changes,
            "corrupt" => Self::Corrupt,
            _ => Self::None,
        }
    }
}

impl Site {
    pub fn new(folders: Vec<(&'static str, PathBuf)>, texts: BTreeMap<&'static str, Vec<u8>>) -> Self {
        Self { folders, texts, asked: Mutex::default(), set: Mutex::default(), closed: Mutex::default() }
    }
    fn file(&self, path: &str) -> Option<Made> {
        if let Some(text) = self.texts.get(path) {
            return Some(Made::whole(text.clone()));
        }
        if let Some(length) = path.strip_prefix("/pattern/") {
            return length.parse().ok().map(|length| Made::whole((0..length).map(pattern).collect()));
        }
        if let Some(made) = made::file(path, |path| self.read(path)) {
            return Some(made);
        }
        self.read(path).map(Made::whole)
    }
    /// A file of the folders.
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        let (prefix, folder) = self.folders.iter().find(|(prefix, _)| path.starts_with(prefix))?;
        std::fs::read(folder.join(&path[prefix.len()..])).ok()
    }
    /// What the page has set `key` to.
    fn setting(&self, key: &str) -> String {
        lock(&self.set).get(key).cloned().unwrap_or_default()
    }
}

/// Byte `i` of `/pattern/N`; `cases.js` knows it too.
fn pattern(i: usize) -> u8 {
    (i * 31 + (i >> 8) * 7) as u8
}

/// Serves `site` on a free port until the process ends. What is posted to `/result` comes out of the channel.
pub fn serve(site: Arc<Site>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}/", listener.local_addr().expect("its address"));
    let (posted, results) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (site, posted) = (site.clone(), posted.clone());
            // A thread each: browsers open connections in advance and leave them silent.
            std::thread::spawn(move || {
                // A browser that goes away is no fault of the server.
                let _ = answer(stream, &site, &posted);
            });
        }
    });
    (address, results)
}

/// One request, one answer.
fn answer(stream: TcpStream, site: &Site, posted: &Sender<String>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(&stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let (mut length, mut range, mut token) = (0, None, None);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        let header = header.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("authorization: bearer ") {
            token = Some(value.trim().to_string());
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if let Some((start, end)) = header.strip_prefix("range: bytes=").and_then(|value| value.trim().split_once('-')) {
            range = start.parse::<u64>().ok().zip(end.parse::<u64>().ok());
        }
    }
    let mut words = request.split(' ');
    match (words.next(), words.next()) {
        (Some("POST"), Some("/result")) => {
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            // The test may have ended already.
            let _ = posted.send(String::from_utf8_lossy(&body).into_owned());
            send(&stream, "200 OK", "text/plain", "", b"")
        }
        (Some("GET"), Some(path)) if path.starts_with("/set/") => {
            let (key, value) = path[5..].split_once('/').unwrap_or_default();
            lock(&site.set).insert(key.into(), value.into());
            send(&stream, "200 OK", "text/plain", "", b"")
        }
        (Some(method @ ("GET" | "HEAD")), Some(path)) => {
            let path = path.split('?').next().unwrap_or(path);
            let asked = Asked { path, range, head: method == "HEAD" };
            match path.strip_prefix("/hub/") {
                Some(rest) => hub(&stream, site, &asked, rest, token.as_deref()),
                None => give(&stream, site, &asked, path, ""),
            }
        }
        _ => send(&stream, "400 Bad Request", "text/plain", "", b""),
    }
}

/// What a request is for.
struct Asked<'a> {
    path: &'a str,
    /// First and last byte.
    range: Option<(u64, u64)>,
    head: bool,
}

/// The small model as a Hub has it, under the ids `test/demo`, `test/gated` and `test/corrupt`; `test/mirror` has no list,
/// `test/gguf` has GGUF files.
fn hub(stream: &TcpStream, site: &Site, asked: &Asked<'_>, rest: &str, token: Option<&str>) -> std::io::Result<()> {
    if site.setting("down") == "hub" {
        return Ok(());
    }
    let refuse = |status: &str, code: &str| {
        let headers = format!("X-Error-Code: {code}\r\n");
        send(stream, status, "application/json", &headers, b"{\"error\":\"refused\"}")
    };
    let rest = rest.split('?').next().unwrap_or_default();
    let (id, revision, file) = if let Some(rest) = rest.strip_prefix("api/models/") {
        let (id, revision) = rest.split_once("/revision/").unwrap_or((rest, "main"));
        (id, revision, None)
    } else {
        let Some((id, rest)) = rest.split_once("/resolve/") else { return refuse("404 Not Found", "RepoNotFound") };
        let (revision, file) = rest.split_once('/').unwrap_or((rest, ""));
        (id, revision, Some(file))
    };
    let allowed = token.is_some_and(|token| token == site.setting("token"));
    match (id, file) {
        ("test/private", _) if !allowed => return refuse("401 Unauthorized", "RepoNotFound"),
        ("test/gated", Some(_)) if !allowed => return refuse("403 Forbidden", "GatedRepo"),
        ("test/demo" | "test/gated" | "test/private" | "test/corrupt" | "test/mirror" | "test/gguf", _) => {}
        _ => return refuse("404 Not Found", "RepoNotFound"),
    }
    if !["main", "v1", COMMIT].contains(&revision) {
        return refuse("404 Not Found", "RevisionNotFound");
    }
    let Some(file) = file else {
        if id == "test/mirror" {
            return send(stream, "404 Not Found", "text/plain", "", b"no such page");
        }
        let names = if id == "test/gguf" { GGUF } else { ["config.json", "model.safetensors"] };
        let row = |name: &str| {
            let size = site.file(&format!("{}{name}", folder(id))).map_or(0, |made| made.size);
            let lfs = name.ends_with(".safetensors").then(|| serde_json::json!({ "sha256": site.setting("sha256"), "size": size }));
            serde_json::json!({ "rfilename": name, "size": size, "blobId": format!("{name}-{size}"), "lfs": lfs })
        };
        let list = serde_json::json!({ "id": id, "sha": COMMIT, "siblings": names.map(row) }).to_string();
        return send(stream, "200 OK", "application/json", "", list.as_bytes());
    };
    let fault = if id == "test/corrupt" { "/fault/corrupt" } else { "" };
    let linked = || format!("X-Linked-ETag: \"{}\"\r\n", site.setting("sha256"));
    let linked = if id == "test/mirror" && file.ends_with(".safetensors") { linked() } else { String::new() };
    let tag = format!("ETag: \"{revision}-{file}\"\r\n{linked}");
    give(stream, site, asked, &format!("{fault}{}{file}", folder(id)), &tag)
}

/// The files of `test/gguf`.
const GGUF: [&str; 2] = ["gemma.f16.gguf", "phi3.q8_0.gguf"];

/// Where the files of a Hub's model are.
fn folder(id: &str) -> &'static str {
    if id == "test/gguf" { "/gguf/" } else { "/small/" }
}

/// The commit that every revision of the Hub is.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Gives the file at `path` with `headers`.
fn give(stream: &TcpStream, site: &Site, asked: &Asked<'_>, path: &str, headers: &str) -> std::io::Result<()> {
    if let Some(path) = path.strip_prefix("/tagged") {
        if site.setting("down") == "tagged" {
            return Ok(());
        }
        let tag = format!("ETag: \"{}-{}\"\r\n", site.setting("version"), path.replace('/', "-"));
        return give(stream, site, asked, path, &tag);
    }
    let behind = path.strip_prefix("/fault/").and_then(|rest| rest.split_once('/'));
    let (fault, plain) = behind.map_or((Fault::None, path.to_string()), |(name, rest)| (Fault::parse(name), format!("/{rest}")));
    let Some(mut body) = site.file(&plain) else { return send(stream, "404 Not Found", "text/plain", "", b"no such file") };
    let weights = [".safetensors", ".gguf", ".bin"].iter().any(|end| plain.ends_with(end));
    let fault = if weights { fault } else { Fault::None };
    if fault == Fault::Cut {
        body.size = body.size * 3 / 5;
    }
    if asked.head {
        // Its length is told, and nothing comes.
        return head(stream, "200 OK", mime(&plain), headers, body.size);
    }
    let range = asked.range.filter(|_| fault != Fault::Whole);
    let Some((start, last)) = range else { return send(stream, "200 OK", mime(&plain), headers, &body.read(0..body.size)) };
    lock(&site.asked).push((asked.path.to_string(), start));
    if fault == Fault::Changes && start > 0 {
        body.size += 1;
    }
    let range: Range<u64> = start..(last + 1).min(body.size);
    if range.is_empty() {
        return send(stream, "416 Range Not Satisfiable", "text/plain", "", b"");
    }
    let headers = format!("{headers}Content-Range: bytes {}-{}/{}\r\n", range.start, range.end - 1, body.size);
    let mut part = body.read(range.clone());
    if fault == Fault::Corrupt && range.contains(&(body.size / 2)) {
        part[(body.size / 2 - range.start) as usize] ^= 1;
    }
    let sent = match fault {
        Fault::Breaks if lock(&site.closed).insert((asked.path.to_string(), last)) => part.len() / 2,
        Fault::Short => part.len().min(1000),
        Fault::Stalls if start > 0 => part.len().min(1000),
        _ => part.len(),
    };
    head(stream, "206 Partial Content", mime(&plain), &headers, part.len() as u64)?;
    let mut stream = stream;
    stream.write_all(&part[..sent])?;
    if fault == Fault::Stalls && start > 0 {
        stream.flush()?;
        // Until the browser gives up, which ends the connection.
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}

fn send(stream: &TcpStream, status: &str, mime: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    head(stream, status, mime, headers, body.len() as u64)?;
    let mut stream = stream;
    stream.write_all(body)
}

fn head(mut stream: &TcpStream, status: &str, mime: &str, headers: &str, length: u64) -> std::io::Result<()> {
    let text = format!("HTTP/1.1 {status}\r\nContent-Type: {mime}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(text.as_bytes())
}

/// What a mutex holds, whatever became of another thread.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn mime(path: &str) -> &'static str {
    match path.rsplit_once('.') {
        Some((_, "js")) => "text/javascript",
        Some((_, "wasm")) => "application/wasm",
        Some((_, "json")) => "application/json",
        Some((_, "css")) => "text/css",
        Some((_, "svg")) => "image/svg+xml",
        Some(_) => "application/octet-stream",
        None if path.starts_with("/pattern/") => "application/octet-stream",
        None => "text/html",
    }
}
