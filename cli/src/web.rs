//! `doppler web`: the page on this machine, and a model of this machine beside it.

use crate::browser::{Files, SITE, Server, find_bundle};
use crate::end::{Ended, Stop};
use crate::terminal::{self, tell};
use crate::{interrupt, model};
use bytes::Bytes;
use doppler::formats::{ByteSource, Local};
use doppler::loader::ModelFiles;
use doppler::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model's folder, which the page then opens with; without it, the built-in model
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// Port on this machine; 0 is any free one
    #[arg(long, value_name = "N", default_value_t = 8421)]
    port: u16,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    let given = args.model.as_deref().filter(|spec| *spec != model::DEMO);
    let files = match given {
        Some(spec) => {
            // Refused here rather than in the page.
            served(&model::open(spec, true)?.files)?
        }
        None => Files::new(),
    };
    let folder = find_bundle(SITE)?;
    let server = Server::site(&folder, files, args.port).map_err(|e| match args.port {
        0 => e,
        _ => Error::io("doppler web", format!("{}; choose another with --port, or any free one with --port 0", e.message)),
    })?;
    let with = if given.is_some() { "?model=./model/" } else { "" };
    terminal::out(&format!("Serving http://127.0.0.1:{}/{with}\n", server.port))?;
    tell("Open it in a browser with WebGPU (Chrome or Edge 113, Safari 26, Firefox 141, or newer); Ctrl-C ends");
    let _guard = interrupt::guard();
    while !interrupt::requested() {
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(server);
    Ok(Ended::Interrupted)
}

/// A model's files, by the names that the web package asks for.
fn served(files: &ModelFiles) -> Result<Files> {
    let mut served: Files = files.texts.iter().map(|(name, text)| (name.to_string(), Bytes::from(text.clone()))).collect();
    let mut shards = BTreeMap::new();
    for source in &files.sources {
        let name = file_name(source);
        if files.sources.len() > 1 {
            let header = pollster::block_on(doppler::formats::safetensors::read_header(source))?;
            shards.extend(header.tensors.into_iter().map(|tensor| (tensor.name, name.clone())));
        }
        let name = if files.sources.len() > 1 { name } else { "model.safetensors".into() };
        served.insert(name, source.slice(0..source.len())?);
    }
    if !shards.is_empty() {
        let index = serde_json::json!({ "weight_map": shards });
        served.insert("model.safetensors.index.json".into(), Bytes::from(index.to_string()));
    }
    Ok(served)
}

fn file_name(source: &Local) -> String {
    let name = Path::new(source.name()).file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| source.name().to_string())
}
