//! `doppler completions` and `doppler man`: the command line as shells and manual pages have it. Both are made from the
//! parser itself, so they know what it knows.

use crate::cli::Cli;
use crate::end::{Ended, Stop};
use crate::output;
use crate::terminal::{self, tell};
use clap::CommandFactory;
use clap_complete::Shell;
use doppler::Error;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// bash: source <(doppler completions bash). zsh: into a file _doppler of a folder in $fpath. fish: into
    /// ~/.config/fish/completions/doppler.fish
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The folder for doppler.1, doppler-run.1 and so on; without it, doppler.1 goes to stdout
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "doppler", &mut text);
    terminal::out(&String::from_utf8_lossy(&text))?;
    Ok(Ended::Fine)
}

pub fn man(args: &ManArgs) -> Result<Ended, Stop> {
    let mut command = Cli::command();
    command.build();
    let Some(folder) = &args.out else {
        terminal::out(&page(command)?)?;
        return Ok(Ended::Fine);
    };
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder.display(), e))?;
    let pages = pages(&command, "doppler".into());
    for (name, command) in &pages {
        output::file(&folder.join(format!("{name}.1")), &page(command.clone())?)?;
    }
    tell(&format!("wrote {} pages to {}", pages.len(), folder.display()));
    Ok(Ended::Fine)
}

/// A command and those below it, each with the name of its page.
fn pages(command: &clap::Command, name: String) -> Vec<(String, clap::Command)> {
    let below = command.get_subcommands().filter(|below| below.get_name() != "help" && !below.is_hide_set());
    let below: Vec<_> = below.flat_map(|below| pages(below, format!("{name}-{}", below.get_name()))).collect();
    std::iter::once((name, command.clone())).chain(below).collect()
}

/// A page in roff.
fn page(command: clap::Command) -> Result<String, Stop> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let mut command = Cli::command();
        command.build();
        let names: Vec<String> = pages(&command, "doppler".into()).into_iter().map(|(name, _)| name).collect();
        for name in ["doppler", "doppler-run", "doppler-compare-attribute"] {
            assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
        }
        assert!(page(command).unwrap().contains("LLM inference engine"));
    }
}
