"""What an evaluation may claim and ask, and the baseline where none is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError

if TYPE_CHECKING:
    from limbeck.evaluation.scores import Claims
    from limbeck.models.encoder import Encoder


def claims_of(students: list[Encoder], has_baseline: bool) -> tuple[Claims, list[str]]:
    """What the comparison can claim, and a note where that is not the question."""
    from limbeck.evaluation.scores import DISTILLED, better_than

    if not has_baseline:
        return better_than("untrained weights"), [
            "The baseline is the student's architecture, untrained, which says nothing of "
            "distillation; for that pass --baseline RUN (the same student without it)."
        ]
    if all(may_be_distilled(student.facts.origin) for student in students):
        return DISTILLED, []
    return better_than("the baseline"), []


def may_be_distilled(origin: dict[str, Any]) -> bool:
    """Whether a teacher is on record, at the end or before; or nothing is, as of a bare file."""
    if origin.get("teacher"):
        return True
    if "student" in origin:  # what it was before it was fine-tuned
        return may_be_distilled(origin["student"])
    is_fresh = str(origin.get("source", "")).startswith("fresh, seed ")
    return "teacher" not in origin and not is_fresh


def classifies(encoder: Encoder, classes: Sequence[str]) -> bool:
    """Whether its classifier can be asked about images: of as many classes, not named otherwise.

    Names of which none is the images' (WordNet's, where these have words) say nothing.
    """
    named = encoder.facts.origin.get("classes") or classes
    is_other = list(named) != list(classes) and bool(set(named) & set(classes))
    return encoder.facts.num_classes == len(classes) and not is_other


def other_classes(groups: dict[str, list[Encoder]], classes: Sequence[str]) -> list[str]:
    """A note for each role with a classifier of as many other classes, which is not asked."""
    return [
        f"The classifier of the {role} names other classes than the images have: it is not asked."
        for role, encoders in groups.items()
        if any(
            each.facts.num_classes == len(classes) and not classifies(each, classes)
            for each in encoders
        )
    ]


def untrained(student: Encoder, seed: int) -> Encoder:
    """The student's architecture with fresh weights, without a classifier: it would only guess."""
    from limbeck.models.build import build_fresh
    from limbeck.models.vit import KINDS

    architecture = dict(student.facts.architecture)
    if architecture.get("kind") not in KINDS:
        raise UserError(
            f"The student {student.facts.origin.get('source', '')} can't be built untrained to "
            "compare it with; pass --baseline, the same student without distillation."
        )
    architecture["kwargs"] = architecture["kwargs"] | {"num_classes": 0}
    return build_fresh(architecture, {"source": f"untrained, seed {seed}"}, seed).eval()
