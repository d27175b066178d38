"""Prints how layers attend: queries, keys and values, scores and probabilities of every head, and where each head looks.

    python hf_attn.py -m MODEL --layers 3 --tokens -1 --top 5

ATTN       what the layer's attention is, as the model's own module says
TRACE      statistics of each stage, as `doppler debug --trace attn,kv` prints them
ATTN_HEAD  one head at one token: sizes of its query and of the scores, entropy of its probabilities in bits (0 looks at
           one place; log2 of the visible positions looks everywhere), and the positions it attends to most
PROBE      with --dims: those elements (of scores and probabilities: positions) of each stage
"""

import sys

sys.dont_write_bytecode = True
import common

STAGES = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "q_rope", "k_rope", "attn_scores", "attn_probs",
          "attn_core_out", "o_proj")
WHOLE = "o_proj"  # the one that is not made of heads


def run(arguments):
    model = common.Model(arguments.model)
    table = common.Table(model.folder, arguments.allow_unknown_config)
    layers = common.positions(arguments.layers, table.layers, "layer", "this model")
    import rows
    import running

    loaded = running.load(model, arguments.dtype, arguments.device)
    ids, _ = running.prompt_ids(arguments, model, loaded)
    tokens = common.positions(arguments.tokens, len(ids), "token", "the prompt")
    stages = [name for name in STAGES if name in table.rows]
    capture = running.watch(loaded, table, ids, table.keys(stages, layers))
    texts = running.token_texts(model, ids)
    for layer in layers:
        module = attention(capture, table, layer)
        shape = capture.values[f"layer.{layer}.attn_scores"].shape
        print(about(layer, module, loaded.config.get_text_config(), shape))
        of_layer = {name: capture.values.get(f"layer.{layer}.{name}") for name in stages}
        of_layer = {name: value for name, value in of_layer.items() if value is not None}
        for stage, value in of_layer.items():
            text = rows.summary(value, value.ndim == 3, None if stage == WHOLE else module.head_dim)
            print(f"[TRACE:{table.rows[stage]['category']}] L{layer} {stage} tokens={len(ids)} {text}")
        show(arguments, layer, module.head_dim, of_layer, tokens, texts)


def attention(capture, table, layer):
    """The layer's attention module: the parent of its output projection."""
    path = table.rows["o_proj"]["huggingFace"].format(layer=layer)
    return capture.find(path.split(":")[0].rsplit(".", 1)[0])


def about(layer, module, config, shape):
    heads, tokens, _ = shape
    window = getattr(module, "sliding_window", getattr(config, "sliding_window", None))
    cap = getattr(module, "attn_logit_softcapping", None)
    return (f"ATTN L{layer} heads={heads} kvHeads={heads // module.num_key_value_groups} headDim={module.head_dim} "
            f"scale={common.significant(module.scaling)} softcap={common.number(cap) if cap else 'none'} "
            f"window={window or 'none'} tokens={tokens} class={type(module).__name__} implementation=eager")


def show(arguments, layer, head_dim, values, tokens, texts):
    for token in tokens:
        for head in range(len(values["attn_probs"])):
            print(of_head(layer, head, token, head_dim, values, texts, arguments.top))
        for stage, value in values.items() if arguments.dims else ():
            print(common.probe("hf_attn", f"layer.{layer}.{stage}", token, elements(arguments.dims, value, token)))


def of_head(layer, head, token, head_dim, values, texts, top):
    import numpy as np

    query = values.get("q_rope", values.get("q_norm", values["q_proj"]))[token]
    query = query[head * head_dim : (head + 1) * head_dim].astype(np.float64)
    probs = values["attn_probs"][head, token].astype(np.float64)
    scores = values["attn_scores"][head, token][probs > 0]
    seen = probs[probs > 0]
    order = np.argsort(-probs, kind="stable")[:top]
    places = ", ".join(f"{p}={common.significant(probs[p])}{common.quoted(texts[p])}" for p in order if probs[p] > 0)
    numbers = {
        "qRms": np.sqrt(np.square(query).mean()),
        "scoreMin": scores.min(initial=np.inf),
        "scoreMax": scores.max(initial=-np.inf),
        "entropy": -(seen * np.log2(seen)).sum() + 0.0,
        "sum": probs.sum(),
    }
    spelled = " ".join(f"{name}={common.significant(value)}" for name, value in numbers.items())
    return f"ATTN_HEAD L{layer} h{head} token={token} visible={len(seen)} {spelled} top=[{places}]"


def elements(text, value, token):
    """Pairs of a name and a value, as PROBE lines have them: `334=`, of scores `h1.3=`."""
    dims = common.positions(text, value.shape[-1], "dim", "a row")
    if value.ndim == 2:
        return [(dim, value[token, dim]) for dim in dims]
    return [(f"h{head}.{dim}", value[head, token, dim]) for head in range(len(value)) for dim in dims]


def options():
    made = common.add_prompt(common.parser(__doc__))
    made.add_argument("--tokens", default="-1", metavar="N,N,…", help="tokens that attend (default: -1, the last)")
    made.add_argument("--dims", metavar="N,N,…", help="elements to print of each stage")
    made.add_argument("--top", type=int, default=5, metavar="K", help="positions to show of each head (default: 5)")
    return made


if __name__ == "__main__":
    common.main(options(), run)
