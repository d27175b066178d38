"""A model, as the binary runs it: text, dumps, comparisons, the logit lens, changed values."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Union

import numpy as np

from . import pictures
from .binary import PathLike, call, number
from .dump import Dump, is_path

Texts = Union[str, Sequence[str]]
Layers = Union[int, str, Sequence[int]]
Side = Union[str, Mapping[str, Any]]
Record = Dict[str, Any]


class Model:
    """A model: a folder, a GGUF file, ``org/name`` of the Hugging Face Hub, or ``"demo"``, the built-in one.

    ``device`` (``auto``, ``gpu``, ``cpu``) and ``dtype`` (``auto``, ``f32``, ``f16``) say how it runs, ``options`` are further
    options of every call (``["--context", "4096"]``). With ``keep``, the binary's resident process keeps the model loaded from
    one call to the next, and frees it after ten minutes; without, each call loads it.
    """

    def __init__(
        self,
        path: PathLike = "demo",
        *,
        device: Optional[str] = None,
        dtype: Optional[str] = None,
        options: Sequence[str] = (),
        keep: bool = True,
        binary: Optional[PathLike] = None,
    ) -> None:
        self.path = os.path.expanduser(os.fspath(path))
        self.keep = keep
        self.binary = binary
        self._machine = [*_option("--device", device), *_option("--dtype", dtype), *options]

    def __repr__(self) -> str:
        return f"<Model {self.path}>"

    def run(
        self,
        prompt: Optional[str] = None,
        max_tokens: int = 32,
        *,
        ids: Optional[Sequence[int]] = None,
        chat: bool = False,
        system: Optional[str] = None,
        messages: Optional[Sequence[Mapping[str, Any]]] = None,
        set: Texts = (),
        trace: Texts = (),
        layers: Optional[Layers] = None,
        temperature: Optional[float] = None,
        top_k: Optional[int] = None,
        top_p: Optional[float] = None,
        min_p: Optional[float] = None,
        repeat_penalty: Optional[float] = None,
        seed: Optional[int] = None,
        html: Optional[PathLike] = None,
        options: Sequence[str] = (),
    ) -> "Run":
        """Continues ``prompt`` (as it stands, or with ``chat`` as a user's message), ``messages``, or bare ``ids``.

        ``set`` changes values while they are computed (``"ffn_out@3=zero"``: docs/INTERVENTIONS.md), ``trace`` names categories of
        values whose statistics come back as records, ``html`` a file for the report. Findings, such as NaN, are in
        ``Run.anomalies``.
        """
        sampling = [
            *_option("--temperature", temperature),
            *_option("--top-k", top_k),
            *_option("--top-p", top_p),
            *_option("--min-p", min_p),
            *_option("--repeat-penalty", repeat_penalty),
            *_option("--seed", seed),
        ]
        seen = [*_option("--trace", _joined(trace)), *_option("--trace-layers", _layers(layers)), *_option("--html", html)]
        return self._debug(prompt, max_tokens, ids, chat, system, messages, set, [*sampling, *seen, *options])

    def dump(
        self,
        prompt: Optional[str] = None,
        stages: Texts = "all",
        *,
        layers: Optional[Layers] = None,
        max_tokens: int = 0,
        path: Optional[PathLike] = None,
        ids: Optional[Sequence[int]] = None,
        chat: bool = False,
        system: Optional[str] = None,
        messages: Optional[Sequence[Mapping[str, Any]]] = None,
        set: Texts = (),
        options: Sequence[str] = (),
    ) -> Dump:
        """Runs a prompt and keeps its values: those of ``stages`` (``doppler stages`` lists them) in ``layers``.

        The dump is written to ``path`` or, without one, to a temporary file that lives as long as the ``Dump``.
        """
        folder = None
        if path is None:
            folder = tempfile.mkdtemp(prefix="doppler-")
            path = Path(folder) / "dump.safetensors"
        more = ["--dump", os.fspath(path), *_option("--stages", _joined(stages)), *_option("--dump-layers", _layers(layers))]
        try:
            run = self._debug(prompt, max_tokens, ids, chat, system, messages, set, [*more, *options])
            dump = Dump(path)
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if folder is not None:
            weakref.finalize(dump, shutil.rmtree, folder, ignore_errors=True)
        dump.run = run
        return dump

    def lens(self, prompt: Optional[str] = None, max_tokens: int = 1, **arguments: Any) -> "Lens":
        """What each layer would say if it were the last: after the prompt, and after each of ``max_tokens`` tokens but the last.

        Further arguments are those of ``run``.
        """
        return Lens(self.run(prompt, max_tokens, trace="lens", **arguments))

    def compare(
        self,
        *others: Union[Dump, PathLike, "Model"],
        a: Optional[Side] = None,
        b: Optional[Side] = None,
        prompt: Optional[str] = None,
        ids: Optional[Sequence[int]] = None,
        max_tokens: Optional[int] = None,
        stages: Texts = (),
        layers: Optional[Layers] = None,
        isolated: bool = False,
        inject: Texts = (),
        set: Texts = (),
        html: Optional[PathLike] = None,
        options: Sequence[str] = (),
    ) -> "Verdict":
        """Where two runs part, in units of rounding.

        - ``model.compare(dump)``: the dump is the reference, and the model runs its tokens.
        - ``model.compare(dump, dump)``: two dumps; the model only measures what rounding explains.
        - ``model.compare(other_model, prompt=...)``: the other model's run is the reference.
        - ``model.compare(a={"device": "gpu"}, b={"device": "cpu"}, prompt=...)``: the model runs twice.

        A difference is a verdict, not an error.
        """
        dumps: List[str] = []
        kept: List[Dump] = []
        for other in others:
            if isinstance(other, Model):
                other = other.dump(prompt, ids=ids, max_tokens=max_tokens or 0)
                # It has its own tokens now.
                prompt = ids = max_tokens = None
            if isinstance(other, Dump):
                kept.append(other)
                other = other.path
            if not is_path(other):
                raise TypeError(f"compare: expected a Dump, a path or a Model, found {type(other).__name__}")
            dumps.append(os.fspath(other))
        command = ["compare", *dumps, "-m", self.path, "--json", "-"]
        command += [*_option("--a", _side(a)), *_option("--b", _side(b)), *_option("--prompt", prompt), *_option("--token-ids", _numbers(ids))]
        command += [*_option("--max-tokens", max_tokens), *_option("--stages", _joined(stages)), *_option("--layers", _layers(layers))]
        command += ["--isolated"] if isolated else []
        command += [*_repeated("--inject", inject), *_repeated("--set", set), *_option("--html", html), *self._machine, *options]
        return Verdict(call(command, binary=self.binary).document())

    def _debug(
        self,
        prompt: Optional[str],
        max_tokens: int,
        ids: Optional[Sequence[int]],
        chat: bool,
        system: Optional[str],
        messages: Optional[Sequence[Mapping[str, Any]]],
        set: Texts,
        options: Sequence[str],
    ) -> "Run":
        if prompt is None and ids is None and messages is None:
            raise TypeError("expected a prompt, ids or messages")
        command = ["debug", "-m", self.path, "--json", "-", "--max-tokens", str(max_tokens)]
        command += ["--skip-load"] if self.keep else ["--no-resident"]
        command += [*_option("-p", prompt), *_option("--token-ids", _numbers(ids)), *(["--chat"] if chat else []), *_option("--system", system)]
        command += [*_repeated("--set", set), *self._machine, *options]
        if messages is None:
            return Run(call(command, binary=self.binary).records())
        with tempfile.TemporaryDirectory(prefix="doppler-") as folder:
            file = Path(folder) / "messages.json"
            file.write_text(json.dumps([dict(message) for message in messages]), encoding="utf-8")
            return Run(call([*command, "--messages", str(file)], binary=self.binary).records())


class Run:
    """What a run said: text, ids, and every record of it as a dictionary, as ``doppler debug --json`` writes them."""

    def __init__(self, records: Sequence[Record]) -> None:
        #: All of it, in order.
        self.records = list(records)

    def of(self, kind: str) -> List[Record]:
        """The records of a type: ``config``, ``note``, ``trace``, ``sample``, ``lens``, ``anomaly``, ``output``, ``done``."""
        return [record for record in self.records if record.get("type") == kind]

    def _last(self, kind: str) -> Record:
        found = self.of(kind)
        return found[-1] if found else {}

    @property
    def text(self) -> str:
        """What was generated; empty where nothing was, or the model has no tokenizer."""
        return self._last("output").get("text") or ""

    @property
    def ids(self) -> List[int]:
        """The ids that were generated."""
        return list(self._last("output").get("ids") or [])

    @property
    def input_ids(self) -> List[int]:
        """The ids of the prompt."""
        return list(self._last("output").get("input_ids") or self._last("output").get("inputIds") or [])

    @property
    def config(self) -> Record:
        """What was resolved: model, layers, dtype, device."""
        return self._last("config")

    @property
    def done(self) -> Record:
        """Tokens, times, the hash of the logits, why it ended."""
        return self._last("done")

    @property
    def notes(self) -> List[str]:
        """What was done otherwise than asked."""
        return [str(record.get("text", "")) for record in self.of("note")]

    @property
    def anomalies(self) -> List[Record]:
        """What was found in the model's values: NaN, explosions, repeated tokens."""
        return self.of("anomaly")

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Run: {self.text!r}, {len(self.ids)} tokens, {len(self.anomalies)} anomalies>"


class Lens:
    """The logit lens of a run: for each layer and step the likeliest tokens."""

    def __init__(self, run: Run) -> None:
        #: The run.
        self.run = run
        self._records = {(int(record["layer"]), int(record["step"])): record for record in run.of("lens")}

    @property
    def layers(self) -> List[int]:
        """The layers, ascending."""
        return sorted({layer for layer, _ in self._records})

    @property
    def steps(self) -> List[int]:
        """0 for the prompt's last token, n for the n-th generated one."""
        return sorted({step for _, step in self._records})

    def top(self, layer: int, step: int = 0) -> List[Record]:
        """The likeliest tokens of a layer: dictionaries of ``id``, ``text``, ``logit``, ``probability``, the likeliest first."""
        if (layer, step) not in self._records:
            raise KeyError(f"no lens of layer {layer} at step {step}; layers: {self.layers}, steps: {self.steps}")
        return list(self._records[layer, step]["top"])

    def picture(self) -> pictures.Picture:
        """Layers by steps: the likeliest token, coloured by its probability."""
        layers, steps = self.layers, self.steps
        best = [[self.top(layer, step)[0] if (layer, step) in self._records else {} for step in steps] for layer in layers]
        values = np.array([[number(cell.get("probability", 0.0)) for cell in row] for row in best]).reshape(len(layers), len(steps))
        texts = [[_said(cell) for cell in row] for row in best]
        tips = [["  ".join(f"{_said(c)} {number(c['probability']):.3f}" for c in self.top(layer, step)) for step in steps] for layer in layers]
        columns = ["after the prompt" if step == 0 else f"after token {step}" for step in steps]
        return pictures.heatmap("logit lens", [f"L{layer}" for layer in layers], columns, values, texts=texts, tips=tips, shades=values)

    def _repr_html_(self) -> str:
        return self.picture()._repr_html_()

    def __repr__(self) -> str:
        said = ", ".join(f"L{layer} {_said(self.top(layer)[0])}" for layer in self.layers if (layer, 0) in self._records)
        return f"<Lens: {said}>"


class Place(NamedTuple):
    """Where two runs part first."""

    stage: str
    layer: Optional[int]
    token: Optional[int]
    head: Optional[int]
    dim: Optional[int]
    times_floor: float


class Verdict:
    """What a comparison found. ``json`` is the whole report of ``doppler compare --json``."""

    def __init__(self, json: Record) -> None:
        self.json = json

    @property
    def agrees(self) -> bool:
        """Whether there is nothing to find: no difference beyond rounding, no value that one side lacks or that was not judged."""
        return self.json.get("first_divergence") is None and not self.json.get("missing") and not self.json.get("not_judged")

    @property
    def first(self) -> Optional[Place]:
        """The first value, in the order of computation, that differs by more than rounding explains."""
        found = self.json.get("first_divergence")
        if found is None:
            return None
        named = {name: found.get(name) for name in ("stage", "layer", "token", "head", "dim")}
        return Place(times_floor=number(found["times_floor"]), **named)

    @property
    def lines(self) -> List[Record]:
        """A dictionary for each value that was compared: ``stage``, ``layer``, ``times_floor``, ``relative_l2``, ..."""
        return list(self.json.get("stages", []))

    @property
    def missing(self) -> List[Record]:
        """Values that one side lacks."""
        return list(self.json.get("missing", []))

    @property
    def notes(self) -> List[str]:
        """What else there is to know."""
        return [str(note) for note in self.json.get("notes", [])]

    def heatmap(self) -> pictures.Picture:
        """Layers by stages: how far each value is off, in units of rounding. Up to ``allowed`` of them there is no colour."""
        lines = [line for line in self.lines if line.get("part") is None]
        stages = list(dict.fromkeys(str(line["stage"]) for line in lines))
        layers = sorted({line["layer"] for line in lines}, key=lambda layer: -1 if layer is None else layer)
        found = {(line["layer"], line["stage"]): number(line["times_floor"]) for line in lines}
        values = np.array([[found.get((layer, stage), 0.0) for stage in stages] for layer in layers]).reshape(len(layers), len(stages))
        texts = [[pictures.short(found[layer, stage]) if (layer, stage) in found else "" for stage in stages] for layer in layers]
        allowed = number(self.json.get("allowed", 3.0))
        with np.errstate(divide="ignore"):
            # From what is allowed up to a thousand times that; an infinite distance is as red as it gets.
            shades = np.clip(np.log10(np.maximum(values, allowed) / allowed) / 3, 0, 1)
        rows = ["model" if layer is None else f"L{layer}" for layer in layers]
        return pictures.heatmap("times the rounding floor", rows, stages, values, name="times the floor", texts=texts, shades=shades)

    def _repr_html_(self) -> str:
        return f"<p>{_escape(str(self))}</p>{self.heatmap()._repr_html_()}"

    def __str__(self) -> str:
        a, b = self.json.get("a", "A"), self.json.get("b", "B")
        first = self.first
        if first is not None:
            at = first.stage if first.layer is None else f"L{first.layer} {first.stage}"
            where = "".join(f" {name}={value}" for name, value in (("token", first.token), ("head", first.head), ("dim", first.dim)) if value is not None)
            return f"DIFFER {a} and {b}: first at {at}{where}, {first.times_floor:.3g} times the rounding floor"
        if self.agrees:
            return f"AGREE {a} and {b}: {len(self.lines)} values within rounding"
        return f"DIFFER {a} and {b}: {len(self.missing)} stages are missing, {len(self.json.get('not_judged', []))} were not judged"

    def __repr__(self) -> str:
        return f"<Verdict: {self}>"


def _option(name: str, value: Any) -> List[str]:
    return [] if value is None else [name, os.fspath(value) if is_path(value) else str(value)]


def _repeated(name: str, texts: Texts) -> List[str]:
    return [part for text in ([texts] if isinstance(texts, str) else texts) for part in (name, text)]


def _joined(texts: Texts) -> Optional[str]:
    return (texts if isinstance(texts, str) else ",".join(texts)) or None


def _numbers(ids: Optional[Sequence[int]]) -> Optional[str]:
    return None if ids is None else ",".join(str(int(id)) for id in ids)


def _layers(layers: Optional[Layers]) -> Optional[str]:
    if layers is None or isinstance(layers, str):
        return layers
    return str(layers) if isinstance(layers, int) else ",".join(str(int(layer)) for layer in layers)


def _side(side: Optional[Side]) -> Optional[str]:
    return side if side is None or isinstance(side, str) else ",".join(f"{key}={value}" for key, value in side.items())


def _said(cell: Record) -> str:
    return str(cell.get("text") or f"#{cell.get('id', '?')}") if cell else ""


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
