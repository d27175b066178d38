"""Writes a dump of a Hugging Face model, as `doppler debug --dump` writes one: every stage of a prompt and, with
--max-tokens N, of the N - 1 decode steps behind it (greedy, with a KV cache). `doppler compare` reads it.

    python hf_dump.py -m MODEL -o reference.safetensors --max-tokens 5 --floor

--floor adds how far rounding alone carries each row: its L2 distance from the same model in float64.
--sketch stores 64 sums and ten statistics of each row in its place, for big models and long prompts.
"""

import json
import os
import pathlib
import struct
import sys

sys.dont_write_bytecode = True
import common


def run(arguments):
    model = common.Model(arguments.model)
    table = common.Table(model.folder, arguments.allow_unknown_config)
    stages = table.stages(arguments.stages)
    keys = table.keys(stages, common.positions(arguments.layers, table.layers, "layer", "this model"))
    if not keys and stages != ["sampled"]:
        raise common.Failed(f"none of the layers {arguments.layers} has stage {arguments.stages}")
    path = pathlib.Path(arguments.output)
    if not path.parent.is_dir() or path.is_dir():
        raise common.Failed(f"{path}: cannot be written: {'it is a folder' if path.is_dir() else 'no such folder'}")
    if arguments.max_tokens < 0:
        raise common.Failed(f"--max-tokens: expected 0 or more, found {arguments.max_tokens}")
    if arguments.floor and arguments.dtype == "float64":
        raise common.Failed("--floor is the distance to float64, which --dtype float64 has already")
    import running

    loaded = running.load(model, arguments.dtype, arguments.device)
    ids, raw = running.prompt_ids(arguments, model, loaded)
    stop = set() if raw else running.end_ids(loaded)
    record = Record(table, reduced=arguments.sketch, whole=arguments.floor)
    chosen = generate(running, loaded, table, keys, ids, arguments.max_tokens, record, stop=stop)
    metadata = about(running, model, table, loaded, arguments)
    if arguments.floor:
        del loaded
        exact = running.load(model, "float64", arguments.device)
        floors = Floors(record)
        generate(running, exact, table, keys, ids, arguments.max_tokens, floors, stop=stop, forced=chosen)
        metadata["floor"] = "f64"
        record.add(floors)
    arrays = record.arrays()
    arrays |= {"input_ids": as_ids(ids), "generated_ids": as_ids(chosen)}
    if "sampled" in stages:
        arrays["sampled"] = as_ids(chosen)
    write(path, arrays, metadata)
    kinds = [name for name in ("sketch", "floor") if name in metadata]
    print(f"DUMP file={path} values={sum('_ids' not in key for key in arrays)} prompt={len(ids)} "
          f"generated={json.dumps(chosen, separators=(',', ':'))} bytes={path.stat().st_size}"
          + "".join(f" {name}={metadata[name]}" for name in kinds))


def generate(running, loaded, table, keys, ids, tokens, record, **options):
    """Runs all steps, whose values go to `record`; the chosen ids."""
    with running.Capture(loaded, table.modules(), keys, record.take) as capture, running.exactly(loaded):
        all_logits = any(key in keys for key in ("logits", "logits_final"))
        steps = running.Generation(loaded, capture, ids, tokens, all_logits=all_logits, **options)
        record.step, record.seen = 0, set()
        for _ in steps:
            missing = [key for key in keys if key not in record.seen]
            if missing:
                raise common.Failed(f"{missing[0]}: the table has it, but no module of the model made it: report this")
            record.step, record.seen = record.step + 1, set()
    return steps.chosen


class Record:
    """Values of all steps by their keys in the dump: whole, or reduced as they come."""

    def __init__(self, table, reduced, whole):
        self.table, self.reduced, self.whole = table, reduced, whole
        self.pieces, self.others = {}, {}  # key → arrays to join along the tokens
        self.step, self.seen = 0, set()

    def key(self, key):
        """The key in the dump. Scores of decode steps stand alone, as each has one position more."""
        self.seen.add(key)
        return f"step.{self.step}.{key}" if self.step and self.table.is_scores(key) else key

    def take(self, key, value):
        import rows
        import running

        key, value = self.key(key), running.plain(value)
        if self.reduced:
            self.others.setdefault(f"sketch.{key}", []).append(rows.sketch(value))
            self.others.setdefault(f"stats.{key}", []).append(rows.stats(value))
        if self.whole or not self.reduced:
            self.pieces.setdefault(key, []).append(value)

    def add(self, floors):
        self.others |= floors.pieces

    def arrays(self):
        import numpy as np

        made = {} if self.reduced else self.pieces
        # Of a value of rows the tokens come first, of scores and all that is made of them second.
        joined = lambda key, parts: np.concatenate(parts, 1 if self.table.is_scores(key) else 0)  # noqa: E731
        return {key: joined(key, parts) for key, parts in {**made, **self.others}.items()}


class Floors(Record):
    """Distances of a second run's values from those of the first."""

    def __init__(self, first):
        super().__init__(first.table, reduced=False, whole=False)
        self.first = first

    def take(self, key, value):
        import rows

        key = self.key(key)
        made = self.pieces.setdefault(f"floor.{key}", [])
        reference = self.first.pieces[key][len(made)]
        made.append(rows.distances(reference, value.cpu().numpy()))


def as_ids(ids):
    import numpy as np

    return np.array(ids, np.int32)


def about(running, model, table, loaded, arguments):
    """The dump's metadata; `loaded` says what the weights became."""
    transformers, torch = running.transformers, running.torch
    made = {
        "model": model.name,
        "revision": model.revision,
        "dtype": arguments.dtype,
        "device": device(torch, arguments.device),
        "tool": "hf_dump.py",
        "versions": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}",
        "stage_table": str(table.version),
    }
    if arguments.sketch:
        made["sketch"] = "64"
    if arguments.prompt is not None or arguments.token_ids is None:
        made["prompt"] = common.PROMPT if arguments.prompt is None else arguments.prompt
    return made


def device(torch, name):
    return f"{name} ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else name


def write(path, arrays, metadata):
    """A safetensors file with sorted metadata, whole or not at all: a temporary file beside it takes its place."""
    header, end = {"__metadata__": dict(sorted(metadata.items()))}, 0
    for key, array in arrays.items():
        begin, end = end, end + array.nbytes
        kind = {"float32": "F32", "int32": "I32"}[array.dtype.name]
        header[key] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for array in arrays.values():
                out.write(array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise common.Failed(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def options():
    made = common.add_prompt(common.parser(__doc__))
    made.add_argument("-o", "--output", required=True, metavar="FILE", help="the dump")
    made.add_argument("--stages", default="all", metavar="S,S,…", help="stages (`doppler stages` lists them), or `all`")
    made.add_argument("--max-tokens", type=int, default=1, metavar="N",
                      help="tokens to generate; N tokens are N - 1 decode steps (default: 1)")
    made.add_argument("--floor", action="store_true", help="run in float64 too and store each row's rounding floor")
    made.add_argument("--sketch", action="store_true", help="store sketches and statistics in place of the values")
    return made


if __name__ == "__main__":
    common.main(options(), run)
