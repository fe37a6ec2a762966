"""UPerNet (arXiv 1807.10221) as segmentation networks on ViTs have it, and its auxiliary head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.models.dense.units import Classify, Unit, resize
from limbeck.models.options import DenseNorm

POOLS = (1, 2, 3, 6)
AUX_WIDTH = 256


class UperHead(nn.Module):
    """Pooled context of the coarsest map, a top-down path, and all scales together.

    ``width`` is that of all inner maps. To train with batch norm takes two images or more.
    """

    def __init__(
        self,
        dims: Sequence[int],
        width: int,
        num_classes: int,
        norm: DenseNorm,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, deepest = dims
        self.pools = nn.ModuleList(Unit(deepest, width, 1, norm) for _ in POOLS)
        self.bottleneck = Unit(deepest + len(POOLS) * width, width, 3, norm)
        self.laterals = nn.ModuleList(Unit(dim, width, 1, norm) for dim in finer)
        self.smooth = nn.ModuleList(Unit(width, width, 3, norm) for _ in finer)
        self.fuse = Unit(len(dims) * width, width, 3, norm)
        self.classify = Classify(width, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, C, h, w) as fine as the first of the maps."""
        *finer, deepest = maps
        pooled = [
            resize(unit(F.adaptive_avg_pool2d(deepest, side)), deepest.shape[-2:])
            for unit, side in zip(self.pools, POOLS, strict=True)
        ]
        context = self.bottleneck(torch.cat((deepest, *pooled), dim=1))
        above, sums = context, []
        for lateral, x in zip(reversed(self.laterals), reversed(finer), strict=True):
            above = lateral(x) + resize(above, x.shape[-2:])
            sums.append(above)
        smoothed = [unit(x) for unit, x in zip(self.smooth, reversed(sums), strict=True)]
        size = maps[0].shape[-2:]
        joined = torch.cat([resize(x, size) for x in (*smoothed, context)], dim=1)
        return self.classify(self.fuse(joined))


class AuxHead(nn.Module):
    """One convolution and a classifier on an inner map: it helps in training and is then unused."""

    def __init__(self, dim: int, num_classes: int, norm: DenseNorm, dropout: float = 0.1) -> None:
        super().__init__()
        self.unit = Unit(dim, AUX_WIDTH, 3, norm)
        self.classify = Classify(AUX_WIDTH, num_classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C, h, w) of a map (B, D, h, w)."""
        return self.classify(self.unit(x))
