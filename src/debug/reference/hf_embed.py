"""Prints rows of the embedding table as they are stored, and as the model uses them, after scaling.

    python hf_embed.py -m MODEL -p "blue sky" --dims 0,1,2,3

EMBED_SCALE  the factor: what the module declares, if it does, and what embed_out / stored row measures; `residual` is what
             no factor explains, relative (rounding is 1e-7); `head` is whether the output head is this table
EMBED        one token: statistics of its stored row
PROBE        elements of the stored row (`stage=embed_stored`, no stage of Doppler) and of embed_out
"""

import sys

sys.dont_write_bytecode = True
import common


def run(arguments):
    model = common.Model(arguments.model)
    table = common.Table(model.folder, arguments.allow_unknown_config)
    import numpy as np
    import rows
    import running

    loaded = running.load(model, arguments.dtype, arguments.device)
    ids, _ = running.prompt_ids(arguments, model, loaded)
    tokens = common.positions(arguments.tokens, len(ids), "token", "the prompt")
    values = running.watch(loaded, table, ids, ["embed_out"]).values["embed_out"]
    embedding = loaded.get_input_embeddings()
    stored = running.plain(embedding.weight.detach()[running.torch.tensor(ids, device=embedding.weight.device)])
    x, y = stored.astype(np.float64), values.astype(np.float64)
    measured = (x * y).sum() / max((x * x).sum(), 1e-300)
    residual = np.linalg.norm(y - measured * x) / max(np.linalg.norm(y), 1e-300)
    print(f"EMBED_SCALE measured={common.significant(measured)} declared={declared(loaded, embedding)} "
          f"residual={common.significant(residual)} rows={embedding.weight.shape[0]} width={stored.shape[1]} "
          f"dtype={str(embedding.weight.dtype).removeprefix('torch.')} head={head(loaded, embedding)}")
    texts = running.token_texts(model, ids)
    dims = common.positions(arguments.dims, stored.shape[1], "dim", "a row of the table")
    for token in tokens:
        print(f"EMBED token={token} id={ids[token]}{common.quoted(texts[token])} {rows.summary(stored[token : token + 1], first_token=token)}")
        for key, value in (("embed_stored", stored), ("embed_out", values)):
            print(common.probe("hf_embed", key, token, [(dim, value[token, dim]) for dim in dims]))


def declared(loaded, embedding):
    """The factor where the model names one: in the embedding module, or in its config."""
    factor = getattr(embedding, "embed_scale", getattr(loaded.config.get_text_config(), "embedding_multiplier", None))
    return "none" if factor is None else common.significant(float(factor))


def head(loaded, embedding):
    output = loaded.get_output_embeddings()
    if output is None:
        return "absent"
    return "tied" if output.weight.data_ptr() == embedding.weight.data_ptr() else "untied"


def options():
    made = common.add_prompt(common.parser(__doc__, many_layers=False))
    made.add_argument("--tokens", metavar="N,N,…", help="tokens of the prompt; all without it")
    made.add_argument("--dims", default="0,1,2,3", metavar="N,N,…", help="elements (default: 0,1,2,3)")
    return made


if __name__ == "__main__":
    common.main(options(), run)
