"""Scores of a segmenter over scenes, one image at a time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from limbeck.data.options import DataOptions
from limbeck.data.scenes.loader import eval_scenes
from limbeck.data.scenes.scene import Scenes
from limbeck.data.skipped import SkippedLog
from limbeck.engine.machine import Precision
from limbeck.evaluation.embed import evaluating
from limbeck.evaluation.map_scores import counts_of
from limbeck.evaluation.miou import Confusion
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.sliding import predict_map
from limbeck.models.dense.segmenter import Segmenter


def confusions_over(
    segmenter: Segmenter,
    scenes: Scenes,
    shown: MapOptions,
    data: DataOptions,
    skipped: SkippedLog,
    precision: Precision = "fp32",
) -> Iterator[Confusion]:
    """What the segmenter takes the pixels of each readable scene for."""
    device = segmenter.backbone.mean.device
    with evaluating(segmenter):
        for batch in eval_scenes(scenes, data=data, device=device, skipped=skipped):
            assert batch.labels is not None
            found = Confusion(segmenter.facts.num_classes)
            predicted = predict_map(segmenter, batch.images[0], shown, precision)
            found.add(predicted, batch.labels[0].cpu())
            yield found


def confusion_over(segmenter: Segmenter, *given: Any) -> Confusion:
    """That of all scenes together; ``given`` as for ``confusions_over``."""
    whole = Confusion(segmenter.facts.num_classes)
    for each in confusions_over(segmenter, *given):
        whole.counts += each.counts
    return whole


def counts_over(segmenter: Segmenter, *given: Any) -> Tensor:
    """What mIoU needs of every scene, (n, 3, C); see ``map_scores.counts_of``."""
    return torch.stack([counts_of(each) for each in confusions_over(segmenter, *given)])
