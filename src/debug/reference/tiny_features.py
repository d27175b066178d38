"""Features of a tiny model switched off, or replaced by a likely mistake: `variants` yields (name, logits of the
prompt). A name in brackets is shown for interest: its effect is small by nature, or the setting is a default."""

import json
import sys
from unittest import mock

import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional

import tiny_delta
import tiny_layers
from tiny_loading import load
from tiny_models import FULL, WINDOWED


@torch.no_grad()
def variants(spec, folder, model):
    base = model.config.get_text_config()
    ids = load_file(folder / "golden.safetensors")["input_ids"][None].long()
    names = [name for name, _ in model.named_parameters() if "vision" not in name and "multi_modal" not in name]
    file = type(model.get_decoder().layers[0]).__module__

    def run(configure=None, adjust=None, patch=None):
        config = transformers.AutoConfig.from_pretrained(folder)
        if configure:
            configure(config.get_text_config())
        changed = load(spec, folder, config=config)
        if adjust:
            adjust(changed)
        replaced = {name: mock.patch(f"{file}.{name}", new) for name, new in (patch or {}).items()}
        for one in replaced.values():
            one.start()
        logits = changed(input_ids=ids, use_cache=False).logits[0]
        for one in replaced.values():
            one.stop()
        return logits

    def weights(ending, change):
        def adjust(changed):
            for name, value in changed.named_parameters():
                if name in names and (f".{ending}." in name or name.endswith(ending)):
                    value.copy_(change(value))

        return run(adjust=adjust)

    def replace(ending, attribute=None, value=None):
        def adjust(changed):
            for name, module in list(changed.named_modules()):
                if name.endswith(ending) and "vision" not in name:
                    if attribute:
                        setattr(module, attribute, value)
                    else:
                        changed.set_submodule(name, torch.nn.Identity())

        return run(adjust=adjust)

    def setting(**changes):
        return run(lambda config: [setattr(config, key, value) for key, value in changes.items()])

    def rope(change):
        def configure(config):
            for one in config.rope_parameters.values() if FULL in config.rope_parameters else [config.rope_parameters]:
                change(one)

        return run(configure)

    delta = base.model_type in tiny_delta.KINDS
    by_layer = base.model_type == "gemma4_text"
    neutral = 0.0 if (base.model_type.startswith("gemma") and not by_layer) or delta else 1.0
    if by_layer:
        yield from tiny_layers.variants(base, run, setting, replace, weights)
    for kind in sorted({name.split(".")[-2] for name in names if "norm" in name}):
        yield f"{kind}: weight neutral", weights(kind, lambda w: torch.full_like(w, neutral))
    yield "norms: offset of 1 misplaced", weights("norm.weight", lambda w: w + (1.0 if neutral else -1.0))
    eps = next(key for key in ("rms_norm_eps", "layer_norm_eps", "norm_epsilon", "norm_eps") if hasattr(base, key))
    if eps in ("layer_norm_eps", "norm_epsilon"):
        yield "layer norms: the mean not taken", run(adjust=keep_means)
    for kind in ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "post_attention_layernorm", "post_feedforward_layernorm"):
        present = any(kind in name for name in names)
        if present and (kind != "post_attention_layernorm" or any("post_feedforward" in name for name in names)):
            yield f"{kind}: left out", replace(kind)
    for kind in sorted({name.split(".")[-2] for name in names if name.endswith(".bias")}):
        yield f"{kind}: bias left out", weights(f"{kind}.bias", torch.zeros_like)
    least = getattr(base, eps)
    default = least < 1e-4
    yield f"{'(' if default else ''}eps {least} as 1e-5{')' if default else ''}", setting(**{eps: 1e-5})
    final = {"phi": ".final_layernorm", "lfm2": ".embedding_norm", "lfm2_moe": ".embedding_norm", "gpt_neox": ".final_layer_norm"}.get(base.model_type, "model.norm" if delta else ".norm")
    yield "hidden states: no final norm", replace(final)
    if base.model_type in ("phi", "cohere", "cohere2"):
        yield "blocks: one after the other", run(adjust=one_after_the_other)
    if hasattr(base, "use_parallel_residual"):
        yield "blocks: in parallel, or not", setting(use_parallel_residual=not base.use_parallel_residual)
        for kind in ("weight", "bias"):
            yield f"q, k and v: {kind} not by head", weights(f"query_key_value.{kind}", lambda w: thirds(w, base.num_attention_heads))

    kinds = json.dumps(base.rope_parameters)
    if by_layer:
        yield "rope: base tripled", rope(lambda one: one.update(rope_theta=3 * one["rope_theta"]))
    elif getattr(base, "position_embedding_type", "rope") == "rope":
        yield "rope: left out", run(patch={"apply_rotary_pos_emb": lambda q, k, *_: (q, k)})
        if base.model_type in ("glm4", "cohere", "cohere2"):
            yield "rope: halves paired", run(patch={"apply_rotary_pos_emb": halved})
        else:
            yield "rope: neighbours paired", run(patch={"apply_rotary_pos_emb": paired})
        yield "rope: base tripled", rope(lambda one: one.update(rope_theta=3 * one["rope_theta"]))
    else:
        yield "rope: on every layer", setting(position_embedding_type="rope")
    if "alpha" in kinds:
        yield "rope: alpha left out", rope(lambda one: one.update(rope_type="default"))
    if "llama_4_scaling_beta" in kinds:
        yield "rope: queries do not grow", rope(lambda one: one.update(llama_4_scaling_beta=0.0))
    if any(kind in kinds for kind in ("llama3", "yarn", "linear", "longrope")):
        yield "rope: scaling left out", rope(lambda one: one.update(rope_type="default"))
    if "yarn" in kinds or "longrope" in kinds:
        scaled = f"{FULL}_attention_scaling" if FULL in base.rope_parameters else "attention_scaling"
        yield "rope: cos and sin not scaled", replace("rotary_emb", scaled, 1.0)
    if "longrope" in kinds:
        yield "rope: short and long factors exchanged", rope(exchange)
    if base.rope_parameters.get("truncate") is False:
        yield "rope: the range rounded", rope(lambda one: one.update(truncate=True))
    if "partial_rotary_factor" in kinds and base.model_type == "phi":
        yield "rope: whole heads rotated", rope(lambda one: one.update(partial_rotary_factor=1.0))
    elif "partial_rotary_factor" in kinds and not by_layer and base.rope_parameters["partial_rotary_factor"] < 1:
        yield "rope: last dims rotated, not first", run(patch={"apply_rotary_pos_emb": backwards(file)})
    if FULL in base.rope_parameters:
        local, whole = base.rope_parameters[WINDOWED], base.rope_parameters[FULL]
        yield "rope: global parameters everywhere", setting(rope_parameters={FULL: whole, WINDOWED: dict(whole)})
        yield "rope: local parameters everywhere", setting(rope_parameters={FULL: dict(local), WINDOWED: local})
    if 0 in getattr(base, "no_rope_layers", []):
        yield "rope: on every layer", setting(no_rope_layers=[1] * base.num_hidden_layers)
        yield "rope: layers by interval, not list", setting(no_rope_layers=[1, 0, 1])

    if delta:
        yield from tiny_delta.features(base, run, weights, file)
    types, window = getattr(base, "layer_types", None), getattr(base, "sliding_window", None)
    if "conv" in (types or []):
        taps = base.conv_L_cache
        yield "convolution: the current token alone", weights("conv.conv.weight", current_alone)
        yield "convolution: taps in the other order", weights("conv.conv.weight", lambda w: w.flip(-1))
        yield "convolution: gates exchanged", weights("in_proj.weight", lambda w: torch.cat((w.chunk(3)[1], w.chunk(3)[0], w.chunk(3)[2])))
        yield "convolution: gate and what it gates exchanged", weights("in_proj.weight", lambda w: torch.cat((w.chunk(3)[0], *w.chunk(3)[:0:-1])))
        yield f"convolution: {taps - 1} taps", weights("conv.conv.weight", without_first)
    if base.model_type == "exaone4":
        yield "rope: on every layer", replace("self_attn", "is_sliding", True)
    if window:
        for width in (window - 1, window + 1):
            yield f"window {window} as {width}", setting(sliding_window=width)
        yield "window: left out", setting(sliding_window=1000)
        if types and not by_layer:  # a layer's type brings its RoPE along, where a family has two
            yield "layer types: windowed everywhere", setting(layer_types=[WINDOWED] * len(types))
            yield "layer types: off by one layer", setting(layer_types=types[1:] + types[:1])
    if folder.name == "qwen2":
        yield "window: on though switched off", setting(sliding_window=7, layer_types=[FULL, WINDOWED, WINDOWED])
    if base.model_type == "cohere2":
        yield "rope: on every layer", run(adjust=turn_all)
    if not by_layer and getattr(base, "num_key_value_heads", 1) not in (1, base.num_attention_heads):
        yield "GQA: key heads dealt round robin", run(patch={"repeat_kv": lambda x, count: x.repeat(1, count, 1, 1)})

    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(base, key, None):
            yield f"{key}: left out", setting(**{key: None})
    if hasattr(base, "query_pre_attn_scalar"):
        yield "query_pre_attn_scalar: head_dim instead", setting(query_pre_attn_scalar=base.head_dim)
    for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"):
        if hasattr(base, key):
            yield f"{key}: left out", setting(**{key: 1.0})
    if hasattr(base, "attention_multiplier"):
        dim = base.hidden_size // base.num_attention_heads
        yield "attention_multiplier: head_dim^-0.5 instead", setting(attention_multiplier=dim**-0.5)
    if base.model_type.startswith("gemma"):
        yield "embeddings: not scaled", replace("embed_tokens", "embed_scale", torch.tensor(1.0))
        scale = torch.tensor(base.hidden_size**0.5).bfloat16().float()
        yield "(embeddings: scale rounded to bf16)", replace("embed_tokens", "embed_scale", scale)
        yield "(activation: erf GELU for tanh GELU)", replace("act_fn", "forward", functional.gelu)
        yield "activation: SiLU for GELU", replace("mlp.act_fn", "forward", functional.silu)
    elif base.model_type in ("starcoder2", "phi", "gpt_neox"):
        ending = {"phi": "activation_fn"}.get(base.model_type, "mlp.act")
        yield "activation: SiLU for GELU", replace(ending, "forward", functional.silu)
        if base.hidden_act == "gelu":
            tanh = lambda x: functional.gelu(x, approximate="tanh")  # noqa: E731
            yield "(activation: tanh GELU for erf GELU)", replace(ending, "forward", tanh)
        else:
            yield "(activation: erf GELU for tanh GELU)", replace(ending, "forward", functional.gelu)
    elif base.model_type in ("lfm2", "lfm2_moe"):
        with mock.patch.object(functional, "silu", functional.gelu):
            yield "activation: GELU for SiLU", run()
    elif base.model_type == "gpt_oss":
        yield "sinks: left out", weights("sinks", lambda w: w - 100)
        yield "sinks: those of the next head", weights("sinks", lambda w: w.roll(1))
        yield "activation: not cut off", setting(swiglu_limit=1e6)
        yield "activation: SiLU of the gate as it is", setting(swiglu_alpha=1.0)
        for kind in ("gate_up_proj_bias", "down_proj_bias", "router.bias"):
            yield f"{kind}: left out", weights(kind, torch.zeros_like)
    else:
        ending = {"phi3": "activation_fn", "glm4": "activation_fn", "granitemoehybrid": "shared_mlp.activation"}
        yield "activation: GELU for SiLU", replace(ending.get(base.model_type, "act_fn" if getattr(base, "num_experts_per_tok", 0) else "mlp.act_fn"), "forward", functional.gelu)
    if getattr(base, "num_experts_per_tok", 0):
        yield "experts: one fewer of a token", setting(num_experts_per_tok=base.num_experts_per_tok - 1)
        yield "experts: logits of the router negated", weights("router.weight" if base.model_type in ("granitemoe", "gpt_oss") else "gate.weight", lambda w: -w)
        if hasattr(base, "norm_topk_prob"):
            yield "experts: weights divided by their sum, or not", setting(norm_topk_prob=not base.norm_topk_prob)
        else:
            yield "experts: weights half as large", weights("down_proj", lambda w: w / 2)
        if hasattr(base, "use_expert_bias"):
            yield "experts: chosen without the bias", setting(use_expert_bias=False)
        if hasattr(base, "shared_expert_intermediate_size"):
            yield "experts: no shared one", weights("shared_expert.down_proj.weight", torch.zeros_like)
            yield "experts: the shared one not scaled", weights("shared_expert_gate.weight", torch.zeros_like)
    if base.model_type not in ("starcoder2", "phi", "gpt_neox"):
        yield "gate and up exchanged", run(adjust=exchange_gate)
    if not base.tie_word_embeddings:
        yield "head: the embeddings", run(adjust=lambda m: m.lm_head.weight.copy_(m.get_input_embeddings().weight))


def thirds(weight, heads):
    """Rows of q, k and v of each head as if all of q came first."""
    return weight.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def current_alone(weight):
    kept = torch.zeros_like(weight)
    kept[..., -1] = weight[..., -1]
    return kept


def without_first(weight):
    kept = weight.clone()
    kept[..., 0] = 0
    return kept


def keep_means(model):
    """Layer norms as RMS norms with a bias."""
    for module in model.modules():
        if type(module).__name__.endswith("LayerNorm"):
            eps = getattr(module, "eps", None) or module.variance_epsilon
            bias = getattr(module, "bias", None)

            def forward(x, module=module, eps=eps, bias=bias):
                x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * module.weight
                return x if bias is None else x + bias

            module.forward = forward


def one_after_the_other(model):
    """The feed-forward block of a parallel layer reads what attention added, through the same norm."""
    for layer in model.model.layers:
        seen = {}
        layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(entering=args[0]))
        layer.self_attn.register_forward_hook(lambda _, args, out, seen=seen: seen.update(attention=out[0]))

        def mlp_input(_, args, layer=layer, seen=seen):
            return (layer.input_layernorm(seen["entering"] + seen["attention"]), *args[1:])

        layer.mlp.register_forward_pre_hook(mlp_input)


def turn_all(model):
    """RoPE in layers without a window too, which they see through as before."""
    for layer in model.model.layers:
        layer.self_attn.sliding_window = layer.self_attn.sliding_window or 10**6


def exchange(one):
    one["short_factor"], one["long_factor"] = one["long_factor"], one["short_factor"]


@torch.no_grad()
def exchange_gate(model):
    parameters = dict(model.named_parameters())
    for name, value in parameters.items():
        if "gate_up_proj" in name and name.removesuffix("_bias") + "_bias" in parameters:  # they take turns
            value.copy_(value.unflatten(-1, (-1, 2)).flip(-1).flatten(-2))
        elif "gate_up_proj" in name or "input_linear" in name:
            value.copy_(torch.cat(value.chunk(2, dim=-2)[::-1], dim=-2))
        elif "gate_proj" in name or "feed_forward.w1" in name:
            up = parameters[name.replace("gate_proj", "up_proj").replace("w1", "w3")]
            gate = value.clone()
            value.copy_(up)
            up.copy_(gate)


def paired(q, k, cos, sin, *_):
    """RoPE over neighbours (2i, 2i + 1), as GGUF files of Llama have it."""
    if 2 * cos.shape[-1] == q.shape[-1]:  # each angle once
        cos, sin = (torch.cat([x, x], -1) for x in (cos, sin))
    width = cos.shape[-1]
    cos, sin = (x[:, None, :, : width // 2].repeat_interleave(2, -1) for x in (cos, sin))

    def one(x):
        head, rest = x[..., :width], x[..., width:]
        crossed = torch.stack((-head[..., 1::2], head[..., ::2]), dim=-1).flatten(-2)
        return torch.cat([head * cos + crossed * sin, rest], dim=-1)

    return one(q), one(k)


def halved(q, k, cos, sin, *_):
    """RoPE over halves of the rotated part, as most families have it."""
    width = cos.shape[-1]

    def one(x):
        head, rest = x[..., :width], x[..., width:]
        crossed = torch.cat((-head[..., width // 2 :], head[..., : width // 2]), dim=-1)
        return torch.cat([head * cos[:, None] + crossed * sin[:, None], rest], dim=-1)

    return one(q), one(k)


def backwards(file):
    """Partial RoPE on the wrong end of the head."""
    original = sys.modules[file].apply_rotary_pos_emb

    def rotate(q, k, cos, *rest):
        shift = cos.shape[-1] - q.shape[-1]
        q, k = original(q.roll(shift, -1), k.roll(shift, -1), cos, *rest)
        return q.roll(-shift, -1), k.roll(-shift, -1)

    return rotate
