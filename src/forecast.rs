//! What a plan will need in memory, computed before anything is allocated: weights, caches, values of one step,
//! tables. It knows no device; executors may round up, and what they add is theirs to say.

use crate::error::{Error, Result};
use crate::exec::{DECODE_TOKENS, Storage, matmul_inputs};
use crate::model::{RopeConfig, RopeScaling};
use crate::plan::{CacheSpec, Layout, Node, Op, Plan};
use crate::tensor::{DType, product};
use std::collections::BTreeMap;
use std::fmt;

/// Bytes by purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// Element type, number of weights, bytes.
    pub weights: Vec<(DType, usize, u64)>,
    /// Key/value caches, one row per geometry.
    pub caches: Vec<CacheForecast>,
    /// Values alive at once while a step of `chunk` tokens runs, at their largest.
    pub activations: u64,
    /// All values of a decode step, each in memory of its own.
    pub decode: u64,
    /// cos and sin for every position.
    pub ropes: u64,
    /// Positions that the caches hold.
    pub capacity: usize,
    /// Tokens of the largest step.
    pub chunk: usize,
}

/// The caches of all layers of one geometry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheForecast {
    /// Key/value heads, head width and window of the layers; `layer` is the first of them.
    pub spec: CacheSpec,
    /// Number of layers.
    pub layers: usize,
    /// Positions held per layer.
    pub positions: usize,
    /// Bytes of all these layers.
    pub bytes: u64,
}

/// Forecasts `plan` for `capacity` positions in steps of up to `chunk` tokens. `dtypes` gives each weight slot's
/// element type, as `Matched::dtypes` does.
pub fn forecast(plan: &Plan, dtypes: &[DType], capacity: usize, chunk: usize, storage: Storage) -> Forecast {
    let mut weights: BTreeMap<DType, (usize, u64)> = BTreeMap::new();
    for (slot, dtype) in plan.weights.iter().zip(dtypes) {
        let sum = weights.entry(*dtype).or_default();
        *sum = (sum.0 + 1, sum.1 + product(slot.shape.iter().copied().chain([dtype.size()])));
    }
    Forecast {
        weights: weights.into_iter().map(|(dtype, (count, bytes))| (dtype, count, bytes)).collect(),
        caches: caches(plan, capacity, chunk, storage.cache),
        activations: activations(plan, chunk, storage.activations),
        decode: decode(plan, chunk, storage.activations),
        ropes: ropes(plan, capacity),
        capacity,
        chunk,
    }
}

/// Windowed layers need the window and one step's tokens, the others all positions.
fn caches(plan: &Plan, capacity: usize, chunk: usize, dtype: DType) -> Vec<CacheForecast> {
    let mut rows: Vec<CacheForecast> = Vec::new();
    for spec in &plan.caches {
        let positions = spec.window.map_or(capacity, |w| w.saturating_add(chunk).min(capacity));
        // Keys and values.
        let bytes = product([2, positions, spec.kv_heads, spec.head_dim, dtype.size()]);
        let same = |row: &&mut CacheForecast| {
            (row.spec.kv_heads, row.spec.head_dim, row.spec.window) == (spec.kv_heads, spec.head_dim, spec.window)
        };
        match rows.iter_mut().find(same) {
            Some(row) => (row.layers, row.bytes) = (row.layers + 1, row.bytes + bytes),
            None => rows.push(CacheForecast { spec: spec.clone(), layers: 1, positions, bytes }),
        }
    }
    rows
}

/// Bytes that a token takes of each value; none where it has no rows, or shares those of another.
fn row_bytes(plan: &Plan, narrow: DType) -> Vec<u64> {
    let is_narrow = matmul_inputs(plan);
    let has_rows = |node: &Node| !matches!(node.op, Op::Same) && node.at.stage.info().layout == Layout::Rows;
    let size = |i: usize| if is_narrow[i] { narrow.size() } else { 4 };
    plan.nodes.iter().enumerate().map(|(i, node)| if has_rows(node) { product([size(i), node.width]) } else { 0 }).collect()
}

/// Every value of the largest step that is computed as decode is.
fn decode(plan: &Plan, chunk: usize, narrow: DType) -> u64 {
    row_bytes(plan, narrow).iter().sum::<u64>() * DECODE_TOKENS.min(chunk) as u64
}

/// Largest sum of values that are still to be read, when each is given back after its last reader. Scores are never
/// whole in memory, logits are those of one row, `Same` shares its input's storage.
fn activations(plan: &Plan, chunk: usize, narrow: DType) -> u64 {
    let head = plan.head_input().map_or(usize::MAX, |id| id.0);
    let rows = row_bytes(plan, narrow);
    let bytes = |i: usize| rows[i] * if i > head { 1 } else { chunk as u64 };
    // A value whose reader is `Same` or scores lives as long as what that produces.
    let mut last_reader: Vec<usize> = (0..plan.nodes.len()).collect();
    for (i, node) in plan.nodes.iter().enumerate().rev() {
        for input in &node.inputs {
            let until = if matches!(node.op, Op::Same) || bytes(i) == 0 { last_reader[i] } else { i };
            last_reader[input.0] = last_reader[input.0].max(until);
        }
    }
    let (mut alive, mut most) = (0u64, 0u64);
    for i in 0..plan.nodes.len() {
        alive += bytes(i);
        most = most.max(alive);
        alive -= (0..=i).filter(|j| last_reader[*j] == i).map(bytes).sum::<u64>();
    }
    most
}

/// cos and sin in f32, two tables for longrope.
fn ropes(plan: &Plan, positions: usize) -> u64 {
    let tables = |r: &RopeConfig| if matches!(r.scaling, RopeScaling::LongRope { .. }) { 2 } else { 1 };
    plan.ropes.iter().map(|r| product([tables(r), positions, r.rotary_dim, 4])).sum()
}

impl Forecast {
    /// Bytes of everything.
    pub fn total(&self) -> u64 {
        let weights: u64 = self.weights.iter().map(|(_, _, bytes)| bytes).sum();
        let caches: u64 = self.caches.iter().map(|row| row.bytes).sum();
        weights + caches + self.activations + self.decode + self.ropes
    }
    /// Purpose, detail and bytes, in the order of the fields.
    pub fn rows(&self) -> Vec<(&'static str, String, u64)> {
        let weights = self.weights.iter().map(|(dtype, count, bytes)| ("weights", format!("{count} in {dtype}"), *bytes));
        let caches = self.caches.iter().map(|row| {
            let CacheSpec { kv_heads, head_dim, window, .. } = row.spec;
            let window = window.map(|w| format!(", window {w}")).unwrap_or_default();
            let detail = format!("{} layers x {} positions x {kv_heads} heads x {head_dim}{window}", row.layers, row.positions);
            ("kv cache", detail, row.bytes)
        });
        let step = ("activations", format!("a step of {} tokens", self.chunk), self.activations);
        let decode = ("decode", format!("a step of up to {DECODE_TOKENS} tokens, each value apart"), self.decode);
        let ropes = ("rope tables", format!("{} positions", self.capacity), self.ropes);
        weights.chain(caches).chain([step, decode, ropes]).collect()
    }
    /// Refuses what does not fit into `available` bytes.
    ///
    /// # Errors
    /// `Kind::Memory` with the table.
    pub fn check(&self, available: u64) -> Result<()> {
        if self.total() <= available {
            return Ok(());
        }
        let hint = if self.weights.iter().map(|(_, _, bytes)| bytes).sum::<u64>() > available {
            "its weights alone are too large for this device"
        } else {
            "try a shorter context, or f16 caches (dtype f16)"
        };
        let (needed, available) = (size(self.total()), size(available));
        Err(Error::memory(format!("the model needs {needed}, but {available} are available: {hint}\n{self}")))
    }
    /// Refuses what must lie in one buffer but is larger than the `buffer` bytes that a device allows for one. WebGPU
    /// tells no amount of device memory; this is what it tells.
    ///
    /// # Errors
    /// `Kind::Memory` with the table.
    pub fn check_buffers(&self, buffer: u64) -> Result<()> {
        let caches = self.caches.iter().map(|c| ("keys or values of a layer", c.bytes / (2 * c.layers as u64).max(1)));
        let Some((what, bytes)) = caches.chain([("the position tables", self.ropes)]).find(|(_, bytes)| *bytes > buffer) else {
            return Ok(());
        };
        let (bytes, buffer) = (size(bytes), size(buffer));
        let text = format!("{what} need {bytes} in one buffer, this device allows {buffer}: try a shorter context\n{self}");
        Err(Error::memory(text))
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = self.rows();
        rows.push(("total", String::new(), self.total()));
        let widest = rows.iter().map(|(_, detail, _)| detail.len()).max().unwrap_or(0);
        let lines = rows.iter().map(|(what, detail, bytes)| format!("{what:<12} {detail:<widest$} {:>12}", size(*bytes)));
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}

/// `1.50 GiB`, `12.0 MiB`, `3.5 KiB`, `17 B`.
pub fn size(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", value / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", value / 1_048_576.0),
        _ => format!("{:.2} GiB", value / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::inference::pipeline;

    fn plan() -> Plan {
        pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap()
    }

    #[test]
    fn counts_weights_caches_and_tables() {
        let plan = plan();
        let dtypes = vec![DType::BF16; plan.weights.len()];
        let found = forecast(&plan, &dtypes, 100, 8, Storage::F16);
        let elements: usize = plan.weights.iter().map(|w| w.elements()).sum();
        assert_eq!(found.weights, [(DType::BF16, plan.weights.len(), 2 * elements as u64)]);
        // Layer 0 has a window of 4, layers 1 and 2 none; 2 heads of 4 in f16, keys and values.
        let caches: Vec<_> = found.caches.iter().map(|c| (c.layers, c.positions, c.bytes)).collect();
        assert_eq!(caches, [(1, 12, 12 * 32), (2, 100, 2 * 100 * 32)]);
        assert_eq!(found.ropes, 100 * 4 * 4);
        assert_eq!(found.decode, forecast(&plan, &dtypes, 100, 4, Storage::F16).decode);
        assert_eq!(found.decode, 2 * forecast(&plan, &dtypes, 100, 2, Storage::F16).decode);
        assert!(found.to_string().contains("total"));
    }

    #[test]
    fn activations_grow_with_the_chunk_and_hold_the_widest_op() {
        let plan = plan();
        let bytes = |chunk| forecast(&plan, &[], 100, chunk, Storage::F32).activations;
        // Residual, gate, up and their product are alive together: 8 + 3 x 12 elements of 4 bytes per token.
        assert!(bytes(16) >= 16 * (8 + 3 * 12) * 4 && bytes(16) < 16 * 100 * 4, "{}", bytes(16));
        assert!(bytes(32) > bytes(16));
        let narrow = forecast(&plan, &[], 100, 16, Storage::F16).activations;
        assert!(narrow < bytes(16));
    }

    #[test]
    fn refuses_with_the_numbers() {
        let plan = plan();
        let found = forecast(&plan, &vec![DType::F32; plan.weights.len()], 1 << 20, 8, Storage::F32);
        assert!(found.check(found.total()).is_ok());
        let error = found.check(1000).unwrap_err();
        assert!(error.kind == Kind::Memory && error.message.contains(&size(found.total())) && error.message.contains("1000 B"));
        assert_eq!(size(3 << 30), "3.00 GiB");
        // The largest single buffer: keys of a layer without a window, 2 heads of 4 in f32.
        let keys = (1 << 20) * 2 * 4 * 4;
        assert!(found.check_buffers(keys).is_ok());
        let error = found.check_buffers(keys - 1).unwrap_err();
        assert!(error.kind == Kind::Memory && error.message.starts_with("keys or values of a layer need 32.0 MiB"), "{}", error.message);
    }
}
