"""Makes tests/fixtures/interventions/<name>.safetensors: logits of tiny models of tests/data whose values forward hooks
change, as `doppler run --set` changes them. Each case is the text of `--set`, and beside it what the hook does: at which
module, to which tokens and columns, by which factor, with how much of a vector. Float32, eager, no cache: every row of logits
of the golden's prompt and greedy ids.

    python src/debug/reference/make_edited.py
"""

import json
import os
import sys

import numpy as np
import torch
import transformers

sys.dont_write_bytecode = True
from safetensors.torch import load_file, save_file
from tiny_loading import ROOT, load
from tiny_models import MODELS

ALL = slice(None)


def cases(p, h):  # tokens of the prompt, width of a head
    return [
        ["ffn_out@1=zero", "1.mlp", ALL, ALL, 0, 0],
        [f"layer_out@0,token=3,{p - 1}=scale:-0.5", "0", [3, p - 1], ALL, -0.5, 0],
        [f"o_proj@1,token={p}-=scale:2", "1.self_attn.o_proj", slice(p, None), ALL, 2, 0],
        ["layer_out@0=add:vector*0.25", "0", ALL, ALL, 1, 0.25],
        ["q_proj@1,head=1=zero", "1.self_attn.q_proj", ALL, slice(h, 2 * h), 0, 0],
        ["k_proj@0,head=0,dim=0-3=scale:3", "0.self_attn.k_proj", ALL, slice(0, 4), 3, 0],
        ["v_proj@0,token=0=zero", "0.self_attn.v_proj", [0], ALL, 0, 0],
    ]


@torch.no_grad()
def make(name, out):
    folder = ROOT / "tests" / "data" / name
    golden = load_file(folder / "golden.safetensors")
    ids = torch.cat([golden["input_ids"], golden["generated_ids"]])
    model = load(MODELS[name], folder)
    vector = torch.from_numpy(np.random.RandomState(15).standard_normal(model.config.hidden_size).astype("float32"))
    values, texts = {"vector": vector, "ids": ids}, []
    for text, module, tokens, columns, factor, share in cases(len(golden["input_ids"]), model.config.head_dim):

        def hook(_module, _inputs, output):
            whole = output[0] if isinstance(output, tuple) else output
            made = whole.clone()
            made[:, tokens, columns] = factor * made[:, tokens, columns] + (share * vector if share else 0)
            return (made, *output[1:]) if isinstance(output, tuple) else made

        handle = model.get_submodule("model.layers." + module).register_forward_hook(hook)
        values[f"case.{len(texts)}"] = model(input_ids=ids[None].long(), use_cache=False).logits[0].clone()
        handle.remove()
        texts.append(text)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    save_file(values, out / f"{name}.safetensors", {"cases": json.dumps(texts), "versions": versions})
    print(name, len(texts), "cases", versions)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = ROOT / "tests" / "fixtures" / "interventions"
    os.makedirs(folder, exist_ok=True)
    for name in ["gemma2", "llama3"]:
        make(name, folder)
