"""Captures every stage of a Hugging Face causal language model while it runs.

Stages that are a module's input or output are hooked; where they sit is data: the map `huggingFaceModules` of the
model's preset. Rotated queries and keys, attention scores and probabilities belong to no module: for them the
functions `apply_rotary_pos_emb` and `eager_attention_forward` of the family's modeling file are wrapped while the
capture is open. Nothing here knows a family. Values come out as the dump format has them: one sequence, [tokens,
width] float32 with heads flattened; scores and probabilities [heads, tokens, positions]. Only what is wanted is hooked.

A path in the map is `dotted.module`, its output, or `dotted.module:input`, its first argument; `{layer}` stands for
the layer's number; a suffix `[q]`, `[k]`, `[v]`, `[gate]` or `[up]` cuts that part out of a fused projection, `[q_of_heads]` and the
like one that has q, k and v of each head side by side; `[bx]` multiplies the first third with the last.
Of a router, which gives logits, weights and numbers of the chosen experts, `[weights]` are the weights of all experts, 0 for those
that are not chosen, and `[numbers]` the numbers, ascending. Of a module of experts, `[expert_gate]`, `[expert_up]`, `[expert_act]`
and `[expert_out]` are what the matrix products in it give or take, for each token the chosen experts' rows side by side in the
order of their numbers. `[scaled]`, of the projection to one number that scales a shared expert, is the scaled output.
`[flat]`, of heads in places of their own, [1, tokens, heads, dim], are the heads side by side.
`@output` is the logits that the model returns, `@query` and `@key` what attention takes, where that is more, or less, than was
rotated; `@sum a b` is the sum of stages, which the model adds to others at once or shows nowhere; `@returns module.method` is what a
method of a module returns.
`@mixed` is what the attention function gives; `@convolved`, `@taken` and `@ruled` are what a gated delta rule reads, what it takes
of it (keys as long as 1, values, rates, decays) and what it gives; `[normed]`, of the gated norm after it, is the norm without its
gate. `[q_of_gated]` and `[gate_of_gated]` cut a projection that has a query and a gate of each head side by side, `[qkv_of_keys]` and the
like one that has q, k, v and z, or b and a, of each key head so.
A layer, or a model, without a path's module does not have the stage.
"""

import json
import re
import struct
import sys
from contextlib import ExitStack
from unittest import mock

import torch
from safetensors.torch import save

PATH = re.compile(r"(?P<module>[\w.{}]+)(?P<input>:input)?(\[(?P<part>[qkv](?:_of_heads)?|q_of_gated|gate_of_gated|normed|(?:qkv|z|b|a)_of_keys|gate|up|bx|weights|numbers|expert_\w+|scaled|flat)\])?")
NORMED = {"q_norm": "q_proj", "k_norm": "k_proj"}


class Capture:
    """`with Capture(model, modules) as capture: capture.run(input_ids); capture.values["layer.0.q_proj"]`

    `wanted` are keys, every one without it. `keep` makes what is kept of a value, which it is given as the model has it:
    (key, tensor) to anything; None keeps nothing. With `last_only` set it is given the last token's row alone.
    """

    def __init__(self, model, modules, wanted=None, keep=None):
        self.model, self.modules = model, modules
        self.wanted = (lambda key: True) if wanted is None else set(wanted).__contains__
        self.kept, self.last_only = keep or (lambda key, value: value.float().clone().contiguous()), False
        self.projected, self.experts = {}, {}
        self.config = model.config.get_text_config()
        if self.config._attn_implementation != "eager":
            raise ValueError("load the model with attn_implementation='eager': other kinds show no scores")
        if any("[expert_" in path for path in modules.values()):
            model.set_experts_implementation("eager")  # other kinds multiply all experts at once
        self.values = {}
        self.layer = None
        self.stack = ExitStack()

    def __enter__(self):
        layers = self.config.num_hidden_layers
        files = set()
        for index in range(layers):
            layer = self.find(self.modules.get("layer_out", "model.layers.{layer}").format(layer=index))
            files.add(sys.modules[type(layer).__module__])
            self.keep(layer.register_forward_pre_hook(lambda *_, index=index: setattr(self, "layer", index)))
        attends = [i for i in range(layers) if self.exists(self.modules.get("o_proj", "model.layers.{layer}").format(layer=i))]
        self.scored = [i for i in attends if self.any_of(i, *self.of_attention())]
        for file in files:
            if any(self.any_of(i, "q_rope", "k_rope") for i in range(layers)):
                self.wrap(file, "apply_rotary_pos_emb", self.rotary)
            if self.scored:
                self.wrap(file, "eager_attention_forward", self.attention)
            for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
                if hasattr(file, name):
                    self.wrap(file, name, self.delta_rule)
        for stage, path in self.modules.items():
            if path.startswith("@sum "):
                terms = path.split()[1:]
                if any("{layer}" in self.modules[term] for term in terms):
                    for index in range(layers):
                        self.tap_sum(f"layer.{index}.{stage}", index, terms)
                else:
                    self.tap_sum(stage, None, terms)
            if path.startswith("@returns "):
                self.tap_method(stage, path.split()[1])
            if path.startswith("@"):
                continue
            if "{layer}" in path:
                paths = [(index, path.format(layer=index)) for index in range(layers)]
                for index, path in [pair for pair in paths if self.exists(pair[1])]:
                    self.tap(f"layer.{index}.{stage}", path)
            elif self.exists(path):
                self.tap(stage, path)
        return self

    def __exit__(self, *_):
        self.stack.close()

    @torch.no_grad()
    def run(self, input_ids, **arguments):
        """One forward pass of [1, tokens] ids; fills `values` and returns the model's output."""
        if input_ids.shape[0] != 1:
            raise ValueError(f"one sequence at a time, not a batch of {input_ids.shape[0]}")
        self.values.clear()
        self.projected.clear()
        self.through = set()
        output = self.model(input_ids=input_ids, **arguments)
        for stage, path in self.modules.items():
            if path == "@output":
                self.put(stage, output.logits[0])
        for index in set(self.scored) - self.through:
            raise RuntimeError(f"layer {index} did not go through eager_attention_forward: nothing captured")
        return output

    def find(self, path):
        """The module at `path`. A multimodal model keeps its text model one level down."""
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            return self.model.get_submodule(path.replace("model.", "model.language_model.", 1))

    def exists(self, path):
        match = PATH.fullmatch(path)
        try:
            return match is None or self.find(match["module"]) is not None
        except AttributeError:
            return False

    def keep(self, handle):
        self.stack.callback(handle.remove)

    def wrap(self, file, name, around):
        original = getattr(file, name, None)
        if original is None:
            raise RuntimeError(f"{file.__name__} has no {name}: teach capture.py how this family does it")
        replacement = lambda *args, **kwargs: around(original, *args, **kwargs)  # noqa: E731
        self.stack.enter_context(mock.patch.object(file, name, replacement))

    def any_of(self, layer, *stages):
        return any(self.wanted(f"layer.{layer}.{stage}") for stage in stages)

    def of_attention(self):
        """The stages that are seen in the attention function."""
        return ["attn_scores", "attn_probs"] + [stage for stage, path in self.modules.items() if path in ("@query", "@key", "@mixed")]

    def put(self, key, value):
        if self.wanted(key):
            kept = self.kept(key, (value[..., -1:, :] if self.last_only else value).detach())
            if kept is not None:
                self.values[key] = kept

    def tap(self, key, path):
        """Hooks what `key` needs, if it is wanted."""
        stage = key.split(".")[-1]
        norm = next((norm for norm, projection in NORMED.items() if projection == stage), None)
        for_norm = norm in self.modules and self.wanted(f"{key.removesuffix(stage)}{norm}")
        if not self.wanted(key) and not for_norm:
            return
        match = PATH.fullmatch(path)
        if match is None:
            raise ValueError(f"{key}: cannot read the module path {path!r}")
        module = self.find(match["module"])
        part = match["part"] or ""
        if part == "normed":
            self.keep(module.register_forward_hook(lambda module, args, _: self.put(key, self.ungated(module, args[0]))))
        elif part in ("weights", "numbers"):
            self.keep(module.register_forward_hook(lambda _, args, out: self.put(key, routed(part, out))))
        elif part.startswith("expert_"):
            self.of_experts(module)[part] = key
        elif part == "scaled":
            shared = self.find(match["module"].removesuffix("_gate"))
            held = []
            self.keep(shared.register_forward_hook(lambda _, args, out: held.append(rows(out))))
            hook = lambda _, args, out: self.put(key, torch.sigmoid(rows(out)) * held.pop())  # noqa: E731
            self.keep(module.register_forward_hook(hook))
        elif match["input"]:
            shaped = flat if part == "flat" else rows
            hook = lambda _, args: self.put(key, shaped(args[0]))  # noqa: E731
            self.keep(module.register_forward_pre_hook(hook))
        elif stage in NORMED:
            self.keep(module.register_forward_hook(lambda _, args, out: self.put_normed(key, args[0], out)))
        else:

            def hook(_, args, output):
                value = flat(output) if part == "flat" else self.part(rows(first(output)), match["part"])
                if for_norm:
                    self.projected[key] = value
                self.put(key, value)

            self.keep(module.register_forward_hook(hook))

    def of_experts(self, module):
        """The keys that are wanted of a module of experts, by part; its products are watched from the first on."""
        if module not in self.experts:
            self.experts[module] = {}
            watch = Products()
            self.keep(module.register_forward_pre_hook(lambda *_: watch.begin()))

            def hook(module, args, kwargs, output):
                # Gate and up of some families take turns.
                turns = not getattr(module, "is_concatenated", True)
                found = watch.end(args[1] if len(args) > 1 else kwargs["router_indices"], turns)
                for part, key in self.experts[module].items():
                    self.put(key, found[part])

            self.keep(module.register_forward_hook(hook, with_kwargs=True))
        return self.experts[module]
    def tap_sum(self, key, layer, terms):
        """Hooks the terms of a sum, if it is wanted; the last of them to come makes it."""
        if not self.wanted(key):
            return
        if not all(self.exists(self.modules[term].format(layer=layer)) for term in terms):
            return
        seen = {}

        def see(term, value):
            seen[term] = rows(value)
            if len(seen) == len(terms):
                self.put(key, sum(seen.values()))
                seen.clear()

        for term in terms:
            match = PATH.fullmatch(self.modules[term].format(layer=layer))
            module = self.find(match["module"])
            shaped = flat if match["part"] == "flat" else first
            if match["input"]:
                self.keep(module.register_forward_pre_hook(lambda _, args, term=term, shaped=shaped: see(term, shaped(args[0]))))
            else:
                self.keep(module.register_forward_hook(lambda _, args, out, term=term, shaped=shaped: see(term, shaped(out))))

    def tap_method(self, key, path):
        """Wraps a method, if what it returns is wanted, and the model has its module."""
        place, _, name = path.rpartition(".")
        if not self.wanted(key):
            return
        # A multimodal model has the method where its text model is.
        module = next((one for one in (self.find(place), getattr(self.find(place), "language_model", None)) if hasattr(one, name)), None)
        if module is None:
            return
        original = getattr(module, name)

        def wrapped(*args, **kwargs):
            returned = original(*args, **kwargs)
            self.put(key, flat(returned))
            return returned

        self.stack.enter_context(mock.patch.object(module, name, wrapped))

    def delta_rule(self, original, query, key, value, *args, g, beta, **kwargs):
        output = original(query, key, value, *args, g=g, beta=beta, **kwargs)
        flat = lambda x: x[0].flatten(1)  # noqa: E731
        unit = key.float() * torch.rsqrt(key.float().pow(2).sum(-1, keepdim=True) + 1e-6)
        made = {
            "@convolved": lambda: torch.cat([flat(query), flat(key), flat(value)], -1),
            "@taken": lambda: torch.cat([flat(unit), flat(value).float(), beta[0].float(), g[0]], -1),
            "@ruled": lambda: flat(output[0]),
        }
        for stage, path in self.modules.items():
            if path in made and self.wanted(f"layer.{self.layer}.{stage}"):
                self.put(f"layer.{self.layer}.{stage}", made[path]())
        return output

    def ungated(self, module, x):
        """The norm of heads [tokens · heads, dim] as rows of tokens."""
        x = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + module.variance_epsilon) * module.weight
        return x.reshape(-1, self.config.linear_num_value_heads * x.shape[-1])

    def put_normed(self, key, before, after):
        """Families norm heads as [1, tokens, heads, dim] or [1, heads, tokens, dim]; the projection tells which."""
        prefix, stage = key.rsplit(".", 1)
        projected = self.projected.pop(f"{prefix}.{NORMED[stage]}")
        if torch.equal(before[0].reshape(projected.shape), projected):
            self.put(key, after[0].reshape(projected.shape))
        else:
            self.put(key, rows(after))

    def part(self, value, name):
        """Cuts `name` out of a fused projection [tokens, width]."""
        if name is None:
            return value
        if name == "bx":
            width = value.shape[-1] // 3
            return value[..., :width] * value[..., 2 * width :]
        if name in ("gate", "up"):
            return value.chunk(2, dim=-1)[name == "up"]
        heads = self.config.num_attention_heads
        dim = getattr(self.config, "head_dim", None) or self.config.hidden_size // heads
        if name.endswith("_of_keys"):
            keys, width = self.config.linear_num_key_heads, self.config.linear_key_head_dim
            values = self.config.linear_num_value_heads // keys
            sizes = [values] * 2 if name[0] in "ba" else [width] * 2 + [values * self.config.linear_value_head_dim] * 2
            sections = [x.flatten(1) for x in value.unflatten(-1, (keys, -1)).split(sizes, -1)]
            return torch.cat(sections[:3], -1) if name.startswith("qkv") else sections[-1 if name[0] in "za" else 0]
        if name.endswith("_of_gated"):
            return value.unflatten(-1, (heads, 2, dim))[..., name.startswith("gate") * 1, :].flatten(-2)
        if name.endswith("_of_heads"):
            return value.unflatten(-1, (heads, 3, dim))[..., "qkv".index(name[0]), :].flatten(-2)
        kv = self.config.num_key_value_heads * dim
        return value.split([heads * dim, kv, kv], dim=-1)["qkv".index(name)]

    def rotary(self, original, q, k, *args, **kwargs):
        rotated = original(q, k, *args, **kwargs)
        for stage, value in zip(("q_rope", "k_rope"), rotated):
            if stage not in self.modules:
                self.put(f"layer.{self.layer}.{stage}", rows(value))
        return rotated

    def attention(self, original, module, query, key, value, mask, *args, **kwargs):
        """Scores are the softmax's input as the family made it (scaled, capped), with masked cells set to 0."""
        if self.layer not in self.scored:
            return original(module, query, key, value, mask, *args, **kwargs)
        softmax, seen = torch.nn.functional.softmax, []
        sinks = getattr(module, "sinks", None)

        def watched(scores, *rest, **named):
            seen.append(scores)
            return softmax(scores, *rest, **named)

        def joined(parts, *rest, **named):
            seen.append(parts[0])
            return torch.concat(parts, *rest, **named)

        # With sinks, the softmax takes more than scores, and less their highest; scores alone are what they are put beside.
        watch = mock.patch.object(torch.nn.functional, "softmax", watched) if sinks is None else mock.patch.object(torch, "cat", joined)
        with watch:
            output, probs = original(module, query, key, value, mask, *args, **kwargs)
        self.through.add(self.layer)
        for stage, path in self.modules.items():
            own = path == "@query" or self.exists(self.modules["k_proj"].format(layer=self.layer))
            if path == "@mixed":
                self.put(f"layer.{self.layer}.{stage}", output[0].flatten(1))
            if path in ("@query", "@key") and own:
                # With a cache, keys are those of all positions.
                value = query if path == "@query" else key[..., -query.shape[-2] :, :]
                self.put(f"layer.{self.layer}.{stage}", rows(value))
        scores = seen[0]
        if mask is not None:
            scores = torch.where(mask < 0, torch.zeros_like(scores), scores)
        self.put(f"layer.{self.layer}.attn_scores", scores[0])
        self.put(f"layer.{self.layer}.attn_probs", probs[0])
        return output, probs


class Products(torch.overrides.TorchFunctionMode):
    """The matrix products of a module that runs its experts one after the other, in the order of their numbers: of each
    expert gate and up at once, for the tokens that chose it, then down."""

    def begin(self):
        self.calls = []
        self.__enter__()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.linear or function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            self.calls.append([args[0], output])
        elif function in (torch.add, torch.Tensor.add, torch.Tensor.__add__) and self.calls and args[0] is self.calls[-1][1]:
            self.calls[-1][1] = output  # its bias
        return output

    def end(self, numbers, turns):
        """By part what [tokens, chosen] `numbers` of experts gave, [tokens, chosen · width]. With `turns`, gate and up take turns."""
        self.__exit__(None, None, None)
        tokens, chosen = numbers.shape
        hit = numbers.unique().tolist()
        if len(self.calls) != 2 * len(hit):
            raise RuntimeError(f"{len(hit)} experts made {len(self.calls)} products: teach capture.py how this family does it")
        made = {}
        for expert, (_, both), (act, out) in zip(hit, self.calls[::2], self.calls[1::2]):
            _, of = torch.where(numbers.T == expert)
            places = (numbers[of] < expert).sum(1)  # in ascending order of the token's experts
            halves = (both[..., ::2], both[..., 1::2]) if turns else both.chunk(2, dim=-1)
            for part, value in zip(("expert_gate", "expert_up", "expert_act", "expert_out"), (*halves, act, out)):
                if part not in made:
                    made[part] = value.new_zeros(tokens, chosen, value.shape[-1])
                made[part][of, places] = value
        return {part: value.reshape(tokens, -1) for part, value in made.items()}


def routed(part, output):
    """Weights of all experts, or the chosen ones' numbers, from what a router gives."""
    logits, weights, numbers = output
    if part == "numbers":
        return numbers.sort(dim=-1).values.float()
    return torch.zeros_like(logits).scatter(-1, numbers, weights.to(logits.dtype))


def first(output):
    return output[0] if isinstance(output, tuple) else output


def rows(value):
    """[1, tokens, width] or [1, heads, tokens, dim] to [tokens, width]; what is that already stays."""
    if value.dim() == 2:
        return value
    value = value[0]
    return value if value.dim() == 2 else value.transpose(0, 1).reshape(value.shape[1], -1)


def flat(value):
    """[1, tokens, heads, dim] to [tokens, heads · dim]."""
    return value[0].flatten(1)


def save_dump(path, values, metadata):
    """Writes a dump. safetensors puts metadata in random order; sorted, the same dump is the same file."""
    blob = save(values, metadata)
    (size,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + size])
    header = {"__metadata__": dict(sorted(metadata.items())), **{key: header[key] for key in header if key in values}}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob[8 + size :])
