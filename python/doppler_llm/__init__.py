"""Doppler from Python: a thin layer over the ``doppler`` binary and the files that it writes.

    >>> from doppler_llm import Model
    >>> model = Model("demo")
    >>> print(model.run("The color of the sky is").text)
     blue.
    >>> dump = model.dump("The color of the sky is", stages=["layer_out", "attn_probs"])
    >>> dump["layer.3.layer_out"].shape
    (7, 256)

There is no second engine here. Everything that is computed, the binary computes.
"""

from .binary import DopplerError, find_binary
from .dump import Dump, DumpError
from .model import Lens, Model, Run, Verdict
from .pictures import Picture

__all__ = ["Dump", "DumpError", "DopplerError", "Lens", "Model", "Picture", "Run", "Verdict", "find_binary"]
__version__ = "0.1.0"
