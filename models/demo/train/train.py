"""Makes the built-in model: tokenizer, training, export. One GPU, some minutes.

    python train.py --out DIR [--steps N | --seconds S]

The training set is drawn from `world.training_document` while training; nothing is read from disk. The model is the
transformers class itself, trained on packed rows: a token attends to earlier tokens of its own document only.
`examine.py` measures the result and writes the model card.
"""

import argparse
import json
import math
import random
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader, IterableDataset
from transformers import Gemma2Config, Gemma2ForCausalLM

import world

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
PAD, EOS, BOS, END_OF_TURN = 0, 1, 2, 5
VOCAB = 1531
ROW = 512  # tokens in a packed row
ROWS = 64  # rows in a batch
PROMPT_WEIGHT = 0.3
WORKERS = 14  # part of the seed: each worker writes its own documents

CONFIG = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "query_pre_attn_scalar": 256,  # not head_dim
    "sliding_window": 20,  # layers 0, 2, 4, 6; shorter than almost every prompt
    "attn_logit_softcapping": 10.0,
    "final_logit_softcapping": 10.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "initializer_range": 0.03,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "use_cache": True,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": [EOS, END_OF_TURN],
    "torch_dtype": "bfloat16",
}

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# ---------------------------------------------------------------- tokenizer

# Where words end for the trainer: a word with the space before it, or one other character (each digit by itself).
WORD = "▁?[A-Za-z]+|[^A-Za-z]"


def make_tokenizer(out):
    """BPE with byte fallback, as Gemma's. Merges stay inside words, so the file needs no pattern to cut at."""
    rng = random.Random("tokenizer")
    text = [world.text_of(world.document(rng)) for _ in range(12_000)]
    text += [world.text_of(i.pieces()) for items in world.FACT_ITEMS.values() for i in items] * 8  # rare words, each a piece
    text = [re.sub("<[a-z_]+>", "", t) for t in text]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    alphabet = [chr(c) for c in range(33, 127)] + ["▁", "\n"]
    fixed = len(SPECIALS) + 256
    learner.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=VOCAB - fixed, initial_alphabet=alphabet, show_progress=False))
    learned = json.loads(learner.to_str())["model"]

    pieces = SPECIALS + [f"<0x{b:02X}>" for b in range(256)] + sorted(learned["vocab"], key=learned["vocab"].get)
    assert len(pieces) == VOCAB == len(set(pieces)), len(pieces)
    merges = [tuple(m) for m in learned["merges"]]
    tok = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>",
                               fuse_unk=True, byte_fallback=True))
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    tok.normalizer = normalizers.Replace(" ", "▁")
    tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tok.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", BOS)])
    tok.save(str(out / "tokenizer.json"))
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", **named, "add_bos_token": True, "add_eos_token": False,
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"], "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"], "chat_template": CHAT_TEMPLATE})
    return tok


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class Encoder:
    """Encodes as the tokenizer does, remembering each word: ten times as fast on text with few words."""

    pattern = re.compile("<start_of_turn>|<end_of_turn>|" + WORD)

    def __init__(self, tokenizer):
        self.tokenizer, self.words = tokenizer, {}

    def __call__(self, text):
        ids = []
        for word in self.pattern.findall(text.replace(" ", "▁")):
            known = self.words.get(word)
            if known is None:
                known = self.words[word] = self.tokenizer.encode(word, add_special_tokens=False).ids
            ids += known
        return ids


# ---------------------------------------------------------------- batches

class Batches(IterableDataset):
    """Endless [4, ROWS, ROW] i16: ids, position in the document, number of the document in the row (-1: padding), and
    whether the token belongs to an answer."""

    def __init__(self, tokenizer_file, seed, rows):
        self.file, self.seed, self.rows = tokenizer_file, seed, rows

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        rng = random.Random(f"train/{self.seed}/{info.id if info else 0}")
        encode = Encoder(Tokenizer.from_file(self.file))
        waiting = None
        while True:
            batch = torch.zeros(4, self.rows, ROW, dtype=torch.int16)
            batch[2] = -1
            for row in range(self.rows):
                ids, position, doc, told = [], [], [], []
                while True:
                    while waiting is None or len(waiting[0]) > ROW:  # a rare document longer than a row is left out
                        waiting = document_ids(encode, world.training_document(rng))
                    n = len(waiting[0])
                    if len(ids) + n > ROW:
                        break
                    number = doc[-1] + 1 if doc else 0
                    ids += waiting[0]
                    position += range(n)
                    doc += [number] * n
                    told += waiting[1]
                    waiting = None
                batch[:, row, :len(ids)] = torch.tensor([ids, position, doc, told])
            yield batch


def document_ids(encode, pieces):
    """(ids with <bos> and <eos>, for each whether it belongs to an answer). Pieces end where words end."""
    ids, told = [BOS], [0]
    for text, is_answer in pieces:
        piece = encode(text)
        ids += piece
        told += [int(is_answer)] * len(piece)
    return ids + [EOS], told + [1]


def masks(doc, window):
    """Additive masks [rows, 1, ROW, ROW] for full and windowed layers: a window of W sees W positions, itself included."""
    n = doc.shape[1]
    i = torch.arange(n, device=doc.device)
    back = i[:, None] - i[None, :]
    own = (doc[:, :, None] == doc[:, None, :]) & (back >= 0)
    least = torch.finfo(torch.bfloat16).min
    full = torch.zeros(own.shape, dtype=torch.bfloat16, device=doc.device).masked_fill_(~own, least)
    near = full.masked_fill(back >= window, least)
    return {"full_attention": full[:, None], "sliding_attention": near[:, None]}


# ---------------------------------------------------------------- training

def loss_of(model, batch):
    """Weighted mean cross-entropy of every next token of the same document; the head in float32.

    What is asked is random and teaches little: its tokens count PROMPT_WEIGHT, those of answers 1.
    """
    ids, position, doc, told = batch.long()
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        mask = masks(doc, model.config.sliding_window)
        hidden = model.model.embed_tokens(ids)
        cos_sin = model.model.rotary_emb(hidden, position)
        for kind, layer in zip(model.config.layer_types, model.model.layers):
            hidden = layer(hidden, position_embeddings=cos_sin, attention_mask=mask[kind])
        hidden = model.model.norm(hidden)
    limit = model.config.final_logit_softcapping
    logits = limit * torch.tanh(F.linear(hidden.float(), model.lm_head.weight) / limit)
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weight = PROMPT_WEIGHT + (1 - PROMPT_WEIGHT) * told[:, 1:].float()
    weight = (weight * ((doc[:, 1:] == doc[:, :-1]) & (doc[:, 1:] >= 0))).flatten()
    return (each * weight).sum() / weight.sum()


def learning_rate(step, steps, peak, warmup=200):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def train(args, tokenizer_file):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    feed = iter(DataLoader(Batches(tokenizer_file, args.seed, args.rows), batch_size=None, num_workers=args.workers,
                           prefetch_factor=8 if args.workers else None, pin_memory=device == "cuda"))
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    config = Gemma2Config(**CONFIG, attn_implementation="eager")
    model = Gemma2ForCausalLM(config).to(device)
    loss_fn = loss_of
    if args.compile == "layers":
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    elif args.compile == "graph":
        loss_fn = torch.compile(loss_of, mode="reduce-overhead", dynamic=False)
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.98), fused=device == "cuda")
    steps, tokens, began, shown = args.steps, 0, time.time(), []
    step = 0
    while step < steps:
        batch = next(feed).to(device, non_blocking=True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, args.lr)
        loss = loss_fn(model, batch)
        loss.backward()
        shown.append(loss.detach().clone())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step == 60:
            loss.item()
            mark = time.time()
        if step == 160 and args.seconds:  # so many steps as fit
            loss.item()
            steps = int(160 + (args.seconds - (time.time() - began)) / (time.time() - mark) * 100)
            print(f"{(time.time() - mark) * 10:.1f} ms a step: {steps} steps", flush=True)
        if step % args.log == 0 or step == steps:
            print(f"step {step} loss {torch.stack(shown).mean():.4f} lr {group['lr']:.2e} {time.time() - began:.0f} s", flush=True)
            shown = []
        if args.look and step % args.look == 0 and step < steps:
            look(model, args.out)
    facts = {"steps": steps, "tokens": steps * args.rows * ROW, "seed": args.seed, "seconds": round(time.time() - began),
             "device": torch.cuda.get_device_name() if device == "cuda" else "CPU"}
    return model, facts


def look(model, out):
    """Accuracy on questions that are neither in the training set nor in the exam."""
    import examine
    plain = Gemma2ForCausalLM(Gemma2Config(**CONFIG, attn_implementation="eager")).to(model.device)
    plain.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in model.state_dict().items()})
    right = examine.accuracy(plain.eval(), examine.Questions(out, world.exam(seed=99)))
    print("  " + examine.line_of_kinds(right), flush=True)


def export(model, out, facts):
    weights = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, out / "model.safetensors", {"format": "pt", **{k: str(v) for k, v in facts.items()}})
    write_json(out / "config.json", CONFIG)
    write_json(out / "generation_config.json", {
        "bos_token_id": BOS, "eos_token_id": [EOS, END_OF_TURN], "pad_token_id": PAD, "do_sample": False})


def write_texts(out):
    with open(out / "exam.jsonl", "w") as f:
        for i in world.exam():
            f.write(json.dumps({"kind": i.kind, "prompt": i.prompt, "chat": i.chat, "answer": i.answer}) + "\n")
    (out / "heldout.txt").write_text(world.SEPARATOR.join(world.heldout_documents()) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seconds", type=float, help="choose the steps so that training takes about this long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--compile", choices=["layers", "graph"], help="torch.compile each layer, or the whole loss with CUDA graphs")
    parser.add_argument("--log", type=int, default=250)
    parser.add_argument("--look", type=int, default=0, help="examine every so many steps")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    make_tokenizer(args.out)
    write_texts(args.out)
    model, facts = train(args, str(args.out / "tokenizer.json"))
    export(model, args.out, facts)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {facts}")


if __name__ == "__main__":
    main()
