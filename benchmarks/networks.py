"""One distillation step, ours and the reference's, over the same weights and photos.

Student ViT-S, teacher ViT-B (random weights: only time and memory are measured), QK and VV
relations, the student's last block split into the teacher's heads, drop path 0.1, colour jitter
0.4 for the student, AdamW. Images are loaded in the same process: what loading costs is in the
step.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.reference import plain_losses, plain_student, plain_teacher
from benchmarks.timing import DEVICE
from limbeck.data.loader import train_batches
from limbeck.data.options import DataOptions, ViewOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import Source
from limbeck.data.target_store.located import LocatedTargets
from limbeck.engine.optim import build_optimizer, set_lr
from limbeck.engine.options import OptimOptions
from limbeck.methods.distiller import Distiller
from limbeck.methods.options import RelationOptions
from limbeck.methods.relation import Relation
from limbeck.methods.teacher import DTYPES, Precision, Teacher, autocast
from limbeck.models.attention import choose_attention
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.recipes.run.networks import set_constant_drop_path
from limbeck.records import Batch

STUDENT, TEACHER = "vit_small", "vit_base"
LR = 1e-4

Step = Callable[[], None]
PlainBatch = tuple[Tensor, Tensor]


def build_pair(img_size: int) -> tuple[TimmEncoder, TimmEncoder]:
    """Student and teacher, the same weights at every call; no drop path yet."""
    student = build_student(StudentOptions(name=STUDENT, img_size=img_size), seed=0)
    teacher = build_student(StudentOptions(name=TEACHER, img_size=img_size), seed=1)
    student.set_num_heads(-1, teacher.facts.num_heads[-1])
    return student.to(DEVICE), teacher.to(DEVICE).eval().requires_grad_(False)


def build_distiller(student: TimmEncoder, teacher: TimmEncoder, precision: Precision) -> Distiller:
    method = Relation(RelationOptions(), student.facts, teacher.facts)
    return Distiller(student, method, Teacher(teacher, DEVICE, precision)).to(DEVICE)


def build_our_step(
    batches: Iterator[Batch], img_size: int, precision: Precision, *, compiles: bool = False
) -> Step:
    """One optimiser step of ours, its photos included; the teacher too runs in ``precision``."""
    student, teacher = build_pair(img_size)
    set_constant_drop_path(student, 0.1)
    choose_attention(student, DEVICE, DTYPES[precision])
    distiller = build_distiller(student, teacher, precision).train()
    if compiles:
        distiller.compile()
    optimizer = build_optimizer(distiller, OptimOptions())
    set_lr(optimizer, LR)

    def loss() -> Tensor:
        batch = next(batches)
        with autocast(DEVICE, precision):
            return distiller(batch).total

    return step_of(loss, optimizer, precision)


def build_plain_step(
    batches: Iterator[PlainBatch],
    img_size: int,
    precision: Precision,
    teacher_precision: Precision = "fp32",
) -> Step:
    """One optimiser step of the reference, student and loss under autocast to ``precision``."""
    student, teacher = build_pair(img_size)
    set_constant_drop_path(student, 0.1)
    model = student.model.train()
    betas, weight_decay = OptimOptions().betas, OptimOptions().weight_decay
    optimizer = torch.optim.AdamW(model.parameters(), LR, betas, weight_decay=weight_decay)

    def loss() -> Tensor:
        images, teacher_images = (views.to(DEVICE) for views in next(batches))
        with autocast(DEVICE, teacher_precision):
            target = plain_teacher(teacher.model, teacher_images)
        with autocast(DEVICE, precision):
            return plain_losses(plain_student(model, images), target)

    return step_of(loss, optimizer, precision)


def step_of(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, precision: str) -> Step:
    """A function that runs one optimiser step of a loss."""
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=precision == "fp16")

    def step() -> None:
        scaler.scale(loss()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_batches(
    source: Source,
    batch_size: int,
    img_size: int,
    views: ViewOptions | None = None,
    targets: LocatedTargets | None = None,
) -> Iterator[Batch]:
    """Batches of the loader without worker processes, so that turns do not overlap.

    ``views``: the relation method's if not given. ``targets``: what a store has for the source.
    """
    return train_batches(
        source,
        data=DataOptions(num_workers=0),
        views=views or ViewOptions(color_jitter=RelationOptions().color_jitter),
        img_size=img_size,
        run_seed=0,
        global_batch_size=batch_size,
        accumulate_steps=1,
        rank=0,
        world_size=1,
        start_step=0,
        total_steps=10**6,
        device=DEVICE,
        erase_mean=(0.0, 0.0, 0.0),
        erase_std=(1.0, 1.0, 1.0),
        skipped=SkippedLog(None, len(source), max_bad_ratio=0.0),
        targets=targets,
    )


def check_agreement(source: Source, batch_size: int, img_size: int) -> None:
    """Stop unless both compute one loss: the same photos, float32, no drop path, to 1e-4."""
    student, teacher = build_pair(img_size)
    batch = next(our_batches(source, batch_size, img_size))
    with torch.no_grad():
        ours = build_distiller(student, teacher, "fp32").eval()(batch).total.item()
        images = (batch.images - student.mean) / student.std
        teacher_images = (batch.teacher_images - student.mean) / student.std
        target = plain_teacher(teacher.model, teacher_images)
        plain = plain_losses(plain_student(student.model, images), target).item()
    if not abs(ours / plain - 1) < 1e-4:
        sys.exit(f"our loss is {ours} and the reference's {plain}: their times do not compare")
