"""Scores with their uncertainty, and the verdict: did the distillation help?

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
    ``per_image`` (num_test,): each image's own mean over the runs, for paired comparisons; None in
    a score read back from a file.
    """

    mean: float
    low: float
    high: float
    spread: float | None
    runs: tuple[float, ...]
    num_test: int
    how: str
    per_image: Tensor | None = field(default=None, repr=False, compare=False)

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
    run_error = _t_half_width([runs])
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


def _t_half_width(groups: Sequence[Sequence[float]]) -> float:
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


@dataclass(frozen=True)
class Paired:
    """Two models on the same test images.

    ``difference`` of their top-1, student minus baseline, with its 95 % interval. How many images
    only one of them got right, and ``p_value`` of the exact McNemar test that this is chance.
    """

    difference: float
    low: float
    high: float
    only_student: int
    only_baseline: int
    p_value: float


def compare_paired(student_is_right: Tensor, baseline_is_right: Tensor) -> Paired:
    """Compare two models by which of the same images, (n,) bool, each got right."""
    only_student = int((student_is_right & ~baseline_is_right).sum())
    only_baseline = int((baseline_is_right & ~student_is_right).sum())
    difference = (only_student - only_baseline) / len(student_is_right)
    half = Z * paired_sampling_error(student_is_right, baseline_is_right)
    return Paired(
        difference=difference,
        low=max(-1.0, difference - half),
        high=min(1.0, difference + half),
        only_student=only_student,
        only_baseline=only_baseline,
        p_value=_two_sided_coin(only_student, only_baseline),
    )


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


def _two_sided_coin(heads: int, tails: int) -> float:
    """Exact two-sided p-value of so uneven a fall of a fair coin."""
    num = heads + tails
    logs = [
        math.lgamma(num + 1) - math.lgamma(i + 1) - math.lgamma(num - i + 1) - num * math.log(2)
        for i in range(min(heads, tails) + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


Kind = Literal["helped", "did not help", "too close to tell"]
OPENINGS: dict[Kind, str] = {
    "helped": "Distillation helped",
    "did not help": "Distillation did not help",
    "too close to tell": "It is too close to tell",
}


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


def verdict(
    student_scores: Sequence[float], baseline_scores: Sequence[float], *, num_test: int
) -> Verdict:
    """Did the student do better than the same student without distillation?

    One score in 0..1 per training run (seed), each on ``num_test`` images. The interval of the
    difference joins Welch's t over the runs, where both sides have two or more, with Newcombe's
    for the choice of test images (Statistics in Medicine 1998, page 873, method 10). That treats
    the two test sets as unrelated, so ``compare`` is sharper where single answers are known.

    helped: the interval lies above zero. did not help: below zero, or within half a point of it.
    """
    sides = [list(student_scores), list(baseline_scores)]
    if not all(sides) or not all(0 <= score <= 1 for side in sides for score in side):
        raise ValueError("The verdict needs scores in 0..1, at least one on each side.")
    down, up = _newcombe(sides, num_test)
    return _decide(sides, down, up, f"{num_test:,} test images")


def compare(student: Sequence[Score], baseline: Sequence[Score]) -> Verdict:
    """The verdict on one probe's scores, one per training run, of the same test images.

    As ``verdict``, but image by image where every score still has its ``per_image``, and covering
    also which labels were drawn where the scores are means over the same draws.
    """
    scores = [*student, *baseline]
    num_test, num_draws = scores[0].num_test, len(scores[0].runs)
    if any((score.num_test, len(score.runs)) != (num_test, num_draws) for score in scores):
        raise UserError(
            "The scores to compare are of different test images or label draws; evaluate again."
        )
    sides = [[score.mean for score in side] for side in (student, baseline)]
    down, up = _newcombe(sides, num_test)
    known = [
        [score.per_image for score in side if score.per_image is not None]
        for side in (student, baseline)
    ]
    if sum(map(len, known)) == len(scores):
        down = up = Z * paired_sampling_error(*(torch.stack(side).mean(dim=0) for side in known))
    basis = f"{num_test:,} test images"
    if num_draws > 1:
        of_draw = [
            [fmean(runs) for runs in zip(*(score.runs for score in side), strict=True)]
            for side in (student, baseline)
        ]
        draw_error = _t_half_width([[a - b for a, b in zip(*of_draw, strict=True)]])
        down, up = math.hypot(down, draw_error), math.hypot(up, draw_error)
        basis += f" and {num_draws} draws of labels"
    return _decide(sides, down, up, basis)


def _newcombe(sides: list[list[float]], num_test: int) -> tuple[float, float]:
    """How far the interval of student - baseline reaches down and up for the test images."""
    student, baseline = (fmean(side) for side in sides)
    student_low, student_high = wilson_interval(student, num_test)
    baseline_low, baseline_high = wilson_interval(baseline, num_test)
    return (
        math.hypot(student - student_low, baseline_high - baseline),
        math.hypot(student_high - student, baseline - baseline_low),
    )


def _decide(sides: list[list[float]], down: float, up: float, basis: str) -> Verdict:
    student, baseline = (fmean(side) for side in sides)
    difference = student - baseline
    run_error = _t_half_width(sides)
    low = max(-1.0, difference - math.hypot(run_error, down))
    high = min(1.0, difference + math.hypot(run_error, up))
    kind: Kind = "too close to tell"
    if low > 0:
        kind = "helped"
    elif high < 0 or (low >= -TIE and high <= TIE):
        kind = "did not help"
    if min(len(side) for side in sides) > 1:
        basis = f"over {len(sides[0])} and {len(sides[1])} training runs, {basis}"
    else:
        basis = f"for the choice of {basis} only: the luck of a single training run is not covered"
    why = (
        f"{OPENINGS[kind]}: {100 * student:.1f} % with it, {100 * baseline:.1f} % without, "
        f"a difference of {100 * difference:+.1f} points "
        f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f}, {basis})."
    )
    return Verdict(kind, difference, low, high, why)
