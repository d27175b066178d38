//! A source of bytes as the body of an answer: in memory as it is, a file of this machine in pieces, each read when the
//! client took the one before. So a model of any size is served in little memory.

use axum::body::Body;
use bytes::Bytes;
use doppler::formats::Local;
use doppler::{Error, Result};
use hyper::body::{Frame, SizeHint};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes of a file that one connection holds at a time.
const PIECE: u64 = 1 << 20;

/// The bytes of `range` as a body, which breaks off where reading fails: the client knows how many bytes there should be.
///
/// # Errors
/// What reading the first of them reports.
pub async fn body(source: Local, range: Range<u64>) -> Result<Body> {
    if let Local::Memory(bytes) = &source {
        return bytes.slice(range).map(Body::from);
    }
    let mut pieces = Pieces { source, left: range, reading: None, first: None };
    if let Some(reading) = pieces.next() {
        pieces.first = Some(ended(reading.await)?);
    }
    Ok(Body::new(pieces))
}

/// What a thread read.
fn ended(read: Result<Result<Bytes>, tokio::task::JoinError>) -> Result<Bytes> {
    read.unwrap_or_else(|e| Err(Error::io("the server", e)))
}

struct Pieces {
    source: Local,
    /// What nobody began to read yet.
    left: Range<u64>,
    reading: Option<JoinHandle<Result<Bytes>>>,
    /// What was read before the answer began.
    first: Option<Bytes>,
}

impl Pieces {
    /// Begins to read the next piece, if there is one: disks may be slow, and the server has one thread.
    fn next(&mut self) -> Option<JoinHandle<Result<Bytes>>> {
        let piece = self.left.start..self.left.end.min(self.left.start + PIECE);
        self.left.start = piece.end;
        let source = self.source.clone();
        (!piece.is_empty()).then(|| spawn_blocking(move || source.slice(piece)))
    }
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.reading.is_none() {
            self.reading = self.next();
        }
        let Some(reading) = &mut self.reading else { return Poll::Ready(None) };
        let read = ready!(Pin::new(reading).poll(context));
        self.reading = None;
        Poll::Ready(Some(ended(read).map(Frame::data)))
    }
    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        SizeHint::with_exact(first + self.left.end - self.left.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;
    use doppler::formats::LocalFile;
    use hyper::body::Body as _;

    #[test]
    fn a_file_is_given_in_pieces_while_it_is_the_same() {
        let path = std::env::temp_dir().join(format!("doppler-pieces-{}", std::process::id()));
        let content: Vec<u8> = (0..2 * PIECE + 9).map(|i| (i / 5) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let source = Local::File(LocalFile::open(&path).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let all = content.len() as u64;
        for range in [0..all, 0..0, 5..6, 0..PIECE, 7..PIECE + 7, PIECE - 1..PIECE + 1, all - 3..all] {
            let found = runtime.block_on(async {
                let body = body(source.clone(), range.clone()).await.unwrap();
                assert_eq!(body.size_hint().exact(), Some(range.end - range.start));
                to_bytes(body, content.len()).await.unwrap()
            });
            assert!(found[..] == content[range.start as usize..range.end as usize], "{range:?}");
        }
        std::fs::write(&path, "other").unwrap();
        assert!(runtime.block_on(body(source, 0..9)).unwrap_err().message.contains("changed while it was read"));
        std::fs::remove_file(path).unwrap();
    }
}
