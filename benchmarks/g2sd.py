"""G2SD's two stages against the plain reference: ViT-B to ViT-S, 224 px.

    python -m benchmarks g2sd [--data FOLDER] [--repeats 5]

Generic: the teacher is a whole masked autoencoder (decoder 512 wide, 8 blocks), the student's
decoder is 256 wide with 4 blocks, 3/4 masked, batch 32. Specific: a classifier of 1,000 classes
teaches a distillation token hard labels, batch 8. Random weights; loading is included on both
sides. The reference is in float32, and in one row under the same bf16 autocast as ours; attention
is explicit, and its teacher, too, stops after the block whose tokens are learnt. Before any timing
both losses must agree. Memory is the most that one step takes beyond weights and optimiser.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.networks import PlainBatch, Step, our_batches, step_of
from benchmarks.reference import (
    plain_batches,
    plain_decoded,
    plain_generic_loss,
    plain_masked,
    plain_specific_loss,
)
from benchmarks.timing import DEVICE, measure_peak_bytes, median_ratio, runs_well, take_turns
from limbeck.data.options import ViewOptions
from limbeck.data.source import Source
from limbeck.engine.optim import build_optimizer, set_lr
from limbeck.engine.options import OptimOptions
from limbeck.methods.decoder_feature import DecoderFeature
from limbeck.methods.distiller import Distiller
from limbeck.methods.logit import Logit
from limbeck.methods.options import DecoderFeatureOptions, LogitOptions
from limbeck.methods.teacher import DTYPES, Precision, Teacher, autocast
from limbeck.models.attention import choose_attention, choose_attention_of
from limbeck.models.build import build_student, seeded
from limbeck.models.heads import with_classifier
from limbeck.models.mae import MaeDecoder
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.options import StudentOptions
from limbeck.ops.masking import counter_uniform
from limbeck.records import Batch, Tap
from limbeck.tasks.classification import Classification

IMG_SIZE, NUM_CLASSES = 224, 1000
STUDENT, TEACHER = StudentOptions(name="vit_small"), StudentOptions(name="vit_base")
TEACHER_DECODER = {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}
OPTIONS = DecoderFeatureOptions(decoder_embed_dim=256, decoder_depth=4, decoder_num_heads=8)
LR = 1e-4
VIEWS = ViewOptions()
ROWS = (("bf16", "fp32", "1.8"), ("bf16", "bf16", ""), ("fp32", "fp32", ""))  # ours, reference


@dataclass(frozen=True)
class Stage:
    """``build``: the same weights at every call; ``plain_loss`` of images and view seeds."""

    batch_size: int
    build: Callable[[Precision], Distiller]
    plain_loss: Callable[[Distiller, Tensor, Tensor], Tensor]


def build_generic(precision: Precision) -> Distiller:
    student, encoder = build_student(STUDENT, seed=0), build_student(TEACHER, seed=1)
    facts = encoder.facts
    with seeded(2):
        decoder = MaeDecoder(
            facts.embed_dim, facts.grid, facts.patch_size, has_cls_token=True, **TEACHER_DECODER
        )
        teacher = Teacher(MaskedAutoencoder(encoder, decoder), DEVICE, precision)
        method = DecoderFeature(OPTIONS, student.facts, teacher.facts)
    choose_attention(student, DEVICE, DTYPES[precision])
    rows, columns = student.facts.grid
    choose_attention_of(method, rows * columns, DEVICE, DTYPES[precision])
    return Distiller(student, method, teacher).to(DEVICE)


def build_specific(precision: Precision) -> Distiller:
    student, teacher = (
        with_classifier(
            build_student(options, seed=seed),
            NUM_CLASSES,
            None,
            seed,
            head=head,
            head_init_std=0.02,
        )
        for seed, (options, head) in enumerate(((STUDENT, "distilled-last"), (TEACHER, "single")))
    )
    choose_attention(student, DEVICE, DTYPES[precision])
    method = Logit(LogitOptions(), student.facts, teacher.facts)
    task = Classification(student, Tap("class_logits"))
    return Distiller(student, method, Teacher(teacher, DEVICE, precision), task).to(DEVICE)


def plain_generic(distiller: Distiller, images: Tensor, seeds: Tensor) -> Tensor:
    method, teacher = distiller.method, distiller.teacher.encoder
    rows, columns = distiller.student.facts.grid
    ids_shuffle = counter_uniform(seeds, rows * columns).argsort(dim=1)
    num_keep = int(rows * columns * (1 - OPTIONS.mask_ratio))
    with torch.no_grad():
        _, tokens = plain_masked(teacher.encoder.model, images, ids_shuffle[:, :num_keep])
        target = plain_decoded(teacher.decoder, tokens, ids_shuffle, OPTIONS.target_block + 1)
    return plain_generic_loss(
        distiller.student.model,
        method.decoder,
        method.decoderfeature_pred,
        target,
        images,
        ids_shuffle,
        num_keep,
    )


def plain_specific(distiller: Distiller, images: Tensor, seeds: Tensor) -> Tensor:
    student, teacher = distiller.student.model, distiller.teacher.encoder.model
    return plain_specific_loss(student, teacher, images, labels_of(seeds))


def labels_of(seeds: Tensor) -> Tensor:
    return seeds % NUM_CLASSES


STAGES = {
    "generic": Stage(32, build_generic, plain_generic),
    "specific": Stage(8, build_specific, plain_specific),
}


def build_our_step(batches: Iterator[Batch], stage: Stage, precision: Precision) -> Step:
    distiller = stage.build(precision).train()
    optimizer = build_optimizer(distiller, OptimOptions())
    set_lr(optimizer, LR)

    def loss() -> Tensor:
        batch = next(batches)
        with autocast(DEVICE, precision):
            return distiller(replace(batch, labels=labels_of(batch.view_seeds))).total

    return step_of(loss, optimizer, precision)


def build_plain_step(batches: Iterator[PlainBatch], stage: Stage, precision: Precision) -> Step:
    # Its teacher's weights are float32; autocast casts them where it is asked to.
    distiller = stage.build("fp32").train()
    betas, weight_decay = OptimOptions().betas, OptimOptions().weight_decay
    trained = [p for p in distiller.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LR, betas, weight_decay=weight_decay)

    def loss() -> Tensor:
        images = next(batches)[0].to(DEVICE)
        seeds = torch.randint(2**40, (len(images),), device=DEVICE)
        with autocast(DEVICE, precision):
            return stage.plain_loss(distiller, images, seeds)

    return step_of(loss, optimizer, precision)


def check_agreement(source: Source, stage: Stage) -> None:
    """Stop unless both compute one loss: the same photos and draws, float32, to 1e-4."""
    batch = next(our_batches(source, stage.batch_size, IMG_SIZE, VIEWS))
    distiller = stage.build("fp32").eval()
    student = distiller.student
    with torch.no_grad():
        ours = distiller(replace(batch, labels=labels_of(batch.view_seeds))).total.item()
        images = (batch.images - student.mean) / student.std
        plain = stage.plain_loss(distiller, images, batch.view_seeds).item()
    if not abs(ours / plain - 1) < 1e-4:
        sys.exit(f"our loss is {ours} and the reference's {plain}: their times do not compare")


def main(source: Source, repeats: int) -> None:
    """Time each stage's in turn and print a Markdown table."""
    print("| stage | ours | reference | ours, s/step | reference, s/step | ratio | target | "
          "ours, MiB | reference, MiB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for name, stage in STAGES.items():
        check_agreement(source, stage)
        ours = our_batches(source, stage.batch_size, IMG_SIZE, VIEWS)
        plain = plain_batches(source, stage.batch_size, IMG_SIZE, jitter=0.0)
        steps: dict[str, Step] = {}
        rows = [row for row in ROWS if runs_well(row)]
        for precision in dict.fromkeys(row[0] for row in rows):
            steps[f"ours {precision}"] = build_our_step(ours, stage, precision)
            steps[precision] = build_plain_step(plain, stage, precision)
        seconds = take_turns(steps, repeats)
        peak = {each: measure_peak_bytes(step) / 2**20 for each, step in steps.items()}
        for precision, reference, target in rows:
            fast, slow = f"ours {precision}", reference
            print(
                f"| {name} | {precision} | {reference} | {statistics.median(seconds[fast]):.3f} | "
                f"{statistics.median(seconds[slow]):.3f} | "
                f"{median_ratio(seconds[slow], seconds[fast]):.2f} | {target} | "
                f"{peak[fast]:.1f} | {peak[slow]:.1f} |",
                flush=True,
            )
