"""What a classifier takes for what: its confusion, by class, and its calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.evaluation.calibration import calibration_error, probabilities_of
from limbeck.evaluation.report import TERMINAL, table

MOST_SHOWN = 20
"""Classes in a table for people; of more the hardest are shown."""


@dataclass(frozen=True)
class ClassResult:
    """Answers to labelled images by class, of one or more runs together.

    ``confusion`` (C, C) int64: row the class, column the answer. ``calibration``: the expected
    calibration error (0..1), the mean over runs. ``how``: who answers.
    """

    classes: tuple[str, ...]
    confusion: Tensor
    calibration: float
    how: str

    def rows(self) -> list[dict[str, Any]]:
        """Of each class that there are images of: how many, recall and precision in 0..1 (None
        where it was never the answer), and what it is most often taken for."""
        rows = []
        counts, taken = self.confusion.sum(1).tolist(), self.confusion.sum(0).tolist()
        for index, name in enumerate(self.classes):
            if not counts[index]:
                continue
            right = int(self.confusion[index, index])
            others = self.confusion[index].clone()
            others[index] = 0
            most, of = (int(each) for each in others.max(dim=0))
            rows.append({
                "class": name,
                "images": counts[index],
                "recall": right / counts[index],
                "precision": right / taken[index] if taken[index] else None,
                "taken_for": self.classes[of] if most else None,
                "times": most,
            })  # fmt: skip
        return rows

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "how": self.how,
            "calibration_error": self.calibration,
            "classes": self.rows(),
            "confusion": self.confusion.tolist(),
        }


def class_result(logits: Tensor, labels: Tensor, classes: Sequence[str], how: str) -> ClassResult:
    """The result of one run: logits (n, C) and labels (n,) int64 of ``classes``, in their order."""
    count = len(classes)
    pairs = labels * count + logits.argmax(dim=1)
    confusion = torch.bincount(pairs, minlength=count**2).view(count, count)
    calibration = calibration_error(probabilities_of(logits), labels)
    return ClassResult(tuple(classes), confusion, calibration, how)


def joined(runs: Sequence[ClassResult]) -> ClassResult:
    """Several runs as one."""
    calibration = sum(run.calibration for run in runs) / len(runs)
    confusion = torch.stack([run.confusion for run in runs]).sum(0)
    return ClassResult(runs[0].classes, confusion, calibration, runs[0].how)


def class_table(found: ClassResult) -> str:
    """A Markdown table by class, the hardest first, and which these are where not all are shown."""
    rows = sorted(found.rows(), key=lambda row: row["recall"])
    shown = [
        {
            "class": row["class"],
            "images": row["images"],
            "recall %": f"{100 * row['recall']:.1f}",
            "precision %": "" if row["precision"] is None else f"{100 * row['precision']:.1f}",
            "taken for": f"{row['taken_for']} ({row['times']})" if row["times"] else "",
        }
        for row in rows[:MOST_SHOWN]
    ]
    which = (
        f"The {len(shown)} hardest of {len(rows)} classes" if len(rows) > len(shown) else "Classes"
    )
    return f"{which}, {found.how}:\n\n{table(shown, width=TERMINAL)}"
