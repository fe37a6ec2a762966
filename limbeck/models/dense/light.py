"""A head that costs little beside a tiny encoder: nearly all it does is done on coarse maps.

UPerNet's 3x3 convolutions on the finest map take three times as long as a tiny ViT itself. Here the
maps are projected where they are, each with a norm of its own, and added at an eighth of the
image's size; one separable convolution, which is added too, looks around. What a plain ViT's token
says of the places within it comes out by a deconvolution. The classes are read at an eighth and
resized to a quarter, which is the same as to read them there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.models.dense.units import Classify, Unit, resize
from limbeck.models.options import DenseNorm

KERNEL = 5


class LightHead(nn.Module):
    """``strides``: pixels per side of a place of each map; 16 for a plain ViT of any patch size."""

    def __init__(
        self,
        dims: Sequence[int],
        strides: Sequence[int],
        width: int,
        num_classes: int,
        norm: DenseNorm,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Unit(dim, width, 1, norm) for dim in dims)
        self.is_coarse = min(strides) > 8
        self.stride = strides[0]
        self.up: nn.Module = nn.Identity()
        if self.is_coarse:
            self.up = nn.ConvTranspose2d(width, width, 2, 2)
        self.spread = Unit(width, width, KERNEL, norm, groups=width)
        self.mix = Unit(width, width, 1, norm)
        self.classify = Classify(width, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, C, h, w), four times as fine as a map of stride 16."""
        rows, columns = (side * self.stride // 4 for side in maps[0].shape[-2:])
        place = maps[0].shape[-2:] if self.is_coarse else (-(-rows // 2), -(-columns // 2))
        total = torch.zeros((), device=maps[0].device)
        for unit, x in zip(self.levels, maps, strict=True):
            is_finer = x.shape[-1] > place[-1]  # then the few places are projected
            total = total + (unit(resize(x, place)) if is_finer else resize(unit(x), place))
        x = self.up(total)
        x = x + self.mix(self.spread(x))
        return resize(self.classify(x), (rows, columns))
