"""What a study has found: scores and costs by arm and seed, and the table that is made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, ClassVar

from limbeck.documents import write_json
from limbeck.files import write_text

if TYPE_CHECKING:
    from limbeck.evaluation.robustness import Robustness

TABLE_FILE = "table.md"
SHORT = 600  # seconds, up to which times are told in them


@dataclass
class Result:
    """One arm with one seed: scores in 0..1, floats or Scores; costs, such as "seconds"; and its
    answers under corruptions where they were asked for."""

    scores: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    corrupted: dict[str, Robustness] = field(default_factory=dict)

    def add(self, found: Result) -> None:
        """Take in what was measured besides."""
        self.scores |= found.scores
        self.cost = found.cost | self.cost
        self.corrupted |= found.corrupted

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        of_images = {k: v.plain() for k, v in self.scores.items() if hasattr(v, "plain")}
        return {"scores": self.scores | of_images, "cost": self.cost}


ByArm = dict[str, dict[int, Result]]
Row = dict[str, list[float]]


@dataclass
class Results(ABC):
    """``results`` by arm and seed; ``failures``: why an arm has ended early; ``equal``: what all
    arms, which have names, had in common, in sentences.
    """

    FILE: ClassVar[str]
    out: Path
    arms: list[Any]
    equal: list[str]
    results: ByArm = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @abstractmethod
    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""

    @abstractmethod
    def findings(self) -> list[str]:
        """The table, and sentences for people."""

    def write(self) -> None:
        """Keep what was found in the folder ``out``, as data in ``FILE`` and for people."""
        write(self.out / self.FILE, self.plain(), self.findings())

    def by_seed(self, arm: str) -> dict[str, dict[str, Any]]:
        """JSON-ready data of an arm."""
        return {str(seed): result.plain() for seed, result in self.results.get(arm, {}).items()}

    def row(self, arm: str) -> Row:
        """All scores and costs of an arm in numbers; it has "failed" or not."""
        has_failed: Row = {"failed": [1.0]} if arm in self.failures else {}
        return row_of(self.results.get(arm, {}).values()) | has_failed

    def values(self, arm: str, name: str) -> list[float]:
        """A score or cost of an arm in numbers, of each seed that has it."""
        return self.row(arm).get(name, [])

    def scores(self, arm: str, name: str) -> list[Any]:
        """A score of an arm as it was measured, of each seed that has it."""
        results = self.results.get(arm, {}).values()
        return [result.scores[name] for result in results if name in result.scores]


def row_of(results: Iterable[Result]) -> Row:
    """Scores and costs by name, each of all results that have it; and the number of "runs"."""
    found = [result.scores | result.cost for result in results]
    row: Row = {"runs": [len(found)]}
    for name in dict.fromkeys(name for each in found for name in each):
        row[name] = [getattr(each[name], "mean", each[name]) for each in found if name in each]
    return row


@dataclass(frozen=True)
class Column:
    """A column of a study's table: what it shows of the values of that name, where a row has any.

    It is left out where no row knows the name.
    """

    name: str
    title: str
    show: Callable[[list[float]], Any]


def table_of(label: str, rows: Mapping[str, Row], columns: Iterable[Column]) -> str:
    """A Markdown table of a row for each arm, under the title ``label``."""
    from limbeck.evaluation.report import TERMINAL, table

    kept = [each for each in columns if any(each.name in row for row in rows.values())]
    cells = [
        {label: name}
        | {each.title: each.show(row[each.name]) if row.get(each.name) else None for each in kept}
        for name, row in rows.items()
    ]
    return table(cells, width=TERMINAL)


def percent(values: list[float], whole: float = 1.0) -> str:
    """For people: the mean and, of several, the standard deviation."""
    return cell([100 * value / whole for value in values])


def mean_of(shown: str, scale: float = 1.0) -> Callable[[list[float]], str]:
    """What shows the mean alone, in a format, of values in ``scale``."""
    return lambda values: format(fmean(values) / scale, shown)


def time_columns(times: Mapping[str, str], rows: Mapping[str, Row]) -> list[Column]:
    """Columns of seconds by name and title: in minutes where one is long."""
    longest = max(
        (v for row in rows.values() for name in times for v in row.get(name, [])), default=0
    )
    unit, each = ("min", 60) if longest >= SHORT else ("s", 1)

    def show(values: list[float]) -> str:
        return cell([value / each for value in values])

    return [Column(name, f"{title}, {unit}", show) for name, title in times.items()]


RUNS = Column("runs", "runs", lambda values: values[0])


def cell(values: list[float]) -> str:
    """Mean and standard deviation for people."""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}"


def write(file: Path, data: dict[str, Any], texts: Iterable[str]) -> None:
    """The data in a JSON file and the texts in table.md beside it, each whole or not at all."""
    write_json(file, data)
    write_text(file.parent / TABLE_FILE, "\n\n".join(texts) + "\n")
