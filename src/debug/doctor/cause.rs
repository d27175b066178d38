//! The classes of faults that a diagnosis can name. Their ids are what scripts and the fault campaign read.

use serde::{Serialize, Serializer};

macro_rules! causes {
    ($($variant:ident $id:literal $text:literal,)*) => {
        /// A class of faults.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the table says what each is")]
        pub enum Cause { $($variant),* }

        impl Cause {
            /// Every class.
            pub const ALL: &[Cause] = &[$(Cause::$variant),*];
            /// Its id.
            pub fn id(self) -> &'static str {
                match self { $(Cause::$variant => $id),* }
            }
            /// What is wrong, in words.
            pub fn text(self) -> &'static str {
                match self { $(Cause::$variant => $text),* }
            }
        }
    };
}

causes! {
    NormOffset "norm_offset" "norm weights are taken with another offset than they were stored with",
    NormEps "norm_eps" "the epsilon of the norms is another number",
    NormOrder "norm_order" "a norm stands at another place of the layer",
    RopePairing "rope_pairing" "RoPE rotates other pairs of elements",
    RopeBase "rope_base" "the base of RoPE is another number",
    RopeScaling "rope_scaling" "the frequencies of RoPE are stretched otherwise",
    RopeLayers "rope_layers" "layers have RoPE that should have another one, or none",
    PartialRotary "partial_rotary" "another part of each head is rotated",
    RopePosition "rope_position" "RoPE counts positions from another start",
    AttnSoftcap "attn_softcap" "the soft-cap on attention scores is another one",
    FinalSoftcap "final_softcap" "the soft-cap on logits is another one",
    AttnScale "attn_scale" "the factor on attention scores is another number",
    GqaMapping "gqa_mapping" "query heads read other key and value heads",
    AttnSinks "attn_sinks" "attention sinks are missing, or other numbers",
    WindowOffByOne "window_off_by_one" "the attention window is one position off",
    WindowPattern "window_pattern" "the attention window is another one, or on other layers",
    EmbedScale "embed_scale" "the factor on embeddings is another number",
    TiedHead "tied_head" "the head is tied to the embedding and should not be, or the reverse",
    MissingBias "missing_bias" "a bias is missing",
    MissingQkNorm "missing_qk_norm" "a norm of queries, keys or values is missing",
    MissingGate "missing_gate" "what a gate should scale is as it was before",
    DeltaRule "delta_rule" "a delta rule decays, corrects or reads its matrices otherwise",
    Activation "activation" "the activation of the feed-forward is another one",
    ActivationClamp "activation_clamp" "the feed-forward is clamped otherwise",
    GateUpSwapped "gate_up_swapped" "gate and up are swapped",
    GateLayout "gate_layout" "gate and up are interleaved otherwise",
    MissingPostNorm "missing_post_norm" "a norm after attention or feed-forward is missing",
    ResidualMultiplier "residual_multiplier" "the factor on what is added to the residual stream is another number",
    LogitsScale "logits_scale" "logits are divided by another number",
    Router "router" "experts are chosen or weighed otherwise",
    TransposedWeight "transposed_weight" "a matrix is stored transposed",
    PermutedQk "permuted_qk" "rows of queries and keys are in the order of another convention",
    CorruptWeight "corrupt_weight" "a tensor has other values than it should",
    SwappedTensors "swapped_tensors" "two tensors are swapped",
    SwappedLayers "swapped_layers" "two layers are swapped",
    QuantUnpack "quant_unpack" "packed weights are unpacked otherwise",
    QuantDrift "quant_drift" "weights differ as those of a packed copy do",
    Bf16OverflowF16 "bf16_overflow_f16" "values are too large for f16",
    BosDoubled "bos_doubled" "the prompt begins with two BOS tokens",
    ChatTemplate "chat_template" "the chat template makes another prompt",
    PreTokenizer "pre_tokenizer" "text is split into other tokens",
    MissingSpecialToken "missing_special_token" "a special token is missing",
    PadRowWins "pad_row_wins" "rows of the head beyond the vocabulary can win",
    KvPosition "kv_position" "keys and values are cached at other positions",
    KvCorruption "kv_corruption" "the cache holds other values than were put into it",
    AttentionMask "attention_mask" "attention sees other positions",
    SamplerOrder "sampler_order" "the choice among logits is another one",
    SoftmaxNan "softmax_nan" "softmax gives NaN",
    UninitialisedMemory "uninitialised_memory" "memory is read that nobody wrote",
    Race "race" "the same run gives different values",
    DispatchSize "dispatch_size" "part of a value is not computed",
    SubgroupSize "subgroup_size" "a kernel is wrong at this size of subgroups",
    WrongKernel "wrong_kernel" "a kernel computes something else than its op",
    IndexMisaligned "index_misaligned" "an index points beside its element",
    DriverMath "driver_math" "the device computes a function less exactly than it may",
    ReferenceSuspect "reference_suspect" "the reference contradicts itself or the weights",
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}
