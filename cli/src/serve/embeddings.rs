//! `/v1/embeddings`: what is asked, and the answer as the OpenAI API has it.

use super::answer;
use super::embed::{Embedding, Pooling};
use super::fields::Fields;
use super::metrics;
use super::problem::Problem;
use super::request;
use super::worker::{Hosted, Work};
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;

/// What is to be computed, and how it is to be written.
pub struct Ask {
    texts: Vec<Vec<u32>>,
    pooling: Pooling,
    base64: bool,
}

impl Ask {
    /// What a request asks.
    ///
    /// # Errors
    /// A problem of the request's.
    pub fn new(fields: &Fields, hosted: &Hosted) -> Result<Self, Problem> {
        if let Some(count) = fields.count("dimensions").filter(|count| *count != hosted.width) {
            return Err(Problem::field(
                "dimensions",
                format!("expected {}, the model's own, found {count}: no vector is cut here", hosted.width),
            ));
        }
        let texts = request::prompts(fields, "input", hosted)?;
        let pooling = if fields.text("pooling") == Some("last") { Pooling::Last } else { Pooling::Mean };
        Ok(Self { texts, pooling, base64: fields.text("encoding_format") == Some("base64") })
    }
}

/// The answer to `ask`.
///
/// # Errors
/// A problem where the queue has no room, or the model's thread fails.
pub async fn answer(hosted: &Arc<Hosted>, ask: Ask) -> Result<Value, Problem> {
    let started = Instant::now();
    let Ask { mut texts, pooling, base64 } = ask;
    let (count, tokens) = (texts.len(), texts.iter().map(Vec::len).sum::<usize>());
    texts.reverse();
    let (to, mut vectors) = mpsc::unbounded_channel();
    let work = vec![Work::Embedding(Box::new(Embedding { texts, pooling, to }))];
    hosted.submit(work).map_err(|refusal| answer::refused(hosted, &refusal, 1))?;
    metrics::add(&hosted.metrics.prompt_tokens, tokens);
    let mut ending = Ending { counter: &hosted.metrics.left };
    let mut data = Vec::with_capacity(count);
    while data.len() < count {
        let vector = match vectors.recv().await {
            Some(Ok(vector)) => vector,
            failed => {
                ending.counter = &hosted.metrics.failed;
                let gone = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the model's thread ended");
                return Err(failed.and_then(Result::err).map_or_else(gone, Problem::from));
            }
        };
        let embedding = if base64 { json!(in_base64(&vector)) } else { json!(vector) };
        data.push(json!({"object": "embedding", "index": data.len(), "embedding": embedding}));
    }
    ending.counter = &hosted.metrics.finished;
    hosted.metrics.whole.add(started.elapsed());
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(json!({"object": "list", "data": data, "model": hosted.id, "usage": usage}))
}

/// Counts a request by how it ended: the client left, unless said.
struct Ending<'a> {
    counter: &'a std::sync::atomic::AtomicU64,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        metrics::add(self.counter, 1);
    }
}

/// The little-endian bytes of `vector`, in Base64 (RFC 4648).
fn in_base64(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let place = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit <= three.len() { char::from(DIGITS[place]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_in_base64() {
        let of = |bytes: [u8; 4]| in_base64(&[f32::from_le_bytes(bytes)]);
        assert_eq!((of(*b"Many"), in_base64(&[])), ("TWFueQ==".to_string(), String::new()));
        let two = in_base64(&[f32::from_le_bytes(*b"ligh"), f32::from_le_bytes(*b"t wo")]);
        assert_eq!((two.as_str(), of([0xff, 0xfe, 0xfd, 0x3f]).as_str()), ("bGlnaHQgd28=", "//79Pw=="));
    }
}
