"""What the Hugging Face scripts share and needs no torch: their command line and its errors, the stage table as
`doppler stages --json` gives it, where a model's files are, and numbers spelled as Doppler's lines spell them.

Nothing here knows a family: which stages a model has, and which module computes each, comes from the binary.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROMPT = "The color of the sky is"  # `doppler debug` has the same
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class Failed(Exception):
    """Something that the user can put right; shown as one `Error …` line, exit status 2."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Failed(f"{message} (--help lists the options)")


def parser(description, many_layers=True):
    """A command line with the options that all scripts have."""
    made = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("-m", "--model", required=True, metavar="MODEL",
                      help="a folder with config.json and *.safetensors, a Hub name (org/name[@revision]), or `demo`")
    made.add_argument("--allow-unknown-config", action="store_true",
                      help="go on although config.json has keys that Doppler does not understand")
    if many_layers:
        made.add_argument("--layers", metavar="N,N,…", help="layers: 0,12,-1,mid; all without it")
    return made


def add_prompt(made, dtype="float32"):
    """The options of scripts that run the model."""
    made.add_argument("-p", "--prompt", metavar="TEXT", help="text to read, as it stands; without it a fixed one")
    made.add_argument("--token-ids", metavar="ID,ID,…", help="ids to read, raw: nothing is added")
    made.add_argument("--dtype", default=dtype, choices=["float32", "bfloat16", "float16", "float64"],
                      help=f"arithmetic and weights (default: {dtype})")
    made.add_argument("--device", default="cpu", help="torch device: cpu, cuda, … (default: cpu)")
    return made


def main(made, run):
    """Runs a script; its exit status is Doppler's: 0, 2 when it could not run, 130 when interrupted."""
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        run(made.parse_args(joined(sys.argv[1:])))
        sys.stdout.flush()
    except Failed as error:
        fail(error)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError:
        fail("out of memory: limit --layers and --stages, shorten the prompt, or use --sketch where there is one")
    except Exception as error:  # a defect, or a model that transformers itself cannot run
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            fail(f"out of memory: {first_line(error)}")
        traceback.print_exc()
        fail(f"{type(error).__name__}: {first_line(error)}")


def joined(arguments):
    """`--layers -1,3` as `--layers=-1,3`, which argparse would take for an option."""
    made = []
    for argument in arguments:
        if made and made[-1] in ("--layers", "--tokens", "--dims", "--pairs") and argument[:1] == "-" and argument[1:2].isdigit():
            made[-1] += "=" + argument
        else:
            made.append(argument)
    return made


def fail(message):
    sys.stdout.flush()
    print(f"Error {message}", file=sys.stderr)
    sys.exit(2)


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def need(*names):
    """Imports packages by name; says how to get those that are absent."""
    import importlib

    made = []
    for name in names:
        try:
            made.append(importlib.import_module(name))
        except ImportError as error:
            raise Failed(f"Python has no {name} ({first_line(error)}): pip install {' '.join(names)}") from None
    return made if len(made) > 1 else made[0]


# The binary and its stage table.


def binary():
    """The path of `doppler`: `$DOPPLER`, then the repository's target folder, then PATH."""
    named = os.environ.get("DOPPLER")
    if named:
        if not pathlib.Path(named).is_file():
            raise Failed(f"$DOPPLER is {named}, but there is no such file")
        return named
    ending = ".exe" if os.name == "nt" else ""
    for build in ("release", "debug"):
        path = ROOT / "target" / build / f"doppler{ending}"
        if path.is_file():
            return str(path)
    found = shutil.which("doppler")
    if found is None:
        raise Failed("the `doppler` binary was not found, whose stage table is needed here: build it with "
                     "`cargo build --release`, or put its path into $DOPPLER")
    return found


def ask(*arguments):
    """The JSON that a command of the binary prints."""
    path = binary()
    try:
        done = subprocess.run([path, *arguments, "--json", "-"], capture_output=True, encoding="utf-8")
    except OSError as error:
        raise Failed(f"{path} cannot be run: {error}") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("Error ")]
        raise Failed(lines[0].removeprefix("Error ") if lines else f"{path} {arguments[0]} ended with {done.returncode}")
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise Failed(f"{path} {arguments[0]} printed no JSON ({error}): is it another version?") from None


class Table:
    """The stage table with what a model has of it.

    `layers` is the number of layers, `version` the table's, `rows` name → row as the binary gives it: those that the model
    has and transformers shows. What a cache holds is not among them: there it is what is appended (`k_rope`, `v_proj`) as it is.
    """

    def __init__(self, folder, allow_unknown_config=False):
        allow = ["--allow-unknown-config"] if allow_unknown_config else []
        made = ask("stages", "-m", str(folder), *allow)
        self.version, self.layers = made["stageTable"], made["layers"]
        self.every = {row["name"]: row for row in made["stages"]}
        self.aliases = {alias: row["name"] for row in made["stages"] for alias in row["aliases"]}
        self.rows = {name: row for name, row in self.every.items() if row["present"] and row["category"] != "kv"}

    def modules(self):
        """Stage → Hugging Face module path, as `Capture` takes it."""
        return {name: row["huggingFace"] for name, row in self.rows.items() if row["huggingFace"]}

    def stages(self, text):
        """The stages that `all` or a list of names means, in the table's order."""
        if text is None or text.strip() == "all":
            return [name for name in self.rows if name != "sampled"]
        chosen = set()
        for name in (part.strip() for part in text.split(",")):
            name = self.aliases.get(name, name)
            if name == "all":
                chosen |= self.rows.keys() - {"sampled"}
            elif name not in self.every:
                near = nearest(name, [*self.every, *self.aliases]) or " (`doppler stages` lists them)"
                raise Failed(f"stage: there is no stage `{name}`{near}")
            elif self.every[name]["category"] == "kv":
                raise Failed(f"stage: transformers does not show `{name}`: k_rope and v_proj are what it caches")
            elif name not in self.rows:
                raise Failed(f"stage: this model has no stage `{name}`{nearest(name, self.rows, 'nearest that it has')}")
            else:
                chosen.add(name)
        return [name for name in self.rows if name in chosen]

    def keys(self, stages, layers):
        """Keys of a dump, in the order of computation: `embed_out`, `layer.3.q_proj`."""
        per_layer = [name for name in stages if self.rows[name]["perLayer"]]
        once = [name for name in stages if not self.rows[name]["perLayer"] and name != "sampled"]
        keys = [name for name in once if name == "embed_out"]
        for layer in layers:
            keys += [f"layer.{layer}.{name}" for name in per_layer if layer in self.rows[name]["layers"]]
        return keys + [name for name in once if name != "embed_out"]

    def is_scores(self, key):
        """Whether the value `key` is [heads, tokens, positions], not [tokens, width]."""
        return self.every[key.rsplit(".", 1)[-1]]["shape"].startswith("[heads")


def nearest(name, known, intro="nearest"):
    """` (nearest: a, b, c)`, by edit distance, as the binary chooses them."""
    limit = max(len(name), 6) // 2 + 1
    scored = sorted((edit_distance(name, one), one) for one in known)
    near = [one for distance, one in scored if distance <= limit][:3]
    return f" ({intro}: {', '.join(near)})" if near else ""


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(diagonal + (one != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def positions(text, count, what, of):
    """The indices that a list like `0,-1,mid` means among `count`, ascending, each once; all of them for None."""
    if text is None:
        return list(range(count))
    found = set()
    for part in (part.strip() for part in text.split(",")):
        try:
            index = count // 2 if part == "mid" else int(part)
        except ValueError:
            raise Failed(f"{what}s: expected numbers or `mid` between commas, found `{part}`") from None
        if not -count <= index < count:
            raise Failed(f"{what}s: {of} has {what}s 0 to {count - 1}, so there is no {what} {part}")
        found.add(index % count)
    return sorted(found)


# A model's files.


class Model:
    """Where a model's files are: `name`, `folder` and, from the Hub, `revision`."""

    def __init__(self, spec):
        path = ROOT / "models" / "demo" if spec == "demo" else pathlib.Path(spec)
        self.revision = "local"
        if path.is_dir():
            self.name, self.folder = path.resolve().name, path
        elif path.exists() or spec.count("/") != 1 or spec[0] in "./~":
            raise Failed(f"{spec}: no such folder; give one with config.json and *.safetensors, a Hub name, or `demo`")
        else:
            self.name, _, wanted = spec.partition("@")
            self.folder = snapshot(self.name, wanted or None)
            self.revision = self.folder.name
        # From here on everything is on this machine, and nothing may go and look for more.
        for name in OFFLINE:
            os.environ[name] = "1"


def snapshot(name, revision):
    """The folder of a Hub model: from the cache, or downloaded."""
    hub = need("huggingface_hub")
    patterns = ["config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*",
                "model*.safetensors", "model.safetensors.index.json"]
    wanted = dict(revision=revision, allow_patterns=patterns)
    try:
        folder = pathlib.Path(hub.snapshot_download(name, local_files_only=True, **wanted))
        index = folder / "model.safetensors.index.json"
        shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else ["model.safetensors"]
        if all((folder / file).is_file() for file in ["config.json", *shards]):
            return folder
    except Exception:  # not in the cache: whatever is wrong, the download says it better
        pass
    try:
        return pathlib.Path(hub.snapshot_download(name, **wanted))
    except Exception as error:
        raise Failed(f"{name}: neither a folder nor in the Hub's cache, and not downloaded: {first_line(error)}") from None


# Numbers and lines.


def number(value):
    """An f32 with the fewest digits that give it back: `12.0`, `1e-5`, `NaN`, `-Inf`."""
    import numpy

    value = numpy.float32(value)
    if not numpy.isfinite(value):
        return "NaN" if numpy.isnan(value) else "Inf" if value > 0 else "-Inf"
    if value != 0 and not numpy.float32(1e-4) <= abs(value) < numpy.float32(1e16):
        return numpy.format_float_scientific(value, unique=True, trim="-", exp_digits=1).replace("e+", "e")
    return numpy.format_float_positional(value, unique=True, trim="0")


def significant(value):
    """Six significant digits, then as `number`."""
    value = float(value)
    if value == 0 or not math.isfinite(value):
        return number(value)
    scale = 10.0 ** (5 - min(290, max(-290, math.floor(math.log10(abs(value))))))
    rounded = math.copysign(math.floor(abs(value) * scale + 0.5), value) / scale
    return number(rounded if math.isfinite(rounded) else value)


def padded(value):
    """As `number`, with at least four decimals where there is no exponent."""
    text = number(value)
    whole, point, decimals = text.partition(".")
    return text if "e" in text or not point else f"{whole}.{decimals:0<4}"


def quoted(text):
    """` "text"` on one line, or nothing."""
    return " " + json.dumps(text, ensure_ascii=False) if text else ""


def listed(pairs, spell=padded):
    """`[334=12.2500, 335=…]` from pairs of a name and a value."""
    return "[" + ", ".join(f"{name}={spell(value)}" for name, value in pairs) + "]"


def probe(script, key, token, pairs):
    """`PROBE[script] stage=layer_out layer=3 token=0 values=[334=12.2500, …]`."""
    return f"PROBE[{script}] {named(key)} token={token} values={listed(pairs)}"


def named(key):
    """`stage=q_proj layer=3` from `layer.3.q_proj`."""
    parts = key.split(".")
    return f"stage={parts[-1]} layer={parts[1]}" if len(parts) == 3 else f"stage={key}"
