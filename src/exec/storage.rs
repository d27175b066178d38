//! How values and states are stored: which types, and which values are narrow.

use crate::plan::{Op, Plan, StateKind, ValueId};
use crate::tensor::DType;
use serde::{Deserialize, Serialize};

/// Storage of activations that matmuls read, and of caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// Values read by matrix products only: `DType::F32` or `DType::F16`.
    pub activations: DType,
    /// Keys and values in the cache: `DType::F32` or `DType::F16`.
    pub cache: DType,
}

impl Storage {
    /// How a state is stored. Inputs of convolutions are few and products, which may be too large for f16: they are f32. So are
    /// matrices, which add up what every token changes.
    pub fn of(self, state: &StateKind) -> DType {
        match state {
            StateKind::Kv(_) => self.cache,
            StateKind::Conv(_) | StateKind::Matrix(_) => DType::F32,
        }
    }
    /// How what node `id` appends is stored; `None` for nodes that append nothing.
    pub fn of_appended(self, plan: &Plan, id: ValueId) -> Option<DType> {
        match plan.node(id).op {
            Op::Append { state, .. } => plan.state(state).map(|state| self.of(state)),
            _ => None,
        }
    }
    /// Everything in f32.
    pub const F32: Storage = Storage { activations: DType::F32, cache: DType::F32 };
    /// Matmul inputs and caches in f16; the residual stream stays f32.
    pub const F16: Storage = Storage { activations: DType::F16, cache: DType::F16 };
}

/// Values that are stored as `Storage::activations`: what norms, activations, attention and convolutions produce
/// and only matrix products read.
pub fn matmul_inputs(plan: &Plan) -> Vec<bool> {
    let mut linear = vec![false; plan.nodes.len()];
    let mut other = vec![false; plan.nodes.len()];
    for node in &plan.nodes {
        for (i, input) in node.inputs.iter().enumerate() {
            let readers = if i == 0 && node.op.is_product() { &mut linear } else { &mut other };
            readers[input.0] = true;
        }
    }
    let made_by = |i: usize| {
        use Op::{Act, AttnMix, GatedAct, LayerNorm, RmsNorm, ShortConv};
        matches!(plan.nodes[i].op, RmsNorm { .. } | LayerNorm { .. } | GatedAct { .. } | Act { .. } | AttnMix(_) | ShortConv { .. })
    };
    (0..plan.nodes.len()).map(|i| linear[i] && !other[i] && made_by(i)).collect()
}
