"""The encoder's forward pass by the share of patches that is kept: it should cost what it keeps.

    python -m benchmarks masked [--repeats 5]

ViT-B without gradients (a teacher's pass) and 12-head ViT-Tiny forward and backward (a student's),
224 px, batch 16, in what auto is, generated images and masks.
"""

import statistics
from collections.abc import Callable

import torch

from benchmarks.timing import DEVICE, take_turns
from limbeck.engine.machine import choose
from limbeck.methods.teacher import DTYPES, Teacher, autocast
from limbeck.models.attention import choose_attention
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions
from limbeck.ops.masking import random_ids_keep
from limbeck.records import Tap

IMG_SIZE, BATCH_SIZE = 224, 16
KEPT = (0.25, 0.5, 0.75, 1.0)
STUDENT, TEACHER = "vit_tiny", "vit_base"


def build_runs() -> dict[tuple[str, float], Callable[[], object]]:
    """By pass and share: a function that runs it."""
    shape = {"img_size": IMG_SIZE, "num_heads": 12}
    student = build_student(StudentOptions(name=STUDENT, **shape), seed=0).to(DEVICE)
    precision = choose(DEVICE).precision
    choose_attention(student, DEVICE, DTYPES[precision])
    network = build_student(StudentOptions(name=TEACHER, **shape), seed=1)
    teacher = Teacher(network, DEVICE, precision)
    images = torch.rand(BATCH_SIZE, 3, IMG_SIZE, IMG_SIZE, device=DEVICE)
    seeds = torch.arange(BATCH_SIZE, device=DEVICE)
    num_patches = student.facts.grid[0] * student.facts.grid[1]

    def train(ids_keep: torch.Tensor | None) -> None:
        with autocast(DEVICE, precision):
            tokens = student(images, ids_keep).tokens
        tokens.float().square().mean().backward()
        student.zero_grad(set_to_none=True)

    runs: dict[tuple[str, float], Callable[[], object]] = {}
    for kept in KEPT:
        ids = None if kept == 1 else random_ids_keep(seeds, num_patches, 1 - kept)
        runs["student", kept] = lambda ids=ids: train(ids)
        runs["teacher", kept] = lambda ids=ids: teacher(images, ids, (Tap("output"),))
    return runs


def main(repeats: int) -> None:
    """Print a Markdown table."""
    seconds = take_turns(build_runs(), repeats)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print("| kept | teacher, s | part | student, s | part |")
    print("|---|---|---|---|---|")
    for kept in KEPT:
        cells = [
            f"{median[who, kept]:.3f} | {median[who, kept] / median[who, 1.0]:.2f}"
            for who in ("teacher", "student")
        ]
        print(f"| {kept:.0%} | {' | '.join(cells)} |")
