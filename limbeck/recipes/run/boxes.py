"""Scores of a detector over images with objects, a batch at a time."""

from dataclasses import replace

import torch

from limbeck.data.options import DataOptions
from limbeck.data.scenes.objects.loader import eval_objects
from limbeck.data.scenes.objects.source import ObjectSource
from limbeck.data.skipped import SkippedLog
from limbeck.engine.machine import DTYPES, Precision
from limbeck.evaluation.average_precision import AveragePrecision
from limbeck.evaluation.embed import evaluating
from limbeck.models.dense.detector import Detector
from limbeck.records import Detections


def scores_over(
    detector: Detector,
    source: ObjectSource,
    *,
    data: DataOptions,
    batch_size: int,
    skipped: SkippedLog,
    precision: Precision = "fp32",
) -> AveragePrecision:
    """What the detector finds in all readable images, beside what is there."""
    device = detector.backbone.mean.device
    found = AveragePrecision(source.classes, has_masks=detector.has_masks and source.has_shapes)
    batches = eval_objects(
        source, data=data, img_size=detector.facts.img_size[0], batch_size=batch_size,
        device=device, skipped=skipped,
    )  # fmt: skip
    with evaluating(detector):
        for batch, shown in batches:
            with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
                said = detector.detect(batch.images, [each.size for each in shown])
            for each, answers in zip(shown, said, strict=True):
                found.add(each.own_size, each.truth, on_image(answers, each.size, each.own_size))
    return found


def on_image(found: Detections, shown: tuple[int, int], own: tuple[int, int]) -> Detections:
    """Answers to an image that was shown in a size (h, w), in pixels of its own (H, W)."""
    factors = [own[axis] / shown[axis] for axis in (1, 0, 1, 0)]
    limits = found.boxes.new_tensor([own[1], own[0], own[1], own[0]])
    boxes = (found.boxes * found.boxes.new_tensor(factors)).clamp(min=0)
    return replace(found, boxes=torch.minimum(boxes, limits))
