"""The gate: what a file answers is held against PyTorch, image by image, before anybody gets it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from limbeck.errors import RunError
from limbeck.exports.formats import BY_SCORE, Precision

NUM_WORST = 3
Answers = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tolerance:
    """What is still the same network.

    ``difference``: of each output of each image, the norm of the difference as a part of the
    output's own. ``agreement``: the least share of images, or of pixels, whose class is the same.
    ``loss``: points of the task's score; one image may always change.
    """

    difference: float
    agreement: float
    loss: float = 0.5


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-3, 0.999),
    "fp16": Tolerance(2e-2, 0.98),
    "bf16": Tolerance(1e-1, 0.98),
    "int8": Tolerance(3e-1, 0.98),
}
"""Of fp32 and fp16 ten times what rounding alone was seen to do and more, of bf16 three times; of
int8 (seen: 0.05 to 0.22) the classes decide."""


LEAST_SCORE, SAME_BOX = 0.1, 0.75
"""From which score on a detector's answers are looked for in the file's, and from which overlap
(IoU) on a box of the same class is the same."""


class Comparison:
    """Answers of PyTorch and of a file to the same images, and in what they differ.

    By output, one value an image: ``relative`` and mean differences, ``agreement`` of classes.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.relative: dict[str, list[float]] = {}
        self.mean: dict[str, list[float]] = {}
        self.largest: dict[str, float] = {}
        self.agreement: dict[str, list[float]] = {}

    def add(self, keys: Sequence[str], expected: Answers, found: Answers) -> None:
        """Compare a batch in the outputs that the file has; raises RunError for another shape."""
        self.keys += keys
        if "boxes" in found:
            self._agree("boxes", _same_boxes(expected, found))
        for name, own in found.items():
            other = expected[name]
            if own.shape != other.shape:
                raise RunError(
                    f"The file is not written: its '{name}' is {list(own.shape)}, and that of "
                    f"PyTorch {list(other.shape)}."
                )
            if name in BY_SCORE:
                continue
            if own.dtype.kind == "f":
                self._differ(name, keys, *(each.reshape(len(own), -1).astype(float) for each in
                                     (own, other)))  # fmt: skip
            if own.ndim == 2 and name.endswith("logits"):
                self._agree(name, own.argmax(1) == other.argmax(1))
            elif own.dtype.kind != "f":  # classes already
                self._agree(name, own == other)

    def _differ(self, name: str, keys: Sequence[str], own: np.ndarray, other: np.ndarray) -> None:
        if not (finite := np.isfinite(other).all(1)).all():
            raise RunError(
                f"The network itself, in PyTorch, answers {keys[int(finite.argmin())]} with values "
                f"in '{name}' that are not finite; nothing can be held against that."
            )
        distance = np.abs(own - other)
        distance[~np.isfinite(distance)] = np.inf
        norm = np.linalg.norm(other, axis=1).clip(1e-12)
        self.relative.setdefault(name, []).extend(np.linalg.norm(distance, axis=1) / norm)
        self.mean.setdefault(name, []).extend(distance.mean(1))
        self.largest[name] = max(self.largest.get(name, 0.0), float(distance.max()))

    def _agree(self, name: str, same: np.ndarray) -> None:
        self.agreement.setdefault(name, []).extend(same.reshape(len(same), -1).mean(1))

    def plain(self) -> dict[str, dict[str, float]]:
        """By output what is told of it, JSON-ready if all is finite."""
        found = {
            name: {
                "largest": self.largest[name],
                "mean": float(np.mean(self.mean[name])),
                "relative": float(max(values)),
            }
            for name, values in self.relative.items()
        }
        for name, shares in self.agreement.items():
            found.setdefault(name, {})["agreement"] = float(np.mean(shares))
        return found

    def failures(self, tolerance: Tolerance) -> list[str]:
        """In words, what is beyond the tolerance."""
        said = []
        for name, values in self.plain().items():
            if values.get("relative", 0) > tolerance.difference:
                said.append(
                    f"'{name}' differs by {values['relative']:.2g} of its norm (tolerance "
                    f"{tolerance.difference:g})"
                )
            if values.get("agreement", 1) < tolerance.agreement:
                share = f"{100 * values['agreement']:.4g} % of the {_what(name)} of '{name}'"
                said.append(f"{share} are the same (tolerance {100 * tolerance.agreement:g} %)")
        return said

    def worst(self) -> list[str]:
        """The images that differ most, the worst first: by classes, then by values."""
        bad = [1 - np.array(each) for each in self.agreement.values()]
        bad += [np.array(each) for each in self.relative.values()]
        ranks = [max(each) for each in zip(*bad, strict=True)]
        return [self.keys[place] for place in np.argsort(ranks)[::-1][:NUM_WORST]]

    def first(self, tolerance: Tolerance) -> str | None:
        """The first output, as they are computed, that is beyond the tolerance."""
        beyond = (name for name, each in self.relative.items() if max(each) > tolerance.difference)
        return next(beyond, None)


def _same_boxes(expected: Answers, found: Answers) -> np.ndarray:
    """Of each image the share of its sure answers, by their scores, that the file has, too."""
    same = []
    for box, kind, score, own, kinds in zip(
        *(expected[name] for name in ("boxes", "classes", "scores")),
        *(found[name] for name in ("boxes", "classes")),
        strict=True,
    ):
        overlap = box_iou(*(torch.from_numpy(each).double() for each in (box, own))).numpy()
        is_there = ((overlap >= SAME_BOX) & (kind[:, None] == kinds[None])).any(1)
        weight = np.where(score >= LEAST_SCORE, score, 0)
        same.append((weight * is_there).sum() / weight.sum() if weight.any() else 1.0)
    return np.array(same)[:, None]


def _what(name: str) -> str:
    return "boxes" if name == "boxes" else "classes"


def summary(outputs: dict[str, dict[str, Any]]) -> list[str]:
    """``Comparison.plain`` in lines, for people."""
    lines = []
    for name, told in outputs.items():
        parts = []
        if "largest" in told:
            parts.append(
                f"largest difference {told['largest']:.2g}, mean {told['mean']:.2g}, at most "
                f"{told['relative']:.2g} of an image's norm"
            )
        if "agreement" in told:
            parts.append(f"{100 * told['agreement']:.4g} % of the {_what(name)} the same")
        lines.append(f"  {name}: {'; '.join(parts)}")
    return lines
