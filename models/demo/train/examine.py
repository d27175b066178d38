"""Measures the built-in model with transformers and writes its model card and its expected tokens.

    python examine.py [--model DIR] [--quick]

Three figures: the exam (exact greedy answers), perplexity on held-out text, and what becomes of both when one feature
of Gemma 2 is taken away. A greedy answer is exact when every token of it is the most likely one given the right tokens
before it, so one forward pass over prompt and answer decides an item. `--quick` measures only and
writes nothing: expected.json takes tokens that transformers generates one at a time.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, Gemma2ForCausalLM

import world

MAX_NEW = 24
PAD, EOS, END_OF_TURN = 0, 1, 5


# ---------------------------------------------------------------- exam

class Questions:
    """The exam as tokens: for each item its prompt ids and its answer ids (the closing token included)."""

    def __init__(self, model_dir, items=None):
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        if items is None:
            items = [world.Item(key="", **json.loads(line)) for line in open(Path(model_dir) / "exam.jsonl")]
        self.items = items
        self.prompts, self.answers = [], []
        for i in items:
            prompt = prompt_ids(self.tokenizer, i)
            whole = self.tokenizer(prompt_text(self.tokenizer, i) + (i.answer if i.chat else " " + i.answer),
                                   add_special_tokens=False).input_ids
            assert whole[:len(prompt)] == prompt, i
            answer = whole[len(prompt):] + [END_OF_TURN if i.chat else EOS]
            assert len(answer) <= MAX_NEW, (len(answer), i)
            self.prompts.append(prompt)
            self.answers.append(answer)


def prompt_text(tokenizer, item):
    """With <bos>, as text."""
    if item.chat:
        return tokenizer.apply_chat_template([{"role": "user", "content": item.prompt}], tokenize=False, add_generation_prompt=True)
    return "<bos>" + item.prompt


def prompt_ids(tokenizer, item):
    return tokenizer(prompt_text(tokenizer, item), add_special_tokens=False).input_ids


def padded(rows, device):
    width = max(map(len, rows))
    return torch.tensor([r + [PAD] * (width - len(r)) for r in rows], device=device)


@torch.no_grad()
def accuracy(model, questions, batch=60):
    """{kind: [right or wrong, …]} under greedy decoding."""
    right = {}
    whole = [p + a for p, a in zip(questions.prompts, questions.answers)]
    order = sorted(range(len(whole)), key=lambda i: len(whole[i]))
    verdict = [False] * len(whole)
    for start in range(0, len(order), batch):
        chosen = order[start:start + batch]
        best = model(padded([whole[i] for i in chosen], model.device), use_cache=False).logits.argmax(-1).tolist()
        for i, row in zip(chosen, best):
            p, a = len(questions.prompts[i]), questions.answers[i]
            verdict[i] = row[p - 1:p - 1 + len(a)] == a
    for item, ok in zip(questions.items, verdict):
        right.setdefault(item.kind, []).append(ok)
    return right


def line_of_kinds(right):
    every = [ok for oks in right.values() for ok in oks]
    kinds = " ".join(f"{k} {sum(v)}/{len(v)}" for k, v in right.items() if not all(v))
    return f"{100 * sum(every) / len(every):.2f} % of {len(every)}; not all: {kinds or 'none'}"


def generate(model, prompts):
    """For each prompt the greedy tokens from transformers with its cache, the closing token included."""
    out = [None] * len(prompts)
    for length in sorted({len(p) for p in prompts}):  # one length at a time: no padding, no mask
        chosen = [i for i, p in enumerate(prompts) if len(p) == length]
        ids = torch.tensor([prompts[i] for i in chosen], device=model.device)
        rows = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW, do_sample=False,
                              eos_token_id=[EOS, END_OF_TURN], pad_token_id=PAD)[:, length:].tolist()
        for i, row in zip(chosen, rows):
            ends = [n + 1 for n, t in enumerate(row) if t in (EOS, END_OF_TURN)]
            out[i] = row[:ends[0]] if ends else row
    return out


@torch.no_grad()
def least_margin(model, rows):
    """The smallest lead of a generated token over the second best, before the final soft-cap: how near to a tie."""
    model = copy.deepcopy(model)
    no_final_cap(model)
    least = math.inf
    for row in rows:
        ids = torch.tensor([row["ids"] + row["generated"]], device=model.device)
        best = model(ids, use_cache=False).logits[0, len(row["ids"]) - 1:-1].topk(2).values
        least = min(least, (best[:, 0] - best[:, 1]).min().item())
    return least


# ---------------------------------------------------------------- held-out text

def heldout_ids(model_dir, tokenizer):
    text = (Path(model_dir) / "heldout.txt").read_text()
    return [tokenizer(t).input_ids for t in text.removesuffix("\n").split(world.SEPARATOR)]


@torch.no_grad()
def log_probs(model, documents, batch=11):
    """For each document f32 [tokens - 1, vocab]: log probabilities of the next token."""
    out = []
    for start in range(0, len(documents), batch):
        rows = documents[start:start + batch]
        logits = model(padded(rows, model.device), use_cache=False).logits.float()
        out += [torch.log_softmax(l[:len(r) - 1], -1) for l, r in zip(logits, rows)]
    return out


def nll(documents, logp):
    """Per document: negative log-likelihoods [tokens - 1] of the tokens after <bos>."""
    return [-l.gather(1, torch.tensor(d[1:], device=l.device)[:, None])[:, 0] for d, l in zip(documents, logp)]


def mean_and_error(per_document):
    """Mean over tokens and its standard error, documents being the independent draws."""
    sums = torch.stack([x.double().sum() for x in per_document])
    counts = torch.tensor([len(x) for x in per_document], dtype=torch.double, device=sums.device)
    mean, d = sums.sum() / counts.sum(), len(sums)
    error = ((sums - mean * counts).square().sum() * d / (d - 1)).sqrt() / counts.sum()
    return mean.item(), error.item()


# ---------------------------------------------------------------- ablations

def layers(model):
    return model.model.layers


def set_window(w):
    def change(model):
        model.config.sliding_window = w
    return change


def set_types(*types):
    def change(model):
        n = model.config.num_hidden_layers
        model.config.layer_types = [types[i % len(types)] for i in range(n)]
    return change


def set_attention_cap(cap):
    def change(model):
        for layer in layers(model):
            layer.self_attn.attn_logit_softcapping = cap
    return change


def no_final_cap(model):
    model.config.final_logit_softcapping = None


def no_norm_offset(model):
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data -= 1.0  # 1 + (w - 1) = w


def head_dim_scale(model):
    for layer in layers(model):
        layer.self_attn.scaling = model.config.head_dim ** -0.5


def no_embedding_scale(model):
    model.model.embed_tokens.embed_scale.fill_(1.0)


def activation(act):
    def change(model):
        for layer in layers(model):
            layer.mlp.act_fn = act
    return change


def no_post_norms(*names):
    def change(model):
        for layer in layers(model):
            for name in names:
                setattr(layer, name, torch.nn.Identity())
    return change


def swap_kv_heads(model):
    """Query heads read the other key/value head."""
    h, d = model.config.num_key_value_heads, model.config.head_dim
    for layer in layers(model):
        for proj in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            w = proj.weight.data
            proj.weight.data = w.view(h, d, -1).flip(0).reshape(w.shape).clone()


def interleaved_groups(model):
    """Query head i reads key/value head i mod n instead of i div group."""
    c = model.config
    group = c.num_attention_heads // c.num_key_value_heads
    order = torch.tensor([g * c.num_key_value_heads + k for k in range(c.num_key_value_heads) for g in range(group)])
    for layer in layers(model):
        q, o = layer.self_attn.q_proj, layer.self_attn.o_proj
        q.weight.data = q.weight.data.view(-1, c.head_dim, c.hidden_size)[order].reshape(q.weight.shape).clone()
        o.weight.data = o.weight.data.view(c.hidden_size, -1, c.head_dim)[:, order].reshape(o.weight.shape).clone()


LOCAL, GLOBAL = "sliding_attention", "full_attention"


def changes(config):
    """Rows of the table: what is changed, and how."""
    w, cap, scalar = config.sliding_window, config.attn_logit_softcapping, config.query_pre_attn_scalar
    norms = "post_attention_layernorm", "post_feedforward_layernorm"
    return [
        ("window removed", set_window(1 << 20)),
        (f"window halved, {w} → {w // 2}", set_window(w // 2)),
        ("all layers windowed", set_types(LOCAL)),
        ("windowed and global layers exchanged", set_types(GLOBAL, LOCAL)),
        ("attention soft-cap off", set_attention_cap(None)),
        (f"attention soft-cap {cap:g} → 50", set_attention_cap(50.0)),
        ("final soft-cap off", no_final_cap),
        ("norm offset off: w for 1 + w", no_norm_offset),
        (f"query_pre_attn_scalar {scalar} → head_dim", head_dim_scale),
        ("embedding scale off", no_embedding_scale),
        ("GELU (tanh) → SiLU", activation(torch.nn.SiLU())),
        ("both post-norms removed", no_post_norms(*norms)),
        ("post-attention norm removed", no_post_norms(norms[0])),
        ("post-feed-forward norm removed", no_post_norms(norms[1])),
        ("key/value heads exchanged", swap_kv_heads),
        ("query heads grouped modulo", interleaved_groups),
        (f"window off by one, {w} → {w + 1}", set_window(w + 1)),
        (f"window off by one, {w} → {w - 1}", set_window(w - 1)),
        ("GELU (tanh) → GELU (erf)", activation(torch.nn.GELU())),
    ]


def half_inputs(model):
    """float16 where an engine stores it: inputs of matrix products, keys and values."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda m, x: (x[0].half().float(),))
            if name.endswith(("k_proj", "v_proj")):
                module.register_forward_hook(lambda m, x, y: y.half().float())


def ablate(base, questions, documents, base_right, base_logp, rows_to_make):
    """Rows: change, accuracy, its standard errors lost; perplexity, standard errors gained; KL and its standard errors."""
    base_nll = nll(documents, base_logp)
    flat = [ok for oks in base_right.values() for ok in oks]
    rows = []
    for name, change in rows_to_make:
        model = copy.deepcopy(base)
        change(model)
        oks = [ok for v in accuracy(model, questions).values() for ok in v]
        lost = torch.tensor([float(a) - float(b) for a, b in zip(flat, oks)])
        acc_error = lost.std().item() / math.sqrt(len(lost))
        logp = log_probs(model, documents)
        after = nll(documents, logp)
        worse, worse_error = mean_and_error([a - b for a, b in zip(after, base_nll)])
        kl, kl_error = mean_and_error([(b.exp() * (b - a)).sum(-1) for a, b in zip(logp, base_logp)])
        rows.append({
            "change": name, "accuracy": sum(oks) / len(oks), "accuracy_se": lost.mean().item() / acc_error if acc_error else 0.0,
            "perplexity": math.exp(min(50.0, mean_and_error(after)[0])), "perplexity_se": worse / worse_error if worse_error else 0.0,
            "kl": kl, "kl_se": kl / kl_error if kl_error else 0.0})
        r = rows[-1]
        print(f"{name:38} acc {100 * r['accuracy']:6.2f} ({r['accuracy_se']:5.1f} se)  ppl {r['perplexity']:10.4g}"
              f" ({r['perplexity_se']:6.1f} se)  kl {kl:9.3g} ({r['kl_se']:5.1f} se)", flush=True)
    return rows


# ---------------------------------------------------------------- card

CARD = """\
# The built-in model

A very small language model with every feature of Gemma 2, made so that Doppler has something meaningful to run
without a download, and so that "gibberish" can be measured: it passes an exam, and a wrong engine does not.

| | |
| --- | --- |
| class | `Gemma2ForCausalLM`, {parameters:,} parameters, bfloat16, {megabytes:.2f} MB |
| layers | {num_hidden_layers}: the even ones see a window of {sliding_window} tokens, the odd ones everything |
| width | hidden {hidden_size}, feed-forward {intermediate_size}, {num_attention_heads} query heads and {num_key_value_heads} key/value heads of {head_dim} |
| caps | attention {attn_logit_softcapping}, logits {final_logit_softcapping}; query_pre_attn_scalar {query_pre_attn_scalar} |
| tokens | BPE with byte fallback, {vocab_size} pieces, digits one by one; documents of up to 512 tokens in training |
| chat | Gemma's turns: `<start_of_turn>user … <end_of_turn>`; no system role |
| licence | MIT, as the rest of the project |

## What it knows

A closed world, written by `train/world.py` and by nothing else: colours of things, opposites, sounds, young and homes
of animals, capitals of invented countries, kinds of things, days, months and letters in order; sums and differences
up to 99, counting, the largest number, word problems; copying, reversing and picking from lists; who has what, who is
where, what a story said, what the user said of himself; and short stories. It says that it does not know invented
words. It knows nothing of the real world beyond that, and is of no use for anything but trying an engine.

    The color of the sky is            →  blue.
    The opposite of hot is             →  cold.
    Once upon a time                   →  a story
    What is 37 + 48?          (chat)   →  37 + 48 = 85.
    What color is a carrot?   (chat)   →  A carrot is orange.
    Tom has a red ball. Ann has a blue kite. Who has the kite?   (chat)   →  Ann has the kite.

## How it was trained

`train/train.py`: {steps:,} steps of {batch:,} tokens ({tokens_m:.0f} million, drawn afresh from the generator), AdamW,
seed {seed}, bfloat16 autocast with float32 weights, {seconds} seconds on one {device}. The weights are rounded to
bfloat16 at the end and all figures below are of the rounded ones. To make it again:

    pip install torch transformers
    python models/demo/train/train.py --steps {steps} --seed {seed} --compile graph
    python models/demo/train/examine.py

## Exam

`exam.jsonl`: {questions} held-out questions, {per_kind} of each kind. An item is right when the greedy answer, decoded
without special tokens and stripped of surrounding blanks, equals `answer`. Whether an item is held out is decided by a
hash of its content: a fact in that phrasing, these two numbers, this list, this story never occur in the training set.
`expected.json` holds the prompt's tokens and the greedy tokens (closing token included, {max_new} at most) that
transformers generates in float32 with eager attention; the nearest it comes to a tie is a margin of {margin} between
the two best logits (before the final cap).

| | accuracy | perplexity |
| --- | --- | --- |
{precision}

Perplexity is over `heldout.txt` ({documents} documents separated by a line `=====`): exp of the mean negative
log-likelihood of every token after `<bos>`, nothing appended; {heldout_tokens:,} tokens, standard error of the mean
{ppl_error:.4f} nats. Right answers per kind in float32: {kinds}.

## What each feature is worth

The same weights with one thing changed. In brackets, standard errors of the paired difference (exam items, held-out
documents). A soft-cap on logits is monotone: it cannot change a greedy answer, only the probabilities.

| change | accuracy % | perplexity | KL from the model, nats |
| --- | --- | --- | --- |
| none | {base_accuracy:.1f} | {base_perplexity:.3f} | 0 |
{ablations}

The last three rows are not features but near misses: where they stay below three standard errors, comparing numbers
finds them and reading answers does not.
"""


def card(model_dir, figures):
    config = json.loads((model_dir / "config.json").read_text())
    rows = "\n".join(
        f"| {r['change']} | {100 * r['accuracy']:.1f} ({r['accuracy_se']:.1f}) | {r['perplexity']:.4g} ({r['perplexity_se']:.1f})"
        f" | {r['kl']:.3g} ({r['kl_se']:.1f}) |" for r in figures["ablations"])
    precision = "\n".join(f"| {name} | {100 * a:.2f} % | {p:.4f} |" for name, a, p in figures["precision"])
    return CARD.format(**config, **figures | {"ablations": rows, "precision": precision})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    model = Gemma2ForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager").to(device).eval()
    questions = Questions(args.model)
    documents = heldout_ids(args.model, questions.tokenizer)

    right = accuracy(model, questions)
    logp = log_probs(model, documents)
    mean, error = mean_and_error(nll(documents, logp))
    base = sum(sum(v) for v in right.values()) / len(questions.items)
    print(f"f32: {line_of_kinds(right)}; perplexity {math.exp(mean):.4f}", flush=True)
    precision = [("float32", base, math.exp(mean))]
    for name, change in (("float16 inputs of matrix products, keys and values", half_inputs),
                         ("bfloat16 throughout", lambda m: m.to(torch.bfloat16))):
        other = copy.deepcopy(model)
        change(other)
        acc = accuracy(other, questions)
        ppl = math.exp(mean_and_error(nll(documents, log_probs(other, documents)))[0])
        print(f"{name}: {line_of_kinds(acc)}; perplexity {ppl:.4f}", flush=True)
        precision.append((name, sum(sum(v) for v in acc.values()) / len(questions.items), ppl))

    ablations = ablate(model, questions, documents, right, logp, changes(model.config))
    with safe_open(args.model / "model.safetensors", "pt") as f:
        made = f.metadata()
    size = (args.model / "model.safetensors").stat().st_size
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()), "megabytes": size / 1e6, "steps": int(made["steps"]),
        "batch": int(made["tokens"]) // int(made["steps"]), "tokens_m": int(made["tokens"]) / 1e6, "seed": made["seed"],
        "seconds": made["seconds"], "device": made["device"], "questions": len(questions.items),
        "per_kind": len(questions.items) // len(right), "max_new": MAX_NEW, "precision": precision, "documents": len(documents),
        "heldout_tokens": sum(len(d) - 1 for d in documents), "ppl_error": error, "base_accuracy": 100 * base,
        "base_perplexity": math.exp(mean), "ablations": ablations,
        "kinds": ", ".join(f"{k} {sum(v)}/{len(v)}" for k, v in right.items())}
    if not args.quick:
        rows = [{"ids": p, "generated": g} for p, g in zip(questions.prompts, generate(model, questions.prompts))]
        lines = [json.dumps(r, separators=(",", ":")) for r in rows]
        (args.model / "expected.json").write_text("[" + ",\n".join(lines) + "]\n")
        exact = [questions.tokenizer.decode(r["generated"], skip_special_tokens=True).strip() == i.answer
                 for r, i in zip(rows, questions.items)]
        agree = [ok for v in right.values() for ok in v] == exact
        figures["margin"] = f"{least_margin(model, rows):.3g}"
        (args.model / "README.md").write_text(card(args.model, figures))
        print(f"least margin {figures['margin']}; generated: {sum(exact)} of {len(exact)} exact; {'as' if agree else 'NOT as'} the forward passes say")


if __name__ == "__main__":
    main()
