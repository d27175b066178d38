//! Reading numbers and texts from the beginning of a file of which only some bytes are there yet.

/// Why reading stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// The file goes on: bytes up to this one are needed.
    More(u64),
    /// The file breaks its format, as said.
    Bad(String),
}

impl Stop {
    /// The same, with what was read in front of the message.
    pub fn within(self, context: impl std::fmt::Display) -> Self {
        match self {
            Stop::Bad(message) => Stop::Bad(format!("{context}: {message}")),
            more => more,
        }
    }
}

/// A place in a file whose first bytes are known.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file_len: u64,
}

impl<'a> Cursor<'a> {
    /// At the beginning of a file of `file_len` bytes that begins with `bytes`.
    pub fn new(bytes: &'a [u8], file_len: u64) -> Self {
        Self { bytes, at: 0, file_len }
    }
    /// Bytes before this place.
    pub fn at(&self) -> u64 {
        self.at as u64
    }
    /// Length of the whole file.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }
    /// The next `count` bytes.
    pub fn take(&mut self, count: u64) -> Result<&'a [u8], Stop> {
        let end = self.at().checked_add(count).filter(|end| *end <= self.file_len);
        let Some(end) = end else {
            let left = self.file_len - self.at().min(self.file_len);
            return Err(Stop::Bad(format!(
                "truncated or corrupt at byte {}: {count} bytes should follow, but the file has {left} more; download it again",
                self.at
            )));
        };
        let found = usize::try_from(end).ok().and_then(|end| self.bytes.get(self.at..end));
        let found = found.ok_or(Stop::More(end))?;
        self.at += found.len();
        Ok(found)
    }
    /// The next bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let found = self.take(N as u64)?;
        found.try_into().map_err(|_| Stop::Bad("expected more bytes".into()))
    }
    /// A number of 32 bits.
    pub fn u32(&mut self) -> Result<u32, Stop> {
        self.array().map(u32::from_le_bytes)
    }
    /// A number of 64 bits.
    pub fn u64(&mut self) -> Result<u64, Stop> {
        self.array().map(u64::from_le_bytes)
    }
    /// A text with its length in front.
    pub fn text(&mut self) -> Result<&'a str, Stop> {
        let start = self.at;
        let length = self.u64()?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|e| Stop::Bad(format!("the text at byte {start} is not UTF-8: {e}")))
    }
    /// Refuses a count of things, each of at least `smallest` bytes, that the rest of the file has no room for.
    pub fn check_count(&self, what: &str, count: u64, smallest: u64) -> Result<(), Stop> {
        let left = self.file_len - self.at().min(self.file_len);
        if count.checked_mul(smallest).is_none_or(|bytes| bytes > left) {
            return Err(Stop::Bad(format!(
                "{count} {what} should follow byte {}, but the file has only {left} more bytes: truncated or corrupt, download it again",
                self.at
            )));
        }
        Ok(())
    }
}
