"""mIoU with its interval: from what was counted image by image, drawn again and again."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from limbeck.evaluation.report import TERMINAL, table
from limbeck.evaluation.scores import Claims, Verdict, run_error_of, verdict_of

NUM_DRAWS = 1000
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class MapResult:
    """Of one or more runs, over the same images: the mean mIoU in 0..1, its 95 % interval for the
    choice of images, the spread over the runs (None of one), and IoU by class (None: nowhere).
    ``counts`` are the runs', each (n images, 3, C): what ``Confusion.of_images`` has."""

    mean: float
    low: float
    high: float
    spread: float | None
    runs: tuple[float, ...]
    iou: dict[str, float | None]
    counts: tuple[Tensor, ...] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The mean, its spread over runs and its interval, in percent."""
        spread = "" if self.spread is None else f" ± {100 * self.spread:.1f}"
        return f"{100 * self.mean:.1f}{spread} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def plain(self) -> dict[str, Any]:
        """JSON-ready data; all but ``counts``."""
        return {name: value for name, value in vars(self).items() if name != "counts"}


def result_of(runs: Sequence[Tensor], classes: Collection[str]) -> MapResult:
    """The result of the counts of runs."""
    mious = tuple(float(_miou(counts.sum(0))) for counts in runs)
    low, high = _limits(torch.stack([_drawn(counts) for counts in runs]).mean(dim=0))
    iou = torch.stack([_iou(counts.sum(0)) for counts in runs]).nanmean(dim=0).tolist()
    by_class = {k: v if v == v else None for k, v in zip(classes, iou, strict=True)}
    spread = stdev(mious) if len(mious) > 1 else None
    return MapResult(fmean(mious), low, high, spread, mious, by_class, tuple(runs))


def joined(results: Sequence[MapResult]) -> MapResult:
    """Several as one."""
    return result_of([each for result in results for each in result.counts], results[0].iou)


def compare(student: Sequence[MapResult], baseline: Sequence[MapResult], claims: Claims) -> Verdict:
    """``scores.compare`` of runs on the same images, which are drawn alike for both sides."""
    groups = [[each for result in side for each in result.counts] for side in (student, baseline)]
    sides = [[each for result in side for each in result.runs] for side in (student, baseline)]
    drawn = [torch.stack([_drawn(each) for each in group]).mean(dim=0) for group in groups]
    difference, run_error = fmean(sides[0]) - fmean(sides[1]), run_error_of(sides)
    low, high = _limits(drawn[0] - drawn[1])
    reach = math.hypot(run_error, difference - low), math.hypot(run_error, high - difference)
    return verdict_of(sides, reach, f"{len(groups[0][0]):,} test images", claims)


def class_table(results: Mapping[str, MapResult]) -> str:
    """A Markdown table of mIoU with its interval and of IoU by class, a column for each network."""
    rows = [{"IoU %": "mean"} | {role: each.text for role, each in results.items()}]
    for name in next(iter(results.values())).iou:
        row = {"IoU %": name}
        for role, each in results.items():
            value = each.iou[name]
            row[role] = "" if value is None else f"{100 * value:.1f}"
        rows.append(row)
    return table(rows, width=TERMINAL)


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
