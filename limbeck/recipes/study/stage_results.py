"""What a two-stage distillation has found, as data, as a table and as sentences."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from limbeck.recipes.study.comparison import cell, time_unit
from limbeck.recipes.study.stages import ARMS, Arm, arm_dir

if TYPE_CHECKING:
    from limbeck.evaluation.robustness import Robustness
    from limbeck.evaluation.scores import Claims, Score, Verdict

TABLE_FILE, DATA_FILE = "table.md", "two_stage.json"
SCORES = {"top1": "top-1 %", "top5": "top-5 %", "corrupted_top1": "corrupted %"}
TIMES = {"stage_one_seconds": "stage one", "tuning_seconds": "fine-tuning"}


@dataclass(frozen=True)
class Measured:
    """A classifier's scores on the held-out images, and its costs: "parameters", "macs",
    "images_per_second", and the seconds of ``TIMES`` that it took. ``corrupted``: its answers under
    corruptions, where asked for.
    """

    scores: dict[str, Score]
    cost: dict[str, float]
    corrupted: dict[str, Robustness] = field(default_factory=dict)


@dataclass
class TwoStages:
    """``results`` by arm and seed; ``teacher``: the classifier's that helped, if one did;
    ``equal``: what all arms had in common, in sentences.
    """

    out: Path
    arms: list[Arm]
    equal: list[str]
    teacher: Measured | None = None
    results: dict[str, dict[int, Measured]] = field(default_factory=dict)

    @property
    def best_arm(self) -> Arm:
        """The one with the most stages."""
        return max(self.arms, key=lambda arm: (arm.is_generic + arm.is_taught, arm.is_taught))

    @property
    def student(self) -> Path:
        """The finished classifier: of the arm with the most stages, the first seed's."""
        return arm_dir(self.out, self.best_arm, 0)

    def scores(self, arm: str, name: str) -> list[Score]:
        """A score of an arm, of each seed."""
        found = [result.scores.get(name) for result in self.results.get(arm, {}).values()]
        return [score for score in found if score is not None]

    def costs(self, arm: str, name: str) -> list[float]:
        """A cost of an arm, of each seed that has it."""
        found = [result.cost.get(name) for result in self.results.get(arm, {}).values()]
        return [value for value in found if value is not None]

    def verdicts(self) -> dict[str, Verdict]:
        """Both stages against each other arm, by its name."""
        from limbeck.evaluation.scores import compare

        both = self.scores("both", "top1")
        return {
            arm.name: compare(both, others, _claims(arm))
            for arm in self.arms
            if both and arm.name != "both" and (others := self.scores(arm.name, "top1"))
        }

    def corrupted(self) -> dict[str, Any]:
        """The answers of teacher and arms under corruptions; empty where they were not asked."""
        from limbeck.evaluation.robustness import summarize

        groups = {arm: list(of_seed.values()) for arm, of_seed in self.results.items()}
        groups |= {"teacher": [self.teacher]} if self.teacher else {}
        return summarize({name: [run.corrupted for run in runs] for name, runs in groups.items()})

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""

        def of(result: Measured) -> dict[str, Any]:
            scores = {name: score.plain() for name, score in result.scores.items()}
            return {"scores": scores, "cost": result.cost}

        return {
            "student": str(self.student),
            "teacher": self.teacher and of(self.teacher),
            "arms": {
                arm.name: {
                    str(seed): of(result) | {"folder": str(arm_dir(self.out, arm, seed))}
                    for seed, result in self.results.get(arm.name, {}).items()
                }
                for arm in self.arms
            },
            "verdicts": {name: vars(verdict) for name, verdict in self.verdicts().items()},
            "corrupted": self.corrupted(),
            "equal": self.equal,
        }


def _claims(arm: Arm) -> Claims:
    is_single = arm.is_generic or arm.is_taught
    what = f"'{arm.name}' alone" if is_single else "neither"
    return (
        f"Two stages are better than {what}: {{}} against {{}}",
        f"Two stages are not better than {what}: {{}} against {{}}",
    )


def write(found: TwoStages) -> None:
    """table.md and two_stage.json in the folder of the runs, each whole or not at all."""
    from limbeck.documents import write_json
    from limbeck.files import write_text

    write_json(found.out / DATA_FILE, found.plain())
    text = "\n\n".join(_findings(found)) + "\n"
    write_text(found.out / TABLE_FILE, text)


def report(found: TwoStages) -> str:
    """The table, the verdict, what was equal, and what to do next, for people."""
    return "\n\n".join([*_findings(found), _what_next(found)])


def _findings(found: TwoStages) -> list[str]:
    from limbeck.evaluation.robustness import tables

    return [table_of(found), verdict_of(found), *tables(found.corrupted()), *found.equal]


def table_of(found: TwoStages) -> str:
    """A Markdown table: percentages, mean and standard deviation over the seeds."""
    from limbeck.evaluation.report import TERMINAL, table

    teacher = found.teacher
    spent = [v for arm in found.arms for name in TIMES for v in found.costs(arm.name, name)]
    unit, each = time_unit(spent + ([teacher.cost.get("tuning_seconds", 0.0)] if teacher else []))
    rows = []
    if teacher is not None:
        taught = {name: [score] for name, score in teacher.scores.items()}
        costs = {name: [value] for name, value in teacher.cost.items()}
        rows.append(_row("teacher", taught, costs, None, unit, each) | {"runs": 1})
    for arm in found.arms:
        scores = {name: found.scores(arm.name, name) for name in SCORES}
        costs = {
            name: found.costs(arm.name, name)
            for name in ("parameters", "macs", "images_per_second", *TIMES)
        }
        of_teacher = teacher.scores["top1"].mean if teacher and teacher.scores else None
        rows.append(
            _row(arm.name, scores, costs, of_teacher, unit, each)
            | {"runs": len(found.results.get(arm.name, {}))}
        )
    filled = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    order = dict.fromkeys(key for row in rows for key in row)
    return table(rows, [key for key in order if key in filled], TERMINAL)


def _row(
    name: str,
    scores: dict[str, list[Score]],
    costs: dict[str, list[float]],
    of_teacher: float | None,
    unit: str,
    each: float,
) -> dict[str, Any]:
    def percent(key: str, whole: float = 1.0) -> str | None:
        return cell([100 * score.mean / whole for score in scores.get(key, [])])

    def first(key: str, shown: str, scale: float = 1.0) -> str | None:
        values = costs.get(key)
        return format(fmean(values) / scale, shown) if values else None

    return {
        "network": name,
        SCORES["top1"]: percent("top1"),
        "of the teacher's %": percent("top1", of_teacher) if of_teacher else None,
        SCORES["top5"]: percent("top5"),
        SCORES["corrupted_top1"]: percent("corrupted_top1"),
        "M params": first("parameters", ".2f", 1e6),
        "G MACs": first("macs", ".3g", 1e9),
        "images/s": first("images_per_second", ".0f"),
        **{
            f"{title}, {unit}": cell([value / each for value in costs.get(key, [])])
            for key, title in TIMES.items()
        },
    }


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
        f"On other images:  limbeck evaluate --student {student} --data LABELLED_IMAGES\n"
        f'In Python:        classifier = limbeck.load("{found.student}")'
    )
