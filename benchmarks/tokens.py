"""How the step grows with the image: 1, 2, 4 and 8 times the tokens, against the reference.

    python -m benchmarks tokens [--data FOLDER] [--repeats 5]

ViT-B to ViT-S, batch 2, in what auto is; the reference's student under the same autocast, its
teacher in float32. Memory is the most that one step takes beyond weights and optimiser.
"""

import statistics

from benchmarks.networks import build_our_step, build_plain_step, our_batches
from benchmarks.reference import plain_batches
from benchmarks.timing import DEVICE, measure_peak_bytes, median_ratio, take_turns
from limbeck.data.source import Source
from limbeck.engine.machine import choose

IMG_SIZES, BATCH_SIZE = (224, 320, 448, 640), 2


def main(source: Source, repeats: int) -> None:
    """Print a Markdown table, one row per image size."""
    print("| px | tokens | ours, s/step | reference, s/step | ratio | ours, MiB | reference, MiB | "
          "part |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    precision = choose(DEVICE).precision
    for img_size in IMG_SIZES:
        ours = our_batches(source, BATCH_SIZE, img_size)
        plain = plain_batches(source, BATCH_SIZE, img_size)
        steps = {
            "ours": build_our_step(ours, img_size, precision),
            "plain": build_plain_step(plain, img_size, precision),
        }
        seconds = take_turns(steps, repeats)
        peak = {name: measure_peak_bytes(step) / 2**20 for name, step in steps.items()}
        median = {name: statistics.median(values) for name, values in seconds.items()}
        print(
            f"| {img_size} | {(img_size // 16) ** 2 + 1} | {median['ours']:.3f} | "
            f"{median['plain']:.3f} | {median_ratio(seconds['plain'], seconds['ours']):.2f} | "
            f"{peak['ours']:.0f} | {peak['plain']:.0f} | {peak['ours'] / peak['plain']:.2f} |"
        )
