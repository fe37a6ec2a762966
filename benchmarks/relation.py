"""The relation loss, forward and backward, against whole maps and autograd: memory and time.

    python -m benchmarks relation [--repeats 5]

Teacher ViT-B, student ViT-S: 12 heads of 64 and of 32 channels, one relation (QK), float32.
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.reference import plain_relation_loss
from benchmarks.timing import DEVICE, measure_peak_bytes, median_ratio, take_turns
from limbeck.ops.relations import relation_loss

NUM_HEADS, HEAD_DIM, TEACHER_HEAD_DIM = 12, 32, 64
SIZES = ((197, 1), (401, 1), (785, 1), (1025, 1), (1025, 4), (1601, 1))
"""Tokens and batch; 1,025 is where the targets are."""

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def build_run(loss: Loss, num_tokens: int, batch_size: int) -> Callable[[], None]:
    """A function that runs the loss forward and backward."""
    shape = (batch_size, NUM_HEADS, num_tokens)
    student = [torch.randn(*shape, HEAD_DIM, device=DEVICE, requires_grad=True) for _ in range(2)]
    teacher = [torch.randn(*shape, TEACHER_HEAD_DIM, device=DEVICE) for _ in range(2)]

    def run() -> None:
        loss(*student, *teacher).backward()
        for side in student:
            side.grad = None

    return run


def main(repeats: int) -> None:
    """Print a Markdown table; the targets are a quarter of the memory, and not slower."""
    print(
        "| tokens | batch | ours, MiB | reference, MiB | part | ours, ms | reference, ms | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for num_tokens, batch_size in SIZES:
        runs = {
            "ours": build_run(relation_loss, num_tokens, batch_size),
            "plain": build_run(plain_relation_loss, num_tokens, batch_size),
        }
        seconds = take_turns(runs, repeats)
        peak = {name: measure_peak_bytes(run) / 2**20 for name, run in runs.items()}
        median = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
        print(
            f"| {num_tokens} | {batch_size} | {peak['ours']:.1f} | {peak['plain']:.1f} | "
            f"1/{peak['plain'] / peak['ours']:.1f} | {median['ours']:.1f} | "
            f"{median['plain']:.1f} | {median_ratio(seconds['plain'], seconds['ours']):.2f} |"
        )
