"""Anchors, how boxes are told from them, and which of them lie on objects.

Boxes are (n, 4): left, top, right, bottom in pixels. Faster R-CNN, arXiv 1506.01497; nothing is
rounded.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

RATIOS = (0.5, 1.0, 2.0)
"""Height to width of the anchors of a place."""
CELLS = 8
"""The side of a square anchor in places of its level: 32 pixels at a stride of 4."""
MOST_GROWTH = math.log(1000 / 16)
CHUNK = 2**20
"""Pairs of boxes and objects that are looked at at a time: some 100 MiB."""


def grid_anchors(grid: Sequence[int], stride: int, like: Tensor) -> Tensor:
    """All anchors (h * w * A, 4) of a level of a ``grid`` (h, w), place by place in rows."""
    side = CELLS * stride
    sizes = [(math.sqrt(side**2 / ratio), math.sqrt(side**2 * ratio)) for ratio in RATIOS]
    own = like.new_tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sizes])  # [A, 4]
    y, x = (torch.arange(count, device=like.device, dtype=like.dtype) * stride for count in grid)
    at = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)  # [h w, 2]
    return (at.repeat(1, 2)[:, None] + own).flatten(0, 1)


def encode(boxes: Tensor, truth: Tensor, weights: Sequence[float] = (1.0, 1.0)) -> Tensor:
    """The deltas (n, 4) that move boxes onto others: of the centre in sides, and logs of the sides.

    ``weights`` multiply those of the centre and of the sides.
    """
    size, wanted = boxes[:, 2:] - boxes[:, :2], truth[:, 2:] - truth[:, :2]
    moved = (truth[:, :2] + wanted / 2 - boxes[:, :2] - size / 2) / size
    return torch.cat((moved * weights[0], (wanted / size).log() * weights[1]), 1)


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float] = (1.0, 1.0)) -> Tensor:
    """Boxes (n, ..., 4) moved by deltas (n, ..., 4); sides grow at most 62.5 times."""
    boxes = boxes.view(len(boxes), *[1] * (deltas.ndim - 2), 4)
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + size / 2 + deltas[..., :2] / weights[0] * size
    half = (deltas[..., 2:] / weights[1]).clamp(max=MOST_GROWTH).exp() * size / 2
    return torch.cat((centre - half, centre + half), -1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) within an image of ``size`` (H, W)."""
    limits = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return torch.minimum(boxes.clamp(min=0), limits)


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes (..., 4) are not empty."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


class Matched(NamedTuple):
    """Of each box the largest ``overlap`` (n,) with an object, and which ``objects`` (n,) it is.

    ``is_nearest`` (n,): no other box overlaps one of the objects more.
    """

    overlap: Tensor
    objects: Tensor
    is_nearest: Tensor


@torch.no_grad()
def match(boxes: Tensor, truth: Tensor) -> Matched:
    """Match boxes (n, 4) to objects (m, 4), as much at a time as memory bears."""
    boxes, truth = boxes.detach(), truth.to(boxes.dtype)
    overlap = boxes.new_zeros(len(boxes))
    which = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    is_nearest = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    step = max(1, CHUNK // max(1, len(boxes)))
    for start in range(0, len(truth) if len(boxes) else 0, step):
        each = box_iou(truth[start : start + step], boxes)  # [m, n]
        value, index = each.max(dim=0)
        is_better = value > overlap
        overlap = torch.where(is_better, value, overlap)
        which = torch.where(is_better, index + start, which)
        best = each.amax(dim=1, keepdim=True)
        is_nearest |= ((each == best) & (best > 0)).any(dim=0)
    return Matched(overlap, which, is_nearest)


def draw(chosen: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Up to ``count`` of the places where ``chosen`` (n,) is true, drawn at random, in order."""
    places = chosen.nonzero()[:, 0]
    if len(places) <= count:
        return places
    drawn = torch.randperm(len(places), generator=generator)[:count].sort().values
    return places[drawn.to(places.device)]
