"""Our step eager and under torch.compile, which compiles student, teacher and loss together.

    python -m benchmarks compile [--data FOLDER] [--repeats 5]

ViT-B to ViT-S, 224 px, batch 8, with the seconds that compiling took and the steps after which they
are earned back.
"""

import statistics

from benchmarks.networks import build_our_step, our_batches
from benchmarks.timing import measure_seconds, median_ratio, runs_well, take_turns
from limbeck.data.source import Source
from limbeck.methods.teacher import Precision

IMG_SIZE, BATCH_SIZE = 224, 8
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def main(source: Source, repeats: int) -> None:
    """Time all variants in turn and print a Markdown table."""
    batches = our_batches(source, BATCH_SIZE, IMG_SIZE)
    precisions = [each for each in PRECISIONS if runs_well((each,))]
    steps = {
        (precision, compiles): build_our_step(batches, IMG_SIZE, precision, compiles=compiles)
        for precision in precisions
        for compiles in (False, True)
    }
    first = {variant: measure_seconds(step) for variant, step in steps.items()}
    seconds = take_turns(steps, repeats)
    median = {variant: statistics.median(values) for variant, values in seconds.items()}
    print("| precision | eager, s/step | compiled, s/step | ratio | compiling, s | "
          "earned back after |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for precision in precisions:
        eager, compiled = median[precision, False], median[precision, True]
        compiling = first[precision, True] - compiled
        gain = eager - compiled
        earned = f"{compiling / gain:.0f} steps" if gain > 0 else "never"
        ratio = median_ratio(seconds[precision, False], seconds[precision, True])
        print(
            f"| {precision} | {eager:.3f} | {compiled:.3f} | {ratio:.2f} | "
            f"{compiling:.0f} | {earned} |"
        )
