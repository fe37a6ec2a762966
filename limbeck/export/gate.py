"""The gate: what a file answers is held against PyTorch, image by image, before anybody gets it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.errors import RunError
from limbeck.export.formats import Precision

NUM_WORST = 3


@dataclass(frozen=True)
class Tolerance:
    """What is still the same network.

    ``difference``: of each output of each image, the norm of the difference as a part of the
    output's own. ``agreement``: the least share of images, or of pixels, whose class is the same.
    ``loss``: points of the task's score, or one image of those there are.
    """

    difference: float
    agreement: float
    loss: float = 0.5


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-3, 0.999),
    "fp16": Tolerance(2e-2, 0.98),
    "bf16": Tolerance(1e-1, 0.98),
}
"""What rounding alone does not reach, with a factor of ten to spare (bf16: five)."""

CLASSES = ("mask",)
"""The outputs that are classes already."""


class Comparison:
    """Answers of two networks to the same images, and in what they differ."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.relative: dict[str, list[float]] = {}
        self.agreement: dict[str, list[float]] = {}
        self.largest: dict[str, float] = {}
        self.mean: dict[str, list[float]] = {}

    def add(
        self,
        keys: Sequence[str],
        expected: dict[str, np.ndarray],
        found: dict[str, np.ndarray],
    ) -> None:
        """Compare a batch, in the outputs that the second has.

        Raises RunError for an output that is not expected or of another shape.
        """
        self.keys += keys
        for name, own in found.items():
            other = expected.get(name)
            if other is None or own.shape != other.shape:
                asked = "no such output" if other is None else f"{list(other.shape)}"
                raise RunError(
                    f"The file answers '{name}' of {list(own.shape)}, where the network in "
                    f"PyTorch has {asked}; it is not written."
                )
            if name in CLASSES:
                self._agree(name, own == other)
                continue
            distance = np.abs(own.astype(np.float64) - other).reshape(len(own), -1)
            norm = np.linalg.norm(other.astype(np.float64).reshape(len(own), -1), axis=1)
            relative = np.linalg.norm(distance, axis=1) / np.maximum(norm, 1e-12)
            self.relative.setdefault(name, []).extend(relative.tolist())
            self.largest[name] = max(self.largest.get(name, 0.0), float(distance.max()))
            self.mean.setdefault(name, []).append(float(distance.mean() * len(own)))
            if own.ndim == 2 and name.endswith("logits"):
                self._agree(name, (own.argmax(1) == other.argmax(1))[:, None])

    def _agree(self, name: str, same: np.ndarray) -> None:
        shares = same.reshape(len(same), -1).mean(axis=1)
        self.agreement.setdefault(name, []).extend(shares.tolist())

    def plain(self) -> dict[str, dict[str, float]]:
        """By output: differences, and the share of classes that are the same. JSON-ready."""
        count = max(1, len(self.keys))
        found: dict[str, dict[str, float]] = {
            name: {
                "largest": self.largest[name],
                "mean": sum(self.mean[name]) / count,
                "relative": max(self.relative[name]),
            }
            for name in self.relative
        }
        for name, shares in self.agreement.items():
            found.setdefault(name, {})["agreement"] = sum(shares) / count
        return found

    def failures(self, tolerance: Tolerance) -> list[str]:
        """In words, what is beyond the tolerance."""
        said = []
        for name, values in self.plain().items():
            relative, agreement = values.get("relative", 0.0), values.get("agreement", 1.0)
            if not relative <= tolerance.difference:  # NaN is not either
                said.append(
                    f"'{name}' differs by {relative:.2g} of its norm (tolerance "
                    f"{tolerance.difference:g})"
                )
            if agreement < tolerance.agreement:
                said.append(
                    f"{100 * agreement:.4g} % of the classes of '{name}' are the same (tolerance "
                    f"{100 * tolerance.agreement:g} %)"
                )
        return said

    def worst(self) -> list[int]:
        """Places of the images that differ most, the worst first."""
        by_image = [max(each) for each in zip(*map(_as_bad, self.relative.values()), strict=True)]
        lost = [
            max(1 - share for share in each) for each in zip(*self.agreement.values(), strict=True)
        ] or [0.0] * len(self.keys)
        by_image = by_image or [0.0] * len(self.keys)
        ranked = sorted(range(len(self.keys)), key=lambda place: (-lost[place], -by_image[place]))
        return ranked[:NUM_WORST]


def first_that_differs(comparison: Comparison, tolerance: Tolerance) -> str | None:
    """The first output, in the order in which they are computed, that is beyond the tolerance."""
    for name, values in comparison.relative.items():
        if not max(values) <= tolerance.difference:
            return name
    return None


def _as_bad(values: list[float]) -> list[float]:
    return [value if value == value else float("inf") for value in values]


def summary(proof: dict[str, Any]) -> list[str]:
    """The proof's answers in lines, for people."""
    lines = []
    for name, values in proof["outputs"].items():
        parts = []
        if "largest" in values:
            parts.append(
                f"largest difference {values['largest']:.2g}, mean {values['mean']:.2g}, at most "
                f"{values['relative']:.2g} of an image's norm"
            )
        if "agreement" in values:
            parts.append(f"{100 * values['agreement']:.4g} % of the classes the same")
        lines.append(f"  {name}: {'; '.join(parts)}")
    return lines
