"""What plans of segmentation and detection share: the student, what a teacher adds, the plan."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from limbeck.engine.distributed import Ranks
from limbeck.methods.distiller import Distiller
from limbeck.methods.method import Method
from limbeck.methods.teacher import DTYPES, Teacher
from limbeck.models.attention import choose_attention
from limbeck.models.build import ramp_drop_path, seeded
from limbeck.models.dense.headed import Headed
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.networks import (
    check_classes,
    load_backbone,
    method_class,
    method_options,
    teacher_identity,
)
from limbeck.recipes.run.plan import Plan
from limbeck.recipes.train.options import DetectConfig, SegmentConfig

Config = SegmentConfig | DetectConfig
H = TypeVar("H", bound=Headed)


def build_headed(
    config: Config,
    ranks: Ranks,
    load: Callable[..., TimmEncoder],
    put: Callable[[TimmEncoder, tuple[int, int] | None], H],
) -> H:
    """The student, on which ``put`` puts a fresh neck and head for images of a size (H, W)."""
    backbone = load_backbone(config.student, config.num_heads, config.seed, load)
    network = put(backbone, None if config.img_size is None else (config.img_size,) * 2)
    ramp_drop_path(network.backbone, config.drop_path_rate)
    choose_attention(network.backbone, ranks.device, DTYPES[config.train.precision])
    return network


def plan_headed(
    config: Config,
    images: Images,
    network: Headed,
    task: nn.Module,
    teacher: Teacher | None,
    classes: list[str],
    **of_kind: Any,
) -> Plan:
    """Raises UserError where the teacher does not fit the student or the classes."""
    facts = teacher and teacher.facts
    if teacher is not None:
        task = Distiller(network, _method(config, network, teacher, classes), teacher, task)
    return Plan(
        config=config, images=images, student=network, module=task, crop_ratio=1.0, teacher=facts,
        others={"teacher": teacher_identity(config.teacher.source, facts)},
        about=lambda: {"classes": classes, "student": network.facts.origin},
        **of_kind,
    )  # fmt: skip


def _method(config: Config, network: Headed, teacher: Teacher, classes: list[str]) -> Method:
    kind = method_class(config.method)
    with seeded(config.seed):
        method = kind(method_options(config, kind), network.facts, teacher.facts)
    check_classes(teacher.facts, classes, "teacher")
    return method
