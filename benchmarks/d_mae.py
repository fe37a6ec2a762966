"""One D-MAE step against the plain reference: ViT-B to 12-head ViT-Tiny, 224 px, 3/4 masked.

    python -m benchmarks d_mae [--data FOLDER] [--repeats 5]

Batch 32, loading included on both sides, random weights. The reference runs both networks to their
end, in float32 (in one row under the same bf16 autocast as ours), with explicit attention, and its
decoder draws every patch. Before any timing both losses must agree.
"""

import statistics
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.networks import PlainBatch, Step, our_batches, step_of
from benchmarks.reference import plain_batches, plain_d_mae_loss, plain_masked
from benchmarks.timing import DEVICE, median_ratio, runs_well, take_turns
from limbeck.data.options import ViewOptions
from limbeck.data.source import Source
from limbeck.engine.optim import build_optimizer, set_lr
from limbeck.engine.options import OptimOptions
from limbeck.methods.attention_map import AttentionMap
from limbeck.methods.distiller import Distiller
from limbeck.methods.options import AttentionMapOptions
from limbeck.methods.teacher import DTYPES, Precision, Teacher, autocast
from limbeck.models.attention import choose_attention, choose_attention_of
from limbeck.models.build import build_student, seeded
from limbeck.models.options import StudentOptions
from limbeck.ops.masking import counter_uniform
from limbeck.records import Batch

IMG_SIZE, BATCH_SIZE = 224, 32
STUDENT, TEACHER = StudentOptions(name="vit_tiny", num_heads=12), StudentOptions(name="vit_base")
LR = 1e-4
VIEWS = ViewOptions()
ROWS = (("bf16", "fp32", "1.8"), ("bf16", "bf16", ""), ("fp32", "fp32", ""))  # ours, reference


def build_distiller(precision: Precision) -> Distiller:
    """The same weights at every call."""
    student, teacher = build_student(STUDENT, seed=0), build_student(TEACHER, seed=1)
    choose_attention(student, DEVICE, DTYPES[precision])
    with seeded(2):
        method = AttentionMap(AttentionMapOptions(), student.facts, teacher.facts)
    rows, columns = student.facts.grid
    choose_attention_of(method, rows * columns, DEVICE, DTYPES[precision])
    return Distiller(student, method, Teacher(teacher, DEVICE, precision)).to(DEVICE)


def build_our_step(batches: Iterator[Batch], precision: Precision) -> Step:
    distiller = build_distiller(precision).train()
    optimizer = build_optimizer(distiller, OptimOptions())
    set_lr(optimizer, LR)

    def loss() -> Tensor:
        batch = next(batches)
        with autocast(DEVICE, precision):
            return distiller(batch).total

    return step_of(loss, optimizer, precision)


def plain_loss(
    distiller: Distiller, images: Tensor, ids_shuffle: Tensor, precision: Precision
) -> Tensor:
    """The reference's, over the distiller's weights."""
    method, num_keep = distiller.method, int(ids_shuffle.shape[1] * 0.25)
    with autocast(DEVICE, precision):
        with torch.no_grad():
            kept = ids_shuffle[:, :num_keep]
            target, _ = plain_masked(distiller.teacher.encoder.model, images, kept)
        return plain_d_mae_loss(
            distiller.student.model,
            method.reconstruction.decoder,
            method.mixers[0].weight,
            target,
            images,
            ids_shuffle,
            num_keep,
        )


def build_plain_step(batches: Iterator[PlainBatch], precision: Precision) -> Step:
    # Its teacher's weights are float32; autocast casts them where it is asked to.
    distiller = build_distiller("fp32").train()
    betas, weight_decay = OptimOptions().betas, OptimOptions().weight_decay
    trained = [p for p in distiller.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LR, betas, weight_decay=weight_decay)
    rows, columns = distiller.student.facts.grid

    def loss() -> Tensor:
        images = next(batches)[0].to(DEVICE)
        noise = torch.rand(len(images), rows * columns, device=DEVICE)
        return plain_loss(distiller, images, noise.argsort(dim=1), precision)

    return step_of(loss, optimizer, precision)


def check_agreement(source: Source) -> None:
    """Stop unless both compute one loss: the same photos and masks, float32, to 1e-4."""
    batch = next(our_batches(source, BATCH_SIZE, IMG_SIZE, VIEWS))
    distiller = build_distiller("fp32").eval()
    rows, columns = distiller.student.facts.grid
    with torch.no_grad():
        ours = distiller(batch).total.item()
        student = distiller.student
        images = (batch.images - student.mean) / student.std
        ids_shuffle = counter_uniform(batch.view_seeds, rows * columns).argsort(dim=1)
        plain = plain_loss(distiller, images, ids_shuffle, "fp32").item()
    if not abs(ours / plain - 1) < 1e-4:
        sys.exit(f"our loss is {ours} and the reference's {plain}: their times do not compare")


def main(source: Source, repeats: int) -> None:
    """Time all in turn and print a Markdown table."""
    check_agreement(source)
    ours = our_batches(source, BATCH_SIZE, IMG_SIZE, VIEWS)
    plain = plain_batches(source, BATCH_SIZE, IMG_SIZE, jitter=0.0)
    rows = [row for row in ROWS if runs_well(row)]
    steps: dict[str, Step] = {}
    for precision in dict.fromkeys(row[0] for row in rows):
        steps[f"ours {precision}"] = build_our_step(ours, precision)
        steps[precision] = build_plain_step(plain, precision)
    seconds = take_turns(steps, repeats)
    print("| ours | reference | ours, s/step | reference, s/step | ratio | target |")
    print("|---|---|---|---|---|---|")
    for precision, reference, target in rows:
        fast, slow = seconds[f"ours {precision}"], seconds[reference]
        print(
            f"| {precision} | {reference} | {statistics.median(fast):.3f} | "
            f"{statistics.median(slow):.3f} | {median_ratio(slow, fast):.2f} | {target} |"
        )
