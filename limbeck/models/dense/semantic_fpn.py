"""The head of Panoptic Feature Pyramid Networks (arXiv 1901.02446), as MAE-Lite segments."""

from collections.abc import Sequence

from torch import Tensor, nn

from limbeck.models.dense.units import Classify, Unit, resize
from limbeck.models.options import DenseNorm


class SemanticFpnHead(nn.Module):
    """Each scale is brought to the finest by convolutions and doublings, and they are added."""

    def __init__(
        self,
        dims: Sequence[int],
        width: int,
        num_classes: int,
        norm: DenseNorm,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.ModuleList(
                Unit(width if step else dim, width, 3, norm) for step in range(max(1, level))
            )
            for level, dim in enumerate(dims)
        )
        self.classify = Classify(width, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, C, h, w) as fine as the first of the maps."""
        total = self.scales[0][0](maps[0])
        for level in range(1, len(maps)):
            x = maps[level]
            for step, unit in enumerate(self.scales[level]):
                x = resize(unit(x), maps[level - step - 1].shape[-2:])
            total = total + x
        return self.classify(total)
