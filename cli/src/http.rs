//! What the HTTP servers of this program share: connections with time limits, at most so many at a time, and the names by
//! which clients may know a server. Pages of other origins and other names for its address (DNS rebinding) are refused;
//! clients that send nothing lose their connection.

use axum::Router;
use axum::http::{HeaderMap, header};
use doppler::{Error, Result};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::VecDeque;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::AbortHandle;

/// How long a client may take to send the head of a request; also how long an idle connection is kept.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Where clients connect.
pub enum Listener {
    Tcp(TcpListener),
    /// A socket in the file system.
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener),
}

/// A running server. It ends when this is dropped.
pub struct Running {
    _end: oneshot::Sender<()>,
}

/// Listens at `host` and `port` (0 is any free one); which port it is.
///
/// # Errors
/// `Kind::Io` when the address cannot be had.
pub fn listen(host: IpAddr, port: u16) -> Result<(Listener, u16)> {
    let failed = |e: std::io::Error| Error::io(format!("port {port} of {host}"), e);
    let listener = TcpListener::bind((host, port)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    Ok((Listener::Tcp(listener), port))
}

/// Listens at a socket at `path`, for those who may write it: this user. One that a server left which ended is replaced.
///
/// # Errors
/// `Kind::Io` when something else is there, or it cannot be made.
#[cfg(unix)]
pub fn listen_at(path: &std::path::Path) -> Result<Listener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::os::unix::net::{UnixListener, UnixStream};
    let failed = |e: &dyn std::fmt::Display| Error::io(format!("socket {}", path.display()), e);
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(failed(&"something else is there: give a path where nothing is"));
        }
        match UnixStream::connect(path) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(|e| failed(&e))?,
            Ok(_) => return Err(failed(&"another server listens there: give another path")),
            Err(e) => return Err(failed(&e)),
        }
    }
    let listener = UnixListener::bind(path).map_err(|e| failed(&e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|e| failed(&e))?;
    listener.set_nonblocking(true).map_err(|e| failed(&e))?;
    Ok(Listener::Unix(listener))
}

/// Serves `app` in a thread, to at most `connections` at a time; further ones wait, or take the place of the oldest that has
/// sent no whole request yet. `helpers` are the threads at most for what
/// would keep that one from its connections.
///
/// # Errors
/// `Kind::Io` when there is no thread.
pub fn serve(listener: Listener, app: Router, connections: usize, helpers: usize) -> Result<Running> {
    let failed = |e: std::io::Error| Error::io("the server", e);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().enable_time().max_blocking_threads(helpers).build().map_err(failed)?;
    let (_end, ended) = oneshot::channel::<()>();
    let serve = async move {
        let listener = match listener {
            Listener::Tcp(listener) => Open::Tcp(tokio::net::TcpListener::from_std(listener)?),
            #[cfg(unix)]
            Listener::Unix(listener) => Open::Unix(tokio::net::UnixListener::from_std(listener)?),
        };
        tokio::select! {
            served = accept(listener, app, connections) => served,
            _ = ended => Ok(()),
        }
    };
    let thread = std::thread::Builder::new().name("server".into());
    thread.spawn(move || runtime.block_on(serve)).map_err(failed)?;
    Ok(Running { _end })
}

/// A listener that the runtime waits for.
enum Open {
    Tcp(tokio::net::TcpListener),
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
}

async fn accept(listener: Open, app: Router, connections: usize) -> std::io::Result<()> {
    let mut room = Room { places: Arc::new(Semaphore::new(connections)), silent: VecDeque::new() };
    loop {
        let accepted = match &listener {
            Open::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                // Small messages must not wait for each other. Where this cannot be had, they do.
                let _ = stream.set_nodelay(true);
                Accepted::Tcp(stream)
            }),
            #[cfg(unix)]
            Open::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        };
        let Ok(stream) = accepted else {
            // No descriptor is free, or the client went away: others go on.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Some(place) = room.place().await else { return Ok(()) };
        let heard = Arc::new(AtomicBool::new(false));
        let task = match stream {
            Accepted::Tcp(stream) => connect(stream, app.clone(), heard.clone(), place),
            #[cfg(unix)]
            Accepted::Unix(stream) => connect(stream, app.clone(), heard.clone(), place),
        };
        room.silent.push_back((heard, task));
    }
}

/// A client's connection.
enum Accepted {
    Tcp(tokio::net::TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

/// Places for connections, and those connections that have sent no whole request yet, the oldest first.
struct Room {
    places: Arc<Semaphore>,
    silent: VecDeque<(Arc<AtomicBool>, AbortHandle)>,
}

impl Room {
    /// A place for one more. Where all are taken, the oldest connection that has said nothing yet loses its own: clients that
    /// connect and wait must not keep others out.
    async fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        self.silent.retain(|(heard, task)| !heard.load(Ordering::Relaxed) && !task.is_finished());
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        if let Some((_, task)) = self.silent.pop_front() {
            task.abort();
        }
        self.places.clone().acquire_owned().await.ok()
    }
}

/// Serves `app` to the client at `stream`, which has `place` as long, and notes when it has `heard` the head of a request.
fn connect(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    heard: Arc<AtomicBool>,
    place: OwnedSemaphorePermit,
) -> AbortHandle {
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |request| {
        heard.store(true, Ordering::Relaxed);
        app.call(request)
    });
    let task = tokio::spawn(async move {
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
        // A connection that breaks is the client's affair.
        let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        drop(place);
    });
    task.abort_handle()
}

/// The names by which clients may know a server.
pub struct Names {
    pub host: IpAddr,
    pub port: u16,
    /// Further ones, at any port: those that a proxy or a network gives it.
    pub others: Vec<String>,
}

impl Names {
    /// Whether `authority`, a host with a port, is this server. Only its own address, `localhost` and the names that it was
    /// told are; where it listens for other machines, every address in numbers: a page of another origin can only come with
    /// a name of its own.
    pub fn has(&self, authority: &str) -> bool {
        let name = authority.rsplit_once(':').map_or(authority, |(name, _)| name);
        if self.others.iter().any(|other| other.eq_ignore_ascii_case(name)) {
            return true;
        }
        let Some((name, port)) = authority.rsplit_once(':') else { return self.port == 80 && self.has(&format!("{authority}:80")) };
        let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name).parse::<IpAddr>();
        let known = match address {
            Ok(address) => address.is_loopback() || address == self.host || !self.host.is_loopback(),
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        };
        known && port.parse() == Ok(self.port)
    }
    /// Whether a request's host is this server.
    pub fn has_host(&self, headers: &HeaderMap) -> bool {
        headers.get(header::HOST).is_some_and(|host| self.has(host.to_str().unwrap_or_default()))
    }
    /// Whether a request comes from no page, or from one of this server's.
    pub fn is_of_ours(&self, headers: &HeaderMap) -> bool {
        let of_page = |origin: &str| origin.strip_prefix("http://").is_some_and(|host| self.has(host));
        headers.get(header::ORIGIN).is_none_or(|origin| of_page(origin.to_str().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that connect and say half a request keep no other out.
    #[test]
    fn silent_connections_make_room() {
        use std::io::{Read, Write};
        let (listener, port) = listen("127.0.0.1".parse().unwrap(), 0).unwrap();
        let app = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let _server = serve(listener, app, 3, 1).unwrap();
        let connect = |text: &str| {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            stream
        };
        let silent: Vec<_> = (0..8).map(|_| connect("G")).collect();
        let started = std::time::Instant::now();
        let mut answer = String::new();
        connect("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("here") && started.elapsed() < HEAD_TIME / 2, "{answer}, {:?}", started.elapsed());
        drop(silent);
    }

    #[test]
    fn only_its_own_names_are_answered() {
        let names = |host: &str| Names { host: host.parse().unwrap(), port: 8421, others: Vec::new() };
        let here = names("127.0.0.1");
        for known in ["127.0.0.1:8421", "localhost:8421", "LOCALHOST:8421", "[::1]:8421"] {
            assert!(here.has(known), "{known}");
        }
        for other in
            ["rebound.example:8421", "localhost:80", "localhost", "127.0.0.1", "10.0.0.1:8421", "localhost.example:8421", "", ":8421"]
        {
            assert!(!here.has(other), "{other}");
        }
        let open = names("0.0.0.0");
        assert!(open.has("10.0.0.1:8421") && !open.has("rebound.example:8421"));
        assert!(Names { port: 80, ..names("127.0.0.1") }.has("localhost"));
        let named = Names { others: vec!["models.example".into()], ..here };
        assert!(named.has("models.example") && named.has("Models.example:443") && !named.has("other.example:443"));
    }
}
