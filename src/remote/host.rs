//! The far side: answers calls with an executor.

use super::{Answer, Call, OwnedLog, decode, encode, number};
use crate::error::{Error, Result};
use crate::exec::{Editable, Executor, Part, Replaceable, WeightSink};
use crate::gpu::{GpuCache, GpuExecutor};
use crate::plan::{StateId, ValueId, WeightId};
use std::cell::{Ref, RefCell};
use std::collections::HashMap;

/// An executor and the caches that were made for the other side.
#[derive(Debug)]
pub struct Host {
    executor: RefCell<GpuExecutor>,
    caches: RefCell<HashMap<u32, GpuCache>>,
}

impl Host {
    /// Answers for `executor`.
    pub fn new(executor: GpuExecutor) -> Self {
        Self { executor: RefCell::new(executor), caches: RefCell::default() }
    }
    /// The answer to a call. What a step needs of the device is under way when this first waits, so several steps may be.
    /// A message that does not decode is answered with an error.
    pub async fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        let answer = match decode::<Call>(bytes) {
            Ok(call) => self.perform(call).await,
            Err(error) => Err(error),
        };
        let number = number(bytes).unwrap_or(0);
        // What cannot be written is an error, which can.
        encode(number, &answer).or_else(|e| encode(number, &Err::<Answer, _>(e))).unwrap_or_default()
    }
    fn executor(&self) -> Ref<'_, GpuExecutor> {
        self.executor.borrow()
    }
    /// Changes the executor, which no step may be using.
    fn change<R>(&self, change: impl FnOnce(&mut GpuExecutor) -> Result<R>) -> Result<R> {
        let mut executor = self.executor.try_borrow_mut().map_err(|_| Error::invalid("executor", "a step is under way"))?;
        change(&mut executor)
    }
    fn cache<R>(&self, cache: u32, with: impl FnOnce(&GpuExecutor, &mut GpuCache) -> Result<R>) -> Result<R> {
        let mut caches = self.caches.borrow_mut();
        with(&self.executor(), known(caches.get_mut(&cache), cache)?)
    }
    #[expect(clippy::await_holding_refcell_ref, reason = "a change meanwhile is answered with an error")]
    async fn perform(&self, call: Call) -> Result<Answer> {
        match call {
            Call::NewCache { cache, capacity, chunk } => {
                let made = self.executor().new_cache(capacity, chunk)?;
                self.caches.borrow_mut().insert(cache, made);
            }
            Call::Grow { cache, capacity } => self.cache(cache, |executor, cache| executor.grow(cache, capacity))?,
            Call::Truncate { cache, len } => {
                return self.cache(cache, |executor, cache| Ok(Answer::Truncated(executor.truncate(cache, len))));
            }
            Call::Drop { cache } => drop(self.caches.borrow_mut().remove(&cache)),
            Call::Step { cache, step } => {
                let pending = self.cache(cache, |executor, cache| executor.submit(cache, &step.step()))?;
                return Ok(Answer::Step(self.executor().finish(pending).await?));
            }
            Call::Eval { id, inputs, first_position, long_rope } => {
                let executor = self.executor();
                if id >= executor.plan().nodes.len() {
                    return Err(Error::invalid("value", format!("the plan has no value {id}")));
                }
                return Ok(Answer::Value(executor.eval(ValueId(id), &inputs, first_position, long_rope).await?));
            }
            Call::Groups => return Ok(Answer::Groups(self.executor().groups()?)),
            Call::Part { cache, nodes, inputs, ids, long_rope, together } => {
                let part = Part { nodes: &nodes, inputs: &inputs, ids: &ids, long_rope, together };
                let mut caches = self.caches.borrow_mut();
                return Ok(Answer::Value(self.executor().part(known(caches.get_mut(&cache), cache)?, &part).await?));
            }
            Call::Cached { cache, index } => {
                let mut caches = self.caches.borrow_mut();
                return Ok(Answer::Cached(self.executor().cached(known(caches.get_mut(&cache), cache)?, StateId(index)).await?));
            }
            Call::Choose { cache, logits, rules, k } => {
                let mut caches = self.caches.borrow_mut();
                return Ok(Answer::Chosen(self.executor().choose(known(caches.get_mut(&cache), cache)?, &logits, rules, k).await?));
            }
            Call::Clear { weight } => self.change(|executor| executor.clear(WeightId(weight)))?,
            Call::Put { weight, format, first_row, bytes } => {
                self.change(|executor| executor.put(WeightId(weight), format, first_row, bytes.into()))?;
            }
            Call::Intervene(interventions) => self.change(|executor| executor.set_interventions(&interventions))?,
            Call::MaxPositions(positions) => self.change(|executor| {
                executor.set_max_positions(positions);
                Ok(())
            })?,
            Call::SetLog(log) => self.executor().set_log(log)?,
            Call::TakeLog => return Ok(Answer::Log(self.executor().take_log().into_iter().map(OwnedLog::of).collect())),
        }
        Ok(Answer::Done)
    }
}

fn known(found: Option<&mut GpuCache>, cache: u32) -> Result<&mut GpuCache> {
    found.ok_or_else(|| Error::invalid("cache", format!("there is no cache {cache}")))
}
