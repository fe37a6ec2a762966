"""OpenVINO's pair of files, and the runtime that reads them. Needs the extra "export"."""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError
from limbeck.exports.formats import Precision, Run

if TYPE_CHECKING:
    from limbeck.exports.graph import Graph

HINT = "INFERENCE_PRECISION_HINT"


@cache
def core() -> Any:
    """OpenVINO's core, one for the whole process.

    A core gives the thread that it is made in a stack for signals, and frees that as it goes, in
    whatever thread: the next signal, a Ctrl-C say, would end the process. So it stays.
    """
    from limbeck.exports.silent import import_openvino

    return import_openvino().Core()


def write(graph: Graph, file: Path, precision: Precision) -> dict[str, Any]:
    """Write the pair; its JSON should say with which settings it is compiled.

    They matter: on a processor with bf16 instructions OpenVINO would compute an fp32 file in bf16.
    Raises UserError for bf16 on a processor without.
    """
    from limbeck.exports.graph import INPUT, as_program
    from limbeck.exports.silent import import_openvino, quiet

    openvino = import_openvino()
    if precision == "bf16" and not _has_bf16():
        raise UserError(
            "This processor has no bf16 instructions, so that bf16 can't be proven here, nor be "
            "faster; export fp32, or fp16, which halves the file."
        )
    with quiet():
        model = openvino.convert_model(as_program(graph))
    for port, name in zip((*model.inputs, *model.outputs), (INPUT, *graph.outputs), strict=True):
        port.get_tensor().set_names({name})
    model.reshape({INPUT: openvino.PartialShape(graph.shape)})
    openvino.save_model(model, file, compress_to_fp16=precision == "fp16")
    return {"compile": {HINT: "bf16" if precision == "bf16" else "f32"}}


def quantise(file: Path, out: Path, feeds: Sequence[Any], kept: Collection[str]) -> dict[str, Any]:
    """Write an fp32 pair in int8 but for some nodes of ``graph.layers_of``; returns as ``write``.

    ``feeds``: images as the network takes them, one at a time.
    """
    from limbeck.engine.machine import int8_saturates
    from limbeck.exports.silent import import_nncf, import_openvino, quiet

    openvino, saturates = import_openvino(), int8_saturates()
    model = core().read_model(file)
    heads = tuple(f"{name.replace('conv2d', 'convolution')}/" for name in kept)
    names = [node.get_friendly_name() for node in model.get_ops()]
    with quiet():
        nncf = import_nncf()
        ranges = import_module("nncf.quantization.range_estimator")
        fixes = import_module("nncf.quantization.advanced_parameters").OverflowFix
        model = nncf.quantize(
            model,
            nncf.Dataset(list(feeds)),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
            ignored_scope=nncf.IgnoredScope(
                [name for name in names if name.startswith(heads)],
                types=["GroupConvolution"],  # depthwise: slower in int8 than in floats
                validate=False,
            ),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # Its own are means over images of the least and the largest: they cut outliers
                # off, and moved a ViT-Tiny's logits by 8 % where these move them by 3 %.
                activations_range_estimator_params=ranges.RangeEstimatorParametersSet.MINMAX,
                # No SmoothQuant, which moved them by more and costs a product.
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(-1, -1),
                overflow_fix=fixes.ENABLE if saturates else None,
            ),
        )
        gc.collect()  # so that its own cores go in the thread that made them, see ``core``
    openvino.save_model(model, out, compress_to_fp16=False)
    return {
        "compile": {HINT: "bf16" if _has_bf16() else "f32"},
        "made_by": f"NNCF {nncf.__version__}",
        "weight_bits": 7 if saturates else 8,
    }


def _has_bf16() -> bool:
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def load(file: Path, record: dict[str, Any], threads: int | None) -> Run:
    """The pair in OpenVINO, on so many threads of the processor."""
    settings = record["compile"] | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    network = core().compile_model(file, "CPU", settings)
    names = [output.get_any_name() for output in network.outputs]

    def run(images: Any) -> dict[str, Any]:
        found = network(images)
        return {name: found[place].copy() for place, name in enumerate(names)}

    return run
