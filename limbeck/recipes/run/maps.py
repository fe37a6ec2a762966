"""Scores of a segmenter over scenes, one image at a time."""

from limbeck.data.options import DataOptions
from limbeck.data.scenes.loader import eval_scenes
from limbeck.data.scenes.scene import Scenes
from limbeck.data.skipped import SkippedLog
from limbeck.engine.machine import Precision
from limbeck.evaluation.embed import evaluating
from limbeck.evaluation.miou import Confusion
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.sliding import predict_map
from limbeck.models.dense.segmenter import Segmenter


def confusion_over(
    segmenter: Segmenter,
    scenes: Scenes,
    shown: MapOptions,
    data: DataOptions,
    skipped: SkippedLog,
    precision: Precision = "fp32",
) -> Confusion:
    """What the segmenter takes the pixels of all readable scenes for."""
    device = segmenter.backbone.mean.device
    found = Confusion(segmenter.facts.num_classes)
    with evaluating(segmenter):
        for batch in eval_scenes(scenes, data=data, device=device, skipped=skipped):
            assert batch.labels is not None
            predicted = predict_map(segmenter, batch.images[0], shown, precision)
            found.add(predicted, batch.labels[0].cpu())
    return found
