"""What transformers makes of small tokenizers whose tokens stand in several files.

    python3 tests/suite/tokens/cases.py > tests/suite/tokens/results.json

Needs transformers 5 (no torch). Each row has the files, the ids of each text with and without special tokens, the named
tokens that chat templates see, and the texts without special tokens.
"""

import json
import os
import sys
import tempfile

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import transformers
from transformers import PreTrainedTokenizerFast

TEXTS = ["ab", "a<s>b", "<t>a</s>", "a <x> b<y>", "a<z>", "", "  <x>  ", "<s>"]


def token(text, id=None, **flags):
    out = {"content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **flags}
    return out if id is None else {"id": id, **out}


def template(*names, after=()):
    ids = {"<s>": 5, "</s>": 6}
    piece = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [piece(n) for n in names] + [text] + [piece(n) for n in after]
    used = {n: {"id": n, "ids": [ids[n]], "tokens": [n]} for n in dict.fromkeys([*names, *after])}
    return {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": used}


def file(added=(("<s>", 5), ("</s>", 6)), post=None, normalizer=None, vocab=("a", "b", " ", "<", ">"), padding=None, **changed):
    tokens = [t if isinstance(t, dict) else token(*t) for t in added]
    return {"version": "1.0", "truncation": None, "padding": padding, "added_tokens": tokens, "normalizer": normalizer,
            "pre_tokenizer": None, "post_processor": post, "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {text: i for i, text in enumerate(vocab)}, "merges": [], **changed}}


def cases():
    both = {"bos_token": "<s>", "eos_token": "</s>"}
    bos = file(post=template("<s>"))
    yield "nothing but the file", file(), None, None, None
    yield "BOS once", bos, both, None, None
    yield "BOS twice", file(post=template("<s>", "<s>")), both, None, None
    yield "BOS three times and EOS", file(post=template("<s>", "<s>", "<s>", after=["</s>"])), both, None, None
    yield "BOS by two post-processors", file(post={"type": "Sequence", "processors": [template("<s>"), template("<s>")]}), both, None, None
    yield "EOS before, BOS after", file(post=template("</s>", after=["<s>"])), both, None, None
    yield "add_bos_token has no effect on a file", bos, {**both, "add_bos_token": False}, None, None
    yield "add_bos_token, no post-processor", file(), {**both, "add_bos_token": True, "add_eos_token": True}, None, None
    yield "tokens of added_tokens_decoder", bos, {**both, "added_tokens_decoder": {"7": token("<x>"), "8": token("<y>", special=False)}}, None, None
    yield "ids that are not the next", bos, {**both, "added_tokens_decoder": {"100": token("<y>"), "50": token("<x>")}}, None, None
    yield "one token under two ids", bos, {**both, "added_tokens_decoder": {"5": token("<s>"), "9": token("</s>"), "7": token("<x>")}}, None, None
    yield "other properties of a known token", file(added=[token("<s>", 5, special=False), token("</s>", 6, special=False)]), {**both, "added_tokens_decoder": {"5": token("<s>"), "6": token("</s>", lstrip=True)}}, None, None
    yield "EOS is not flagged special", file(added=[token("<s>", 5), token("</s>", 6, special=False)]), both, None, None
    yield "named tokens are added", bos, {"bos_token": "<s>", "eos_token": "<x>", "pad_token": "<y>"}, None, None
    yield "named tokens of the model's vocabulary", bos, {"bos_token": "a", "eos_token": "b"}, None, None
    yield "a named token with properties", bos, {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", **token("<x>", lstrip=True, rstrip=True, special=False)}}, None, None
    yield "extra_special_tokens", bos, {**both, "extra_special_tokens": ["<x>", "<y>"]}, None, None
    yield "additional_special_tokens", bos, {**both, "additional_special_tokens": ["<y>", "<x>"]}, None, None
    yield "both lists", bos, {**both, "additional_special_tokens": ["<y>"], "extra_special_tokens": ["<x>"]}, None, None
    yield "extra_special_tokens by name", bos, {**both, "extra_special_tokens": {"image_token": "<x>", "other": "<y>"}}, None, None
    yield "a token of another name", bos, {**both, "image_token": "<x>"}, None, None
    yield "special_tokens_map", bos, None, {"bos_token": "<s>", "eos_token": token("</s>")}, None
    yield "special_tokens_map wins", bos, {"bos_token": "</s>"}, {"bos_token": "<s>"}, None
    yield "special_tokens_map beside added_tokens_decoder", bos, {"eos_token": "</s>", "added_tokens_decoder": {"5": token("<s>")}}, {"bos_token": "<s>"}, None
    yield "special_tokens_map with a list", bos, both, {"additional_special_tokens": ["<x>", "<y>"]}, None
    yield "special_tokens_map with a token", bos, both, {"pad_token": token("<x>", lstrip=True)}, None
    yield "added_tokens.json", bos, both, None, {"<x>": 7, "<y>": 8}
    yield "added_tokens.json in another order", bos, both, None, {"<y>": 9, "<x>": 7}
    yield "added_tokens.json, one special", bos, {**both, "pad_token": "<x>"}, None, {"<x>": 8, "<y>": 7}
    yield "added_tokens.json beside added_tokens_decoder", bos, {**both, "added_tokens_decoder": {"7": token("<y>")}}, None, {"<x>": 7}
    yield "added_tokens.json, normalized", file(normalizer={"type": "Replace", "pattern": {"String": "<"}, "content": ">"}), both, None, {"<x>": 7}
    yield "PAD of the padding", file(padding={"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 6, "pad_type_id": 0, "pad_token": "</s>"}), {"bos_token": "<s>"}, None, None
    yield "a gap in the ids", file(added=[("<s>", 5), ("</s>", 20)]), {**both, "added_tokens_decoder": {"21": token("<x>")}}, None, None
    yield "model_specific_special_tokens", bos, {**both, "model_specific_special_tokens": {"im_token": "<x>", "other": {"__type": "AddedToken", **token("<y>")}}}, None, None
    yield "model_specific_special_tokens beside a token of another name", bos, {**both, "image_token": "<x>", "model_specific_special_tokens": {"im_token": "<y>"}}, None, None
    yield "model_specific_special_tokens beside extra_special_tokens", bos, {**both, "extra_special_tokens": ["<y>"], "model_specific_special_tokens": {"im_token": "<x>"}}, None, None
    yield "model_specific_special_tokens beside extra_special_tokens by name", bos, {**both, "extra_special_tokens": {"a_token": "<y>"}, "model_specific_special_tokens": {"im_token": "<x>"}}, None, None
    yield "model_specific_special_tokens beside special_tokens_map", bos, {**both, "model_specific_special_tokens": {"im_token": "<x>"}}, {"image_token": "<y>"}, None
    yield "split_special_tokens", file(post=template("<s>"), vocab=("a", "b", " ", "<", ">", "s", "/", "x"), added=[token("<s>", 8), token("</s>", 9), token("<x>", 10, special=False)]), {**both, "split_special_tokens": True}, None, None
    yield "null is no token", bos, {**both, "pad_token": None, "unk_token": None}, None, None


def main():
    rows = []
    for name, tokenizer, config, special_tokens_map, added_tokens in cases():
        with tempfile.TemporaryDirectory() as folder:
            for path, content in {"tokenizer": tokenizer, "tokenizer_config": config, "special_tokens_map": special_tokens_map, "added_tokens": added_tokens}.items():
                if content is not None:
                    json.dump(content, open(f"{folder}/{path}.json", "w"))
            row = {"name": name, "tokenizer": tokenizer, "tokenizer_config": config, "special_tokens_map": special_tokens_map, "added_tokens": added_tokens}
            t = PreTrainedTokenizerFast.from_pretrained(folder)
            row["named"] = t.special_tokens_map
            row["texts"] = []
            for text in TEXTS:
                plain = t(text, add_special_tokens=False)["input_ids"]
                special = t(text)["input_ids"]
                row["texts"].append({"text": text, "plain": plain, "special": special, "shown": t.decode(plain, skip_special_tokens=True)})
            rows.append(row)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    print(f'{{"transformers": "{transformers.__version__}", "rows": [\n{lines}\n]}}')


main()
