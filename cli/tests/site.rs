//! Where the page comes from: from a checkout, in which it is built only when it is older than its sources, by a child that
//! goes with us; from inside an installed binary, which needs neither checkout nor Cargo.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say what they skip")]
#![cfg(unix)]

use doppler_browser::site;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A new folder outside the checkout.
fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("doppler-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A folder with a copy of the binary, a target folder, and a `cargo` that notes how it is called.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let folder = scratch(name);
        // A copy is a busy file for as long as a process that another test starts meanwhile inherits what writes it.
        let (binary, here) = (env!("CARGO_BIN_EXE_doppler"), folder.join("doppler"));
        std::fs::hard_link(binary, &here).or_else(|_| std::fs::copy(binary, &here).map(drop)).unwrap();
        std::fs::create_dir_all(folder.join("bin")).unwrap();
        Self(folder)
    }
    /// What `cargo xtask web` does from now on.
    fn cargo(&self, script: &str) {
        let path = self.0.join("bin/cargo");
        let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && exit\necho \"$@\" >> '{}/calls'\n{script}\n", self.0.display());
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    fn calls(&self) -> String {
        std::fs::read_to_string(self.0.join("calls")).unwrap_or_default()
    }
    /// `doppler web` in this folder, on any free port.
    fn web(&self) -> Command {
        let mut command = Command::new(self.0.join("doppler"));
        let path = format!("{}:/usr/bin:/bin", self.0.join("bin").display());
        command.args(["web", "--port", "0"]).current_dir(&self.0).env("PATH", path).env_remove("DOPPLER_WEB");
        command.env("CARGO_TARGET_DIR", self.0.join("target")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a server until `seen` has seen it at its port; what it wrote.
fn serve(command: &mut Command, seen: impl FnOnce(&str)) -> Output {
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    match line.trim().strip_prefix("Serving http://127.0.0.1:").and_then(|rest| rest.strip_suffix('/')) {
        Some(port) => seen(port),
        None => panic!("{line}{:?}", child.wait_with_output().unwrap()),
    }
    signal(&child, "TERM");
    child.wait_with_output().unwrap()
}

fn signal(child: &Child, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
}

/// The answer to a GET: its head in small letters, its body.
fn get(port: &str, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    (String::from_utf8_lossy(&answer[..end]).to_lowercase(), answer[end + 4..].to_vec())
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_page_is_built_only_when_it_is_older_than_its_sources() {
    let place = Place::new("site-fresh");
    let made = place.0.join("made");
    for name in ["site/index.html", "site/doppler/doppler_web_bg.wasm.gz", "web/index.js", "web/doppler_web_bg.wasm"] {
        let path = made.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "as made").unwrap();
    }
    site::note(&made, Some(&site::sources(root()))).unwrap();
    place.cargo(&format!("cp -r '{0}/made' '{0}/target'; echo '{0}/target/web'", place.0.display()));
    let start = || {
        let output = serve(&mut place.web(), |port| assert_eq!(get(port, "/", "").1, b"as made"));
        (String::from_utf8(output.stderr).unwrap().contains("building the page (cargo xtask web)"), place.calls().lines().count())
    };
    assert_eq!(start(), (true, 1), "nothing is there");
    assert_eq!(start(), (false, 1), "all is as new as its sources");
    // One source has another time than that of the list.
    let list = site::sources(root());
    assert!(list.contains("web/demo/index.html") && list.contains("src/lib.rs"), "{list}");
    site::note(&place.0.join("target"), Some(&list.replacen("src/lib.rs ", "src/lib.rs 1", 1))).unwrap();
    std::fs::remove_dir_all(place.0.join("target/site")).unwrap();
    place.cargo(&format!("cp -r '{0}/made/.' '{0}/target'; echo '{0}/target/web'", place.0.display()));
    assert_eq!(start(), (true, 2), "a source is another");
    assert_eq!(place.calls(), "xtask web\nxtask web\n");
}

#[test]
fn what_keeps_the_page_from_being_built_is_told() {
    let place = Place::new("site-none");
    let refused = |command: &mut Command| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    place.cargo("echo error: no space left >&2; exit 1");
    let said = refused(&mut place.web());
    assert!(said.contains("`cargo xtask web` failed") && said.contains("no space left"), "{said}");
    let said = refused(place.web().env("PATH", "/nowhere"));
    assert!(said.contains("there is no cargo") && said.contains("`cargo xtask install`") && said.contains("$DOPPLER_WEB"), "{said}");
    let said = refused(place.web().env("DOPPLER_WEB", "/nowhere"));
    assert!(said.contains("$DOPPLER_WEB has no folder site in it"), "{said}");
}

#[test]
fn a_build_ends_with_who_waits_for_it() {
    for (name, code) in [("TERM", Some(143)), ("INT", Some(130)), ("KILL", None)] {
        let place = Place::new(&format!("site-{name}"));
        // As Cargo does, it has children.
        place.cargo(&format!("sleep 600 & echo $! $$ > '{0}/new'; mv '{0}/new' '{0}/processes'; wait", place.0.display()));
        let mut child = place.web().spawn().unwrap();
        until("it builds", || place.0.join("processes").exists());
        let processes = std::fs::read_to_string(place.0.join("processes")).unwrap();
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), code);
        for process in processes.split_whitespace() {
            let about = Path::new("/proc").join(process).join("stat");
            // One that ended may wait for its parent to ask how.
            let ended =
                || std::fs::read_to_string(&about).map_or(true, |stat| stat.rsplit_once(") ").is_some_and(|(_, s)| s.starts_with('Z')));
            until(&format!("after SIG{name} {process} ends"), ended);
        }
    }
}

#[test]
fn the_exam_is_taken_anywhere() {
    let place = Place::new("site-exam");
    let questions = std::fs::read_to_string(root().join("models/demo/exam.jsonl")).unwrap();
    let few: Vec<&str> = questions.lines().step_by(160).collect();
    std::fs::write(place.0.join("few.jsonl"), few.join("\n")).unwrap();
    let exam = |arguments: &[&str]| {
        let mut command = Command::new(place.0.join("doppler"));
        let output = command.arg("exam").args(arguments).current_dir(&place.0).env("DOPPLER_RESIDENT", "off").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said, errors) = exam(&["--questions", "few.jsonl", "--device", "cpu"]);
    assert!(code == Some(0) && said.contains(" of 3 "), "{said}{errors}");
    // The whole text of the built-in model.
    assert!(said.contains("perplexity   "), "{said}");
}

/// Builds and installs as `cargo xtask install` does.
#[test]
#[ignore = "a release build, which takes minutes: cargo test -p doppler-cli --test site -- --ignored"]
fn an_installed_binary_has_the_page_inside() {
    let has_target = Command::new("rustc").args(["--print", "target-libdir", "--target", "wasm32-unknown-unknown"]).output();
    if !has_target.is_ok_and(|o| Path::new(String::from_utf8_lossy(&o.stdout).trim()).is_dir()) {
        eprintln!("skipped: Rust's target wasm32-unknown-unknown is missing");
        return;
    }
    let home = scratch("site-installed");
    let mut install = Command::new(env!("CARGO"));
    install.args(["xtask", "install", "--quiet", "--no-track", "--root"]).arg(&home).current_dir(root());
    let output = install.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Moved, with no Cargo to be found.
    let moved = scratch("site-moved").join("doppler");
    std::fs::rename(home.join("bin/doppler"), &moved).unwrap();
    let mut command = Command::new(&moved);
    command.args(["web", "--port", "0"]).current_dir(&home).env("PATH", "/nowhere").env_remove("DOPPLER_WEB");
    command.env("CARGO_TARGET_DIR", &home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = serve(&mut command, |port| {
        assert_eq!(get(port, "/", "").1, std::fs::read(root().join("web/demo/index.html")).unwrap());
        let (head, small) = get(port, "/doppler/doppler_web_bg.wasm", "Accept-Encoding: gzip\r\n");
        assert!(head.contains("application/wasm") && head.contains("content-encoding: gzip"), "{head}");
        let (_, whole) = get(port, "/doppler/doppler_web_bg.wasm", "");
        assert!(whole.starts_with(b"\0asm") && small.len() * 2 < whole.len(), "{} of {}", small.len(), whole.len());
        let (head, part) = get(port, "/models/demo/model.safetensors", "Range: bytes=0-7\r\n");
        assert!(head.starts_with("http/1.1 206") && head.contains("etag: ") && part.len() == 8, "{head}");
        assert!(get(port, "/doppler/THIRD-PARTY.txt", "").1.starts_with(b"Software of others"));
    });
    assert!(!String::from_utf8_lossy(&output.stderr).contains("building"), "{:?}", output.stderr);
    let _ = (std::fs::remove_dir_all(&home), std::fs::remove_dir_all(moved.parent().unwrap()));
}
