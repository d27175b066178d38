//! The memory of a plan on a GPU: the size of every buffer that weights and sequences take. The GPU executor allocates
//! by it and the forecast adds it up. Pure arithmetic: it knows no device.
//!
//! What only a watched or picking step needs is not in it: statistics, gathered elements, scores, candidates, a few words
//! of parameters for each dispatch, readback buffers. The CPU executor needs no more than this.

use crate::exec::{DECODE_TOKENS, Sequences, Storage, matmul_inputs};
use crate::groups::last_reads;
use crate::model::{RopeConfig, RopeScaling};
use crate::plan::{Op, Plan, StateKind, ValueId, WeightSlot};
use crate::quant::Format;
use crate::tensor::{DType, product};

/// Spare positions of a windowed cache, so that decode steps run ahead of the host can be taken back.
const WINDOW_SLACK: usize = 16;
/// Slots of matrices: those before the last step, and those after it.
pub const MATRIX_SLOTS: usize = 2;
/// Logits of at most this many bytes are computed at a time.
const HEAD_BATCH_BYTES: usize = 32 << 20;
/// Kinds of caches of a plan, by their windows, whose slabs a kernel can find.
pub const SLABS: usize = 4;
/// Most tokens that are computed together while each may be of another sequence.
pub const MOST_ENTRIES: usize = 64;
/// Bytes of the origins of one part of a step.
pub const ORIGINS_BYTES: u64 = (MOST_ENTRIES * (16 + 8 * SLABS)) as u64;
/// Distance in bytes from slot to slot of the step uniform: the largest alignment that WebGPU devices ask for.
pub const STEP_SLOT: usize = 256;

/// How much the buffers that all sequences share have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Tokens of a sequence's step.
    pub chunk: usize,
    /// Positions.
    pub capacity: usize,
    /// Tokens that are computed as decode is, together.
    pub rows: usize,
    /// Token ids: those that were picked, then those of a step.
    pub ids: usize,
    /// Slots of the step uniform: of each part of a step one, and one for each batch of logits rows, at most one per row.
    pub slots: usize,
    /// Parts of a step.
    pub parts: usize,
}

impl Room {
    /// What `sequences` need, whatever steps of them are computed together.
    pub fn of(sequences: Sequences) -> Self {
        let Sequences { count, capacity, chunk } = sequences;
        let chunk = chunk.min(capacity);
        let few = DECODE_TOKENS.min(chunk);
        let rows = if count > 1 { count.saturating_mul(few).min(MOST_ENTRIES) } else { few };
        Self {
            chunk,
            capacity,
            rows: if count > 1 { rows.next_power_of_two() } else { rows },
            ids: count.saturating_mul(chunk.saturating_add(1)),
            slots: (chunk + 1).max(count.saturating_mul(2)),
            parts: count,
        }
    }
    /// Room for both.
    pub fn union(self, other: Self) -> Self {
        Self {
            chunk: self.chunk.max(other.chunk),
            capacity: self.capacity.max(other.capacity),
            rows: self.rows.max(other.rows),
            ids: self.ids.max(other.ids),
            slots: self.slots.max(other.slots),
            parts: self.parts.max(other.parts),
        }
    }
    /// Bytes of the step uniform and of the origins of the parts of a step.
    pub fn step(&self) -> [u64; 2] {
        [product([self.slots, STEP_SLOT]), product([self.parts]).saturating_mul(ORIGINS_BYTES)]
    }
    /// Bytes of the token ids.
    pub fn ids(&self) -> u64 {
        buffer_bytes(product([self.ids, 4]))
    }
}

/// Buffers of sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// What is shared has room for this.
    pub room: Room,
    /// The caches of `Plan::states`, in their order.
    pub caches: Vec<Ring>,
    /// Values of a step of up to `chunk` tokens, which take turns in buffers.
    pub values: ValueBuffers,
    /// Values of a step that is computed as decode is, each in a buffer of its own: what does not depend on each other
    /// then runs at the same time, and statistics and copies can wait and go together.
    pub decode: ValueBuffers,
    /// Bytes of the table of each of `Plan::ropes`.
    pub ropes: Vec<u64>,
    /// Bytes of what the runs of attention give in a decode step.
    pub partials: u64,
    /// Bytes of the order in which experts compute the rows of a step of many tokens.
    pub expert_order: u64,
}

/// The cache of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Positions held of a sequence: position q is in its slot q mod `slots`.
    pub slots: usize,
    /// Bytes of the keys of all sequences, and as many of their values.
    pub bytes: u64,
}

/// Where the values of a plan are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueBuffers {
    /// Bytes of each buffer.
    pub buffers: Vec<u64>,
    /// For each value its buffer; `None` for scores, and for what is in a cache, which get theirs when a step wants them.
    pub places: Vec<Option<usize>>,
    /// Rows for which logits fit at a time.
    pub head_batch: usize,
}

/// The buffers of `plan` for `sequences`, before any is made.
pub fn geometry(plan: &Plan, storage: Storage, sequences: Sequences) -> Geometry {
    let room = Room::of(sequences);
    let ring = |kind: &StateKind| {
        let slots = slots(kind.window(), room.capacity, room.chunk);
        Ring { slots, bytes: buffer_bytes(cache_bytes(kind, slots.saturating_mul(sequences.count), storage.of(kind))) }
    };
    Geometry {
        caches: plan.states.iter().map(|state| ring(&state.kind)).collect(),
        values: value_buffers(plan, storage, room.chunk, true),
        decode: value_buffers(plan, storage, room.rows, false),
        ropes: plan.ropes.iter().map(|config| rope_bytes(config, room.capacity)).collect(),
        partials: partials(plan, room.capacity, room.rows),
        expert_order: expert_order(plan, room.chunk),
        room,
    }
}

/// Bytes of the keys, or of the values, of so many slots of a cache.
pub fn cache_bytes(kind: &StateKind, slots: usize, dtype: DType) -> u64 {
    product([slots, kind.width(), dtype.size()])
}

/// Slots of a cache for `capacity` positions in steps of `chunk` tokens: windowed layers need the window and one step's tokens,
/// the others all positions. What is kept of all positions together has one slot that a step reads, and one that it writes.
pub fn slots(window: Option<usize>, capacity: usize, chunk: usize) -> usize {
    match window {
        None => capacity,
        Some(0) => MATRIX_SLOTS,
        Some(w) => w.saturating_add(chunk).saturating_add(WINDOW_SLACK).min(capacity),
    }
}

/// Positions before a step whose part of a ring with `window` the step does not write over, however long it is.
pub fn kept_before(window: usize) -> usize {
    window.saturating_add(WINDOW_SLACK)
}

/// The windows of a plan's caches, each once: the kinds of slabs that a sequence has.
pub fn windows(plan: &Plan) -> Vec<Option<usize>> {
    let mut found = Vec::new();
    for window in plan.states.iter().map(|state| state.kind.window()) {
        if !found.contains(&window) {
            found.push(window);
        }
    }
    found
}

impl Geometry {
    /// Bytes of the step uniform and of the origins.
    pub fn step(&self) -> u64 {
        let [step, origins] = self.room.step();
        step.saturating_add(origins)
    }
}

/// Bytes of a storage buffer that holds `bytes`.
pub fn buffer_bytes(bytes: u64) -> u64 {
    bytes.max(16).checked_next_multiple_of(16).unwrap_or(u64::MAX)
}

/// Elements from row to row of a value or a weight of `width` elements: kernels read eight at a time.
pub fn stride(width: usize) -> usize {
    width.next_multiple_of(8)
}

/// Storage type of a value.
pub fn dtype_of(matmul_input: bool, storage: Storage) -> DType {
    if matmul_input { storage.activations } else { DType::F32 }
}

/// Rows, elements of a row and format of a weight on the device, stored as `format`: vectors (norms, biases) are a row of
/// f32, and so are rows that no kernel reads packed.
pub fn weight_layout(slot: &WeightSlot, format: Format) -> ([usize; 2], Format) {
    match slot.shape[..] {
        [rows, columns, ..] => ([rows, columns], device_format(format)),
        _ => ([1, slot.shape.first().copied().unwrap_or(1)], Format::F32),
    }
}

/// The format that matrices stored as `format` have on the device: their own, or f32 where no kernel reads it.
pub fn device_format(format: Format) -> Format {
    if format.dtype().is_some() || format.planes().is_some() { format } else { Format::F32 }
}

/// Bytes of a row of `columns` elements on the device: plain values are padded to eight, packed ones lie in planes.
pub fn device_row_bytes(format: Format, columns: usize) -> usize {
    match format.planes() {
        Some(planes) => planes.row_words(columns) * 4,
        None => format.row_bytes(stride(columns)).unwrap_or(usize::MAX),
    }
}

/// Bytes of a weight on the device, its rows padded.
pub fn weight_bytes(slot: &WeightSlot, format: Format) -> u64 {
    let ([rows, columns], format) = weight_layout(slot, format);
    product([rows, device_row_bytes(format, columns)])
}

/// How many tables a position encoding has: cos and sin, twice for longrope.
pub fn rope_variants(config: &RopeConfig) -> usize {
    if matches!(config.scaling, RopeScaling::LongRope { .. }) { 2 } else { 1 }
}

/// cos and sin in f32 for every position.
fn rope_bytes(config: &RopeConfig, positions: usize) -> u64 {
    buffer_bytes(product([rope_variants(config), positions, config.rotary_dim, 4]))
}

/// Rows for which logits are computed at a time in steps of at most `rows` tokens.
pub fn head_batch(plan: &Plan, rows: usize) -> usize {
    (HEAD_BATCH_BYTES / (stride(plan.vocab_size) * 4)).clamp(1, rows.max(1))
}

/// Buffers for steps of at most `rows` tokens; with `share`, values whose lives do not overlap take turns in them.
pub fn value_buffers(plan: &Plan, storage: Storage, rows: usize, share: bool) -> ValueBuffers {
    let narrow = matmul_inputs(plan);
    let head_batch = head_batch(plan, rows);
    let (root, last_use) = (roots(plan), last_uses(plan));
    let mut buffers: Vec<(u64, usize)> = Vec::new(); // bytes, last node that reads it
    let mut places: Vec<Option<usize>> = vec![None; plan.nodes.len()];
    for (i, node) in plan.nodes.iter().enumerate() {
        if root[i].0 != i {
            places[i] = places[root[i].0];
            continue;
        }
        // What is appended is in a cache.
        if !node.at.stage.layout().is_rows() || node.op.appends() {
            continue;
        }
        let head = plan.in_head(ValueId(i));
        let rows = if head { head_batch } else { rows };
        let size = buffer_bytes(product([rows, stride(node.width), dtype_of(narrow[i], storage).size()]));
        // Logits stay readable after the step, and keep a buffer of their own.
        let free = buffers.iter().enumerate().filter(|(_, (_, until))| share && *until < i && !head);
        let best = free.min_by_key(|(_, (bytes, _))| bytes.abs_diff(size)).map(|(place, _)| place);
        let place = best.unwrap_or_else(|| {
            buffers.push((0, 0));
            buffers.len() - 1
        });
        buffers[place] = (buffers[place].0.max(size), if head { usize::MAX } else { last_use[i] });
        places[i] = Some(place);
    }
    ValueBuffers { buffers: buffers.into_iter().map(|(bytes, _)| bytes).collect(), places, head_batch }
}

/// For each node the last one that reads its storage.
fn last_uses(plan: &Plan) -> Vec<usize> {
    let root = roots(plan);
    let mut last_use: Vec<usize> = (0..plan.nodes.len()).collect();
    for (i, last) in last_reads(plan).into_iter().enumerate() {
        last_use[root[i].0] = last_use[root[i].0].max(last);
    }
    last_use
}

/// For each node the node whose storage it shares: itself, or what `Same` renames.
fn roots(plan: &Plan) -> Vec<ValueId> {
    let mut root: Vec<ValueId> = Vec::with_capacity(plan.nodes.len());
    for (i, node) in plan.nodes.iter().enumerate() {
        root.push(if matches!(node.op, Op::Same) { root[node.inputs[0].0] } else { ValueId(i) });
    }
    root
}

/// Positions that one workgroup of attention over a long cache takes at least, and the most such workgroups of a head: those
/// of kernels/shared/runs.wgsl.
pub const RUN_POSITIONS: usize = 64;
/// Most runs of a head.
pub const MOST_RUNS: usize = 64;

/// Runs of a head for which there is room where `capacity` positions may be seen.
pub fn runs(capacity: usize) -> usize {
    capacity.div_ceil(RUN_POSITIONS).clamp(1, MOST_RUNS)
}

/// Bytes of what runs give before they are merged: for every token, head and run a mixture and four elements more.
pub fn partials(plan: &Plan, capacity: usize, tokens: usize) -> u64 {
    let of_head = |op: &Op| if let Op::AttnMix(a) = op { product([a.heads, a.head_dim + 4, 4]) } else { 0 };
    let most = plan.nodes.iter().map(|node| of_head(&node.op)).max().unwrap_or(0);
    buffer_bytes(most.saturating_mul(product([tokens, runs(capacity)])))
}

/// Most tiles of at most `tile` rows, each of one expert or of none, that so many rows are cut into.
pub fn expert_tiles(rows: usize, experts: usize, tile: usize) -> usize {
    rows.min(experts.saturating_add(1)).saturating_add(rows / tile.max(1))
}

/// Rows of the smallest tile of products with experts.
pub const EXPERT_TILE: usize = 32;

/// Bytes of the order in which experts compute the rows of `tokens` tokens: as kernels/expert_rows.wgsl has it.
pub fn expert_order(plan: &Plan, tokens: usize) -> u64 {
    let words = |op: &Op| match op {
        Op::ExpertLinear { experts, chosen, .. } => {
            let rows = tokens.saturating_mul(*chosen);
            rows.saturating_add(expert_tiles(rows, *experts, EXPERT_TILE).saturating_mul(3)).saturating_add(1)
        }
        _ => 0,
    };
    buffer_bytes(product([plan.nodes.iter().map(|node| words(&node.op)).max().unwrap_or(0), 4]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::pipeline;
    use crate::plan::Stage;

    fn plan() -> Plan {
        pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap()
    }

    #[test]
    fn rings_hold_a_window_a_step_and_what_runs_ahead() {
        // Layer 0 has a window of 4, layers 1 and 2 none; 2 heads of 4.
        let of = |storage, capacity| geometry(&plan(), storage, Sequences::one(capacity, 8));
        let found = of(Storage::F16, 100);
        let rings: Vec<_> = found.caches.iter().map(|ring| (ring.slots, ring.bytes)).collect();
        assert_eq!(rings, [(28, 28 * 16), (100, 1600), (100, 1600)]);
        assert_eq!(of(Storage::F32, 9).caches[0], Ring { slots: 9, bytes: 9 * 32 });
        assert_eq!((found.ropes, found.room.slots, found.room.ids()), (vec![100 * 4 * 4], 9, 48));
        assert_eq!(of(Storage::F32, 4).room.chunk, 4);
        assert_eq!(of(Storage::F32, usize::MAX).caches[1].bytes, u64::MAX, "saturated");
    }

    #[test]
    fn sequences_have_caches_of_their_own_and_share_the_rest() {
        let of = |count| geometry(&plan(), Storage::F16, Sequences { count, capacity: 100, chunk: 8 });
        let (one, many) = (of(1), of(20));
        assert_eq!(many.caches[0], Ring { slots: 28, bytes: 20 * 28 * 16 });
        assert_eq!((&many.values, &many.ropes), (&one.values, &one.ropes));
        assert_eq!((one.room.rows, many.room.rows, many.room.parts), (4, 64, 20));
        assert!(many.partials > one.partials && many.step() > one.step());
    }

    #[test]
    fn values_that_live_at_once_are_apart() {
        let plan = plan();
        let found = geometry(&plan, Storage::F32, Sequences::one(100, 16));
        let last_use = last_uses(&plan);
        let root = roots(&plan);
        for (i, a) in found.values.places.iter().enumerate() {
            let alive = |j: usize| root[j].0 == j && j > i && root[i].0 == i && last_use[i] >= j;
            let clash = (0..plan.nodes.len()).find(|j| alive(*j) && a.is_some() && found.values.places[*j] == *a);
            assert_eq!(clash, None, "{}", plan.nodes[i].at);
        }
        let logits = |buffers: &ValueBuffers| {
            let id = plan.nodes.iter().position(|n| n.at.stage == Stage::Logits).unwrap();
            buffers.buffers[buffers.places[id].unwrap()]
        };
        // All rows of logits of this model fit into one batch.
        assert_eq!(found.values.head_batch, 16);
        assert_eq!(logits(&found.values), product([16, stride(plan.vocab_size), 4]));
        let own: std::collections::BTreeSet<_> = found.decode.places.iter().flatten().collect();
        assert_eq!(own.len(), found.decode.buffers.len());
        assert!(found.values.buffers.len() < found.decode.buffers.len());
    }
}
