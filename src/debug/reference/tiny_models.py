"""What the tiny models are: one row per folder of tests/data. Shapes are small and awkward on purpose (odd
vocabularies and layer counts, head_dim other than hidden/heads where the family allows it, GQA, MQA and MHA)."""

from dataclasses import dataclass, field

import tiny_delta


@dataclass
class Tiny:
    preset: str
    model_class: str
    config: dict
    dtype: str  # the weights are stored in
    dialect: str  # of config.json: "new" as transformers 5 writes it, "old" as version 4 did
    gains: dict = field(default_factory=dict)  # see `spread` and `centre` in make_tiny.py
    seed: int = 1  # where the search for a clear greedy continuation begins
    tokens: int = 19
    tokenizer: tuple | None = None  # (scheme, size, file that holds the chat template)
    text: str | None = None  # the prompt, with a tokenizer
    old_keys: dict = field(default_factory=dict)  # the older dialect's own spelling, merged last
    sparse: bool = False  # leave out what equals the class default
    norms_f32: bool = False  # norm weights stored in F32 beside smaller ones
    shard: str | None = None
    stop: bool = False  # generation_config.json ends generation at the last token


def shape(vocab, hidden, inner, layers, heads, kv, head_dim=None, **more):
    sizes = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": 256,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if head_dim is not None:
        sizes["head_dim"] = head_dim
    return {**sizes, **more}


def wide(vocab, hidden, inner, layers, heads, **more):
    """Of a class that knows no key heads."""
    sizes = shape(vocab, hidden, inner, layers, heads, None, **more)
    return {key: value for key, value in sizes.items() if key != "num_key_value_heads"}


def theta(base, **scaling):
    return {"rope_type": "default", "rope_theta": base, **scaling}


LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0}
WINDOWED, FULL = "sliding_attention", "full_attention"
GEMMA_POST_NORMS = {"post_attention_layernorm": 1.2, "post_feedforward_layernorm": 1.2}
GEMMA_QK_NORMS = {"q_norm": 0.8, "k_norm": 0.8}

MODELS = {
    # Tied head, MQA; "gelu" in an old Gemma config means the tanh form.
    "gemma": Tiny(
        preset="gemma",
        model_class="GemmaForCausalLM",
        config=shape(131, 40, 56, 3, 4, 1, 16, rms_norm_eps=0.02, rope_parameters=theta(5000.0)),
        dtype="bfloat16",
        dialect="old",
        seed=15,
        gains={"embed_tokens": 0.12, "o_proj": 2.5, "down_proj": 3.5, "norm": 2.0},
        old_keys={"hidden_act": "gelu"},
    ),
    # Sandwich norms, alternating windows, both caps, a scale of its own; a tokenizer with byte fallback.
    "gemma2": Tiny(
        preset="gemma2",
        model_class="Gemma2ForCausalLM",
        config=shape(331, 40, 44, 3, 4, 2, 12, sliding_window=7, query_pre_attn_scalar=30,
                     attn_logit_softcapping=2.5, final_logit_softcapping=6.0, rms_norm_eps=0.02),
        dtype="bfloat16",
        dialect="new",
        seed=4950,
        gains={"embed_tokens": 0.08, "norm": 4.0, "q_proj": 2.2, "k_proj": 2.2, **GEMMA_POST_NORMS},
        tokenizer=("byte_fallback", 331, "tokenizer_config.json"),
        text="The fox sleeps on the table.",
    ),
    # Q/k norms, two RoPE bases, a pattern of 3; a sparse config, as Gemma 3's real ones are.
    "gemma3": Tiny(
        preset="gemma3",
        model_class="Gemma3ForCausalLM",
        config=shape(131, 28, 40, 5, 4, 2, 12, sliding_window=6, query_pre_attn_scalar=20,
                     layer_types=[WINDOWED, WINDOWED, FULL, WINDOWED, WINDOWED],
                     rope_parameters={FULL: theta(1000000.0), WINDOWED: theta(2000.0)}),
        dtype="bfloat16",
        dialect="old",
        seed=73,
        gains={"embed_tokens": 0.08, "norm": 3.0, **GEMMA_POST_NORMS, **GEMMA_QK_NORMS},
        tokens=17,
        old_keys={"sliding_window_pattern": 3, "rope_local_base_freq": 2000.0},
        sparse=True,
    ),
    # The text model inside a multimodal checkpoint; layer types that follow no pattern; linear scaling, global only.
    "gemma3-multimodal": Tiny(
        preset="gemma3",
        model_class="Gemma3ForConditionalGeneration",
        config={
            "text_config": shape(131, 32, 40, 3, 4, 2, 12, sliding_window=5, query_pre_attn_scalar=8,
                                 rms_norm_eps=0.02, layer_types=[FULL, WINDOWED, WINDOWED],
                                 rope_parameters={FULL: theta(1000.0, rope_type="linear", factor=8.0),
                                                  WINDOWED: theta(10000.0)}),
            "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8,
                              "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 28, "patch_size": 14},
            "mm_tokens_per_image": 4,
            "boi_token_index": 128,
            "eoi_token_index": 129,
            "image_token_index": 130,
        },
        dtype="bfloat16",
        dialect="new",
        seed=9,
        gains={"embed_tokens": 0.08, "norm": 3.0, **GEMMA_POST_NORMS, "q_norm": 0.4, "k_norm": 0.4},
        tokens=16,
    ),
    # Heads of other widths in full layers, whose values are their projected keys, and where a part of the pairs is rotated; values
    # that are normalised, a number for each layer.
    "gemma4": Tiny(
        preset="gemma4",
        model_class="Gemma4ForCausalLM",
        config=shape(131, 40, 48, 4, 4, 2, 12, sliding_window=6, global_head_dim=16, num_global_key_value_heads=1,
                     attention_k_eq_v=True, hidden_size_per_layer_input=0, final_logit_softcapping=6.0, rms_norm_eps=0.02,
                     layer_types=[WINDOWED, FULL, WINDOWED, FULL],
                     rope_parameters={FULL: theta(2000.0, rope_type="proportional", partial_rotary_factor=0.25),
                                      WINDOWED: theta(5000.0)}),
        dtype="bfloat16",
        dialect="new",
        seed=456,
        gains={"embed_tokens": 0.15, "q_norm": 0.7, "k_norm": 0.7, "o_proj": 2.5, "down_proj": 4.0},
        tokens=17,
    ),
    # As published for phones, within a multimodal checkpoint: the last layers read keys of earlier ones and are twice as wide, and
    # each layer has an input of its own.
    "gemma4-shared": Tiny(
        preset="gemma4",
        model_class="Gemma4ForConditionalGeneration",
        config={
            "text_config": shape(131, 32, 32, 5, 4, 1, 8, sliding_window=5, global_head_dim=12, num_kv_shared_layers=3,
                                 use_double_wide_mlp=True, hidden_size_per_layer_input=8, vocab_size_per_layer_input=131,
                                 rms_norm_eps=0.05, layer_types=[WINDOWED, FULL, WINDOWED, WINDOWED, FULL],
                                 rope_parameters={FULL: theta(20000.0, rope_type="proportional", partial_rotary_factor=0.25),
                                                  WINDOWED: theta(2000.0)}),
        },
        dtype="bfloat16",
        dialect="new",
        seed=1010,
        gains={"embed_tokens": 0.15, "embed_tokens_per_layer": 1.5, "q_norm": 0.7, "k_norm": 0.7, "o_proj": 2.5, "down_proj": 4.0},
        tokens=16,
    ),
    # Experts beside a dense block, each with its norms; a router with a norm and a number for each expert.
    "gemma4-moe": Tiny(
        preset="gemma4",
        model_class="Gemma4ForCausalLM",
        config=shape(131, 48, 32, 2, 4, 2, 12, sliding_window=6, global_head_dim=16, num_global_key_value_heads=1,
                     attention_k_eq_v=True, hidden_size_per_layer_input=0, rms_norm_eps=0.02, layer_types=[WINDOWED, FULL],
                     enable_moe_block=True, num_experts=6, top_k_experts=2, moe_intermediate_size=24,
                     rope_parameters={FULL: theta(20000.0, rope_type="proportional", partial_rotary_factor=0.25),
                                      WINDOWED: theta(2000.0)}),
        dtype="bfloat16",
        dialect="new",
        gains={"embed_tokens": 0.04, "q_norm": 0.9, "k_norm": 0.9, "down_proj": 4.0, "proj": 14.0,
               "post_attention_layernorm": 1.6, "post_feedforward_layernorm": 1.3},
        tokens=13,
    ),
    # Plain: MHA (no count of key heads), untied head, hardly a key in config.json.
    "llama2": Tiny(
        preset="llama",
        model_class="LlamaForCausalLM",
        config=shape(131, 40, 56, 3, 5, None, bos_token_id=1, eos_token_id=2, pad_token_id=None,
                     max_position_embeddings=2048),
        dtype="float32",
        dialect="old",
        seed=28,
        old_keys={"rope_scaling": None},
        sparse=True,
    ),
    # RoPE scaling with frequencies on both sides of the smooth range, biases everywhere, tied head, shards.
    "llama3": Tiny(
        preset="llama",
        model_class="LlamaForCausalLM",
        config=shape(131, 48, 56, 3, 6, 3, 12, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
                     rms_norm_eps=0.02, rope_parameters={
                         "rope_type": "llama3", "rope_theta": 12000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
        dtype="bfloat16",
        dialect="new",
        seed=3,
        gains={"o_proj": 2.5, "down_proj": 5.0},
        tokenizer=("ascii", 131, "tokenizer_config.json"),
        text="The model says 3 words twice.",
        shard="50KB",
    ),
    # YaRN: part of the frequencies interpolated, cos and sin scaled; the older key "type".
    "llama-yarn": Tiny(
        preset="llama",
        model_class="LlamaForCausalLM",
        config=shape(131, 32, 40, 1, 4, 2, 16, rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}),
        dtype="float16",
        dialect="old",
        seed=15,
        gains={"q_proj": 1.6, "k_proj": 1.6},
    ),
    "llama-linear": Tiny(
        preset="llama",
        model_class="LlamaForCausalLM",
        config=shape(131, 32, 40, 1, 4, 1, 8, rope_parameters=theta(10000.0, rope_type="linear", factor=4.0)),
        dtype="float16",
        dialect="old",
        seed=28,
        gains={"q_proj": 1.6, "k_proj": 1.6},
    ),
    # Every layer windowed.
    "mistral": Tiny(
        preset="mistral",
        model_class="MistralForCausalLM",
        config=shape(131, 40, 56, 3, 4, 2, 16, sliding_window=7, rms_norm_eps=0.02, rope_parameters=theta(5000.0)),
        dtype="float16",
        dialect="old",
        seed=2,
    ),
    # Biases on q, k, v only; a window in the config that is switched off.
    "qwen2": Tiny(
        preset="qwen2",
        model_class="Qwen2ForCausalLM",
        config=shape(137, 48, 56, 3, 6, 2, tie_word_embeddings=True, rms_norm_eps=0.02,
                     rope_parameters=theta(1000000.0), bos_token_id=None),
        dtype="float16",
        dialect="old",
        seed=31,
        gains={"o_proj": 2.5, "down_proj": 5.0},
        old_keys={"use_sliding_window": False, "sliding_window": 7, "max_window_layers": 1},
    ),
    # The same window switched on: layers from max_window_layers on are windowed.
    "qwen2-window": Tiny(
        preset="qwen2",
        model_class="Qwen2ForCausalLM",
        config=shape(131, 32, 40, 3, 4, 2, use_sliding_window=True, sliding_window=5, max_window_layers=1,
                     bos_token_id=None, rope_parameters=theta(10000.0)),
        dtype="bfloat16",
        dialect="old",
        seed=95,
    ),
    # Q/k norms per head; norm weights in F32; a byte-level tokenizer smaller than the (tied) head.
    "qwen3": Tiny(
        preset="qwen3",
        model_class="Qwen3ForCausalLM",
        config=shape(331, 40, 44, 3, 4, 2, 12, tie_word_embeddings=True, rms_norm_eps=0.02,
                     rope_parameters=theta(1000000.0), bos_token_id=None),
        dtype="bfloat16",
        dialect="new",
        seed=2,
        gains={"o_proj": 2.5, "down_proj": 5.0, "q_norm": 1.4, "k_norm": 1.4},
        tokenizer=("byte_level", 328, "chat_template.jinja"),
        text="The fox was asked 14 times, not 3.",
        norms_f32=True,
    ),
    # Experts, but for the first layer; weights that are divided by their sum.
    "qwen3-moe": Tiny(
        preset="qwen3_moe",
        model_class="Qwen3MoeForCausalLM",
        config=shape(131, 40, 48, 3, 4, 2, 12, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24,
                     mlp_only_layers=[0], norm_topk_prob=True, rms_norm_eps=0.02, tie_word_embeddings=True,
                     rope_parameters=theta(1000000.0), bos_token_id=None),
        dtype="bfloat16",
        dialect="old",
        seed=1,
        gains={"o_proj": 2.5, "down_proj": 5.0, "gate": 2.0, "q_norm": 1.4, "k_norm": 1.4},
        tokens=13,
        old_keys={"num_experts": 6},
    ),
    # Experts as they are, every other layer dense; an expert for every token, scaled by a sigmoid; biases on q, k, v.
    "qwen2-moe": Tiny(
        preset="qwen2_moe",
        model_class="Qwen2MoeForCausalLM",
        config=shape(131, 48, 48, 2, 4, 2, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=24,
                     shared_expert_intermediate_size=32, decoder_sparse_step=2, rms_norm_eps=0.02,
                     rope_parameters=theta(10000.0), bos_token_id=None),
        dtype="bfloat16",
        dialect="new",
        seed=1,
        gains={"down_proj": 5.0, "gate": 2.0, "shared_expert_gate": 2.0},
        tokens=13,
    ),
    # Experts in every layer, windows.
    "mixtral": Tiny(
        preset="mixtral",
        model_class="MixtralForCausalLM",
        config=shape(131, 48, 48, 2, 4, 2, num_local_experts=4, num_experts_per_tok=2, sliding_window=7, rms_norm_eps=0.02,
                     rope_parameters=theta(5000.0)),
        dtype="float16",
        dialect="old",
        seed=93,
        gains={"down_proj": 5.0, "gate": 2.0},
        tokens=13,
    ),
    # Sinks; experts with biases whose gate and up take turns and are cut off; YaRN whose range is not rounded; windows in every other layer.
    "gpt-oss": Tiny(
        preset="gpt_oss",
        model_class="GptOssForCausalLM",
        config=shape(131, 64, 32, 2, 4, 2, 12, num_local_experts=4, num_experts_per_tok=2, sliding_window=6, rms_norm_eps=0.02,
                     rope_parameters={"rope_type": "yarn", "rope_theta": 2000.0, "factor": 8.0, "beta_fast": 2.0, "beta_slow": 0.2,
                                      "truncate": False, "original_max_position_embeddings": 12}),
        dtype="bfloat16",
        dialect="new",
        seed=1,
        gains={"gate_up_proj": 5.0, "gate_up_proj_bias": 12.0, "down_proj": 0.5, "down_proj_bias": 4.0, "router": 2.0, "sinks": 1.4},
        tokens=15,
    ),
    # Norms over the whole projections of q and k; weights of a softmax over all experts, as they are.
    "olmoe": Tiny(
        preset="olmoe",
        model_class="OlmoeForCausalLM",
        config=shape(131, 48, 24, 2, 4, 2, num_experts=8, num_experts_per_tok=3, rms_norm_eps=0.05,
                     rope_parameters=theta(10000.0), bos_token_id=None),
        dtype="bfloat16",
        dialect="new",
        seed=1,
        gains={"down_proj": 6.0, "gate": 2.0, "q_norm": 1.4, "k_norm": 1.4},
        tokens=13,
    ),
    # Granite's multipliers; a softmax over the chosen experts; gate and up of all experts in one tensor.
    "granite-moe": Tiny(
        preset="granitemoe",
        model_class="GraniteMoeForCausalLM",
        config=shape(131, 48, 24, 2, 4, 2, num_local_experts=6, num_experts_per_tok=2, embedding_multiplier=6.0,
                     attention_multiplier=0.42, residual_multiplier=0.4, logits_scaling=3.0, tie_word_embeddings=False,
                     rms_norm_eps=0.1, rope_parameters=theta(10000.0)),
        dtype="bfloat16",
        dialect="new",
        seed=1,
        gains={"embed_tokens": 0.3, "o_proj": 5.0, "down_proj": 14.0, "layer": 3.0},
        tokens=13,
    ),
    # Fused projections, three quarters of each head rotated, longrope on the short side and staying there.
    "phi3": Tiny(
        preset="phi3",
        model_class="Phi3ForCausalLM",
        config=shape(131, 64, 44, 3, 4, 2, original_max_position_embeddings=40, rms_norm_eps=0.02, rope_parameters={
            **LONGROPE, "partial_rotary_factor": 0.75, "short_factor": [1.0, 1.3, 1.7, 2.1, 2.6, 3.0],
            "long_factor": [1.0, 2.5, 4.0, 7.0, 11.0, 16.0]}),
        dtype="bfloat16",
        dialect="old",
        seed=30,
    ),
    # Longer than the original length from the start: the long factors.
    "phi3-long": Tiny(
        preset="phi3",
        model_class="Phi3ForCausalLM",
        config=shape(131, 48, 40, 3, 4, 2, original_max_position_embeddings=12, tie_word_embeddings=True,
                     rope_parameters={**LONGROPE, "partial_rotary_factor": 0.5, "short_factor": [1.1, 1.4, 2.0],
                                      "long_factor": [2.0, 5.0, 9.0]}),
        dtype="float16",
        dialect="new",
        seed=10,
        gains={"o_proj": 2.5, "down_proj": 5.0},
    ),
    # Crosses the original length while decoding: transformers changes factors and computes the cache anew.
    "phi3-crossing": Tiny(
        preset="phi3",
        model_class="Phi3ForCausalLM",
        config=shape(131, 32, 32, 1, 2, 1, original_max_position_embeddings=16, rope_parameters={
            **LONGROPE, "partial_rotary_factor": 1.0, "short_factor": [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
            "long_factor": [3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0]}),
        dtype="float16",
        dialect="old",
        seed=60,
                tokens=11,
    ),
    # A list of layers without RoPE that differs from the interval beside it; two tokens end generation.
    "smollm3": Tiny(
        preset="smollm3",
        model_class="SmolLM3ForCausalLM",
        config=shape(131, 48, 56, 3, 4, 2, no_rope_layers=[1, 1, 0], no_rope_layer_interval=2, rms_norm_eps=0.02,
                     rope_parameters=theta(5000.0), tie_word_embeddings=True),
        dtype="bfloat16",
        dialect="new",
        seed=24,
        gains={"o_proj": 2.5, "down_proj": 5.0},
        stop=True,
    ),
    # Norms after the blocks and none before, q/k norms over the whole projection.
    "olmo2": Tiny(
        preset="olmo2",
        model_class="Olmo2ForCausalLM",
        config=shape(131, 48, 48, 3, 6, 3, rms_norm_eps=0.05, rope_parameters=theta(500000.0), bos_token_id=None),
        dtype="float32",
        dialect="new",
        seed=1,
        gains={"q_norm": 1.4, "k_norm": 1.4},
        tokens=18,
    ),
    # As OLMo 2, with windows and a RoPE for each layer type: YaRN for full layers only.
    "olmo3": Tiny(
        preset="olmo3",
        model_class="Olmo3ForCausalLM",
        config=shape(131, 48, 36, 3, 4, 2, rms_norm_eps=0.05, bos_token_id=None, sliding_window=6,
                     layer_types=[WINDOWED, FULL, WINDOWED], rope_parameters={
                         FULL: theta(20000.0, rope_type="yarn", factor=6.0, original_max_position_embeddings=32),
                         WINDOWED: theta(2000.0)}),
        dtype="bfloat16",
        dialect="new",
        seed=15,
        gains={"q_norm": 1.4, "k_norm": 1.4},
        tokens=16,
    ),
    # Norms after the blocks, q/k norms per head, windows; full layers have no RoPE.
    "exaone4": Tiny(
        preset="exaone4",
        model_class="Exaone4ForCausalLM",
        config=shape(131, 48, 36, 3, 4, 2, rms_norm_eps=0.05, sliding_window=6, sliding_window_pattern="LG",
                     layer_types=[WINDOWED, FULL, WINDOWED], rope_parameters=theta(5000.0)),
        dtype="bfloat16",
        dialect="new",
        seed=35,
        gains={"q_norm": 1.4, "k_norm": 1.4},
        tokens=16,
    ),
    # Biases on q, k, v, and by their own keys on the output projection and the feed-forward block.
    "seed-oss": Tiny(
        preset="seed_oss",
        model_class="SeedOssForCausalLM",
        config=shape(131, 40, 48, 3, 4, 2, 12, attention_bias=True, attention_out_bias=True, mlp_bias=True,
                     rms_norm_eps=0.02, rope_parameters=theta(1000000.0)),
        dtype="bfloat16",
        dialect="old",
        seed=13,
        tokens=17,
        old_keys={"rope_scaling": {"rope_type": "default"}},
    ),
    # Q/k norms per head after RoPE, whose base a fixed alpha stretches.
    "hunyuan": Tiny(
        preset="hunyuan_v1_dense",
        model_class="HunYuanDenseV1ForCausalLM",
        config=shape(131, 40, 44, 3, 4, 2, 12, rms_norm_eps=0.02, tie_word_embeddings=True, rope_parameters={
            "rope_type": "dynamic", "rope_theta": 1000.0, "alpha": 20.0, "factor": 1.0}),
        dtype="bfloat16",
        dialect="old",
        seed=6,
        gains={"o_proj": 2.5, "down_proj": 5.0, "query_layernorm": 1.4, "key_layernorm": 1.4},
        tokens=17,
        old_keys={"use_qk_norm": True},
    ),
    # YaRN with mscale, and a factor on queries that grows with the position.
    "ministral3": Tiny(
        preset="ministral3",
        model_class="Ministral3ForCausalLM",
        config=shape(131, 40, 48, 3, 4, 2, 12, rms_norm_eps=0.02, rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 6,
            "beta_fast": 2.0, "beta_slow": 0.2, "mscale": 1.0, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.6}),
        dtype="bfloat16",
        dialect="new",
        seed=3,
        tokens=17,
    ),
    # Granite 4 without recurrent layers and experts: the four multipliers, gate and up in one tensor, no RoPE at all.
    "granite4": Tiny(
        preset="granitemoehybrid",
        model_class="GraniteMoeHybridForCausalLM",
        config=shape(131, 32, 48, 3, 4, 2, shared_intermediate_size=44, num_local_experts=0, num_experts_per_tok=0,
                     layer_types=[FULL, FULL, FULL], position_embedding_type=None, embedding_multiplier=6.0,
                     attention_multiplier=0.42, residual_multiplier=0.4, logits_scaling=3.0, rms_norm_eps=0.1,
                     mamba_n_heads=8, mamba_d_head=8),
        dtype="bfloat16",
        dialect="new",
        seed=5,
        gains={"embed_tokens": 0.3, "o_proj": 5.0, "output_linear": 9.0},
        tokens=16,
    ),
    # The same with RoPE.
    "granite4-rope": Tiny(
        preset="granitemoehybrid",
        model_class="GraniteMoeHybridForCausalLM",
        config=shape(131, 32, 40, 1, 4, 2, shared_intermediate_size=44, num_local_experts=0, num_experts_per_tok=0,
                     layer_types=[FULL], position_embedding_type="rope", embedding_multiplier=6.0,
                     attention_multiplier=0.42, residual_multiplier=0.4, logits_scaling=3.0, tie_word_embeddings=False,
                     rms_norm_eps=0.1, mamba_n_heads=8, mamba_d_head=8, rope_parameters=theta(2000.0)),
        dtype="bfloat16",
        dialect="new",
        seed=55,
        gains={"embed_tokens": 0.3, "o_proj": 5.0, "output_linear": 9.0},
        tokens=16,
    ),
    # Half of each head rotated, in neighbouring pairs; sandwich norms; biases on q, k, v only; gate and up in one tensor.
    "glm4": Tiny(
        preset="glm4",
        model_class="Glm4ForCausalLM",
        config=shape(131, 40, 40, 3, 4, 2, 12, rms_norm_eps=0.02, rope_parameters=theta(3000.0, partial_rotary_factor=0.5)),
        dtype="bfloat16",
        dialect="new",
        seed=70,
        gains={"post_self_attn_layernorm": 1.2, "post_mlp_layernorm": 1.2},
        tokens=15,
    ),
    # Layer norms with biases, a feed-forward block without a gate, biases everywhere, every layer windowed.
    "starcoder2": Tiny(
        preset="starcoder2",
        model_class="Starcoder2ForCausalLM",
        config=shape(131, 48, 44, 3, 4, 2, sliding_window=7, norm_epsilon=0.05, tie_word_embeddings=False,
                     rope_parameters=theta(5000.0)),
        dtype="bfloat16",
        dialect="old",
        seed=115,
        gains={"c_proj": 3.0},
        tokens=17,
        old_keys={"rope_scaling": None},
    ),
    # A parallel block: one layer norm for attention and feed-forward block. Half of each head rotated; a head with a bias.
    "phi": Tiny(
        preset="phi",
        model_class="PhiForCausalLM",
        config=shape(131, 48, 44, 3, 4, None, layer_norm_eps=0.05, rope_parameters=theta(2000.0, partial_rotary_factor=0.5)),
        dtype="float16",
        dialect="old",
        seed=184,
        gains={"dense": 1.6, "fc2": 3.0},
        tokens=16,
    ),
    # The same with norms of queries and keys, biases and all, and grouped heads.
    "phi-normed": Tiny(
        preset="phi",
        model_class="PhiForCausalLM",
        config=shape(131, 32, 40, 1, 4, 2, layer_norm_eps=0.05, qk_layernorm=True,
                     rope_parameters=theta(30.0, partial_rotary_factor=0.5)),
        dtype="bfloat16",
        dialect="new",
        seed=40,
        gains={"dense": 1.6, "fc2": 3.0, "q_layernorm": 1.4, "k_layernorm": 1.4},
        tokens=16,
    ),
    # A parallel block whose parts have a layer norm each; q, k and v side by side for each head; part of each head rotated; GELU
    # by the error function.
    "gpt-neox": Tiny(
        preset="gpt_neox",
        model_class="GPTNeoXForCausalLM",
        config=wide(131, 48, 44, 3, 4, layer_norm_eps=0.05, rope_parameters=theta(500.0, partial_rotary_factor=0.5)),
        dtype="bfloat16",
        dialect="old",
        seed=1097,
        gains={"embed_in": 6.5, "dense": 1.6, "dense_4h_to_h": 3.0, "embed_out": 3.0},
        tokens=16,
    ),
    # The same with blocks one after the other, with the other GELU.
    "gpt-neox-serial": Tiny(
        preset="gpt_neox",
        model_class="GPTNeoXForCausalLM",
        config=wide(131, 40, 60, 2, 5, layer_norm_eps=0.05, use_parallel_residual=False, hidden_act="gelu_fast",
                    rope_parameters=theta(100.0, partial_rotary_factor=0.75)),
        dtype="bfloat16",
        dialect="new",
        seed=95,
        gains={"embed_in": 6.5, "dense": 1.6, "dense_4h_to_h": 3.0, "embed_out": 3.0},
        tokens=17,
    ),
    # A parallel block with gated activation and layer norms without biases; norms of heads with weights of each head's own;
    # neighbouring pairs; logits multiplied.
    "cohere": Tiny(
        preset="cohere",
        model_class="CohereForCausalLM",
        config=shape(131, 48, 36, 3, 4, 2, layer_norm_eps=0.05, logit_scale=0.3, use_qk_norm=True,
                     rope_parameters=theta(3000.0)),
        dtype="bfloat16",
        dialect="old",
        seed=54,
        gains={"embed_tokens": 0.5, "q_norm": 1.4, "k_norm": 1.4, "norm": 3.0},
        tokens=16,
    ),
    # As Cohere, with windows; full layers have no RoPE.
    "cohere2": Tiny(
        preset="cohere2",
        model_class="Cohere2ForCausalLM",
        config=shape(131, 32, 36, 4, 4, 2, layer_norm_eps=0.05, logit_scale=0.3, sliding_window=6, attention_bias=True,
                     layer_types=[WINDOWED, WINDOWED, WINDOWED, FULL], rope_parameters=theta(3000.0)),
        dtype="bfloat16",
        dialect="new",
        seed=66,
        gains={"embed_tokens": 0.5, "q_proj": 1.8, "k_proj": 1.8, "norm": 3.0},
        tokens=16,
    ),
    # Short convolutions beside attention with norms of heads; the width of the feed-forward block is computed.
    "lfm2": Tiny(
        preset="lfm2",
        model_class="Lfm2ForCausalLM",
        config=shape(131, 48, 60, 4, 4, 2, norm_eps=0.05, conv_L_cache=3, full_attn_idxs=[1, 3], block_multiple_of=8,
                     block_ffn_dim_multiplier=1.1, rope_parameters=theta(3000.0)),
        dtype="bfloat16",
        dialect="old",
        seed=5,
        gains={"embed_tokens": 0.5, "out_proj": 2.5, "w2": 3.0, "q_layernorm": 1.4, "k_layernorm": 1.4, "norm": 3.0},
        tokens=16,
    ),
    # The same with biases and four taps; layers by a list, and the stated width.
    "lfm2-biased": Tiny(
        preset="lfm2",
        model_class="Lfm2ForCausalLM",
        config=shape(131, 32, 40, 3, 4, 2, norm_eps=0.02, conv_L_cache=4, conv_bias=True, tie_word_embeddings=False,
                     layer_types=["conv", FULL, "conv"], block_auto_adjust_ff_dim=False, rope_parameters=theta(3000.0)),
        dtype="bfloat16",
        dialect="new",
        seed=2,
        gains={"out_proj": 2.5, "w2": 3.0, "q_layernorm": 1.4, "k_layernorm": 1.4},
        tokens=16,
    ),
    # Experts chosen by sigmoids with a bias, but for the first layer.
    "lfm2-moe": Tiny(
        preset="lfm2_moe",
        model_class="Lfm2MoeForCausalLM",
        config=shape(131, 48, 40, 3, 4, 2, norm_eps=0.05, conv_L_cache=3, layer_types=["conv", FULL, "conv"],
                     num_dense_layers=1, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, rope_parameters=theta(3000.0)),
        dtype="bfloat16",
        dialect="new",
        seed=65,
        gains={"embed_tokens": 0.5, "out_proj": 2.5, "w2": 3.0, "down_proj": 5.0, "gate": 2.0, "expert_bias": 0.2, "q_layernorm": 1.4,
               "k_layernorm": 1.4, "norm": 3.0},
        tokens=13,
    ),
    # Four multipliers.
    "granite": Tiny(
        preset="granite",
        model_class="GraniteForCausalLM",
        config=shape(131, 48, 56, 3, 4, 2, embedding_multiplier=6.0, attention_multiplier=0.42,
                     residual_multiplier=0.4, logits_scaling=3.0, tie_word_embeddings=True, rms_norm_eps=0.1,
                     rope_parameters=theta(10000.0)),
        dtype="float16",
        dialect="old",
        seed=85,
        gains={"embed_tokens": 0.3, "o_proj": 5.0, "down_proj": 9.0},
        old_keys={"rope_scaling": None},
    ),
}
MODELS |= tiny_delta.models(Tiny, shape, theta)


def older_dialect(spec, config, made):
    """config.json as transformers 4 wrote it: RoPE keys at the top level, `torch_dtype`, no `layer_types`."""
    config = dict(config)
    config.pop("transformers_version")
    config["torch_dtype"] = config.pop("dtype")
    for key in ("layer_types", "use_bidirectional_attention"):
        config.pop(key, None)
    if spec.preset == "lfm2":
        config["block_ff_dim"] = config.pop("intermediate_size")
        config["tie_embedding"] = config.pop("tie_word_embeddings")
    rope = config.pop("rope_parameters")
    if WINDOWED in rope:
        rope = rope[FULL]
    rope = dict(rope)
    config["rope_theta"] = rope.pop("rope_theta")
    partial = rope.pop("partial_rotary_factor", None)
    if partial is not None:
        config["partial_rotary_factor"] = partial
    if spec.preset == "phi3":
        rope.pop("original_max_position_embeddings")  # Phi keeps it at the top level
    if spec.preset == "gpt_neox":
        config["rotary_emb_base"], config["rotary_pct"] = config.pop("rope_theta"), config.pop("partial_rotary_factor")
    kind = rope.pop("rope_type")
    if kind != "default":
        config["rope_scaling"] = {"type": kind, **rope}
    if spec.sparse:
        defaults = {"rope_theta": 1000000.0 if spec.preset == "gemma3" else 10000.0, **type(made)().to_dict()}
        keep = ("model_type", "architectures", "torch_dtype", "vocab_size")
        config = {key: value for key, value in config.items() if key in keep or defaults.get(key, ...) != value}
        if made.num_key_value_heads == made.num_attention_heads:
            config.pop("num_key_value_heads", None)
    return {**config, **spec.old_keys}
