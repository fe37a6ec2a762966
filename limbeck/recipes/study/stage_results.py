"""What a two-stage distillation has found, as data, as a table and as sentences."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from limbeck.recipes.study import results
from limbeck.recipes.study.results import RUNS, Column, Result, Results, mean_of, percent, row_of
from limbeck.recipes.study.stage_two.contract import StageTwo
from limbeck.recipes.study.stages import ARMS, Way, folder_of

if TYPE_CHECKING:
    from limbeck.evaluation.scores import Claims, Verdict

TIMES = {"stage_one_seconds": "stage one", "tuning_seconds": "fine-tuning"}


@dataclass
class TwoStages(Results):
    """Results of ``stages.Way``; ``teacher``: the network's that helped, if one did."""

    FILE = "two_stage.json"
    task: StageTwo = field(kw_only=True)
    teacher: Result | None = None

    @property
    def best_arm(self) -> Way:
        """The one with the most stages."""
        return max(self.arms, key=lambda arm: (arm.is_generic + arm.is_taught, arm.is_taught))

    @property
    def student(self) -> Path:
        """The finished network: of the arm with the most stages, the first seed's."""
        return folder_of(self.out, 0, self.best_arm.name)

    def verdicts(self) -> dict[str, Verdict]:
        """Both stages against each other arm, by its name."""
        task = self.task
        both = self.scores("both", task.score)
        return {
            arm.name: task.compare(both, others, _claims(arm))
            for arm in self.arms
            if both and arm.name != "both" and (others := self.scores(arm.name, task.score))
        }

    def runs(self) -> dict[str, list[Result]]:
        """What was found of arms and teacher, run by run."""
        groups = {arm: list(of_seed.values()) for arm, of_seed in self.results.items()}
        return groups | ({"teacher": [self.teacher]} if self.teacher else {})

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "student": str(self.student),
            "teacher": self.teacher and self.teacher.plain(),
            "arms": {
                arm.name: {
                    seed: own | {"folder": str(folder_of(self.out, int(seed), arm.name))}
                    for seed, own in self.by_seed(arm.name).items()
                }
                for arm in self.arms
            },
            "verdicts": {name: vars(verdict) for name, verdict in self.verdicts().items()},
            **self.task.more(self.runs()),
            "equal": self.equal,
        }

    def findings(self) -> list[str]:
        """The table, the verdict, the task's own tables, and what was equal."""
        tables = self.task.tables(self.runs())
        return [table_of(self), verdict_of(self), *tables, *self.equal]


def _claims(arm: Way) -> Claims:
    is_single = arm.is_generic or arm.is_taught
    what = f"'{arm.name}' alone" if is_single else "neither"
    return (
        f"Two stages are better than {what}: {{}} against {{}}",
        f"Two stages are not better than {what}: {{}} against {{}}",
    )


def report(found: TwoStages) -> str:
    """What was found and what to do next, for people."""
    return "\n\n".join([*found.findings(), _what_next(found)])


def table_of(found: TwoStages) -> str:
    """A Markdown table: percentages, mean and standard deviation over the seeds."""
    task, runs = found.task, found.runs()
    names = [arm.name for arm in found.arms]
    rows = {name: row_of(runs.get(name, ())) for name in ("teacher", *names)}
    if found.teacher is None:
        del rows["teacher"]
    first, *others = task.columns
    of_teacher = fmean(rows["teacher"].get(first.name, [0.0])) if found.teacher else 0.0
    for name, row in rows.items():
        if first.name in row and of_teacher and name != "teacher":
            row["of_teacher"] = row[first.name]
    columns = [
        first,
        Column("of_teacher", "of the teacher's %", partial(percent, whole=of_teacher)),
        *others,
        Column("parameters", "M params", mean_of(".2f", 1e6)),
        Column("macs", "G MACs", mean_of(".3g", 1e9)),
        Column("images_per_second", "images/s", mean_of(".0f")),
        *results.time_columns(TIMES, rows),
        RUNS,
    ]
    return results.table_of("network", rows, columns)


def verdict_of(found: TwoStages) -> str:
    """Did two stages help over each one? And by how much, in sentences."""
    verdicts = found.verdicts()
    if not verdicts:
        missing = " ".join(name for name in ARMS)
        return (
            "What each stage gives is not known: that takes 'both' and another arm. Add them to "
            f"the same folder with --arms {missing}."
        )
    singles = {name: verdicts[name] for name in ("generic", "specific") if name in verdicts}
    lines = [f"- Against {name!r}: {verdict.why}" for name, verdict in verdicts.items()]
    if singles:
        lines.insert(0, _summary({name: verdict.kind for name, verdict in singles.items()}))
    return "\n".join(lines)


def _summary(kinds: dict[str, str]) -> str:
    ways = {
        "helped": "helped over",
        "did not help": "did not help over",
        "too close to tell": "are too close to tell from",
    }
    parts = [
        f"{way} {' and '.join(f'{each!r} alone' for each in names)}"
        for kind, way in ways.items()
        if (names := [name for name, own in kinds.items() if own == kind])
    ]
    return f"Verdict: two stages {', and '.join(parts)}."


def _what_next(found: TwoStages) -> str:
    student = shlex.quote(str(found.student))
    num_seeds = len(found.results.get(found.best_arm.name, {}))
    which = f" (seed 0 of {num_seeds}; the others are beside it)" if num_seeds > 1 else ""
    return (
        f"The student is in {found.student}{which}, of the arm '{found.best_arm.name}'.\n"
        f"On other images:  limbeck evaluate --student {student} --data {found.task.images}\n"
        f'In Python:        {found.task.network} = limbeck.load("{found.student}")'
    )
