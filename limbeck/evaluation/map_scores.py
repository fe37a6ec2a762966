"""mIoU with its interval: from what was counted image by image, drawn again and again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from limbeck.evaluation.scores import Claims, Verdict, run_error_of, verdict_of

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


@dataclass(frozen=True)
class Miou:
    """The mIoU of one run, 0..1, with its 95 % interval for the choice of images, and the IoU of
    each class that is there. ``counts`` (n, 3, C): what ``Confusion.of_images`` has."""

    mean: float
    low: float
    high: float
    iou: dict[str, float]
    counts: Tensor = field(repr=False, compare=False)

    def plain(self) -> dict[str, Any]:
        """JSON-ready data; all but ``counts``."""
        return {name: value for name, value in vars(self).items() if name != "counts"}


def scores_of(counts: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Of one run: "miou", a ``Miou``, and "macc" and "aacc" as ``MapScore`` has them."""
    found, (hits, truth, _) = result_of([counts]), counts.sum(0).double()
    iou = {name: v for name, v in zip(classes, found.iou, strict=True) if v == v}
    return {
        "miou": Miou(found.miou, found.low, found.high, iou, counts),
        "macc": float((hits / truth).nanmean()),
        "aacc": float(hits.sum() / truth.sum()),
    }


def compare(student: Sequence[Miou], baseline: Sequence[Miou], claims: Claims) -> Verdict:
    """``scores.compare`` of runs on the same scenes, image by image drawn alike for both."""
    groups = [[each.counts for each in side] for side in (student, baseline)]
    difference, low, high = difference_of(*groups)
    sides = [[each.mean for each in side] for side in (student, baseline)]
    run_error = run_error_of(sides)
    reach = math.hypot(run_error, difference - low), math.hypot(run_error, high - difference)
    return verdict_of(sides, reach, f"{len(groups[0][0]):,} test images", claims)


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
