"""A network where it is to run, ready to be timed: in PyTorch, ONNX Runtime or OpenVINO.

No torch at the top: the names of the runtimes are options.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from limbeck.errors import UserError
from limbeck.exports.formats import (
    FORMATS,
    Precision,
    check_held,
    check_packages,
    has_packages,
    module_of,
)

if TYPE_CHECKING:
    from limbeck.models.encoder import Encoder

RuntimeName = Literal["onnx", "openvino", "torch"]
RUNTIMES: dict[RuntimeName, str] = {
    "onnx": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch",
}  # fmt: skip
"""In words, the likeliest to ship with first; each is a format, too."""


def runtime_shipped_with() -> RuntimeName:
    """What a network will most likely run in: the first that is installed."""
    return next(name for name in RUNTIMES if has_packages(name))


def open_passes(
    encoder: Encoder, name: RuntimeName, threads: int | None, precision: Precision = "fp32"
) -> Callable[[int], Callable[[], dict[str, Any]]]:
    """Of a batch size, a forward pass on the CPU of images drawn once: it returns the outputs by
    name, arrays.

    The encoder is written and loaded here, once. Raises UserError for a missing package, and for
    what the runtime can't hold or its converter can't read.
    """
    import torch

    from limbeck.exports.graph import Graph
    from limbeck.exports.torch import runner

    check_packages(name)
    check_held(name, precision)
    graph, module = Graph(encoder), module_of(name)
    if name == "torch":  # as it is, eagerly: not as torch.export would have it
        run = runner(graph.cast(precision), threads)
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"network{FORMATS[name].suffix}"
            try:
                run = module.load(file, module.write(graph, file, precision), threads)
            except UserError:
                raise
            except Exception as error:  # the converters' have no common class
                raise UserError(f"{RUNTIMES[name]} {_can_not(error)}") from error

    def of_batch(batch_size: int) -> Callable[[], dict[str, Any]]:
        draw = torch.Generator().manual_seed(0)
        images = graph.feed(torch.rand(batch_size, 3, *encoder.facts.img_size, generator=draw))
        return lambda: run(images)

    return of_batch


def _can_not(error: BaseException) -> str:
    """The end of a sentence: what is at the bottom of a converter's error, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = str(error).strip().partition("\n")[0]
    return f"can't hold this network ({type(error).__name__}: {words:.200})."


assert tuple(RUNTIMES) == get_args(RuntimeName) and set(RUNTIMES) <= set(FORMATS)
