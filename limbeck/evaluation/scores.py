"""Scores with their uncertainty, and the verdict: is the student better than its baseline?

Three kinds of luck blur a score: which images are in the test set, which labels a few-label probe
drew, and what a training run drew (its seed). Intervals here cover 95 % and say which they cover.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import UserError

Z = 1.959963984540054  # standard normal quantile of 97.5 %
TIE = 0.005  # a difference surely within half a point is no help to anybody


@dataclass(frozen=True)
class Score:
    """A mean in 0..1 with its 95 % interval ``low``..``high``.

    ``runs``: the single scores behind it, one, or one per draw of labels; ``spread``: their
    standard deviation, None for a single one. ``num_test`` images. ``how``: the score in words.
    ``per_image`` (num_test,): each image's own mean over the runs, for paired comparisons.
    """

    mean: float
    low: float
    high: float
    spread: float | None
    runs: tuple[float, ...]
    num_test: int
    how: str
    per_image: Tensor = field(repr=False, compare=False)

    def plain(self) -> dict[str, Any]:
        """JSON-ready data; all but ``per_image``."""
        values = asdict(self)
        del values["per_image"]
        return {**values, "runs": list(self.runs)}


def score_of(per_image: Tensor, how: str) -> Score:
    """The score of what each test image got: (n,), or (runs, n) for several runs; bool or 0..1.

    The interval joins Wilson's for the choice of test images with Student's t for the runs.
    """
    values = per_image.detach().double().cpu()
    runs = values.mean(dim=1).tolist() if values.ndim == 2 else [values.mean().item()]
    num_test = values.shape[-1]
    mean = fmean(runs)
    low, high = wilson_interval(mean, num_test)
    run_error = run_error_of([runs])
    return Score(
        mean=mean,
        low=max(0.0, mean - math.hypot(run_error, mean - low)),
        high=min(1.0, mean + math.hypot(run_error, high - mean)),
        spread=stdev(runs) if len(runs) > 1 else None,
        runs=tuple(runs),
        num_test=num_test,
        how=how,
        per_image=values.float().mean(dim=0) if values.ndim == 2 else values.float(),
    )


def is_in_top(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """(n,) bool: is the label among the ``k`` largest of logits (n, C)? k is limited to C."""
    return (logits.topk(min(k, logits.shape[1]), dim=1).indices == labels[:, None]).any(dim=1)


def wilson_interval(share: float, num: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (0..1) of ``num`` independent answers."""
    if num < 1:
        raise UserError("A score needs at least one test image; hold out more images.")
    squared = Z * Z / num
    middle = (share + squared / 2) / (1 + squared)
    half = Z * math.sqrt(share * (1 - share) / num + squared / (4 * num)) / (1 + squared)
    return max(0.0, middle - half), min(1.0, middle + half)


def t_quantile(df: float) -> float:
    """97.5 % quantile of Student's t with ``df`` >= 1 degrees of freedom.

    With t = sqrt(df) tan(a) the density becomes cos(a)^(df - 1), which is smooth and bounded, so a
    table of its integral gives six digits without a statistics library.
    """
    if df > 1e4:
        return Z
    angle = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angle) ** (df - 1)
    area = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(df) * math.tan(np.interp(0.95, area / area[-1], angle))


def run_error_of(groups: Sequence[Sequence[float]]) -> float:
    """Half width of the interval of a mean (one group), or of a difference of means (two; Welch).

    0 where a group has a single member: nothing is known of its luck.
    """
    if any(len(group) < 2 for group in groups):
        return 0.0
    parts = [stdev(group) ** 2 / len(group) for group in groups]
    if sum(parts) == 0:
        return 0.0
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True)
    )
    return t_quantile(freedom) * math.sqrt(sum(parts))


def paired_sampling_error(student: Tensor, baseline: Tensor) -> float:
    """Standard error, over the choice of test images, of the mean of student - baseline, (n,) each.

    One pseudo-image is won and one lost by half (Agresti and Min, Statistics in Medicine 2005), so
    that two models that agree on ten images are not called equal for sure.
    """
    differences = student.double() - baseline.double()
    num = len(differences) + 2
    mean = float(differences.sum()) / num
    square = (float(differences.square().sum()) + 1) / num
    return math.sqrt((square - mean**2) / num)


Kind = Literal["helped", "did not help", "too close to tell"]
# What to say of the student's and the baseline's score if it helped, and if it did not.
Claims = tuple[str, str]
DISTILLED: Claims = (
    "Distillation helped: {} with it, {} without",
    "Distillation did not help: {} with it, {} without",
)


def better_than(what: str) -> Claims:
    """Claims on a student and a baseline that differ in more than the distillation."""
    return f"Better than {what}: {{}} against {{}}", f"Not better than {what}: {{}} against {{}}"


@dataclass(frozen=True)
class Verdict:
    """The answer: ``kind``, the ``difference`` (student - baseline, -1..1) with its 95 % interval,
    and ``why``, one sentence for a person.
    """

    kind: Kind
    difference: float
    low: float
    high: float
    why: str


def compare(
    student: Sequence[Score], baseline: Sequence[Score], claims: Claims = DISTILLED
) -> Verdict:
    """Did the student do better? One score per training run (seed), of the same test images.

    The interval of the difference joins Welch's t over the runs, where both sides have two or more,
    with the choice of test images, image by image, and with which labels were drawn where the
    scores are means over the same draws.

    helped: the interval lies above zero. did not help: below zero, or within half a point of it.
    """
    scores = [*student, *baseline]
    num_test, num_draws = scores[0].num_test, len(scores[0].runs)
    if any((score.num_test, len(score.runs)) != (num_test, num_draws) for score in scores):
        raise UserError(
            "The scores to compare are of different test images or label draws; evaluate again."
        )
    sides = [[score.mean for score in side] for side in (student, baseline)]
    of_image = [
        torch.stack([score.per_image for score in side]).mean(dim=0) for side in (student, baseline)
    ]
    error = math.hypot(run_error_of(sides), Z * paired_sampling_error(*of_image))
    basis = f"{num_test:,} test images"
    if num_draws > 1:
        of_draw = [
            [fmean(runs) for runs in zip(*(score.runs for score in side), strict=True)]
            for side in (student, baseline)
        ]
        draw_error = run_error_of([[a - b for a, b in zip(*of_draw, strict=True)]])
        error = math.hypot(error, draw_error)
        basis += f" and {num_draws} draws of labels"
    return verdict_of(sides, (error, error), basis, claims)


def verdict_of(
    sides: Sequence[Sequence[float]],
    reach: tuple[float, float],
    basis: str,
    claims: Claims = DISTILLED,
) -> Verdict:
    """The verdict on the mean scores of each run of two sides.

    ``reach``: how far below and above their difference the 95 % interval ends; ``basis``: the test
    images in words.
    """
    if min(len(side) for side in sides) > 1:
        basis = f"over {len(sides[0])} and {len(sides[1])} training runs, {basis}"
    else:
        basis = f"for the choice of {basis} only: the luck of a single training run is not covered"
    means = [fmean(side) for side in sides]
    difference = means[0] - means[1]
    low, high = max(-1.0, difference - reach[0]), min(1.0, difference + reach[1])
    kind: Kind = "too close to tell"
    claim = "It is too close to tell: {} against {}"
    if low > 0 and high > TIE:
        kind, claim = "helped", claims[0]
    elif high < 0 or (low >= -TIE and high <= TIE):
        kind, claim = "did not help", claims[1]
    why = (
        f"{claim.format(*(f'{100 * mean:.1f} %' for mean in means))}, "
        f"a difference of {100 * difference:+.1f} points "
        f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f}, {basis})."
    )
    return Verdict(kind, difference, low, high, why)
