//! Content of tensors that is made while it is written, so that a file may be larger than memory.

use std::io::{Error, Result, Write};

/// Writes a tensor's bytes.
pub type Content<'a> = Box<dyn Fn(&mut dyn Write) -> Result<()> + 'a>;

/// Counts what goes through.
pub(super) struct Counted<'a> {
    out: &'a mut dyn Write,
    written: u64,
}

impl<'a> Counted<'a> {
    /// Counts from 0 what is written to `out`.
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self { out, written: 0 }
    }
    /// Bytes so far.
    pub fn written(&self) -> u64 {
        self.written
    }
    /// Writes `content`, which must end at byte `end`.
    pub fn put(&mut self, tensor: &str, content: &Content<'_>, end: u64) -> Result<()> {
        content(self)?;
        if self.written == end {
            return Ok(());
        }
        Err(Error::other(format!("tensor `{tensor}`: expected to end at data byte {end}, wrote up to {}", self.written)))
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = self.out.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> Result<()> {
        self.out.flush()
    }
}
