"""Dumps as NumPy arrays: a reader of safetensors that maps the file and converts a value when it is asked for.

It reads what ``doppler debug --dump`` and the reference scripts write, and executes nothing of a file: a header of JSON,
then numbers.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np

from . import pictures
from .binary import PathLike

#: Stored types: NumPy's type of the bytes. BF16 becomes f32 when it is read.
_TYPES: Dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}

#: Most bytes of a header. That of a dump with a hundred layers has some hundred thousand.
_MAX_HEADER = 100 << 20


class DumpError(ValueError):
    """A file that is no dump, or lacks what was asked for. The text says where, what was expected and what was found."""


class Dump(Mapping[str, np.ndarray]):
    """The values of a run, by name: ``dump["layer.3.ffn_out"]``, ``dump["logits_final"]``.

    A mapping from keys to arrays: ``[tokens, width]``, or ``[heads, tokens, positions]`` for attention scores and
    probabilities. Opening reads the header alone; an array is read when it is asked for.
    """

    def __init__(self, path: PathLike) -> None:
        #: The file.
        self.path = Path(path)
        #: The run that was dumped, where ``Model.dump`` made it.
        self.run: Any = None
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as file:
                header = self._header(file, size)
        except OSError as error:
            raise DumpError(f"{self.path}: {error.strerror or error}") from error
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._wrong("expected `__metadata__` of texts")
        #: What the writer says of the run: model, dtype, device, versions.
        self.metadata: Dict[str, str] = metadata
        if "stage_table" not in metadata:
            raise self._wrong("a safetensors file, but no dump: its metadata have no `stage_table`; `Model.dump` writes dumps")
        self._entries = {key: self._entry(key, about, size) for key, about in header.items()}

    # -- what there is

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self._entries:
            raise self._absent(key)
        return self._read(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    # Two dumps are compared by `compare`, not as mappings.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        of = self.metadata.get("model", "a model")
        return f"<Dump of {of}: {len(self.tokens)} tokens, {len(self.stages)} stages, {len(self)} arrays, {self.path}>"

    @property
    def input_ids(self) -> List[int]:
        """The prompt's ids."""
        return self._ids("input_ids")

    @property
    def generated_ids(self) -> List[int]:
        """The ids that were generated."""
        return self._ids("generated_ids")

    @property
    def tokens(self) -> List[str]:
        """The text of every token of which there may be values; its id where the dump has no texts."""
        ids = self.input_ids + self.generated_ids
        try:
            texts = json.loads(self.metadata.get("tokens", "null"))
        except ValueError:
            texts = None
        if isinstance(texts, list) and len(texts) == len(ids):
            return [str(text) for text in texts]
        return [f"#{id}" for id in ids]

    @property
    def stages(self) -> List[str]:
        """Names of the stages that it has values of, in the file's order, each once."""
        named = (split_key(key) for key in self._entries)
        return list(dict.fromkeys(stage for stage, _, step in named if step is None and stage not in _IDS and "." not in stage))

    def layers(self, stage: str) -> List[int]:
        """The layers that it has ``stage`` of, ascending; none for stages outside layers."""
        named = (split_key(key) for key in self._entries)
        return sorted(layer for name, layer, step in named if name == stage and layer is not None and step is None)

    def array(self, stage: str, layer: Optional[int] = None, step: Optional[int] = None) -> np.ndarray:
        """A value by stage and layer: ``array("ffn_out", 3)``; a negative layer counts from the last.

        ``step`` asks for attention scores of a decode step, which have keys of their own.
        """
        if layer is not None and layer < 0:
            layers = self.layers(stage)
            if -layer > len(layers):
                raise DumpError(f"{self.path}: `{stage}` has {len(layers)} layers, so there is no layer {layer}")
            layer = layers[layer]
        key = stage if layer is None else f"layer.{layer}.{stage}"
        return self[key if step is None else f"step.{step}.{key}"]

    # -- pictures

    def norms(self, stage: str = "layer_out") -> Tuple[List[int], np.ndarray]:
        """The length of each token's row in every layer, as (layers, ``[layers, tokens]``)."""
        layers = self._needed(stage)
        return layers, np.stack([_lengths(self.array(stage, layer)) for layer in layers])

    def differences(self, other: "Dump", stage: str = "layer_out") -> Tuple[List[int], np.ndarray]:
        """How far each token's row of ``other`` is from this one's, over the length of this one's: ``[layers, tokens]``.

        Zero where both rows are the same, also where both are zero.
        """
        layers = [layer for layer in self._needed(stage) if layer in other.layers(stage)]
        if not layers:
            raise DumpError(f"{other.path}: no layer of `{stage}` that {self.path} has too")
        rows = []
        for layer in layers:
            a, b = self.array(stage, layer), other.array(stage, layer)
            if a.shape != b.shape:
                raise DumpError(f"layer {layer} of `{stage}`: {self.path} has {list(a.shape)}, {other.path} has {list(b.shape)}")
            far, length = _lengths(b.astype(np.float64) - a), _lengths(a)
            with np.errstate(divide="ignore", invalid="ignore"):
                rows.append(np.where(far == 0, 0.0, far / length))
        return layers, np.stack(rows)

    def heatmap(self, other: Optional["Dump"] = None, stage: str = "layer_out") -> pictures.Picture:
        """Layers by tokens: the length of each row or, with ``other``, its relative difference from this dump's."""
        if other is None:
            (layers, values), title, name = self.norms(stage), f"{stage}: length of each token's row", "length"
        else:
            (layers, values), title, name = self.differences(other, stage), f"{stage}: relative difference", "difference"
        rows = [f"L{layer}" for layer in layers]
        columns = (self.tokens + ["?"] * values.shape[1])[: values.shape[1]]
        return pictures.heatmap(title, rows, columns, values, name=name)

    def attention(self, layer: int, head: Optional[int] = None) -> pictures.Picture:
        """Token by token, how much each looks at each: a map per head of ``layer``, or of one ``head``."""
        probabilities = self.array("attn_probs", layer)
        if probabilities.ndim != 3:
            raise DumpError(f"{self.path}: `attn_probs` of layer {layer}: expected [heads, tokens, positions], found {list(probabilities.shape)}")
        heads = list(range(probabilities.shape[0]))
        if head is not None:
            if not -len(heads) <= head < len(heads):
                raise DumpError(f"{self.path}: layer {layer} has heads 0 to {len(heads) - 1}, so there is no head {head}")
            heads = [heads[head]]
        tokens = self.tokens
        rows, columns = probabilities.shape[1], probabilities.shape[2]
        labels = (tokens + ["?"] * max(rows, columns))[: max(rows, columns)]
        return pictures.attention(f"attention of layer {layer}", labels[:rows], labels[:columns], probabilities, heads)

    # -- reading

    def _header(self, file: Any, size: int) -> Dict[str, Any]:
        start = file.read(8)
        if len(start) < 8:
            raise self._wrong(f"expected a safetensors file, found {size} bytes")
        length = int.from_bytes(start, "little")
        if length > min(size - 8, _MAX_HEADER):
            raise self._wrong(f"expected a safetensors file, but its header would have {length} bytes of {size}")
        try:
            header = json.loads(file.read(length).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"its header is no JSON: {error}") from error
        if not isinstance(header, dict):
            raise self._wrong("its header is no JSON object")
        self._start = 8 + length
        return header

    def _entry(self, key: str, about: Any, size: int) -> Tuple[str, Tuple[int, ...], int]:
        try:
            stored, shape, (first, last) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
        except (TypeError, KeyError, ValueError) as error:
            raise self._wrong(f"`{key}`: expected dtype, shape and data_offsets") from error
        if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
            raise self._wrong(f"`{key}`: sizes and offsets should be whole numbers, found {about}")
        if stored not in _TYPES:
            raise self._wrong(f"`{key}`: elements of type {stored}; expected one of {', '.join(_TYPES)}")
        bytes_of = math.prod(shape) * np.dtype(_TYPES[stored]).itemsize
        if last - first != bytes_of:
            raise self._wrong(f"`{key}`: {stored} {list(shape)} takes {bytes_of} bytes, but its place has {last - first}")
        if self._start + last > size:
            raise self._wrong(f"`{key}` ends at byte {self._start + last}, but the file has {size}: it was cut off, write it again")
        return stored, shape, first

    def _read(self, key: str) -> np.ndarray:
        stored, shape, first = self._entries[key]
        if math.prod(shape) == 0:
            return np.zeros(shape, np.float32 if stored == "BF16" else _TYPES[stored])
        try:
            array = np.memmap(self.path, _TYPES[stored], "r", self._start + first, shape)
        except (OSError, ValueError) as error:
            raise DumpError(f"{self.path}: `{key}` cannot be read any more: {error}") from error
        if stored == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.view(np.ndarray)

    def _ids(self, key: str) -> List[int]:
        if key not in self._entries:
            return []
        ids = self._read(key)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise self._wrong(f"`{key}`: expected a list of whole numbers, found {ids.dtype} {list(ids.shape)}")
        return [int(id) for id in ids]

    def _needed(self, stage: str) -> List[int]:
        layers = self.layers(stage)
        if not layers:
            raise self._absent(f"layer.*.{stage}")
        return layers

    def _wrong(self, message: str) -> DumpError:
        return DumpError(f"{self.path}: {message}")

    def _absent(self, key: str) -> DumpError:
        stage, layer, _ = split_key(key)
        if layer is not None and self.layers(stage):
            return AbsentValue(f"{self.path}: no `{key}`; layers that have `{stage}`: {self.layers(stage)}")
        return AbsentValue(f"{self.path}: no `{key}`; stages that it has: {', '.join(self.stages) or 'none'}")


class AbsentValue(DumpError, KeyError):
    """A value that a dump does not have."""

    def __str__(self) -> str:
        # KeyError shows its argument in quotes.
        return str(self.args[0])


_IDS = ("input_ids", "generated_ids", "sampled")


def split_key(key: str) -> Tuple[str, Optional[int], Optional[int]]:
    """A key as (stage, layer, step): ``step.2.layer.3.attn_probs`` is ``("attn_probs", 3, 2)``."""
    step = layer = None
    for name in ("step", "layer"):
        head, _, rest = key.partition(".")
        place, _, after = rest.partition(".")
        if head == name and place.isdecimal() and after:
            step, layer = (int(place), layer) if name == "step" else (step, int(place))
            key = after
    return key, layer, step


def _lengths(rows: np.ndarray) -> np.ndarray:
    """The length of each row, in f64: of ``[tokens, width]``, or of ``[heads, tokens, positions]`` over heads too."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim == 3:
        rows = rows.transpose(1, 0, 2).reshape(rows.shape[1], -1)
    return np.sqrt(np.sum(rows * rows, axis=-1))


def is_path(value: Any) -> bool:
    """Whether a value names a file."""
    return isinstance(value, (str, os.PathLike))
