//! `ModelConfig`: every number that decides a model's arithmetic, already resolved.
//! Plain data. It knows no JSON, no family names and no defaults; `resolve` fills it and records each source.

mod experts;
mod mixers;
mod norm;
mod packing;
mod rope;

pub use experts::{ExpertsConfig, Router, RouterGroups, RouterScore, SharedExpert};
pub use mixers::{DeltaHeads, GatedDeltaConfig, Sections, ShortConvConfig, Tiles};
pub use norm::{Norm, Norms, QueryKeyNorm};
pub use packing::{GptqZeros, PackedLayout, Packing};
pub use rope::{RopeConfig, RopeGrowth, RopePairing, RopeScaling};

use serde::{Deserialize, Serialize};

/// A decoder-only transformer, described completely. All sizes are element counts.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelConfig {
    /// Name of the model preset that was used, for messages only.
    pub preset: String,
    /// Rows of the embedding table and of the head (may be padded beyond the tokenizer's vocabulary).
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest sequence that the model was made for.
    pub max_positions: usize,
    /// One entry per layer.
    pub layers: Vec<LayerConfig>,
    /// RoPE variants that layers point to.
    pub ropes: Vec<RopeConfig>,
    /// Every norm: those of layers, of queries and keys, and the final one.
    pub norm: Norm,
    /// Soft-cap on logits.
    pub final_logit_softcapping: Option<f64>,
    /// Factor on embeddings (Gemma: √hidden; Granite: its multiplier; others 1).
    pub embedding_scale: f64,
    /// Factor on what mixers and feed-forward blocks add to the residual stream (Granite; others 1).
    pub residual_multiplier: f64,
    /// Logits are divided by this (Granite, Cohere; others 1).
    pub logits_scaling: f64,
    /// The head has a bias (Phi 2).
    pub head_bias: bool,
    /// Every layer has an input of its own, made of the token and its embedding (Gemma 4).
    pub layer_inputs: Option<LayerInputsConfig>,
    /// The head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Where the weights are in a checkpoint.
    pub tensors: TensorNames,
    /// Begin-of-sequence id, where the files state one; below `vocab_size`.
    pub bos_token_id: Option<u32>,
    /// Ids that end a generation, each below `vocab_size`; may include the padding id.
    pub eos_token_ids: Vec<u32>,
    /// Padding id, where the files state one; below `vocab_size`.
    pub pad_token_id: Option<u32>,
}

/// One layer: a mixer, which lets tokens see earlier ones, then a feed-forward block, each between its norms and added to the
/// residual stream. In parallel, both read the stream that enters the layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerConfig {
    /// Which norms it has.
    pub norms: Norms,
    /// What mixes tokens.
    pub mixer: Mixer,
    /// The feed-forward block.
    pub ffn: Ffn,
    /// The feed-forward block reads what enters the layer, not what the mixer added to it (Phi 2, Cohere, GPT-NeoX): through its own
    /// norm, or where it has none through that before the mixer.
    pub parallel: bool,
    /// What leaves the layer is multiplied by a learned number (Gemma 4).
    pub scalar: bool,
}

/// Inputs of layers: a row of a second embedding table, which has a part for each layer, and a normalised projection of the
/// embedding are added. Its part, times an activated projection of the stream, goes through a projection and a norm and is added to
/// the stream, at the end of each layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerInputsConfig {
    /// Elements for each layer.
    pub width: usize,
    /// Activation of the projection of the stream.
    pub activation: Activation,
}

/// What lets a token see earlier ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Mixer {
    /// Softmax attention over cached keys and values.
    Attention(AttentionConfig),
    /// A causal convolution over the last few tokens, with gates before and after it.
    ShortConv(ShortConvConfig),
    /// Matrices that every token decays and corrects.
    GatedDelta(GatedDeltaConfig),
}

/// What works on each token alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Ffn {
    /// One block: down(activation(gate) · up), or down(activation(up)).
    Dense(DenseConfig),
    /// Several such blocks, of which a router chooses a few for each token.
    Experts(ExpertsConfig),
    /// One block and experts, which read the stream each through its own norm; each output has a norm, and both are added (Gemma 4).
    /// The router reads the stream through a norm without a weight, times a learned vector and hidden_size^-1/2.
    DenseAndExperts {
        /// The one block.
        dense: DenseConfig,
        /// The experts.
        experts: ExpertsConfig,
    },
}

/// Attention of one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AttentionConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; need not be `hidden_size / num_heads`.
    pub head_dim: usize,
    /// Attends to this many positions, its own included; `None` is all of them.
    pub window: Option<usize>,
    /// Index into `ModelConfig::ropes`; `None` is no position encoding.
    pub rope: Option<usize>,
    /// Likewise, of queries, where it is another than that of keys (Ministral 3).
    pub query_rope: Option<usize>,
    /// Normalisation of queries and keys.
    pub query_key_norm: QueryKeyNorm,
    /// Factor on q·k.
    pub scale: f64,
    /// Soft-cap `c·tanh(x/c)` on scores.
    pub softcap: Option<f64>,
    /// q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// The output projection has a bias.
    pub o_bias: bool,
    /// Each head has one learned score more, which takes part in the softmax and has no value.
    pub sinks: bool,
    /// Each head of values is normalised, without a weight (Gemma 4).
    pub value_norm: bool,
    /// There is no projection of values: they are the projected keys, before the norm of keys.
    pub values_from_keys: bool,
    /// It has no keys and values: it reads those of this earlier layer, which is like it.
    pub shared_kv: Option<usize>,
    /// What each head gives is multiplied by the sigmoid of a further projection.
    pub gated: bool,
}

/// A feed-forward block.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DenseConfig {
    /// Width between gate/up and down projections.
    pub intermediate_size: usize,
    /// It has a gate: down(activation(gate) · up). Without one it is down(activation(up)) (StarCoder 2, Phi 2).
    pub gated: bool,
    /// Activation on the gate, or on up where there is none.
    pub activation: Activation,
    /// All its projections have a bias.
    pub bias: bool,
}

impl LayerConfig {
    /// Its attention, if that is its mixer.
    pub fn attention(&self) -> Option<&AttentionConfig> {
        match &self.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::ShortConv(_) | Mixer::GatedDelta(_) => None,
        }
    }
    /// Likewise, to change it.
    pub fn attention_mut(&mut self) -> Option<&mut AttentionConfig> {
        match &mut self.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::ShortConv(_) | Mixer::GatedDelta(_) => None,
        }
    }
    /// Its dense feed-forward block, if it has one.
    pub fn dense(&self) -> Option<&DenseConfig> {
        match &self.ffn {
            Ffn::Dense(dense) | Ffn::DenseAndExperts { dense, .. } => Some(dense),
            Ffn::Experts(_) => None,
        }
    }
    /// Likewise, to change it.
    pub fn dense_mut(&mut self) -> Option<&mut DenseConfig> {
        match &mut self.ffn {
            Ffn::Dense(dense) | Ffn::DenseAndExperts { dense, .. } => Some(dense),
            Ffn::Experts(_) => None,
        }
    }
    /// Its delta rule, if it has one.
    pub fn delta_rule(&self) -> Option<&GatedDeltaConfig> {
        if let Mixer::GatedDelta(rule) = &self.mixer { Some(rule) } else { None }
    }
    /// Its experts, if it has some.
    pub fn experts(&self) -> Option<&ExpertsConfig> {
        match &self.ffn {
            Ffn::Experts(experts) | Ffn::DenseAndExperts { experts, .. } => Some(experts),
            Ffn::Dense(_) => None,
        }
    }
    /// Likewise, to change them.
    pub fn experts_mut(&mut self) -> Option<&mut ExpertsConfig> {
        match &mut self.ffn {
            Ffn::Experts(experts) | Ffn::DenseAndExperts { experts, .. } => Some(experts),
            Ffn::Dense(_) => None,
        }
    }
    /// Positions that its attention sees; `None` is all of them.
    pub fn window(&self) -> Option<usize> {
        self.attention()?.window
    }
    /// Its position encoding, if it has one.
    pub fn rope(&self) -> Option<usize> {
        self.attention()?.rope
    }
}

impl ModelConfig {
    /// The attention of every layer that has one.
    pub fn attentions(&self) -> impl Iterator<Item = &AttentionConfig> {
        self.layers.iter().filter_map(LayerConfig::attention)
    }
    /// Likewise, to change it.
    pub fn attentions_mut(&mut self) -> impl Iterator<Item = &mut AttentionConfig> {
        self.layers.iter_mut().filter_map(LayerConfig::attention_mut)
    }
    /// The dense feed-forward block of every layer that has one.
    pub fn denses(&self) -> impl Iterator<Item = &DenseConfig> {
        self.layers.iter().filter_map(LayerConfig::dense)
    }
    /// Likewise, to change it.
    pub fn denses_mut(&mut self) -> impl Iterator<Item = &mut DenseConfig> {
        self.layers.iter_mut().filter_map(LayerConfig::dense_mut)
    }
    /// The experts of every layer that has some.
    pub fn experts(&self) -> impl Iterator<Item = &ExpertsConfig> {
        self.layers.iter().filter_map(LayerConfig::experts)
    }
    /// Likewise, to change them.
    pub fn experts_mut(&mut self) -> impl Iterator<Item = &mut ExpertsConfig> {
        self.layers.iter_mut().filter_map(LayerConfig::experts_mut)
    }
    /// The activation of every feed-forward block.
    pub fn activations(&self) -> impl Iterator<Item = Activation> {
        self.layers.iter().map(|layer| match &layer.ffn {
            Ffn::Dense(dense) | Ffn::DenseAndExperts { dense, .. } => dense.activation,
            Ffn::Experts(experts) => experts.activation,
        })
    }
}

/// The feed-forward activation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Activation {
    /// x·sigmoid(x).
    Silu,
    /// GELU by its tanh approximation (`gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU by the error function (`gelu`).
    Gelu,
    /// Of a gate g and up u, both cut off: g·sigmoid(alpha·g)·(u + 1) with g at most `limit` and u within ±`limit`.
    Clamped {
        /// Factor within the sigmoid.
        alpha: f64,
        /// Where both are cut off.
        limit: f64,
    },
}

/// Where weights are in a checkpoint. `{prefix}` and `{layer}` are replaced.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TensorNames {
    /// Candidates for `{prefix}`; the first under which the embedding exists is used.
    pub prefixes: Vec<String>,
    /// Templates per weight role; of several, that whose tensors exist counts, else the first.
    pub names: Vec<(WeightRole, TensorName)>,
    /// Tensors whose name begins or ends with one of these belong to parts that Doppler does not run
    /// (a vision tower, stored RoPE frequencies) and are no error.
    pub ignored: Vec<String>,
    /// Rows of q and k, in heads of so many, are stored as the pairs that RoPE rotates: (2i, 2i + 1). `None` is as in Hugging
    /// Face, i and i + half a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<usize>,
    /// How matrices are packed that are made of several tensors; `None` where each is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packing: Option<Packing>,
}

/// One weight's place: a tensor, or a band of rows of a fused tensor. Weights of experts have a tensor each, where the template
/// has `{expert}`, or one tensor of three dimensions.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TensorName {
    /// Name template, without `.weight` or `.bias`.
    pub template: String,
    /// Roles that share the tensor, in row order, when it is fused (qkv, gate and up).
    pub fused: Vec<WeightRole>,
    /// The name is the template itself, and with `_bias` that of the bias.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bare: bool,
    /// How the rows lie in the tensor.
    #[serde(skip_serializing_if = "TensorRows::is_usual")]
    pub rows: TensorRows,
}

/// How the rows of weights lie in a tensor. Usually a row's elements are neighbours, and roles that share the tensor have their rows
/// one role's after the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TensorRows {
    /// A matrix is stored with its columns as rows. Packed ones are not.
    pub transposed: bool,
    /// Roles that share the tensor take turns of so many rows: of two with turns of one, each has every other row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interleaved: Option<usize>,
    /// Likewise, but of several lengths: of each head some rows for each section, of which a role has one or several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sections: Option<Sections>,
    /// Value heads of a delta rule lie in another order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiles: Option<Tiles>,
    /// For a role's number x the tensor has −e^x.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub negated_exp: bool,
}

impl TensorRows {
    /// Whether rows lie as they usually do.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What a weight is for. Matrices are [output rows, input columns].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are those of the stages they belong to")]
pub enum WeightRole {
    Embed,
    AttnNorm,
    QProj,
    KProj,
    VProj,
    QNorm,
    KNorm,
    OProj,
    Sinks,
    PostAttnNorm,
    FfnNorm,
    GateProj,
    UpProj,
    DownProj,
    Router,
    RouterChoice,
    ExpertGate,
    ExpertUp,
    ExpertDown,
    SharedGate,
    SharedUp,
    SharedDown,
    SharedScale,
    PostFfnNorm,
    FinalNorm,
    Head,
    ConvIn,
    Conv,
    ConvOut,
    PleEmbed,
    PleProj,
    PleProjNorm,
    PleGate,
    PleOut,
    PostPleNorm,
    LayerScalar,
    RouterIn,
    RouterScales,
    DenseNorm,
    ExpertsIn,
    ExpertsNorm,
    AttnGate,
    DeltaQkv,
    DeltaZ,
    DeltaB,
    DeltaA,
    DeltaDecay,
    DeltaStep,
    DeltaNorm,
    DeltaOut,
}

impl WeightRole {
    /// The role's name in presets, plans and messages.
    pub const TABLE: [(WeightRole, &'static str); 50] = [
        (WeightRole::Embed, "embed"),
        (WeightRole::AttnNorm, "attn_norm"),
        (WeightRole::QProj, "q_proj"),
        (WeightRole::KProj, "k_proj"),
        (WeightRole::VProj, "v_proj"),
        (WeightRole::QNorm, "q_norm"),
        (WeightRole::KNorm, "k_norm"),
        (WeightRole::OProj, "o_proj"),
        (WeightRole::Sinks, "sinks"),
        (WeightRole::PostAttnNorm, "post_attn_norm"),
        (WeightRole::FfnNorm, "ffn_norm"),
        (WeightRole::GateProj, "gate_proj"),
        (WeightRole::UpProj, "up_proj"),
        (WeightRole::DownProj, "down_proj"),
        (WeightRole::Router, "router"),
        (WeightRole::RouterChoice, "router_choice"),
        (WeightRole::ExpertGate, "expert_gate"),
        (WeightRole::ExpertUp, "expert_up"),
        (WeightRole::ExpertDown, "expert_down"),
        (WeightRole::SharedGate, "shared_gate"),
        (WeightRole::SharedUp, "shared_up"),
        (WeightRole::SharedDown, "shared_down"),
        (WeightRole::SharedScale, "shared_scale"),
        (WeightRole::PostFfnNorm, "post_ffn_norm"),
        (WeightRole::FinalNorm, "final_norm"),
        (WeightRole::Head, "head"),
        (WeightRole::ConvIn, "conv_in"),
        (WeightRole::Conv, "conv"),
        (WeightRole::ConvOut, "conv_out"),
        (WeightRole::PleEmbed, "ple_embed"),
        (WeightRole::PleProj, "ple_proj"),
        (WeightRole::PleProjNorm, "ple_proj_norm"),
        (WeightRole::PleGate, "ple_gate"),
        (WeightRole::PleOut, "ple_out"),
        (WeightRole::PostPleNorm, "post_ple_norm"),
        (WeightRole::LayerScalar, "layer_scalar"),
        (WeightRole::RouterIn, "router_in"),
        (WeightRole::RouterScales, "router_scales"),
        (WeightRole::DenseNorm, "dense_norm"),
        (WeightRole::ExpertsIn, "experts_in"),
        (WeightRole::ExpertsNorm, "experts_norm"),
        (WeightRole::AttnGate, "attn_gate"),
        (WeightRole::DeltaQkv, "delta_qkv"),
        (WeightRole::DeltaZ, "delta_z"),
        (WeightRole::DeltaB, "delta_b"),
        (WeightRole::DeltaA, "delta_a"),
        (WeightRole::DeltaDecay, "delta_decay"),
        (WeightRole::DeltaStep, "delta_step"),
        (WeightRole::DeltaNorm, "delta_norm"),
        (WeightRole::DeltaOut, "delta_out"),
    ];
    /// Whether layers have it, each its own.
    pub fn is_of_layers(self) -> bool {
        !matches!(self, Self::Embed | Self::FinalNorm | Self::Head | Self::PleEmbed | Self::PleProj | Self::PleProjNorm)
    }
    /// Name of the role.
    pub fn name(self) -> &'static str {
        Self::TABLE.iter().find(|(r, _)| *r == self).map_or("?", |(_, n)| n)
    }
    /// Whether a model has as many of it, in each layer, as experts.
    pub fn is_of_experts(self) -> bool {
        matches!(self, WeightRole::ExpertGate | WeightRole::ExpertUp | WeightRole::ExpertDown)
    }
    /// Role of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::TABLE.iter().find(|(_, n)| *n == name).map(|(r, _)| *r)
    }
}

/// Where a number came from; `inspect` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// This key of the model's own config.
    Config(String),
    /// The default of its transformers class, which `config.json` files leave out.
    ClassDefault,
    /// The family's preset.
    Preset,
    /// Computed from other values, as said.
    Derived(String),
    /// `generation_config.json`.
    GenerationConfig,
    /// A metadatum or tensor of a GGUF file, or what the format leaves to convention.
    Gguf(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Config(key) => write!(f, "config.json {key}"),
            Source::ClassDefault => f.write_str("class default"),
            Source::Preset => f.write_str("preset"),
            Source::Derived(how) => write!(f, "derived: {how}"),
            Source::GenerationConfig => f.write_str("generation_config.json"),
            Source::Gguf(from) => f.write_str(from),
        }
    }
}

/// What the model's files say of the choice of tokens, in the terms of transformers' `GenerationConfig`. Empty lists, 0 and
/// `None` are off. Ids are below the vocabulary's size.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GenerationRules {
    /// Added to the logit of a sequence's last id where the ids before it are the latest ones.
    pub sequence_bias: Vec<(Vec<u32>, f32)>,
    /// Factor by which ids of the prompt become likelier.
    pub encoder_repetition_penalty: Option<f32>,
    /// Factor by which ids that occurred become less likely.
    pub repetition_penalty: Option<f32>,
    /// No sequence of so many ids occurs twice.
    pub no_repeat_ngram: usize,
    /// No sequence of so many ids of the prompt occurs again.
    pub encoder_no_repeat_ngram: usize,
    /// Sequences that never occur.
    pub bad_words: Vec<Vec<u32>>,
    /// The sequence, the prompt included, does not end before it is so long.
    pub min_length: usize,
    /// The answer does not end before it is so long.
    pub min_new_tokens: usize,
    /// What follows a prompt of one token.
    pub forced_bos: Vec<u32>,
    /// What the last token of the allowed number is.
    pub forced_eos: Vec<u32>,
    /// From so many new tokens on, ending becomes likelier, by this factor to the power of the tokens beyond.
    pub exponential_decay: Option<(usize, f64)>,
    /// Ids that are never chosen.
    pub suppress: Vec<u32>,
    /// Ids that are not chosen first.
    pub begin_suppress: Vec<u32>,
    /// Taken from the logits of ids that were generated. No file says it, requests do.
    pub presence_penalty: f32,
    /// Taken from the logit of an id for each time that it was generated. No file says it, requests do.
    pub frequency_penalty: f32,
    /// The ids that end a generation, of which several rules speak.
    pub eos: Vec<u32>,
}

impl GenerationRules {
    /// Whether any of them can change a choice.
    pub fn any(&self) -> bool {
        *self != Self { eos: self.eos.clone(), ..Self::default() }
    }
}

/// A resolved config and where each field came from, in the order of `ModelConfig`'s fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The config.
    pub config: ModelConfig,
    /// One line per field: name as in the config's JSON, printed value, source. A field made of several numbers has a
    /// line for each, named like `ropes[0].theta` or `layers[].mixer.window` (all layers in one).
    pub sources: Vec<(String, String, Source)>,
    /// Keys of the model's config that were not understood and, because the caller allowed it, not used.
    pub ignored_keys: Vec<String>,
    /// How tokens are chosen beyond the highest logit.
    pub generation: GenerationRules,
    /// A sentence that says so, where they are; for runs that follow the rules.
    pub generation_note: Option<String>,
    /// What config.json claims of packed weights, where it does; whether they are packed, their file says.
    pub quantised: Option<Quantised>,
    /// What the files say that is not followed, or is followed in a way that may surprise; one sentence each.
    pub notes: Vec<String>,
}

/// A claim that weights are packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantised {
    /// The key of config.json.
    pub key: String,
    /// Method and bits, in words.
    pub method: String,
    /// Why it cannot be read, naming the key. It matters only where weights are packed.
    pub problem: Option<String>,
    /// The caller allows the claim to be wrong.
    pub allowed: bool,
}
