"""A tiny model of tests/data loaded with transformers, for the script that makes them and for those that check them."""

import json
import pathlib

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[3]
NEW_TOKENS = 12  # generated ids of a golden file


def load(spec, folder, **changes):
    """The model in float32 with eager attention; `changes` replace keys of its config."""
    made_class = getattr(transformers, spec.model_class)
    model = made_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **changes)
    return model.eval()


def modules(spec):
    """The preset's map of stages to module paths."""
    preset = ROOT / "src" / "config" / "presets" / "models" / f"{spec.preset}.json"
    return json.loads(preset.read_text())["huggingFaceModules"]
