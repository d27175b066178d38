//! Executors around executors: one that lets a page's messages in between steps, one that notes the dispatches of one
//! session's steps while others run on the same device.

use crate::host::{Task, now};
use doppler::exec::{Cached, Chosen, Executor, Group, Part, Pick, Step, StepOutput, Storage};
use doppler::gpu::{GpuCache, GpuExecutor, Log, StepLog};
use doppler::plan::{Plan, StateId, ValueId};
use doppler::tensor::Tensor;
use doppler::{Error, Kind, Result};
use std::cell::{Cell, RefCell};

/// Milliseconds of work after which messages are let in.
const SLICE: f64 = 50.0;

/// When messages were let in last; of several executors that work for one task.
pub struct Pauses<'t> {
    task: &'t Task,
    last: Cell<f64>,
}

impl<'t> Pauses<'t> {
    /// The pauses of a task that begins now.
    pub fn new(task: &'t Task) -> Self {
        Self { task, last: Cell::new(now()) }
    }
    /// Lets messages in if it is time.
    ///
    /// # Errors
    /// An error once the page wants no more of the task.
    pub async fn pause(&self) -> Result<()> {
        if now() - self.last.get() > SLICE {
            // What a timer fails with is of no interest.
            let _ = self.task.pause().await;
            self.last.set(now());
        }
        still_wanted(self.task)
    }
}

/// Refuses to go on with a task that the page wants no more of; nobody reads the error.
pub fn still_wanted(task: &Task) -> Result<()> {
    if task.stopped() { Err(Error::new(Kind::Io, "stopped")) } else { Ok(()) }
}

/// What both executors below leave to the one inside.
macro_rules! as_inner {
    () => {
        fn plan(&self) -> &Plan {
            self.inner.plan()
        }
        fn describe(&self) -> String {
            self.inner.describe()
        }
        fn storage(&self) -> Storage {
            self.inner.storage()
        }
        fn new_cache(&self, capacity: usize, chunk: usize) -> Result<Self::Cache> {
            self.inner.new_cache(capacity, chunk)
        }
        fn grow(&self, cache: &mut Self::Cache, capacity: usize) -> Result<()> {
            self.inner.grow(cache, capacity)
        }
        fn len(&self, cache: &Self::Cache) -> usize {
            self.inner.len(cache)
        }
        fn capacity(&self, cache: &Self::Cache) -> usize {
            self.inner.capacity(cache)
        }
        fn truncate(&self, cache: &mut Self::Cache, len: usize) -> bool {
            self.inner.truncate(cache, len)
        }
        fn groups(&self) -> Result<Vec<Group>> {
            self.inner.groups()
        }
        async fn cached(&self, cache: &Self::Cache, state: StateId) -> Result<Cached> {
            self.inner.cached(cache, state).await
        }
        async fn choose(&self, cache: &mut Self::Cache, logits: &[f32], rules: Pick, k: usize) -> Result<Chosen> {
            self.inner.choose(cache, logits, rules, k).await
        }
    };
}

/// Pauses before each step: the oracle computes in one thread, in which messages wait.
pub struct Sliced<'e, E> {
    pub inner: &'e E,
    pub pauses: &'e Pauses<'e>,
}

impl<E: Executor> Executor for Sliced<'_, E> {
    type Cache = E::Cache;
    type Pending = E::Pending;

    as_inner!();
    fn submit(&self, cache: &mut Self::Cache, step: &Step<'_>) -> Result<Self::Pending> {
        self.inner.submit(cache, step)
    }
    async fn finish(&self, pending: Self::Pending) -> Result<StepOutput> {
        self.inner.finish(pending).await
    }
    async fn step(&self, cache: &mut Self::Cache, step: &Step<'_>) -> Result<StepOutput> {
        self.pauses.pause().await?;
        self.inner.step(cache, step).await
    }
    async fn eval(&self, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor> {
        self.pauses.pause().await?;
        self.inner.eval(id, inputs, first_position, long_rope).await
    }
    async fn part(&self, cache: &mut Self::Cache, part: &Part<'_>) -> Result<Tensor> {
        self.pauses.pause().await?;
        self.inner.part(cache, part).await
    }
}

/// The device's executor as one session has it. The device's log is on only while this session's steps are recorded,
/// and taken where they end, so that sessions at the same time have each their own.
pub struct Logged<'e> {
    inner: &'e GpuExecutor,
    log: Cell<Log>,
    steps: RefCell<Vec<StepLog>>,
}

impl<'e> Logged<'e> {
    /// `inner`, without a log.
    pub fn new(inner: &'e GpuExecutor) -> Self {
        Self { inner, log: Cell::new(Log::Off), steps: RefCell::default() }
    }
    /// What is noted of the steps to come.
    pub fn set(&self, log: Log) {
        self.log.set(log);
    }
    /// Steps that were noted and have ended.
    pub fn take(&self) -> Vec<StepLog> {
        self.steps.take()
    }
}

impl Executor for Logged<'_> {
    type Cache = GpuCache;
    type Pending = <GpuExecutor as Executor>::Pending;

    as_inner!();
    fn submit(&self, cache: &mut Self::Cache, step: &Step<'_>) -> Result<Self::Pending> {
        self.inner.set_log(self.log.get())?;
        let pending = self.inner.submit(cache, step);
        self.inner.set_log(Log::Off)?;
        pending
    }
    async fn finish(&self, pending: Self::Pending) -> Result<StepOutput> {
        let output = self.inner.finish(pending).await;
        // Nothing else has run since the step was noted.
        self.steps.borrow_mut().extend(self.inner.take_log());
        output
    }
    async fn eval(&self, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor> {
        self.inner.eval(id, inputs, first_position, long_rope).await
    }
    async fn part(&self, cache: &mut Self::Cache, part: &Part<'_>) -> Result<Tensor> {
        self.inner.part(cache, part).await
    }
}
