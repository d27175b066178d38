//! The executor that was chosen: the oracle, the GPU, or one that is elsewhere. `Engine` is itself an executor, so that
//! callers need not know which. It knows no options of a command and no page.

use crate::config::runtime::Dtype;
use crate::cpu::CpuExecutor;
use crate::error::{Error, Kind, Result};
use crate::exec::{
    Cached, Chosen, Editable, Entry, Executor, Group, Part, Pick, Replaceable, Sequences, Step, StepOutput, Storage, StoredRows, WeightSink,
};
use crate::gpu::{Gpu, GpuExecutor, GpuOptions, Log, StepLog};
use crate::plan::intervention::Intervention;
use crate::plan::{Plan, StateId, ValueId, WeightId};
use crate::quant::Format;
use crate::remote::{Link, Remote, RemoteCache, RemotePending};
use crate::settings;
use crate::tensor::Tensor;

/// Where a plan is to be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The GPU, or the CPU oracle where there is none or only an adapter that computes in software: that emulates workgroups
    /// and f16 one invocation after the other, where the oracle multiplies rows.
    #[default]
    Auto,
    /// Any adapter, one that computes in software too.
    Gpu,
    /// The CPU oracle: exact and slow.
    Cpu,
}

/// What was found where a GPU was looked for.
#[derive(Debug)]
pub enum Found {
    /// A GPU.
    Gpu(Box<Gpu>),
    /// The oracle was asked for.
    Cpu,
    /// The oracle, as the only adapter, of this name, computes in software.
    Software(String),
    /// The oracle, as there is no adapter.
    NoAdapter,
}

/// Opens `device`. With `software`, an adapter that computes in software is taken by `Device::Auto` too.
///
/// # Errors
/// Those of `Gpu::open`; `Kind::Device` only where a GPU is asked for.
pub async fn open(device: Device, software: bool, options: GpuOptions) -> Result<Found> {
    if device == Device::Cpu {
        return Ok(Found::Cpu);
    }
    let is_auto = device == Device::Auto;
    match Gpu::open(options).await {
        Ok(gpu) if gpu.caps.software && is_auto && !software => Ok(Found::Software(gpu.caps.name)),
        Ok(gpu) => Ok(Found::Gpu(Box::new(gpu))),
        Err(e) if e.kind == Kind::Device && is_auto => Ok(Found::NoAdapter),
        Err(e) => Err(e),
    }
}

/// The link of an engine that is never elsewhere.
#[derive(Debug, Clone, Copy)]
pub enum NoLink {}

impl Link for NoLink {
    fn send(&self, _: Vec<u8>) -> Result<()> {
        match *self {}
    }
    fn wait(&self, _: u32) -> Result<Vec<u8>> {
        match *self {}
    }
}

type Oracle = CpuExecutor<f32>;

/// An executor. `L` is the way to one that is elsewhere.
pub enum Engine<L: Link = NoLink> {
    /// The oracle in f32.
    Cpu(Box<Oracle>),
    /// The GPU.
    Gpu(Box<GpuExecutor>),
    /// An executor elsewhere.
    Remote(Box<Remote<L>>),
}

/// A cache of an [`Engine`].
pub enum Cache<L: Link = NoLink> {
    /// Of the oracle.
    Cpu(<Oracle as Executor>::Cache),
    /// Of the GPU.
    Gpu(Box<<GpuExecutor as Executor>::Cache>),
    /// Of an executor elsewhere.
    Remote(RemoteCache<L>),
}

/// A step of an [`Engine`] under way.
pub enum Pending {
    /// Of the oracle.
    Cpu(<Oracle as Executor>::Pending),
    /// Of the GPU.
    Gpu(Box<<GpuExecutor as Executor>::Pending>),
    /// Of an executor elsewhere.
    Remote(RemotePending),
}

/// `$do` with whichever executor it is.
macro_rules! each {
    ($engine:expr, $executor:ident => $do:expr) => {
        match $engine {
            Engine::Cpu($executor) => $do,
            Engine::Gpu($executor) => $do,
            Engine::Remote($executor) => $do,
        }
    };
}

/// Likewise, with what belongs to it: a cache, or a step under way.
macro_rules! both {
    ($of:ident, $engine:expr, $other:expr, $executor:ident, $own:ident => $do:expr, $else:expr) => {
        match ($engine, $other) {
            (Engine::Cpu($executor), $of::Cpu($own)) => $do,
            (Engine::Gpu($executor), $of::Gpu($own)) => $do,
            (Engine::Remote($executor), $of::Remote($own)) => $do,
            _ => $else,
        }
    };
}

fn foreign() -> Error {
    Error::invalid("cache", "it belongs to another executor")
}

impl<L: Link> Engine<L> {
    /// An executor of `plan` without weights, on `gpu` or, without one, the oracle.
    ///
    /// # Errors
    /// What the executors say of the plan.
    pub fn new(gpu: Option<Gpu>, plan: Plan, dtype: Dtype) -> Result<Self> {
        // The oracle takes f16 only when told to.
        let storage = settings::storage(dtype, gpu.as_ref().is_some_and(|gpu| gpu.caps.f16));
        Ok(match gpu {
            None => Engine::Cpu(Box::new(CpuExecutor::new(plan, storage)?)),
            Some(gpu) => Engine::Gpu(Box::new(GpuExecutor::new(gpu, plan, storage)?)),
        })
    }
    /// Whether steps are computed while the host does something else; the oracle computes when it is told to start.
    pub fn is_ahead(&self) -> bool {
        !matches!(self, Engine::Cpu(_))
    }
    /// Sets the plan's longest sequence, for sessions to come.
    ///
    /// # Errors
    /// `Kind::Device` when the other side is gone.
    pub fn set_max_positions(&mut self, positions: usize) -> Result<()> {
        match self {
            Engine::Cpu(executor) => executor.set_max_positions(positions),
            Engine::Gpu(executor) => executor.set_max_positions(positions),
            Engine::Remote(executor) => executor.set_max_positions(positions)?,
        }
        Ok(())
    }
    /// Notes dispatches from now on; the oracle has none.
    ///
    /// # Errors
    /// `Kind::Device` for times on an adapter without timestamps.
    pub fn set_log(&self, log: Log) -> Result<()> {
        match self {
            Engine::Cpu(_) => Ok(()),
            Engine::Gpu(executor) => executor.set_log(log),
            Engine::Remote(executor) => executor.set_log(log),
        }
    }
    /// The dispatches of the steps that are finished, oldest step first.
    ///
    /// # Errors
    /// `Kind::Device` when the other side is gone.
    pub fn take_log(&self) -> Result<Vec<StepLog>> {
        match self {
            Engine::Cpu(_) => Ok(Vec::new()),
            Engine::Gpu(executor) => Ok(executor.take_log()),
            Engine::Remote(executor) => executor.take_log(),
        }
    }
}

impl<L: Link> Editable for Engine<L> {
    fn set_interventions(&mut self, interventions: &[(ValueId, Vec<Intervention>)]) -> Result<()> {
        each!(self, executor => executor.set_interventions(interventions))
    }
}

impl<L: Link> WeightSink for Engine<L> {
    fn expect(&mut self, formats: &[Format]) {
        each!(self, executor => executor.expect(formats));
    }
    fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> Result<()> {
        each!(self, executor => executor.put(id, format, first_row, bytes))
    }
    fn pull(&mut self, id: WeightId, format: Format, rows: &StoredRows<'_>) -> Result<()> {
        each!(self, executor => executor.pull(id, format, rows))
    }
}

impl<L: Link> Replaceable for Engine<L> {
    fn clear(&mut self, id: WeightId) -> Result<()> {
        each!(self, executor => executor.clear(id))
    }
}

impl<L: Link> Executor for Engine<L> {
    type Cache = Cache<L>;
    type Pending = Pending;

    fn plan(&self) -> &Plan {
        each!(self, executor => executor.plan())
    }
    fn describe(&self) -> String {
        each!(self, executor => executor.describe())
    }
    fn storage(&self) -> Storage {
        each!(self, executor => executor.storage())
    }
    fn new_cache(&self, capacity: usize, chunk: usize) -> Result<Cache<L>> {
        Ok(match self {
            Engine::Cpu(executor) => Cache::Cpu(executor.new_cache(capacity, chunk)?),
            Engine::Gpu(executor) => Cache::Gpu(Box::new(executor.new_cache(capacity, chunk)?)),
            Engine::Remote(executor) => Cache::Remote(executor.new_cache(capacity, chunk)?),
        })
    }
    fn reserve(&self, sequences: Sequences) -> Result<()> {
        each!(self, executor => executor.reserve(sequences))
    }
    fn grow(&self, cache: &mut Cache<L>, capacity: usize) -> Result<()> {
        both!(Cache, self, cache, executor, cache => executor.grow(cache, capacity), Err(foreign()))
    }
    fn len(&self, cache: &Cache<L>) -> usize {
        both!(Cache, self, cache, executor, cache => executor.len(cache), 0)
    }
    fn capacity(&self, cache: &Cache<L>) -> usize {
        both!(Cache, self, cache, executor, cache => executor.capacity(cache), 0)
    }
    fn truncate(&self, cache: &mut Cache<L>, len: usize) -> bool {
        both!(Cache, self, cache, executor, cache => executor.truncate(cache, len), false)
    }
    fn submit(&self, cache: &mut Cache<L>, step: &Step<'_>) -> Result<Pending> {
        match (self, cache) {
            (Engine::Cpu(executor), Cache::Cpu(cache)) => executor.submit(cache, step).map(Pending::Cpu),
            (Engine::Gpu(executor), Cache::Gpu(cache)) => executor.submit(cache, step).map(Box::new).map(Pending::Gpu),
            (Engine::Remote(executor), Cache::Remote(cache)) => executor.submit(cache, step).map(Pending::Remote),
            _ => Err(foreign()),
        }
    }
    fn submit_batch(&self, batch: &mut [Entry<'_, Cache<L>>]) -> Result<Vec<Pending>> {
        let Engine::Gpu(executor) = self else {
            return batch.iter_mut().map(|entry| self.submit(entry.cache, &entry.step)).collect();
        };
        let mut own = Vec::with_capacity(batch.len());
        for entry in batch {
            let Cache::Gpu(cache) = &mut *entry.cache else { return Err(foreign()) };
            own.push(Entry { cache: &mut **cache, step: entry.step });
        }
        Ok(executor.submit_batch(&mut own)?.into_iter().map(|pending| Pending::Gpu(Box::new(pending))).collect())
    }
    fn fork(&self, cache: &Cache<L>) -> Result<Cache<L>> {
        Ok(match (self, cache) {
            (Engine::Cpu(executor), Cache::Cpu(cache)) => Cache::Cpu(executor.fork(cache)?),
            (Engine::Gpu(executor), Cache::Gpu(cache)) => Cache::Gpu(Box::new(executor.fork(cache)?)),
            (Engine::Remote(executor), Cache::Remote(cache)) => Cache::Remote(executor.fork(cache)?),
            _ => return Err(foreign()),
        })
    }
    async fn finish(&self, pending: Pending) -> Result<StepOutput> {
        match (self, pending) {
            (Engine::Cpu(executor), Pending::Cpu(pending)) => executor.finish(pending).await,
            (Engine::Gpu(executor), Pending::Gpu(pending)) => executor.finish(*pending).await,
            (Engine::Remote(executor), Pending::Remote(pending)) => executor.finish(pending).await,
            _ => Err(foreign()),
        }
    }
    async fn eval(&self, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor> {
        each!(self, executor => executor.eval(id, inputs, first_position, long_rope).await)
    }
    fn groups(&self) -> Result<Vec<Group>> {
        each!(self, executor => executor.groups())
    }
    async fn part(&self, cache: &mut Cache<L>, part: &Part<'_>) -> Result<Tensor> {
        both!(Cache, self, cache, executor, cache => executor.part(cache, part).await, Err(foreign()))
    }
    async fn cached(&self, cache: &Cache<L>, state: StateId) -> Result<Cached> {
        both!(Cache, self, cache, executor, cache => executor.cached(cache, state).await, Err(foreign()))
    }
    async fn choose(&self, cache: &mut Cache<L>, logits: &[f32], rules: Pick, k: usize) -> Result<Chosen> {
        both!(Cache, self, cache, executor, cache => executor.choose(cache, logits, rules, k).await, Err(foreign()))
    }
}
