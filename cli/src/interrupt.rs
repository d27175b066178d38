//! Ctrl-C and SIGTERM: they end the program at once, except while text is generated. There the first one is noticed
//! between two tokens, so that what was generated is told; the second one ends at once.

use crate::terminal;
use doppler::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

/// Whether the next signal ends the program at once.
static AT_ONCE: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(true)));
/// Whether it was SIGTERM.
static TERMINATED: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(false)));

/// Exit codes of commands that were interrupted, by signal.
const CODES: [(i32, i32); 2] = [(SIGINT, 130), (SIGTERM, 143)];

/// Takes over Ctrl-C and SIGTERM.
pub fn install() -> Result<()> {
    let failed = |e| Error::io("signal handler", e);
    for (signal, code) in CODES {
        signal_hook::flag::register_conditional_shutdown(signal, code, AT_ONCE.clone()).map_err(failed)?;
        // Registered second, so that a first signal sees the flag as it was.
        signal_hook::flag::register(signal, AT_ONCE.clone()).map_err(failed)?;
    }
    signal_hook::flag::register(SIGTERM, TERMINATED.clone()).map_err(failed)?;
    Ok(())
}

/// While this lives, the first signal is only noticed.
pub struct Guard;

/// Until the guard is dropped, a signal sets what [`requested`] returns.
pub fn guard() -> Guard {
    match terminal::client() {
        Some(client) => client.generating(true),
        None => AT_ONCE.store(false, Ordering::SeqCst),
    }
    Guard
}

/// Whether there was a signal since [`guard`], or the client wants to end.
pub fn requested() -> bool {
    match terminal::client() {
        Some(client) => client.interrupted(),
        None => AT_ONCE.load(Ordering::SeqCst),
    }
}

/// Exit code of an interrupted command.
pub fn code() -> u8 {
    if TERMINATED.load(Ordering::SeqCst) { 143 } else { 130 }
}

impl Drop for Guard {
    fn drop(&mut self) {
        match terminal::client() {
            Some(client) => client.generating(false),
            None => AT_ONCE.store(true, Ordering::SeqCst),
        }
    }
}
