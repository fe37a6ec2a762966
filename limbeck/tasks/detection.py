"""Object detection: a detector, and its own losses against the objects of each image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.dense.detector import Detector
from limbeck.models.encoder import check_taps
from limbeck.records import Batch, Detections, Features, Losses
from limbeck.tasks.task import Task


class Detection(Task):
    """The losses of a detector, which are those of its kind.

    ``class_weights`` (one per class) weigh what the classes' loss says of them.
    """

    encoder: Detector

    def __init__(self, detector: Detector, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        check_taps(detector, detector.loss_taps, "student")
        count = detector.facts.num_classes
        if class_weights is not None:
            if len(class_weights) != count:
                raise UserError(
                    f"There are {len(class_weights)} class weights for {count} classes; give one "
                    "each."
                )
            detector.class_weights = torch.tensor(class_weights)
        self.encoder = detector
        self.taps = detector.loss_taps

    def loss(self, features: Features, batch: Batch) -> Losses:
        """The losses of one batch with objects."""
        assert batch.objects is not None
        return self.encoder.losses(features, batch.objects, batch.view_seeds)

    def predict(self, images: Tensor) -> list[Detections]:
        """What it finds in images (B, 3, S, S) in 0..1, all of each."""
        size = (int(images.shape[2]), int(images.shape[3]))
        return self.encoder.detect(images, [size] * len(images))

    def score(self, predictions: Any, labels: Any) -> dict[str, float]:
        """recall50: the share (0..1) of objects of which a box of their class overlaps half.

        ``labels`` are ``Objects``, one record an image. Average precision, which sees all images at
        once, is ``limbeck.evaluation.average_precision``'s.
        """
        from torchvision.ops import box_iou

        num_found, num_all = 0, 0
        for found, truth in zip(predictions, labels, strict=True):
            overlap = box_iou(truth.boxes, found.boxes)
            is_same = truth.classes[:, None] == found.classes[None]
            num_found += int(((overlap >= 0.5) & is_same).any(dim=1).sum())
            num_all += len(truth.boxes)
        return {"recall50": num_found / max(1, num_all)}
