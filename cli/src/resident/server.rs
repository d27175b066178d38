//! The resident process itself: one thread runs jobs one after the other and owns the model; others listen.

use super::place::Place;
use super::protocol::{self, Ask, Job, Program, Told, receive, send};
use crate::debug::{self, CommandLine};
use crate::end::{self, Ended, Stop};
use crate::kept::ModelCache;
use crate::terminal::{self, Client};
use clap::Parser;
use doppler::{Error, Kind, Result};
use rustix::fs::Mode;
use std::collections::VecDeque;
use std::io::{self, BufReader, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often an idle process looks whether its last client has read everything.
const LOOK: Duration = Duration::from_millis(20);
/// How long it waits for the next job.
const IDLE: Duration = Duration::from_secs(600);
/// How long a new process waits for the client that started it.
const FIRST: Duration = Duration::from_secs(20);
/// How long a client waits for another one's run before it runs by itself.
pub const MOMENT: Duration = Duration::from_secs(3);
/// Bytes of output that may wait for a client that does not read, while its run goes on.
pub const WAITING: usize = 64 << 20;
/// How long a run waits for a client that reads nothing of more than that, before it is ended.
pub const STALLED: Duration = Duration::from_secs(60);

/// What listeners tell of the thread that works.
struct State {
    model: Option<PathBuf>,
    /// Whose run is under way, or about to be.
    running: Option<Running>,
    /// Clients whose run is over, but who have not read all of its output.
    reading: usize,
    idle_since: Instant,
}

/// A run under way.
struct Running {
    /// Its client.
    process: u32,
    since: Instant,
}

/// What all threads share.
struct Shared {
    state: Mutex<State>,
    /// Signalled when a run ends, and when a client has read everything.
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job and its client.
struct Order {
    job: Box<Job>,
    stream: UnixStream,
    interrupted: Arc<AtomicBool>,
    gone: Arc<AtomicBool>,
}

/// The idle time that a text names in seconds.
pub fn idle(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.parse().ok()?).ok()
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
    let idle = std::env::var("DOPPLER_RESIDENT_IDLE").ok().and_then(|text| idle(&text)).unwrap_or(IDLE);
    let state = State { model: None, running: None, reading: 0, idle_since: Instant::now() };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    let (orders, work) = mpsc::channel();
    let listening = (shared.clone(), socket.clone());
    std::thread::spawn(move || {
        let (shared, socket) = listening;
        for stream in listener.incoming().flatten() {
            let (orders, shared, program, socket) = (orders.clone(), shared.clone(), program.clone(), socket.clone());
            std::thread::spawn(move || listen(stream, &orders, &shared, &program, &socket, idle));
        }
    });
    let mut kept = ModelCache::default();
    let mut wait = idle.max(FIRST);
    loop {
        match work.recv_timeout(wait) {
            Ok(order) => {
                run(order, &mut kept, &shared);
                wait = idle;
            }
            Err(RecvTimeoutError::Timeout) => {
                // Whoever still reads gets the rest, but the model is let go.
                kept.clear();
                let state = shared.lock();
                if state.reading == 0 && state.running.is_none() {
                    break;
                }
                wait = LOOK;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
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
fn listen(stream: UnixStream, orders: &Sender<Order>, shared: &Shared, program: &Program, socket: &PathBuf, idle: Duration) {
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
            let text = shared.lock().describe(idle);
            let _ = send(&mut writer, &Told::Status(text));
        }
        Ok(Some(Ask::Stop)) => {
            let what = shared.lock().model.as_ref().map_or("nothing".into(), |model| model.display().to_string());
            end(&Told::Status(format!("ended; it held {what}")), &mut writer);
        }
        Ok(Some(Ask::Run(job))) => {
            let stale = program.differs(&job.program);
            if let Err(why) = claim(shared, job.process, stale.is_some(), &mut writer) {
                let _ = send(&mut writer, &Told::Declined(why));
                return;
            }
            if let Some(why) = stale {
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

/// Waits a moment until no run is under way and makes the next one that of `process`; why not, in words. Before the
/// process ends (`ending`), those whose run is over must have read its output too.
fn claim(shared: &Shared, process: u32, ending: bool, writer: &mut UnixStream) -> std::result::Result<(), String> {
    let busy = |state: &State| state.running.is_some() || (ending && state.reading > 0);
    let what = |state: &State| match &state.running {
        Some(Running { process, since }) => {
            format!("a run of process {process} has been under way in the resident process for {} s", since.elapsed().as_secs())
        }
        None => "a command has not read all of its output from the resident process".into(),
    };
    let state = shared.lock();
    if busy(&state) {
        let what = what(&state);
        drop(state);
        // A client that is gone is found out later.
        let _ = send(writer, &Told::Busy(what));
    } else {
        drop(state);
    }
    let waited = shared.changed.wait_timeout_while(shared.lock(), MOMENT, |state| busy(state));
    let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
    if waited.timed_out() {
        return Err(what(&state));
    }
    state.running = Some(Running { process, since: Instant::now() });
    Ok(())
}

impl State {
    fn describe(&self, idle: Duration) -> String {
        let model = self.model.as_ref().map_or("no model".into(), |model| format!("model {}", model.display()));
        let pid = std::process::id();
        if let Some(Running { process, since }) = &self.running {
            return format!("resident: {model}, a run of {process} is under way for {} s, process {pid}", since.elapsed().as_secs());
        }
        let left = idle.saturating_sub(self.idle_since.elapsed()).as_secs();
        format!("resident: {model}, frees itself in {left} s, process {pid}")
    }
}

/// The client of a running job. What it is told waits in a queue that a thread of its own sends, so that a client that
/// does not read (a stopped pager) does not hold up the run.
struct Remote {
    /// The command line.
    line: Vec<String>,
    queue: Mutex<Queue>,
    changed: Condvar,
    interrupted: Arc<AtomicBool>,
    gone: Arc<AtomicBool>,
}

/// What a client is to be told.
#[derive(Default)]
struct Queue {
    messages: VecDeque<String>,
    /// Bytes of the messages.
    bytes: usize,
    /// Nothing more will come.
    ended: bool,
    /// The client read nothing for too long.
    stalled: bool,
}

impl Remote {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Has a message sent. Waits while too much is waiting, but not for ever: then the run is to end.
    fn send(&self, message: &Told) -> io::Result<()> {
        let line = protocol::line(message)?;
        let full = |queue: &mut Queue| queue.bytes > WAITING && !self.gone();
        let (mut queue, waited) = self.changed.wait_timeout_while(self.lock(), STALLED, full).unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            queue.stalled = true;
            self.leave();
        }
        if self.gone() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.add(queue, line);
        Ok(())
    }
    fn add(&self, mut queue: MutexGuard<'_, Queue>, line: String) {
        queue.bytes += line.len();
        queue.messages.push_back(line);
        self.changed.notify_all();
    }
    /// Nobody is there, or nobody reads.
    fn leave(&self) {
        self.gone.store(true, Ordering::SeqCst);
        self.interrupted.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }
    /// The last messages.
    fn end(&self, code: u8) {
        let stalled = self.lock().stalled;
        let seconds = STALLED.as_secs();
        let why = format!("Error resident process: nobody read the output for {seconds} s, so the run was ended; this is where it was cut");
        let last = if stalled { vec![Told::Err(why), Told::Exit(2)] } else { vec![Told::Exit(code)] };
        for message in last {
            // Our messages can be spelled.
            self.add(self.lock(), protocol::line(&message).unwrap_or_default());
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }
    /// Sends messages until the last one, or until the client is gone.
    fn deliver(&self, mut stream: UnixStream) {
        loop {
            let waiting = |queue: &mut Queue| queue.messages.is_empty() && !queue.ended;
            let mut queue = self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
            let Some(line) = queue.messages.pop_front() else { break };
            drop(queue);
            let sent = stream.write_all(line.as_bytes());
            // What is being sent still counts as waiting.
            self.lock().bytes -= line.len();
            self.changed.notify_all();
            if sent.is_err() {
                self.leave();
                break;
            }
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Client for Remote {
    fn line(&self) -> &[String] {
        &self.line
    }
    fn out(&self, text: &str) -> io::Result<()> {
        self.send(&Told::Out(text.into()))
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

/// Runs a job for its client, in the client's folder and with its umask.
fn run(order: Order, kept: &mut ModelCache, shared: &Arc<Shared>) {
    let Order { job, stream, interrupted, gone } = order;
    let line = job.line.clone();
    let client = Arc::new(Remote { line, queue: Mutex::default(), changed: Condvar::new(), interrupted, gone });
    let (reader, of) = (client.clone(), shared.clone());
    shared.lock().reading += 1;
    std::thread::spawn(move || {
        reader.deliver(stream);
        of.lock().reading -= 1;
        of.changed.notify_all();
    });
    let code = if client.send(&Told::Accepted).is_ok() { work(&job, kept, &client) } else { 0 };
    {
        let mut state = shared.lock();
        (state.running, state.model, state.idle_since) = (None, kept.model().map(PathBuf::from), Instant::now());
    }
    shared.changed.notify_all();
    client.end(code);
}

/// The job itself; its exit code.
fn work(job: &Job, kept: &mut ModelCache, client: &Arc<Remote>) -> u8 {
    // One job runs at a time, and other threads make no files.
    rustix::process::umask(Mode::from_raw_mode(job.umask));
    let code = terminal::for_client(client.clone(), || {
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| perform(job, kept))).unwrap_or_else(|_| {
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
    code
}

fn perform(job: &Job, kept: &mut ModelCache) -> Result<Ended, Stop> {
    std::env::set_current_dir(&job.folder).map_err(|e| Error::io(job.folder.display(), e))?;
    match CommandLine::try_parse_from(&job.line) {
        Ok(CommandLine::Debug(args)) => debug::perform(&args, kept, Ok(job.place.clone()), &job.notes),
        Err(mistake) => end::usage(&mistake),
    }
}
