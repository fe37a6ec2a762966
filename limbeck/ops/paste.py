"""Masks that are laid over boxes, in the pixels of an image."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def paste(
    mask: Float[Tensor, "m m"], box: Float[Tensor, "4"], size: tuple[int, int]
) -> Bool[Tensor, "h w"]:
    """Where in an image of (H, W) a mask of probabilities over a box is at least a half.

    Bilinear between the middles of its cells; a pixel is asked at its centre, and those outside the
    box are not of the object (Mask R-CNN, arXiv 1703.06870).
    """
    left, top, right, bottom = box.tolist()
    whole = torch.zeros(size, dtype=torch.bool)
    rows = _inside(top, bottom, size[0])
    columns = _inside(left, right, size[1])
    if not (len(rows) and len(columns)):
        return whole
    y = (rows + 0.5 - top) / (bottom - top) * 2 - 1
    x = (columns + 0.5 - left) / (right - left) * 2 - 1
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    own = F.grid_sample(mask[None, None].float(), places, align_corners=False)
    whole[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = (
        own[0, 0] >= 0.5
    )
    return whole


def _inside(start: float, end: float, side: int) -> Tensor:
    """The pixels of a side whose centres lie between two places."""
    pixels = torch.arange(side, dtype=torch.float32)
    return pixels[(pixels + 0.5 > start) & (pixels + 0.5 < end)]
