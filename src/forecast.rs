//! The memory that a plan will need, before anything is allocated: `geometry` added up, as a table. It knows no device.

use crate::error::{About, Error, Result};
use crate::exec::{DECODE_TOKENS, Sequences, Storage};
use crate::geometry::{Geometry, geometry, weight_bytes};
use crate::plan::{ConvSpec, KvSpec, Plan, StateKind};
use crate::quant::Format;
use std::collections::BTreeMap;
use std::fmt;

/// Bytes by purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// Stored type of the matrices, number of weights that are stored so, their bytes on the device.
    pub weights: Vec<(Format, usize, u64)>,
    /// Key/value caches, one row per geometry.
    pub caches: Vec<CacheForecast>,
    /// Values of a step of `chunk` tokens, in buffers that they share.
    pub activations: u64,
    /// All values of a decode step, each in memory of its own.
    pub decode: u64,
    /// cos and sin for every position.
    pub ropes: u64,
    /// Token ids and what kernels read of a step.
    pub step: u64,
    /// What there is room for.
    pub sequences: Sequences,
    /// The largest single buffer but for weights, and what it holds.
    largest: (&'static str, u64),
}

/// The caches of all layers of one geometry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheForecast {
    /// What each of the layers keeps.
    pub kind: StateKind,
    /// Number of layers.
    pub layers: usize,
    /// Positions held per layer, of each sequence.
    pub positions: usize,
    /// Bytes of all these layers.
    pub bytes: u64,
}

/// Forecasts `plan` for `sequences`. `formats` gives each weight slot's format, as `Matched::formats` does.
pub fn forecast(plan: &Plan, formats: &[Format], sequences: Sequences, storage: Storage) -> Forecast {
    let mut weights: BTreeMap<Format, (usize, u64)> = BTreeMap::new();
    for (slot, format) in plan.weights.iter().zip(formats) {
        let sum = weights.entry(*format).or_default();
        *sum = (sum.0 + 1, sum.1.saturating_add(weight_bytes(slot, *format)));
    }
    let geometry = geometry(plan, storage, sequences);
    Forecast {
        weights: weights.into_iter().map(|(format, (count, bytes))| (format, count, bytes)).collect(),
        caches: caches(plan, &geometry),
        activations: sum(&geometry.values.buffers).saturating_add(geometry.expert_order),
        decode: sum(&geometry.decode.buffers).saturating_add(geometry.partials),
        ropes: sum(&geometry.ropes),
        step: geometry.step().saturating_add(geometry.room.ids()),
        sequences: Sequences { chunk: geometry.room.chunk, ..sequences },
        largest: largest(&geometry),
    }
}

fn sum<'a>(bytes: impl IntoIterator<Item = &'a u64>) -> u64 {
    bytes.into_iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
}

/// The caches of layers by their geometry.
fn caches(plan: &Plan, geometry: &Geometry) -> Vec<CacheForecast> {
    let mut rows: Vec<CacheForecast> = Vec::new();
    for (state, ring) in plan.states.iter().zip(&geometry.caches) {
        let bytes = ring.bytes.saturating_mul(state.kind.parts().len() as u64);
        match rows.iter_mut().find(|row| row.kind == state.kind) {
            Some(row) => (row.layers, row.bytes) = (row.layers + 1, row.bytes.saturating_add(bytes)),
            None => rows.push(CacheForecast { kind: state.kind.clone(), layers: 1, positions: ring.slots, bytes }),
        }
    }
    rows
}

/// The largest buffer, and what it holds.
fn largest(geometry: &Geometry) -> (&'static str, u64) {
    let caches = geometry.caches.iter().map(|ring| ("keys or values of a layer", ring.bytes));
    let ropes = geometry.ropes.iter().map(|bytes| ("a position table", *bytes));
    let values = geometry.values.buffers.iter().map(|bytes| ("values of a step", *bytes));
    // The first of equals.
    caches.chain(ropes).chain(values).fold(("nothing", 0), |most, next| if next.1 > most.1 { next } else { most })
}

impl Forecast {
    /// Bytes of everything.
    pub fn total(&self) -> u64 {
        sum(self.rows().iter().map(|(_, _, bytes)| bytes))
    }
    /// Purpose, detail and bytes, in the order of the fields.
    pub fn rows(&self) -> Vec<(&'static str, String, u64)> {
        let weights = self.weights.iter().map(|(format, count, bytes)| ("weights", format!("{count} in {format}"), *bytes));
        let Sequences { count, capacity, chunk } = self.sequences;
        let of_all = if count > 1 { format!("{count} sequences x ") } else { String::new() };
        let caches = self.caches.iter().map(|row| {
            let (what, of_position) = match &row.kind {
                StateKind::Kv(KvSpec { kv_heads, head_dim, window }) => {
                    let window = window.map(|w| format!(", window {w}")).unwrap_or_default();
                    ("kv cache", format!("{kv_heads} heads x {head_dim}{window}"))
                }
                StateKind::Matrix(heads) => ("matrices", format!("{} heads x {} x {}", heads.values, heads.value_dim, heads.key_dim)),
                StateKind::Conv(ConvSpec { width, taps }) => ("conv state", format!("{width} channels, {taps} taps")),
            };
            (what, format!("{of_all}{} layers x {} positions x {of_position}", row.layers, row.positions), row.bytes)
        });
        let step = ("activations", format!("a step of {chunk} tokens"), self.activations);
        let few = if count > 1 { "of all sequences".to_string() } else { format!("of up to {DECODE_TOKENS} tokens") };
        let decode = ("decode", format!("a step {few}, each value apart"), self.decode);
        let ropes = ("rope tables", format!("{capacity} positions"), self.ropes);
        let uniforms = ("step", "token ids and uniforms".to_string(), self.step);
        weights.chain(caches).chain([step, decode, ropes, uniforms]).collect()
    }
    /// Refuses what does not fit into `available` bytes.
    ///
    /// # Errors
    /// `Kind::Memory` with the table.
    pub fn check(&self, available: u64) -> Result<()> {
        if self.total() <= available {
            return Ok(());
        }
        let hint = if sum(self.weights.iter().map(|(_, _, bytes)| bytes)) > available {
            "its weights alone are too large for this device"
        } else {
            "try a shorter context, or f16 caches (dtype f16)"
        };
        let about = About::Memory { needed: self.total(), available };
        let (needed, available) = (size(self.total()), size(available));
        Err(Error::memory(format!("the model needs {needed}, but {available} are available: {hint}\n{self}")).on(about))
    }
    /// Refuses a buffer that is larger than the `buffer` bytes that a device allows for one. WebGPU does not report the amount
    /// of device memory; this limit is all it reports. Weights are split where they must be.
    ///
    /// # Errors
    /// `Kind::Memory` with the table.
    pub fn check_buffers(&self, buffer: u64) -> Result<()> {
        let (what, bytes) = self.largest;
        if bytes <= buffer {
            return Ok(());
        }
        let about = About::Memory { needed: bytes, available: buffer };
        let (bytes, buffer) = (size(bytes), size(buffer));
        let text = format!("{what} need {bytes} in one buffer, this device allows {buffer}: try a shorter context\n{self}");
        Err(Error::memory(text).on(about))
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
        let formats = vec![Format::BF16; plan.weights.len()];
        let of = |count, capacity, chunk| forecast(&plan, &formats, Sequences { count, capacity, chunk }, Storage::F16);
        let found = of(1, 100, 8);
        // Rows are padded to eight elements; norms are f32 on the device.
        let bytes = |w: &crate::plan::WeightSlot| match w.shape[..] {
            [rows, columns] => rows * columns.next_multiple_of(8) * 2,
            _ => w.shape[0].next_multiple_of(8) * 4,
        };
        assert_eq!(found.weights, [(Format::BF16, plan.weights.len(), plan.weights.iter().map(bytes).sum::<usize>() as u64)]);
        // Layer 0 has a window of 4, layers 1 and 2 none; 2 heads of 4 in f16, keys and values.
        let caches: Vec<_> = found.caches.iter().map(|c| (c.layers, c.positions, c.bytes)).collect();
        assert_eq!(caches, [(1, 28, 28 * 32), (2, 100, 2 * 100 * 32)]);
        assert_eq!(found.ropes, 100 * 4 * 4);
        assert_eq!(found.decode, of(1, 100, 4).decode);
        assert_eq!(found.decode, 2 * of(1, 100, 2).decode);
        assert_eq!((of(3, 100, 8).caches[1].bytes, of(3, 100, 8).ropes), (3 * found.caches[1].bytes, found.ropes));
        assert!(found.to_string().contains("total"));
        assert_eq!(found.total(), found.rows().iter().map(|row| row.2).sum::<u64>());
        assert_eq!(of(1, usize::MAX, 8).total(), u64::MAX, "saturated");
    }

    #[test]
    fn activations_grow_with_the_chunk_and_hold_the_widest_op() {
        let plan = plan();
        let bytes = |chunk| forecast(&plan, &[], Sequences::one(100, chunk), Storage::F32).activations;
        // Residual, gate, up and their product are alive together: 8 + 3 x 12 elements of 4 bytes per token. A vocabulary's
        // logits, twice, stay apart.
        let logits = 2 * 16 * crate::geometry::stride(plan.vocab_size) as u64 * 4;
        let values = bytes(16) - logits;
        assert!((16 * (8 + 3 * 12) * 4..16 * 150 * 4).contains(&values), "{values}");
        assert!(bytes(32) > bytes(16));
        let narrow = forecast(&plan, &[], Sequences::one(100, 16), Storage::F16).activations;
        assert!(narrow < bytes(16));
    }

    #[test]
    fn refuses_with_the_numbers() {
        let plan = plan();
        let found = forecast(&plan, &vec![Format::F32; plan.weights.len()], Sequences::one(1 << 20, 8), Storage::F32);
        assert!(found.check(found.total()).is_ok());
        let error = found.check(1000).unwrap_err();
        assert!(error.kind == Kind::Memory && error.message.contains(&size(found.total())) && error.message.contains("1000 B"));
        assert_eq!(error.about.as_deref(), Some(&About::Memory { needed: found.total(), available: 1000 }));
        assert_eq!(size(3 << 30), "3.00 GiB");
        // The largest single buffer: keys of a layer without a window, 2 heads of 4 in f32.
        let keys = (1 << 20) * 2 * 4 * 4;
        assert!(found.check_buffers(keys).is_ok());
        let error = found.check_buffers(keys - 1).unwrap_err();
        assert!(error.kind == Kind::Memory && error.message.starts_with("keys or values of a layer need 32.0 MiB"), "{}", error.message);
    }
}
