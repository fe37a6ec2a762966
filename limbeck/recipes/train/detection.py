"""The plan of a detection: an encoder with pyramid and heads, squares of images, perhaps a teacher
beside the boxes, average precision on held-out images."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from limbeck.data.scenes.objects.source import ObjectSource
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.methods.distiller import Distiller
from limbeck.methods.method import Method
from limbeck.methods.teacher import DTYPES, Teacher
from limbeck.models.attention import choose_attention
from limbeck.models.build import ramp_drop_path, seeded
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.dense.detector import Detector
from limbeck.models.encoder import Encoder
from limbeck.models.origins.load import load_encoder
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.recipes.run.boxes import scores_over
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.networks import (
    check_classes,
    load_backbone,
    load_teacher,
    load_vit,
    method_class,
    method_options,
    teacher_identity,
)
from limbeck.recipes.run.objects import fullest, object_stream
from limbeck.recipes.run.probes import Probe
from limbeck.recipes.run.train import Plan
from limbeck.recipes.train.options import DetectConfig
from limbeck.records import Batch
from limbeck.tasks.detection import Detection


def plan_detection(
    config: DetectConfig,
    images: Images,
    ranks: Ranks,
    load_student: Callable[..., TimmEncoder] = load_vit,
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
    detector = build_student_detector(config, len(classes), ranks.device, load_student)
    task = Detection(detector, config.class_weights or None)
    taught = _load_teacher(config, detector, classes, ranks, load_teacher)
    teacher = taught and taught[1].facts

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
    return Plan(
        verb="detect",
        measure="ap",
        config=config,
        images=images,
        student=detector,
        module=Distiller(detector, *taught, task) if taught else task,
        stream=partial(object_stream, images.train, size, has_masks, ranks),
        largest=largest,
        score=score,
        crop_ratio=1.0,
        teacher=teacher,
        others={"teacher": teacher_identity(config.teacher.source, teacher)},
        about=lambda: {"classes": classes, "student": detector.facts.origin},
    )


def build_student_detector(
    config: DetectConfig, num_classes: int, device: torch.device, load: Callable[..., TimmEncoder]
) -> Detector:
    """The student with fresh pyramid and heads, in the size of the squares."""
    backbone = load_backbone(config.student, config.num_heads, config.seed, load)
    size = None if config.img_size is None else (config.img_size, config.img_size)
    detector = build_detector(backbone, num_classes, config.detector, config.seed, size)
    ramp_drop_path(detector.backbone, config.drop_path_rate)
    choose_attention(detector.backbone, device, DTYPES[config.train.precision])
    return detector


def _load_teacher(
    config: DetectConfig,
    student: Detector,
    classes: list[str],
    ranks: Ranks,
    load: Callable[..., Encoder],
) -> tuple[Method, Teacher] | None:
    teacher = load_teacher(config.teacher, None, ranks.device, load)
    if teacher is None:
        return None
    kind = method_class(config.method)
    with seeded(config.seed):
        method = kind(method_options(config, kind), student.facts, teacher.facts)
    check_classes(teacher.facts, classes, "teacher")
    return method, teacher
