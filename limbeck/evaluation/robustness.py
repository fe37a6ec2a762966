"""What is left of a classifier's accuracy on corrupted images (arXiv 1903.12261)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.evaluation.scores import Score, score_of


@dataclass(frozen=True)
class Robustness:
    """Which test images a network gets right, clean and under every corruption and severity.

    ``clean`` (m,) bool; ``corrupted`` (corruptions, severities, n) bool, whose first axes are
    ``names`` and ``severities``. ``how`` says in words who answers.
    """

    names: tuple[str, ...]
    severities: tuple[int, ...]
    clean: Tensor
    corrupted: Tensor
    how: str

    @property
    def score(self) -> Score:
        """The mean top-1 over all corruptions and severities, which are equal in it.

        1 minus its mean is the mean corruption error. The interval, for the choice of images, takes
        each image as one answer and not as one per condition, so it is rather too wide.
        """
        many = f"{len(self.names)} corruptions x {len(self.severities)} severities"
        return score_of(self.corrupted.float().mean(dim=(0, 1)), f"top-1 of {self.how}, {many}")

    @property
    def clean_top1(self) -> float:
        """Top-1 (0..1) of the images as they are."""
        return float(self.clean.double().mean())

    @property
    def kept(self) -> float | None:
        """The part of the clean top-1 that is left, relative robustness; None where that is 0."""
        return self.score.mean / self.clean_top1 if self.clean_top1 else None

    def top1(self) -> dict[str, list[float]]:
        """Top-1 (0..1) of each corruption, by severity."""
        means = self.corrupted.double().mean(dim=2).tolist()
        return dict(zip(self.names, means, strict=True))

    def plain(self) -> dict[str, Any]:
        """JSON-ready data; all but the single images."""
        return {
            "clean_top1": self.clean_top1,
            "corrupted_top1": self.score.plain(),
            "mean_corruption_error": 1 - self.score.mean,
            "kept": self.kept,
            "severities": list(self.severities),
            "top1": self.top1(),
        }


def relative_error(runs: Sequence[Robustness], reference: Sequence[Robustness]) -> float | None:
    """Mean over corruptions of the error in parts of the reference's (mCE, section 4 of the paper).

    Both errors are means over severities and runs. The paper's reference is AlexNet: with another
    one the value compares with nothing but values of the same reference. None where the reference
    makes no error under some corruption.
    """
    errors, of_reference = (_errors(each) for each in (runs, reference))
    if not all(of_reference.values()):
        return None
    return fmean(errors[name] / of_reference[name] for name in errors)


def _errors(runs: Sequence[Robustness]) -> dict[str, float]:
    tables = [run.top1() for run in runs]
    return {name: 1 - fmean(fmean(each[name]) for each in tables) for name in runs[0].names}


def pack(robustness: Robustness) -> dict[str, Any]:
    """All of it as plain data, eight images to a byte."""
    return {
        "names": list(robustness.names),
        "severities": list(robustness.severities),
        "how": robustness.how,
        "clean": _to_hex(robustness.clean),
        "corrupted": [[_to_hex(hits) for hits in of_name] for of_name in robustness.corrupted],
        "num_images": robustness.corrupted.shape[2],
        "num_clean": len(robustness.clean),
    }


def unpack(values: Mapping[str, Any]) -> Robustness:
    """What ``pack`` packed."""
    count = values["num_images"]
    return Robustness(
        names=tuple(values["names"]),
        severities=tuple(values["severities"]),
        clean=_from_hex(values["clean"], values["num_clean"]),
        corrupted=torch.stack(
            [
                torch.stack([_from_hex(text, count) for text in of_name])
                for of_name in values["corrupted"]
            ]
        ),
        how=values["how"],
    )


def _to_hex(hits: Tensor) -> str:
    return np.packbits(hits.cpu().numpy()).tobytes().hex()


def _from_hex(text: str, count: int) -> Tensor:
    packed = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=count).astype(bool))
