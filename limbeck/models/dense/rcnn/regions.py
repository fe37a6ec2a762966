"""What is in a region: its class, a better box and a mask.

Mask R-CNN (arXiv 1703.06870) with the heads of ViTDet (arXiv 2203.16527): four convolutions with
norms each.
"""

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from limbeck.models.dense.rcnn.boxes import draw, encode, match
from limbeck.models.dense.rcnn.pyramid import NUM_LEVELS, NormedConv
from limbeck.ops.outlines import draw_in_box
from limbeck.ops.ranks import mean_over_ranks
from limbeck.records import Objects

SAMPLES, MOST_FOREGROUND = 512, 0.25
BOX_SIDE, MASK_SIDE = 7, 14
CANONICAL = 56
"""The side of a region of the third level, in places of the first: 224 pixels at a stride of 4."""
_OBJECTS_AT_ONCE = 16


class Regions(NamedTuple):
    """Boxes (n, 4) of a batch, and the image (n,) of each.

    ``objects`` (n,) are those that they overlap most, counted in their image, with their boxes
    ``truth`` (n, 4); ``classes`` (n,) the objects', or the number of classes where there is none.
    """

    boxes: Tensor
    images: Tensor
    objects: Tensor
    truth: Tensor
    classes: Tensor

    def at(self, chosen: Tensor) -> "Regions":
        """Those of them that a mask or indices choose."""
        return Regions(*(each[chosen] for each in self))


def assign(boxes: Tensor, image: int, truth: Objects, num_classes: int, least: float) -> Regions:
    """What boxes (n, 4) of an image overlap, by ``least`` at least."""
    overlap, which, _ = match(boxes, truth.boxes)
    # Where there is no object at all, the row that is added stands for one.
    own = F.pad(truth.boxes.to(boxes.dtype), (0, 0, 0, 1))[which]
    classes = F.pad(truth.classes, (0, 1))[which].where(overlap >= least, num_classes)
    return Regions(boxes, torch.full_like(which, image), which, own, classes)


def sample(
    regions: Regions, num_classes: int, generator: torch.Generator, samples: int = SAMPLES
) -> Regions:
    """As many of one image as are learnt, a quarter of them objects at most."""
    is_object = regions.classes < num_classes
    drawn = draw(is_object, int(samples * MOST_FOREGROUND), generator)
    others = draw(~is_object, samples - len(drawn), generator)
    return regions.at(torch.cat((drawn, others)))


def joined(parts: Iterable[Regions]) -> Regions:
    """Those of all images."""
    return Regions(*map(torch.cat, zip(*parts, strict=True)))


def alone(boxes: Tensor) -> Regions:
    """Boxes (n, 4) of one image, of which nothing else is known."""
    none = boxes.new_zeros(len(boxes), dtype=torch.int64)
    return Regions(boxes, none, none, boxes, none)


def level_of(boxes: Tensor, finest: int) -> Tensor:
    """The level (n,) on which boxes are looked at, 0 to 3; ``finest`` is the first one's stride."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    return (2 + (side / (CANONICAL * finest)).log2()).floor().clamp(0, NUM_LEVELS - 2).long()


def pool(levels: Sequence[Tensor], strides: Sequence[int], regions: Regions, side: int) -> Tensor:
    """What of the levels (B, D, h, w) lies in regions: (n, D, side, side)."""
    boxes = regions.boxes
    at = level_of(boxes, strides[0])
    rows = torch.cat((regions.images[:, None].to(boxes.dtype), boxes), 1)
    parts = [
        roi_align(level.to(boxes.dtype), rows[at == k], side, 1 / strides[k], 0, aligned=True)
        for k, level in enumerate(levels[: NUM_LEVELS - 1])
    ]
    return torch.cat(parts)[at.argsort(stable=True).argsort()].to(levels[0].dtype)


def _start_as_convs(module: nn.Module) -> None:
    """Kaiming-normal of the fan-out, and uniform (xavier by inputs alone) of linear layers."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(each.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(each, nn.Linear):
            nn.init.uniform_(each.weight, -(bound := sqrt(3 / each.in_features)), bound)
        if isinstance(bias := getattr(each, "bias", None), Tensor):
            nn.init.zeros_(bias)


class BoxHead(nn.Module):
    """The class of a region, the background last, and deltas of each class or of all together."""

    def __init__(self, width: int, num_classes: int, *, is_agnostic: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(NormedConv(width, width, 3) for _ in range(4))
        self.fc = nn.Linear(width * BOX_SIDE**2, 4 * width)
        _start_as_convs(self)
        self.classes = nn.Linear(4 * width, num_classes + 1)
        self.deltas = nn.Linear(4 * width, 4 if is_agnostic else 4 * num_classes)
        for last, std in ((self.classes, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(last.weight, std=std)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, C + 1) and deltas (n, C or 1, 4) of pooled maps (n, width, 7, 7)."""
        for conv in self.convs:
            x = F.relu(conv(x))
        x = F.relu(self.fc(x.flatten(1)))
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.classes.weight.dtype)
            return self.classes(x), self.deltas(x).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """The masks of a region, one for each class."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(NormedConv(width, width, 3) for _ in range(4))
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        _start_as_convs(self)
        self.masks = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.masks.weight, std=0.001)
        nn.init.zeros_(self.masks.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Logits (n, 28, 28) of the classes (n,) of pooled maps (n, width, 14, 14)."""
        for conv in self.convs:
            x = F.relu(conv(x))
        x = F.relu(self.up(x))
        with torch.autocast(x.device.type, enabled=False):
            x = self.masks(x.to(self.masks.weight.dtype))
        return x[torch.arange(len(x), device=x.device), classes]


def box_losses(
    logits: Tensor,
    deltas: Tensor,
    regions: Regions,
    weights: Sequence[float],
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Of the classes and of the boxes, both over the number of regions.

    ``logits`` (n, C + 1), ``deltas`` (n, C or 1, 4); ``weights`` as of ``encode``.
    """
    num_classes = logits.shape[1] - 1
    count = mean_over_ranks(logits.new_tensor(float(len(logits)))).clamp(min=1)
    if class_weights is not None:
        class_weights = torch.cat((class_weights, class_weights.new_ones(1))).to(logits.dtype)
    of_classes = F.cross_entropy(logits, regions.classes, class_weights, reduction="sum")
    is_object = (regions.classes < num_classes).nonzero()[:, 0]
    own = regions.at(is_object)
    column = own.classes if deltas.shape[1] > 1 else torch.zeros_like(own.classes)
    wanted = encode(own.boxes, own.truth, weights)
    of_boxes = F.l1_loss(deltas[is_object, column], wanted, reduction="sum")
    return of_classes / count, of_boxes / count


@torch.no_grad()
def mask_targets(masks: Tensor, boxes: Tensor, objects: Tensor, side: int) -> Tensor:
    """What of masks (m, H, W) lies in boxes (n, 4) of ``objects`` (n,): bool (n, side, side)."""
    found = torch.zeros(len(boxes), side, side, dtype=torch.bool, device=boxes.device)
    for group in objects.unique().split(_OBJECTS_AT_ONCE):
        here = (objects[:, None] == group).nonzero()
        rows = torch.cat((here[:, 1:].to(boxes.dtype), boxes[here[:, 0]]), 1)
        maps = masks[group][:, None].to(boxes.dtype)
        found[here[:, 0]] = roi_align(maps, rows, side, 1.0, 0, aligned=True)[:, 0] >= 0.5
    return found


def mask_loss(logits: Tensor, regions: Regions, objects: Sequence[Objects]) -> Tensor:
    """The mean cross entropy over the grids (n, s, s) of regions of objects that have masks.

    Of an object with outlines the target is drawn by them, else it is cut out of its mask.
    """
    total, count = logits.sum() * 0, logits.new_zeros(())
    for index, truth in enumerate(objects):
        if truth.masks is None:
            continue
        is_known = truth.masks.flatten(1).any(1)
        here = (regions.images == index).nonzero()[:, 0]
        here = here[is_known[regions.objects[here]]]
        own, said = regions.at(here), logits[here]
        wanted = mask_targets(truth.masks, own.boxes, own.objects, logits.shape[-1])
        for row, which in enumerate(own.objects.tolist() if truth.outlines else ()):
            assert truth.outlines is not None
            if outlines := truth.outlines[which]:
                drawn = draw_in_box(outlines, own.boxes[row].tolist(), logits.shape[-1])
                wanted[row] = torch.from_numpy(drawn)
        total = total + F.binary_cross_entropy_with_logits(said, wanted.to(said), reduction="sum")
        count += wanted.numel()
    return total / mean_over_ranks(count).clamp(min=1)
