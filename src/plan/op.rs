//! Ops, values, weight slots and the plan that holds them. A node is one op and the one value it produces.

use super::intervention::Intervention;
use super::stage::{At, Layout, Stage};
use crate::model::{Activation, RopeConfig, WeightRole};
use serde::{Deserialize, Serialize};

/// Index of a node, which is also the name of the value that it produces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValueId(pub usize);

/// Index of a weight slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub usize);

/// A weight that the plan reads. Where a checkpoint keeps it, the loader knows.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightSlot {
    /// Role; unique together with `layer` and `bias`.
    pub role: WeightRole,
    /// Layer, for weights that exist per layer.
    pub layer: Option<usize>,
    /// A bias vector rather than a matrix or a norm's weight.
    pub bias: bool,
    /// [rows, columns] of a matrix, [width] of a vector.
    pub shape: Vec<usize>,
}

impl WeightSlot {
    /// `L3 q_proj`, `L3 q_proj.bias`, `embed`.
    pub fn label(&self) -> String {
        let layer = self.layer.map(|l| format!("L{l} ")).unwrap_or_default();
        format!("{layer}{}{}", self.role.name(), if self.bias { ".bias" } else { "" })
    }
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Index of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateId(pub usize);

/// What a layer keeps of a sequence from step to step. Later layers may read it too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateSpec {
    /// The layer that changes it.
    pub layer: usize,
    /// What it is.
    pub kind: StateKind,
}

/// Kinds of states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateKind {
    /// Keys and values of positions, to which steps append.
    Kv(KvSpec),
}

/// Keys and values that attention reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSpec {
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Positions that a query attends to, its own included; `None` is all.
    pub window: Option<usize>,
}

impl KvSpec {
    /// Elements of the keys, or of the values, of a position.
    pub fn width(&self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim)
    }
}

/// The parts of a state of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvPart {
    /// Keys.
    Keys,
    /// Values.
    Values,
}

impl KvPart {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            KvPart::Keys => "keys",
            KvPart::Values => "values",
        }
    }
}

/// What the three attention ops of a layer share.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// The keys and values that it reads, of its own layer or of an earlier one.
    pub state: StateId,
    /// Query heads; head h reads key/value head h / (heads / kv_heads).
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f64,
    /// Soft-cap on scaled scores.
    pub softcap: Option<f64>,
    /// Positions attended to, the query's own included; `None` is all.
    pub window: Option<usize>,
}

/// A semantic operation. Its definition is the file of the same name in `cpu/`. T is the step's token count.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Rows of `table` [vocab, width] for the step's ids, times `scale`. No inputs.
    Embed {
        /// [vocab, width].
        table: WeightId,
        /// Factor.
        scale: f64,
    },
    /// The input under another name; no arithmetic.
    Same,
    /// RMS norm over groups of `group` elements: x/√(mean(x²)+eps)·(weight+offset).
    RmsNorm {
        /// [group].
        weight: WeightId,
        /// Added to the weight.
        offset: f64,
        /// Added to the mean square.
        eps: f64,
        /// Elements normalised together; divides the width.
        group: usize,
    },
    /// y = (x·Wᵀ + b) / divisor.
    Linear {
        /// [width out, width in].
        weight: WeightId,
        /// [width out].
        bias: Option<WeightId>,
        /// Divides the result (1 for all but scaled logits).
        divisor: f64,
    },
    /// Rotary position encoding of every head's leading `rotary_dim` elements.
    Rope {
        /// Index into `Plan::ropes`.
        rope: usize,
        /// Heads in the row.
        heads: usize,
        /// Width of a head.
        head_dim: usize,
    },
    /// The input is appended to a state. The value is what is kept of it, as stored, [T, kv_heads·head_dim].
    Append {
        /// The state.
        state: StateId,
        /// Which part of it.
        part: KvPart,
    },
    /// Inputs q, appended keys. Scores [heads, T, positions] = cap(q·k·scale) with all keys of the state, masked cells 0.
    AttnScores(Attention),
    /// Softmax of the scores over visible positions; masked cells 0.
    AttnProbs(Attention),
    /// Inputs probabilities, appended values. Probabilities times all values of the state.
    AttnMix(Attention),
    /// Inputs gate, up: act(gate)·up.
    GatedAct {
        /// The activation.
        act: Activation,
    },
    /// Inputs residual, x: residual + multiplier·x.
    Add {
        /// Factor on x.
        multiplier: f64,
    },
    /// cap·tanh(x/cap).
    SoftCap {
        /// The cap.
        cap: f64,
    },
}

impl Op {
    /// Snake-case name, that of the op's file in `cpu/` and of its kernel.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::Same => "same",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Linear { .. } => "linear",
            Op::Rope { .. } => "rope",
            Op::Append { .. } => "append",
            Op::AttnScores(_) => "attn_scores",
            Op::AttnProbs(_) => "attn_probs",
            Op::AttnMix(_) => "attn_mix",
            Op::GatedAct { .. } => "gated_act",
            Op::Add { .. } => "add",
            Op::SoftCap { .. } => "soft_cap",
        }
    }
    /// What an attention op shares with the others of its layer.
    pub fn attention(&self) -> Option<&Attention> {
        match self {
            Op::AttnScores(a) | Op::AttnProbs(a) | Op::AttnMix(a) => Some(a),
            _ => None,
        }
    }
    /// The state of which it reads all positions, and the part. Its second input is what was appended in this step.
    pub fn reads_state(&self) -> Option<(StateId, KvPart)> {
        match self {
            Op::AttnScores(a) => Some((a.state, KvPart::Keys)),
            Op::AttnMix(a) => Some((a.state, KvPart::Values)),
            _ => None,
        }
    }
    /// Whether it appends to a state.
    pub fn appends(&self) -> bool {
        matches!(self, Op::Append { .. })
    }
    /// Weights that the op reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match self {
            Op::Embed { table, .. } => vec![*table],
            Op::RmsNorm { weight, .. } => vec![*weight],
            Op::Linear { weight, bias, .. } => std::iter::once(*weight).chain(*bias).collect(),
            _ => Vec::new(),
        }
    }
}

/// An op, what it reads and the name of what it produces.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// Values read, in the op's order.
    pub inputs: Vec<ValueId>,
    /// Stage and layer of the value.
    pub at: At,
    /// Elements per token ([T, width]); heads for values laid out [heads, T, positions].
    pub width: usize,
    /// What is changed of the value as soon as it is computed, in this order.
    pub interventions: Vec<Intervention>,
}

/// A model's computation from token ids to final logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Ops in the order of computation.
    pub nodes: Vec<Node>,
    /// Weights read.
    pub weights: Vec<WeightSlot>,
    /// What is kept from step to step.
    pub states: Vec<StateSpec>,
    /// Position encodings.
    pub ropes: Vec<RopeConfig>,
    /// Layers.
    pub num_layers: usize,
    /// Rows of the embedding and of the logits.
    pub vocab_size: usize,
    /// Longest sequence that the model was made for.
    pub max_positions: usize,
    /// The value that the head reads: every later value is computed only for rows that are wanted.
    pub head: Option<ValueId>,
}

impl Plan {
    /// A hash of everything in it, 16 hexadecimal digits: equal plans have equal ones within one version of Doppler.
    pub fn fingerprint(&self) -> String {
        format!("{:016x}", xxhash_rust::xxh64::xxh64(format!("{self:?}").as_bytes(), 0))
    }
    /// The node that produces `at`, if this model has it.
    pub fn find(&self, at: At) -> Option<ValueId> {
        self.nodes.iter().position(|n| n.at == at).map(ValueId)
    }
    /// The node of a value.
    pub fn node(&self, id: ValueId) -> &Node {
        &self.nodes[id.0]
    }
    /// The value that is computed, where `id` is one under another name or as a cache holds it.
    pub fn source(&self, mut id: ValueId) -> ValueId {
        while let (Op::Same | Op::Append { .. }, [of]) = (&self.node(id).op, &self.node(id).inputs[..]) {
            id = *of;
        }
        id
    }
    /// Layers that have `stage`; empty for stages that exist once.
    pub fn layers_with(&self, stage: Stage) -> Vec<usize> {
        self.nodes.iter().filter(|n| n.at.stage == stage).filter_map(|n| n.at.layer).collect()
    }
    /// Stages that this model has, in the order of the table.
    pub fn stages(&self) -> Vec<Stage> {
        let mut found: Vec<Stage> = self.nodes.iter().map(|n| n.at.stage).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
    /// First position after which the other of longrope's factor lists applies, if the model has longrope.
    pub fn longrope_limit(&self) -> Option<usize> {
        self.ropes.iter().find_map(|r| match r.scaling {
            crate::model::RopeScaling::LongRope { original_max_positions, .. } => Some(original_max_positions),
            _ => None,
        })
    }
    /// Width of a head, for a value whose rows are heads side by side.
    pub fn head_dim(&self, id: ValueId) -> Option<usize> {
        let At { stage, layer } = self.node(id).at;
        let width = || {
            self.nodes.iter().filter(|node| node.at.layer == layer).find_map(|node| match &node.op {
                Op::AttnScores(a) => Some(a.head_dim),
                _ => None,
            })
        };
        if stage.is_headed() { width() } else { None }
    }
    /// Heads of a value that is made of heads: rows of heads side by side, or scores.
    pub fn heads(&self, id: ValueId) -> Option<usize> {
        let node = self.node(id);
        match node.at.stage.info().layout {
            Layout::Scores => Some(node.width),
            _ => node.width.checked_div(self.head_dim(id)?),
        }
    }
    /// A state of keys and values.
    pub fn kv(&self, id: StateId) -> Option<&KvSpec> {
        self.states.get(id.0).map(|StateSpec { kind: StateKind::Kv(spec), .. }| spec)
    }
    /// All states of keys and values with their layers, in the plan's order.
    pub fn kvs(&self) -> impl Iterator<Item = (usize, &KvSpec)> {
        self.states.iter().map(|StateSpec { layer, kind: StateKind::Kv(spec) }| (*layer, spec))
    }
    /// The value that the head reads.
    pub fn head_input(&self) -> Option<ValueId> {
        self.head
    }
    /// Whether `id` is computed only for rows that are wanted.
    pub fn in_head(&self, id: ValueId) -> bool {
        self.head.is_some_and(|head| id > head)
    }
    /// Whether a sequence of `len` tokens uses longrope's long list.
    pub fn is_long(&self, len: usize) -> bool {
        self.longrope_limit().is_some_and(|limit| len > limit)
    }
}
