//! Ctrl-C: ends the program at once, except while text is generated. There the first one is noticed between two tokens,
//! so that what was generated is told; the second one ends at once.

use doppler::{Error, Result};
use signal_hook::consts::SIGINT;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

/// Whether the next Ctrl-C ends the program at once.
static AT_ONCE: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(true)));

/// Exit code of an interrupted command.
const CODE: i32 = 130;

/// Takes over Ctrl-C.
pub fn install() -> Result<()> {
    let shutdown = signal_hook::flag::register_conditional_shutdown(SIGINT, CODE, AT_ONCE.clone());
    // Registered second, so that a first Ctrl-C sees the flag as it was.
    let both = shutdown.and_then(|_| signal_hook::flag::register(SIGINT, AT_ONCE.clone()));
    both.map(|_| ()).map_err(|e| Error::io("Ctrl-C handler", e))
}

/// While this lives, the first Ctrl-C is only noticed.
pub struct Guard;

/// Until the guard is dropped, Ctrl-C sets what [`requested`] returns.
pub fn guard() -> Guard {
    AT_ONCE.store(false, Ordering::SeqCst);
    Guard
}

/// Whether Ctrl-C was pressed since [`guard`].
pub fn requested() -> bool {
    AT_ONCE.load(Ordering::SeqCst)
}

impl Drop for Guard {
    fn drop(&mut self) {
        AT_ONCE.store(true, Ordering::SeqCst);
    }
}
