"""What a search has found, as data, as a table, as a picture and as a command."""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.recipes.study import results
from limbeck.recipes.study.rounds import Candidate, Outcome

log = logging.getLogger("limbeck")

DATA_FILE, PICTURE = "search.json", "pareto"
TITLES = {
    "top1": "top-1",
    "agreement": "agreement with the teacher",
    "linear_top1": "linear probe",
    "neighbours": "teacher's neighbours",
}
"""Scores of candidates, and their titles."""


@dataclass(frozen=True)
class Search:
    """A finished search in the folder ``out``; ``how`` says how latency was measured."""

    out: Path
    outcome: Outcome
    score_name: str
    how: str
    inherits: bool

    @property
    def winner_dir(self) -> Path:
        """The folder with the finished student of the winning shape."""
        return self.out / "winner"

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        baseline = self.outcome.baseline
        return {
            "winner": self.outcome.winner.name,
            "baseline": baseline and baseline.name,
            "limits": dict(self.outcome.limits),
            "score": self.score_name,
            "latency": self.how,
            "candidates": [each.plain() for each in self.outcome.candidates],
        }


def write(found: Search) -> None:
    """table.md, search.json and, with matplotlib, pareto.png and .svg in the search's folder."""
    texts = [table_of(found), verdict(found), found.how]
    results.write(found.out / DATA_FILE, found.plain(), texts)
    try:
        from limbeck.evaluation.pareto import draw_pareto

        draw_pareto(found.out / PICTURE, found.plain(), TITLES[found.score_name])
    except UserError as error:  # the table says the same
        log.warning("No picture: %s", error)


def table_of(found: Search) -> str:
    """A Markdown table of all candidates in the order of their training."""
    from limbeck.evaluation.pareto import pareto_front
    from limbeck.evaluation.report import TERMINAL, table

    outcome = found.outcome
    whole = [each for each in outcome.candidates if each.scores]
    front = pareto_front([(each.costs["latency_ms"], each.score) for each in whole])
    best = {id(whole[place]) for place in front}
    rows = [_row(each, found, id(each) in best) for each in outcome.candidates]
    return table(rows, width=TERMINAL)


def _row(each: Candidate, found: Search, is_on_front: bool) -> dict[str, Any]:
    marks = {"winner": found.outcome.winner, "width alone": found.outcome.baseline}
    notes = [name for name, one in marks.items() if one is each]
    notes += ["front"] if is_on_front else []
    notes += ["failed"] if each.failure else []
    return {
        "round": each.round,
        "factor": each.factor,
        f"{TITLES[found.score_name]} %": f"{100 * each.score:.1f}" if each.scores else None,
        "params, M": f"{each.costs['params'] / 1e6:.3f}",
        "MACs, M": f"{each.costs['macs'] / 1e6:.1f}",
        "latency, ms": f"{each.costs['latency_ms']:.2f}",
        "s": f"{each.seconds:.0f}",
        "": ", ".join(notes) or None,
        "shape": each.shape.text,
    }


def verdict(found: Search) -> str:
    """The winner beside the seed and beside the seed thinned by width alone, in sentences."""
    outcome = found.outcome
    seed, winner, baseline = outcome.candidates[0], outcome.winner, outcome.baseline
    saved = ", ".join(
        f"{seed.costs[name] / winner.costs[name]:.2f} times {what}"
        for name, what in (("params", "fewer parameters"), ("macs", "fewer MACs"),
                           ("latency_ms", "faster"))
    )  # fmt: skip
    title = TITLES[found.score_name]
    lines = [
        f"Winner: {winner.shape.text}, {title} {100 * winner.score:.1f} % "
        f"(the seed {100 * seed.score:.1f} %); {saved}."
    ]
    if baseline is None:
        lines.append(
            "Width alone does not meet the limits, or its training failed, so there is nothing to "
            "compare with."
        )
    elif baseline is winner:
        lines.append("No other factor beat width alone, which is the winner.")
    else:
        lines.append(
            f"Width alone, {baseline.shape.text}: {100 * baseline.score:.1f} %, a difference of "
            f"{100 * (winner.score - baseline.score):+.1f} points."
        )
    runs = len(winner.scores)
    lines.append(
        f"Scores are the mean of {runs} brief training{'s' if runs > 1 else ''}, and the winner is "
        f"the best of {len(outcome.candidates)}, which flatters it: train it and width alone in "
        "full, with other seeds, before you count on the difference."
    )
    return "\n".join(lines)


def report(found: Search) -> str:
    """The table, the verdict and what to do next, for the command line."""
    shape = shlex.quote(found.outcome.winner.shape.text)
    return (
        f"{table_of(found)}\n\n{verdict(found)}\n{found.how}\n\n"
        f"Its brief training is in {found.winner_dir} (student.safetensors, student.json).\n"
        f"Train it in full:  limbeck distill --student {shape} ...\n"
        f"Or go on from it:  limbeck finetune --student {shlex.quote(str(found.winner_dir))} "
        "--data LABELLED_IMAGES"
    )
