"""Checks the tiny models: goldens agree with the files and with themselves, and every feature matters.

Agreement: a new run of the files gives the goldens again; greedy decoding, with and without a cache, gives
`generated_ids`. Relations: each stage, computed in float64 from the golden values of the stages before it and the
stored weights, by formulas written out here and not by transformers. Features: the model without one feature (or with
a likely mistake in its place) must move `logits_final` by more than 1 % relative L2; the last column says how many
of the prompt's tokens then predict another next token.
"""

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional

import tiny_layers
from capture import Capture
import tiny_delta
from tiny_experts import experts
from tiny_features import variants
from tiny_loading import NEW_TOKENS, load, modules
from tiny_models import MODELS, WINDOWED

SAME, MATTERS = 2e-6, 1e-2
# What families call modules that others call as the formulas below have it.
NAMES = {
    "starcoder2": {"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"},
    "phi": {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2", "o_proj": "dense", "final norm": "final_layernorm",
            "norm of heads": "layernorm"},
    "gpt_neox": {"embed_tokens": "embed_in", "self_attn": "attention", "o_proj": "dense", "mlp.up_proj": "mlp.dense_h_to_4h",
                 "mlp.down_proj": "mlp.dense_4h_to_h", "final norm": "final_layer_norm"},
    "lfm2": {"input_layernorm": "operator_norm", "post_attention_layernorm": "ffn_norm", "o_proj": "out_proj",
             "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
             "final norm": "embedding_norm", "norm of heads": "layernorm"},
}
NAMES["lfm2_moe"] = NAMES["lfm2"]
IDS = {"input_ids", "generated_ids"}


def check(folders):
    """Prints everything; returns the number of failures, capped for use as an exit status."""
    failures = 0
    for folder in folders:
        spec = MODELS[folder.name]
        golden = load_file(folder / "golden.safetensors")
        model = load(spec, folder)
        layers = model.config.get_text_config().num_hidden_layers
        stages = ["embed_out"] + [f"layer.{i}.layer_out" for i in range(layers)]
        rms = " ".join(f"{golden[stage].pow(2).mean().sqrt():.1f}" for stage in stages)
        noise = f"{amplification(model, golden):.1f} times larger in the logits"
        print(f"\n{folder.name}: rms of embed_out and each layer_out {rms}; noise {noise}")
        problems = agreement(spec, model, golden) + relations(model, weights_of(folder), golden)
        problems += crossing(spec, folder, model, golden)
        for line in problems:
            print("  FAILED", line)
        failures += len(problems)
        for name, changed in variants(spec, folder, model):
            distance = relative(changed, golden["logits_final"])
            tokens = int((changed.argmax(-1) != golden["logits_final"].argmax(-1)).sum())
            expected = distance > MATTERS or name.startswith("(")
            failures += not expected
            failed = "" if expected else "  FAILED"
            print(f"  {name:44} {distance:9.2e} {tokens:3} of {len(changed)}{failed}")
    print(f"\n{failures} failures")
    return min(failures, 1)


def relative(value, reference):
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def weights_of(folder):
    weights = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as opened:
            weights |= {key: opened.get_tensor(key).double() for key in opened.keys()}
    return weights


@torch.no_grad()
def amplification(model, golden):
    """How much a relative error in the embeddings grows on its way to the logits."""
    ids = golden["input_ids"][None].long()
    table = model.get_input_embeddings()
    noise = torch.randn(golden["embed_out"].shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    shaken = table.register_forward_hook(lambda _, args, out: out * (1 + noise))
    logits = model(input_ids=ids, use_cache=False).logits[0]
    shaken.remove()
    return relative(logits, golden["logits_final"]) / 1e-4


def greedy(model, ids, **settings):
    settings = transformers.GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, **settings)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return made[0, ids.shape[1] :].tolist()


def agreement(spec, model, golden):
    ids = golden["input_ids"][None].long()
    with Capture(model, modules(spec)) as capture:
        capture.run(ids, use_cache=False)
    problems = [f"{key} missing or unexpected" for key in capture.values.keys() ^ (golden.keys() - IDS)]
    for key in capture.values.keys() & golden.keys():
        distance = (capture.values[key] - golden[key]).norm() / golden[key].norm()
        if not distance < SAME:
            problems.append(f"{key}: a new run differs by {distance:.1e}")
    for use_cache in (True, False):
        if greedy(model, ids, use_cache=use_cache) != golden["generated_ids"].tolist():
            problems.append(f"other tokens with use_cache={use_cache}")
    return problems


@torch.no_grad()
def crossing(spec, folder, model, golden):
    """Longrope that outgrows the original length while decoding: both likely mistakes must change tokens."""
    ids, right = golden["input_ids"][None].long(), golden["generated_ids"].tolist()
    config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    limit = getattr(config, "original_max_position_embeddings", 0)
    if not ids.shape[1] <= limit < ids.shape[1] + len(right):
        return []
    config.rope_parameters["long_factor"] = config.rope_parameters["short_factor"]
    unchanged = greedy(load(spec, folder, config=config), ids)
    past, kept, last = None, [], ids
    for _ in right:
        output = model(input_ids=last, past_key_values=past, use_cache=True)
        past, last = output.past_key_values, output.logits[:, -1:].argmax(-1)
        kept.append(int(last))
    wrong = {"short factors throughout": unchanged, "keys of the short factors kept": kept}
    for name, tokens in wrong.items():
        count = sum(a != b for a, b in zip(tokens, right))
        print(f"  crossing, {name:34} {count:13} of {len(right)}")
    return [f"crossing: {name} gives the same tokens" for name, tokens in wrong.items() if tokens == right]



def relations(model, weights, golden):
    """Problems found by recomputing every stage from the ones before it."""
    config = model.config.get_text_config()
    kind = config.model_type
    gemma, heads, by_layer = kind.startswith("gemma"), config.num_attention_heads, kind == "gemma4_text"
    names = NAMES.get(kind, {})
    named = lambda name: names.get(name, name)  # noqa: E731
    if not by_layer:
        kv = getattr(config, "num_key_value_heads", heads)
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    embedding = named("embed_tokens") + ".weight"
    start = next(key for key in weights if key.endswith(embedding)).removesuffix(embedding)
    table = weights[start + embedding]
    ids, tokens = golden["input_ids"].long(), len(golden["input_ids"])
    values = {key: value.double() for key, value in golden.items()}
    problems, seen = [], set()

    def expect(key, value):
        seen.add(key)
        distance = relative(value, values[key]) if key in values else float("inf")
        if not distance < SAME:
            problems.append(f"{key}: {distance:.1e} from its formula")

    if by_layer:
        of = lambda index: rotation(model, config, index, tokens)  # noqa: E731
        for key, value in tiny_layers.relations(config, weights, start, values, ids, of, lambda index: mask(config, index, tokens)):
            expect(key, value)
        return problems + [f"{key}: no formula" for key in golden.keys() - seen - IDS]
    eps = next(getattr(config, key) for key in ("rms_norm_eps", "layer_norm_eps", "norm_epsilon", "norm_eps") if hasattr(config, key))
    centred = kind in ("starcoder2", "phi", "cohere", "cohere2", "gpt_neox")

    def norm(x, name):
        scale = weights[start + name + ".weight"] + (1 if gemma or kind in tiny_delta.KINDS else 0)
        x = x - x.mean(-1, keepdim=True) if centred else x
        bias = weights.get(start + name + ".bias")
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * scale + (0 if bias is None else bias)

    def linear(x, name):
        bias = weights.get(start + name + ".bias")
        return x @ weights[start + name + ".weight"].T + (0 if bias is None else bias)

    multiplier = getattr(config, "embedding_multiplier", config.hidden_size**0.5 if gemma else 1.0)
    expect("embed_out", table[ids] * multiplier)
    before = values["embed_out"]
    residual = getattr(config, "residual_multiplier", 1.0)
    scale = getattr(config, "query_pre_attn_scalar", dim) ** -0.5
    scale = getattr(config, "attention_multiplier", scale)
    tanh_gelu = gemma or kind in ("starcoder2", "phi")
    act = (lambda x: functional.gelu(x, approximate="tanh")) if tanh_gelu else functional.silu
    if kind == "gpt_neox":
        act = functional.gelu if config.hidden_act == "gelu" else (lambda x: functional.gelu(x, approximate="tanh"))
    parallel = kind in ("phi", "cohere", "cohere2")
    def feed_forward(at, block, values, after, expect):
        """The rest of a layer after its mixer, whose output is `after`; what leaves the layer."""
        after_mixer, after_ffn = "post_attention_layernorm", "post_feedforward_layernorm"
        if kind == "glm4":
            after_mixer, after_ffn = "post_self_attn_layernorm", "post_mlp_layernorm"
        sandwich = start + block + after_ffn + ".weight" in weights
        if sandwich:
            expect(at + "post_attn_norm", norm(after, block + after_mixer))
            after = values[at + "post_attn_norm"]
        expect(at + "post_attn", values[at + "layer_in"] + residual * after)
        x = values[at + "post_attn"]
        if parallel:
            x = values[at + "attn_normed"]
        elif getattr(config, "use_parallel_residual", False):
            x = norm(values[at + "layer_in"], block + "post_attention_layernorm")
        elif start + block + named("input_layernorm") + ".weight" in weights:
            own = "pre_feedforward_layernorm" if sandwich and kind != "glm4" else "post_attention_layernorm"
            x = norm(x, block + named(own))
        expect(at + "ffn_in", x)
        x = values[at + "ffn_in"]
        routed = at + "router_logits" in values
        for stage, value in experts(config, weights, start + block, values, at, act) if routed else ():
            expect(at + stage, value)
        gate_up = {"phi3": "mlp.gate_up_proj", "glm4": "mlp.gate_up_proj", "granitemoehybrid": "shared_mlp.input_linear"}
        fused = linear(x, block + gate_up[kind]).chunk(2, dim=-1) if kind in gate_up else None
        if not routed:
            expect(at + "ffn_up", fused[1] if fused else linear(x, block + named("mlp.up_proj")))
            if kind in ("starcoder2", "phi", "gpt_neox"):
                expect(at + "ffn_act", act(values[at + "ffn_up"]))
            else:
                expect(at + "ffn_gate", fused[0] if fused else linear(x, block + named("mlp.gate_proj")))
                expect(at + "ffn_act", act(values[at + "ffn_gate"]) * values[at + "ffn_up"])
            down = "shared_mlp.output_linear" if kind == "granitemoehybrid" else named("mlp.down_proj")
            expect(at + "ffn_out", linear(values[at + "ffn_act"], block + down))
        after = values[at + "ffn_out"]
        if sandwich:
            expect(at + "post_ffn_norm", norm(after, block + after_ffn))
            after = values[at + "post_ffn_norm"]
        expect(at + "layer_out", values[at + "post_attn"] + residual * after)
        return values[at + "layer_out"]

    for index in range(config.num_hidden_layers):
        at, block = f"layer.{index}.", f"layers.{index}."
        expect(at + "layer_in", before)
        x = values[at + "layer_in"]
        if start + block + named("input_layernorm") + ".weight" in weights:
            expect(at + "attn_normed", norm(x, block + named("input_layernorm")))
            x = values[at + "attn_normed"]
        if start + block + "conv.in_proj.weight" in weights:
            after = convolution(at, block, x, tokens, values, weights, start, expect, linear)
            before = feed_forward(at, block, values, after, expect)
            continue
        if start + block + "linear_attn.out_proj.weight" in weights:
            after = tiny_delta.rule(config, at, block, x, values, weights, start, expect)
            before = feed_forward(at, block, values, after, expect)
            continue
        if kind == "phi3":
            fused = linear(x, block + "self_attn.qkv_proj").split([heads * dim, kv * dim, kv * dim], dim=-1)
        elif kind == "gpt_neox":
            of_heads = linear(x, block + "attention.query_key_value").view(tokens, heads, 3, dim)
            fused = [value.flatten(-2) for value in of_heads.unbind(-2)]
        else:
            fused = [linear(x, block + f"self_attn.{name}_proj") for name in "qkv"]
        if kind in tiny_delta.KINDS:  # each head's queries, then its gate
            queries, gate = fused[0].view(tokens, heads, 2, dim).unbind(2)
            fused[0] = queries.flatten(1)
            expect(at + "attn_gate", gate.flatten(1))
        for name, value in zip("qkv", fused):
            expect(at + name + "_proj", value)
        cos, sin = rotation(model, config, index, tokens) if rotated(config, index) else (None, None)
        grown = growth(config, tokens)
        turned = {}
        for name, count in (("q", heads), ("k", kv)):
            value = values[at + name + "_proj"].view(tokens, count, dim)
            if kind == "hunyuan_v1_dense":
                expect(at + name + "_rope", turn(value, cos, sin).reshape(tokens, -1))
                value = values[at + name + "_rope"].view(tokens, count, dim)
                own = block + f"self_attn.{'query' if name == 'q' else 'key'}_layernorm"
                expect(at + name + "_norm", norm(value, own).reshape(tokens, -1))
                turned[name] = values[at + name + "_norm"].view(tokens, count, dim)
                continue
            own = block + f"self_attn.{name}_" + names.get("norm of heads", "norm")
            if start + own + ".weight" in weights:
                whole = value.reshape(tokens, -1) if kind.startswith("olmo") else value
                expect(at + name + "_norm", norm(whole, own).reshape(tokens, -1))
                value = values[at + name + "_norm"].view(tokens, count, dim)
            if rotated(config, index):
                rotate = turn_neighbours if kind in ("glm4", "cohere", "cohere2") else turn
                expect(at + name + "_rope", (rotate(value, cos, sin) * (grown if name == "q" else 1)).reshape(tokens, -1))
                value = values[at + name + "_rope"].view(tokens, count, dim)
            turned[name] = value
        shared = torch.arange(heads) // (heads // kv)  # query head -> key head
        scores = torch.einsum("thd,shd->hts", turned["q"], turned["k"][:, shared]) * scale
        if kind == "gemma2" and config.attn_logit_softcapping:
            scores = torch.tanh(scores / config.attn_logit_softcapping) * config.attn_logit_softcapping
        visible = mask(config, index, tokens)
        expect(at + "attn_scores", torch.where(visible, scores, 0.0))
        hidden = values[at + "attn_scores"].masked_fill(~visible, -torch.inf)
        sinks = weights.get(start + block + "self_attn.sinks")
        if sinks is not None:  # a column more, which is left out
            hidden = torch.cat([hidden, sinks[:, None, None].expand(-1, tokens, 1)], -1)
        expect(at + "attn_probs", hidden.softmax(-1)[..., :tokens])
        if not torch.equal(values[at + "attn_probs"] > 0, visible.expand(heads, -1, -1)):
            problems.append(f"{at}attn_probs: not the expected mask")
        heard = values[at + "v_proj"].view(tokens, kv, dim)[:, shared]
        mixed = torch.einsum("hts,shd->thd", values[at + "attn_probs"], heard)
        expect(at + "attn_core_out", mixed.reshape(tokens, -1))
        if kind in tiny_delta.KINDS:
            expect(at + "attn_gated", values[at + "attn_core_out"] * torch.sigmoid(values[at + "attn_gate"]))
        mixed = values.get(at + "attn_gated", values[at + "attn_core_out"])
        expect(at + "o_proj", linear(mixed, block + named("self_attn") + "." + named("o_proj")))
        before = feed_forward(at, block, values, values[at + "o_proj"], expect)
    expect("pre_final_norm", before)
    expect("final_norm", norm(before, names.get("final norm", "norm")))
    head = next((weights[key] for key in weights if key.endswith(("lm_head.weight", "embed_out.weight"))), table)
    bias = next((weights[key] for key in weights if key.endswith("lm_head.bias")), 0.0)
    scaling = getattr(config, "logits_scaling", 1.0 / getattr(config, "logit_scale", 1.0))
    expect("logits", (values["final_norm"] @ head.T + bias) / scaling)
    cap = getattr(config, "final_logit_softcapping", None)
    expect("logits_final", torch.tanh(values["logits"] / cap) * cap if cap else values["logits"])
    return problems + [f"{key}: no formula" for key in golden.keys() - seen - IDS]


def convolution(at, block, x, tokens, values, weights, start, expect, linear):
    """The stages of a short convolution that reads `x`; what it adds to the stream."""
    expect(at + "conv_in", linear(x, block + "conv.in_proj"))
    b, c, x = values[at + "conv_in"].chunk(3, -1)
    expect(at + "conv_x", b * x)
    kernel = weights[start + block + "conv.conv.weight"][:, 0]
    taps = kernel.shape[1]
    padded = torch.cat([torch.zeros(taps - 1, kernel.shape[0], dtype=kernel.dtype), values[at + "conv_x"]])
    mixed = sum(padded[j : j + tokens] * kernel[:, j] for j in range(taps))
    bias = weights.get(start + block + "conv.conv.bias")
    expect(at + "conv_mix", c * (mixed + (0 if bias is None else bias)))
    expect(at + "conv_out", linear(values[at + "conv_mix"], block + "conv.out_proj"))
    return values[at + "conv_out"]


def mask(config, index, tokens):
    """[tokens, tokens] of bool: a window of W sees W positions, its own included."""
    row, column = torch.arange(tokens)[:, None], torch.arange(tokens)[None]
    types = getattr(config, "layer_types", None)
    windowed = types[index] == WINDOWED if types else bool(getattr(config, "sliding_window", None))
    return (column <= row) & (column > row - (config.sliding_window if windowed else tokens))


def rotated(config, index):
    """Whether the layer has RoPE."""
    if config.model_type == "granitemoehybrid":
        return config.position_embedding_type == "rope"
    if config.model_type in ("exaone4", "cohere2"):
        return config.sliding_window is None or config.layer_types[index] == WINDOWED
    return bool(getattr(config, "no_rope_layers", [1] * 99)[index])


def rotation(model, config, index, tokens):
    """cos and sin [tokens, rotated dims] as the model makes them."""
    rotary = next(module for name, module in model.named_modules() if name.endswith(("rotary_emb", "pos_emb")))
    by_type = (config.layer_types[index],) if isinstance(rotary.rope_type, dict) else ()
    cos, sin = rotary(torch.zeros(1), torch.arange(tokens)[None], *by_type)
    if config.model_type in ("cohere", "cohere2"):  # each angle twice, not all of them twice
        cos, sin = (torch.cat([x[..., ::2], x[..., 1::2]], -1) for x in (cos, sin))
    if config.model_type == "gpt_oss":  # each angle once
        cos, sin = (torch.cat([x, x], -1) for x in (cos, sin))
    return cos[0].double(), sin[0].double()


def growth(config, tokens):
    """The factor on queries [tokens, 1, 1] that grows with the position."""
    beta = (config.rope_parameters or {}).get("llama_4_scaling_beta", 0.0)
    blocks = torch.arange(tokens) // config.rope_parameters["original_max_position_embeddings"] if beta else torch.zeros(tokens)
    return (1 + beta * torch.log1p(blocks.double()))[:, None, None]


def turn_neighbours(x, cos, sin):
    """Rotates pairs (2i, 2i + 1) of the first dims."""
    width = cos.shape[-1]
    order = torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2), torch.arange(width, x.shape[-1])])
    return turn(x[..., order], cos, sin)[..., torch.argsort(order)]


def turn(x, cos, sin):
    """Rotates pairs (i, i + half) of the first dims of [tokens, heads, dim]; the rest passes."""
    width = cos.shape[-1]
    low, high, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
    cos, sin = cos[:, None, : width // 2], sin[:, None, : width // 2]
    return torch.cat([low * cos - high * sin, high * cos + low * sin, rest], dim=-1)
