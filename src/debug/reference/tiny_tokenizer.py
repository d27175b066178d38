"""Tokenizers for the tiny models: one per scheme that real models use, trained on the lines below.

`byte_fallback`  characters with "▁" for the space, unknown ones as <0xNN> bytes; special tokens first (SentencePiece)
`ascii`          byte-level BPE over printable ASCII only, special tokens last, BOS added by the post-processor
`byte_level`     byte-level BPE over all 256 bytes with its own split pattern, special tokens last, no BOS

Each comes with `tokenizer_cases.json`: what transformers' AutoTokenizer makes of some texts and of a chat.
"""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A small model says little, but it says the same thing every time it is asked.",
    "Numbers such as 3, 14 and 159 are compared digit by digit; letters are not.",
    "She read the table twice: the first row was right, the second row was wrong.",
    "When the window is short the model forgets what the first words were.",
]
TEXTS = ["The model says 3 words.", "  two  spaces\nand a line", "naïve café – 東京 🙂", "<turn>user"]
CHAT = [
    {"role": "user", "content": "Is the table right?"},
    {"role": "assistant", "content": "The first row is."},
    {"role": "user", "content": " And the second? "},
]
TEMPLATE = (
    "{% for m in messages %}<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)


def byte_fallback(size):
    """Ids: <pad> 0, <eos> 1, <bos> 2, <unk> 3, <turn> 4, <end> 5, 256 bytes, then characters and merges."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "<end>"]
    octets = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = with_bos("<bos>", 2)
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special + octets, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][: len(special)]  # the bytes are ordinary vocabulary
    data["pre_tokenizer"] = None  # it only kept the merges inside words while training
    return Tokenizer.from_str(json.dumps(data))


def ascii(size):
    """Ids: characters and merges, then <bos>, <eos>, <pad>, <turn>, <end> as the last five."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    trainer = trainers.BpeTrainer(vocab_size=size - 5, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    add_special(tokenizer, ["<bos>", "<eos>", "<pad>", "<turn>", "<end>"])
    tokenizer.post_processor = with_bos("<bos>", size - 5)
    return tokenizer


def byte_level(size):
    """Ids: bytes and merges, then <eos>, <pad>, <turn>, <end> as the last four."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = Regex(r"[^\S\r\n]?\p{L}+|\p{N}|[^\S\r\n]?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - 4, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    add_special(tokenizer, ["<eos>", "<pad>", "<turn>", "<end>"])
    return tokenizer


def add_special(tokenizer, tokens):
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])


def with_bos(token, number):
    pair = f"{token} $A {token} $B"
    return processors.TemplateProcessing(single=f"{token} $A", pair=pair, special_tokens=[(token, number)])


SCHEMES = {"byte_fallback": byte_fallback, "ascii": ascii, "byte_level": byte_level}


def write(folder, scheme, size, template_file):
    """Writes tokenizer.json and its config. The template goes into the config, or to chat_template.jinja as
    transformers 5 saves it. Returns the keys of config.json that follow, and the tokens that end generation."""
    tokenizer = SCHEMES[scheme](size)
    if tokenizer.get_vocab_size() != size:
        raise RuntimeError(f"{scheme}: {tokenizer.get_vocab_size()} tokens instead of {size}")
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False) + "\n")
    bos = "<bos>" if tokenizer.token_to_id("<bos>") is not None else None
    template = TEMPLATE if bos is None else "{{ bos_token }}" + TEMPLATE
    config = {
        "add_bos_token": bos is not None,
        "add_eos_token": False,
        "bos_token": bos,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "model_max_length": 1024,
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if template_file != "tokenizer_config.json":
        (folder / template_file).write_text(config.pop("chat_template"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    ids = {f"{name}_token_id": tokenizer.token_to_id(f"<{name}>") for name in ("bos", "eos", "pad")}
    # What ends a turn ends generation too: known from generation_config.json only, as with real chat models.
    return ids, [tokenizer.token_to_id("<eos>"), tokenizer.token_to_id("<end>")]


def special(spec, folder):
    """Ids of the special tokens, none without a tokenizer."""
    if not spec.tokenizer:
        return []
    return [token["id"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]]


def write_cases(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    cases = []
    for text in TEXTS:
        ids, raw = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
        cases.append({"text": text, "ids": ids, "ids_raw": raw, "decoded": tokenizer.decode(raw)})
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)["input_ids"]
    lines = ",\n    ".join(json.dumps(case, ensure_ascii=False) for case in cases)
    chat = json.dumps({"messages": CHAT, "rendered": rendered, "ids": ids}, ensure_ascii=False)
    text = f'{{\n  "texts": [\n    {lines}\n  ],\n  "chat": {chat}\n}}\n'
    (folder / "tokenizer_cases.json").write_text(text)
    return tokenizer
