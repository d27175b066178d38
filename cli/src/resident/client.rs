//! The client's side: finds or starts the resident process, hands it the command line, and passes its text on.

use super::Asked;
use super::place::Place;
use super::protocol::{Ask, Job, Program, Told, receive, send};
use super::server;
use crate::end::{Ended, Stop};
use crate::interrupt::{self, Guard};
use crate::model::Place as ModelPlace;
use crate::progress;
use crate::terminal;
use doppler::{Error, Result};
use rustix::fs::Mode;
use std::io::{BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a new process may take until it listens.
const START: Duration = Duration::from_secs(20);
/// How often signals are looked for while nothing comes.
const LOOK: Duration = Duration::from_millis(50);

/// Has the resident process run this process's command line, with the model at `place` if that came from the Hub.
///
/// # Errors
/// When the resident process ends in the middle; what writing the output reports.
pub fn ask(place: Option<&ModelPlace>) -> Result<Asked, Stop> {
    let alone = |why: String| Ok(Asked::NotPossible(vec![format!("{why}, so this run keeps nothing")]));
    if std::env::var_os("DOPPLER_RESIDENT").is_some_and(|value| value == "off" || value == "0") {
        return Ok(Asked::NotPossible(Vec::new()));
    }
    let line: Option<Vec<String>> = std::env::args_os().map(|arg| arg.into_string().ok()).collect();
    let Some(line) = line else { return alone("the command line is no Unicode text".into()) };
    if let Ok(text) = std::env::var("DOPPLER_RESIDENT_IDLE")
        && server::idle(&text).is_none()
    {
        return Err(Error::invalid("DOPPLER_RESIDENT_IDLE", format!("expected seconds, 0 or more, found `{text}`")).into());
    }
    if let Some(arg) = line.iter().find(|arg| is_own(arg)) {
        return alone(format!("{arg} cannot be reached from the resident process"));
    }
    let found = Place::open().and_then(|place| Ok((place, Program::this()?)));
    let (socket, program) = match found {
        Ok(found) => found,
        Err(e) => return alone(format!("no resident process ({e})")),
    };
    let folder = std::env::current_dir().map_err(|e| Error::io("working folder", e))?;
    let umask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    rustix::process::umask(umask);
    let (place, process) = (place.cloned(), std::process::id());
    let mut job = Job { line, folder, program, place, notes: Vec::new(), umask: umask.bits(), process };
    for _ in 0..3 {
        let stream = match connect(&socket).transpose().or_else(|| start(&socket).transpose()) {
            Some(Ok(stream)) => stream,
            Some(Err(e)) => return alone(format!("no resident process ({e})")),
            None => continue,
        };
        match talk(stream, &job)? {
            Talked::Ended(ended) => return Ok(Asked::Ended(ended)),
            // It was just ending; another one is started.
            Talked::Gone => std::thread::sleep(LOOK),
            Talked::Declined(why) => return alone(why),
            Talked::Stale(why) => job.notes = vec![format!("{why}: the resident process is started anew")],
        }
    }
    alone("no resident process (those that were there ended at once)".into())
}

/// Whether an argument names a file that only this process can reach, or whose other end the resident process would
/// wait for: descriptors, pipes, devices.
fn is_own(arg: &str) -> bool {
    let special = |path: &str| {
        let about = std::fs::metadata(path).map(|about| about.file_type());
        ["/dev/", "/proc/"].iter().any(|start| path.starts_with(start)) || about.is_ok_and(|kind| !kind.is_file() && !kind.is_dir())
    };
    special(arg) || arg.split_once('=').is_some_and(|(_, value)| special(value))
}

/// How a conversation went.
enum Talked {
    Ended(Ended),
    /// It ended before it took the job.
    Gone,
    /// It ended because it is no match.
    Stale(String),
    /// It is busy.
    Declined(String),
}

/// A connection, if somebody listens.
fn connect(place: &Place) -> Result<Option<UnixStream>> {
    match UnixStream::connect(place.socket()) {
        Ok(stream) => Ok(Some(stream)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(e) => Err(Error::io(place.socket().display(), e)),
    }
}

/// Starts a resident process and waits until it listens; `None` when another one that ended meanwhile was faster.
fn start(place: &Place) -> Result<Option<UnixStream>> {
    let failed = |e: std::io::Error| Error::io("resident process", e);
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["resident", "serve"]).env("DOPPLER_RESIDENT_DIR", place.path()).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child: Child = command.spawn().map_err(failed)?;
    let since = Instant::now();
    loop {
        if let Some(stream) = connect(place)? {
            return Ok(Some(stream));
        }
        match child.try_wait().map_err(failed)? {
            Some(status) if !status.success() => return Err(Error::io("resident process", format!("it ended with {status}"))),
            // Somebody else's process has the lock: it will listen, or end.
            Some(_) if since.elapsed() > START => return Ok(None),
            None if since.elapsed() > START => return Err(Error::io("resident process", "it does not answer")),
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Hands over the job and passes on what comes.
fn talk(stream: UnixStream, job: &Job) -> Result<Talked, Stop> {
    let failed = |e: std::io::Error| Error::io("resident process", e);
    stream.set_read_timeout(Some(LOOK)).map_err(failed)?;
    let mut writer = stream.try_clone().map_err(failed)?;
    let mut reader = BufReader::new(stream);
    if send(&mut writer, &Ask::Run(Box::new(job.clone()))).is_err() {
        return Ok(Talked::Gone);
    }
    let (mut line, mut accepted, mut interrupted) = (Vec::new(), false, false);
    let (mut guard, mut bar): (Option<Guard>, Option<progress::Bytes>) = (None, None);
    loop {
        let message = match receive(&mut reader, &mut line) {
            Ok(Some(message)) => message,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                if guard.is_some() && interrupt::requested() && !interrupted {
                    interrupted = true;
                    // If it is gone, the next read says so.
                    let _ = send(&mut writer, &Ask::Interrupt);
                }
                continue;
            }
            Ok(None) | Err(_) if !accepted => return Ok(Talked::Gone),
            Ok(None) | Err(_) => {
                let message = "it ended in the middle of this run (`doppler resident stop`, or a crash): run again, or with --no-resident";
                return Err(Error::io("resident process", message).into());
            }
        };
        match message {
            Told::Accepted => accepted = true,
            Told::Busy(what) => terminal::tell(&format!("{what}: waiting for it, at most {} s", server::MOMENT.as_secs())),
            Told::Declined(why) => return Ok(Talked::Declined(why)),
            Told::Stale(why) => return Ok(Talked::Stale(why)),
            Told::Out(text) => {
                bar = None;
                terminal::out(&text)?;
            }
            Told::Err(text) => {
                bar = None;
                terminal::tell(&text);
            }
            Told::Progress { done, total, what } => {
                bar.get_or_insert_with(|| progress::Bytes::new("loading", total)).set(done, &what);
            }
            Told::Generating(on) => {
                bar = None;
                guard = on.then(interrupt::guard);
            }
            Told::Exit(130) => return Ok(Talked::Ended(Ended::Interrupted)),
            Told::Exit(code) => return Ok(Talked::Ended(Ended::Code(code))),
            Told::Status(_) => {}
        }
    }
}

/// What the resident process holds, in words.
///
/// # Errors
/// `Kind::Io`.
pub fn status() -> Result<String> {
    match request(&Ask::Status)? {
        Some(Told::Status(text)) => Ok(text),
        _ => Ok("nothing is resident".into()),
    }
}

/// Ends the resident process; what was done, in words.
///
/// # Errors
/// `Kind::Io`.
pub fn stop() -> Result<String> {
    match request(&Ask::Stop)? {
        Some(Told::Status(text)) => Ok(text),
        _ => Ok("nothing is resident".into()),
    }
}

/// The answer to a question, if somebody listens.
fn request(ask: &Ask) -> Result<Option<Told>> {
    let place = Place::open()?;
    let Some(mut stream) = connect(&place)? else { return Ok(None) };
    let failed = |e: std::io::Error| Error::io("resident process", e);
    stream.set_read_timeout(Some(START)).map_err(failed)?;
    let answer = send(&mut stream, ask).and_then(|()| receive(&mut BufReader::new(stream), &mut Vec::new()));
    match answer {
        // It was just ending.
        Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(None),
        answer => answer.map_err(failed),
    }
}
