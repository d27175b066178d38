//! Ops, values, weight slots and the plan that holds them. A node is one op and the one value it produces.

use super::intervention::Intervention;
use super::stage::{At, Layout, Stage};
use crate::model::{Activation, DeltaHeads, RopeConfig, Router, WeightRole};
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
    /// [rows, columns] of a matrix, `[width]` of a vector.
    pub shape: Vec<usize>,
    /// It is that of so many experts, one after the other: each has its part of the rows.
    pub experts: Option<usize>,
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
    /// What a convolution reads of positions, or what a delta rule takes of them, likewise.
    Conv(ConvSpec),
    /// The matrices of a delta rule after some position. Every step makes them anew.
    Matrix(DeltaHeads),
}

impl StateKind {
    /// Elements of each of its parts for a position.
    pub fn width(&self) -> usize {
        match self {
            StateKind::Kv(spec) => spec.width(),
            StateKind::Conv(spec) => spec.width,
            StateKind::Matrix(heads) => heads.matrices(),
        }
    }
    /// Positions of which later ones need it, their own included; `None` is all, 0 is what is kept of all of them together.
    pub fn window(&self) -> Option<usize> {
        match self {
            StateKind::Kv(spec) => spec.window,
            StateKind::Conv(spec) => Some(spec.taps),
            StateKind::Matrix(_) => Some(0),
        }
    }
    /// What is kept of a position, in the order of `Cached::parts`.
    pub fn parts(&self) -> &'static [StatePart] {
        match self {
            StateKind::Kv(_) => &[StatePart::Keys, StatePart::Values],
            StateKind::Conv(_) => &[StatePart::Inputs],
            StateKind::Matrix(_) => &[StatePart::Matrix],
        }
    }
}

/// Inputs of a convolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvSpec {
    /// Channels.
    pub width: usize,
    /// Positions that it sees, its own included.
    pub taps: usize,
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

/// The parts of states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatePart {
    /// Keys.
    Keys,
    /// Values.
    Values,
    /// Inputs of a convolution, or of a delta rule.
    Inputs,
    /// The matrices of a delta rule.
    Matrix,
}

impl StatePart {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            StatePart::Keys => "keys",
            StatePart::Values => "values",
            StatePart::Inputs => "inputs",
            StatePart::Matrix => "matrix",
        }
    }
    /// Its place among the parts of its state.
    pub fn place(self) -> usize {
        usize::from(self == StatePart::Values)
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
    /// [heads]: a score of each head that takes part in the softmax and has no value. Only the probabilities read it.
    pub sinks: Option<WeightId>,
}

/// What a convolution makes of its sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ConvEnding {
    /// Times the rows' elements from this one on.
    Gate(usize),
    /// Activated.
    Act(Activation),
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
        /// `[group]`.
        weight: WeightId,
        /// Added to the weight.
        offset: f64,
        /// Added to the mean square.
        eps: f64,
        /// Elements normalised together; divides the width.
        group: usize,
    },
    /// RMS norm without a weight over groups of `group` elements: x/√(mean(x²)+eps).
    UnitNorm {
        /// Added to the mean square.
        eps: f64,
        /// Elements normalised together; divides the width.
        group: usize,
    },
    /// Layer norm over groups of `group` elements: (x−mean(x))/√(var(x)+eps)·weight + bias.
    LayerNorm {
        /// `[group]`, or `[width]` where each group has its own.
        weight: WeightId,
        /// Likewise.
        bias: Option<WeightId>,
        /// Added to the variance.
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
    /// The input is appended to a state. The value is what is kept of it, as stored, [T, width of the state].
    Append {
        /// The state.
        state: StateId,
        /// Which part of it.
        part: StatePart,
    },
    /// Inputs q, appended keys. Scores [heads, T, positions] = cap(q·k·scale) with all keys of the state, masked cells 0.
    AttnScores(Attention),
    /// Softmax of the scores over visible positions, and the sink where there is one; masked cells 0.
    AttnProbs(Attention),
    /// Inputs probabilities, appended values. Probabilities times all values of the state.
    AttnMix(Attention),
    /// Inputs gate, up: act(gate)·up, where up may be a part of a wider row.
    GatedAct {
        /// The activation.
        act: Activation,
        /// First element of up.
        first: usize,
    },
    /// Weights of experts from their logits, [T, experts]: 0 for those that are not chosen.
    RouterWeights {
        /// How.
        router: Router,
        /// `[experts]`, added to the scores for the choice only.
        choice: Option<WeightId>,
        /// `[experts]`, times the weights.
        scales: Option<WeightId>,
    },
    /// The numbers of the experts whose weight is not 0, ascending, [T, chosen]; -1 where there are fewer.
    ChosenExperts,
    /// Inputs x, the chosen experts' numbers. Products with the matrices of the chosen experts, [T, chosen·rows of one]. x is one
    /// row for all, or has a row for each. An expert -1 gives zeros.
    ExpertLinear {
        /// [experts · width out, width in].
        weight: WeightId,
        /// [experts · width out].
        bias: Option<WeightId>,
        /// Experts.
        experts: usize,
        /// Experts of a token.
        chosen: usize,
    },
    /// Inputs rows of the chosen experts, their numbers, weights of all experts: the sum of the rows, each times its weight.
    ExpertMix {
        /// Experts.
        experts: usize,
        /// Experts of a token.
        chosen: usize,
    },
    /// Inputs x, s [T, 1] or as wide as x: x·sigmoid(s).
    SigmoidScale,
    /// act(x).
    Act {
        /// The activation.
        act: Activation,
    },
    /// Inputs a, b: `width` elements of a from `left` on times as many of b from `right` on.
    Mul {
        /// First element of a.
        left: usize,
        /// First element of b.
        right: usize,
    },
    /// Inputs rows, appended inputs. For each channel, Σ weight[channel, j]·(input of `taps` − 1 − j positions before) + bias, times a
    /// gate of the rows, or activated; positions before the sequence's first count as 0.
    ShortConv {
        /// The inputs that it reads, of its own layer.
        state: StateId,
        /// [channels·taps], the taps of a channel together, the current position's last.
        weight: WeightId,
        /// `[channels]`.
        bias: Option<WeightId>,
        /// Positions that it sees.
        taps: usize,
        /// What is made of the sum.
        ending: ConvEnding,
    },
    /// Inputs rows of queries, keys and values, b, a. What a delta rule takes of a token: keys as long as 1, values, and of each value
    /// head its rate sigmoid(b) and decay −e^`decay`·softplus(a + `step`).
    DeltaIn {
        /// Heads.
        heads: DeltaHeads,
        /// `[value heads]`.
        decay: WeightId,
        /// `[value heads]`.
        step: WeightId,
        /// Added to the sum of a key's squares.
        eps: f64,
    },
    /// Inputs rows that begin with queries, appended `DeltaIn`. For each token and value head S ← e^decay·S, then
    /// S ← S + rate·(v − S·k)·kᵀ, and the result S·q, q as long as `scale`. S is 0 before the sequence's first token.
    GatedDelta {
        /// What it takes of tokens, of its own layer.
        state: StateId,
        /// S, likewise.
        matrix: StateId,
        /// Heads.
        heads: DeltaHeads,
        /// Added to the sum of a query's squares.
        eps: f64,
        /// Factor on queries.
        scale: f64,
    },
    /// Inputs residual, x: residual + multiplier·x.
    Add {
        /// Factor on x.
        multiplier: f64,
    },
    /// factor·x, or factor·x·w, w one number or one for each element.
    Scale {
        /// The factor.
        factor: f64,
        /// `[1]` or `[width]`: w.
        weight: Option<WeightId>,
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
            Op::UnitNorm { .. } => "unit_norm",
            Op::LayerNorm { .. } => "layer_norm",
            Op::Linear { .. } => "linear",
            Op::Rope { .. } => "rope",
            Op::Append { .. } => "append",
            Op::AttnScores(_) => "attn_scores",
            Op::AttnProbs(_) => "attn_probs",
            Op::AttnMix(_) => "attn_mix",
            Op::GatedAct { .. } => "gated_act",
            Op::RouterWeights { .. } => "router_weights",
            Op::ChosenExperts => "chosen_experts",
            Op::ExpertLinear { .. } => "expert_linear",
            Op::ExpertMix { .. } => "expert_mix",
            Op::SigmoidScale => "sigmoid_scale",
            Op::Act { .. } => "act",
            Op::Mul { .. } => "mul",
            Op::ShortConv { .. } => "short_conv",
            Op::DeltaIn { .. } => "delta_in",
            Op::GatedDelta { .. } => "gated_delta",
            Op::Add { .. } => "add",
            Op::Scale { .. } => "scale",
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
    /// The state of which it reads earlier positions too, and the part. Its second input is what was appended in this step.
    pub fn reads_state(&self) -> Option<(StateId, StatePart)> {
        match self {
            Op::AttnScores(a) => Some((a.state, StatePart::Keys)),
            Op::AttnMix(a) => Some((a.state, StatePart::Values)),
            Op::ShortConv { state, .. } | Op::GatedDelta { state, .. } => Some((*state, StatePart::Inputs)),
            _ => None,
        }
    }
    /// Whether it is a matrix product of its first input.
    pub fn is_product(&self) -> bool {
        matches!(self, Op::Linear { .. } | Op::ExpertLinear { .. })
    }
    /// The matrix of a product, and which part of its rows a token reads: of experts those of the chosen ones.
    pub fn matrix(&self) -> Option<(WeightId, f64)> {
        match self {
            Op::Linear { weight, .. } => Some((*weight, 1.0)),
            Op::ExpertLinear { weight, experts, chosen, .. } => Some((*weight, *chosen as f64 / (*experts).max(1) as f64)),
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
            Op::Linear { weight, bias, .. } | Op::ExpertLinear { weight, bias, .. } => std::iter::once(*weight).chain(*bias).collect(),
            Op::LayerNorm { weight, bias, .. } | Op::ShortConv { weight, bias, .. } => std::iter::once(*weight).chain(*bias).collect(),
            Op::RouterWeights { choice, scales, .. } => choice.iter().chain(scales).copied().collect(),
            Op::AttnProbs(a) => a.sinks.iter().copied().collect(),
            Op::Scale { weight, .. } => weight.iter().copied().collect(),
            Op::DeltaIn { decay, step, .. } => vec![*decay, *step],
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
    /// Columns of the table that a vector is in checkpoints: weights of each head in norms, the taps of each channel.
    pub fn columns(&self, id: WeightId) -> Option<usize> {
        let table = |op: &Op| match op {
            Op::ShortConv { weight, taps, .. } if *weight == id => Some(*taps),
            Op::LayerNorm { weight, bias, group, .. } if *weight == id || *bias == Some(id) => Some(*group),
            _ => None,
        };
        let columns = self.nodes.iter().find_map(|node| table(&node.op))?;
        self.weights.get(id.0).filter(|slot| slot.elements() > columns).map(|_| columns)
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
    /// A state.
    pub fn state(&self, id: StateId) -> Option<&StateKind> {
        self.states.get(id.0).map(|state| &state.kind)
    }
    /// A state of keys and values.
    pub fn kv(&self, id: StateId) -> Option<&KvSpec> {
        match self.state(id) {
            Some(StateKind::Kv(spec)) => Some(spec),
            Some(StateKind::Conv(_) | StateKind::Matrix(_)) | None => None,
        }
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
