"""Scores of segmentation: counted over all pixels of a set first, and then divided."""

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import RunError
from limbeck.records import IGNORE


@dataclass(frozen=True)
class MapScore:
    """What a confusion says, all 0..1.

    ``iou`` and ``acc`` (C) float64: by class, of all its pixels and those taken for it, and of its
    pixels; NaN where there are none. ``miou`` and ``macc`` are their means without NaN: a class
    that is nowhere counts in neither, one that was only predicted has an ``iou`` of 0. ``aacc`` is
    the share of all pixels.
    """

    miou: float
    macc: float
    aacc: float
    iou: Tensor
    acc: Tensor


class Confusion:
    """Pixels by class and by prediction, over any number of images of any size.

    ``counts`` (C, C) int64: row the class, column the prediction. ``of_images`` has of each image,
    by class, the pixels that were right, those of the class and those taken for it: (3, C) int64.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.of_images: list[Tensor] = []

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count maps of class indices of one image; pixels whose label is ``IGNORE`` are left out.

        Raises RunError for a class that there is not.
        """
        if predicted.shape != labels.shape:
            raise ValueError(f"predictions {tuple(predicted.shape)}, labels {tuple(labels.shape)}")
        is_valid = labels != IGNORE
        own, truth = predicted[is_valid].long(), labels[is_valid].long()
        self._check(own, "A prediction")
        self._check(truth, "A label")
        pairs = torch.bincount(truth * self.num_classes + own, minlength=self.counts.numel())
        counts = pairs.view_as(self.counts).cpu()
        self.counts += counts
        self.of_images.append(torch.stack((counts.diagonal(), counts.sum(1), counts.sum(0))))

    def _check(self, classes: Tensor, what: str) -> None:
        if not classes.numel():
            return
        low, high = int(classes.min()), int(classes.max())
        if low < 0 or high >= self.num_classes:
            raise RunError(
                f"{what} is a class from {low} to {high}, and there are {self.num_classes}; choose "
                "images of the same classes."
            )

    def score(self) -> MapScore:
        """The scores of what was counted. Raises RunError where nothing was."""
        counts = self.counts.double()
        hits, truth, taken = counts.diagonal(), counts.sum(1), counts.sum(0)
        if not truth.sum():
            raise RunError("No pixel has a label, so there is nothing to score; check the masks.")
        iou, acc = hits / (truth + taken - hits), hits / truth
        return MapScore(
            miou=float(iou.nanmean()),
            macc=float(acc.nanmean()),
            aacc=float(hits.sum() / truth.sum()),
            iou=iou,
            acc=acc,
        )
