//! `doppler serve`: models behind an HTTP API that programs know (OpenAI's). One thread per model computes (`worker`, `batch`),
//! one answers (`routes`); docs/decisions/0027 says why. From the outside in: `guard`, `routes`, `fields`, `request`, `answer`,
//! `wire`; for the newer form `responses`, for vectors `embeddings`.

mod answer;
mod batch;
mod embed;
mod embeddings;
mod fields;
mod guard;
mod metrics;
mod openapi;
mod problem;
mod request;
mod responses;
mod routes;
mod stops;
mod watched;
mod wire;
mod worker;

use crate::args::{AllowArgs, ConfigArgs, MachineArgs, SamplingArgs, Surface};
use crate::end::{Ended, Stop};
use crate::http::{self, Listener, Names};
use crate::settings::Settings;
use crate::terminal::{self, tell};
use crate::{interrupt, model};
use doppler::config::runtime::Inference;
use doppler::{Error, Result};
use guard::Guard;
use routes::Shared;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use worker::Hosted;

/// Threads that make ids of prompts: each takes memory in proportion to its prompt.
const READERS: usize = 4;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model, as for `run -m`; again for another one. Its id is its folder's or file's name
    #[arg(short, long, value_name = "MODEL", default_value = model::DEMO, help_heading = "Model")]
    model: Vec<String>,
    #[command(flatten)]
    allow: AllowArgs,

    /// Port on this machine; 0 is any free one
    #[arg(long, value_name = "N", default_value_t = 8422, help_heading = "Server")]
    port: u16,
    /// Address to listen at. Whoever reaches it can use the models: 127.0.0.1 is this machine's users, 0.0.0.0 its network
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    host: IpAddr,
    /// Listen at a socket at this path, for programs of this user, in place of a port
    #[cfg(unix)]
    #[arg(long, value_name = "PATH", conflicts_with_all = ["port", "host", "allow_host", "cors"], help_heading = "Server")]
    unix: Option<std::path::PathBuf>,
    /// A name by which clients reach this server, such as that of a proxy or a service; again for another one. Other names are
    /// refused, as pages of the web use them to reach servers of this machine
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    allow_host: Vec<String>,
    /// Let pages of this origin ask, such as https://example.org; again for another one; * is every page
    #[arg(long, value_name = "ORIGIN", help_heading = "Server")]
    cors: Vec<String>,
    /// Ask every client for this key. $DOPPLER_API_KEY is the same, and other users of this machine do not see it
    #[arg(long, value_name = "KEY", help_heading = "Server")]
    api_key: Option<String>,
    /// Sequences that are computed at a time, of each model; their room is reserved
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = from_one, help_heading = "Server")]
    sequences: usize,
    /// Sequences that may wait, of each model; further ones are told to try again
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = from_one, help_heading = "Server")]
    queue: usize,
    /// Read every prompt from its first token. Otherwise a prompt begins with what another one that begins alike has read, in
    /// whole chunks (--prefill-chunk), which changes no bit
    #[arg(long, help_heading = "Server")]
    no_prefix_cache: bool,
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = from_one, help_heading = "Server")]
    connections: usize,
    /// Bytes of a request at most
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, help_heading = "Server")]
    max_body: usize,
    /// Seconds that requests have to end after Ctrl-C
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Server")]
    grace: u64,
    /// Give each answer the hash of its logits and its seed, and let requests ask for traces, probes and changed values
    /// (`doppler: {"trace": ["ffn"], "set": ["ffn_out@3=zero"]}`). The hash brings every row of logits to the host, and a run that is watched keeps others waiting
    #[arg(long, help_heading = "Server")]
    allow_debug: bool,

    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    config: ConfigArgs,
}

fn from_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=65_536) => Ok(number),
        _ => Err("expected a whole number from 1 to 65536".into()),
    }
}

pub fn run(args: Box<Args>) -> Result<Ended, Stop> {
    let settings = Settings::resolve(&args.config, &args.sampling, &args.machine)?;
    if let Some(ended) = settings.show(&args.config)? {
        return Ok(ended);
    }
    settings.unchanged()?;
    let inference = settings.unseen().clone();
    if args.machine.surface == Surface::Browser {
        return Err(Error::invalid("--surface", "models are served natively: leave out --surface browser").into());
    }
    if args.api_key.as_deref() == Some("") {
        return Err(Error::invalid("--api-key", "it is empty: leave the option out, or give a key").into());
    }
    let key = args.api_key.clone().or_else(|| std::env::var("DOPPLER_API_KEY").ok()).filter(|key| !key.is_empty());
    // The address is ours before anything is loaded.
    let Door { listener, port, socket } = Door::open(&args)?;
    let args: Arc<Args> = args.into();
    let mut workers = Workers::default();
    for spec in &args.model {
        let hosted = workers.start(spec, &args, &inference)?;
        tell(&format!("{} on {}, {} sequences of {} tokens", hosted.id, hosted.device, hosted.room.count, hosted.room.capacity));
    }
    let shared = Arc::new(Shared {
        models: workers.models.clone(),
        most_body: args.max_body,
        debug: args.allow_debug,
        ending: AtomicBool::new(false),
        active: AtomicUsize::new(0),
    });
    let names = port.map(|port| Names { host: args.host, port, others: args.allow_host.clone() });
    let guard = Guard::new(names, key.as_deref(), args.cors.clone());
    let running = http::serve(listener, routes::router(shared.clone(), guard), args.connections, READERS)?;
    let _guard = interrupt::guard();
    match (port, &socket) {
        (Some(port), _) => {
            let address = SocketAddr::new(if args.host.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { args.host }, port);
            terminal::out(&format!("Serving http://{address}/v1\n"))?;
        }
        (None, socket) => {
            let path = socket.as_ref().map(|socket| socket.0.display().to_string()).unwrap_or_default();
            terminal::out(&format!("Serving http://localhost/v1 at the socket {path}\n"))?;
        }
    }
    tell("Ctrl-C ends; /openapi.json says what can be asked");
    if !args.host.is_loopback() && key.is_none() {
        tell(&format!("note: whoever reaches {} of this machine can use the models; --api-key asks for a key", args.host));
    }
    while !interrupt::requested() {
        std::thread::sleep(Duration::from_millis(50));
    }
    wait(&shared, Duration::from_secs(args.grace));
    drop((workers, running, socket));
    Ok(Ended::Interrupted)
}

/// Where clients come in.
struct Door {
    listener: Listener,
    /// None for a socket in the file system.
    port: Option<u16>,
    socket: Option<SocketFile>,
}

impl Door {
    fn open(args: &Args) -> Result<Self> {
        #[cfg(unix)]
        if let Some(path) = &args.unix {
            let listener = http::listen_at(path).map_err(|e| e.within("--unix"))?;
            return Ok(Self { listener, port: None, socket: Some(SocketFile(path.clone())) });
        }
        let (listener, port) = http::listen(args.host, args.port)
            .map_err(|e| Error::io("doppler serve", format!("{}; choose another with --port, or any free one with --port 0", e.message)))?;
        Ok(Self { listener, port: Some(port), socket: None })
    }
}

/// The file of a socket, removed when this is dropped.
struct SocketFile(std::path::PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // One that stays is replaced by the next server.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The threads of the models. They end when this is dropped: devices are let go by those who have them.
#[derive(Default)]
struct Workers {
    models: Vec<Arc<Hosted>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(&mut self, spec: &str, args: &Arc<Args>, inference: &Inference) -> Result<Arc<Hosted>> {
        let (hosted, thread) = worker::start(spec.to_string(), args.clone(), inference.clone())?;
        self.threads.push(thread);
        self.models.push(hosted.clone());
        match self.models.iter().filter(|other| other.id == hosted.id).count() {
            1 => Ok(hosted),
            _ => Err(Error::invalid("--model", format!("two models have the id `{}`: give one of the folders another name", hosted.id))),
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.models.iter().for_each(|model| model.end());
        // One that has not ended is in its last step.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Waits until the requests under way have ended, for as long as `grace`; says which were cut.
fn wait(shared: &Shared, grace: Duration) {
    shared.ending.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let active = || shared.active.load(Ordering::SeqCst);
    if active() > 0 {
        tell(&format!("ending: {} requests have {} s; Ctrl-C ends at once", active(), grace.as_secs()));
    }
    // The first signal was taken; the next one ends the program.
    while active() > 0 && started.elapsed() < grace {
        std::thread::sleep(Duration::from_millis(10));
    }
    if active() > 0 {
        tell(&format!("{} requests were cut", active()));
    }
}
