"""Makes tests/fixtures/interventions/patching.json: where forward hooks of transformers find that the built-in model decides facts
of its world, by activation patching as `doppler patch` does it. Of a clean and a corrupted prompt of as many tokens, the clean
run's value of one layer and token is put into the corrupted run; what comes back of the difference between the logits of
the two answers is that cell of the map. Float32, eager, no cache.

    python src/debug/reference/make_patching.py
"""

import json
import sys

import torch
import transformers

sys.dont_write_bytecode = True
from tiny_loading import ROOT

FACTS = [
    ["The color of the sky is", "The color of the snow is"],
    ["Everyone knows that a plum is", "Everyone knows that a pig is"],
]
# A stage, and the module of a layer that makes it.
STAGES = [["layer_out", ""], ["o_proj", ".self_attn"], ["ffn_out", ".mlp"]]


def first(output):
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def logits(model, ids, module=None, change=None):
    """Logits after `ids`; `change` gets the value of `module` [1, tokens, width] and may give another one."""

    def hook(_module, _inputs, output):
        made = change(first(output))
        if made is not None:
            return (made, *output[1:]) if isinstance(output, tuple) else made

    handle = module.register_forward_hook(hook) if module is not None else None
    found = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    if handle is not None:
        handle.remove()
    return found


def patch(model, clean, corrupted, module):
    """The row of a layer: the share that each token's value brings back."""
    kept = []
    of_clean = logits(model, clean, module, lambda value: kept.append(value.clone()))
    of_corrupted = logits(model, corrupted)
    answer, against = int(of_clean.argmax()), int(of_corrupted.argmax())
    whole = (of_clean[answer] - of_clean[against]) - (of_corrupted[answer] - of_corrupted[against])
    row = []
    for token in range(len(clean)):

        def change(value, token=token):
            made = value.clone()
            made[:, token] = kept[0][:, token]
            return made

        found = logits(model, corrupted, module, change)
        gained = (found[answer] - found[against]) - (of_corrupted[answer] - of_corrupted[against])
        row.append(round(float(gained / whole), 6))
    return answer, against, row


def main():
    torch.set_num_threads(1)
    folder = ROOT / "models" / "demo"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    maps = []
    for texts in FACTS:
        clean, corrupted = [tokenizer(text)["input_ids"] for text in texts]
        assert len(clean) == len(corrupted) and clean != corrupted, texts
        for stage, part in STAGES:
            modules = [model.get_submodule(f"model.layers.{layer}{part}") for layer in range(model.config.num_hidden_layers)]
            found = [patch(model, clean, corrupted, module) for module in modules]
            answer, against, _ = found[0]
            assert answer != against, texts
            maps.append(
                dict(clean=clean, corrupted=corrupted, stage=stage, answer=answer, against=against, regained=[row for *_, row in found])
            )
            best = max((share, layer, token) for layer, (*_, row) in enumerate(found) for token, share in enumerate(row))
            print(texts[0], "/", texts[1], stage, tokenizer.decode([answer]), tokenizer.decode([against]), "best", best)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    lines = ",\n".join(json.dumps(one) for one in maps)
    (ROOT / "tests" / "fixtures" / "interventions" / "patching.json").write_text(f'{{"versions": "{versions}", "maps": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
