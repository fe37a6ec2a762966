"""The two fills of the golden numbers: they depend on tensor layout alone."""

from math import prod

import torch
from torch import nn


def cos_fill(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """Weights are scale * cos of their flat index; norms 1, biases 0; float64, to evaluate."""
    module = module.double().eval()
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            filled = torch.zeros(value.numel())
            if value.ndim > 1:
                filled = scale * torch.arange(value.numel(), dtype=torch.float64).cos()
            elif name == "weight":
                filled += 1  # of a norm
            value.data.copy_(filled.view(value.shape))
    return module


def sin_ramp(*shape: int) -> torch.Tensor:
    """sin(0.1 j), j the flat index; float64."""
    return torch.arange(prod(shape), dtype=torch.float64).mul(0.1).sin().view(shape)


def taps() -> list[torch.Tensor]:
    """What the rows of the heads start from: four maps of one scale."""
    return [sin_ramp(2, 8, 8, 8) * (level + 1) / 4 for level in range(4)]


def labels() -> torch.Tensor:
    """(2, 128, 128): tiles of 16 with 0, 1, 2 and nothing, in turn."""
    tile = torch.arange(128) // 16
    values = (tile[:, None] + tile) % 4
    return values.where(values < 3, 255).expand(2, -1, -1)
