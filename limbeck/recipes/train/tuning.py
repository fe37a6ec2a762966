"""The plan of a fine-tuning: a classifier, mixed views of labelled images, perhaps a teacher beside
the labels, scores on held-out images."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from limbeck.data.mixing import mix
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.methods.distiller import Distiller
from limbeck.methods.method import Method
from limbeck.methods.options import MethodOptions
from limbeck.methods.teacher import DTYPES, Teacher
from limbeck.models.attention import choose_attention
from limbeck.models.batch_norm import fix_batch_norm
from limbeck.models.build import build_student, keep_blocks, ramp_drop_path, seeded
from limbeck.models.encoder import Encoder, EncoderFacts
from limbeck.models.head_rows import read_head_index
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.models.origins.load import load_encoder
from limbeck.models.rel_pos import with_rel_pos
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.recipes.run import checks
from limbeck.recipes.run.images import Images, stream
from limbeck.recipes.run.networks import (
    check_classes,
    load_teacher,
    load_vit,
    method_class,
    method_options,
    teacher_identity,
)
from limbeck.recipes.run.options import FinetuneConfig
from limbeck.recipes.run.plan import Plan
from limbeck.recipes.run.probes import task_probe
from limbeck.records import LOGIT_KINDS, Batch, Tap
from limbeck.tasks.classification import Classification


def plan_tuning(
    config: FinetuneConfig,
    images: Images,
    ranks: Ranks,
    load_student: Callable[..., TimmEncoder] = load_vit,
    load_teacher: Callable[..., Encoder] = load_encoder,
) -> Plan:
    """Raises UserError where networks and images do not fit each other.

    ``load_student`` and ``load_teacher`` make the networks from their sources, for such as are not
    on the disk yet.
    """
    classes, device = list(images.train.classes), ranks.device
    student = build_classifier(config, len(classes), load_student)
    choose_attention(student, device, DTYPES[config.train.precision])
    if config.keep_head:
        check_classes(student.facts, classes, "student")
    taught = load_task_teacher(config, student.facts, classes, device, load_teacher)
    # Where the teacher has the distillation head to itself, the labels have the other one.
    is_shared = taught is None or Tap("dist_logits") not in taught[0].student_taps
    task = Classification(student, Tap("logits" if is_shared else "class_logits"))
    teacher = taught and taught[1].facts
    return Plan(
        verb="finetune",
        measure="top1",
        config=config,
        images=images,
        student=student,
        module=Distiller(student, *taught, task) if taught else task,
        stream=partial(tuning_stream, images, student.facts, ranks),
        score=partial(task_probe, task, images.holdout, config.evaluation, config.data, device),
        crop_ratio=config.evaluation.crop_ratio,
        teacher=teacher,
        others={"teacher": teacher_identity(config.teacher.source, teacher)},
        about=lambda: {"classes": classes, "student": student.facts.origin},
        warning="No --teacher is named, so the labels teach the distillation head as well."
        if student.facts.has_dist_head and taught is None
        else "",
    )


def tuning_stream(
    images: Images,
    facts: EncoderFacts,
    ranks: Ranks,
    config: FinetuneConfig,
    skipped: SkippedLog,
    start_step: int,
    total_steps: int,
) -> Iterator[Batch]:
    """This rank's mixed micro-batches for the steps from ``start_step`` on."""
    batches = stream(images, config.views, facts, ranks, config, skipped, start_step, total_steps)
    for batch in batches:
        # The first view's seed stands for the micro-batch: mixing, too, survives a resume.
        yield mix(batch, config.mix, facts.num_classes, seed=int(batch.view_seeds[0]))


def load_task_teacher(
    config: FinetuneConfig,
    student: EncoderFacts,
    classes: Sequence[str],
    device: torch.device,
    load: Callable[..., Encoder] = load_encoder,
) -> tuple[Method, Teacher] | None:
    """The method of a fine-tuning and its teacher; None without a teacher.

    ``student`` has its classifier already; ``classes`` are the names of the images' classes. Where
    the method compares patches, the teacher gets images of the size that gives it the student's
    grid. Raises UserError where the teacher's logits are read and it classifies something else.
    """
    if config.teacher.source is None:
        return None
    kind = method_class(config.method)
    if config.method_options and issubclass(kind.Options, MethodOptions):
        raise UserError(
            f"{kind.Options.__name__} of {kind.__name__} are MethodOptions, which are for "
            "pre-training; give it an Options class of its own, or leave --method-options out."
        )
    options = method_options(config, kind)

    def build(grid_of: EncoderFacts | None) -> tuple[Method, Teacher]:
        teacher = load_teacher(config.teacher, grid_of, device, load)
        assert teacher is not None
        with seeded(config.seed):
            return kind(options, student, teacher.facts), teacher

    method, teacher = build(None)
    kinds = {tap.kind for tap in method.teacher_taps}
    compares_patches = method.needs_same_grid and not kinds <= set(LOGIT_KINDS)
    if compares_patches and teacher.facts.grid != student.grid:
        method, teacher = build(student)
    if kinds & set(LOGIT_KINDS):  # else it has no say in classes
        check_classes(teacher.facts, classes, "teacher")
    return method, teacher


def build_classifier(
    config: FinetuneConfig, num_classes: int, load: Callable[..., TimmEncoder] | None = None
) -> TimmEncoder:
    """The student with its classifier and its drop path; ``load`` makes it from its source."""

    if checks.is_bare_name(config.student):
        options = StudentOptions(name=config.student, img_size=config.img_size)
        encoder = build_student(options, seed=config.seed)
    else:
        # A weights file of an unusual width can't be read without it.
        heads = {} if config.num_heads is None else {"num_heads": config.num_heads}
        encoder = (load or load_vit)(config.student, **heads)
        if config.keep_blocks is not None:
            keep_blocks(encoder, config.keep_blocks, config.seed)
    rows = list(range(encoder.facts.num_classes)) if config.keep_head else None
    if config.head_index is not None:
        rows = read_head_index(config.head_index)
    classifier = with_classifier(
        encoder, num_classes, config.global_pool, config.seed, head=config.head,
        num_heads=config.num_heads, img_size=config.img_size, head_init_std=config.head_init_std,
        dist_head_init_std=config.dist_head_init_std, q_pool=config.q_pool, head_rows=rows,
    )  # fmt: skip
    if config.freeze_batch_norm:
        fix_batch_norm(classifier)
    if config.rel_pos is not None:
        classifier = with_rel_pos(classifier, config.rel_pos, config.layer_scale)
    ramp_drop_path(classifier, config.drop_path_rate)
    return classifier.train()
