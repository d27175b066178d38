//! THE table of stages: every value that a model computes has a name here, and nothing is named elsewhere.
//! Traces, probes, dumps, comparisons and the Hugging Face scripts all read this table.

use crate::error::{About, Error, Result, nearest};
use serde::{Deserialize, Serialize};

/// Version of the table; dumps carry it. Raise it when a row's meaning changes.
pub const STAGE_TABLE_VERSION: u32 = 1;

/// Shape of a stage's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// [tokens, width].
    Rows,
    /// [heads, tokens, positions].
    Scores,
    /// `[tokens]` ids.
    Ids,
}

impl Layout {
    /// Shape in words, for tables.
    pub fn text(self) -> &'static str {
        match self {
            Layout::Rows => "[tokens, width]",
            Layout::Scores => "[heads, tokens, positions]",
            Layout::Ids => "[tokens]",
        }
    }
    /// Whether it has a row for each head and token and an element for each position, not rows of tokens.
    pub fn is_scores(self) -> bool {
        self == Layout::Scores
    }
    /// Whether it has a row of elements for each token.
    pub fn is_rows(self) -> bool {
        self == Layout::Rows
    }
    /// Shape of a value whose node has `width` (heads, of scores), for `tokens` tokens that see up to `positions`.
    pub fn shape(self, width: usize, tokens: usize, positions: usize) -> Vec<usize> {
        match self {
            Layout::Rows => vec![tokens, width],
            Layout::Scores => vec![width, tokens, positions],
            Layout::Ids => vec![tokens],
        }
    }
    /// Rows of such a value.
    pub fn rows(self, width: usize, tokens: usize) -> usize {
        self.heads(width).unwrap_or(1).saturating_mul(tokens)
    }
    /// Heads that have rows of their own, in a value whose node has `width`.
    pub fn heads(self, width: usize) -> Option<usize> {
        self.is_scores().then_some(width)
    }
    /// Elements of the value whose shape `shape` gives; `u64::MAX` where that is too small.
    pub fn elements(self, width: usize, tokens: usize, positions: usize) -> u64 {
        self.shape(width, tokens, positions).into_iter().fold(1, |product, n| product.saturating_mul(n as u64))
    }
    /// Elements of a row, likewise.
    pub fn row_elements(self, width: usize, positions: usize) -> usize {
        match self {
            Layout::Rows => width,
            Layout::Scores => positions,
            Layout::Ids => 1,
        }
    }
    /// Which head, of scores, and which token of `tokens` the row is of.
    pub fn place(self, row: usize, tokens: usize) -> (Option<usize>, usize) {
        match self {
            Layout::Scores => (row.checked_div(tokens), row.checked_rem(tokens).unwrap_or(0)),
            Layout::Rows | Layout::Ids => (None, row),
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct StageInfo {
    /// The stage.
    pub stage: Stage,
    /// Canonical name.
    pub name: &'static str,
    /// Other accepted names.
    pub aliases: &'static [&'static str],
    /// Exists once per layer.
    pub per_layer: bool,
    /// Trace category.
    pub category: &'static str,
    /// Shape.
    pub layout: Layout,
    /// What it is.
    pub about: &'static str,
}

macro_rules! stages {
    ($( $variant:ident $name:literal [$($alias:literal)*] $per_layer:ident $category:literal $layout:ident $about:literal; )*) => {
        /// The name of a value in the computation. Written as that name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(into = "&'static str", try_from = "String")]
        pub enum Stage { $( #[doc = $about] $variant, )* }

        /// All stages, in the order of computation.
        pub const STAGES: &[StageInfo] = &[ $( StageInfo {
            stage: Stage::$variant, name: $name, aliases: &[$($alias),*], per_layer: stages!(@bool $per_layer),
            category: $category, layout: Layout::$layout, about: $about,
        }, )* ];
    };
    (@bool layer) => { true };
    (@bool once) => { false };
}

stages! {
    EmbedOut     "embed_out"      []             once  "embed"  Rows   "token embeddings, after scaling";
    PleEmbed     "ple_embed"      []             once  "embed"  Rows   "rows of the layers' embeddings, after scaling: a part for each layer";
    PleProj      "ple_proj"       []             once  "embed"  Rows   "projection of the embeddings, scaled: a part for each layer";
    PleProjNorm  "ple_proj_norm"  []             once  "embed"  Rows   "the projection after its norm";
    PleSum       "ple_sum"        []             once  "embed"  Rows   "the normalised projection and the layers' embeddings, added";
    PleInputs    "ple_inputs"     []             once  "embed"  Rows   "the inputs of layers: the scaled sum";
    LayerIn      "layer_in"       []             layer "layer"  Rows   "the residual stream entering the layer";
    AttnNormed   "attn_normed"    []             layer "attn"   Rows   "after the norm before the mixer";
    QProj        "q_proj"         []             layer "attn"   Rows   "queries, bias included";
    KProj        "k_proj"         []             layer "attn"   Rows   "keys, bias included";
    VProj        "v_proj"         []             layer "attn"   Rows   "values, bias included";
    QNorm        "q_norm"         []             layer "attn"   Rows   "queries after their norm";
    KNorm        "k_norm"         []             layer "attn"   Rows   "keys after their norm";
    VNorm        "v_norm"         []             layer "attn"   Rows   "values after their norm";
    QRope        "q_rope"         []             layer "attn"   Rows   "queries after rotation";
    KRope        "k_rope"         []             layer "attn"   Rows   "keys after rotation";
    KCache       "k_cache"        []             layer "kv"     Rows   "keys, as the cache holds them";
    VCache       "v_cache"        []             layer "kv"     Rows   "values, as the cache holds them";
    AttnScores   "attn_scores"    []             layer "attn"   Scores "scaled and soft-capped q·k, masked cells 0";
    AttnProbs    "attn_probs"     []             layer "attn"   Scores "softmax of the scores over visible positions";
    AttnCoreOut  "attn_core_out"  []             layer "attn"   Rows   "the mixture of values, before the output projection";
    AttnGate     "attn_gate"      []             layer "attn"   Rows   "what the sigmoid takes that scales the mixture, bias included";
    AttnGated    "attn_gated"     []             layer "attn"   Rows   "the mixture of values, scaled by its gate";
    OProj        "o_proj"         ["attn_out"]   layer "attn"   Rows   "output of the attention block, bias included";
    DeltaQkv     "delta_qkv"      []             layer "delta"  Rows   "queries, keys and values of the delta rule, before the convolution";
    DeltaZ       "delta_z"        []             layer "delta"  Rows   "gate of what the delta rule gives, before the activation";
    DeltaB       "delta_b"        []             layer "delta"  Rows   "what the sigmoid takes that makes rates";
    DeltaA       "delta_a"        []             layer "delta"  Rows   "what decays are made of";
    ConvIn       "conv_in"        []             layer "conv"   Rows   "projection before the convolution: gate B, gate C, x, bias included";
    ConvX        "conv_x"         []             layer "conv"   Rows   "what is convolved: B · x";
    ConvCache    "conv_cache"     []             layer "kv"     Rows   "what is convolved, as the state holds it";
    ConvMix      "conv_mix"       []             layer "conv"   Rows   "the convolution, times C or activated";
    ConvOut      "conv_out"       []             layer "conv"   Rows   "output of the convolution block, bias included";
    DeltaIn      "delta_in"       []             layer "delta"  Rows   "what the delta rule takes: unit keys, values, rates, decays";
    DeltaCache   "delta_cache"    []             layer "kv"     Rows   "likewise, as the state holds it";
    DeltaMix     "delta_mix"      []             layer "delta"  Rows   "what the delta rule gives";
    DeltaNormed  "delta_normed"   []             layer "delta"  Rows   "likewise, each head normalised";
    DeltaGated   "delta_gated"    []             layer "delta"  Rows   "activation(delta_z) · delta_normed";
    DeltaOut     "delta_out"      []             layer "delta"  Rows   "output of the delta rule's block";
    PostAttnNorm "post_attn_norm" []             layer "attn"   Rows   "after the norm behind attention";
    PostAttn     "post_attn"      []             layer "attn"   Rows   "the residual stream after attention";
    FfnIn        "ffn_in"         ["ffn_normed"] layer "ffn"    Rows   "what the feed-forward block reads";
    RouterNorm   "router_norm"    []             layer "ffn"    Rows   "the stream after the router's norm, where it has one";
    RouterIn     "router_in"      []             layer "ffn"    Rows   "what the router reads then: the norm, times a learned vector and a factor";
    RouterLogits "router_logits"  []             layer "ffn"    Rows   "scores of the experts, bias included";
    RouterWeights "router_weights" []            layer "ffn"    Rows   "weight of each expert, 0 where it is not chosen";
    ChosenExperts "chosen_experts" []            layer "ffn"    Rows   "the chosen experts' numbers, ascending";
    ExpertsIn    "experts_in"     []             layer "ffn"    Rows   "what experts read, where it is not what a block beside them reads";
    ExpertGate   "expert_gate"    []             layer "ffn"    Rows   "gate projections of the chosen experts, one after the other";
    ExpertUp     "expert_up"      []             layer "ffn"    Rows   "up projections of the chosen experts";
    ExpertAct    "expert_act"     []             layer "ffn"    Rows   "activation(gate) · up of the chosen experts";
    ExpertOut    "expert_out"     []             layer "ffn"    Rows   "down projections of the chosen experts";
    ExpertsOut   "experts_out"    []             layer "ffn"    Rows   "the chosen experts' outputs, weighted and added, where more is added to them";
    ExpertsNorm  "experts_norm"   []             layer "ffn"    Rows   "the experts' sum after its norm";
    SharedGate   "shared_gate"    []             layer "ffn"    Rows   "gate projection of the shared expert";
    SharedUp     "shared_up"      []             layer "ffn"    Rows   "up projection of the shared expert";
    SharedAct    "shared_act"     []             layer "ffn"    Rows   "activation(gate) · up of the shared expert";
    SharedOut    "shared_out"     []             layer "ffn"    Rows   "down projection of the shared expert";
    SharedScale  "shared_scale"   []             layer "ffn"    Rows   "what the sigmoid takes that scales the shared expert";
    SharedScaled "shared_scaled"  []             layer "ffn"    Rows   "the shared expert's output, scaled";
    FfnGate      "ffn_gate"       []             layer "ffn"    Rows   "gate projection, bias included";
    FfnUp        "ffn_up"         []             layer "ffn"    Rows   "up projection, bias included";
    FfnAct       "ffn_act"        []             layer "ffn"    Rows   "activation(gate) · up";
    DenseOut     "dense_out"      []             layer "ffn"    Rows   "output of the dense block, where experts are added to it";
    DenseNorm    "dense_norm"     []             layer "ffn"    Rows   "the dense block's output after its norm";
    FfnOut       "ffn_out"        []             layer "ffn"    Rows   "output of the feed-forward block, bias included";
    PostFfnNorm  "post_ffn_norm"  []             layer "ffn"    Rows   "after the norm behind the feed-forward block";
    PostFfn      "post_ffn"       []             layer "layer"  Rows   "the residual stream after the feed-forward block, where more follows in the layer";
    PleGate      "ple_gate"       []             layer "layer"  Rows   "projection of the stream that the layer's input is multiplied by";
    PleAct       "ple_act"        []             layer "layer"  Rows   "activation(gate) · the layer's input";
    PleOut       "ple_out"        []             layer "layer"  Rows   "its projection to the stream";
    PostPleNorm  "post_ple_norm"  []             layer "layer"  Rows   "the projection after its norm";
    PostPle      "post_ple"       []             layer "layer"  Rows   "the residual stream after the layer's input, where it is scaled then";
    LayerOut     "layer_out"      []             layer "layer"  Rows   "the residual stream leaving the layer";
    PreFinalNorm "pre_final_norm" []             once  "logits" Rows   "the residual stream behind the last layer";
    FinalNorm    "final_norm"     []             once  "logits" Rows   "after the final norm";
    Logits       "logits"         []             once  "logits" Rows   "head projection, after the model's scaling";
    LogitsFinal  "logits_final"   []             once  "logits" Rows   "logits after the final soft-cap";
    Sampled      "sampled"        []             once  "sample" Ids    "the chosen token";
}

impl Stage {
    /// The stage's row of the table.
    pub fn info(self) -> &'static StageInfo {
        &STAGES[self as usize]
    }
    /// Canonical name.
    pub fn name(self) -> &'static str {
        self.info().name
    }
    /// Shape of its values.
    pub fn layout(self) -> Layout {
        self.info().layout
    }
    /// Whether its rows are heads side by side.
    pub fn is_headed(self) -> bool {
        use Stage::{AttnCoreOut, AttnGate, AttnGated, KCache, KNorm, KProj, KRope, QNorm, QProj, QRope, VCache, VNorm, VProj};
        let projected = matches!(self, QProj | KProj | VProj | QNorm | KNorm | VNorm | QRope | KRope);
        projected || matches!(self, KCache | VCache | AttnCoreOut | AttnGate | AttnGated)
    }
    /// Whether it is another value as it is stored in a cache: dumps of other programs need not have it.
    pub fn is_cached(self) -> bool {
        matches!(self, Stage::KCache | Stage::VCache | Stage::ConvCache | Stage::DeltaCache)
    }
    /// The stage called `name`, alias or canonical. An unknown name is an error listing the nearest.
    pub fn parse(name: &str) -> Result<Stage> {
        let found = STAGES.iter().find(|s| s.name == name || s.aliases.contains(&name));
        found.map(|s| s.stage).ok_or_else(|| {
            let near = nearest(name, STAGES.iter().flat_map(|s| std::iter::once(s.name).chain(s.aliases.iter().copied())));
            let hint = if near.is_empty() { "`doppler stages` lists them".to_string() } else { format!("nearest: {}", near.join(", ")) };
            Error::invalid("stage", format!("there is no stage `{name}` ({hint})"))
        })
    }
}

impl From<Stage> for &'static str {
    fn from(stage: Stage) -> Self {
        stage.name()
    }
}

impl TryFrom<String> for Stage {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Stage::parse(&name)
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A stage of one layer, or of the whole model: the name of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct At {
    /// The stage.
    pub stage: Stage,
    /// Its layer, for stages that exist per layer.
    pub layer: Option<usize>,
}

impl At {
    /// What an error about this value carries.
    pub fn about(self) -> About {
        About::Value { stage: self.stage.name().to_string(), layer: self.layer }
    }
    /// Key in dumps: `embed_out`, `layer.3.q_proj`.
    pub fn key(self) -> String {
        match self.layer {
            Some(layer) => format!("layer.{layer}.{}", self.stage),
            None => self.stage.to_string(),
        }
    }
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "L{layer} {}", self.stage),
            None => write!(f, "{}", self.stage),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_say_where_elements_are() {
        assert_eq!((Layout::Rows.shape(6, 3, 9), Layout::Scores.shape(6, 3, 9)), (vec![3, 6], vec![6, 3, 9]));
        assert_eq!((Layout::Rows.row_elements(6, 9), Layout::Scores.row_elements(6, 9)), (6, 9));
        assert_eq!((Layout::Rows.rows(6, 3), Layout::Scores.rows(6, 3), Layout::Ids.rows(6, 3)), (3, 18, 3));
        assert_eq!((Layout::Rows.heads(6), Layout::Scores.heads(6)), (None, Some(6)));
        assert_eq!((Layout::Rows.elements(6, 3, 9), Layout::Scores.elements(6, 3, 9), Layout::Ids.elements(6, 3, 9)), (18, 162, 3));
        assert_eq!((Layout::Rows.place(7, 3), Layout::Scores.place(7, 3)), ((None, 7), (Some(2), 1)));
        assert_eq!(Layout::Scores.place(7, 0), (None, 0));
    }

    #[test]
    fn rows_are_in_enum_order_and_names_unique() {
        let mut names = Vec::new();
        for (i, row) in STAGES.iter().enumerate() {
            assert_eq!(row.stage as usize, i);
            names.push(row.name);
            names.extend(row.aliases);
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn aliases_and_suggestions() {
        assert_eq!(Stage::parse("attn_out"), Ok(Stage::OProj));
        let message = Stage::parse("layer_uot").expect_err("a typo").to_string();
        assert!(message.contains("layer_out"), "{message}");
    }
}
