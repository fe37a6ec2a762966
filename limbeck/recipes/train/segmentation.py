"""The plan of a segmentation: an encoder with neck and head, crops of scenes, perhaps a teacher
beside the masks, mIoU on held-out scenes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from limbeck.data.scenes.scene import Scenes
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.engine.options import POSITIONS_AND_TOKENS
from limbeck.evaluation.sliding import check_stride
from limbeck.methods.distiller import Distiller
from limbeck.methods.method import Method
from limbeck.methods.teacher import DTYPES, Teacher
from limbeck.models.attention import choose_attention
from limbeck.models.build import ramp_drop_path, seeded
from limbeck.models.dense.build import build_segmenter
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.encoder import Encoder
from limbeck.models.origins.load import load_encoder
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.maps import confusion_over
from limbeck.recipes.run.networks import (
    check_classes,
    load_backbone,
    load_teacher,
    load_vit,
    method_class,
    method_options,
    teacher_identity,
)
from limbeck.recipes.run.probes import Probe
from limbeck.recipes.run.scenes import scene_stream
from limbeck.recipes.run.train import Plan
from limbeck.recipes.train.options import SegmentConfig
from limbeck.tasks.segmentation import Segmentation


def plan_segmentation(
    config: SegmentConfig,
    images: Images,
    ranks: Ranks,
    load_student: Callable[..., TimmEncoder] = load_vit,
    load_teacher: Callable[..., Encoder] = load_encoder,
) -> Plan:
    """Raises UserError where networks and scenes do not fit each other.

    ``load_student`` and ``load_teacher`` as for ``plan_tuning``.
    """
    assert isinstance(images.train, Scenes) and isinstance(images.holdout, Scenes)
    if config.decay_positions:
        names = [each for each in config.optim.no_decay_names if each not in POSITIONS_AND_TOKENS]
        config = replace(config, optim=replace(config.optim, no_decay_names=tuple(names)))
    classes = list(images.train.classes)
    segmenter = build_student_segmenter(config, len(classes), ranks.device, load_student)
    check_stride(config.evaluation, segmenter.facts.img_size)
    task = Segmentation(segmenter, mean=config.mean, class_weights=config.class_weights or None)
    taught = _load_teacher(config, segmenter, classes, ranks, load_teacher)
    teacher = taught and taught[1].facts

    def score(skipped: SkippedLog) -> Probe:
        def probe(module: nn.Module, step: int) -> dict[str, float]:
            shown = config.evaluation
            found = confusion_over(segmenter, images.holdout, shown, config.data, skipped).score()
            whole = {"miou": found.miou, "macc": found.macc, "aacc": found.aacc}
            pairs = zip(classes, found.iou.tolist(), strict=True)
            return whole | {f"iou/{name}": value for name, value in pairs if value == value}

        return probe

    return Plan(
        verb="segment",
        measure="miou",
        config=config,
        images=images,
        student=segmenter,
        module=Distiller(segmenter, *taught, task) if taught else task,
        stream=partial(scene_stream, images.train, segmenter.facts.img_size[0], ranks),
        score=score,
        crop_ratio=1.0,
        teacher=teacher,
        others={"teacher": teacher_identity(config.teacher.source, teacher)},
        about=lambda: {"classes": classes, "student": segmenter.facts.origin},
    )


def build_student_segmenter(
    config: SegmentConfig, num_classes: int, device: torch.device, load: Callable[..., TimmEncoder]
) -> Segmenter:
    """The student with fresh neck and head, in the size of the crops."""
    backbone = load_backbone(config.student, config.num_heads, config.seed, load)
    size = None if config.img_size is None else (config.img_size, config.img_size)
    segmenter = build_segmenter(backbone, num_classes, config.segmenter, config.seed, size)
    ramp_drop_path(segmenter.backbone, config.drop_path_rate)
    choose_attention(segmenter.backbone, device, DTYPES[config.train.precision])
    return segmenter


def _load_teacher(
    config: SegmentConfig,
    student: Segmenter,
    classes: list[str],
    ranks: Ranks,
    load: Callable[..., Encoder],
) -> tuple[Method, Teacher] | None:
    if config.teacher.source is None:
        return None
    kind = method_class(config.method)
    teacher = load_teacher(config.teacher, None, ranks.device, load)
    assert teacher is not None
    patch = teacher.facts.patch_size
    side = -(-student.facts.img_size[0] // patch) * patch
    if config.teacher.img_size is None and teacher.facts.img_size != (side, side):
        # Of the student's crops it sees every pixel, however large either's patches are.
        at_side = replace(config.teacher, img_size=side)
        teacher = load_teacher(at_side, None, ranks.device, load)
        assert teacher is not None
    with seeded(config.seed):
        method = kind(method_options(config, kind), student.facts, teacher.facts)
    check_classes(teacher.facts, classes, "teacher")
    return method, teacher
