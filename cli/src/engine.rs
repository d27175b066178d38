//! The executor that was chosen: the oracle, the GPU, or the GPU as a browser has it. `Engine` is itself an executor, so
//! that commands need not know which.

use crate::browser::Tab;
use crate::device::Device;
use doppler::config::runtime::Inference;
use doppler::cpu::CpuExecutor;
use doppler::exec::{
    Cached, Chosen, Editable, Entry, Executor, Group, Part, Pick, Replaceable, Sequences, Step, StepOutput, Storage, StoredRows, WeightSink,
};
use doppler::gpu::{GpuExecutor, Log, StepLog};
use doppler::plan::intervention::Intervention;
use doppler::plan::{Plan, StateId, ValueId, WeightId};
use doppler::quant::Format;
use doppler::remote::Remote;
use doppler::tensor::Tensor;
use doppler::{Error, Result, settings};

type Oracle = CpuExecutor<f32>;
type Browser = Remote<Tab>;

/// An executor.
pub enum Engine {
    /// The oracle in f32.
    Cpu(Box<Oracle>),
    /// The GPU.
    Gpu(Box<GpuExecutor>),
    /// The GPU of a browser's tab.
    Browser(Box<Browser>),
}

/// A cache of an [`Engine`].
pub enum Cache {
    Cpu(<Oracle as Executor>::Cache),
    Gpu(Box<<GpuExecutor as Executor>::Cache>),
    Browser(<Browser as Executor>::Cache),
}

/// A step of an [`Engine`] under way.
pub enum Pending {
    Cpu(<Oracle as Executor>::Pending),
    Gpu(Box<<GpuExecutor as Executor>::Pending>),
    Browser(<Browser as Executor>::Pending),
}

/// `$do` with whichever executor it is.
macro_rules! each {
    ($engine:expr, $executor:ident => $do:expr) => {
        match $engine {
            Engine::Cpu($executor) => $do,
            Engine::Gpu($executor) => $do,
            Engine::Browser($executor) => $do,
        }
    };
}

/// Likewise, with what belongs to it: a cache, or a step under way.
macro_rules! both {
    ($of:ident, $engine:expr, $other:expr, $executor:ident, $own:ident => $do:expr, $else:expr) => {
        match ($engine, $other) {
            (Engine::Cpu($executor), $of::Cpu($own)) => $do,
            (Engine::Gpu($executor), $of::Gpu($own)) => $do,
            (Engine::Browser($executor), $of::Browser($own)) => $do,
            _ => $else,
        }
    };
}

fn foreign() -> Error {
    Error::invalid("cache", "it belongs to another executor")
}

impl Engine {
    /// An executor of `plan` without weights.
    ///
    /// # Errors
    /// What the executors say of the plan.
    pub fn new(device: Device, plan: Plan, inference: &Inference) -> Result<Self> {
        // The oracle takes f16 only when told to.
        let storage = settings::storage(inference.dtype, device.caps().is_some_and(|caps| caps.f16));
        Ok(match device {
            Device::Cpu => Engine::Cpu(Box::new(CpuExecutor::new(plan, storage)?)),
            Device::Gpu(gpu) => Engine::Gpu(Box::new(GpuExecutor::new(*gpu, plan, storage)?)),
            Device::Browser(tab) => {
                let description = tab.describe();
                Engine::Browser(Box::new(Remote::new(*tab, plan, storage, description)))
            }
        })
    }
    /// Whether steps are computed while the host does something else; the oracle computes when it is told to start.
    pub fn is_ahead(&self) -> bool {
        !matches!(self, Engine::Cpu(_))
    }
    /// Sets the plan's longest sequence, for sessions to come.
    ///
    /// # Errors
    /// `Kind::Device` when the browser is gone.
    pub fn set_max_positions(&mut self, positions: usize) -> Result<()> {
        match self {
            Engine::Cpu(executor) => executor.set_max_positions(positions),
            Engine::Gpu(executor) => executor.set_max_positions(positions),
            Engine::Browser(executor) => executor.set_max_positions(positions)?,
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
            Engine::Browser(executor) => executor.set_log(log),
        }
    }
    /// The dispatches of the steps that are finished, oldest step first.
    ///
    /// # Errors
    /// `Kind::Device` when the browser is gone.
    pub fn take_log(&self) -> Result<Vec<StepLog>> {
        match self {
            Engine::Cpu(_) => Ok(Vec::new()),
            Engine::Gpu(executor) => Ok(executor.take_log()),
            Engine::Browser(executor) => executor.take_log(),
        }
    }
}

impl Editable for Engine {
    fn set_interventions(&mut self, interventions: &[(ValueId, Vec<Intervention>)]) -> Result<()> {
        each!(self, executor => executor.set_interventions(interventions))
    }
}

impl WeightSink for Engine {
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

impl Replaceable for Engine {
    fn clear(&mut self, id: WeightId) -> Result<()> {
        each!(self, executor => executor.clear(id))
    }
}

impl Executor for Engine {
    type Cache = Cache;
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
    fn new_cache(&self, capacity: usize, chunk: usize) -> Result<Cache> {
        Ok(match self {
            Engine::Cpu(executor) => Cache::Cpu(executor.new_cache(capacity, chunk)?),
            Engine::Gpu(executor) => Cache::Gpu(Box::new(executor.new_cache(capacity, chunk)?)),
            Engine::Browser(executor) => Cache::Browser(executor.new_cache(capacity, chunk)?),
        })
    }
    fn reserve(&self, sequences: Sequences) -> Result<()> {
        each!(self, executor => executor.reserve(sequences))
    }
    fn grow(&self, cache: &mut Cache, capacity: usize) -> Result<()> {
        both!(Cache, self, cache, executor, cache => executor.grow(cache, capacity), Err(foreign()))
    }
    fn len(&self, cache: &Cache) -> usize {
        both!(Cache, self, cache, executor, cache => executor.len(cache), 0)
    }
    fn capacity(&self, cache: &Cache) -> usize {
        both!(Cache, self, cache, executor, cache => executor.capacity(cache), 0)
    }
    fn truncate(&self, cache: &mut Cache, len: usize) -> bool {
        both!(Cache, self, cache, executor, cache => executor.truncate(cache, len), false)
    }
    fn submit(&self, cache: &mut Cache, step: &Step<'_>) -> Result<Pending> {
        match (self, cache) {
            (Engine::Cpu(executor), Cache::Cpu(cache)) => executor.submit(cache, step).map(Pending::Cpu),
            (Engine::Gpu(executor), Cache::Gpu(cache)) => executor.submit(cache, step).map(Box::new).map(Pending::Gpu),
            (Engine::Browser(executor), Cache::Browser(cache)) => executor.submit(cache, step).map(Pending::Browser),
            _ => Err(foreign()),
        }
    }
    fn submit_batch(&self, batch: &mut [Entry<'_, Cache>]) -> Result<Vec<Pending>> {
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
    async fn finish(&self, pending: Pending) -> Result<StepOutput> {
        match (self, pending) {
            (Engine::Cpu(executor), Pending::Cpu(pending)) => executor.finish(pending).await,
            (Engine::Gpu(executor), Pending::Gpu(pending)) => executor.finish(*pending).await,
            (Engine::Browser(executor), Pending::Browser(pending)) => executor.finish(pending).await,
            _ => Err(foreign()),
        }
    }
    async fn eval(&self, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor> {
        each!(self, executor => executor.eval(id, inputs, first_position, long_rope).await)
    }
    fn groups(&self) -> Result<Vec<Group>> {
        each!(self, executor => executor.groups())
    }
    async fn part(&self, cache: &mut Cache, part: &Part<'_>) -> Result<Tensor> {
        both!(Cache, self, cache, executor, cache => executor.part(cache, part).await, Err(foreign()))
    }
    async fn cached(&self, cache: &Cache, state: StateId) -> Result<Cached> {
        both!(Cache, self, cache, executor, cache => executor.cached(cache, state).await, Err(foreign()))
    }
    async fn choose(&self, cache: &mut Cache, logits: &[f32], rules: Pick, k: usize) -> Result<Chosen> {
        both!(Cache, self, cache, executor, cache => executor.choose(cache, logits, rules, k).await, Err(foreign()))
    }
}
