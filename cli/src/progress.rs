//! Progress bars on stderr, where that is a terminal. A bar goes away when it is dropped.

use crate::interrupt;
use crate::terminal;
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Bytes of work from which on it has a bar: less is done at once.
pub const SHOWN: u64 = 256 << 20;
/// The same of a download, which takes longer.
const SHOWN_DOWNLOAD: u64 = 4 << 20;

const BYTES: &str = "{prefix} [{bar:30}] {bytes}/{total_bytes} {wide_msg}";
const DOWNLOAD: &str = "downloading [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}";
const STEPS: &str = "{prefix} [{bar:30}] {pos}/{len} {eta} {wide_msg}";

/// A bar that looks as `template` says; a test holds that templates can be read.
fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A bar up to `total` bytes, hidden for fewer than `shown` and where a client has the terminal.
fn of_bytes(total: u64, shown: u64, template: &str) -> ProgressBar {
    let bar = if total < shown || terminal::client().is_some() { ProgressBar::hidden() } else { ProgressBar::new(total) };
    styled(bar, template)
}

/// A bar over bytes, on this terminal or the client's.
pub struct Bytes {
    bar: ProgressBar,
    total: u64,
    last: Cell<Option<Instant>>,
}

impl Bytes {
    /// A bar up to `total` bytes of what `verb` says.
    pub fn new(verb: &'static str, total: u64) -> Self {
        Self { bar: of_bytes(total, SHOWN, BYTES).with_prefix(verb), total, last: Cell::default() }
    }
    /// `done` bytes are there, the last of them of `what`.
    pub fn set(&self, done: u64, what: &str) {
        self.bar.set_position(done);
        self.bar.set_message(terminal::printable(what).into_owned());
        let due = self.last.get().is_none_or(|last| last.elapsed().as_millis() > 50);
        if let (Some(client), true, true) = (terminal::client(), due, self.total >= SHOWN) {
            client.progress(done, self.total, what);
            self.last.set(Some(Instant::now()));
        }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar over all files of a download.
pub struct Download(ProgressBar);

impl Download {
    /// A bar up to `total` bytes.
    pub fn new(total: u64) -> Self {
        Self(of_bytes(total, SHOWN_DOWNLOAD, DOWNLOAD))
    }
    /// `name` is what comes next.
    pub fn begin(&self, name: &str) {
        self.0.set_message(terminal::printable(name).into_owned());
    }
    /// So many bytes came.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }
    /// So many bytes were here already: they say nothing of the speed.
    pub fn resume(&self, bytes: u64) {
        self.0.inc(bytes);
        self.0.reset_eta();
    }
    /// So many bytes have to come again.
    pub fn take_back(&self, bytes: u64) {
        self.0.dec(bytes);
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// How often how far it is is said where there is no terminal for a bar.
const SAY: Duration = Duration::from_secs(5);

/// A bar over steps of work, such as tokens; where stderr is no terminal, a line every few seconds.
pub struct Steps {
    bar: ProgressBar,
    said: Cell<Instant>,
}

impl Steps {
    /// A bar that is called `what`.
    pub fn new(what: &str) -> Self {
        Self { bar: styled(ProgressBar::no_length(), STEPS).with_prefix(what.to_string()), said: Cell::new(Instant::now()) }
    }
    /// `done` steps of `of` are done.
    pub fn set(&self, done: usize, of: usize) {
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
        if self.bar.is_hidden() && self.said.get().elapsed() >= SAY {
            let (what, message) = (self.bar.prefix(), self.bar.message());
            let what = if message.is_empty() { what } else { format!("{what} ({message})") };
            terminal::tell(&format!("{what}: {done} of {of}"));
            self.said.set(Instant::now());
        }
    }
    /// As [`Self::set`], of a part of the work that is called `what`.
    fn set_part(&self, what: &str, done: usize, of: usize) {
        if self.bar.prefix() != what {
            self.bar.set_prefix(what.to_string());
            self.bar.reset_eta();
        }
        self.set(done, of);
    }
    /// As [`Self::set`], with what is being done; breaks where the user wants to end, which `interrupt::guard` lets be heard.
    pub fn heard(&self, what: &str, done: usize, of: usize) -> ControlFlow<()> {
        self.bar.set_message(what.to_string());
        self.set(done, of);
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Does `work`, which reports how far it is, with a bar called `what`.
pub fn shown<R>(what: &str, work: impl FnOnce(&mut dyn FnMut(usize, usize)) -> R) -> R {
    let bar = Steps::new(what);
    work(&mut |done, of| bar.set(done, of))
}

/// As [`shown`], for work in several parts, each of which is named.
pub fn shown_parts<R>(work: impl FnOnce(&mut dyn FnMut(&str, usize, usize)) -> R) -> R {
    let bar = Steps::new("");
    work(&mut |what, done, of| bar.set_part(what, done, of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_can_be_read() {
        for template in [BYTES, DOWNLOAD, STEPS] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_bar_says_how_far_the_work_is() {
        let bar = Steps::new("reading");
        bar.set(3, 9);
        assert_eq!((bar.bar.prefix().as_str(), bar.bar.position(), bar.bar.length()), ("reading", 3, Some(9)));
        bar.set_part("judging", 1, 2);
        assert_eq!((bar.bar.prefix().as_str(), bar.bar.position(), bar.bar.length()), ("judging", 1, Some(2)));
        let bar = Download::new(10);
        bar.resume(4);
        bar.add(3);
        bar.take_back(5);
        assert_eq!(bar.0.position(), 2);
        assert!(bar.0.is_hidden());
    }
}
