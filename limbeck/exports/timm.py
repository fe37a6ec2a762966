"""Weights under timm's names, which timm alone loads into the network that it builds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError
from limbeck.exports.formats import Precision, Run

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.exports.graph import Graph


def write(graph: Graph, file: Path, precision: Precision) -> dict[str, Any]:
    """Write the weights; their JSON says how timm makes the network.

    Raises UserError for a network that timm has not.
    """
    from safetensors.torch import save_file

    from limbeck.engine.machine import DTYPES
    from limbeck.models.finished import timm_calls

    calls = timm_calls(graph.encoder)
    if calls is None:
        raise UserError(
            f"timm has no {graph.encoder.facts.architecture['name']}; choose --to onnx, openvino "
            "or torch."
        )
    dtype = DTYPES[precision]
    weights = {
        name: value.to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in graph.encoder.model.state_dict().items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    return {"timm": calls}


def load(file: Path, record: dict[str, Any], threads: int | None) -> Run:
    """The network as timm builds it, on so many threads: its logits, or its tokens."""
    import timm
    from safetensors.torch import load_file

    from limbeck.exports.torch import runner

    said = record["timm"]
    model = timm.create_model(said["name"], **said["kwargs"])
    for place, values in said["heads"].items():
        for name, value in values.items():
            setattr(model.get_submodule(place), name, value)
    model.load_state_dict(load_file(file))
    model.eval()

    def tokens(images: Tensor) -> dict[str, Tensor]:
        found = model.forward_features(images)
        if hasattr(model, "reroll"):  # Hiera's lie unit by unit
            found = model.reroll(found, len(model.blocks) - 1)
        if found.ndim == 4:  # TinyViT's maps are (B, D, h, w), Swin's (B, h, w, D)
            is_last = found.shape[-1] == model.num_features
            found = found.flatten(1, 2) if is_last else found.flatten(2).mT
        return {"tokens": found}

    return runner(tokens if not model.num_classes else lambda x: {"logits": model(x)}, threads)
