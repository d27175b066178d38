//! Embeddings of texts: the final hidden states (stage `final_norm`) of a text's tokens, made into one vector of length 1. Each
//! text is a sequence alone in the model's thread. It knows no HTTP.

use doppler::exec::{Content, Executor, Read, Request, Rows, Sequences, Step, Tokens, Want};
use doppler::inference::decode::{Decoding, Next};
use doppler::plan::{Plan, Stage};
use doppler::{Error, Result};
use pollster::block_on;
use tokio::sync::mpsc::UnboundedSender;

/// How the vectors of tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the last one.
    Last,
}

/// Texts whose vectors are wanted.
pub struct Embedding {
    /// Their ids, in reverse: the next one is the last.
    pub texts: Vec<Vec<u32>>,
    pub pooling: Pooling,
    /// Takes a vector for each, in order. Nothing follows an error.
    pub to: UnboundedSender<Result<Vec<f32>>>,
}

/// Elements of a vector.
pub fn width(plan: &Plan) -> usize {
    plan.nodes.iter().find(|node| node.at.stage == Stage::FinalNorm).map_or(0, |node| node.width)
}

/// Computes the vector of the next text; whether there are more.
pub fn next<E: Executor>(executor: &E, room: Sequences, embedding: &mut Embedding) -> bool {
    let Some(ids) = embedding.texts.pop() else { return false };
    let vector = vector(executor, room, &ids, embedding.pooling);
    let more = vector.is_ok() && !embedding.texts.is_empty();
    embedding.to.send(vector).is_ok() && more
}

/// The vector of the text `ids`.
fn vector<E: Executor>(executor: &E, room: Sequences, ids: &[u32], pooling: Pooling) -> Result<Vec<f32>> {
    let wrong = |what: String| Error::invalid("input", what);
    if ids.is_empty() || ids.len() > room.capacity {
        return Err(wrong(format!("expected 1 to {} tokens, found {}", room.capacity, ids.len())));
    }
    let (width, chunk) = (width(executor.plan()), room.chunk.min(ids.len()));
    let mut cache = executor.new_cache(ids.len(), chunk)?;
    let mut decoding = Decoding::new(executor.plan(), ids.len(), 0, chunk, 0);
    let requests = [Request { stage: Stage::FinalNorm, layers: None, want: Want::Full }];
    // In f64, so that the order of a mean's terms is of no account.
    let mut sum = vec![0.0f64; width];
    while let Next::Step(reading) = decoding.next() {
        let tokens = ids.get(reading.first..reading.first + reading.count).unwrap_or_default();
        let long_rope = decoding.long_rope();
        let step = Step { tokens: Tokens::Ids(tokens), rows: Rows::None, pick: None, read: Read::Nothing, long_rope, requests: &requests };
        let output = block_on(executor.step(&mut cache, &step))?;
        let states = output.values.iter().find_map(|value| match &value.content {
            Content::Full(tensor) if value.at.stage == Stage::FinalNorm => Some(tensor),
            _ => None,
        });
        let states = states.filter(|states| states.shape == [reading.count, width] && width > 0);
        let states = states.ok_or_else(|| Error::device(format!("the executor returned no final_norm of {} tokens", reading.count)))?;
        for row in states.data.chunks_exact(width) {
            if pooling == Pooling::Last {
                sum.fill(0.0);
            }
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        decoding.started(&reading);
    }
    let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    if !norm.is_finite() || norm == 0.0 {
        let what = format!(
            "the hidden states give a vector of length {norm}, which cannot be made 1; `doppler debug --trace` shows where it begins"
        );
        return Err(Error::finding(what));
    }
    Ok(sum.iter().map(|x| (x / norm) as f32).collect())
}
