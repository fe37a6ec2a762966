"""Student, teacher and task of a fine-tuning, fitted to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck.methods.distiller import Distiller
from limbeck.methods.method import Method
from limbeck.methods.teacher import DTYPES, Teacher
from limbeck.models.attention import choose_attention
from limbeck.models.encoder import Encoder, EncoderFacts
from limbeck.models.origins.load import load_encoder
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.recipes.finetune import FinetuneConfig, build_classifier
from limbeck.recipes.images import Images
from limbeck.recipes.networks import (
    check_classes,
    load_task_teacher,
    load_vit,
    teacher_identity,
)
from limbeck.recipes.steps import identity_of
from limbeck.records import Tap
from limbeck.tasks.classification import Classification

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks


@dataclass(frozen=True)
class TuningNetworks:
    """``module`` is for the loop, and still on the CPU: the task, or a distiller around it."""

    student: TimmEncoder
    taught: tuple[Method, Teacher] | None
    task: Classification
    module: nn.Module

    @property
    def teacher(self) -> EncoderFacts | None:
        """The facts of the teacher, where there is one."""
        return self.taught and self.taught[1].facts


def build_tuning(
    config: FinetuneConfig,
    classes: Sequence[str],
    device: torch.device,
    load_student: Callable[..., TimmEncoder] = load_vit,
    load_teacher: Callable[..., Encoder] = load_encoder,
) -> TuningNetworks:
    """Build all of them; raises UserError where they do not fit each other.

    ``load_student`` and ``load_teacher`` make the networks from their sources, for such as are not
    on the disk yet.
    """
    student = build_classifier(config, len(classes), load_student)
    choose_attention(student, device, DTYPES[config.train.precision])
    if config.keep_head:
        check_classes(student.facts, classes, "student")
    taught = load_task_teacher(config, student.facts, classes, device, load_teacher)
    # Where the teacher has the distillation head to itself, the labels have the other one.
    is_shared = taught is None or Tap("dist_logits") not in taught[0].student_taps
    task = Classification(student, Tap("logits" if is_shared else "class_logits"))
    return TuningNetworks(
        student, taught, task, Distiller(student, *taught, task) if taught else task
    )


def identify(
    config: FinetuneConfig, nets: TuningNetworks, images: Images, ranks: Ranks
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The resolved config of a run and its fingerprint, plain data: what ``open_run`` compares."""
    teacher = teacher_identity(config.teacher.source, nets.teacher)
    return identity_of("finetune", config, nets.student.facts, images, ranks, teacher=teacher)
