"""What a comparison has found, as data, as a table and as sentences."""

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from limbeck.recipes.study import results
from limbeck.recipes.study.results import RUNS, Column, Results, Row, mean_of, percent

PROBES = {
    "linear_top1": "linear %",
    "knn_top1": "kNN %",
    "few_5_top1": "5 labels %",
    "neighbours": "teacher's neighbours %",
}
"""Scores of frozen students, and their titles."""


def finetuned(fraction: float) -> str:
    """The beginning of the names of scores and costs of a fine-tuning with a part of the labels."""
    return f"finetuned_{fraction:g}" if fraction < 1 else "finetuned"


@dataclass
class Comparison(Results):
    """Results of ``arms.Entry``."""

    FILE = "comparison.json"
    label_fractions: tuple[float, ...] = (1.0,)

    @property
    def problems(self) -> list[str]:
        """The failures in words; with any, the command exits with 1."""
        return [f"{name} failed: {reason}" for name, reason in self.failures.items()]

    @property
    def columns(self) -> dict[str, str]:
        """Scores in the table, and their titles; the first that arms have decides."""
        tuned = {f"{finetuned(part)}_top1": _of_labels("fine-tuned %", part) for part in self.parts}
        return tuned | PROBES

    @property
    def parts(self) -> list[float]:
        """The label fractions, the largest first."""
        return sorted(self.label_fractions, reverse=True)

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "equal": self.equal,
            "arms": [
                {
                    "name": arm.name,
                    "method": arm.method,
                    "options": arm.own,
                    "failure": self.failures.get(arm.name),
                    "seeds": self.by_seed(arm.name),
                }
                for arm in self.arms
            ],
        }

    def findings(self) -> list[str]:
        """The table, the best arm, what was equal, and what has failed."""
        return [table_of(self), best_of(self), *self.equal, *self.problems]


def report(found: Comparison) -> str:
    """What was found, for people."""
    return "\n\n".join(found.findings())


def table_of(found: Comparison) -> str:
    """A Markdown table: percentages, mean and standard deviation over the seeds."""
    always: Row = {"images_per_second": [], "memory_mib": []}
    rows = {arm.name: always | found.row(arm.name) for arm in found.arms}
    times = {"seconds": "pre-training"} | {
        f"{finetuned(part)}_seconds": _of_labels("fine-tuning", part) for part in found.parts
    }
    columns = [
        *(Column(name, title, percent) for name, title in found.columns.items()),
        *results.time_columns(times, rows),
        Column("images_per_second", "images/s", mean_of(".0f")),
        Column("memory_mib", "MiB", mean_of(".0f")),
        RUNS,
        Column("failed", "failed", lambda _: "yes"),
    ]
    return results.table_of("arm", rows, columns)


def best_of(found: Comparison) -> str:
    """The arm with the highest mean, and those that its lead does not stand clear of."""
    whole = [arm.name for arm in found.arms if arm.name not in found.failures]
    by_column = {
        title: {arm: found.values(arm, name) for arm in whole if found.values(arm, name)}
        for name, title in found.columns.items()
    }
    title = next((title for title, of_arm in by_column.items() if len(of_arm) > 1), None)
    if title is None:
        return "There are not two arms to compare."
    scores = by_column[title]
    means = {arm: 100 * fmean(values) for arm, values in scores.items()}
    best = max(means, key=means.__getitem__)
    text = f"Best by {title}: {best}, {means[best]:.1f}"
    if min(map(len, scores.values())) < 2:
        return f"{text}. One run of an arm says nothing of luck; take --seeds 3 or more."
    spread = {arm: 100 * stdev(values) for arm, values in scores.items()}
    lead = {arm: means[best] - mean for arm, mean in means.items() if arm != best}
    near = [arm for arm in lead if lead[arm] <= spread[best] + spread[arm]]
    if near:
        return f"{text}; not clear of {', '.join(near)}, whose spreads over seeds overlap."
    return f"{text}; clear of all others by more than their spreads over seeds."


def _of_labels(words: str, part: float) -> str:
    return f"{words} ({100 * part:g} % of labels)" if part < 1 else words
