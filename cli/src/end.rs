//! How a command ends: exit codes, the one `Error` line, quiet ends when a pipe is closed, and panics made into errors.

use crate::interrupt;
use crate::terminal::{self, tell};
use doppler::{Error, Kind};
use std::io::Write;
use std::num::{ParseFloatError, ParseIntError};
use std::sync::Mutex;

/// How a command came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All is well.
    Fine,
    /// An anomaly was found and told.
    Finding,
    /// Ctrl-C, or a request to end from outside (SIGTERM).
    Interrupted,
    /// As the resident process says.
    Code(u8),
}

/// Why a command stopped before its end.
#[derive(Debug)]
pub enum Stop {
    /// It could not do its work.
    Failed(Error),
    /// Nobody reads its output any more.
    Closed,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

/// Errors of writing to stdout and stderr.
impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Stop::Closed,
            _ => Stop::Failed(Error::io("output", error)),
        }
    }
}

/// 0 fine, 1 a finding, 2 could not run, 130 interrupted, 143 ended by SIGTERM. Prints the error, if there is one.
pub fn exit_code(ended: Result<Ended, Stop>) -> u8 {
    match ended {
        Ok(Ended::Fine) | Err(Stop::Closed) => 0,
        Ok(Ended::Finding) => 1,
        Ok(Ended::Interrupted) => interrupt::code(),
        Ok(Ended::Code(code)) => code,
        Err(Stop::Failed(error)) => {
            tell(format!("Error {error}").trim_end());
            if error.kind == Kind::Finding { 1 } else { 2 }
        }
    }
}

/// What the argument parser has to say: a help text or version on stdout, or a mistake as an error.
pub fn usage(said: &clap::Error) -> Result<Ended, Stop> {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    match said.kind() {
        DisplayHelp | DisplayVersion => {
            said.print()?;
            return Ok(Ended::Fine);
        }
        // Nothing at all was asked for: the same help.
        DisplayHelpOnMissingArgumentOrSubcommand => {
            write!(terminal::stdout(), "{}", said.render())?;
            return Ok(Ended::Fine);
        }
        _ => {}
    }
    let text = in_words(said);
    let text = text.trim_end().trim_start_matches("error: ");
    Err(Stop::Failed(Error::new(Kind::Invalid, text)))
}

/// A mistake, with what the standard library says of numbers in words that name what is expected.
fn in_words(said: &clap::Error) -> String {
    let text = said.render().to_string();
    match std::error::Error::source(said) {
        Some(cause) if cause.is::<ParseIntError>() => text.replace(&cause.to_string(), "expected a whole number"),
        Some(cause) if cause.is::<ParseFloatError>() => text.replace(&cause.to_string(), "expected a number"),
        _ => text,
    }
}

/// The last panic's place and text.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Keeps panics from printing: libraries' panics that the engine catches are none of the user's business, and one that
/// ends the program is told by [`bug`].
pub fn keep_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if let Ok(mut kept) = PANIC.lock() {
            *kept = panic.to_string();
        }
    }));
}

/// The error for a panic that ended the command.
pub fn bug() -> Stop {
    let kept = PANIC.lock().map(|kept| kept.clone()).unwrap_or_default();
    let text = kept.split_whitespace().collect::<Vec<_>>().join(" ");
    Stop::Failed(Error::new(Kind::Invalid, format!("a bug in Doppler, please report it: {text}")))
}
