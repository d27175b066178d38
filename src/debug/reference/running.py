"""Runs Hugging Face models for the scripts: loads them eagerly, reads prompts, generates with a KV cache while a
`Capture` watches, and computes in float64 throughout where that is asked for. Knows no family."""

import contextlib
import pathlib

from common import Failed, PROMPT, first_line, need

torch, transformers, _ = need("torch", "transformers", "safetensors")

from capture import Capture  # noqa: E402  (needs torch)


def load(model, dtype, device="cpu"):
    """The model of a folder with eager attention, its weights turned into `dtype` (a name)."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(model.folder)
        made = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModelForCausalLM)
        made = made.from_pretrained(
            model.folder, config=config, dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True
        )
        return made.to(device).eval()
    except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        raise Failed(f"{model.folder}: transformers {transformers.__version__} cannot load it: {first_line(error)}") from None


def prompt_ids(arguments, model, loaded):
    """The ids to read, and whether they are raw; checked against the model."""
    raw = arguments.token_ids is not None
    if raw and arguments.prompt is not None:
        raise Failed("--prompt and --token-ids exclude each other")
    if raw:
        try:
            ids = [int(part) for part in arguments.token_ids.split(",")]
        except ValueError:
            raise Failed(f"--token-ids: expected numbers between commas, found `{arguments.token_ids}`") from None
    else:
        ids = tokenizer(model).encode(PROMPT if arguments.prompt is None else arguments.prompt)
    config = loaded.config.get_text_config()
    for place, token in enumerate(ids):
        if not 0 <= token < config.vocab_size:
            raise Failed(f"token id: {token} at position {place} is out of range: "
                         f"the model has ids 0 to {config.vocab_size - 1}")
    if not ids:
        raise Failed("prompt: expected at least one token, found none")
    most = config.max_position_embeddings
    if len(ids) > most:
        raise Failed(f"prompt: its {len(ids)} tokens are longer than the {most} positions that the model allows")
    return ids, raw


def tokenizer(model):
    """The tokenizer of tokenizer.json. AutoTokenizer builds another one for some classes, such as LlamaTokenizer."""
    read = transformers.AutoTokenizer
    if (pathlib.Path(model.folder) / "tokenizer.json").is_file():
        read = transformers.PreTrainedTokenizerFast
    try:
        return read.from_pretrained(model.folder, local_files_only=True)
    except Exception as error:
        raise Failed(f"{model.folder}: no tokenizer ({first_line(error)}); give --token-ids") from None


def token_texts(model, ids):
    """Each id's text, where the folder has a tokenizer."""
    try:
        made = tokenizer(model)
    except Failed:
        return [""] * len(ids)
    return [made.decode([token]) for token in ids]


def end_ids(loaded):
    """Ids that end generation, as transformers resolves them."""
    ids = loaded.generation_config.eos_token_id
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def longrope_limit(config):
    """The length beyond which longrope uses its other factors; None without longrope."""
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (found, *found.values()) if isinstance(kind, dict) and kind.get("rope_type") == "longrope"]
    if not kinds:
        return None
    return kinds[0].get("original_max_position_embeddings") or config.original_max_position_embeddings


def empty_cache(config):
    """A cache that keeps every position. Layers that are no attention keep a state, of which the config says the kind; a window
    of that config would be kept alone."""
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    return transformers.DynamicCache(config=config) if kinds else transformers.DynamicCache()


class Generation:
    """A prompt and greedy tokens behind it. Iterating runs the steps: 0 for the prompt, n for the one that reads the
    n-th generated token; the capture then holds the step's values. `chosen` grows on the way.

    `forced` are ids to take in place of the most likely ones. What Hugging Face's `generate` would choose is chosen:
    nothing is masked. The cache keeps every position of every layer, windowed ones too, so that scores are as wide as
    the sequence. Where longrope changes its factors everything is read anew and the last row alone captured.
    """

    def __init__(self, loaded, capture, prompt, tokens, stop=(), forced=None, all_logits=True):
        self.loaded, self.capture, self.prompt, self.tokens = loaded, capture, list(prompt), tokens
        self.stop, self.forced = set(stop), forced
        self.arguments = {} if all_logits else {"logits_to_keep": 1}
        self.chosen = []

    def __iter__(self):
        config = self.loaded.config.get_text_config()
        limit = longrope_limit(config)
        room = config.max_position_embeddings - len(self.prompt) + 1  # the last token need not be read
        tokens = min(self.tokens, room)
        cache, ids, fresh = empty_cache(config), list(self.prompt), list(self.prompt)
        while True:
            read = torch.tensor([fresh], device=self.loaded.device)
            output = self.capture.run(read, past_key_values=cache, use_cache=True, **self.arguments)
            self.choose(output.logits[0, -1], tokens)
            yield len(ids) - len(self.prompt)
            if len(self.chosen) >= tokens or self.chosen[-1] in self.stop:
                return
            ids.append(self.chosen[-1])
            fresh = ids[-1:]
            self.capture.last_only = limit is not None and len(ids) == limit + 1
            if self.capture.last_only:
                cache, fresh = empty_cache(config), ids

    def choose(self, logits, tokens):
        """The lowest id among the highest logits."""
        if len(self.chosen) >= tokens:
            return
        if self.forced is not None:
            self.chosen.append(self.forced[len(self.chosen)])
        elif bool(torch.isnan(logits).any()):
            raise Failed("no token can be chosen: the logits have NaN; with --max-tokens 0 the prompt is read alone")
        else:
            self.chosen.append(int((logits == logits.max()).nonzero()[0]))


def watch(loaded, table, ids, keys, watcher=Capture):
    """One pass over `ids`; the wanted values as float32 numpy, by key."""
    with watcher(loaded, table.modules(), keys) as capture, exactly(loaded):
        wants_logits = any(key in keys for key in ("logits", "logits_final"))
        capture.kept = lambda key, value: plain(value)
        capture.run(torch.tensor([ids], device=loaded.device), use_cache=False, logits_to_keep=0 if wants_logits else 1)
        missing = [key for key in keys if key not in capture.values]
        if missing:
            raise Failed(f"{missing[0]}: the table has it, but no module of the model made it: report this")
        return capture


def plain(value):
    """A float32 numpy copy, from any dtype and device. (`float` would be `double` while `exactly` is open.)"""
    return torch.empty(value.shape, dtype=torch.float32).copy_(value).numpy()


@contextlib.contextmanager
def exactly(loaded):
    """Makes a model in float64 compute in it throughout: norms and softmax of transformers turn to float32 on the way.
    RoPE's tables stay float32: they are part of the model's definition, and Doppler's executors share them too."""
    if loaded.dtype != torch.float64:
        yield
        return
    mode, hooks = Exact(), contextlib.ExitStack()
    with hooks, mode:
        for name, module in loaded.named_modules():
            if name.endswith("rotary_emb"):
                hooks.callback(module.register_forward_pre_hook(lambda *_: mode.pause(True)).remove)
                hooks.callback(module.register_forward_hook(lambda *_: mode.pause(False)).remove)
        yield


class Exact(torch.overrides.TorchFunctionMode):
    """Every conversion to float32 becomes one to float64."""

    def __init__(self):
        super().__init__()
        self.paused = False

    def pause(self, paused):
        self.paused = paused

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.paused:
            if function is torch.Tensor.float:
                function = torch.Tensor.double
            elif function is not torch.empty:
                args = tuple(torch.float64 if value is torch.float32 else value for value in args)
                kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in kwargs.items()}
        return function(*args, **kwargs)
