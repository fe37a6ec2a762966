"""The plan of a pre-training: student, method and teacher in a distiller, views of unlabelled
images, probes of what the student has learnt."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from limbeck.data.skipped import SkippedLog
from limbeck.data.target_store.located import LocatedTargets
from limbeck.engine.distributed import Ranks
from limbeck.methods.distiller import Distiller
from limbeck.models.build import describe_positions
from limbeck.recipes.run.images import Images, stream
from limbeck.recipes.run.networks import Networks, check_labels, check_pairs, teacher_identity
from limbeck.recipes.run.options import DistillConfig
from limbeck.recipes.run.plan import Plan
from limbeck.recipes.run.probes import build_probe
from limbeck.recipes.targets.reading import locate, stored_views
from limbeck.records import Batch


def plan_pretraining(config: DistillConfig, nets: Networks, images: Images, ranks: Ranks) -> Plan:
    """Raises UserError where networks, images and a store of targets do not fit each other."""
    teacher = nets.teacher and nets.teacher.facts
    distiller = Distiller(nets.student, nets.method, nets.teacher)
    check_labels(nets, images.train.classes)
    check_pairs(nets.method, config.train, ranks.world_size)
    stored = nets.reader and locate(nets.reader, config, nets, images)
    return Plan(
        verb="distill",
        config=config,
        images=images,
        student=nets.student,
        module=distiller,
        stream=partial(_stream, images, nets, ranks, stored),
        score=partial(
            build_probe, config.probes, images, nets.student, nets.live_teacher, config.data,
            ranks.device,
        ),
        crop_ratio=config.probes.crop_ratio,
        teacher=teacher,
        others={
            "teacher": teacher_identity(config.teacher.source, teacher),
            "targets": nets.reader and nets.reader.manifest.identity,
        },
        about=lambda: {"positions": describe_positions(nets.student), **_class_names(nets)},
        keepsakes=nets.method.keepsakes,
        untrained=config.untrained_tail,
        health=nets.method.health,
    )  # fmt: skip


def _stream(
    images: Images,
    nets: Networks,
    ranks: Ranks,
    stored: LocatedTargets | None,
    config: DistillConfig,
    skipped: SkippedLog,
    start_step: int,
    total_steps: int,
) -> Iterator[Batch]:
    views, *other_views = nets.method_options.views(config.crop)
    return stream(
        images, views if stored is None else stored_views(config, nets), nets.student.facts, ranks,
        config, skipped, start_step, total_steps, other_views=other_views,
        local_views=nets.method_options.local_views(config.crop), targets=stored,
    )  # fmt: skip


def _class_names(nets: Networks) -> dict[str, Any]:
    """The names of a trained classifier's classes, where the teacher has them."""
    if not nets.method_options.trains_classifier or nets.teacher is None:
        return {}
    names = nets.teacher.facts.origin.get("classes")
    return {} if names is None else {"classes": names}
