"""One distillation step: eager against torch.compile, in fp32 and bf16, at 224 px.

    python -m benchmarks step [--teacher vit_base] [--student vit_small] [--batch-size 8]

Random weights and images: only time is measured. The variants take turns; medians are printed with
the seconds that compiling took and the steps after which they are earned back.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from limbeck.engine.optim import build_optimizer
from limbeck.engine.options import OptimOptions
from limbeck.methods.distiller import Distiller, Teacher, autocast
from limbeck.methods.options import RelationOptions
from limbeck.methods.relation import Relation
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions
from limbeck.records import Batch


def build_step(arguments: argparse.Namespace, precision: str, compiles: bool) -> Callable[[], None]:
    """A function that does one whole optimiser step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = build_student(StudentOptions(name=arguments.student), seed=0)
    encoder = build_student(StudentOptions(name=arguments.teacher), seed=1)
    teacher = Teacher(encoder, device, precision)
    method = Relation(RelationOptions(), student.facts, teacher.facts)
    student.set_num_heads(-1, teacher.facts.num_heads[-1])
    distiller = Distiller(student, method, teacher).to(device).train()
    optimizer = build_optimizer(distiller, OptimOptions())
    if compiles:
        distiller.compile()
    images = torch.rand(arguments.batch_size, 3, 224, 224, device=device)
    names = tuple(map(str, range(arguments.batch_size)))
    batch = Batch(images, images, None, names, torch.arange(arguments.batch_size, device=device))

    def step() -> None:
        with autocast(device, precision):
            losses = distiller(batch)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def seconds_of(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main(words: list[str]) -> None:
    """Time all variants in turn and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step", description=__doc__)
    parser.add_argument("--teacher", default="vit_base")
    parser.add_argument("--student", default="vit_small")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(words)
    variants = [
        (precision, compiles) for precision in ("fp32", "bf16") for compiles in (False, True)
    ]
    steps = {variant: build_step(arguments, *variant) for variant in variants}
    first = {variant: seconds_of(step) for variant, step in steps.items()}
    times: dict[tuple[str, bool], list[float]] = {variant: [] for variant in variants}
    for _ in range(arguments.repeats + 1):  # the first round still warms up
        for variant, step in steps.items():
            times[variant].append(seconds_of(step))
    median = {variant: statistics.median(values[1:]) for variant, values in times.items()}
    print(f"{arguments.teacher} -> {arguments.student}, batch {arguments.batch_size}, 224 px, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads")  # fmt: skip
    print(
        "| precision | eager s/step | compiled s/step | ratio | compiling s | earned back after |"
    )
    print("|---|---|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        eager, compiled = median[precision, False], median[precision, True]
        compiling = first[precision, True] - compiled
        gain = eager - compiled
        earned = f"{compiling / gain:.0f} steps" if gain > 0 else "never"
        print(
            f"| {precision} | {eager:.3f} | {compiled:.3f} | {eager / compiled:.2f} | "
            f"{compiling:.0f} | {earned} |"
        )
