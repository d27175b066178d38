//! How commands end when nobody reads on, or somebody presses Ctrl-C.

use crate::support::{change_config, command, copy, data, text};
use serde_json::json;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

/// Starts the binary, reads `lines` of its stdout, closes the pipe, and waits.
fn read_some(args: &[&str], lines: usize) -> (Option<i32>, String) {
    let mut child = command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    for _ in 0..lines {
        out.read_line(&mut line).unwrap();
    }
    drop(out);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let (gemma2, llama2) = (data("gemma2"), data("llama2"));
    let runs: [&[&str]; 6] = [
        &["debug", "-m", &gemma2, "--device", "cpu", "-p", "The model", "--max-tokens", "100"],
        &["debug", "-m", &gemma2, "--device", "cpu", "-p", "The model", "--max-tokens", "100", "--json", "-"],
        &["run", "-m", &gemma2, "--device", "cpu", "The model", "--max-tokens", "200"],
        &["inspect", &llama2],
        &["stages", "-m", &llama2],
        &["debug", "--help"],
    ];
    for args in runs {
        for lines in [0, 1] {
            let lines = if args[0] == "run" { 0 } else { lines };
            let (code, stderr) = read_some(args, lines);
            assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        }
    }
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    let status = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_between_tokens_and_tells_what_there_is() {
    let folder = copy("llama2", "endless");
    change_config(&folder, json!({"max_position_embeddings": 1_000_000}));
    let args = ["debug", "-m", text(&folder), "--device", "cpu", "--token-ids", "2", "--max-tokens", "900000", "--json", "-"];
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.contains("\"config\""), "{line}");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    interrupt(&child);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    let done: serde_json::Value = serde_json::from_str(rest.lines().last().unwrap()).unwrap();
    assert_eq!(done["stop"], "interrupted");
    assert!(done["tokens"].as_u64().unwrap() > 0);
}

#[cfg(unix)]
#[test]
fn ctrl_c_at_a_prompt_ends_at_once() {
    let args = ["run", "-i", "-m", &data("gemma2"), "--device", "cpu", "--max-tokens", "3", "Is the table right?"];
    let mut child = command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut out, input) = (BufReader::new(child.stdout.take().unwrap()), child.stdin.take());
    out.read_line(&mut String::new()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop((out, input));
}
