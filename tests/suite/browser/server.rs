//! The server of the browser's tests: files by range, as real ones do it, and as they fail. A path that begins with
//! `/fault/NAME/` gives the file behind it in the way that `Fault::parse` lists. What was asked for is kept.

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
            _ => Self::None,
        }
    }
}

impl Site {
    pub fn new(folders: Vec<(&'static str, PathBuf)>, texts: BTreeMap<&'static str, Vec<u8>>) -> Self {
        Self { folders, texts, asked: Mutex::default(), closed: Mutex::default() }
    }
    fn file(&self, path: &str) -> Option<Vec<u8>> {
        if let Some(text) = self.texts.get(path) {
            return Some(text.clone());
        }
        if let Some(length) = path.strip_prefix("/pattern/") {
            return length.parse().ok().map(|length| (0..length).map(pattern).collect());
        }
        let (prefix, folder) = self.folders.iter().find(|(prefix, _)| path.starts_with(prefix))?;
        std::fs::read(folder.join(&path[prefix.len()..])).ok()
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
    let (mut length, mut range) = (0, None);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        let header = header.to_ascii_lowercase();
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
        (Some("GET"), Some(path)) => give(&stream, site, path.split('?').next().unwrap_or(path), range),
        _ => send(&stream, "400 Bad Request", "text/plain", "", b""),
    }
}

fn give(stream: &TcpStream, site: &Site, path: &str, range: Option<(u64, u64)>) -> std::io::Result<()> {
    let behind = path.strip_prefix("/fault/").and_then(|rest| rest.split_once('/'));
    let (fault, plain) = behind.map_or((Fault::None, path.to_string()), |(name, rest)| (Fault::parse(name), format!("/{rest}")));
    let Some(mut body) = site.file(&plain) else { return send(stream, "404 Not Found", "text/plain", "", b"no such file") };
    let fault = if plain.ends_with(".safetensors") { fault } else { Fault::None };
    if fault == Fault::Cut {
        body.truncate(body.len() * 3 / 5);
    }
    let range = range.filter(|_| fault != Fault::Whole);
    let Some((start, last)) = range else { return send(stream, "200 OK", mime(&plain), "", &body) };
    lock(&site.asked).push((path.to_string(), start));
    if fault == Fault::Changes && start > 0 {
        body.push(0);
    }
    let range: Range<usize> = start as usize..(last as usize + 1).min(body.len());
    if range.is_empty() {
        return send(stream, "416 Range Not Satisfiable", "text/plain", "", b"");
    }
    let headers = format!("Content-Range: bytes {}-{}/{}\r\n", range.start, range.end - 1, body.len());
    let part = &body[range];
    let sent = match fault {
        Fault::Breaks if lock(&site.closed).insert((path.to_string(), last)) => part.len() / 2,
        Fault::Short => part.len().min(1000),
        Fault::Stalls if start > 0 => part.len().min(1000),
        _ => part.len(),
    };
    head(stream, "206 Partial Content", mime(&plain), &headers, part.len())?;
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
    head(stream, status, mime, headers, body.len())?;
    let mut stream = stream;
    stream.write_all(body)
}

fn head(mut stream: &TcpStream, status: &str, mime: &str, headers: &str, length: usize) -> std::io::Result<()> {
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
