"""The plan of a detection: an encoder with pyramid and heads, squares of images, perhaps a teacher
beside the boxes, average precision on held-out images."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn

from limbeck.data.scenes.objects.source import ObjectSource
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.encoder import Encoder
from limbeck.models.origins.load import load_encoder
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.recipes.run import networks
from limbeck.recipes.run.boxes import scores_over
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.objects import fullest, object_stream
from limbeck.recipes.run.plan import Plan
from limbeck.recipes.run.probes import Probe
from limbeck.recipes.train.dense import build_headed, plan_headed
from limbeck.recipes.train.options import DetectConfig
from limbeck.records import Batch
from limbeck.tasks.detection import Detection


def plan_detection(
    config: DetectConfig,
    images: Images,
    ranks: Ranks,
    load_student: Callable[..., TimmEncoder] = networks.load_vit,
    load_teacher: Callable[..., Encoder] = load_encoder,
) -> Plan:
    """Raises UserError where networks and images do not fit each other.

    ``load_student`` and ``load_teacher`` as for ``plan_tuning``.
    """
    assert isinstance(images.train, ObjectSource) and isinstance(images.holdout, ObjectSource)
    classes, has_masks = list(images.train.classes), config.detector.masks
    if has_masks and not images.train.has_shapes:
        raise UserError(
            f"{config.data.root} has boxes alone, and masks are learnt of outlines; set --no-masks."
        )
    detector = build_headed(
        config, ranks, load_student,
        lambda backbone, size: build_detector(
            backbone, len(classes), config.detector, config.seed, size
        ),
    )  # fmt: skip
    teacher = networks.load_teacher(config.teacher, None, ranks.device, load_teacher)

    def score(skipped: SkippedLog) -> Probe:
        def probe(module: nn.Module, step: int) -> dict[str, float]:
            found = scores_over(
                detector, images.holdout, data=config.data,
                batch_size=config.evaluation.batch_size, skipped=skipped,
            )  # fmt: skip
            return found.score().plain()

        return probe

    def largest(*of_run: Any) -> Iterator[Batch]:
        few = fullest(images.train, config.train.global_batch_size)
        return object_stream(few, size, has_masks, ranks, *of_run)

    size = detector.facts.img_size[0]
    return plan_headed(
        config, images, detector, Detection(detector, config.class_weights or None), teacher,
        classes, verb="detect", measure="ap", score=score, largest=largest,
        stream=partial(object_stream, images.train, size, has_masks, ranks),
    )  # fmt: skip
