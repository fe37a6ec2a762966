"""A part of an encoder in memory: what goes on from stored tokens without the rest of it."""

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import build_encoder


def build_part(architecture: dict[str, Any], weights: dict[str, Tensor]) -> TimmEncoder:
    """The encoder of ``architecture`` with these tensors alone, in evaluation mode.

    ``weights`` are by the encoder's names and stay of the type and on the device that they have;
    nothing is allocated for the others. Raises KeyError for a name that it does not have.
    """
    with torch.device("meta"):
        encoder = build_encoder(architecture)
    fill_part(encoder.eval().requires_grad_(False), weights)
    return encoder


def fill_part(encoder: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put tensors in the place of the encoder's of the same names: another type or device is fine.

    ``Module.to`` would stumble over those that are not there. Raises KeyError as ``build_part``,
    ValueError for another shape.
    """
    for name, value in weights.items():
        owner, _, own_name = name.rpartition(".")
        module = encoder.get_submodule(owner)
        there = (module._buffers | module._parameters).get(own_name)
        if there is None:
            raise KeyError(name)
        if there.shape != value.shape:
            raise ValueError(f"{name} is {tuple(value.shape)}, not {tuple(there.shape)}")
        if own_name in module._buffers:
            module._buffers[own_name] = value
        else:
            module._parameters[own_name] = nn.Parameter(value, requires_grad=False)
