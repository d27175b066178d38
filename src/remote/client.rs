//! The near side: an executor whose work is done elsewhere. It knows the plan and counts positions itself, so that only
//! what needs the device is asked for; steps are sent without waiting.

use super::{Answer, Call, OwnedLog, OwnedStep, decode, encode};
use crate::error::{Error, Result};
use crate::exec::{Cached, Chosen, Editable, Executor, Group, Part, Pick, Replaceable, Step, StepOutput, Storage, Tokens, WeightSink};
use crate::gpu::{Log, StepLog};
use crate::plan::intervention::Intervention;
use crate::plan::{Plan, StateId, ValueId, WeightId};
use crate::quant::Format;
use crate::tensor::Tensor;
use std::cell::Cell;
use std::rc::Rc;

/// A way to a [`super::Host`] and back. Messages arrive whole and in the order in which they were sent.
pub trait Link {
    /// Sends a call.
    ///
    /// # Errors
    /// `Kind::Device` when the other side is gone.
    fn send(&self, call: Vec<u8>) -> Result<()>;
    /// Waits for the answer to call `number`.
    ///
    /// # Errors
    /// As [`Link::send`].
    fn wait(&self, number: u32) -> Result<Vec<u8>>;
}

/// What the executor and its caches share.
#[derive(Debug)]
struct Line<L> {
    link: L,
    last: Cell<u32>,
}

impl<L: Link> Line<L> {
    fn next(&self) -> u32 {
        self.last.set(self.last.get().wrapping_add(1));
        self.last.get()
    }
    fn send(&self, call: &Call) -> Result<u32> {
        let number = self.next();
        self.link.send(encode(number, call)?)?;
        Ok(number)
    }
    fn wait(&self, number: u32) -> Result<Answer> {
        decode::<Result<Answer>>(&self.link.wait(number)?)?
    }
    fn ask(&self, call: &Call) -> Result<Answer> {
        self.wait(self.send(call)?)
    }
    fn done(&self, call: &Call) -> Result<()> {
        match self.ask(call)? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(answer: &Answer) -> Error {
    let what = match answer {
        Answer::Done => "that it is done",
        Answer::Truncated(_) => "of a truncation",
        Answer::Step(_) => "of a step",
        Answer::Value(_) => "of a value",
        Answer::Groups(_) => "of groups",
        Answer::Cached(_) => "of a cache",
        Answer::Chosen(_) => "of a choice",
        Answer::Log(_) => "of a log",
    };
    Error::device(format!("the other side answered {what} where something else was asked"))
}

/// An executor elsewhere.
#[derive(Debug)]
pub struct Remote<L> {
    line: Rc<Line<L>>,
    plan: Plan,
    storage: Storage,
    description: String,
}

/// A cache of a [`Remote`].
#[derive(Debug)]
pub struct RemoteCache<L: Link> {
    line: Rc<Line<L>>,
    number: u32,
    len: usize,
    capacity: usize,
}

/// A step that was sent.
#[derive(Debug)]
pub struct RemotePending(u32);

impl<L: Link> Remote<L> {
    /// The executor of `plan` at the other end of `link`, which stores values as `storage` says.
    pub fn new(link: L, plan: Plan, storage: Storage, description: String) -> Self {
        Self { line: Rc::new(Line { link, last: Cell::new(0) }), plan, storage, description }
    }
    /// The way there.
    pub fn link(&self) -> &L {
        &self.line.link
    }
    /// Sets the plan's longest sequence, for sessions to come.
    ///
    /// # Errors
    /// What the other side reports.
    pub fn set_max_positions(&mut self, positions: usize) -> Result<()> {
        self.plan.max_positions = positions;
        self.line.done(&Call::MaxPositions(positions))
    }
    /// As `GpuExecutor::set_log`.
    ///
    /// # Errors
    /// As there.
    pub fn set_log(&self, log: Log) -> Result<()> {
        self.line.done(&Call::SetLog(log))
    }
    /// As `GpuExecutor::take_log`.
    ///
    /// # Errors
    /// What the other side reports.
    pub fn take_log(&self) -> Result<Vec<StepLog>> {
        match self.line.ask(&Call::TakeLog)? {
            Answer::Log(steps) => steps.into_iter().map(OwnedLog::log).collect(),
            other => Err(unexpected(&other)),
        }
    }
}

impl<L: Link> Drop for RemoteCache<L> {
    fn drop(&mut self) {
        // Where the other side is gone, so is the cache.
        let _ = self.line.send(&Call::Drop { cache: self.number });
    }
}

impl<L: Link> WeightSink for Remote<L> {
    fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> Result<()> {
        self.line.done(&Call::Put { weight: id.0, format, first_row, bytes: bytes.to_vec() })
    }
}

impl<L: Link> Replaceable for Remote<L> {
    fn clear(&mut self, id: WeightId) -> Result<()> {
        self.line.done(&Call::Clear { weight: id.0 })
    }
}

impl<L: Link> Editable for Remote<L> {
    fn set_interventions(&mut self, interventions: &[(ValueId, Vec<Intervention>)]) -> Result<()> {
        self.plan.set_interventions(interventions)?;
        self.line.done(&Call::Intervene(interventions.to_vec()))
    }
}

impl<L: Link> Executor for Remote<L> {
    type Cache = RemoteCache<L>;
    type Pending = RemotePending;

    fn plan(&self) -> &Plan {
        &self.plan
    }
    fn describe(&self) -> String {
        self.description.clone()
    }
    fn storage(&self) -> Storage {
        self.storage
    }
    fn new_cache(&self, capacity: usize, chunk: usize) -> Result<RemoteCache<L>> {
        let number = self.line.next();
        self.line.done(&Call::NewCache { cache: number, capacity, chunk })?;
        Ok(RemoteCache { line: self.line.clone(), number, len: 0, capacity })
    }
    fn grow(&self, cache: &mut RemoteCache<L>, capacity: usize) -> Result<()> {
        if capacity > cache.capacity {
            self.line.done(&Call::Grow { cache: cache.number, capacity })?;
            cache.capacity = capacity;
        }
        Ok(())
    }
    fn len(&self, cache: &RemoteCache<L>) -> usize {
        cache.len
    }
    fn capacity(&self, cache: &RemoteCache<L>) -> usize {
        cache.capacity
    }
    fn truncate(&self, cache: &mut RemoteCache<L>, len: usize) -> bool {
        // Where the other side is gone, the next step says so.
        let done = matches!(self.line.ask(&Call::Truncate { cache: cache.number, len }), Ok(Answer::Truncated(true)));
        if done {
            cache.len = len;
        }
        done
    }
    fn submit(&self, cache: &mut RemoteCache<L>, step: &Step<'_>) -> Result<RemotePending> {
        let number = self.line.send(&Call::Step { cache: cache.number, step: OwnedStep::of(step) })?;
        cache.len += match step.tokens {
            Tokens::Ids(ids) => ids.len(),
            Tokens::Picked => 1,
        };
        Ok(RemotePending(number))
    }
    async fn finish(&self, pending: RemotePending) -> Result<StepOutput> {
        match self.line.wait(pending.0)? {
            Answer::Step(output) => Ok(output),
            other => Err(unexpected(&other)),
        }
    }
    async fn eval(&self, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor> {
        match self.line.ask(&Call::Eval { id: id.0, inputs: inputs.to_vec(), first_position, long_rope })? {
            Answer::Value(value) => Ok(value),
            other => Err(unexpected(&other)),
        }
    }
    fn groups(&self) -> Result<Vec<Group>> {
        match self.line.ask(&Call::Groups)? {
            Answer::Groups(groups) => Ok(groups),
            other => Err(unexpected(&other)),
        }
    }
    async fn part(&self, cache: &mut RemoteCache<L>, part: &Part<'_>) -> Result<Tensor> {
        let Part { nodes, inputs, ids, long_rope, together } = *part;
        let (nodes, inputs) = (nodes.to_vec(), inputs.to_vec());
        match self.line.ask(&Call::Part { cache: cache.number, nodes, inputs, ids: ids.to_vec(), long_rope, together })? {
            Answer::Value(value) => {
                cache.len += ids.len();
                Ok(value)
            }
            other => Err(unexpected(&other)),
        }
    }
    async fn cached(&self, cache: &RemoteCache<L>, state: StateId) -> Result<Cached> {
        match self.line.ask(&Call::Cached { cache: cache.number, index: state.0 })? {
            Answer::Cached(held) => Ok(held),
            other => Err(unexpected(&other)),
        }
    }
    async fn choose(&self, cache: &mut RemoteCache<L>, logits: &[f32], rules: Pick, k: usize) -> Result<Chosen> {
        match self.line.ask(&Call::Choose { cache: cache.number, logits: logits.to_vec(), rules, k })? {
            Answer::Chosen(chosen) => Ok(chosen),
            other => Err(unexpected(&other)),
        }
    }
}
