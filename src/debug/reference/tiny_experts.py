"""Formulas of feed-forward blocks of experts, from stored weights, for `tiny_check.py`."""

import torch

# Where a family keeps a router and its experts: gate, up and down of each, or gate and up of all in one tensor.
MIXTRAL = "block_sparse_moe"
SPLIT = {"mixtral": (MIXTRAL + ".gate", MIXTRAL, "w1", "w3", "w2"), "lfm2_moe": ("feed_forward.gate", "feed_forward", "w1", "w3", "w2")}
USUAL = ("mlp.gate", "mlp", "gate_proj", "up_proj", "down_proj")


def experts(config, weights, block, values, at, act):
    """(stage, expected value) of the experts of a layer whose weights begin with `block`; `values` are those of the stages."""
    kind, x = config.model_type, values[at + "ffn_in"]
    if kind == "gpt_oss":
        yield from clamped(config, weights, block + "mlp.", values, at)
        return
    router, module, *names = SPLIT.get(kind, USUAL)
    if kind == "granitemoe":
        router = MIXTRAL + ".router.layer"
    yield "router_logits", x @ weights[block + router + ".weight"].T
    logits, chosen = values[at + "router_logits"], config.num_experts_per_tok
    best = logits.topk(chosen, dim=-1).indices
    scores, least = logits.softmax(-1), 0
    if kind == "lfm2_moe":
        scores, least = logits.sigmoid(), 1e-6
        best = (scores + weights[block + module + ".expert_bias"]).topk(chosen, dim=-1).indices
    if kind in ("mixtral", "granitemoe", "qwen3_5_moe_text") or getattr(config, "norm_topk_prob", False):
        scores = scores / (scores.gather(-1, best).sum(-1, keepdim=True) + least)
    yield "router_weights", torch.zeros_like(scores).scatter(-1, best, scores.gather(-1, best))
    numbers = best.sort(-1).values
    yield "chosen_experts", numbers.double()
    both = weights.get(block + MIXTRAL + ".input_linear.weight")
    matrices = {name: [] for name in ("gate", "up", "down")}
    for expert in range(logits.shape[-1]):
        if both is not None:
            gate, up = both[expert].chunk(2)
            down = weights[block + MIXTRAL + ".output_linear.weight"][expert]
        else:
            gate, up, down = (weights[f"{block}{module}.experts.{expert}.{name}.weight"] for name in names)
        for name, matrix in zip(matrices, (gate, up, down)):
            matrices[name].append(matrix)
    gate, up, down = (torch.stack(matrices[name])[numbers] for name in ("gate", "up", "down"))  # [tokens, chosen, out, in]
    yield "expert_gate", torch.einsum("th,tcih->tci", x, gate).flatten(1)
    yield "expert_up", torch.einsum("th,tcih->tci", x, up).flatten(1)
    yield "expert_act", act(values[at + "expert_gate"]) * values[at + "expert_up"]
    inner = values[at + "expert_act"].unflatten(1, (chosen, -1))
    yield "expert_out", torch.einsum("tci,tchi->tch", inner, down).flatten(1)
    outs = values[at + "expert_out"].unflatten(1, (chosen, -1))
    mixed = (outs * values[at + "router_weights"].gather(-1, numbers)[..., None]).sum(1)
    if at + "shared_gate" not in values:
        yield "ffn_out", mixed
        return
    yield "experts_out", mixed
    shared = lambda name, value: value @ weights[f"{block}mlp.shared_expert.{name}_proj.weight"].T  # noqa: E731
    yield "shared_gate", shared("gate", x)
    yield "shared_up", shared("up", x)
    yield "shared_act", act(values[at + "shared_gate"]) * values[at + "shared_up"]
    yield "shared_out", shared("down", values[at + "shared_act"])
    yield "shared_scale", x @ weights[block + "mlp.shared_expert_gate.weight"].T
    yield "shared_scaled", torch.sigmoid(values[at + "shared_scale"]) * values[at + "shared_out"]
    yield "ffn_out", values[at + "experts_out"] + values[at + "shared_scaled"]


def clamped(config, weights, block, values, at):
    """Those whose gate and up take turns in one tensor of columns, and are cut off."""
    x = values[at + "ffn_in"]
    yield "router_logits", x @ weights[block + "router.weight"].T + weights[block + "router.bias"]
    logits = values[at + "router_logits"]
    best = logits.topk(config.num_experts_per_tok, dim=-1)
    yield "router_weights", torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(-1))
    numbers = best.indices.sort(-1).values
    yield "chosen_experts", numbers.double()
    both, bias = weights[block + "experts.gate_up_proj"][numbers], weights[block + "experts.gate_up_proj_bias"][numbers]
    made = torch.einsum("th,tchi->tci", x, both) + bias
    yield "expert_gate", made[..., 0::2].flatten(1)
    yield "expert_up", made[..., 1::2].flatten(1)
    gate = values[at + "expert_gate"].clamp(max=config.swiglu_limit)
    up = values[at + "expert_up"].clamp(-config.swiglu_limit, config.swiglu_limit)
    yield "expert_act", gate * torch.sigmoid(config.swiglu_alpha * gate) * (up + 1)
    inner = values[at + "expert_act"].unflatten(1, numbers.shape[1:] + (-1,))
    down, bias = weights[block + "experts.down_proj"][numbers], weights[block + "experts.down_proj_bias"][numbers]
    yield "expert_out", (torch.einsum("tci,tcih->tch", inner, down) + bias).flatten(1)
    outs = values[at + "expert_out"].unflatten(1, numbers.shape[1:] + (-1,))
    yield "ffn_out", (outs * values[at + "router_weights"].gather(-1, numbers)[..., None]).sum(1)
