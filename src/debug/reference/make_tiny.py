"""Makes tests/data/<name>/: tiny random models of every family, with float32 goldens of every stage.

Models come from the real transformers classes; every feature of a family is made large enough to matter (short
windows, caps that bite, big biases, norm weights far from neutral), which `--check` proves. Goldens are computed from
the files as written: stored weights upcast to float32, eager attention, one thread. Weights come from numpy's frozen
RandomState, so a folder can be made again; the last bits of its goldens may differ between CPUs.

    python src/debug/reference/make_tiny.py [--family NAME …] [--out tests/data] [--check]
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import tempfile
import zlib

import numpy as np
import torch
import transformers

sys.dont_write_bytecode = True
import tiny_tokenizer
from capture import Capture, save_dump
from tiny_loading import NEW_TOKENS, ROOT, load, modules
from tiny_models import MODELS, older_dialect

ROUTING = 0.03  # smallest gap between the logits of the last chosen expert and the first that is not
SCALES = ("layer_scalar", "scale", "per_expert_scale")  # learned numbers around 1
MARGIN = 0.08  # smallest gap between the two best tokens, in units of the row's rms


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="*", default=list(MODELS), choices=list(MODELS), help="folders to make")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests" / "data")
    parser.add_argument("--check", action="store_true", help="check the folders that are there; write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if arguments.check:
        import tiny_check

        raise SystemExit(tiny_check.check([arguments.out / name for name in arguments.family]))
    for name in arguments.family:
        make(name, MODELS[name], arguments.out / name)


def make(name, spec, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    ids, ends = {}, None
    if spec.tokenizer:
        ids, ends = tiny_tokenizer.write(folder, *spec.tokenizer)
    seed = spec.seed
    while True:
        model = build(spec, ids, seed)
        prompt = prompt_ids(spec, model.config.get_text_config(), folder, seed)
        greedy = generate(spec, model, prompt, folder)
        if greedy is not None:
            break
        seed += 1
    config = model.config.get_text_config()
    if spec.stop:  # the last token ends generation, but only generation_config.json says so
        ends = [config.eos_token_id, greedy["ids"][-1]]
    save(spec, model, folder, ends)
    golden(name, spec, folder, prompt, greedy, seed)
    for file in folder.iterdir():
        os.chmod(file, 0o644)
    size = sum(file.stat().st_size for file in folder.iterdir())
    margin = f"margin {greedy['margin']:.3f} ({greedy['relative']:.3f} rms)"
    print(f"{name:18} seed {seed:4} {margin} {size / 1000:.0f} kB", greedy["ids"])


def build(spec, ids, seed):
    """The model, its weights already rounded to the dtype they will be stored in."""
    made_class = getattr(transformers, spec.model_class)
    settings = dict(spec.config)
    if "text_config" in settings:
        settings["text_config"] = dict(settings["text_config"], **ids)
    else:
        settings.update(ids)
    model = made_class(made_class.config_class(**settings)).eval()
    model.set_attn_implementation("eager")
    config = model.config.get_text_config()
    buffers = [pair for pair in model.named_buffers() if pair[0].endswith(("layer_scalar", "expert_bias"))]  # learned, and stored
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *buffers]:
            draw = np.random.RandomState([seed, zlib.crc32(key.encode())]).standard_normal(tuple(value.shape))
            stored = torch.float32 if spec.norms_f32 and "norm" in key else getattr(torch, spec.dtype)
            weight = torch.from_numpy(draw) * spread(spec, config, key, value) + centre(spec, key)
            value.copy_(weight.to(stored).float())
    return model


def spread(spec, config, key, value):
    """Standard deviation per weight: the gain of its kind, over the square root of what it sums over."""
    kind = key.split(".")[-2] if key.endswith(".weight") else key.split(".")[-1]
    if key.endswith(".bias"):
        return 0.5
    if "norm" in kind or kind in SCALES:
        return 0.3
    if kind == "embed_tokens":
        return spec.gains.get(kind, 1.0)
    gain = spec.gains.get(kind, {"o_proj": 1.6, "down_proj": 3.0, "lm_head": 3.0}.get(kind, 1.4))
    # Experts have a matrix each in one tensor.
    return gain / (value[0].numel() if value.dim() < 3 else value.shape[-1]) ** 0.5


def centre(spec, key):
    if key.split(".")[-1] in SCALES:
        return 1.0
    if "norm" not in key or key.endswith(".bias"):
        return 0.0
    kind = key.split(".")[-2]
    return spec.gains.get(kind, 0.0 if spec.preset in ("gemma", "gemma2", "gemma3") else 1.0)


def prompt_ids(spec, config, folder, seed):
    if spec.text:
        return torch.tensor([transformers.AutoTokenizer.from_pretrained(folder)(spec.text)["input_ids"]])
    draw = np.random.RandomState([seed, 1]).randint(3, config.vocab_size, spec.tokens)
    if config.bos_token_id is not None:
        draw[0] = config.bos_token_id
    return torch.from_numpy(draw.astype(np.int64))[None]


@torch.no_grad()
def generate(spec, model, prompt, folder):
    """Greedy continuation without a cache; None if a near tie, a special token or a dull sequence makes it useless."""
    config = model.config.get_text_config()
    ids, margins, relative = prompt, [], []
    limit = spec.tokenizer[1] if spec.tokenizer else config.vocab_size
    forbidden = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
    forbidden.update(tiny_tokenizer.special(spec, folder))
    for _ in range(NEW_TOKENS):
        with routing(model) as gaps:
            row = model(input_ids=ids, use_cache=False).logits[0, -1]
        if gaps and min(gaps) < ROUTING:
            return None
        best = row.topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        relative.append(margins[-1] / float(row.pow(2).mean().sqrt()))
        token = int(best.indices[0])
        if relative[-1] < MARGIN or token in forbidden or token >= limit:
            return None
        ids = torch.cat([ids, best.indices[:1][None]], dim=1)
    new = ids[0, prompt.shape[1] :].tolist()
    dull = len(set(new)) < 7 or any(a == b == c for a, b, c in zip(new, new[1:], new[2:]))
    if dull or (spec.stop and new[-1] in new[:-1]):
        return None
    return {"ids": new, "margin": min(margins), "relative": min(relative)}


@contextlib.contextmanager
def routing(model):
    """A list that gets, for each layer that runs meanwhile, the smallest gap between the logits of a token's last chosen expert
    and of the first that is not chosen."""
    gaps, handles = [], []

    def hook(module, args, output):
        logits, _, numbers = output
        logits = logits.log() if type(module).__name__.endswith("TextRouter") else logits  # that one gives probabilities
        if len(args) > 1:  # what is added to scores for the choice
            logits = 4 * (logits.sigmoid() + args[1])  # as steep as logits at 0
        best = logits.topk(numbers.shape[-1] + 1).values
        gaps.append(float((best[..., -2] - best[..., -1]).min()))

    for module in model.modules():
        if type(module).__name__.endswith(("TopKRouter", "TextRouter")):
            handles.append(module.register_forward_hook(hook))
    yield gaps
    for handle in handles:
        handle.remove()


def save(spec, model, folder, ends):
    dtype = getattr(torch, spec.dtype)
    model.to(dtype)
    if spec.norms_f32:
        for key, value in model.named_parameters():
            if "norm" in key:
                value.data = value.data.float()
    model.config.dtype = dtype
    if ends:
        model.generation_config.eos_token_id = ends
        model.generation_config.do_sample = False
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, max_shard_size=spec.shard or "1GB")
        for file in sorted(pathlib.Path(scratch).iterdir()):
            if ends or file.name != "generation_config.json":
                (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if spec.dialect == "old":
        before = logits(spec, folder)
        config = older_dialect(spec, config, model.config)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        if not torch.equal(before, logits(spec, folder)):
            raise RuntimeError(f"{folder.name}: transformers reads another model from the older config")


@torch.no_grad()
def logits(spec, folder):
    model = load(spec, folder)
    ids = torch.arange(20)[None] * 5 % model.config.get_text_config().vocab_size
    return model(input_ids=ids).logits


def golden(name, spec, folder, prompt, greedy, seed):
    """Writes golden.safetensors, after the files as written, decoding with a cache, have given the same tokens."""
    model = load(spec, folder)
    settings = transformers.GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    cached = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    if cached[0, prompt.shape[1] :].tolist() != greedy["ids"]:
        raise RuntimeError(f"{name}: with a cache {cached[0, prompt.shape[1]:].tolist()}, without {greedy['ids']}")
    with Capture(model, modules(spec)) as capture:
        capture.run(prompt, use_cache=False)
    values = dict(capture.values)
    values["input_ids"] = prompt[0].to(torch.int32)
    values["generated_ids"] = torch.tensor(greedy["ids"], dtype=torch.int32)
    metadata = {
        "model": name,
        "revision": f"seed-{seed}",
        "dtype": "float32",
        "weights_dtype": spec.dtype,
        "tool": "make_tiny.py",
        "versions": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}",
        "stage_table": "1",
        "min_margin": f"{greedy['margin']:.6f}",
        "min_margin_over_rms": f"{greedy['relative']:.6f}",
    }
    if spec.tokenizer:
        tokenizer = tiny_tokenizer.write_cases(folder)
        metadata["prompt"], metadata["generated_text"] = spec.text, tokenizer.decode(greedy["ids"])
    save_dump(folder / "golden.safetensors", values, metadata)


if __name__ == "__main__":
    main()
