//! What others on this machine can reach of `--surface browser`: no port of the browser, of ours only the tab's server, which
//! answers to its own name; not the profile; and nothing is left when `doppler` is killed.
#![cfg(target_os = "linux")]

use crate::resident::{alive, until};
use crate::support::{command, data};
use crate::surface::{ask, browsers, there_is_a_browser};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A conversation in a browser's tab that waits for its next message.
fn talk() -> Child {
    let (model, arguments) = (data("gemma2"), ["--surface", "browser", "--max-tokens", "2", "--dtype", "f32", "-i"]);
    let mut talk = command(&[&["run", "-m", &model][..], &arguments].concat());
    let mut talk = talk.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    talk.stdin.as_mut().unwrap().write_all(b"Is the table right?\n").unwrap();
    // When the first byte of the answer is there, all runs.
    talk.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    talk
}

/// `parent` and all that it started, and what those started.
fn family(parent: u32) -> Vec<u32> {
    let mut all = vec![parent];
    let mut next = 0;
    while let Some(process) = all.get(next).copied() {
        all.extend(browsers(process));
        next += 1;
    }
    all
}

/// Tables and addresses, `tcp ADDRESS:PORT` in hexadecimal digits, at which a process listens (state 0A).
fn open_ports(process: u32) -> BTreeSet<String> {
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let sockets: BTreeSet<String> = files.filter_map(|file| Some(std::fs::read_link(file.path()).ok()?.display().to_string())).collect();
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{process}/net/{table}")) else { continue };
        for line in text.lines().skip(1) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            if columns[3] == "0A" && sockets.contains(&format!("socket:[{}]", columns[9])) {
                found.insert(format!("{table} {}", columns[1]));
            }
        }
    }
    found
}

/// The folder that one of these processes was started with as its profile.
fn profile(processes: &[u32]) -> PathBuf {
    let folder = processes.iter().find_map(|process| {
        let line = std::fs::read_to_string(format!("/proc/{process}/cmdline")).ok()?;
        line.split('\0').find_map(|word| Some(PathBuf::from(word.strip_prefix("--user-data-dir=")?)))
    });
    folder.expect("a browser has a profile")
}

#[test]
fn nothing_of_a_browser_can_be_reached_or_stays() {
    if !there_is_a_browser() {
        return;
    }
    let mut doppler = talk();
    let all = family(doppler.id());
    let started = &all[1..];
    assert!(started.len() > 3, "a browser has several processes: {started:?}");

    let open: Vec<String> = started.iter().flat_map(|process| open_ports(*process)).collect();
    assert!(open.is_empty(), "the browser listens: {open:?}");
    let ours = open_ports(doppler.id());
    let port = match ours.iter().collect::<Vec<_>>()[..] {
        [one] => one.strip_prefix("tcp 0100007F:").map(|port| u16::from_str_radix(port, 16).unwrap()),
        _ => None,
    };
    let port = port.unwrap_or_else(|| panic!("one port, of 127.0.0.1: {ours:?}")).to_string();
    let here = format!("Host: 127.0.0.1:{port}\r\n");
    let status = |path: &str, headers: &str| ask(&port, &format!("GET {path}"), headers).0.split(' ').nth(1).map(str::to_string);
    for path in ["/", "/page", "/socket", "/model/weights-0"] {
        assert_eq!(status(path, &here).as_deref(), Some("404"), "{path} without the secret");
        for foreign in [format!("Host: rebound.example:{port}\r\n"), format!("{here}Origin: https://elsewhere.example\r\n")] {
            assert_eq!(status(path, &foreign).as_deref(), Some("403"), "{path} {foreign}");
        }
    }

    let profile = profile(started);
    assert_eq!(std::fs::metadata(&profile).unwrap().mode() & 0o777, 0o700);
    no_other_user_reads(&profile);

    // Without a word, as when the system is out of memory.
    doppler.kill().unwrap();
    doppler.wait().unwrap();
    for process in started {
        until("the browser ends", || !alive(*process));
    }
    until("the profile goes", || !profile.exists());
}

/// What is in `folder` can be listed by this user and not by `nobody`, whom only root can be.
fn no_other_user_reads(folder: &Path) {
    let list = |words: &[&str]| Command::new(words[0]).args(&words[1..]).arg(folder).stderr(Stdio::null()).output();
    assert!(list(&["ls"]).unwrap().status.success());
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls"];
    let can_be = Command::new(nobody[0]).args(&nobody[1..]).arg("/").output().is_ok_and(|output| output.status.success());
    match can_be {
        true => assert!(!list(&nobody).unwrap().status.success(), "another user lists {}", folder.display()),
        // The folder's mode was looked at in any case, so this is no skipped test.
        false => eprintln!("not tried as another user: that takes root and setpriv"),
    }
}
