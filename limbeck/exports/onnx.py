"""ONNX, and ONNX Runtime that runs it. Needs the extra "export"."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Collection, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from limbeck.exports.formats import Precision, Run

if TYPE_CHECKING:
    import onnx

    from limbeck.exports.graph import Graph


LAYERS = ["Conv", "MatMul", "Gemm"]


def write(graph: Graph, file: Path, precision: Precision) -> dict[str, Any]:
    """Write the graph; what its JSON should say besides: the opset."""
    import torch

    from limbeck.exports.graph import INPUT, as_program, without_fused_attention
    from limbeck.exports.silent import quiet

    with quiet():
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
    return _opset(model)


def quantise(file: Path, out: Path, feeds: Sequence[Any], kept: Collection[str]) -> dict[str, Any]:
    """Write an fp32 file in int8 but for some nodes of ``graph.layers_of``; returns as ``write``.

    ``feeds``: images as the network takes them, one at a time.
    """
    import onnx

    from limbeck.engine.machine import int8_saturates
    from limbeck.exports.graph import INPUT
    from limbeck.exports.silent import import_onnxruntime, quiet

    import_onnxruntime()
    tools = import_module("onnxruntime.quantization")
    model, saturates = onnx.load(file), int8_saturates()
    with quiet():
        tools.quantize_static(
            model,
            out,
            SimpleNamespace(get_next=partial(next, ({INPUT: each} for each in feeds), None)),
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            reduce_range=saturates,
            op_types_to_quantize=LAYERS,
            nodes_to_exclude=[node.name for node in model.graph.node if _scope(node) in kept],
            # Outputs of convolutions must be int8 for its fast kernels, those of products need not.
            extra_options={
                "MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": LAYERS[1:]
            },
        )  # fmt: skip
    return _opset(model) | {"weight_bits": 7 if saturates else 8}


def load(file: Path, record: dict[str, Any], threads: int | None) -> Run:
    """The file in ONNX Runtime, on so many threads of the processor."""
    from limbeck.exports.silent import import_onnxruntime

    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    names = [each.name for each in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {name: images}), strict=True))


def _opset(model: onnx.ModelProto) -> dict[str, Any]:
    return {"opset": next(each.version for each in model.opset_import if not each.domain)}


def _scope(node: onnx.NodeProto) -> str:
    """Name of the node of torch's program that it was made of, '' if of none."""
    said = {each.key: each.value for each in node.metadata_props}
    scopes: list[str] = literal_eval(said.get("pkg.torch.onnx.name_scopes", "[]"))
    return scopes[-1] if scopes else ""


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
