"""The plan of a segmentation: an encoder with neck and head, crops of scenes, perhaps a teacher
beside the masks, mIoU on held-out scenes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from limbeck.data.scenes.scene import Scenes
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.engine.options import POSITIONS_AND_TOKENS
from limbeck.evaluation.sliding import check_stride
from limbeck.methods.teacher import Teacher
from limbeck.models.dense.build import build_segmenter
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.encoder import Encoder
from limbeck.models.origins.load import load_encoder
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.recipes.run import networks
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.maps import confusion_over
from limbeck.recipes.run.plan import Plan
from limbeck.recipes.run.probes import Probe
from limbeck.recipes.run.scenes import scene_stream
from limbeck.recipes.train.dense import build_headed, plan_headed
from limbeck.recipes.train.options import SegmentConfig
from limbeck.tasks.segmentation import Segmentation


def plan_segmentation(
    config: SegmentConfig,
    images: Images,
    ranks: Ranks,
    load_student: Callable[..., TimmEncoder] = networks.load_vit,
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
    segmenter = build_headed(
        config, ranks, load_student,
        lambda backbone, size: build_segmenter(
            backbone, len(classes), config.segmenter, config.seed, size
        ),
    )  # fmt: skip
    check_stride(config.evaluation, segmenter.facts.img_size)
    task = Segmentation(segmenter, mean=config.mean, class_weights=config.class_weights or None)
    teacher = _load_teacher(config, segmenter, ranks, load_teacher)

    def score(skipped: SkippedLog) -> Probe:
        def probe(module: nn.Module, step: int) -> dict[str, float]:
            shown = config.evaluation
            found = confusion_over(segmenter, images.holdout, shown, config.data, skipped).score()
            whole = {"miou": found.miou, "macc": found.macc, "aacc": found.aacc}
            pairs = zip(classes, found.iou.tolist(), strict=True)
            return whole | {f"iou/{name}": value for name, value in pairs if value == value}

        return probe

    return plan_headed(
        config, images, segmenter, task, teacher, classes, verb="segment", measure="miou",
        score=score, stream=partial(scene_stream, images.train, segmenter.facts.img_size[0], ranks),
    )  # fmt: skip


def _load_teacher(
    config: SegmentConfig, student: Segmenter, ranks: Ranks, load_teacher: Callable[..., Encoder]
) -> Teacher | None:
    teacher = networks.load_teacher(config.teacher, None, ranks.device, load_teacher)
    if teacher is None:
        return None
    patch = teacher.facts.patch_size
    side = -(-student.facts.img_size[0] // patch) * patch
    if config.teacher.img_size is None and teacher.facts.img_size != (side, side):
        # Of the student's crops it sees every pixel, however large either's patches are.
        at_side = replace(config.teacher, img_size=side)
        teacher = networks.load_teacher(at_side, None, ranks.device, load_teacher)
    return teacher
