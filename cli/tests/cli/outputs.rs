//! Files that commands write: whole or not at all, with the rights of the user who asked, refused before the run where
//! they cannot be written; and what reaches a terminal.

use crate::support::{Ran, command, copy, data, doppler, finish, scratch, text};
use std::path::Path;

fn debug(more: &[&str]) -> Ran {
    doppler(&[&["debug", "--device", "cpu", "--max-tokens", "2"], more].concat())
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_the_run() {
    let folder = scratch("refused_outputs");
    let (missing, here) = (folder.join("no/such/file"), folder.join("folder"));
    std::fs::create_dir(&here).unwrap();
    let dump = folder.join("d.safetensors");
    debug(&["--dump", text(&dump)]).fine();
    for option in ["--json", "--dump", "--html", "--bundle", "--perfetto", "--record-profile"] {
        for path in [&missing, &here] {
            let ran = debug(&[option, text(path)]).refused(&[text(path), option]);
            assert_eq!(ran.stdout, "", "{option}");
        }
    }
    debug(&[&format!("--break={}", missing.display())]).refused(&[text(&missing)]);
    for line in [
        &["inspect", "--json", text(&missing)][..],
        &["stages", "--json", text(&missing)],
        &["devices", "--json", text(&missing)],
        &["exam", "--device", "cpu", "--json", text(&missing)],
        &["bench", "--synthetic", "demo", "--json", text(&missing)],
        &["compare", text(&dump), text(&dump), "--json", text(&missing)],
        &["compare", text(&dump), text(&dump), "--html", text(&missing)],
    ] {
        let ran = doppler(line).refused(&[text(&missing)]);
        assert_eq!(ran.stdout, "", "{line:?}");
    }
}

#[test]
fn two_outputs_on_one_file_are_refused() {
    let folder = scratch("one_path");
    let path = folder.join("out");
    let spelled = format!("{}/./out", folder.display());
    debug(&["--dump", text(&path), "--html", text(&path)]).refused(&["--dump", "--html", "file of its own"]);
    debug(&["--json", text(&path), "--bundle", &spelled]).refused(&["--json", "--bundle"]);
    assert!(!path.exists());
    std::fs::write(&path, "old").unwrap();
    #[cfg(unix)]
    {
        let (link, hard) = (folder.join("link"), folder.join("hard"));
        std::os::unix::fs::symlink("out", &link).unwrap();
        std::fs::hard_link(&path, &hard).unwrap();
        for other in [&link, &hard] {
            debug(&["--json", text(&path), "--html", text(other)]).refused(&["--json", "--html"]);
        }
        debug(&["--json", "/dev/null", "--html", "/dev/null"]).fine();
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"old", "what is refused is not touched");
}

#[cfg(unix)]
#[test]
fn what_is_replaced_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    let folder = scratch("kept_mode");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for option in ["--dump", "--html", "--bundle", "--json", "--record-profile"] {
        let path = folder.join(option);
        if option != "--record-profile" {
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        debug(&[option, text(&path)]).fine();
        if option == "--record-profile" {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            debug(&[option, text(&path)]).fine();
        }
        assert_eq!(mode(&path), 0o600, "{option}");
        assert!(std::fs::metadata(&path).unwrap().len() > 0, "{option}");
    }
}

/// Two runs that record at the same time lose nothing of each other.
#[test]
fn profiles_of_runs_at_once_are_joined() {
    let folder = scratch("profiles");
    let (at_once, in_turn) = (folder.join("at_once"), folder.join("in_turn"));
    let line = |i: usize, path: &Path| {
        let ids = format!("{},{}", i * 100, i * 7 + 3);
        let args = ["debug", "--device", "cpu", "--token-ids", &ids, "--max-tokens", "3", "--record-profile", text(path)];
        let mut command = command(&args);
        command.stdout(std::process::Stdio::null());
        command
    };
    let children: Vec<_> = (1..=4).map(|i| line(i, &at_once).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().code().is_some_and(|code| code < 2));
    }
    for i in 1..=4 {
        assert!(line(i, &in_turn).status().unwrap().code().is_some_and(|code| code < 2));
    }
    assert_eq!(std::fs::read_to_string(at_once).unwrap(), std::fs::read_to_string(in_turn).unwrap());
}

/// On a full disk the old file stays, and nothing else does.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_no_old_file() {
    let folder = scratch("full_disk");
    let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs", text(&folder)]).output();
    if !mount.is_ok_and(|done| done.status.success()) {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let old = folder.join("old.json");
    std::fs::write(&old, "{\"good\":1}").unwrap();
    // As much as fits.
    let _ = std::fs::write(folder.join("fill"), vec![0; 1 << 20]);
    let ran = doppler(&["inspect", &data("gemma2"), "--json", text(&old)]);
    let kept = std::fs::read_to_string(&old).unwrap();
    let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let unmounted = std::process::Command::new("umount").arg(&folder).status().unwrap();
    assert!(unmounted.success());
    let ran = ran.refused(&["old.json"]);
    assert_eq!((kept.as_str(), names.len()), ("{\"good\":1}", 2), "{names:?} {}", ran.stderr);
}

/// Names in files of strangers do not command the terminal.
#[test]
fn what_a_terminal_obeys_is_shown() {
    let evil = "\u{1b}]0;X\u{7}\u{9b}2J\u{202e}\u{7f}";
    let shown = "\\u001b]0;X\\u0007\\u009b2J\\u202e\\u007f";
    let clean = |ran: &Ran| {
        for said in [&ran.stdout, &ran.stderr] {
            assert!(!said.contains(|c: char| doppler::inference::tokenizer::is_obeyed(c) && c != '\n' && c != '\t'), "{said:?}");
        }
    };
    // A key of config.json.
    let folder = copy("llama2", "obeyed");
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config[evil] = true.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let ran = doppler(&["debug", "-m", text(&folder), "--device", "cpu", "--token-ids", "2"]);
    clean(&ran);
    assert!(ran.refused(&["not known"]).stderr.contains(shown));
    let allowed = ["--allow-unknown-config", "--max-tokens", "2"];
    let ran = doppler(&[&["debug", "-m", text(&folder), "--device", "cpu", "--token-ids", "2"], &allowed[..]].concat()).fine();
    clean(&ran);
    assert!(ran.stdout.contains(shown), "{}", ran.stdout);
    // JSON on stdout says the same, in what JSON has for it.
    let ran = doppler(&["inspect", text(&folder), "--allow-unknown-config", "--json", "-"]).fine();
    clean(&ran);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["ignoredKeys"][0], evil);
    // A template's own error, a name on the command line.
    let folder = copy("gemma2", "obeyed_template");
    std::fs::write(folder.join("chat_template.jinja"), format!("{{{{ raise_exception('{evil}') }}}}")).unwrap();
    let ran = doppler(&["run", "-m", text(&folder), "--device", "cpu", "hi", "--chat"]);
    clean(&ran);
    assert!(ran.refused(&[]).stderr.contains("]0;X"));
    clean(&doppler(&["inspect", evil]));
}

#[cfg(unix)]
#[test]
fn descriptors_and_pipes_are_written_as_they_are() {
    let folder = scratch("direct");
    let out = folder.join("out");
    let binary = env!("CARGO_BIN_EXE_doppler");
    let shell = |line: &str| {
        let mut shell = std::process::Command::new("sh");
        finish(shell.args(["-c", line]).env("DOPPLER_RESIDENT", "off").stdin(std::process::Stdio::null()))
    };
    shell(&format!("echo first > {0}; {binary} stages --json /dev/stdout >> {0}", out.display())).fine();
    let said = std::fs::read_to_string(&out).unwrap();
    assert!(said.starts_with("first\n{") && said.contains("stageTable"), "{said}");
    shell(&format!("{binary} stages --json /dev/fd/3 3> {} >/dev/null", out.display())).fine();
    serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(&out).unwrap()).unwrap();
    let fifo = folder.join("fifo");
    let ran = shell(&format!("mkfifo {0} && {{ {binary} stages --json {0} >/dev/null & cat {0}; wait; }}", fifo.display())).fine();
    serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap();
}
