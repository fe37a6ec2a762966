"""What is left of a classifier's accuracy on corrupted images (arXiv 1903.12261)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, StringConstraints
from torch import Tensor
from typing_extensions import TypedDict

from limbeck.evaluation.report import TERMINAL, table
from limbeck.evaluation.scores import Score, score_of

OWN, LINEAR = "corrupted_top1", "corrupted_linear_top1"
"""Who answers: the network's own classifier, or a linear probe learnt from clean images."""
ANSWERERS = {OWN: "own classifier", LINEAR: "linear probe of clean images"}

ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
    "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948,
    "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572, "fog": 0.819324,
    "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
"""AlexNet's errors on ImageNet-C, means over five severities: what published mCE are relative to,
as the code that came with the paper has them."""
SEVERITIES = (1, 2, 3, 4, 5)


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
    """Mean over corruptions of the error in parts of the reference's, both means over severities
    and runs; it compares with nothing but values of the same reference. None where the reference
    makes no error under some corruption.
    """
    errors, of_reference = (_errors(each) for each in (runs, reference))
    if not all(of_reference.values()):
        return None
    return fmean(errors[name] / of_reference[name] for name in errors)


def published_mce(runs: Sequence[Robustness]) -> float | None:
    """The mean corruption error as papers give it for ImageNet-C (section 4 of the paper): the mean
    of the errors in parts of AlexNet's. None unless asked under its 15 corruptions at all five
    severities; the classes are the caller's to know."""
    asked = {(frozenset(run.names), run.severities) for run in runs}
    if asked != {(frozenset(ALEXNET_ERRORS), SEVERITIES)}:
        return None
    errors = _errors(runs)
    return fmean(errors[name] / alexnet for name, alexnet in ALEXNET_ERRORS.items())


def _errors(runs: Sequence[Robustness]) -> dict[str, float]:
    tables = [run.top1() for run in runs]
    return {name: 1 - fmean(fmean(each[name]) for each in tables) for name in runs[0].names}


def summarize(
    groups: Mapping[str, Sequence[Mapping[str, Robustness]]], *, is_imagenet: bool = False
) -> dict[str, Any]:
    """All answers of all roles' runs, JSON-ready: by who answers, then by role.

    "relative_error" is relative to the first of baseline and teacher that is answered for, which
    "relative_to" names; "mce" is the published one, where images are ImageNet's (``is_imagenet``)
    and all was asked that it takes.
    """
    found: dict[str, Any] = {}
    for who in ANSWERERS:
        able = {
            role: [run[who] for run in runs]
            for role, runs in groups.items()
            if all(who in run for run in runs)
        }
        if not able:
            continue
        reference = next((role for role in ("baseline", "teacher") if role in able), None)
        rows: dict[str, Any] = {role: {"runs": [e.plain() for e in able[role]]} for role in able}
        for role, runs in able.items():
            if reference is not None and role != reference:
                rows[role]["relative_error"] = relative_error(runs, able[reference])
            if is_imagenet and (mce := published_mce(runs)) is not None:
                rows[role]["mce"] = mce
        found[who] = {"relative_to": reference, "rows": rows}
    return found


def by_corruption(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Top-1 of each corruption: the mean over severities and over runs of a ``summarize`` row."""
    return {name: fmean(fmean(run["top1"][name]) for run in runs) for name in runs[0]["top1"]}


def tables(summary: Mapping[str, Any]) -> list[str]:
    """A Markdown table for each answerer: corruptions down, roles across, means over runs in %."""
    written = []
    for who, found in summary.items():
        columns: dict[str, dict[str, str]] = {}
        for role, row in found["rows"].items():
            runs = row["runs"]
            cells = {"clean": _percent(fmean(run["clean_top1"] for run in runs))}
            cells |= {
                name.replace("_", " "): _percent(top1) for name, top1 in by_corruption(runs).items()
            }
            mean = fmean(run["corrupted_top1"]["mean"] for run in runs)
            kept = [run["kept"] for run in runs if run["kept"] is not None]
            cells |= {
                "mean of corruptions": _percent(mean),
                "mean corruption error": _percent(1 - mean),
                "kept of clean": _percent(fmean(kept)) if kept else "-",
            }
            if found["relative_to"] is not None:
                relative = row.get("relative_error")
                cells[f"error relative to the {found['relative_to']}"] = (
                    "-" if relative is None else _percent(relative)
                )
            if "mce" in row:
                cells["error relative to AlexNet (mCE)"] = _percent(row["mce"])
            columns[role] = cells
        rows = [
            {"top-1 (%)": name} | {role: cells[name] for role, cells in columns.items()}
            for name in next(iter(columns.values()))
        ]
        written.append(f"Under corruptions, {ANSWERERS[who]}:\n\n{table(rows, width=TERMINAL)}")
    return written


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


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


_Hex = Annotated[str, StringConstraints(pattern="^([0-9a-f]{2})*$")]
_Count = Annotated[int, Field(ge=1, le=2**40)]


class Packed(TypedDict):
    """What ``pack`` gives, read again."""

    names: list[str]
    severities: list[int]
    how: str
    clean: _Hex
    corrupted: list[list[_Hex]]
    num_images: _Count
    num_clean: _Count


class PackedAnswers(TypedDict):
    """Those of a network, by who answers."""

    answers: dict[str, Packed]


def unpack(values: Packed) -> Robustness:
    """What ``pack`` packed; raises ValueError where its parts do not fit each other."""
    count = values["num_images"]
    sides = [len(of_name) for of_name in values["corrupted"]]
    if not sides or sides != [len(values["severities"])] * len(values["names"]):
        raise ValueError("its answers are not of its names and severities")
    hits = [[_from_hex(text, count) for text in of_name] for of_name in values["corrupted"]]
    return Robustness(
        names=tuple(values["names"]),
        severities=tuple(values["severities"]),
        clean=_from_hex(values["clean"], values["num_clean"]),
        corrupted=torch.stack(list(map(torch.stack, hits))),
        how=values["how"],
    )


def _to_hex(hits: Tensor) -> str:
    return np.packbits(hits.cpu().numpy()).tobytes().hex()


def _from_hex(text: str, count: int) -> Tensor:
    if len(text) != 2 * -(-count // 8):
        raise ValueError(f"{text[:16]!r}... are not the answers to {count:,} images")
    packed = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=count).astype(bool))
