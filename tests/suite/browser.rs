//! The engine in a browser: a page in headless Chromium runs golden models through wasm and the browser's own WebGPU, on
//! its software adapter, and must give the ids of transformers and of the native engine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::golden::{Golden, goldens};
use crate::support::adapter;
use doppler::exec::Storage;
use doppler::gpu::{GpuExecutor, GpuOptions};

/// Models and storages that the page runs: Gemma 2 has most of what models have, Phi 3 fused projections.
const MODELS: &[&str] = &["gemma2", "phi3"];
const STORAGES: &[(&str, Storage)] = &[("f32", Storage::F32), ("f16", Storage::F16)];
/// From the browser's start to the last id; a few seconds are usual.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Without an adapter to choose from, and quiet: no sync, no updates, no first-run questions.
const SWITCHES: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-logging=stderr",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-default-browser-check",
    "--no-first-run",
    "--password-store=basic",
    "--use-mock-keychain",
];

#[test]
fn browsers_give_the_native_ids() {
    let browser = match xtask("browser") {
        Ok(browser) => browser,
        Err(why) => return skip(&why),
    };
    let folder = match xtask("web") {
        Ok(folder) => folder,
        Err(why) if why.contains("target may not be installed") => return skip("the wasm32 target is missing: `cargo xtask setup`"),
        Err(why) => panic!("{why}"),
    };
    let models: Vec<Golden> = goldens().into_iter().filter(|g| MODELS.contains(&g.name.as_str())).collect();
    assert_eq!(models.len(), MODELS.len());
    let jobs: Vec<(&Golden, &str, Storage)> = models.iter().flat_map(|g| STORAGES.iter().map(move |(n, s)| (g, *n, *s))).collect();
    let (address, results) = serve(files(&folder, &jobs));
    let results = run_browser(&browser, &address, &results);
    assert_eq!(results.len(), jobs.len(), "{results:?}");
    for ((golden, name, storage), result) in jobs.into_iter().zip(results) {
        let what = format!("{} in {name} on {}", golden.name, result["device"]);
        let ids: Vec<u32> = serde_json::from_value(result["ids"].clone()).unwrap_or_else(|e| panic!("{what}: {e}: {result}"));
        assert_eq!(ids, golden.greedy(&golden.oracle::<f32>(storage), 64), "{what}, and the oracle");
        if storage == Storage::F32 {
            assert_eq!(ids, golden.generated, "{what}, and transformers");
        }
        if let Some(gpu) = adapter(GpuOptions::default()) {
            let executor = golden.filled(GpuExecutor::new(gpu, golden.plan.clone(), storage).expect("an executor"));
            assert_eq!(ids, golden.greedy(&executor, 64), "{what}, and the native GPU");
        }
    }
}

/// Says that the test is skipped; `DOPPLER_REQUIRE_BROWSER=1` makes that a failure.
fn skip(why: &str) {
    assert!(std::env::var("DOPPLER_REQUIRE_BROWSER").as_deref() != Ok("1"), "a browser is required: {why}");
    crate::support::skipped(&format!("browsers_give_the_native_ids: {why}"));
}

/// The path that `cargo xtask WHAT` prints, or why there is none.
fn xtask(what: &str) -> Result<PathBuf, String> {
    let output = Command::new(env!("CARGO")).args(["xtask", what]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.map_err(|e| format!("cargo xtask {what}: {e}"))?;
    match output.status.success() {
        true => Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())),
        false => Err(format!("cargo xtask {what}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// What the page may fetch, by path.
fn files(folder: &Path, jobs: &[(&Golden, &str, Storage)]) -> BTreeMap<String, Vec<u8>> {
    let read = |path: &Path| std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let list = jobs.iter().map(|(golden, storage, _)| {
        serde_json::json!({ "model": golden.name, "prompt": golden.prompt, "maxTokens": golden.generated.len(), "storage": storage })
    });
    let mut files = BTreeMap::from([
        ("/".to_string(), include_bytes!("browser.html").to_vec()),
        ("/jobs.json".to_string(), serde_json::Value::from_iter(list).to_string().into_bytes()),
    ]);
    for name in ["doppler_web.js", "doppler_web_bg.wasm"] {
        files.insert(format!("/{name}"), read(&folder.join(name)));
    }
    for (golden, ..) in jobs {
        for name in ["config.json", "model.safetensors"] {
            files.insert(format!("/{}/{name}", golden.name), read(&golden.folder.join(name)));
        }
    }
    files
}

/// Serves `files` on a free port until the process ends; what is posted comes out of the channel.
fn serve(files: BTreeMap<String, Vec<u8>>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}/", listener.local_addr().expect("its address"));
    let (posted, results) = channel();
    let files = Arc::new(files);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (files, posted) = (files.clone(), posted.clone());
            // A thread each: browsers open connections in advance and leave them silent.
            std::thread::spawn(move || {
                let _ = answer(stream, &files, &posted);
            });
        }
    });
    (address, results)
}

/// One request, one answer.
fn answer(stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, posted: &Sender<String>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(&stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut words = request.split(' ');
    let (status, mime, body): (_, _, &[u8]) = match (words.next(), words.next()) {
        (Some("POST"), Some("/result")) => {
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            // The test may have ended already.
            let _ = posted.send(String::from_utf8_lossy(&body).into_owned());
            ("200 OK", "text/plain", b"")
        }
        (Some("GET"), Some(path)) => match files.get(path) {
            Some(body) => ("200 OK", mime(path), body),
            None => ("404 Not Found", "text/plain", b"no such file"),
        },
        _ => ("400 Bad Request", "text/plain", b""),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {mime}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    (&stream).write_all(head.as_bytes())?;
    (&stream).write_all(body)
}

fn mime(path: &str) -> &'static str {
    match path.rsplit_once('.') {
        Some((_, "js")) => "text/javascript",
        Some((_, "wasm")) => "application/wasm",
        Some((_, "json")) => "application/json",
        Some(_) => "application/octet-stream",
        None => "text/html",
    }
}

/// A browser and its profile, both gone when this is dropped.
struct Browser {
    child: Child,
    profile: PathBuf,
}

impl Browser {
    fn start(program: &Path, address: &str) -> Self {
        let profile = std::env::temp_dir().join(format!("doppler-browser-{}", std::process::id()));
        std::fs::create_dir_all(&profile).expect("a folder for the browser's profile");
        let log = std::fs::File::create(profile.join("stderr.log")).expect("a file for the browser's messages");
        let mut command = Command::new(program);
        command.args(SWITCHES).arg(format!("--user-data-dir={}", profile.display())).arg(address);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // A group of its own, so that its processes end with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        Self { child, profile }
    }
    /// The last lines that it wrote.
    fn messages(&self) -> String {
        let log = std::fs::read(self.profile.join("stderr.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        #[cfg(unix)]
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.child.id())]).stderr(Stdio::null()).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Its processes may still be writing for a moment.
        for _ in 0..20 {
            if std::fs::remove_dir_all(&self.profile).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Opens `address` and waits for what the page posts.
fn run_browser(program: &Path, address: &str, results: &Receiver<String>) -> Vec<serde_json::Value> {
    let mut browser = Browser::start(program, address);
    let start = Instant::now();
    let text = loop {
        match results.recv_timeout(Duration::from_millis(200)) {
            Ok(text) => break text,
            Err(RecvTimeoutError::Disconnected) => panic!("the server ended"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Ok(Some(status)) = browser.child.try_wait() {
            panic!("{} ended with {status}:\n{}", program.display(), browser.messages());
        }
        assert!(start.elapsed() < TIMEOUT, "no result after {TIMEOUT:?}; the browser said:\n{}", browser.messages());
    };
    let posted: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    match posted["results"].as_array() {
        Some(results) => results.clone(),
        None => panic!("the page says: {}\nthe browser said:\n{}", posted["error"], browser.messages()),
    }
}
