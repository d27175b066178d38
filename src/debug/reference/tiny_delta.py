"""Tiny models with gated delta rules: what they are, their formulas for `tiny_check.py`, their features for `tiny_features.py`."""

import torch
from torch.nn import functional

LINEAR, FULL = "linear_attention", "full_attention"
KINDS = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
NORMS = {"input_layernorm": 0.0, "post_attention_layernorm": 0.0, "q_norm": 0.4, "k_norm": 0.4, "norm": 1.0}


def models(row, shape, theta):
    """Rows of the table of models."""
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12}
    return {
        # Value heads in twos over key heads, heads rotated in part, gated attention in one of three layers.
        "qwen3-5": row(
            preset="qwen3_5",
            model_class="Qwen3_5ForCausalLM",
            config=shape(131, 40, 56, 3, 4, 2, 16, rms_norm_eps=0.02, layer_types=[LINEAR, FULL, LINEAR], linear_conv_kernel_dim=4,
                         rope_parameters=theta(3000.0, partial_rotary_factor=0.5), **heads),
            dtype="bfloat16",
            dialect="new",
            gains={"out_proj": 3.0, "in_proj_a": 1.0, "A_log": 0.7, **NORMS},
        ),
        # Experts with a shared one, projections by key head; layers as an older config has them.
        "qwen3-next": row(
            preset="qwen3_next",
            model_class="Qwen3NextForCausalLM",
            config=shape(131, 40, 32, 4, 4, 2, 16, rms_norm_eps=0.02, linear_conv_kernel_dim=4, rope_parameters=theta(3000.0,
                         partial_rotary_factor=0.5), moe_intermediate_size=24, shared_expert_intermediate_size=16, num_experts=6,
                         num_experts_per_tok=2, mlp_only_layers=[1], **heads),
            dtype="bfloat16",
            dialect="old",
            gains={"out_proj": 3.0, "in_proj_ba": 1.0, "A_log": 0.7, "gate": 4.0, "shared_expert_gate": 3.0, **NORMS},
            tokens=13,
        ),
        # Experts beside separate projections.
        "qwen3-5-moe": row(
            preset="qwen3_5_moe",
            model_class="Qwen3_5MoeForCausalLM",
            config={key: value for key, value in shape(
                        131, 40, 32, 3, 4, 2, 16, rms_norm_eps=0.02, layer_types=[LINEAR, FULL, LINEAR], linear_conv_kernel_dim=4,
                        rope_parameters=theta(3000.0, partial_rotary_factor=0.5), moe_intermediate_size=24,
                        shared_expert_intermediate_size=16, num_experts=6, num_experts_per_tok=2, **heads).items()
                    if key != "intermediate_size"},
            dtype="bfloat16",
            dialect="new",
            gains={"out_proj": 3.0, "in_proj_a": 1.0, "A_log": 0.7, "gate": 2.5, "shared_expert_gate": 2.0, **NORMS},
            tokens=16,
        ),
        # A tied head, three taps, as many key heads as value heads; layers by interval.
        "qwen3-5-tied": row(
            preset="qwen3_5",
            model_class="Qwen3_5ForCausalLM",
            config=shape(97, 32, 40, 4, 2, 1, 16, rms_norm_eps=0.02, linear_conv_kernel_dim=3, tie_word_embeddings=True,
                         attention_bias=True, rope_parameters=theta(30.0),
                         **{**heads, "linear_num_key_heads": 4}),
            dtype="bfloat16",
            dialect="new",
            seed=54,
            gains={"embed_tokens": 0.5, "out_proj": 3.0, "in_proj_a": 1.0, "A_log": 0.7, "o_proj": 3.0,
                   **NORMS, "norm": 1.5, "q_norm": 0.9, "k_norm": 0.9},
        ),
    }


def rule(config, at, block, x, values, weights, start, expect):
    """The stages of a delta rule that reads `x`; what it adds to the stream."""
    weight = lambda name: weights[f"{start}{block}linear_attn.{name}"]  # noqa: E731
    linear = lambda name: x @ weight(name + ".weight").T  # noqa: E731
    keys, heads = config.linear_num_key_heads, config.linear_num_value_heads
    key_dim, dim = config.linear_key_head_dim, config.linear_value_head_dim
    tokens, share = len(x), heads // keys
    if f"{start}{block}linear_attn.in_proj_qkv.weight" in weights:
        for name in ("qkv", "z", "b", "a"):
            expect(f"{at}delta_{name}", linear("in_proj_" + name))
    else:  # one key head's after the other's
        q, k, v, z = linear("in_proj_qkvz").view(tokens, keys, -1).split([key_dim, key_dim, share * dim, share * dim], -1)
        expect(at + "delta_qkv", torch.cat([part.flatten(1) for part in (q, k, v)], 1))
        expect(at + "delta_z", z.flatten(1))
        b, a = linear("in_proj_ba").view(tokens, keys, -1).chunk(2, -1)
        expect(at + "delta_b", b.flatten(1))
        expect(at + "delta_a", a.flatten(1))
    kernel = weight("conv1d.weight")[:, 0]
    taps = kernel.shape[1]
    padded = functional.pad(values[at + "delta_qkv"], (0, 0, taps - 1, 0))
    expect(at + "conv_mix", functional.silu(sum(padded[j : j + tokens] * kernel[:, j] for j in range(taps))))
    q, k, v = values[at + "conv_mix"].split([keys * key_dim, keys * key_dim, heads * dim], -1)
    unit = lambda x: x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    k = unit(k.view(tokens, keys, key_dim))
    rates = torch.sigmoid(values[at + "delta_b"])
    decays = -weight("A_log").exp() * functional.softplus(values[at + "delta_a"] + weight("dt_bias"))
    expect(at + "delta_in", torch.cat([k.flatten(1), v, rates, decays], 1))
    sizes = [keys * key_dim, heads * dim, heads, heads]
    k, v, rates, decays = values[at + "delta_in"].split(sizes, -1)
    of_heads = lambda x: x.view(tokens, keys, key_dim).repeat_interleave(share, 1)  # noqa: E731
    q, k, v = of_heads(unit(q.view(tokens, keys, key_dim)).flatten(1)) * key_dim**-0.5, of_heads(k), v.view(tokens, heads, dim)
    matrix, made = torch.zeros(heads, dim, key_dim, dtype=x.dtype), []
    for t in range(tokens):
        matrix = matrix * decays[t].exp()[:, None, None]
        wrong = v[t] - (matrix * k[t][:, None]).sum(-1)
        matrix = matrix + rates[t][:, None, None] * wrong[:, :, None] * k[t][:, None]
        made.append((matrix * q[t][:, None]).sum(-1).flatten())
    expect(at + "delta_mix", torch.stack(made))
    mixed = values[at + "delta_mix"].view(tokens, heads, dim)
    normed = mixed * torch.rsqrt(mixed.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * weight("norm.weight")
    expect(at + "delta_normed", normed.flatten(1))
    expect(at + "delta_gated", functional.silu(values[at + "delta_z"]) * values[at + "delta_normed"])
    expect(at + "delta_out", values[at + "delta_gated"] @ weight("out_proj.weight").T)
    return values[at + "delta_out"]


def features(base, run, weights, file):
    """(name, logits) of mistakes in delta rules and in the gate of attention."""
    keys, dim = base.linear_num_key_heads, base.linear_key_head_dim
    zero = torch.zeros_like
    together = base.model_type == "qwen3_next"
    yield "delta: no decay", weights("A_log", lambda w: w - 100)
    yield "delta: steps without their bias", weights("dt_bias", zero)
    if together:
        yield "delta: rates and decays exchanged", weights("in_proj_ba.weight", lambda w: w.unflatten(0, (keys, 2, -1)).flip(1).flatten(0, 2))
        yield "delta: projections not by head", weights("in_proj_qkvz.weight", lambda w: w.unflatten(0, (-1, keys)).transpose(0, 1).flatten(0, 1))
    else:
        yield "delta: decays all alike", weights("in_proj_a.weight", zero)
        yield "delta: rates all alike", weights("in_proj_b.weight", zero)
        swap = lambda w: torch.cat([w[: keys * dim].unflatten(0, (keys, dim)).flip(0).flatten(0, 1), w[keys * dim :]])  # noqa: E731
        yield "delta: key heads of queries exchanged", weights("in_proj_qkv.weight", swap)
    yield "delta: queries and keys of any length", run(patch={"l2norm": lambda x, **_: x})
    yield "convolution: taps in the other order", weights("conv1d.weight", lambda w: w.flip(-1))
    yield "convolution: a tap fewer", weights("conv1d.weight", lambda w: torch.cat([zero(w[..., :1]), w[..., 1:]], -1))
    original = getattr(__import__("sys").modules[file], "causal_conv1d_fn")
    plain = lambda *args, activation=None, **named: original(*args, **named)  # noqa: E731
    yield "convolution: no activation", run(patch={"causal_conv1d_fn": plain})
    heads, width = base.num_attention_heads, base.head_dim
    gate = lambda w, change: change(w.unflatten(0, (heads, 2, width))).flatten(0, 2)  # noqa: E731
    open_gate = lambda w: torch.stack([w[:, 0], zero(w[:, 1])], 1)  # noqa: E731
    yield "attention: gate all alike", weights("q_proj.weight", lambda w: gate(w, open_gate))
    yield "attention: gates not by head", weights("q_proj.weight", lambda w: w.unflatten(0, (2, heads, width)).transpose(0, 1).flatten(0, 2))
