"""OpenVINO's pair of files, and the runtime that reads them. Needs the extra "export"."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError
from limbeck.export.formats import Precision, Run

if TYPE_CHECKING:
    from limbeck.export.graph import Graph

HINT = "INFERENCE_PRECISION_HINT"


def write(graph: Graph, file: Path, precision: Precision) -> dict[str, Any]:
    """Write the pair; its JSON should say with which settings it is compiled.

    They matter: on a processor with bf16 instructions OpenVINO would compute an fp32 file in bf16.
    Raises UserError for bf16 on a processor without.
    """
    from limbeck.export.graph import INPUT, as_program
    from limbeck.export.silent import import_openvino

    openvino = import_openvino()
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in able:
        raise UserError(
            "This processor has no bf16 instructions, so that bf16 can't be proven here, nor be "
            "faster; export fp32, or fp16, which halves the file."
        )
    model = openvino.convert_model(as_program(graph))
    for port, name in zip((*model.inputs, *model.outputs), (INPUT, *graph.outputs), strict=True):
        port.get_tensor().set_names({name})
    model.reshape({INPUT: openvino.PartialShape(graph.shape)})
    openvino.save_model(model, file, compress_to_fp16=precision == "fp16")
    return {"compile": {HINT: "bf16" if precision == "bf16" else "f32"}}


def load(file: Path, record: dict[str, Any], threads: int | None) -> Run:
    """The pair in OpenVINO, on so many threads of the processor."""
    from limbeck.export.silent import import_openvino

    settings = record["compile"] | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    network = import_openvino().compile_model(file, "CPU", settings)
    names = [output.get_any_name() for output in network.outputs]

    def run(images: Any) -> dict[str, Any]:
        found = network(images)
        return {name: found[place].copy() for place, name in enumerate(names)}

    return run
