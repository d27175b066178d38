//! An executor that is elsewhere: the calls on it and their answers as bytes. [`Remote`] is the near side, an executor
//! like any other; [`Host`] is the far side, around the executor that computes. How bytes travel is the business of a
//! [`Link`]. Values cross as they are, bit by bit.

mod client;
mod host;

pub use client::{Link, Remote, RemoteCache, RemotePending};
pub use host::Host;

use crate::error::{Error, Result};
use crate::exec::{Cached, Chosen, Group, Pick, Read, Request, Rows, Step, StepOutput, Tokens};
use crate::gpu::kernels::kernel;
use crate::gpu::{DispatchLog, Log, StepLog};
use crate::plan::intervention::Intervention;
use crate::plan::{At, ValueId};
use crate::quant::Format;
use crate::tensor::Tensor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What is asked of an executor. Caches have numbers that the caller chose; weights and values those of the plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Call {
    /// Makes a cache.
    NewCache { cache: u32, capacity: usize, chunk: usize },
    /// Makes room in it.
    Grow { cache: u32, capacity: usize },
    /// Drops positions.
    Truncate { cache: u32, len: usize },
    /// Lets go of it.
    Drop { cache: u32 },
    /// Starts a step; the answer is its results.
    Step { cache: u32, step: OwnedStep },
    /// One op alone.
    Eval { id: usize, inputs: Vec<Tensor>, first_position: usize, long_rope: bool },
    /// What unwatched steps compute together.
    Groups,
    /// Part of a step.
    Part { cache: u32, nodes: Vec<ValueId>, inputs: Vec<Tensor>, ids: Vec<u32>, long_rope: bool, together: bool },
    /// What a cache holds of a layer.
    Cached { cache: u32, index: usize },
    /// The choice among logits.
    Choose { cache: u32, logits: Vec<f32>, rules: Pick, k: usize },
    /// Clears a weight.
    Clear { weight: usize },
    /// Rows of a weight.
    Put { weight: usize, format: Format, first_row: usize, bytes: Vec<u8> },
    /// Changes values from now on.
    Intervene(Vec<(ValueId, Vec<Intervention>)>),
    /// Sets the plan's longest sequence.
    MaxPositions(usize),
    /// Notes dispatches from now on.
    SetLog(Log),
    /// The dispatches that were noted.
    TakeLog,
}

/// What comes back.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Answer {
    /// It is done.
    Done,
    /// Whether positions could be dropped.
    Truncated(bool),
    /// Results of a step.
    Step(StepOutput),
    /// The value of an op.
    Value(Tensor),
    /// Groups of nodes.
    Groups(Vec<Group>),
    /// Keys and values.
    Cached(Cached),
    /// What was chosen.
    Chosen(Chosen),
    /// Dispatches by step.
    Log(Vec<OwnedLog>),
}

/// A [`Step`] that owns its parts.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OwnedStep {
    /// `None` is the token that the step before picked.
    ids: Option<Vec<u32>>,
    rows: Rows,
    pick: Option<Pick>,
    read: Read,
    long_rope: bool,
    requests: Vec<Request>,
}

impl OwnedStep {
    fn of(step: &Step<'_>) -> Self {
        let Step { tokens, rows, pick, read, long_rope, requests } = *step;
        let ids = match tokens {
            Tokens::Ids(ids) => Some(ids.to_vec()),
            Tokens::Picked => None,
        };
        Self { ids, rows, pick, read, long_rope, requests: requests.to_vec() }
    }
    fn step(&self) -> Step<'_> {
        let Self { ids, rows, pick, read, long_rope, requests } = self;
        let tokens = ids.as_deref().map_or(Tokens::Picked, Tokens::Ids);
        Step { tokens, rows: *rows, pick: *pick, read: *read, long_rope: *long_rope, requests }
    }
}

/// A dispatch: the kernel's name, the value, start and duration in nanoseconds.
type OwnedDispatch = (String, At, Option<(f64, f64)>);

/// A [`StepLog`] that owns its names.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OwnedLog {
    first_token: usize,
    tokens: usize,
    dispatches: Vec<OwnedDispatch>,
}

impl OwnedLog {
    fn of(log: StepLog) -> Self {
        let dispatches = log.dispatches.into_iter().map(|d| (d.kernel.to_string(), d.at, d.time)).collect();
        Self { first_token: log.first_token, tokens: log.tokens, dispatches }
    }
    fn log(self) -> Result<StepLog> {
        let dispatch = |(name, at, time): OwnedDispatch| match kernel(&name) {
            Some(known) => Ok(DispatchLog { kernel: known.name, at, time }),
            None => Err(Error::plan(format!("there is no kernel `{name}`: the other side is of another version"))),
        };
        let dispatches = self.dispatches.into_iter().map(dispatch).collect::<Result<_>>()?;
        Ok(StepLog { first_token: self.first_token, tokens: self.tokens, dispatches })
    }
}

/// `message` under its `number`: little-endian, then the message.
fn encode(number: u32, message: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_extend(message, number.to_le_bytes().to_vec()).map_err(|e| Error::invalid("message", e))
}

/// The number of a message.
///
/// # Errors
/// `Kind::Format` for less than that.
pub fn number(bytes: &[u8]) -> Result<u32> {
    let number = bytes.first_chunk().ok_or_else(|| Error::format("message", format!("it has {} bytes", bytes.len())))?;
    Ok(u32::from_le_bytes(*number))
}

/// The message after its number.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    number(bytes)?;
    postcard::from_bytes(&bytes[4..]).map_err(|e| Error::format("message", e))
}
