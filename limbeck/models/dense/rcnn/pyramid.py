"""The maps that the heads read, at 1/4 to 1/64 of the image.

A plain ViT has one scale, of which ViTDet (arXiv 2203.16527) makes the others; one of stages has a
feature pyramid network (arXiv 1612.03144).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

NUM_LEVELS = 5
"""The last ones, that have no scale of their own, are every other place of the one before."""


class NormedConv(nn.Conv2d):
    """A convolution without bias, and a norm over the channels of each place."""

    def __init__(self, dim: int, out_dim: int, kernel: int) -> None:
        super().__init__(dim, out_dim, kernel, padding=kernel // 2, bias=False)
        self.norm = LayerNorm2d(out_dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, D, h, w) to (B, out, h, w)."""
        return self.norm(super().forward(x))


class SimplePyramid(nn.Module):
    """Five levels of ``width`` from the one map of a plain ViT."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        half, quarter = dim // 2, dim // 4
        starts: list[list[nn.Module]] = [
            [
                nn.ConvTranspose2d(dim, half, 2, 2), LayerNorm2d(half, eps=1e-6), nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, 2),
            ],
            [nn.ConvTranspose2d(dim, half, 2, 2)],
            [],
            [nn.MaxPool2d(2, 2)],
        ]  # fmt: skip
        dims = (quarter, half, dim, dim)
        self.levels = nn.ModuleList(
            nn.Sequential(*start, NormedConv(each, width, 1), NormedConv(width, width, 3))
            for start, each in zip(starts, dims, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Levels (B, width, h, w), the finest first, of one map (B, D, h, w)."""
        return with_last([level(maps[0]) for level in self.levels])


class StagePyramid(nn.Module):
    """Five levels of ``width`` from up to four scales; its convolutions have norms, as above."""

    def __init__(self, dims: Sequence[int], width: int) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(dims), width, norm_layer=LayerNorm2d)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Levels (B, width, h, w), the finest first, of the maps of all scales."""
        named = OrderedDict((str(index), each) for index, each in enumerate(maps))
        return with_last(list(self.fpn(named).values()))


def with_last(levels: list[Tensor]) -> list[Tensor]:
    """And those that are missing at the end."""
    while len(levels) < NUM_LEVELS:
        levels = [*levels, F.max_pool2d(levels[-1], 1, 2)]
    return levels
