"""From the tokens of four blocks to maps of four scales: a plain ViT has one scale alone.

The necks are those with which TinyMIM (arXiv 2301.01296) and its TinyMIM*-T, G2SD (2302.14771) and
MAE-Lite (2205.14443, 2404.12210) segment. A hierarchical encoder has its scales.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from limbeck.models.dense.units import make_norm
from limbeck.models.options import DenseNorm, NeckKind

WIDE, NARROW = 4, 0.25
"""Channels of a wide and of a narrow neck per channel of the encoder: TinyMIM*-T's, MAE-Lite's."""


def neck_dims(kind: NeckKind, dims: Sequence[int]) -> tuple[int, ...]:
    """The widths of the maps that a neck of this kind makes of maps of these."""
    if kind == "same":
        return tuple(dims)
    return (int((WIDE if kind == "wide" else NARROW) * dims[0]),) * len(dims)


class PlainNeck(nn.Module):
    """Four maps of one scale to four times, twice, once and half of it.

    Deconvolutions double a scale; of "same" width the third map stays as it is and the fourth is
    pooled, "wide" and "narrow" convolve both. All start as torch starts them.
    """

    def __init__(self, kind: NeckKind, dims: Sequence[int], norm: DenseNorm) -> None:
        super().__init__()
        (out, *_), first = neck_dims(kind, dims), dims[0]
        middle = {"same": out, "wide": out // 2, "narrow": out}[kind]
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(first, middle, 2, 2),
            make_norm(norm, middle),
            nn.GELU(),
            nn.ConvTranspose2d(middle, out, 2, 2),
        )
        self.up2 = nn.Sequential(nn.ConvTranspose2d(dims[1], out, 2, 2))
        self.level = nn.Identity() if kind == "same" else nn.Conv2d(dims[2], out, 1)
        self.down: nn.Module = nn.MaxPool2d(2, 2)
        if kind == "wide":
            self.down = nn.Sequential(nn.Conv2d(dims[3], out, 3, 2, 1))
        elif kind == "narrow":
            self.down = nn.Sequential(nn.Conv2d(dims[3], out, 1), nn.MaxPool2d(2, 2))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps (B, D, h, w), from the finest to the coarsest."""
        steps = (self.up4, self.up2, self.level, self.down)
        return [step(each) for step, each in zip(steps, maps, strict=True)]


class LevelNeck(nn.Module):
    """A norm over the channels of each map, as Swin has it for its stages (arXiv 2103.14030).

    Where the neck has another width, 1x1 convolutions follow.
    """

    def __init__(self, kind: NeckKind, dims: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-5) for dim in dims)
        outs = neck_dims(kind, dims)
        self.convs = nn.ModuleList(
            nn.Identity() if dim == out else nn.Conv2d(dim, out, 1)
            for dim, out in zip(dims, outs, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, D, h, w) of the same sizes."""
        steps = zip(maps, self.norms, self.convs, strict=True)
        return [conv(norm(x.movedim(1, -1)).movedim(-1, 1)) for x, norm, conv in steps]
