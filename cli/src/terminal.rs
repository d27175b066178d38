//! Where the text of a command goes: to stdout and stderr of this process, or to the client for whom the resident
//! process runs it. Commands that never run there write to stdout themselves.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Arc;

/// The other end of a command that runs in the resident process.
pub trait Client: Send + Sync {
    /// Text for its stdout.
    ///
    /// # Errors
    /// `BrokenPipe` when it is gone.
    fn out(&self, text: &str) -> io::Result<()>;
    /// A line for its stderr. One that cannot be told is lost.
    fn tell(&self, text: &str);
    /// How far loading is, in bytes, and what is being loaded.
    fn progress(&self, done: u64, total: u64, what: &str);
    /// Whether an interruption will be noticed between two tokens from now on.
    fn generating(&self, on: bool);
    /// Whether it wants to end.
    fn interrupted(&self) -> bool;
    /// Whether nobody is there any more.
    fn gone(&self) -> bool;
}

thread_local! {
    static CLIENT: RefCell<Option<Arc<dyn Client>>> = const { RefCell::new(None) };
}

/// The client that this thread works for.
pub fn client() -> Option<Arc<dyn Client>> {
    CLIENT.with_borrow(Clone::clone)
}

/// Runs `work` for `client`.
pub fn for_client<R>(client: Arc<dyn Client>, work: impl FnOnce() -> R) -> R {
    CLIENT.set(Some(client));
    let done = work();
    CLIENT.set(None);
    done
}

/// Writes to stdout, at once.
///
/// # Errors
/// Those of stdout; `BrokenPipe` when nobody reads.
pub fn out(text: &str) -> io::Result<()> {
    match client() {
        Some(client) => client.out(text),
        None => {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()
        }
    }
}

/// A line on stderr. One that cannot be written is lost: there is nowhere to say so.
pub fn tell(text: &str) {
    match client() {
        Some(client) => client.tell(text),
        None => {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }
}
