"""On a GPU: step time and peak memory against the reference, and the share of the matrix rate.

    python -m benchmarks gpu [--data FOLDER] [--repeats 5]

ViT-B to ViT-S, 224 px, batch 64, photos already on the GPU (loader processes hide their loading).
The share is floating-point operations of the step's matrix products (without the relation loss,
which the counter does not see into) by its seconds, over the rate of one large bf16 product.
"""

import statistics
from itertools import cycle, islice

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import build_our_step, build_plain_step, check_agreement, our_batches
from benchmarks.reference import plain_batches
from benchmarks.timing import DEVICE, measure_peak_bytes, measure_seconds, median_ratio, take_turns
from limbeck.data.source import Source

IMG_SIZE, BATCH_SIZE, SIDE = 224, 64, 8192
ROWS = (  # ours, reference, target
    ("fp16", "fp16, teacher fp32", "2.0"),
    ("fp16", "fp16, teacher fp16", ""),
    ("bf16", "bf16, teacher fp32", ""),
)


def main(source: Source, repeats: int) -> None:
    """Print a Markdown table and the share; says so where there is no GPU."""
    if DEVICE.type != "cuda":
        print("No CUDA device: not measured.")
        return
    check_agreement(source, BATCH_SIZE, IMG_SIZE)
    ours = cycle(list(islice(our_batches(source, BATCH_SIZE, IMG_SIZE), 2)))
    views = islice(plain_batches(source, BATCH_SIZE, IMG_SIZE), 2)
    plain = cycle([(own.to(DEVICE), theirs.to(DEVICE)) for own, theirs in views])
    steps = {
        "ours fp16": build_our_step(ours, IMG_SIZE, "fp16"),
        "fp16, teacher fp32": build_plain_step(plain, IMG_SIZE, "fp16"),
        "fp16, teacher fp16": build_plain_step(plain, IMG_SIZE, "fp16", "fp16"),
        "ours bf16": build_our_step(ours, IMG_SIZE, "bf16"),
        "bf16, teacher fp32": build_plain_step(plain, IMG_SIZE, "bf16"),
    }
    seconds = take_turns(steps, repeats)
    peak = {name: measure_peak_bytes(step) / 2**20 for name, step in steps.items()}
    print("| ours | reference | ours, ms | reference, ms | ratio | target | ours, MiB | "
          "reference, MiB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for precision, reference, target in ROWS:
        name = f"ours {precision}"
        print(
            f"| {precision} | {reference} | {1e3 * statistics.median(seconds[name]):.1f} | "
            f"{1e3 * statistics.median(seconds[reference]):.1f} | "
            f"{median_ratio(seconds[reference], seconds[name]):.2f} | {target} | "
            f"{peak[name]:.0f} | {peak[reference]:.0f} |"
        )
    with FlopCounterMode(display=False) as counter:
        steps["ours bf16"]()
    rate = counter.get_total_flops() / statistics.median(seconds["ours bf16"])
    best = measure_matrix_rate(repeats)
    print(f"\nbf16 step: {rate / 1e12:.0f} of {best / 1e12:.0f} TFLOP/s, {rate / best:.0%}")


def measure_matrix_rate(repeats: int) -> float:
    """Operations per second of square bf16 products, the best of some."""
    a = torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16)
    return 2 * SIDE**3 / min(measure_seconds(lambda: a @ a) for _ in range(repeats + 1))
