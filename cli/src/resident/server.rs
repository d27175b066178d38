//! The resident process itself: one thread runs jobs one after the other and owns the model; others listen.

use super::place::Place;
use super::protocol::{Ask, Job, Program, Told, receive, send};
use crate::debug::{self, CommandLine};
use crate::end::{self, Ended, Stop};
use crate::kept::ModelCache;
use crate::terminal::{self, Client};
use clap::Parser;
use doppler::{Error, Kind, Result};
use std::io::{self, BufReader};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long it waits for the next job.
const IDLE: Duration = Duration::from_secs(600);

/// What listeners tell of the thread that works.
struct State {
    model: Option<PathBuf>,
    busy: bool,
    idle_since: Instant,
}

/// A job and its client.
struct Order {
    job: Box<Job>,
    stream: UnixStream,
    interrupted: Arc<AtomicBool>,
    gone: Arc<AtomicBool>,
}

/// Serves until nobody needs it any more. Ends at once when another resident process serves already.
///
/// # Errors
/// `Kind::Io`.
pub fn serve() -> Result<()> {
    detach();
    let place = Place::open()?;
    let program = Program::this()?;
    let Some(_lock) = place.lock()? else { return Ok(()) };
    let socket = place.socket();
    let failed = |e: io::Error| Error::io(socket.display(), e);
    // What a crashed process left. Only the holder of the lock does this.
    if let Err(e) = std::fs::remove_file(&socket)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(failed(e));
    }
    let listener = UnixListener::bind(&socket).map_err(failed)?;
    let idle = std::env::var("DOPPLER_RESIDENT_IDLE").ok().and_then(|text| text.parse().ok()).map_or(IDLE, Duration::from_secs_f64);
    let state = Arc::new(Mutex::new(State { model: None, busy: false, idle_since: Instant::now() }));
    let (orders, work) = mpsc::channel();
    let listening = (state.clone(), socket.clone());
    std::thread::spawn(move || {
        let (state, socket) = listening;
        for stream in listener.incoming().flatten() {
            let (orders, state, program, socket) = (orders.clone(), state.clone(), program.clone(), socket.clone());
            std::thread::spawn(move || listen(stream, &orders, &state, &program, &socket, idle));
        }
    });
    let mut kept = ModelCache::default();
    while let Ok(order) = work.recv_timeout(idle) {
        run(order, &mut kept, &state);
    }
    // A client that comes now finds nobody and starts another.
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

/// Leaves the client's session and lets go of everything that it handed down.
fn detach() {
    // Fails only for the leader of a process group, which then is a session of its own or stays with its terminal.
    let _ = rustix::process::setsid();
    let open: Vec<i32> = std::fs::read_dir("/dev/fd")
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
        .unwrap_or_default();
    for descriptor in open.into_iter().filter(|fd| *fd > 2) {
        // Only those that still exist: the folder's own is closed by now.
        if std::fs::symlink_metadata(format!("/dev/fd/{descriptor}")).is_ok() {
            // SAFETY: nothing in this process has opened a file yet, so nobody else will use or close this descriptor.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
}

/// Answers one client; for a job, hands it on and then watches whether the client is still there.
fn listen(stream: UnixStream, orders: &Sender<Order>, state: &Mutex<State>, program: &Program, socket: &PathBuf, idle: Duration) {
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    let end = |last: &Told, writer: &mut UnixStream| {
        let _ = std::fs::remove_file(socket);
        let _ = send(writer, last);
        std::process::exit(0);
    };
    // A client that is gone by now needs no answer.
    match receive::<Ask>(&mut reader, &mut line) {
        Ok(Some(Ask::Status)) => {
            let text = lock().describe(idle);
            let _ = send(&mut writer, &Told::Status(text));
        }
        Ok(Some(Ask::Stop)) => {
            let what = lock().model.as_ref().map_or("nothing".into(), |model| model.display().to_string());
            end(&Told::Status(format!("ended; it held {what}")), &mut writer);
        }
        Ok(Some(Ask::Run(job))) => {
            if lock().busy {
                let _ = send(&mut writer, &Told::Busy);
            }
            if let Some(why) = program.differs(&job.program) {
                // Whoever is served now is served to the end.
                while lock().busy {
                    std::thread::sleep(Duration::from_millis(20));
                }
                end(&Told::Stale(why), &mut writer);
            }
            let (interrupted, gone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            if orders.send(Order { job, stream: writer, interrupted: interrupted.clone(), gone: gone.clone() }).is_err() {
                return;
            }
            while let Ok(Some(ask)) = receive::<Ask>(&mut reader, &mut line) {
                interrupted.fetch_or(matches!(ask, Ask::Interrupt), Ordering::SeqCst);
            }
            gone.store(true, Ordering::SeqCst);
            interrupted.store(true, Ordering::SeqCst);
        }
        Ok(Some(Ask::Interrupt) | None) | Err(_) => {}
    }
}

impl State {
    fn describe(&self, idle: Duration) -> String {
        let model = self.model.as_ref().map_or("no model".into(), |model| format!("model {}", model.display()));
        let pid = std::process::id();
        if self.busy {
            return format!("resident: {model}, a run is under way, process {pid}");
        }
        let left = idle.saturating_sub(self.idle_since.elapsed()).as_secs();
        format!("resident: {model}, frees itself in {left} s, process {pid}")
    }
}

/// The client of a running job.
struct Remote {
    stream: Mutex<UnixStream>,
    interrupted: Arc<AtomicBool>,
    gone: Arc<AtomicBool>,
}

impl Remote {
    fn send(&self, message: &Told) -> io::Result<()> {
        let sent = send(&mut *self.stream.lock().unwrap_or_else(PoisonError::into_inner), message);
        if sent.is_err() {
            self.gone.store(true, Ordering::SeqCst);
        }
        sent
    }
}

impl Client for Remote {
    fn out(&self, text: &str) -> io::Result<()> {
        self.send(&Told::Out(text.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
    fn tell(&self, text: &str) {
        let _ = self.send(&Told::Err(text.into()));
    }
    fn progress(&self, done: u64, total: u64, what: &str) {
        let _ = self.send(&Told::Progress { done, total, what: what.into() });
    }
    fn generating(&self, on: bool) {
        let _ = self.send(&Told::Generating(on));
    }
    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }
    fn gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

/// Runs a job for its client, in the client's folder.
fn run(order: Order, kept: &mut ModelCache, state: &Mutex<State>) {
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let Order { job, stream, interrupted, gone } = order;
    let client = Arc::new(Remote { stream: Mutex::new(stream), interrupted, gone });
    if client.gone() || client.send(&Told::Accepted).is_err() {
        return;
    }
    lock().busy = true;
    let ended = terminal::for_client(client.clone(), || {
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| perform(&job, kept))).unwrap_or_else(|_| {
            kept.clear();
            Err(end::bug())
        });
        // A device that failed once is opened anew.
        if matches!(&ended, Err(Stop::Failed(e)) if matches!(e.kind, Kind::Device | Kind::Memory)) {
            kept.clear();
        }
        end::exit_code(ended)
    });
    let _ = std::env::set_current_dir("/");
    {
        let mut state = lock();
        (state.busy, state.model, state.idle_since) = (false, kept.model().map(PathBuf::from), Instant::now());
    }
    let _ = client.send(&Told::Exit(ended));
    let _ = client.stream.lock().unwrap_or_else(PoisonError::into_inner).shutdown(std::net::Shutdown::Both);
}

fn perform(job: &Job, kept: &mut ModelCache) -> Result<Ended, Stop> {
    std::env::set_current_dir(&job.folder).map_err(|e| Error::io(job.folder.display(), e))?;
    match CommandLine::try_parse_from(&job.line) {
        Ok(CommandLine::Debug(args)) => debug::perform(&args, kept, &job.notes),
        Err(mistake) => end::usage(&mistake),
    }
}
