//! The `doppler` binary: reads the command line, runs one command, and turns how it ended into an exit code.
//! Everything about models and numbers is in the engine; everything about one command is in the file of its name.

mod args;
mod bench;
mod browser;
mod bundle;
mod chat;
mod cli;
mod compare;
mod completions;
mod convert;
mod debug;
mod device;
mod devices;
mod doctor;
mod end;
mod exam;
mod http;
mod hub;
mod imatrix;
mod inspect;
mod interrupt;
mod kept;
mod load;
mod memory;
mod model;
mod output;
mod patch;
mod progress;
mod prompt;
mod pull;
mod resident;
mod run;
mod serve;
mod settings;
mod stages;
mod terminal;
mod tune;
mod tuned;
mod verify;
mod watching;
mod web;

use clap::Parser;
use cli::{Cli, Command};
use end::{Ended, Stop};
use kept::ModelCache;
use std::process::ExitCode;

fn main() -> ExitCode {
    silence_device_select();
    end::keep_panics();
    let ended = std::panic::catch_unwind(command).unwrap_or_else(|_| Err(end::bug()));
    ExitCode::from(end::exit_code(ended))
}

/// Runs what the command line asks for.
fn command() -> Result<Ended, Stop> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help_or_mistake) => return end::usage(&help_or_mistake),
    };
    interrupt::install()?;
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Debug(args) => debug(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Patch(args) => patch::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Stages(args) => stages::run(&args),
        Command::Bench(args) => bench(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Serve(args) => serve::run(args),
        Command::Web(args) => web::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Exam(args) => exam::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Imatrix(args) => imatrix::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => completions::man(&args),
        Command::Resident(args) => resident::run(&args),
    }
}

/// Has the resident process run `debug`, or runs it here where that is not wanted or not possible.
fn debug(args: &debug::Args) -> Result<Ended, Stop> {
    // A download must not keep others waiting for the resident process, nor does that know this process's environment.
    let place = args.place();
    let notes = match &place {
        Ok(place) if !args.runs_here() => match resident::client::ask(place.as_ref())? {
            resident::Asked::Ended(ended) => return Ok(ended),
            resident::Asked::NotPossible(notes) => notes,
        },
        // An error is reported where the model would be opened.
        _ => Vec::new(),
    };
    debug::perform(args, &mut ModelCache::default(), place, &notes)
}

/// The benchmark prints as it goes: on stderr where its figures go to stdout.
fn bench(args: &bench::BenchArgs) -> Result<Ended, Stop> {
    output::check(&[("--json", args.json.as_deref().map(std::path::Path::new))])?;
    let to_stdout = args.json.as_deref() == Some("-");
    let mut out = output::PipeWriter::new(if to_stdout { Box::new(terminal::stderr()) } else { Box::new(terminal::stdout()) });
    let figures = bench::run(args, &mut out);
    if out.closed() {
        return Err(Stop::Closed);
    }
    let figures = figures?;
    if let Some(path) = &args.json {
        output::document(path, &figures)?;
    }
    Ok(Ended::Fine)
}

/// Mesa's device-select layer asks for a display when a Vulkan instance is made, and libwayland complains on stderr
/// where there is none.
fn silence_device_select() {
    if cfg!(target_os = "linux") && ["DISPLAY", "WAYLAND_DISPLAY"].iter().all(|name| std::env::var_os(name).is_none()) {
        // SAFETY: this is the first thing that the only thread does, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
