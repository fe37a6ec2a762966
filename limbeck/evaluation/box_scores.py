"""Average precision with its interval: images drawn again and again, for one detector or two.

The interval is of AP50, whose answers are right or wrong once for all; that of the mean over
overlaps would have every draw matched anew.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import numpy as np

from limbeck.evaluation.average_precision import Answers, BoxScores
from limbeck.evaluation.report import TERMINAL, table
from limbeck.evaluation.scores import Claims, Verdict, run_error_of, verdict_of

NUM_DRAWS = 200
INTERVAL = (0.025, 0.975)
RECALLS = np.linspace(0, 1, 101)  # COCO's
MOST_SHOWN = 12  # classes, of a table of who is taken for whom


@dataclass(frozen=True)
class BoxResult:
    """Of one or more runs, over the same images: ``scores`` are the means of COCO's numbers, each
    0..1, and ``of_classes`` those of the AP; ``runs`` are the runs' AP50, ``low`` and ``high`` its
    95 % interval for the choice of images, ``spread`` that over the runs (None of one).

    ``best`` has the means of the threshold of the highest F1, of that, and of precision and recall
    there, ``thresholds`` those of classes; ``confusion`` is summed, see ``BoxScores``."""

    scores: dict[str, float]
    of_classes: dict[str, float]
    best: dict[str, float]
    thresholds: dict[str, float]
    confusion: list[list[int]]
    low: float
    high: float
    spread: float | None
    runs: tuple[float, ...]
    answers: tuple[Answers, ...] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """AP50, its spread over runs and its interval, in percent."""
        spread = "" if self.spread is None else f" ± {100 * self.spread:.1f}"
        mean = 100 * self.scores["ap50"]
        return f"{mean:.1f}{spread} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def plain(self) -> dict[str, Any]:
        """JSON-ready data; all but ``answers``; None for NaN."""
        values = {name: value for name, value in vars(self).items() if name != "answers"}
        for name in ("scores", "of_classes"):
            values[name] = {k: v if v == v else None for k, v in values[name].items()}
        return values


def result_of(runs: Sequence[tuple[BoxScores, Answers]]) -> BoxResult:
    """The result of the scores and answers of runs."""
    scores, answers = zip(*runs, strict=True)
    drawn = np.stack([_drawn(each) for each in answers]).mean(0)
    low, high = np.quantile(drawn, INTERVAL).tolist()
    ap50 = tuple(each.boxes["ap50"] for each in scores)
    whole = [
        each.boxes | {f"mask_{k}": v for k, v in (each.masks or {}).items()} for each in scores
    ]
    mean = {name: fmean(each[name] for each in whole) for name in whole[0]}
    names = ("threshold", "f1", "precision", "recall")
    best = {name: fmean(getattr(each, name) for each in scores) for name in names}
    classes, thresholds = (
        {name: fmean(own[name] for own in group) for name in group[0]}
        for group in zip(*((each.of_classes, each.thresholds) for each in scores), strict=True)
    )
    confusion = np.sum([each.confusion for each in scores], axis=0).tolist()
    spread = stdev(ap50) if len(ap50) > 1 else None
    return BoxResult(
        mean, classes, best, thresholds, confusion, low, high, spread, ap50, tuple(answers)
    )


def compare(student: BoxResult, baseline: BoxResult, claims: Claims) -> Verdict:
    """``scores.compare`` of the AP50 of runs on the same images, drawn alike for both sides."""
    sides = [list(each.runs) for each in (student, baseline)]
    drawn = [
        np.stack([_drawn(own) for own in side.answers]).mean(0) for side in (student, baseline)
    ]
    difference, run_error = fmean(sides[0]) - fmean(sides[1]), run_error_of(sides)
    low, high = np.quantile(drawn[0] - drawn[1], INTERVAL).tolist()
    reach = math.hypot(run_error, difference - low), math.hypot(run_error, high - difference)
    count = len(student.answers[0].counts)
    return verdict_of(sides, reach, f"{count:,} test images", claims)


def tables(results: Mapping[str, BoxResult]) -> str:
    """In Markdown COCO's numbers and the AP by class, a column for each network; from which score
    on answers are best taken; and what the first network takes for what."""
    first = next(iter(results.values()))
    rows = []
    for group in ("scores", "of_classes"):
        for name in getattr(first, group):
            row = {"%": name if group == "scores" else f"AP of {name}"}
            for role, each in results.items():
                value = getattr(each, group)[name]
                row[role] = "" if value != value else f"{100 * value:.1f}"
            rows.append(row)
    lines = []
    for role, each in results.items():
        told = {name: f"{100 * each.best[name]:.1f} %" for name in ("f1", "precision", "recall")}
        lines.append(
            f"Answers of the {role} are best taken from a score of {each.best['threshold']:.3f} on "
            f"(F1 {told['f1']}, precision {told['precision']}, recall {told['recall']})."
        )
    parts = [table(rows, width=TERMINAL), "\n".join(lines)]
    names = [*first.of_classes, "nothing"]
    if len(names) <= MOST_SHOWN:
        counts = [
            {"there, found": own, **dict(zip(names, map(str, row), strict=True))}
            for own, row in zip(names, first.confusion, strict=True)
        ]
        parts.append(table(counts, width=TERMINAL))
    return "\n\n".join(parts)


def average_precision50(answers: Answers, times: np.ndarray) -> float:
    """The mean over classes of the AP at an overlap of 0.5, image i counted ``times[i]`` times.

    NaN where there is no object.
    """
    found = []
    totals = times @ answers.counts
    for kind, total in enumerate(totals):
        if not total:
            continue
        own = np.flatnonzero(answers.classes == kind)
        own = own[np.argsort(-answers.scores[own], kind="stable")]
        weight = times[answers.images[own]]
        hits, number = np.cumsum(weight * answers.is_right[own]), np.cumsum(weight)
        precision = hits / np.maximum(number, 1)
        # At each recall the best precision of that or a higher one.
        best = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(hits / total, RECALLS, side="left")
        found.append(np.append(best, 0.0)[places].mean())
    return fmean(found) if found else float("nan")


def _drawn(answers: Answers) -> np.ndarray:
    """AP50 of as many images, drawn with replacement: the same draws each time."""
    rng = np.random.default_rng(0)
    count = len(answers.counts)
    values = [
        average_precision50(answers, np.bincount(rng.integers(count, size=count), minlength=count))
        for _ in range(NUM_DRAWS)
    ]
    known = [value for value in values if value == value]
    return np.array(known + known[:1] * (NUM_DRAWS - len(known)))
