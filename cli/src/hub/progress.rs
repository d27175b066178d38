//! How far a download is: a bar on stderr, where that is a terminal.

use crate::terminal;
use doppler::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Bytes from which on a download has a bar.
const SHOWN: u64 = 4 << 20;

/// A bar over all files of a download.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar up to `total` bytes.
    ///
    /// # Errors
    /// `Kind::Io` for a template that cannot be read, which would be a mistake in here.
    pub fn new(total: u64) -> Result<Self> {
        let bar = if total < SHOWN || terminal::client().is_some() { ProgressBar::hidden() } else { ProgressBar::new(total) };
        let style = ProgressStyle::with_template("downloading [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}");
        bar.set_style(style.map_err(|e| Error::io("progress bar", e))?);
        Ok(Self(bar))
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

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
