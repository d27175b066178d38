"""Prints the rotary embedding of layers: frequencies, cos and sin, queries and keys before and after, and which pairs of
elements are turned.

    python hf_rope.py -m MODEL --layers 0 --tokens 0,-1 --dims 0,1,2,3

ROPE      parameters of the layer; angles are position times inverse frequency, both f32
INV_FREQ  inverse frequency of each pair, read back from the tables; for longrope those of the prompt's length
COS SIN   rows of the tables at a position, one element per pair, `attentionScaling` included
PROBE     the same elements of queries and keys before (q_norm or q_proj) and after (q_rope)
PAIRING   distance of what the rotation makes of queries from turning (i, i + half), as Hugging Face mostly does, and
          (2i, 2i + 1), as GGUF files of some families are stored for; relative to what it makes. Whatever the model does to
          queries afterwards, such as a factor that grows with the position, does not count
"""

import sys

sys.dont_write_bytecode = True
import common


def run(arguments):
    model = common.Model(arguments.model)
    table = common.Table(model.folder, arguments.allow_unknown_config)
    chosen = common.positions(arguments.layers, table.layers, "layer", "this model")
    if "q_rope" not in table.rows:
        raise common.Failed(f"{arguments.model}: this model has no RoPE")
    layers = [layer for layer in chosen if layer in table.rows["q_rope"]["layers"]]
    import running
    from capture import Capture, rows as flat

    class Watcher(Capture):
        """Keeps what goes into the rotation too."""

        def rotary(self, original, q, k, cos, sin, *args, **kwargs):
            tables[self.layer] = by_pair(running.plain(cos[0])), by_pair(running.plain(sin[0]))
            before[self.layer] = [running.plain(flat(x)) for x in (q, k)]
            widths[self.layer] = q.shape[-1]
            made = super().rotary(original, q, k, cos, sin, *args, **kwargs)
            turned[self.layer] = running.plain(flat(made[0]))
            return made

    tables, before, turned, widths = {}, {}, {}, {}
    loaded = running.load(model, arguments.dtype, arguments.device)
    ids, _ = running.prompt_ids(arguments, model, loaded)
    tokens = common.positions(arguments.tokens, len(ids), "token", "the prompt")
    sources = ["q_norm", "k_norm"] if "q_norm" in table.rows else ["q_proj", "k_proj"]
    capture = running.watch(loaded, table, ids, table.keys(["q_rope", "k_rope", *sources], layers), Watcher)
    config = loaded.config.get_text_config()
    for layer in chosen:
        if layer not in layers:
            print(f"ROPE L{layer} type=none (this layer has no rotary embedding)")
            continue
        after = [capture.values[f"layer.{layer}.{stage}"] for stage in ("q_rope", "k_rope")]
        print(parameters(layer, config, tables[layer], widths[layer], len(ids), running.longrope_limit(config)))
        show(arguments, layer, frequencies(loaded, config, layer), tables[layer], tokens)
        for token in tokens:
            for side, name in enumerate(("q", "k")):
                # Some classes hand over the rotated part of each head alone.
                part = before[layer][side].shape != after[side].shape
                source = capture.values[f"layer.{layer}.{sources[side]}"] if part else before[layer][side]
                for stage, value in ((sources[side], source), (f"{name}_rope", after[side])):
                    dims = common.positions(arguments.dims, value.shape[1], "dim", f"a row of {stage}")
                    pairs = [(dim, value[token, dim]) for dim in dims]
                    print(common.probe("hf_rope", f"layer.{layer}.{stage}", token, pairs))
        print(pairing(layer, before[layer][0], turned[layer], tables[layer], widths[layer]))


def by_pair(table):
    """The table of a class with the angle of each pair in both halves; some have it twice in a row."""
    import numpy as np

    half = table.shape[1] // 2
    if np.array_equal(table[:, :half], table[:, half:]):
        return table
    return np.concatenate([table[:, ::2], table[:, 1::2]], 1)


def parameters(layer, config, table, head_dim, tokens, limit):
    kinds = getattr(config, "layer_types", None)
    found = getattr(config, "rope_parameters", None) or {}
    if kinds and isinstance(found.get(kinds[layer]), dict):
        found = found[kinds[layer]]
    shown = [(name, value) for name, value in found.items() if not isinstance(value, list) and not name.endswith("type")]
    spelled = " ".join(f"{name.removeprefix('rope_')}={value}" for name, value in shown)
    scaling = (table[0][0] ** 2 + table[1][0] ** 2)[0] ** 0.5  # cos² + sin² of any angle
    text = f"ROPE L{layer} type={found.get('rope_type', 'default')} {spelled} layerType={kinds[layer] if kinds else 'none'}"
    text += f" rotaryDim={table[0].shape[1]} headDim={head_dim} attentionScaling={common.significant(scaling)}"
    if limit is not None:
        factors = "long" if tokens > limit else "short"
        text += f" factors={factors} (the prompt's {tokens} tokens against {limit})"
    return text


def frequencies(loaded, config, layer):
    """Inverse frequencies of the layer after the run, from the model's buffers."""
    kinds = getattr(config, "layer_types", None)
    for name, module in loaded.named_modules():
        if name.endswith("rotary_emb"):
            own = f"{kinds[layer]}_inv_freq" if kinds else ""
            found = getattr(module, own, None) if own else None
            found = getattr(module, "inv_freq", None) if found is None else found
            if found is not None:
                return found.detach().float().cpu().numpy()
    return None


def show(arguments, layer, inverse, table, tokens):
    half = table[0].shape[1] // 2
    pairs = common.positions(arguments.pairs, half, "pair", "the rotation")
    if inverse is not None:
        print(f"INV_FREQ L{layer} values={common.listed([(i, inverse[i]) for i in pairs], common.number)}")
    for token in tokens:
        for name, values in zip(("COS", "SIN"), table):
            print(f"{name} L{layer} position={token} values={common.listed([(i, values[token, i]) for i in pairs])}")


def pairing(layer, before, after, table, head_dim):
    """Both conventions, computed here in float64 from the tables."""
    import numpy as np

    cos, sin = (x.astype(np.float64) for x in table)
    width = cos.shape[1]
    x = before.astype(np.float64).reshape(len(before), -1, head_dim)
    kept = x[..., width:]

    def turned(first, second):
        c, s = cos[:, None, : width // 2], sin[:, None, : width // 2]
        made = np.empty_like(x[..., :width])
        made[..., first], made[..., second] = x[..., first] * c - x[..., second] * s, x[..., second] * c + x[..., first] * s
        made = np.concatenate([made, kept], -1).reshape(after.shape)
        return float(np.linalg.norm(made - after) / max(np.linalg.norm(after), 1e-300))

    half = width // 2
    halves = turned(slice(0, half), slice(half, width))
    neighbours = turned(slice(0, width, 2), slice(1, width, 2))
    verdict = "undecided" if len(before) < 2 else "halves" if halves < neighbours else "neighbours"
    return (f"PAIRING L{layer} pairs={verdict} (i,i+{half})={common.significant(halves)} "
            f"(2i,2i+1)={common.significant(neighbours)}")


def options():
    made = common.add_prompt(common.parser(__doc__))
    made.add_argument("--tokens", default="0,-1", metavar="N,N,…", help="positions (default: 0,-1)")
    made.add_argument("--dims", default="0,1,2,3", metavar="N,N,…", help="elements of q and k (default: 0,1,2,3)")
    made.add_argument("--pairs", default="0,1,mid,-1", metavar="N,N,…", help="pairs to show (default: 0,1,mid,-1)")
    return made


if __name__ == "__main__":
    common.main(options(), run)
