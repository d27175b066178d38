//! What can be asked of an executor on a device.

use super::caches::slab_bytes;
use super::device::Gpu;
use super::log::{Log, StepLog};
use super::program::Size;
use super::state::{GpuCache, GpuExecutor, no_workspace};
use super::submit::GpuPending;
use super::variants::Product;
use crate::error::{Error, Result};
#[cfg(not(target_arch = "wasm32"))]
use crate::exec::StoredRows;
use crate::exec::{
    self, Cached, Chosen, DECODE_TOKENS, Editable, Entry, Executor, Group, Pick, Read, Replaceable, Rows, Sequences, Step, StepOutput,
    Storage, Tokens, WeightSink,
};
use crate::geometry::windows;
use crate::groups::shown;
use crate::plan::intervention::Intervention;
use crate::plan::{Node, Op, Plan, StateId, StateKind, ValueId, WeightId};
use crate::quant::Format;
use crate::tensor::{DType, Tensor};
use crate::tuned::{Tuned, Variant};

impl GpuExecutor {
    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }
    /// Switches fusions on or off for the steps to come.
    pub fn set_fusion(&mut self, on: bool) {
        self.gpu.no_fusion = !on;
        self.clear_programs();
    }
    /// Has the decode steps to come computed as is best for many sequences, or for one. Matrix units then take the products of
    /// every sequence, of one alone too, so that its bits depend on this and on no neighbour.
    pub fn set_batched(&mut self, on: bool) {
        self.gpu.batched = on;
        self.clear_programs();
    }
    /// Has the steps to come open the groups that hide these values, as if they were wanted: what it costs to watch can then be
    /// told from what it costs to compute so.
    pub fn set_opened(&mut self, values: Vec<ValueId>) {
        self.opened = values;
        self.clear_programs();
    }
    /// Has the steps to come computed by the variants that were measured to be fastest here, or by those that are taken untuned.
    pub fn set_tuned(&mut self, table: Option<Tuned>) {
        self.gpu.set_tuned(table.into_iter().collect());
        self.clear_programs();
    }
    /// The products of the plan that more than one variant computes, each once, with those variants, the usual one first.
    ///
    /// # Errors
    /// `Kind::Invalid` before there is a sequence.
    pub fn tunable(&self) -> Result<Vec<(Product, Vec<Variant>)>> {
        let workspace = self.workspace.borrow();
        let workspace = workspace.as_ref().ok_or_else(no_workspace)?;
        let mut found: Vec<(Product, Vec<Variant>)> = Vec::new();
        for (index, node) in self.plan.nodes.iter().enumerate() {
            let id = ValueId(index);
            // Experts' are products of vectors, however many tokens a step has.
            let (weight, sizes) = match &node.op {
                Op::Linear { weight, .. } => (weight, &[false, true][..]),
                Op::ExpertLinear { weight, .. } => (weight, &[false][..]),
                _ => continue,
            };
            let narrow = workspace.decode.get(&self.plan, node.inputs[0])?.dtype == DType::F16;
            let weight = self.weights.get(&self.plan, *weight)?;
            for &many in sizes {
                let product = Product::of(&self.plan, id, weight, narrow, many);
                let variants = product.variants(&self.gpu.caps);
                // Logits always come from the matrix-vector kernel.
                let used = !(many && self.plan.in_head(id));
                if used && variants.len() > 1 && found.iter().all(|(known, _)| *known != product) {
                    found.push((product, variants));
                }
            }
        }
        Ok(found)
    }
    /// Lets go of what binds weights and was lowered for other settings.
    fn clear_programs(&mut self) {
        self.if_made.take();
        if let Some(workspace) = self.workspace.get_mut() {
            workspace.programs.clear();
        }
    }
    /// Sets the plan's longest sequence, for sessions to come.
    pub fn set_max_positions(&mut self, positions: usize) {
        self.plan.max_positions = positions;
    }
    /// Makes the pipelines of a prompt and of a greedy decode step, and lets go of them: where making the same again is
    /// quick, the first token then need not wait for compilers. What a page gets while this runs may be stand-ins, so that none
    /// is kept, of the device's other executors neither.
    ///
    /// # Errors
    /// What the device reports.
    pub fn build(&self) -> Result<()> {
        let pick = Some(Pick { valid: self.plan.vocab_size });
        // More tokens than are computed one by one.
        let prompt = vec![0; (DECODE_TOKENS + 1).min(self.plan.max_positions)];
        let cache = self.new_cache(prompt.len(), prompt.len())?;
        let mut steps = [Tokens::Picked, Tokens::Ids(&prompt)].into_iter().flat_map(|tokens| [(tokens, Rows::Last), (tokens, Rows::None)]);
        let built = steps.try_for_each(|(tokens, rows)| {
            let pick = pick.filter(|_| rows == Rows::Last);
            let step = Step { tokens, rows, pick, read: Read::Nothing, long_rope: false, requests: &[] };
            let (key, ..) = self.key(&cache, &step)?;
            self.program(key).map(drop)
        });
        self.pipelines.clear(&self.gpu);
        built
    }
    /// Every variant of a kernel that was made since the executor was: `linear W_F16 BIAS WG=128 LANES=32`. Variants are
    /// made where they are dispatched.
    pub fn variants(&self) -> std::collections::BTreeSet<String> {
        self.pipelines.variants()
    }
    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes()
    }
    /// Bytes of what `cache` has of the caches, and of the buffers of steps, by what they hold.
    pub fn cache_bytes(&self, cache: &GpuCache) -> [(&'static str, u64); 6] {
        let kv = slab_bytes(&self.plan, &cache.slabs, self.storage);
        let workspace = self.workspace.borrow();
        let Some(workspace) = workspace.as_ref() else {
            return [("kv", kv), ("values", 0), ("decode", 0), ("ropes", 0), ("step", 0), ("ids", 0)];
        };
        let ropes = workspace.ropes.iter().map(|rope| rope.buffer.size()).sum();
        let decode = workspace.decode.bytes(&self.plan) + workspace.partials.size();
        let step = workspace.step.size() + workspace.origins.size();
        let values = workspace.values.bytes(&self.plan) + workspace.expert_order.size();
        [("kv", kv), ("values", values), ("decode", decode), ("ropes", ropes), ("step", step), ("ids", workspace.ids.size())]
    }
    /// How many programs of steps were lowered since the executor was made: a step that is like an earlier one should need none.
    pub fn programs_made(&self) -> usize {
        self.programs_made.get()
    }
    /// Bytes of the caches of all sequences, as the device has them.
    pub fn caches_bytes(&self) -> u64 {
        self.caches.borrow().states.iter().flat_map(|state| &state.parts).map(wgpu::Buffer::size).sum()
    }

    /// Notes the dispatches of the steps to come, until this is called again; `take_log` hands them out.
    ///
    /// # Errors
    /// `Kind::Device` for times on an adapter without timestamps.
    pub fn set_log(&self, log: Log) -> Result<()> {
        if log == Log::Times && !self.gpu.caps.timestamps {
            return Err(Error::device("this adapter has no timestamps, so kernels cannot be timed"));
        }
        self.log.level.set(log);
        Ok(())
    }
    /// The steps that were noted and are finished, oldest first.
    pub fn take_log(&self) -> Vec<StepLog> {
        self.log.steps.take()
    }
}

impl WeightSink for GpuExecutor {
    fn expect(&mut self, formats: &[Format]) {
        self.weights.expect(formats);
    }
    fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> Result<()> {
        self.weights.put(&self.gpu, &self.plan, id, format, first_row, &bytes)
    }
    #[cfg(not(target_arch = "wasm32"))]
    fn pull(&mut self, id: WeightId, format: Format, rows: &StoredRows<'_>) -> Result<()> {
        self.weights.pull(&self.gpu, &self.plan, id, format, rows)
    }
}

impl Replaceable for GpuExecutor {
    fn clear(&mut self, id: WeightId) -> Result<()> {
        self.clear_programs();
        self.weights.clear(id)
    }
}

impl Editable for GpuExecutor {
    fn set_interventions(&mut self, interventions: &[(ValueId, Vec<Intervention>)]) -> Result<()> {
        self.plan.set_interventions(interventions)?;
        self.clear_programs();
        Ok(())
    }
}

impl Executor for GpuExecutor {
    type Cache = GpuCache;
    type Pending = GpuPending;

    fn plan(&self) -> &Plan {
        &self.plan
    }
    fn describe(&self) -> String {
        let batched = match (self.thin().is_some(), self.gpu.batched) {
            (true, _) => ", batched decode",
            (false, true) => ", decode as for one sequence (it has no matrix units that take these activations)",
            (false, false) => "",
        };
        let tuned = self.gpu.tuned.as_ref().map(|tuned| format!(", tuned {}", tuned.id())).unwrap_or_default();
        self.gpu.caps.describe() + batched + &tuned
    }
    fn storage(&self) -> Storage {
        self.storage
    }
    fn new_cache(&self, capacity: usize, chunk: usize) -> Result<GpuCache> {
        GpuCache::new(self, capacity, chunk)
    }
    fn reserve(&self, sequences: Sequences) -> Result<()> {
        self.reserve_sequences(sequences)
    }
    fn grow(&self, cache: &mut GpuCache, capacity: usize) -> Result<()> {
        if capacity <= cache.capacity {
            return Ok(());
        }
        self.grow_slabs(&mut cache.slabs, capacity, cache.chunk)?;
        cache.capacity = capacity;
        self.make_room(cache.room(self), false)
    }
    fn len(&self, cache: &GpuCache) -> usize {
        cache.len
    }
    fn capacity(&self, cache: &GpuCache) -> usize {
        cache.capacity
    }
    fn truncate(&self, cache: &mut GpuCache, len: usize) -> bool {
        let lost = |window: Option<usize>| {
            let slots = cache.slabs.of(window).len();
            window.is_some_and(|w| w > 0 && cache.high > slots && len + slots < cache.high + w)
        };
        // Matrices are made again from earlier ones and what is still there of the positions since.
        let unreachable = |node: &Node| {
            let Op::GatedDelta { state, .. } = node.op else { return false };
            let window = self.plan.state(state).and_then(StateKind::window);
            let first = cache.high.saturating_sub(cache.slabs.of(window).len());
            !cache.matrices.reach(len, first, window.unwrap_or(0))
        };
        if len > cache.len || (len > 0 && self.plan.nodes.iter().any(unreachable)) || (len > 0 && windows(&self.plan).into_iter().any(lost))
        {
            return false;
        }
        cache.len = len;
        if len == 0 {
            cache.high = 0;
            cache.matrices = Default::default();
        }
        true
    }

    fn submit(&self, cache: &mut GpuCache, step: &Step<'_>) -> Result<GpuPending> {
        let mut pending = self.submit_entries(&mut [Entry { cache, step: *step }])?;
        pending.pop().ok_or_else(|| Error::invalid("step", "nothing to compute"))
    }
    fn submit_batch(&self, batch: &mut [Entry<'_, GpuCache>]) -> Result<Vec<GpuPending>> {
        self.submit_entries(batch)
    }
    async fn finish(&self, pending: GpuPending) -> Result<StepOutput> {
        self.finish_step(pending).await
    }
    fn fork(&self, cache: &GpuCache) -> Result<GpuCache> {
        let slabs = self.copy_slabs(&cache.slabs, cache.capacity, cache.chunk)?;
        let GpuCache { len, high, capacity, chunk, matrices, .. } = *cache;
        let fork = GpuCache { len, high, capacity, chunk, slabs, matrices };
        self.make_room(fork.room(self), false)?;
        Ok(fork)
    }

    async fn eval(&self, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor> {
        super::eval::eval(self, id, inputs, first_position, long_rope).await
    }
    fn groups(&self) -> Result<Vec<Group>> {
        Ok(shown(&self.plan, self.groups_of(&[], Size::One), self.groups_of(&[], Size::Many)))
    }
    async fn part(&self, cache: &mut GpuCache, part: &exec::Part<'_>) -> Result<Tensor> {
        super::part::part(self, cache, part).await
    }
    async fn cached(&self, cache: &GpuCache, state: StateId) -> Result<Cached> {
        super::part::cached(self, cache, state).await
    }
    async fn choose(&self, cache: &mut GpuCache, logits: &[f32], rules: Pick, k: usize) -> Result<Chosen> {
        super::part::choose(self, cache, logits, rules, k).await
    }
}
