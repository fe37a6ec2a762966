"""mIoU with its interval: from what was counted image by image, drawn again and again."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

NUM_DRAWS = 1000
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class MapResult:
    """Of one or more runs, over the same images: the mean mIoU in 0..1, its 95 % interval for the
    choice of images, the spread over the runs (None of one), and IoU by class (NaN: nowhere)."""

    miou: float
    low: float
    high: float
    spread: float | None
    runs: tuple[float, ...]
    iou: tuple[float, ...]


def result_of(runs: Sequence[Tensor]) -> MapResult:
    """The result of runs, each (n images, 3, C): what ``Confusion.of_images`` has."""
    mious = tuple(float(_miou(counts.sum(0))) for counts in runs)
    low, high = _limits(torch.stack([_drawn(counts) for counts in runs]).mean(dim=0))
    iou = torch.stack([_iou(counts.sum(0)) for counts in runs]).mean(dim=0)
    spread = stdev(mious) if len(mious) > 1 else None
    return MapResult(fmean(mious), low, high, spread, mious, tuple(iou.tolist()))


def difference_of(runs: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[float, float, float]:
    """How much more mIoU the runs have than others on the same images: mean and 95 % interval for
    the choice of images, which are drawn alike for both."""
    sides = [torch.stack([_drawn(each) for each in side]).mean(dim=0) for side in (runs, others)]
    means = [fmean(float(_miou(each.sum(0))) for each in side) for side in (runs, others)]
    return (means[0] - means[1], *_limits(sides[0] - sides[1]))


def _drawn(counts: Tensor) -> Tensor:
    """mIoU of as many images, drawn with replacement (``NUM_DRAWS``,): the same draws each time."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(counts), (NUM_DRAWS, len(counts)), generator=generator)
    times = torch.zeros(NUM_DRAWS, len(counts), dtype=torch.float64)
    times.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    return _miou((times @ counts.double().flatten(1)).unflatten(1, counts.shape[1:]))


def _iou(counts: Tensor) -> Tensor:
    hits, truth, taken = counts.double().unbind(-2)
    return hits / (truth + taken - hits)


def _miou(counts: Tensor) -> Tensor:
    return _iou(counts).nanmean(dim=-1)


def _limits(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values, torch.tensor(INTERVAL, dtype=values.dtype)).tolist()
    return low, high
