//! Chores of the repository: `cargo xtask check` and what it is made of. Nothing that Doppler ships depends on it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]

mod check;
mod faults;
mod licences;
mod setup;
mod suite;
mod web;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo xtask COMMAND

  check           everything that must be green: set-up, formatting, clippy (native and wasm32), the wasm build, tests
  setup           the set-up alone: what the tests need of the system, installed where apt-get may be used
  web             build the browser's files and print their folder
  fuzz [TARGET|all] [INPUTS] [SEED] [SECONDS]  every parser over broken files, of each target so many (100,000); goes on where it stopped
  faults [SEED] [OUT]  plant faults in models, have `doppler doctor` find them, count (docs/FAULTS.md)
  licences        write THIRD-PARTY.txt, the licences of what is shipped
  install         cargo install of `doppler` with the page inside; options of `cargo install` may follow
";

/// Failures are told where they happen; the text says what to do next.
type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["check"] => check::check(),
        ["setup"] => setup::setup().map(|()| ExitCode::SUCCESS),
        ["web"] => web::build().map(print_path),
        ["fuzz", ref told @ ..] => suite::fuzz(told),
        ["faults", ref arguments @ ..] => faults::campaign(arguments),
        ["licences"] => licences::write().map(|()| ExitCode::SUCCESS),
        ["install", ref options @ ..] => web::install(options).map(|()| ExitCode::SUCCESS),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("error: there is no `{}`\n\n{USAGE}", words.join(" "));
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_path(path: PathBuf) -> ExitCode {
    println!("{}", path.display());
    ExitCode::SUCCESS
}

/// The repository's root: `DOPPLER_ROOT`, where this was built elsewhere.
fn root() -> &'static Path {
    static ROOT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf();
    ROOT.get_or_init(|| std::env::var_os("DOPPLER_ROOT").map_or_else(built, PathBuf::from))
}

/// The cargo that runs us, in the repository's root.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Runs `command` to its end; an error when it fails or does not exist.
fn run(command: &mut Command) -> Result {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|e| format!("{name}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name}: {status}").into()) }
}

/// Whether `command` runs and succeeds; its output is dropped.
fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).current_dir(root()).output().is_ok_and(|output| output.status.success())
}
