"""A pyramid and heads of places that cost little beside a tiny encoder.

All that looks around is separable: one value a channel from its neighbourhood, then a 1x1
convolution. Full 3x3 convolutions on the finest map take longer than a tiny encoder itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.models.dense.units import Unit, resize
from limbeck.models.options import DenseNorm

KERNEL = 5


class Separable(nn.Module):
    """A neighbourhood's channels one by one, then all channels of a place; added to its input."""

    def __init__(self, width: int, norm: DenseNorm) -> None:
        super().__init__()
        self.spread = Unit(width, width, KERNEL, norm, groups=width)
        self.mix = Unit(width, width, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, D, h, w) of the same size."""
        return x + self.mix(self.spread(x))


class LightPyramid(nn.Module):
    """Three maps of ``width``, each half as wide as the one before (1/8, 1/16, 1/32 of the image).

    Of a staged encoder (``dims`` of its three scales, the finest first) each map is projected and
    gets what the next coarser one says. The maps of a plain ViT are all of its one scale: they are
    projected and added; a deconvolution and a strided convolution make the others.
    """

    def __init__(self, dims: Sequence[int], width: int, norm: DenseNorm, *, is_plain: bool) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(Unit(dim, width, 1, norm) for dim in dims)
        self.is_plain = is_plain
        if is_plain:
            self.up = nn.ConvTranspose2d(width, width, 2, 2)
            self.down = nn.Conv2d(width, width, 3, 2, 1, groups=width)
        self.mix = nn.ModuleList(Separable(width, norm) for _ in range(3))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Three maps (B, width, h, w), the finest first."""
        own = [unit(x) for unit, x in zip(self.lateral, maps, strict=True)]
        if self.is_plain:
            middle = torch.stack(own).sum(0)
            own = [self.up(middle), middle, self.down(middle)]
        fine, middle, coarse = own
        coarse = self.mix[2](coarse)
        middle = self.mix[1](middle + resize(coarse, middle.shape[-2:]))
        fine = self.mix[0](fine + resize(middle, fine.shape[-2:]))
        return [fine, middle, coarse]
