//! The resident process: runs `debug` for the commands that people type, and keeps the model loaded between them. It has
//! no terminal and holds nothing of a client's; it ends by itself when nobody needed it for a while. One per user.

#[cfg(unix)]
pub mod client;
#[cfg(unix)]
mod place;
#[cfg(unix)]
mod protocol;
#[cfg(unix)]
mod server;

use crate::end::{Ended, Stop};
use clap::Subcommand;
use std::io::Write;

/// How a request to the resident process went.
pub enum Asked {
    /// It ran the command.
    Ended(Ended),
    /// There can be none here; the command runs by itself, and says why.
    NotPossible(Vec<String>),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "`debug` starts it, and it frees itself after ten idle minutes. Environment: DOPPLER_RESIDENT=off makes `debug` run without
it, DOPPLER_RESIDENT_DIR is the folder of its socket (one process per folder), DOPPLER_RESIDENT_IDLE its idle seconds."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell what it holds and for how long
    Status,
    /// End it; a run that is under way ends too
    Stop,
    /// What `debug` starts
    #[command(hide = true)]
    Serve,
}

/// `doppler resident …`.
#[cfg(unix)]
pub fn run(args: &Args) -> Result<Ended, Stop> {
    let told = match args.command {
        Command::Serve => {
            server::serve()?;
            return Ok(Ended::Fine);
        }
        Command::Status => client::status()?,
        Command::Stop => client::stop()?,
    };
    writeln!(crate::terminal::stdout(), "{told}")?;
    Ok(Ended::Fine)
}

/// `doppler resident …`.
#[cfg(not(unix))]
pub fn run(_: &Args) -> Result<Ended, Stop> {
    writeln!(crate::terminal::stdout(), "there is no resident process on this system")?;
    Ok(Ended::Fine)
}

/// Where processes cannot talk through a socket in a folder.
#[cfg(not(unix))]
pub mod client {
    use super::Asked;
    use doppler::Result;

    /// Never possible.
    pub fn ask(_: Option<&crate::model::Place>) -> Result<Asked, crate::end::Stop> {
        Ok(Asked::NotPossible(vec!["there is no resident process on this system, so nothing is kept".into()]))
    }
}
