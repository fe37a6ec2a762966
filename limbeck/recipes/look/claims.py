"""What an evaluation may claim and ask, and the baseline where none is named."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError
from limbeck.models.imagenet import NUM_IMAGENET, imagenet_ids

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.evaluation.scores import Claims
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.images import Images


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


def columns_of(encoder: Encoder, classes: Sequence[str]) -> list[int] | None:
    """Which output of its classifier answers for each class of the images; None: it is not asked.

    By name, where it names the same ones in whatever order. In the order of their numbers, where
    the images' classes are such (ImageNet-V2's folders, which sort as 0, 1, 10) and it names none.
    In their order, where it names none, and where only one side has WordNet's ids: these sort all
    of ImageNet's classifiers. Other names are other classes, or the same in an order of their own,
    so its answers would say nothing.
    """
    named = _names_of(encoder)
    if encoder.facts.num_classes != len(classes):
        return None
    if sorted(named) == sorted(classes):
        return _places(named, classes)
    numbers = [int(name) for name in classes if name.isascii() and name.isdigit()]
    may_be_numbered = not named or _are_wordnet(named) or len(classes) == NUM_IMAGENET
    if may_be_numbered and len(set(numbers)) == len(classes):
        return _places(sorted(numbers), numbers)
    if not named or _are_wordnet(named) != _are_wordnet(classes):
        return list(range(len(classes)))
    return None


def columns_among(encoder: Encoder, classes: Sequence[str]) -> list[int] | None:
    """``columns_of``, also of images that have only some of the network's classes, by name: it is
    asked among these alone. ImageNet's classifiers know WordNet's ids, whatever they call them."""
    columns = columns_of(encoder, classes)
    if columns is not None:
        return columns
    named: Sequence[str] = _names_of(encoder)
    if encoder.facts.num_classes == NUM_IMAGENET and not _are_wordnet(named):
        named = imagenet_ids()
    return _places(named, classes) if set(classes) <= set(named) else None


def are_imagenet(classes: Sequence[str]) -> bool:
    """Whether they are ImageNet's 1,000, by WordNet's ids."""
    return len(classes) == NUM_IMAGENET and sorted(classes) == imagenet_ids()


def _places(named: Sequence[Hashable], classes: Sequence[Hashable]) -> list[int]:
    place = {name: index for index, name in enumerate(named)}
    return [place[name] for name in classes]


def in_order_of(logits: Tensor, columns: list[int]) -> Tensor:
    """Logits (n, C) in the order of the images' classes."""
    return logits if columns == list(range(logits.shape[1])) else logits[:, columns]


def class_notes(groups: Mapping[str, Sequence[Encoder]], classes: Sequence[str]) -> list[str]:
    """A note for each role with a classifier of as many classes, unless it names just these."""
    notes = []
    for role, encoders in groups.items():
        for encoder in encoders:
            named, columns = _names_of(encoder), columns_of(encoder, classes)
            if encoder.facts.num_classes != len(classes) or named == list(classes):
                continue
            shown = f"{', '.join(named[:3])}{', ...' if len(named) > 3 else ''}"
            if not named:
                how = "does not name its classes: its answers are taken for the images', in order"
            elif columns is None:
                how = f"names other classes than the images have ({shown}): it is not asked"
            elif sorted(named) == sorted(classes):
                how = "has the images' classes in another order: they are matched by name"
            else:
                how = (
                    f"names its classes otherwise ({shown}): its answers are taken for the images' "
                    "in the order of WordNet's ids"
                )
            notes.append(f"The classifier of the {role} {how}.")
            break
    return notes


def _names_of(encoder: Encoder) -> list[str]:
    """What a network calls its classes; empty where that is but their numbers."""
    named = encoder.facts.origin.get("classes")
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        return []  # what a record says of them is anybody's
    are_numbers = all(re.fullmatch(rf"(LABEL_)?{i}", name) for i, name in enumerate(named))
    return [] if are_numbers else list(named)


def _are_wordnet(names: Sequence[str]) -> bool:
    return bool(names) and all(re.fullmatch(r"n\d{8}", name) for name in names)


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


def seen_images(students: list[Encoder], images: Images) -> list[str]:
    """A note where test images may have been among those a student was distilled on."""
    for student in students:
        data = student.facts.origin.get("data", {})
        is_same = data.get("fingerprint") == images.lineage["fingerprint"]
        if is_same and data.get("num_holdout", 0) < images.lineage["num_holdout"]:
            return [
                "Some test images were among those the student was distilled on (without labels): "
                "distil with the same --data.holdout-ratio, or name others with --data.eval-root."
            ]
    return []


def other_crop(students: list[Encoder], crop_ratio: float) -> list[str]:
    """A note where a student's record asks for another crop than all networks are shown."""
    from limbeck.models.finished import is_finished_student, read_record

    for student in students:
        folder = Path(student.facts.origin.get("source", ""))
        if is_finished_student(folder):
            recorded = read_record(folder)[1]["preprocessing"]["crop_ratio"]
            if recorded != crop_ratio:
                return [
                    f"All networks were shown crops of {crop_ratio:g}, but {folder} records "
                    f"{recorded:g}: pass --embed.crop-ratio {recorded:g} for the student's own."
                ]
    return []
