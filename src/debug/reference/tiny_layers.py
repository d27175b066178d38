"""Formulas of every stage of models whose layers have heads, keys and inputs of different kinds, for `tiny_check.py`."""

import torch
from torch.nn import functional


def relations(config, weights, start, values, ids, rotation, mask):
    """(stage, expected value) of every stage; `values` are those of the golden file, `start` the prefix of the weights."""
    tokens, hidden, layers = len(ids), config.hidden_size, config.num_hidden_layers
    first_shared = layers - config.num_kv_shared_layers
    act = lambda x: functional.gelu(x, approximate="tanh")  # noqa: E731
    weight = lambda name: weights[start + name]  # noqa: E731
    linear = lambda x, name: x @ weight(name + ".weight").T  # noqa: E731

    def unit(x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps)

    def norm(x, name):
        return unit(x) * weight(name + ".weight")

    yield "embed_out", weight("embed_tokens.weight")[ids] * hidden**0.5
    before, width = values["embed_out"], config.hidden_size_per_layer_input
    if width:
        yield "ple_embed", weight("embed_tokens_per_layer.weight")[ids] * width**0.5
        yield "ple_proj", linear(before, "per_layer_model_projection") * hidden**-0.5
        yield "ple_proj_norm", norm(values["ple_proj"].unflatten(-1, (layers, width)), "per_layer_projection_norm").flatten(-2)
        yield "ple_sum", values["ple_proj_norm"] + values["ple_embed"]
        yield "ple_inputs", values["ple_sum"] * 0.5**0.5
    kept = {}
    for index in range(layers):
        at, block = f"layer.{index}.", f"layers.{index}."
        of = lambda stage, at=at: values[at + stage]  # noqa: E731
        kind, shared = config.layer_types[index], index >= first_shared
        heads, dim = config.num_attention_heads, config.per_layer_config[index].head_dim
        kv = config.per_layer_config[index].num_key_value_heads
        yield at + "layer_in", before
        yield at + "attn_normed", norm(of("layer_in"), block + "input_layernorm")
        cos, sin = rotation(index)
        split = lambda stage, count, of=of, dim=dim: of(stage).view(tokens, count, dim)  # noqa: E731
        for name, count in (("q", heads),) if shared else (("q", heads), ("k", kv)):
            yield at + name + "_proj", linear(of("attn_normed"), block + f"self_attn.{name}_proj")
            yield at + name + "_norm", norm(split(name + "_proj", count), block + f"self_attn.{name}_norm").flatten(-2)
            yield at + name + "_rope", turn(split(name + "_norm", count), cos, sin).flatten(-2)
        if not shared:
            from_keys = config.attention_k_eq_v and kind == "full_attention"
            if not from_keys:
                yield at + "v_proj", linear(of("attn_normed"), block + "self_attn.v_proj")
            yield at + "v_norm", unit(split("k_proj" if from_keys else "v_proj", kv)).flatten(-2)
            kept[kind] = split("k_rope", kv), split("v_norm", kv)
        keys, heard = (x[:, torch.arange(heads) // (heads // kv)] for x in kept[kind])
        visible = mask(index)
        scores = torch.einsum("thd,shd->hts", split("q_rope", heads), keys)
        yield at + "attn_scores", torch.where(visible, scores, 0.0)
        yield at + "attn_probs", of("attn_scores").masked_fill(~visible, -torch.inf).softmax(-1)
        yield at + "attn_core_out", torch.einsum("hts,shd->thd", of("attn_probs"), heard).flatten(-2)
        yield at + "o_proj", linear(of("attn_core_out"), block + "self_attn.o_proj")
        yield at + "post_attn_norm", norm(of("o_proj"), block + "post_attention_layernorm")
        yield at + "post_attn", of("layer_in") + of("post_attn_norm")
        yield at + "ffn_in", norm(of("post_attn"), block + "pre_feedforward_layernorm")
        yield at + "ffn_gate", linear(of("ffn_in"), block + "mlp.gate_proj")
        yield at + "ffn_up", linear(of("ffn_in"), block + "mlp.up_proj")
        yield at + "ffn_act", act(of("ffn_gate")) * of("ffn_up")
        out = linear(of("ffn_act"), block + "mlp.down_proj")
        if config.enable_moe_block:
            yield at + "dense_out", out
            yield at + "dense_norm", norm(of("dense_out"), block + "post_feedforward_layernorm_1")
            yield from ((at + stage, value) for stage, value in routed(config, weight, block, of, unit, norm, act))
            out = of("dense_norm") + of("experts_norm")
        yield at + "ffn_out", out
        yield at + "post_ffn_norm", norm(of("ffn_out"), block + "post_feedforward_layernorm")
        yield at + "post_ffn", of("post_attn") + of("post_ffn_norm")
        before = of("post_ffn")
        if width:
            part = values["ple_inputs"][:, index * width : (index + 1) * width]
            yield at + "ple_gate", linear(before, block + "per_layer_input_gate")
            yield at + "ple_act", act(of("ple_gate")) * part
            yield at + "ple_out", linear(of("ple_act"), block + "per_layer_projection")
            yield at + "post_ple_norm", norm(of("ple_out"), block + "post_per_layer_input_norm")
            yield at + "post_ple", before + of("post_ple_norm")
            before = of("post_ple")
        yield at + "layer_out", before * weight(block + "layer_scalar")
        before = of("layer_out")
    yield "pre_final_norm", before
    yield "final_norm", norm(before, "norm")
    yield "logits", values["final_norm"] @ weight("embed_tokens.weight").T
    cap = config.final_logit_softcapping
    yield "logits_final", torch.tanh(values["logits"] / cap) * cap if cap else values["logits"]


def routed(config, weight, block, of, unit, norm, act):
    """(stage, expected value) of experts beside a dense block."""
    yield "router_norm", unit(of("post_attn"))
    yield "router_in", of("router_norm") * weight(block + "router.scale") * config.hidden_size**-0.5
    yield "router_logits", of("router_in") @ weight(block + "router.proj.weight").T
    best = of("router_logits").topk(config.top_k_experts, dim=-1)
    chosen = best.values.softmax(-1) * weight(block + "router.per_expert_scale")[best.indices]
    yield "router_weights", torch.zeros_like(of("router_logits")).scatter(-1, best.indices, chosen)
    numbers = best.indices.sort(-1).values
    yield "chosen_experts", numbers.double()
    yield "experts_in", norm(of("post_attn"), block + "pre_feedforward_layernorm_2")
    gate, up = weight(block + "experts.gate_up_proj")[numbers].chunk(2, dim=-2)
    yield "expert_gate", torch.einsum("th,tcih->tci", of("experts_in"), gate).flatten(1)
    yield "expert_up", torch.einsum("th,tcih->tci", of("experts_in"), up).flatten(1)
    yield "expert_act", act(of("expert_gate")) * of("expert_up")
    inner = of("expert_act").unflatten(1, (numbers.shape[1], -1))
    yield "expert_out", torch.einsum("tci,tchi->tch", inner, weight(block + "experts.down_proj")[numbers]).flatten(1)
    outs = of("expert_out").unflatten(1, (numbers.shape[1], -1))
    yield "experts_out", (outs * of("router_weights").gather(-1, numbers)[..., None]).sum(1)
    yield "experts_norm", norm(of("experts_out"), block + "post_feedforward_layernorm_2")


def turn(x, cos, sin):
    """Rotates pairs (i, i + half) of [tokens, heads, dim]."""
    low, high = x.chunk(2, dim=-1)
    cos, sin = (y[:, None, : x.shape[-1] // 2] for y in (cos, sin))
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def variants(base, run, setting, replace, weights):
    """(name, logits) of such a model without one of its features."""
    yield "values: norm left out", replace("v_norm")
    yield "attention: scaled by head_dim^-1/2", replace("self_attn", "scaling", base.per_layer_config[0].head_dim ** -0.5)
    full = dict(base.rope_parameters["full_attention"], partial_rotary_factor=1.0)
    yield "rope: all pairs rotated", setting(rope_parameters=dict(base.rope_parameters, full_attention=full))
    plain = dict(full, rope_type="default")
    yield "rope: not proportional", setting(rope_parameters=dict(base.rope_parameters, full_attention=plain))
    yield "rope: left out", run(patch={"apply_rotary_pos_emb": lambda x, *_, **__: x})
    yield "rope: neighbours paired", run(patch={"apply_rotary_pos_emb": neighbours})

    def scalars(changed):
        for name, value in changed.named_buffers():
            if name.endswith("layer_scalar"):
                value.fill_(1.0)

    yield "layer scalars: left out", run(adjust=scalars)
    if base.hidden_size_per_layer_input:
        yield "layers' inputs: left out", weights("per_layer_projection.weight", torch.zeros_like)
        yield "layers' inputs: no embeddings", weights("embed_tokens_per_layer.weight", torch.zeros_like)
        yield "layers' inputs: embeddings not scaled", replace("embed_tokens_per_layer", "embed_scale", torch.tensor(1.0))
        yield "layers' inputs: no projection", weights("per_layer_projection_norm.weight", torch.zeros_like)
        yield "layers' inputs: those of the next layer", weights(
            "embed_tokens_per_layer.weight", lambda w: w.roll(-base.hidden_size_per_layer_input, -1)
        )
    if base.enable_moe_block:
        yield "experts: one fewer of a token", setting(top_k_experts=base.top_k_experts - 1)
        yield "experts: left out", weights("post_feedforward_layernorm_2.weight", torch.zeros_like)
        yield "dense block: left out", weights("post_feedforward_layernorm_1.weight", torch.zeros_like)
        yield "router: vector left out", weights("router.scale", torch.ones_like)
        yield "router: numbers of experts left out", weights("per_expert_scale", torch.ones_like)
        yield "router: no norm", replace("router.norm")


def neighbours(x, cos, sin, unsqueeze_dim=1):
    """Rotates pairs (2i, 2i + 1)."""
    order = torch.cat([torch.arange(0, x.shape[-1], 2), torch.arange(1, x.shape[-1], 2)])
    low, high = x[..., order].chunk(2, dim=-1)
    cos, sin = (y.unsqueeze(unsqueeze_dim)[..., : x.shape[-1] // 2] for y in (cos, sin))
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)[..., torch.argsort(order)]
