"""Tests of the Hugging Face scripts on the tiny models and the built-in one, against what was computed elsewhere: the
committed goldens, the same sequences without a cache, formulas in float64, and the `doppler` binary's own dumps.

    python src/debug/reference/test_reference.py        # needs torch, transformers and the binary; a minute

Classes whose names begin with `Plain` need numpy and the binary only.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import common  # noqa: E402

if "DOPPLER" in os.environ:  # some tests run in another folder
    os.environ["DOPPLER"] = os.path.abspath(os.environ["DOPPLER"])

DATA = common.ROOT / "tests" / "data"
MODELS = sorted(path.parent for path in DATA.glob("*/golden.safetensors"))
DEMO = "2,377,447,384,364,1503,363"  # "The color of the sky is"
# The worst relative L2 of any value of any model was measured as 3.4e-7 between a golden and a dump (transformers both
# times, another order of sums), 4.5e-6 between decode steps and a run without a cache (granite attn_probs, one row),
# 5.2e-6 between a dump and the binary's (phi3-long attn_probs, one row). Another CPU may differ by a few times as much.
SAME = {"golden": 3e-6, "uncached": 2e-5, "binary": 2e-5}
LINE = re.compile(r"LAYER_OUT L(\d+) maxAbs=(\S+) rms=(\S+) first=\[(.*)\]")


def shown(values):
    """Keys of the binary's values that transformers shows too: not what caches hold."""
    return {key for key in values if not (key and key.endswith("_cache"))}


def call(script, *arguments):
    """Runs a script's `run` in this process; what it printed."""
    module = __import__(script)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        module.run(module.options().parse_args(common.joined([str(a) for a in arguments])))
    return printed.getvalue().splitlines()


def process(script, *arguments, **environment):
    return subprocess.run([sys.executable, HERE / f"{script}.py", *map(str, arguments)], capture_output=True, encoding="utf-8",
                          env={**os.environ, **environment})


def dump(script_arguments):
    """Values of a dump that hf_dump.py writes, with its metadata under `None`."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "dump.safetensors"
        call("hf_dump", "-o", path, *script_arguments)
        assert os.listdir(folder) == [path.name], "no temporary file stays"
        return read(path)


def read(path):
    """All tensors of a file of f32 and i32, read without the safetensors package."""
    import numpy as np

    blob = pathlib.Path(path).read_bytes()
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    made = {None: header.pop("__metadata__")}
    for key, entry in header.items():
        begin, end = entry["data_offsets"]
        kind = {"F32": "<f4", "I32": "<i4"}[entry["dtype"]]
        made[key] = np.frombuffer(blob[8 + size + begin : 8 + size + end], kind).reshape(entry["shape"])
    return made


def relative(a, b):
    import numpy as np

    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300)


def ids_of(folder):
    return ",".join(map(str, read(folder / "golden.safetensors")["input_ids"]))


class PlainNumbers(unittest.TestCase):
    def test_numbers_are_spelled_as_rust_spells_them(self):
        """Right sides are `{:?}` of the f32, printed by Rust."""
        cases = {12: "12.0", 0.00001: "1e-5", 1e-4: "0.0001", 9.99e-5: "9.99e-5", 1e16: "1e16", 1e15: "1000000000000000.0",
                 1.5e-7: "1.5e-7", -0.0: "-0.0", 1 / 3: "0.33333334", 123456789: "123456790.0", 3.4e38: "3.4e38", 1e-45: "1e-45",
                 float("nan"): "NaN", float("-inf"): "-Inf"}
        self.assertEqual([common.number(value) for value in cases], list(cases.values()))
        self.assertEqual(common.significant(1 / 3), "0.333333")
        self.assertEqual(common.significant(123456789), "123457000.0")
        self.assertEqual(common.significant(0), "0.0")
        self.assertEqual([common.padded(x) for x in (12.25, 1e-5, float("nan"), 0.33333)], ["12.2500", "1e-5", "NaN", "0.33333"])

    def test_positions(self):
        self.assertEqual(common.positions("-1,mid,0,4", 5, "layer", "it"), [0, 2, 4])
        self.assertEqual(common.joined(["--layers", "-1,3", "-m", "x"]), ["--layers=-1,3", "-m", "x"])
        for text in ("5", "-6", "x", ""):
            with self.assertRaises(common.Failed):
                common.positions(text, 5, "layer", "it")


class PlainRows(unittest.TestCase):
    def test_statistics_by_hand(self):
        """The cases of src/cpu/stats.rs."""
        import numpy as np
        import rows

        inf, nan = np.inf, np.nan
        given = np.array([[1, -4, 0, 4, -0.0, 2], [3, -inf, 1, inf, 0, 0], [3, inf, nan, -nan, 1, 1], [nan] * 6], np.float32)
        made = dict(zip(rows.STATS, rows.stats(given).T))
        np.testing.assert_array_equal(made["count"], [6, 6, 6, 6])
        np.testing.assert_array_equal(made["max_abs"], [4, inf, nan, nan])
        np.testing.assert_array_equal(made["max_dim"], [1, 1, 2, 0])
        np.testing.assert_allclose(made["mean"], [0.5, 1, 5 / 3, 0], rtol=1e-6)
        np.testing.assert_allclose(made["rms"], [(37 / 6) ** 0.5, 2.5**0.5, (11 / 3) ** 0.5, 0], rtol=1e-6)
        np.testing.assert_array_equal(made["min"], [-4, 0, 1, 0])
        np.testing.assert_array_equal(made["max"], [4, 3, 3, 0])
        np.testing.assert_array_equal(made["nan"], [0, 0, 2, 6])
        np.testing.assert_array_equal(made["inf"], [0, 2, 1, 0])
        np.testing.assert_array_equal(made["zero"], [2, 2, 0, 0])
        self.assertEqual(rows.stats(np.zeros((2, 0), np.float32)).tolist(), [[0] * 10] * 2)

    def test_sketches_by_their_definition(self):
        """Python's integers against numpy's words; the first word of SplitMix64 is known."""
        import numpy as np
        import rows

        def word(i, mask=(1 << 64) - 1):
            z = (i + 1) * 0x9E3779B97F4A7C15 & mask
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
            z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
            return z ^ z >> 31

        self.assertEqual(word(0), 0xE220A8397B1DCDAF)
        x = np.random.RandomState(1).standard_normal((2, rows.BLOCK + 5)).astype(np.float32)
        x[0, 3], x[1, 4] = np.nan, np.inf
        for place, row in enumerate(x):
            for j in (0, 1, 63):
                plain = sum((1 if word(i) >> j & 1 else -1) * float(v) for i, v in enumerate(row) if np.isfinite(v))
                self.assertAlmostEqual(float(rows.sketch(x)[place, j]), plain, delta=1e-4)

    def test_sketches_estimate_distances(self):
        """Between stages of the goldens that differ by little or by much; 64 signs miss by 9 % on average, 35 % is 4 times that."""
        import numpy as np
        import rows

        worst, count = 0, 0
        for folder in MODELS:
            golden = read(folder / "golden.safetensors")
            layers = [key for key in golden if key and key.endswith("layer_out")]
            for a, b in [(golden[key.replace("_out", "_in")], golden[key]) for key in layers]:
                real = np.linalg.norm(a.astype(np.float64) - b, axis=1)
                estimate = np.sqrt(np.square(rows.sketch(a).astype(np.float64) - rows.sketch(b)).mean(1))
                worst, count = max(worst, np.abs(estimate / real - 1).max()), count + len(real)
        self.assertGreater(count, 500)
        self.assertLess(worst, 0.35)


class PlainWeights(unittest.TestCase):
    def test_statistics_and_offsets(self):
        import numpy as np

        lines = call("hf_weights", "-m", DATA / "gemma2", "--first", 2, "--sha")
        self.assertIn("preset=gemma2 norm.weightOffset=1.0 head=tied", lines[0])
        stored = {line.split()[1]: line for line in lines if line.startswith("WEIGHT")}
        added = {line.split()[1]: line for line in lines if line.startswith("NORM")}
        self.assertEqual(len(added), 3 * 4 + 1)
        value = lambda line, name: re.search(rf" {name}=\[?([^\s@,\]]+)", line)[1]  # noqa: E731
        for name, line in added.items():
            self.assertAlmostEqual(float(value(line, "mean")), float(value(stored[name], "mean")) + 1, delta=1e-5)
            self.assertAlmostEqual(float(value(line, "first")), float(value(stored[name], "first")) + 1, delta=1e-6)
        self.assertFalse(any(line.startswith("NORM") for line in call("hf_weights", "-m", DATA / "llama2")))
        # bf16 decoded against its definition: the upper half of an f32.
        file = DATA / "gemma2" / "model.safetensors"
        blob = file.read_bytes()
        size = int.from_bytes(blob[:8], "little")
        entry = json.loads(blob[8 : 8 + size])["model.embed_tokens.weight"]
        begin, end = (8 + size + place for place in entry["data_offsets"])
        halves = np.frombuffer(blob[begin:end], "<u2")
        numbers = np.frombuffer(b"".join(b"\0\0" + half.tobytes() for half in halves), "<f4").astype(np.float64)
        line = stored["name=model.embed_tokens.weight"]
        self.assertIn(f"maxAbs={common.number(np.abs(numbers).max())}@", line)
        self.assertIn(f" sum={numbers.sum():.9g} ", line)
        self.assertIn("sha256=" + __import__("hashlib").sha256(blob[begin:end]).hexdigest(), line)

    def test_runs_without_torch_and_says_what_is_wrong(self):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "torch.py").write_text("raise ImportError('No module named torch')")
            done = process("hf_weights", "-m", DATA / "llama3", "--tensors", "model.norm.weight", PYTHONPATH=folder)
            self.assertEqual((done.returncode, done.stderr, done.stdout.count("WEIGHT ")), (0, "", 1))
            done = process("hf_dump", "-m", DATA / "llama3", "-o", pathlib.Path(folder) / "x", PYTHONPATH=folder)
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertRegex(done.stderr, r"^Error Python has no torch .*pip install torch transformers safetensors\n$")
        with self.assertRaisesRegex(common.Failed, "none is called `model.nrm.weight` .*nearest: model.norm.weight"):
            call("hf_weights", "-m", DATA / "llama3", "--tensors", "model.nrm.weight")

    def test_a_missing_binary(self):
        done = process("hf_weights", "-m", DATA / "llama3", DOPPLER="/no/such/doppler")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertEqual(done.stderr, "Error $DOPPLER is /no/such/doppler, but there is no such file\n")
        self.assertEqual(process("hf_weights", "-m", DATA / "llama3", "--offset", 0, DOPPLER="/no/such/doppler").returncode, 0)


class Dumps(unittest.TestCase):
    def test_every_model_gives_its_golden_and_the_binary_s_dump(self):
        """Prompt rows against the golden; decode rows against a run of the whole sequence without a cache; the whole
        file against the binary's on its CPU oracle; floors."""
        import numpy as np
        import running
        from capture import Capture

        worst = {"golden": (0, ""), "uncached": (0, ""), "binary": (0, "")}

        def near(kind, what, a, b):
            self.assertEqual(a.shape, b.shape, what)
            distance = relative(a, b)
            worst[kind] = max(worst[kind], (distance, what))
            self.assertLess(distance, SAME[kind], f"{kind} {what}")

        for folder in MODELS:
            golden, ids = read(folder / "golden.safetensors"), ids_of(folder)
            made = dump(["-m", folder, "--token-ids", ids, "--max-tokens", 12, "--floor"])
            floors = {key: made.pop(key) for key in list(made) if key and key.startswith("floor.")}
            self.assertEqual(made["generated_ids"].tolist(), golden["generated_ids"].tolist(), folder.name)
            self.assertEqual(made["input_ids"].tolist(), golden["input_ids"].tolist())
            self.assertEqual({key for key in made if not (key or "").startswith("step.")}, set(golden))
            prompt, steps = len(golden["input_ids"]), 11
            for key in golden.keys() - {None, "input_ids", "generated_ids"}:
                near("golden", f"{folder.name} {key}", made[key] if made[key].ndim == 3 else made[key][:prompt], golden[key])
            for key, floor in floors.items():
                value = made[key.removeprefix("floor.")]
                self.assertEqual(floor.shape, value.shape[:-1], key)
                self.assertTrue(np.isfinite(floor).all() and (floor >= 0).all(), key)
                # Scaled embeddings and a row of one probability can be exact.
                exact = key.rsplit(".", 1)[-1] in ("attn_probs", "embed_out", "layer_in")
                self.assertTrue(exact or (floor > 0).all(), key)
                self.assertLess(np.linalg.norm(floor.astype(np.float64)), 1e-5 * np.linalg.norm(value.astype(np.float64)), key)
            self.assertEqual(set(floors), {f"floor.{key}" for key in made if key and not key.endswith("_ids")})
            # Of a sequence that crosses longrope's limit, those rows alone that were computed with the last factors.
            loaded = running.load(common.Model(str(folder)), "float32")
            limit = running.longrope_limit(loaded.config.get_text_config())
            first = 1 if limit is None or prompt > limit or prompt + steps <= limit else limit + 1 - prompt
            whole = [*golden["input_ids"].tolist(), *golden["generated_ids"].tolist()[:-1]]
            with Capture(loaded, common.Table(folder).modules()) as capture:
                capture.run(running.torch.tensor([whole]), use_cache=False)
            for key, value in capture.values.items():
                if value.ndim == 2:
                    near("uncached", f"{folder.name} {key}", made[key][prompt + first - 1 :], value[prompt + first - 1 :].numpy())
                for step in range(first, steps + 1) if value.ndim == 3 else ():
                    row = prompt + step
                    near("uncached", f"{folder.name} {key}", made[f"step.{step}.{key}"], value[:, row - 1 : row, :row].numpy())
            theirs = self.of_the_binary(folder, ids, 12)
            self.assertEqual(set(made), shown(theirs), folder.name)
            for key in made.keys() - {None, "input_ids", "generated_ids"}:
                near("binary", f"{folder.name} {key}", theirs[key], made[key])
        for kind, (distance, what) in worst.items():
            print(f"worst relative L2 against {kind}: {distance:.1e} ({what})", file=sys.stderr)

    def of_the_binary(self, folder, ids, tokens):
        with tempfile.TemporaryDirectory() as made:
            path = pathlib.Path(made) / "dump"
            arguments = ["--token-ids", ids, "--max-tokens", str(tokens), "--device", "cpu", "--dtype", "f32", "--dump", path]
            run = [common.binary(), "debug", "--no-resident", "-m", folder]
            done = subprocess.run([*run, *arguments], capture_output=True, encoding="utf-8")
            self.assertEqual(done.returncode, 0, done.stderr)
            return read(path)

    def test_every_run_agrees_within_the_floor(self):
        """What `doppler compare` says of transformers' dump and the oracle's run, free and op by op; of dumps alone, with
        the floors that the dump brings."""
        with tempfile.TemporaryDirectory() as made:
            for folder in [*MODELS, "demo"]:
                path, own = pathlib.Path(made) / "dump", pathlib.Path(made) / "own"
                ids = ids_of(folder) if folder != "demo" else DEMO
                call("hf_dump", "-o", path, "-m", folder, "--token-ids", ids, "--max-tokens", 5, "--floor")
                run = ["--device", "cpu", "--dtype", "f32"]
                tell = [common.binary(), "debug", "--no-resident", "-m", folder, "--token-ids", ids, "--max-tokens", "5", "--dump", own]
                subprocess.run([*tell, *run], capture_output=True, check=True)
                for arguments in (["-m", folder, *run], ["-m", folder, *run, "--isolated"], [own]):
                    done = subprocess.run([common.binary(), "compare", path, *arguments], capture_output=True, encoding="utf-8")
                    last = (done.stdout.splitlines() or [done.stderr])[-1]
                    self.assertEqual((done.returncode, last[:12]), (0, "AGREE worst "), f"{folder} {arguments}: {last}")

    def test_text_ends_at_eos_and_the_built_in_model_agrees(self):
        made = dump(["-m", "demo", "--max-tokens", 9])
        self.assertEqual(made["input_ids"].tolist(), [int(i) for i in DEMO.split(",")])
        self.assertLess(len(made["generated_ids"]), 9)
        self.assertIn(made["generated_ids"][-1], (1, 5), "the end-of-sequence id is kept")
        theirs = self.of_the_binary(common.ROOT / "models" / "demo", DEMO, len(made["generated_ids"]))
        self.assertEqual(set(made), shown(theirs))
        self.assertEqual(made["generated_ids"].tolist(), theirs["generated_ids"].tolist())
        self.assertLess(max(relative(theirs[key], made[key]) for key in made if key and "_ids" not in key), SAME["binary"])
        self.assertEqual(made[None]["model"], "demo")
        self.assertLessEqual({"model", "revision", "dtype", "device", "tool", "versions", "stage_table"}, made[None].keys())

    def test_parts_sketches_and_types(self):
        import numpy as np
        import rows

        ids = ids_of(DATA / "qwen3")
        whole = dump(["-m", DATA / "qwen3", "--token-ids", ids, "--max-tokens", 3])
        some = dump(["-m", DATA / "qwen3", "--token-ids", ids, "--max-tokens", 3, "--layers", "-1",
                     "--stages", "q_norm,attn_out,attn_probs,embed_out,sampled"])
        expected = {f"layer.2.{stage}" for stage in ("q_norm", "o_proj", "attn_probs")} | {"embed_out", "sampled"}
        expected |= {f"step.{n}.layer.2.attn_probs" for n in (1, 2)} | {None, "input_ids", "generated_ids"}
        self.assertEqual(set(some), expected)
        for key in expected - {None, "sampled"}:
            np.testing.assert_array_equal(some[key], whole[key], key)
        np.testing.assert_array_equal(some["sampled"], whole["generated_ids"])
        small = dump(["-m", DATA / "qwen3", "--token-ids", ids, "--max-tokens", 3, "--sketch"])
        self.assertEqual(small[None]["sketch"], "64")
        values = [key for key in whole if key and not key.endswith("_ids")]
        kept = {f"{kind}.{key}" for key in values for kind in ("sketch", "stats")}
        self.assertEqual(set(small), kept | {None, "input_ids", "generated_ids"})
        for key in values:
            np.testing.assert_array_equal(small[f"stats.{key}"], rows.stats(whole[key]), key)
            np.testing.assert_allclose(small[f"sketch.{key}"], rows.sketch(whole[key]), rtol=1e-6, atol=1e-30)
        rough = dump(["-m", DATA / "qwen3", "--token-ids", ids, "--dtype", "bfloat16", "--max-tokens", 0])
        self.assertEqual((rough["generated_ids"].tolist(), rough[None]["dtype"]), ([], "bfloat16"))
        self.assertTrue(1e-4 < relative(rough["layer.2.layer_out"], whole["layer.2.layer_out"][:len(rough["input_ids"])]) < 0.1)

    def test_float64_is_float64_throughout(self):
        """Norms and softmax, which transformers computes in float32, by their formulas; a float32 step would show 1e-8."""
        import numpy as np
        import running
        from capture import Capture

        for name in ("gemma3", "llama3", "olmo2", "granite"):
            folder = DATA / name
            loaded = running.load(common.Model(str(folder)), "float64")
            seen = {}
            keep = lambda key, value: seen.update({key: value.numpy().copy()})  # noqa: E731
            ids = running.torch.tensor([[int(i) for i in ids_of(folder).split(",")]])
            with Capture(loaded, common.Table(folder).modules(), keep=keep) as capture, running.exactly(loaded):
                capture.run(ids, use_cache=False)
            x, config = seen["pre_final_norm"], loaded.config.get_text_config()
            self.assertEqual(x.dtype, np.float64)
            weight = loaded.get_submodule("model.norm").weight.detach().numpy() + (1 if name == "gemma3" else 0)
            y = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + config.rms_norm_eps) * weight
            self.assertLess(relative(seen["final_norm"], y), 1e-13, name)
            scores, probs = seen["layer.0.attn_scores"], seen["layer.0.attn_probs"]
            e = np.where(probs > 0, np.exp(scores), 0)
            self.assertLess(relative(probs, e / e.sum(-1, keepdims=True)), 1e-13, name)

    def test_a_failed_write_leaves_what_was_there(self):
        import hf_dump
        import numpy as np

        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "dump"
            path.write_text("before")
            with self.assertRaises(AttributeError):
                hf_dump.write(path, {"a": np.zeros(3, np.float32), "b": BadArray()}, {})
            self.assertEqual((path.read_text(), os.listdir(folder)), ("before", ["dump"]))


class BadArray:
    """Looks like an array until its bytes are wanted."""

    nbytes, shape, dtype = 4, (1,), __import__("types").SimpleNamespace(name="float32")


class Lines(unittest.TestCase):
    def test_layer_out_lines_are_the_binary_s(self):
        """Every line by the binary's own format; its numbers those of the goldens; the binary's own lines."""
        import numpy as np

        for folder in MODELS:
            golden, ids = read(folder / "golden.safetensors"), ids_of(folder)
            lines = call("hf_layer_out", "--model", folder, "--token-ids", ids, "--layers", "0,-1")
            for line in lines:
                layer, most, rms, first = LINE.fullmatch(line).groups()
                value = golden[f"layer.{layer}.layer_out"]
                first = np.array([float(x) for x in first.split(", ")], np.float32)
                self.assertLess(abs(float(most) / np.abs(value).max() - 1), SAME["golden"])
                self.assertLess(abs(float(rms) / np.sqrt(np.square(value.astype(np.float64)).mean()) - 1), SAME["golden"])
                self.assertEqual(len(first), 8)
                self.assertLess(np.linalg.norm(first - value[-1][:8]), SAME["golden"] * np.linalg.norm(value[-1]))
            self.same_as_traced(folder, ids, lines)

    def same_as_traced(self, folder, ids, lines):
        last = int(LINE.fullmatch(lines[-1])[1])
        arguments = ["--token-ids", ids, "--max-tokens", "0", "--device", "cpu", "--dtype", "f32", "--trace-layers", f"0,{last}"]
        done = subprocess.run([common.binary(), "debug", "--no-resident", "-m", folder, *arguments], capture_output=True, encoding="utf-8")
        theirs = [line for line in done.stdout.splitlines() if line.startswith("LAYER_OUT")]
        number = r"-?\d[\d.]*(e-?\d+)?"
        self.assertEqual([re.sub(number, "#", line) for line in theirs], [re.sub(number, "#", line) for line in lines])
        for a, b in zip(theirs, lines):
            self.assertLess(abs(float(LINE.fullmatch(a)[2]) / float(LINE.fullmatch(b)[2]) - 1), SAME["binary"])

    def test_attention_heads_look_where_the_golden_says(self):
        import numpy as np

        for name in ("gemma2", "mistral", "phi3"):
            golden = read(DATA / name / "golden.safetensors")
            lines = call("hf_attn", "-m", DATA / name, "--token-ids", ids_of(DATA / name), "--layers", 1, "--dims", "0,2", "--top", 2)
            heads = [line for line in lines if line.startswith("ATTN_HEAD")]
            probs = golden["layer.1.attn_probs"][:, -1].astype(np.float64)
            self.assertEqual(len(heads), len(probs))
            for line, row in zip(heads, probs):
                self.assertIn(f" visible={(row > 0).sum()} ", line)
                self.assertEqual(int(re.search(r"top=\[(\d+)=", line)[1]), row.argmax())
                entropy = -(row[row > 0] * np.log2(row[row > 0])).sum()
                self.assertAlmostEqual(float(re.search(r"entropy=(\S+)", line)[1]), entropy, delta=1e-4)
            probe = next(line for line in lines if "stage=attn_scores layer=1" in line and line.startswith("PROBE[hf_attn]"))
            found = {name: float(value) for name, value in re.findall(r"(h\d+\.\d+)=([^,\]]+)", probe)}
            self.assertEqual(len(found), 2 * len(probs))
            for head, scores in enumerate(golden["layer.1.attn_scores"][:, -1]):
                self.assertAlmostEqual(found[f"h{head}.2"], float(scores[2]), delta=1e-4)

    def test_rope_pairs_are_those_of_each_family(self):
        for folder in MODELS:
            expected = "neighbours" if folder.name.startswith(("glm4", "cohere")) else "halves"
            if not common.Table(folder).every["q_rope"]["present"]:
                with self.assertRaisesRegex(common.Failed, "no RoPE"):
                    call("hf_rope", "-m", folder, "--token-ids", ids_of(folder), "--tokens", "-1")
                continue
            lines = call("hf_rope", "-m", folder, "--token-ids", ids_of(folder), "--tokens", "-1")
            for line in lines:
                if line.startswith("PAIRING"):
                    halves, neighbours = (float(x) for x in re.search(r"\(i,i\+\d+\)=(\S+) \(2i,2i\+1\)=(\S+)", line).groups())
                    self.assertIn(f"pairs={expected}", line)
                    right, wrong = (neighbours, halves) if expected == "neighbours" else (halves, neighbours)
                    self.assertTrue(right < 1e-6 < 1e-2 < wrong, f"{folder.name} {line}")
        of = lambda name, ids: "\n".join(call("hf_rope", "-m", DATA / name, "--token-ids", ids, "--layers", 0))  # noqa: E731
        self.assertIn("factors=long", of("phi3-long", ids_of(DATA / "phi3-long")))
        self.assertIn("factors=short", of("phi3-long", "1,2,3"))
        self.assertIn("type=linear factor=4.0", of("llama-linear", "1,2"))
        smollm = call("hf_rope", "-m", DATA / "smollm3", "--token-ids", "1,2,3")
        self.assertTrue(any(line.startswith("ROPE L2 type=none") for line in smollm))

    def test_embeddings_are_scaled(self):
        for name, factor in (("gemma", 40**0.5), ("granite", 6), ("llama2", 1), ("gemma3-multimodal", 32**0.5)):
            line = call("hf_embed", "-m", DATA / name, "--token-ids", "5,7", "--tokens", "-1")[0]
            measured, residual = (float(re.search(rf"{key}=(\S+)", line)[1]) for key in ("measured", "residual"))
            self.assertAlmostEqual(measured, factor, delta=1e-5 * factor)
            self.assertLess(residual, 1e-7)
            self.assertIn("head=untied" if name == "llama2" else "head=tied", line)


class Readme(unittest.TestCase):
    def test_its_examples_print_what_it_says(self):
        """Numbers aside, whose last digits are another CPU's own."""
        blocks = re.findall(r"```\n(.*?)```", (HERE / "README.md").read_text(encoding="utf-8"), re.S)
        examples = [example for block in blocks for example in re.split(r"^\$ ", block, flags=re.M) if "python" in example]
        run = [example for example in examples if "\n" in example and "make_tiny" not in example]
        self.assertEqual(len(run), 6)
        shape = lambda line: re.sub(r"-?\d[\d.]*(e-?\d+)?", "#", line.strip())  # noqa: E731
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        for example in run:
            command, *expected = example.strip().splitlines()
            words = command.partition(" | ")[0].split()
            lines = call(pathlib.Path(words[1]).stem, *words[2:])
            lines = [line for line in lines if "grep -v TRACE" not in command or "TRACE" not in line]
            self.assertEqual([shape(line) for line in lines], [shape(line) for line in expected])


class Hub(unittest.TestCase):
    def test_a_cached_model_is_found_by_its_name(self):
        with tempfile.TemporaryDirectory() as home:
            cached = pathlib.Path(home) / "hub" / "models--some--tiny"
            (cached / "refs").mkdir(parents=True)
            (cached / "refs" / "main").write_text("1234567890abcdef")
            (cached / "snapshots").mkdir()
            __import__("shutil").copytree(DATA / "llama3", cached / "snapshots" / "1234567890abcdef")
            arguments = ["--token-ids", "3,5", "--layers", 0]
            done = process("hf_layer_out", "--model", "some/tiny", *arguments, HF_HOME=home, HF_HUB_OFFLINE="1")
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertEqual(done.stdout.splitlines(), call("hf_layer_out", "-m", DATA / "llama3", *arguments))
            path = pathlib.Path(home) / "dump"
            arguments = ["-o", path, "--token-ids", "3,5", "--stages", "embed_out"]
            done = process("hf_dump", "-m", "some/tiny@main", *arguments, HF_HOME=home, HF_HUB_OFFLINE="1")
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            about = read(path)[None]
            self.assertEqual((about["model"], about["revision"]), ("some/tiny", "1234567890abcdef"))


class Errors(unittest.TestCase):
    def test_each_says_what_is_wrong(self):
        with tempfile.TemporaryDirectory() as folder:
            other = pathlib.Path(folder) / "config.json"
            other.write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
            out = pathlib.Path(folder) / "out"
            tiny = ["-m", DATA / "gemma2", "-o", out]
            cases = [
                (["-m", DATA / "none", "-o", out], "none: no such folder"),
                (["-m", folder, "-o", out], "model_type bert is not supported"),
                ([*tiny, "--layers", "7"], "this model has layers 0 to 2, so there is no layer 7"),
                ([*tiny, "--layers", "x"], "found `x`"),
                ([*tiny, "--stages", "q_rop"], r"there is no stage `q_rop` \(nearest: q_rope"),
                ([*tiny, "--stages", "q_norm"], r"this model has no stage `q_norm` \(nearest that it has: q_rope, k_rope, q_proj\)"),
                ([*tiny, "--token-ids", "2,331"], "331 at position 1 is out of range: the model has ids 0 to 330"),
                ([*tiny, "--token-ids", "2,a"], "expected numbers between commas"),
                ([*tiny, "--token-ids", "2", "-p", "x"], "exclude each other"),
                ([*tiny, "--token-ids", ",".join(["2"] * 257)], "257 tokens are longer than the 256 positions"),
                ([*tiny, "--max-tokens", "-1"], "expected 0 or more"),
                ([*tiny, "--what"], "unrecognized arguments: --what"),
                (["-m", DATA / "smollm3", "-o", out, "--layers", 2, "--stages", "q_rope"], "none of the layers 2 has stage q_rope"),
                (["-m", DATA / "llama2", "-o", out], "no tokenizer .*give --token-ids"),
                (["-m", DATA / "gemma2", "-o", out / "x"], "no such folder"),
            ]
            for arguments, message in cases:
                with self.subTest(arguments=arguments), self.assertRaisesRegex(common.Failed, message):
                    call("hf_dump", *arguments)
            self.assertFalse(out.exists())
        with tempfile.TemporaryDirectory() as home:
            done = process("hf_layer_out", "--model", "some/model", HF_HOME=home, HF_HUB_OFFLINE="1")
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertRegex(done.stderr, r"\AError some/model: neither a folder nor in the Hub's cache.*\n\Z")
        done = process("hf_layer_out", "--model", DATA / "gemma2", "--layers", "9")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertRegex(done.stderr, r"\AError layers: .*no layer 9\n\Z")


if __name__ == "__main__":
    unittest.main()
