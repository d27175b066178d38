"""Prints the tensors of a model's safetensors files: shapes, dtypes, statistics, norm weights as the model applies them.

    python hf_weights.py -m MODEL --tensors '*norm*' --sha --first 4

CONFIG  what Doppler resolved: the offset added to norm weights, and where the output head comes from
WEIGHT  one tensor as stored; `sum` in float64 over its finite elements, `sha256` (--sha) of its bytes in the file
NORM    the same norm weights with the offset added, when it is not 0 (Gemma multiplies by 1 + w)

Needs numpy, neither torch nor transformers. Without the `doppler` binary give --offset.
"""

import fnmatch
import hashlib
import json
import struct
import sys

sys.dont_write_bytecode = True
import common

BLOCK = 1 << 22  # elements decoded at once
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def run(arguments):
    model = common.Model(arguments.model)
    np = common.need("numpy")
    tensors = read_headers(model.folder)
    names = chosen(arguments.tensors, tensors)
    offset = arguments.offset
    if offset is None:
        allow = ["--allow-unknown-config"] if arguments.allow_unknown_config else []
        config = common.ask("inspect", str(model.folder), *allow)["config"]
        offset = config["norm"].get("weightOffset", 0.0)  # layer norms have none
        stored = [name for name in tensors if name.endswith(("lm_head.weight", "embed_out.weight"))]
        head = "tied" if config["tieWordEmbeddings"] else stored[0] if stored else "absent"
        beside = f" (stored too, and not read: {stored[0]})" if config["tieWordEmbeddings"] and stored else ""
        print(f"CONFIG preset={config['preset']} norm.weightOffset={common.number(offset)} head={head}{beside}")
    for name in names:
        show(np, name, tensors[name], offset, arguments)


def read_headers(folder):
    """Name → (file, dtype, shape, place of the first byte, bytes) of every tensor."""
    tensors = {}
    files = sorted(folder.glob("*.safetensors"))
    if any(file.name.startswith("model") for file in files):
        files = [file for file in files if file.name.startswith("model")]  # not what lies beside, such as a dump
    if not files:
        raise common.Failed(f"{folder}: no *.safetensors files")
    for file in files:
        try:
            with open(file, "rb") as opened:
                (size,) = struct.unpack("<Q", opened.read(8))
                header = json.loads(opened.read(size))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                tensors[name] = (file, entry["dtype"], entry["shape"], 8 + size + begin, end - begin)
        except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError, OverflowError) as error:
            raise common.Failed(f"{file}: not a safetensors file ({common.first_line(error)})") from None
    return dict(sorted(tensors.items()))


def chosen(text, tensors):
    if text is None:
        return list(tensors)
    names = []
    for pattern in (part.strip() for part in text.split(",")):
        found = [name for name in tensors if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise common.Failed(f"tensors: none is called `{pattern}`{common.nearest(pattern, tensors)}")
        names += [name for name in found if name not in names]
    return names


def show(np, name, tensor, offset, arguments):
    file, dtype, shape, place, size = tensor
    text = f"name={name} dtype={dtype} shape={json.dumps(shape, separators=(',', ':'))}"
    count = 1
    for length in shape:
        count *= length
    sha = f" sha256={digest(file, place, size)}" if arguments.sha else ""
    if dtype not in SIZES or count * SIZES[dtype] != size:
        print(f"WEIGHT {text} bytes={size} (not decoded){sha}")
        return
    stats, first = reduce(np, tensor, count, 0.0, arguments.first)
    values = f" first=[{', '.join(common.number(x) for x in first)}]" if arguments.first else ""
    print(f"WEIGHT {text} {spelled(stats, shape)} sum={stats['sum']:.9g}{values}{sha} file={file.name}")
    if len(shape) == 1 and "norm" in name and offset != 0:
        stats, first = reduce(np, tensor, count, offset, arguments.first)
        values = f" first=[{', '.join(common.number(x) for x in first)}]" if arguments.first else ""
        print(f"NORM name={name} offset={common.number(offset)} {spelled(stats, shape)}{values}")


def digest(file, place, size):
    made = hashlib.sha256()
    with open(file, "rb") as opened:
        opened.seek(place)
        while size > 0:
            block = opened.read(min(size, 1 << 24))
            if not block:
                raise common.Failed(f"{file}: shorter than its header says")
            made.update(block)
            size -= len(block)
    return made.hexdigest()


def reduce(np, tensor, count, offset, first):
    """Statistics of a tensor's elements plus `offset`, decoded to float32 in blocks, and its first elements."""
    import rows

    file, dtype, _, place, _ = tensor
    total = dict(count=0, sum=0.0, squares=0.0, finite=0, nan=0, inf=0, zero=0, min=0.0, max=0.0, place=0, rank=-1, max_abs=0.0)
    leading = []
    for start in range(0, count, BLOCK):
        values = decode(np, file, dtype, place, start, min(BLOCK, count - start))
        values = (values.astype(np.float64) + offset).astype(np.float32) if offset else values
        leading += values[: max(0, first - len(leading))].tolist()
        one = dict(zip(rows.STATS, rows.stats(values.reshape(1, -1))[0].tolist()))
        numbers = values[np.isfinite(values)].astype(np.float64)
        if len(numbers):
            low, high = one["min"], one["max"]
            total["min"] = low if total["finite"] == 0 else min(total["min"], low)
            total["max"] = high if total["finite"] == 0 else max(total["max"], high)
        rank = (one["nan"] > 0, one["inf"] > 0, one["max_abs"] if np.isfinite(one["max_abs"]) else 0.0)
        if total["rank"] == -1 or rank > total["rank"]:
            total.update(rank=rank, place=start + int(one["max_dim"]), max_abs=one["max_abs"])
        total["count"] += len(values)
        total["finite"] += len(numbers)
        total["sum"] += float(numbers.sum())
        total["squares"] += float((numbers * numbers).sum())
        for name in ("nan", "inf", "zero"):
            total[name] += int(one[name])
    return total, leading


def decode(np, file, dtype, place, start, count):
    """Elements `start`… of a tensor as float32."""
    size = SIZES[dtype]
    kind = {"BF16": "<u2", "BOOL": "u1"}.get(dtype, f"<{dtype[0].lower()}{size}")
    raw = np.fromfile(file, dtype=kind, count=count, offset=place + start * size)
    if len(raw) != count:
        raise common.Failed(f"{file}: shorter than its header says")
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return raw.astype(np.float32)


def spelled(stats, shape):
    where = f"@d{stats['place']}"
    if len(shape) == 2 and shape[1]:
        where = f"@r{stats['place'] // shape[1]},c{stats['place'] % shape[1]}"
    n = max(stats["finite"], 1)
    mean, rms = stats["sum"] / n, (stats["squares"] / n) ** 0.5
    return (f"maxAbs={common.number(stats['max_abs'])}{where} mean={common.significant(mean)} "
            f"rms={common.significant(rms)} min={common.number(stats['min'])} max={common.number(stats['max'])} "
            f"nan={stats['nan']} inf={stats['inf']} zero={stats['zero']}")


def options():
    made = common.parser(__doc__, many_layers=False)
    made.add_argument("--tensors", metavar="GLOB,…", help="names or patterns such as 'model.layers.0.*'; all without it")
    made.add_argument("--sha", action="store_true", help="print the SHA-256 of each tensor's bytes")
    made.add_argument("--first", type=int, default=0, metavar="N", help="print the first N elements")
    made.add_argument("--offset", type=float, metavar="X", help="what is added to norm weights; without it the binary says")
    return made


if __name__ == "__main__":
    common.main(options(), run)
