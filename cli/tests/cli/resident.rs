//! The resident process: kept models are used when everything is the same and only then, it holds nothing of a client's,
//! and it leaves no orphan.
#![cfg(unix)]

use crate::support::{Ran, copy, finish, scratch, text};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A resident process of its own; ended with the test.
pub struct Home(PathBuf);

impl Home {
    pub fn new(name: &str) -> Self {
        // A socket's path must be short.
        let folder = std::env::temp_dir().join(format!("dr-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        Self(folder)
    }
    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }
    fn command(&self, args: &[&str]) -> Command {
        let mut command = crate::support::command(args);
        command.env_remove("DOPPLER_RESIDENT").env("DOPPLER_RESIDENT_DIR", &self.0);
        command
    }
    pub fn run(&self, args: &[&str]) -> Ran {
        finish(&mut self.command(args))
    }
    fn debug(&self, more: &[&str]) -> Ran {
        self.run(&[&["debug", "--device", "cpu", "--max-tokens", "2"], more].concat())
    }
    fn status(&self) -> String {
        self.run(&["resident", "status"]).fine().stdout
    }
    /// The process, if there is one.
    pub fn process(&self) -> Option<u32> {
        self.status().trim().rsplit_once("process ").map(|(_, id)| id.parse().unwrap())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.command(&["resident", "stop"]).output();
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn alive(process: u32) -> bool {
    // A process that ended but that nobody waited for is no orphan.
    let about = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    about.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[track_caller]
pub fn until(what: &str, done: impl Fn() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_kept_model_is_used_while_it_is_the_same() {
    let home = Home::new("same");
    let folder = copy("gemma2", "resident_model");
    let model = text(&folder);
    let logits = |ran: &Ran| ran.stdout.lines().last().unwrap().rsplit_once("logits=").unwrap().1.to_string();
    assert_eq!(home.status(), "nothing is resident\n");
    // Nothing is there: said, and loaded.
    let first = home.debug(&["-m", model, "-p", "The model", "--skip-load"]).fine();
    assert!(first.stdout.contains("Note --skip-load: nothing is resident, so the model is loaded"), "{}", first.stdout);
    let process = home.process().expect("a process");
    assert!(home.status().contains(&format!("model {}", folder.canonicalize().unwrap().display())), "{}", home.status());
    let again = home.debug(&["-m", model, "-p", "The model", "--skip-load"]).fine();
    assert_eq!((again.stdout.contains("Note"), logits(&again)), (false, logits(&first)), "{}", again.stdout);
    // Nor is another spelling of its folder.
    let spelled = format!("{}/../{}", model, folder.file_name().unwrap().to_string_lossy());
    let same = home.debug(&["-m", &spelled, "-p", "The model", "--skip-load"]).fine();
    assert!(!same.stdout.contains("Note"), "{}", same.stdout);
    // Another prompt, context or sampling is no other model.
    let other = home.debug(&["-m", model, "-p", "Is the", "--context", "50", "--temperature", "1", "--skip-load"]).fine();
    assert!(!other.stdout.contains("Note") && other.stdout.contains("context=50"), "{}", other.stdout);
    for (more, why) in [
        (&["--dtype", "f16"][..], "it was loaded for another surface, device, dtype or limits"),
        (&["-m", "demo"], "another model is resident"),
        (&[], "another model is resident (demo)"),
    ] {
        let given = if more.contains(&"-m") { Vec::new() } else { vec!["-m", model] };
        let ran = home.debug(&[&given[..], &["--skip-load"], more].concat()).fine();
        assert!(ran.stdout.contains(&format!("Note --skip-load: {why}")), "{why}: {}", ran.stdout);
    }
    // Changed weights.
    let weights = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x3f80u16.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let changed = home.debug(&["-m", model, "-p", "The model", "--skip-load"]).fine();
    assert!(changed.stdout.contains("the weight files changed"), "{}", changed.stdout);
    assert_ne!(logits(&changed), logits(&first));
    // Other weights of the same size and time under the same name.
    let copied = folder.join("copied");
    let mut bytes = std::fs::read(&weights).unwrap();
    bytes[end - 2..].copy_from_slice(&0x4000u16.to_le_bytes());
    std::fs::write(&copied, bytes).unwrap();
    let time = std::fs::metadata(&weights).unwrap().modified().unwrap();
    std::fs::File::options().write(true).open(&copied).unwrap().set_modified(time).unwrap();
    std::fs::rename(&copied, &weights).unwrap();
    let replaced = home.debug(&["-m", model, "-p", "The model", "--skip-load"]).fine();
    assert!(replaced.stdout.contains("the weight files changed"), "{}", replaced.stdout);
    let changed = replaced;
    // A changed config.
    crate::support::change_config(&folder, serde_json::json!({"rms_norm_eps": 0.5}));
    let eps = home.debug(&["-m", model, "-p", "The model", "--skip-load"]).fine();
    assert!(eps.stdout.contains("the model's config changed") && logits(&eps) != logits(&changed), "{}", eps.stdout);
    // Without --skip-load everything is read anew, by the same process.
    let anew = home.debug(&["-m", model, "-p", "The model", "--trace", "loader"]).fine();
    assert!(anew.stdout.contains("[TRACE:loader]") && !anew.stdout.contains("Note"), "{}", anew.stdout);
    assert_eq!(home.process(), Some(process));
    assert!(home.run(&["resident", "stop"]).fine().stdout.starts_with("ended; it held "));
    until("it ends", || !alive(process));
    assert_eq!(home.status(), "nothing is resident\n");
}

#[test]
fn changed_kernels_are_noticed() {
    if !crate::support::devices().contains(&"gpu") {
        return;
    }
    let home = Home::new("kernels");
    let kernels = scratch("resident_kernels");
    let add = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/gpu/kernels/add.wgsl");
    std::fs::copy(&add, kernels.join("add.wgsl")).unwrap();
    let debug = || home.run(&["debug", "--device", "gpu", "--max-tokens", "2", "--skip-load", "--kernels", text(&kernels)]).fine().stdout;
    assert!(debug().contains("nothing is resident"));
    assert!(!debug().contains("Note"));
    std::fs::write(kernels.join("add.wgsl"), std::fs::read_to_string(&add).unwrap() + "\n// changed\n").unwrap();
    assert!(debug().contains("Note --skip-load: the kernels changed"));
}

#[test]
fn another_binary_is_noticed() {
    let home = Home::new("binary");
    home.debug(&[]).fine();
    let process = home.process();
    let copied = scratch("resident_binary").join("doppler");
    std::fs::copy(env!("CARGO_BIN_EXE_doppler"), &copied).unwrap();
    let mut other = Command::new(&copied);
    other.args(["debug", "--device", "cpu", "--max-tokens", "2", "--skip-load"]).env("DOPPLER_RESIDENT_DIR", &home.0).stdin(Stdio::null());
    let ran = finish(&mut other).fine();
    assert!(ran.stdout.contains("Note the doppler binary changed: the resident process is started anew"), "{}", ran.stdout);
    assert_ne!(home.process(), process);
}

#[test]
fn it_runs_where_the_command_was_typed_and_answers_as_without() {
    let home = Home::new("folder");
    let folder = scratch("resident_folder");
    let mut command =
        home.command(&["debug", "--device", "cpu", "--max-tokens", "2", "--dump", "here.safetensors", "--stages", "layer_out"]);
    let with = finish(command.current_dir(&folder)).fine();
    assert!(folder.join("here.safetensors").is_file());
    let without = home.debug(&["--no-resident"]).fine();
    let stable = |ran: &Ran| ran.stdout.lines().map(|line| line.split(" in ").next().unwrap().to_string()).collect::<Vec<_>>();
    assert_eq!(stable(&with), stable(&without));
    // Errors, exit codes and stderr come through; a file of the client's own is no file of the resident process.
    let refused = home.debug(&["--trace", "fnn"]).refused(&["there is no category `fnn`"]);
    assert_eq!(refused.stdout, "");
    let own = home.debug(&["--json", "/dev/null"]).fine();
    assert!(own.stdout.contains("Note /dev/null cannot be reached from the resident process, so this run keeps nothing"), "{}", own.stdout);
    home.debug(&["--no-resident", "--skip-load"]).refused(&["cannot be used with"]);
}

/// A pipeline ends although the resident process lives on.
#[test]
fn it_holds_nothing_of_its_clients() {
    let home = Home::new("pipe");
    let mut shell = Command::new("sh");
    let binary = env!("CARGO_BIN_EXE_doppler");
    let line = format!("exec 7>&1; {binary} debug --device cpu --max-tokens 2 2>&1 | cat");
    shell.args(["-c", &line]).env("DOPPLER_RESIDENT_DIR", &home.0).stdin(Stdio::null()).stdout(Stdio::piped());
    let since = Instant::now();
    let mut child = shell.spawn().unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success() && since.elapsed() < Duration::from_secs(30), "{said}");
    let process = home.process().expect("it lives on");
    let open: Vec<PathBuf> =
        std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()).collect();
    assert!(!open.iter().any(|path| path.to_string_lossy().starts_with("pipe:")), "{open:?}");
    assert_eq!(std::fs::read_link(format!("/proc/{process}/cwd")).unwrap(), Path::new("/"));
}

#[test]
fn a_killed_client_leaves_a_process_that_answers() {
    let home = Home::new("killed");
    let folder = copy("llama2", "resident_endless");
    crate::support::change_config(&folder, serde_json::json!({"max_position_embeddings": 1_000_000}));
    let long = ["debug", "--device", "cpu", "-m", text(&folder), "--token-ids", "2", "--max-tokens", "900000"];
    for signal in ["-KILL", "-TERM", "-INT"] {
        let mut child = home.command(&long).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(line.starts_with("Config "), "{line}");
        until("it works", || home.status().contains("under way"));
        std::thread::sleep(Duration::from_millis(300));
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        let code = child.wait().unwrap().code();
        match signal {
            "-KILL" => assert_eq!(code, None),
            "-TERM" => assert!(code == Some(143) && rest.contains("\nDone "), "{code:?} {rest}"),
            _ => assert!(code == Some(130) && rest.contains("\nDone "), "{code:?} {rest}"),
        }
        until("it is free again", || !home.status().contains("under way"));
        let ran = home.debug(&["-m", "demo"]).fine();
        assert!(ran.stdout.contains("Output  blue"), "{}", ran.stdout);
    }
}

#[test]
fn a_crashed_process_is_replaced_and_an_idle_one_ends() {
    let home = Home::new("crash");
    home.debug(&[]).fine();
    let process = home.process().unwrap();
    Command::new("kill").args(["-KILL", &process.to_string()]).status().unwrap();
    until("it is dead", || !alive(process));
    let ran = home.debug(&["--skip-load"]).fine();
    assert!(ran.stdout.contains("nothing is resident") && ran.stdout.contains("Output  blue"), "{}", ran.stdout);
    home.run(&["resident", "stop"]).fine();
    let mut short = home.command(&["debug", "--device", "cpu", "--max-tokens", "1"]);
    finish(short.env("DOPPLER_RESIDENT_IDLE", "0.3")).fine();
    until("it frees itself", || home.status() == "nothing is resident\n");
}

/// Who ends takes connections until its socket is gone, and answers nobody.
#[test]
fn an_ending_process_is_none() {
    let home = Home::new("ending");
    assert_eq!(home.status(), "nothing is resident\n");
    let listener = UnixListener::bind(home.folder().join("socket")).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    for _ in 0..10 {
        assert_eq!(home.status(), "nothing is resident\n");
    }
}

/// Several clients at once are served one after the other, by one process.
#[test]
fn one_process_serves_all() {
    let home = Home::new("many");
    let children: Vec<_> = (0..4)
        .map(|_| {
            let mut command = home.command(&["debug", "--device", "cpu", "--max-tokens", "2"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let said: Vec<String> = children.into_iter().map(|c| String::from_utf8(c.wait_with_output().unwrap().stdout).unwrap()).collect();
    assert!(said.iter().all(|s| s.contains("Output  blue")), "{said:?}");
    let ours = |entry: std::fs::DirEntry| {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("serve") && String::from_utf8_lossy(&environment).contains(text(&home.0))
    };
    until("one is left", || std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| ours(entry).then_some(())).count() == 1);
}

/// A reader that does not read on (a pager, a stopped terminal) holds up nobody but itself.
#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let home = Home::new("stalled");
    let long = ["debug", "--device", "cpu", "--max-tokens", "200", "--trace", "all", "--token-ids", "7,8,9"];
    let mut child = home.command(&long).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    Command::new("kill").args(["-STOP", &child.id().to_string()]).status().unwrap();
    // Another one waits a moment at most, and says for whom.
    let since = Instant::now();
    let ran = home.debug(&[]).fine();
    assert!(ran.stdout.contains("Output  blue"), "{}", ran.stdout);
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    if ran.stdout.contains("keeps nothing") {
        let who = format!("a run of process {}", child.id());
        assert!(ran.stderr.contains(&who) && ran.stderr.contains("waiting for it, at most 3 s"), "{}", ran.stderr);
        assert!(ran.stdout.contains(&who), "{}", ran.stdout);
    }
    // The run itself goes on, and its process is free for others.
    until("the run ends", || !home.status().contains("under way"));
    let kept = home.debug(&["--skip-load"]).fine();
    assert!(!kept.stdout.contains("Note"), "{}", kept.stdout);
    // Nothing is lost for whoever reads on.
    Command::new("kill").args(["-CONT", &child.id().to_string()]).status().unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let code = child.wait().unwrap().code();
    assert!(code.is_some_and(|code| code < 2) && rest.contains("\nDone 200 tokens"), "{code:?} {}", rest.len());
}

/// Idle time 0 ends the process with the run, and costs no client its output.
#[test]
fn an_idle_time_of_zero_ends_at_once() {
    let home = Home::new("zero");
    let debug = |idle: &str| {
        let mut command = home.command(&["debug", "--device", "cpu", "--max-tokens", "2"]);
        finish(command.env("DOPPLER_RESIDENT_IDLE", idle))
    };
    let since = Instant::now();
    for _ in 0..3 {
        assert!(debug("0").fine().stdout.contains("\nDone 2 tokens"));
    }
    assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    until("it ends", || home.status() == "nothing is resident\n");
    for bad in ["-1", "NaN", "1e30", "soon"] {
        debug(bad).refused(&["DOPPLER_RESIDENT_IDLE", bad]);
    }
}

/// Files have the rights that the command's umask leaves, whoever started the process.
#[test]
fn files_are_the_clients() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new("umask");
    let folder = scratch("umask");
    for (umask, mode) in [("022", 0o644), ("077", 0o600), ("027", 0o640)] {
        let mut shell = Command::new("sh");
        let options = "--html r.html --bundle r.b --dump r.st --json r.jsonl --record-profile r.p";
        let line = format!("rm -f r.*; umask {umask}; {} debug --device cpu --max-tokens 2 {options}", env!("CARGO_BIN_EXE_doppler"));
        shell.args(["-c", &line]).env("DOPPLER_RESIDENT_DIR", home.folder()).current_dir(&folder).stdin(Stdio::null());
        finish(&mut shell).fine();
        for name in ["r.html", "r.b", "r.st", "r.jsonl", "r.p"] {
            let found = std::fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{umask} {name}");
        }
    }
}
