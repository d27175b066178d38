//! `doppler pull`: a model of the Hub into the cache on this machine. Any command does that by itself with `-m org/name`.

use crate::end::{Ended, Stop};
use crate::hub::{self, HubId, Need};
use crate::terminal::{self, tell};
use doppler::Error;
use std::io::Write;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Of a folder, only what computing needs is fetched: configs, tokenizer, chat template, safetensors. Environment, as for the
Hub's own client: HF_TOKEN (or the token file in HF_HOME) for gated and private models, HF_HOME or HF_HUB_CACHE for another
place, HF_ENDPOINT for another Hub, HF_HUB_OFFLINE=1 to use only what is here, SSL_CERT_FILE for other certificates."
)]
pub struct Args {
    /// A model of the Hub, at a branch, tag or commit; of a repository of GGUF files, one of them or the end of its name: Q4_K_M
    #[arg(value_name = "ORG/NAME[@REV][:FILE]")]
    model: String,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    let id = HubId::parse(&args.model)?.ok_or_else(|| Error::invalid(&args.model, "expected org/name[@revision][:FILE], as on the Hub"))?;
    let found = hub::fetch(&id, Need::Everything)?;
    found.notes.iter().for_each(|note| tell(&format!("note: {note}")));
    writeln!(terminal::stdout(), "{}", found.path.display())?;
    Ok(Ended::Fine)
}
