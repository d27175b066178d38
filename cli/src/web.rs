//! `doppler web`: the page on this machine, and a model of this machine beside it.

use crate::browser::{Files, SITE, Server, find_bundle};
use crate::end::{Ended, Stop};
use crate::terminal::{self, tell};
use crate::{hub, interrupt, model};
use doppler::formats::{ByteSource, InMemory, Local, manifest};
use doppler::loader::{ModelFiles, check_within};
use doppler::{Error, Result};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model, as for `run -m`, which the page then opens with; without it, the built-in model
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// Port on this machine; 0 is any free one
    #[arg(long, value_name = "N", default_value_t = 8421)]
    port: u16,
    /// Address to listen at. Whoever reaches it can read the model: 127.0.0.1 is this machine's users, 0.0.0.0 its network
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Open the page in the browser that is set up on this machine
    #[arg(long)]
    open: bool,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    let given = args.model.as_deref().filter(|spec| *spec != model::DEMO);
    // What cannot be opened is refused here rather than in the page.
    let (name, files) = given.map(|spec| model::open(spec, true)).transpose()?.map(|model| (model.name, model.files)).unzip();
    files.iter().flat_map(|files| &files.notes).for_each(|note| tell(&format!("note: {note}")));
    files.as_ref().map_or(Ok(()), within_the_folder)?;
    let (start, files) = files.as_ref().map(served).transpose()?.unwrap_or_default();
    // A folder's model is called what its address ends with.
    let folder = name.as_deref().and_then(|name| name.rsplit('/').next()).map(|name| format!("{}/", hub::encoded(name, false)));
    let start = if start.is_empty() { folder.unwrap_or_default() } else { start };
    let page = find_bundle(SITE)?;
    let server = Server::site(page, files, args.host, args.port).map_err(|e| match args.port {
        0 => e,
        _ => Error::io("doppler web", format!("{}; choose another with --port, or any free one with --port 0", e.message)),
    })?;
    let with = if given.is_some() { format!("?model=./model/{start}") } else { String::new() };
    let address = SocketAddr::new(if args.host.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { args.host }, server.port);
    let address = format!("http://{address}/{with}");
    terminal::out(&format!("Serving {address}\n"))?;
    tell("Open it in a browser with WebGPU (Chrome or Edge 113, Safari 26, Firefox 141, or newer); Ctrl-C ends");
    if !args.host.is_loopback() {
        tell(&format!("note: whoever reaches {} of this machine can read the model and the page", args.host));
    }
    if args.open {
        open(&address);
    }
    let _guard = interrupt::guard();
    while !interrupt::requested() {
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(server);
    Ok(Ended::Interrupted)
}

/// Opens `address` in the user's browser; says so where that fails.
fn open(address: &str) {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let mut command = Command::new(if cfg!(windows) { "explorer" } else { program });
    let started = command.arg(address).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    if let Err(e) = started {
        tell(&format!("note: {}: {e}; open the address by hand", command.get_program().display()));
    }
}

/// Refuses weights, too, that are links out of the model's folder: a folder from elsewhere may name any file of this user, and
/// here each is given as it is.
fn within_the_folder(files: &ModelFiles) -> Result<()> {
    files.check_texts()?;
    let path = files.path.canonicalize().map_err(|e| Error::io(files.path.display(), e))?;
    // The GGUF file that was named, a link or not, is the user's choice; the others of its set lie where it does.
    let folder = if files.gguf.is_some() { path.parent().map(Path::to_path_buf).unwrap_or(path) } else { path };
    files.sources.iter().flat_map(Local::files).try_for_each(|source| check_within(&folder, Path::new(source.name())))
}

/// A model's files by the names that the web package asks for, and the address of the one to begin with; empty for a folder.
fn served(files: &ModelFiles) -> Result<(String, Files)> {
    let by_name = |source: &Local| (file_name(source), source.clone());
    if files.gguf.is_some() {
        let start = files.sources.first().map(|source| hub::encoded(&file_name(source), false)).unwrap_or_default();
        return Ok((start, files.sources.iter().map(by_name).collect()));
    }
    let text = |name: &str, text: String| (name.to_string(), Local::Memory(InMemory::new(name, text)));
    let mut served: Files = files.texts.iter().map(|(name, content)| text(name, content.to_string())).collect();
    if let Some(manifest) = &files.manifest {
        let json = serde_json::to_string(&**manifest).map_err(|e| Error::format(files.path.display(), e))?;
        served.extend([text(manifest::FILE, json)]);
        served.extend(files.sources.iter().flat_map(Local::files).map(by_name));
        return Ok((String::new(), served));
    }
    if let [one] = &files.sources[..] {
        served.insert("model.safetensors".into(), one.clone());
        return Ok((String::new(), served));
    }
    let mut shards = BTreeMap::new();
    for source in &files.sources {
        let header = pollster::block_on(doppler::formats::safetensors::read_header(source))?;
        shards.extend(header.tensors.into_iter().map(|tensor| (tensor.name, file_name(source))));
    }
    served.extend(files.sources.iter().map(by_name));
    served.extend([text("model.safetensors.index.json", serde_json::json!({ "weight_map": shards }).to_string())]);
    Ok((String::new(), served))
}

fn file_name(source: &Local) -> String {
    let name = Path::new(source.name()).file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| source.name().to_string())
}
