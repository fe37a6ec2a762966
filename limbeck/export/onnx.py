"""ONNX, and ONNX Runtime that runs it. Needs the extra "export"."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.export.formats import Precision, Run

if TYPE_CHECKING:
    import onnx

    from limbeck.export.graph import Graph


def write(graph: Graph, file: Path, precision: Precision) -> dict[str, Any]:
    """Write the graph; what its JSON should say besides: the opset."""
    import torch

    from limbeck.export.graph import INPUT, as_program, without_fused_attention

    with _quiet():
        program = torch.onnx.export(
            as_program(without_fused_attention(graph)),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=list(graph.outputs),
        )
    assert program is not None
    model = program.model_proto
    if precision == "fp16":
        _halve(model)
    file.write_bytes(model.SerializeToString())
    return {"opset": next(each.version for each in model.opset_import if not each.domain)}


def load(file: Path, record: dict[str, Any], threads: int | None) -> Run:
    """The file in ONNX Runtime, on so many threads of the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    names = [each.name for each in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {name: images}), strict=True))


def _halve(model: onnx.ModelProto) -> None:
    """Weights in fp16, each with a node that widens it, which runtimes do once as they load it."""
    import numpy
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type == TensorProto.FLOAT and values.ndim > 1:
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(values.astype(numpy.float16), f"{name}_fp16"))
            casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's word on every node that it rewrites."""
    log = logging.getLogger("onnxscript")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
