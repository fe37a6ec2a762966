"""Where may an object be? The region proposal network of Faster R-CNN, arXiv 1506.01497."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from limbeck.models.dense.rcnn.boxes import RATIOS, clip, decode, draw, encode, has_area, match
from limbeck.records import Objects

SAMPLES, MOST_FOREGROUND = 256, 0.5
FOREGROUND, BACKGROUND = 0.7, 0.3
MOST_OF_LEVEL = {True: 2000, False: 1000}
"""Proposals of a level, in training and else, of which ``MOST`` are left in all."""
MOST, NMS = 1000, 0.7


class RegionProposals(nn.Module):
    """Shared over levels: is there an object at an anchor, and how does it lie to it?"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.objectness = nn.Conv2d(width, len(RATIOS), 1)
        self.deltas = nn.Conv2d(width, 4 * len(RATIOS), 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, A, h, w) and deltas (B, 4 A, h, w) of a level (B, width, h, w)."""
        for conv in self.convs:
            level = F.relu(conv(level))
        with torch.autocast(level.device.type, enabled=False):  # in bfloat16 the surest may tie
            level = level.to(self.deltas.weight.dtype)
            return self.objectness(level), self.deltas(level)


def in_rows(logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Of a level as the anchors lie: (B, n) and (B, n, 4), float32 at least."""
    rows = logits.permute(0, 2, 3, 1).flatten(1)
    placed = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
    return (rows.float(), placed.float()) if rows.dtype.itemsize < 4 else (rows, placed)


def proposal_losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    objects: Sequence[Objects],
    generators: Sequence[torch.Generator],
    samples: int = SAMPLES,
) -> tuple[Tensor, Tensor]:
    """Of the objectness (B, n) and the boxes (B, n, 4), each of anchors that are drawn, over B
    times ``samples``."""
    chosen, labels, moved, wanted = [], [], [], []
    for index, (truth, generator) in enumerate(zip(objects, generators, strict=True)):
        found = match(anchors, truth.boxes)
        is_object = (found.overlap >= FOREGROUND) | found.is_nearest
        is_nothing = (found.overlap < BACKGROUND) & ~is_object
        drawn = draw(is_object, int(samples * MOST_FOREGROUND), generator)
        others = draw(is_nothing, samples - len(drawn), generator)
        chosen.append(logits[index, torch.cat((drawn, others))])
        labels.append(torch.cat((torch.ones_like(drawn), torch.zeros_like(others))))
        moved.append(deltas[index, drawn])
        boxes = truth.boxes.to(anchors.dtype)[found.objects[drawn]]
        wanted.append(encode(anchors[drawn], boxes))
    whole, target = samples * len(objects), torch.cat(labels).to(logits.dtype)
    of_logits = F.binary_cross_entropy_with_logits(torch.cat(chosen), target, reduction="sum")
    return of_logits / whole, F.l1_loss(
        torch.cat(moved), torch.cat(wanted), reduction="sum"
    ) / whole


@torch.no_grad()
def propose(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    size: tuple[int, int],
    *,
    is_training: bool,
) -> Tensor:
    """The likeliest boxes (n, 4) of one image within ``size`` (H, W), the surest first.

    Of each level logits (n,), deltas (n, 4) and anchors (n, 4); of a level none overlap much.
    """
    boxes, scores, levels = [], [], []
    for index, (own, moves, at) in enumerate(zip(logits, deltas, anchors, strict=True)):
        value, place = own.topk(min(MOST_OF_LEVEL[is_training], len(own)))
        moved = clip(decode(moves[place], at[place]), size)
        kept = has_area(moved) & value.isfinite()
        boxes.append(moved[kept])
        scores.append(value[kept])
        levels.append(place[kept].fill_(index))
    found = torch.cat(boxes)
    return found[batched_nms(found, torch.cat(scores), torch.cat(levels), NMS)[:MOST]]
