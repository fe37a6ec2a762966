"""What a comparison has found, as data, as a table and as sentences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from limbeck.recipes.study.arms import Arm

TABLE_FILE, DATA_FILE = "table.md", "comparison.json"
SHORT = 600  # seconds, up to which times are told in them
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
class Result:
    """One arm with one seed: scores in 0..1, and seconds, images per second and MiB."""

    scores: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)


@dataclass
class Comparison:
    """``results`` by arm and seed; ``failures``: why an arm has ended early; ``equal``: what all
    arms had in common, in sentences.
    """

    out: Path
    arms: list[Arm]
    equal: list[str]
    results: dict[str, dict[int, Result]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
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

    def values(self, arm: str, name: str) -> list[float]:
        """A score or cost of an arm, of each seed that has it."""
        results = self.results.get(arm, {}).values()
        found = [(result.scores | result.cost).get(name) for result in results]
        return [value for value in found if value is not None]

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
                    "seeds": {
                        str(seed): vars(result)
                        for seed, result in self.results.get(arm.name, {}).items()
                    },
                }
                for arm in self.arms
            ],
        }


def write(found: Comparison) -> None:
    """table.md and comparison.json in the comparison's folder, each whole or not at all."""
    from limbeck.documents import write_json
    from limbeck.files import write_text

    write_json(found.out / DATA_FILE, found.plain())
    text = report(found) + "\n"
    write_text(found.out / TABLE_FILE, text)


def report(found: Comparison) -> str:
    """The table, the best arm, what was equal, and what has failed, for people."""
    return "\n\n".join([table_of(found), best_of(found), *found.equal, *found.problems])


def table_of(found: Comparison) -> str:
    """A Markdown table: percentages, mean and standard deviation over the seeds."""
    from limbeck.evaluation.report import TERMINAL, table

    times = {"seconds": "pre-training"} | {
        f"{finetuned(part)}_seconds": _of_labels("fine-tuning", part) for part in found.parts
    }
    unit, each = time_unit(
        v for arm in found.arms for n in times for v in found.values(arm.name, n)
    )
    rows = []
    for arm in found.arms:
        cells: dict[str, Any] = {"arm": arm.name}
        for name, title in found.columns.items():
            if any(found.values(other.name, name) for other in found.arms):
                cells[title] = cell([100 * value for value in found.values(arm.name, name)])
        for name, title in times.items():
            if any(found.values(other.name, name) for other in found.arms):
                cells[f"{title}, {unit}"] = cell([v / each for v in found.values(arm.name, name)])
        for name, title in (("images_per_second", "images/s"), ("memory_mib", "MiB")):
            values = found.values(arm.name, name)
            cells[title] = f"{fmean(values):.0f}" if values else None
        cells["runs"] = len(found.results.get(arm.name, {}))
        if found.failures:
            cells["failed"] = "yes" if arm.name in found.failures else None
        rows.append(cells)
    return table(rows, width=TERMINAL)


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


def time_unit(seconds: Iterable[float]) -> tuple[str, int]:
    """In what times are told, and its seconds: minutes where one is long."""
    return ("min", 60) if max(seconds, default=0) >= SHORT else ("s", 1)


def cell(values: list[float]) -> str | None:
    """Mean and standard deviation for people; None without values."""
    if not values:
        return None
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}"
