"""The Python door, from outside: with the binary that DOPPLER names, on the built-in model and the CPU oracle."""

import ast
import base64
import json
import os
import re
import struct
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml
import zlib
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from doppler_llm import DopplerError, Dump, DumpError, Model, find_binary  # noqa: E402
from doppler_llm import pictures  # noqa: E402
from doppler_llm.binary import call  # noqa: E402

PROMPT = "The color of the sky is"
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "python" / "examples" / "first.ipynb"


def model(path="demo", **arguments):
    """A model that leaves no process behind."""
    return Model(path, device="cpu", keep=False, **arguments)


def resident(test):
    """Environment for models that are kept loaded, by a process that ends with the test."""
    folder = tempfile.TemporaryDirectory(prefix="dr-")
    test.addCleanup(folder.cleanup)
    keeping = mock.patch.dict(os.environ, {"DOPPLER_RESIDENT_DIR": folder.name})
    keeping.start()
    test.addCleanup(keeping.stop)
    test.addCleanup(call, ["resident", "stop"])


def safetensors(tensors, metadata=None, header=None):
    """Bytes of a file: name to (dtype, shape, bytes)."""
    entries, data = {"__metadata__": {"stage_table": "1"} if metadata is None else metadata}, b""
    for name, (dtype, shape, content) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(entries if header is None else header).encode()
    return struct.pack("<Q", len(text)) + text + data


def parsed(picture):
    """Each SVG of a picture as a tree: it must be well-formed."""
    return [xml.fromstring(svg) for svg in picture.svgs]


def tags(tree, name):
    return tree.findall(f".//{{http://www.w3.org/2000/svg}}{name}")


class Binary(unittest.TestCase):
    def test_the_binary_is_found_or_the_error_says_where_it_was_looked_for(self):
        self.assertTrue(find_binary().is_file())
        with mock.patch.dict(os.environ, {"DOPPLER": "/no/such/doppler"}):
            with self.assertRaisesRegex(DopplerError, "DOPPLER=/no/such/doppler: there is no program"):
                find_binary()
        with mock.patch.dict(os.environ, {"DOPPLER": "", "PATH": ""}), mock.patch("doppler_llm.binary._built", return_value=[Path("/x/doppler")]):
            with self.assertRaisesRegex(DopplerError, "PATH, /x/doppler.*cargo xtask install"):
                find_binary()

    def test_errors_are_the_binary_s_own_words(self):
        with self.assertRaisesRegex(DopplerError, "no such folder; give one with config.json") as failed:
            model("no/such/model").run(PROMPT)
        self.assertEqual(failed.exception.code, 2)
        self.assertIn("no/such/model", failed.exception.command)
        with self.assertRaisesRegex(DopplerError, "nearest.*layer_out"):
            model().dump(PROMPT, stages="layer_uot")
        with self.assertRaisesRegex(DopplerError, "ffn_out@9"):
            model().run(PROMPT, set="ffn_out@9=zero")
        with self.assertRaises(TypeError):
            model().run()


class Running(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = model()
        cls.dump = cls.model.dump(PROMPT, stages=["layer_out", "ffn_out", "attn_probs"], max_tokens=2)

    def test_a_run_says_what_the_command_line_says(self):
        run = self.model.run(PROMPT, 3, trace="layer", layers=[3])
        self.assertEqual((run.text, len(run.ids), run.anomalies), (" blue.", 3, []))
        self.assertEqual((run.config["model"], run.done["tokens"], len(run.input_ids)), ("demo", 3, 7))
        # The numbers that a run shows are those that it dumps.
        first = next(record["first"] for record in run.records if record["type"] == "layerOut" and record["step"] == 0)
        self.assertEqual(first, [float(x) for x in map(str, self.dump["layer.3.layer_out"][6][:8])])
        self.assertEqual(self.model.run(ids=run.input_ids, max_tokens=3).ids[0], run.ids[0])
        changed = self.model.run(PROMPT, 3, set=["ffn_out@2=zero", "ffn_out@3=zero"])
        self.assertIn("ffn_out", changed.config["edited"])
        chat = self.model.run("What color is the sky?", 2, chat=True)
        talk = self.model.run(messages=[{"role": "user", "content": "What color is the sky?"}], max_tokens=2)
        self.assertEqual((chat.input_ids, chat.ids), (talk.input_ids, talk.ids))

    def test_dumps_are_arrays(self):
        dump = self.dump
        self.assertEqual((dump.tokens[0], "".join(dump.tokens[7:])), ("<bos>", dump.run.text))
        self.assertEqual(len(dump.input_ids), 7)
        self.assertEqual(set(dump.stages), {"layer_out", "ffn_out", "attn_probs"})
        layers = dump.layers("layer_out")
        self.assertEqual(layers, list(range(dump.run.config["layers"])))
        self.assertEqual(dump.array("layer_out", -1).shape, (8, dump.run.config["hidden"]))
        self.assertTrue(np.array_equal(dump.array("layer_out", -1), dump[f"layer.{layers[-1]}.layer_out"]))
        probabilities = dump.array("attn_probs", 2)
        self.assertEqual(probabilities.shape[1:], (7, 7))
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
        self.assertTrue((np.triu(probabilities[0], 1) == 0).all())
        np.testing.assert_allclose(dump.array("attn_probs", 2, step=1).sum(axis=-1), 1, atol=1e-5)
        with self.assertRaisesRegex(DumpError, "layers that have `ffn_out`"):
            dump["layer.99.ffn_out"]
        with self.assertRaisesRegex(KeyError, "no `q_proj`; stages that it has: .*ffn_out"):
            dump["q_proj"]

    def test_pictures_show_what_the_arrays_have(self):
        picture = self.dump.heatmap()
        layers, norms = self.dump.norms()
        self.assertEqual(norms.shape, (len(layers), 8))
        np.testing.assert_allclose(norms[3], np.linalg.norm(self.dump["layer.3.layer_out"].astype(np.float64), axis=1))
        [tree] = parsed(picture)
        self.assertEqual(len(tags(tree, "rect")), norms.size)
        texts = ["".join(text.itertext()) for text in tags(tree, "text")]
        self.assertIn(pictures.short(norms[3, 2]), texts)
        self.assertIn("L3", texts)
        heads = self.dump.attention(2)
        self.assertEqual(len(parsed(heads)), self.dump["layer.2.attn_probs"].shape[0])
        self.assertEqual(len(parsed(self.dump.attention(2, head=-1))), 1)
        tips = ["".join(tip.itertext()) for tip in tags(parsed(heads)[0], "title")]
        self.assertIn(f"'<bos>' looks at '<bos>': {self.dump['layer.2.attn_probs'][0, 0, 0]:.3f}", tips)
        self.assertIn("<figure", heads._repr_html_())
        with self.assertRaisesRegex(DumpError, "no head 9"):
            self.dump.attention(2, head=9)

    def test_a_comparison_names_what_was_changed(self):
        stages = ["layer_in", "ffn_out", "layer_out"]
        right = self.model.dump(PROMPT, stages=stages)
        wrong = self.model.dump(PROMPT, stages=stages, set="ffn_out@3=scale:1.01")
        self.assertTrue(self.model.compare(right, stages=stages).agrees)
        verdict = self.model.compare(right, wrong)
        self.assertFalse(verdict.agrees)
        self.assertEqual((verdict.first.stage, verdict.first.layer), ("ffn_out", 3))
        self.assertGreater(verdict.first.times_floor, 3)
        self.assertRegex(str(verdict), "^DIFFER .* first at L3 ffn_out")
        parsed(verdict.heatmap())
        layers, far = right.differences(wrong)
        self.assertTrue((far[:3] == 0).all() and (far[3:] > 0).all(), far)
        parsed(right.heatmap(wrong))
        both = self.model.compare(a="dtype=f32", b={"dtype": "f16"}, prompt=PROMPT, stages="layer_out", options=["--floor", "dumps"])
        self.assertEqual({line["stage"] for line in both.lines if line["part"] is None}, {"layer_out"})

    def test_the_lens_ends_in_what_is_said(self):
        lens = self.model.lens(PROMPT, max_tokens=2)
        self.assertEqual(lens.top(lens.layers[-1])[0]["id"], lens.run.ids[0])
        [tree] = parsed(lens.picture())
        self.assertEqual(len(tags(tree, "rect")), len(lens.layers) * len(lens.steps))
        with self.assertRaisesRegex(KeyError, "layers:"):
            lens.top(99)

    def test_the_notebook_runs(self):
        resident(self)
        shown, names = [], {}
        for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "code":
                continue
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            with mock.patch("builtins.print", lambda *texts: shown.append(" ".join(map(str, texts)))):
                exec(compile(tree, str(NOTEBOOK), "exec"), names)
                value = eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None
            if hasattr(value, "_repr_html_"):
                shown.append(value._repr_html_())
        self.assertIn(PROMPT + " blue.", shown)
        self.assertEqual(sum("<svg" in text for text in shown), 5)
        self.assertEqual((names["verdict"].first.stage, names["verdict"].first.layer), ("ffn_out", 3))

    def test_the_readmes_say_what_works(self):
        resident(self)
        for document in (ROOT / "python" / "README.md", ROOT / "README.md"):
            blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
            self.assertTrue(blocks, document)
            names, said = {}, []
            with mock.patch("builtins.print", lambda *texts: said.extend(texts)):
                for block in blocks:
                    exec(compile(block, str(document), "exec"), names)
            self.assertEqual(names["dump"]["layer.3.layer_out"].shape[0], 7)
            if said:
                self.assertEqual((said[0], names["verdict"].first.layer), (" blue.", 2))


class Reading(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "x.safetensors"

    def read(self, content):
        self.path.write_bytes(content)
        return Dump(self.path)

    def test_every_stored_type(self):
        numbers = np.array([[1.0, -2.5, 65504.0], [0.0, -0.0, 3.140625]], np.float32)
        bf16 = (numbers.view(np.uint32) >> 16).astype("<u2")
        dump = self.read(
            safetensors(
                {
                    "embed_out": ("F32", [2, 3], numbers.tobytes()),
                    "layer.0.layer_in": ("BF16", [2, 3], bf16.tobytes()),
                    "layer.0.layer_out": ("F16", [2, 3], numbers.astype("<f2").tobytes()),
                    "layer.1.layer_out": ("F64", [0, 3], b""),
                    "input_ids": ("I64", [2], np.array([5, 6], "<i8").tobytes()),
                }
            )
        )
        self.assertEqual(dump["embed_out"].tolist(), numbers.tolist())
        self.assertEqual(dump["layer.0.layer_in"].tolist(), (bf16.astype(np.uint32) << 16).view(np.float32).tolist())
        self.assertEqual(dump["layer.0.layer_in"].dtype, np.float32)
        self.assertEqual(dump.array("layer_out", 0).tolist(), numbers.astype(np.float16).tolist())
        self.assertEqual(dump["layer.1.layer_out"].shape, (0, 3))
        self.assertEqual((dump.input_ids, dump.tokens, dump.layers("layer_out")), ([5, 6], ["#5", "#6"], [0, 1]))

    def test_broken_files_are_explained(self):
        good = safetensors({"embed_out": ("F32", [1, 2], bytes(8))})

        def entry(**about):
            return safetensors({}, header={"__metadata__": {"stage_table": "1"}, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **about}}) + bytes(4)

        for content, expected in [
            (b"", "found 0 bytes"),
            (good[:-1], "it was cut off"),
            (b"\xff" * 8 + good[8:], "its header would have"),
            (struct.pack("<Q", 4) + b"nope", "no JSON"),
            (struct.pack("<Q", 2) + b"[]", "no JSON object"),
            (safetensors({}, metadata={}), "no `stage_table`"),
            (safetensors({}, metadata={"a": 1}), "of texts"),
            (entry(dtype="F8_E4M3"), "elements of type F8_E4M3"),
            (entry(shape=[2]), "takes 8 bytes, but its place has 4"),
            (entry(shape=[-1]), "whole numbers"),
            (entry(data_offsets=[0, True]), "whole numbers"),
            (entry(data_offsets=4), "expected dtype, shape and data_offsets"),
        ]:
            with self.subTest(expected), self.assertRaisesRegex(DumpError, expected):
                self.read(content)
        with self.assertRaisesRegex(DumpError, "No such file"):
            Dump(self.path.with_name("none"))

    def test_large_maps_are_images(self):
        values = np.linspace(0, 1, 100 * 90).reshape(1, 100, 90)
        values[0, 0, 0] = np.nan
        picture = pictures.attention("large", ["a"] * 100, ["<b>"] * 90, values, [0])
        [tree] = parsed(picture)
        [image] = tags(tree, "image")
        kind, data = image.get("href").split(",")
        png = base64.b64decode(data)
        self.assertEqual((kind, struct.unpack(">II", png[16:24])), ("data:image/png;base64", (90, 100)))
        start = png.index(b"IDAT")
        lines = zlib.decompress(png[start + 4 : start + 4 + struct.unpack(">I", png[start - 4 : start])[0]])
        rows = np.frombuffer(lines, np.uint8).reshape(100, 1 + 4 * 90)[:, 1:].reshape(100, 90, 4)
        self.assertEqual(tuple(rows[0, 0, :3]), pictures.ODD)
        self.assertEqual((tuple(rows[99, 89, :3]), rows[99, 89, 3]), (pictures.TINT, int(pictures.STRONGEST * 255)))
        xml.fromstring(picture.save(self.path.with_suffix(".svg")).read_text(encoding="utf-8"))
        self.assertIn("color-scheme", picture.save(self.path.with_suffix(".html")).read_text(encoding="utf-8"))


if __name__ == "__main__":
    unittest.main()
