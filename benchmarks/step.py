"""One distillation step against the plain reference: ViT-B to ViT-S, 224 px, batch 8.

    python -m benchmarks step [--data FOLDER] [--repeats 5]

Loading the photos is part of each step, on both sides. In the first row the reference's student
runs under the same bf16 autocast as ours and its teacher in float32; the next two take other
references: its teacher in bf16 as well, and all of it in float32. Before any timing both losses
must agree.
"""

import statistics

from benchmarks.networks import (
    Step,
    build_our_step,
    build_plain_step,
    check_agreement,
    our_batches,
)
from benchmarks.reference import plain_batches
from benchmarks.timing import median_ratio, runs_well, take_turns
from limbeck.data.source import Source

IMG_SIZE, BATCH_SIZE = 224, 8
ROWS = (  # ours, reference, target
    ("bf16", "bf16, teacher fp32", "2.0"),
    ("bf16", "bf16, teacher bf16", ""),
    ("bf16", "fp32", ""),
    ("fp32", "fp32", "1.1"),
)


def main(source: Source, repeats: int) -> None:
    """Time all in turn and print a Markdown table."""
    check_agreement(source, BATCH_SIZE, IMG_SIZE)
    ours = our_batches(source, BATCH_SIZE, IMG_SIZE)
    plain = plain_batches(source, BATCH_SIZE, IMG_SIZE)
    rows = [row for row in ROWS if runs_well(row)]
    steps: dict[str, Step] = {}
    for precision in dict.fromkeys(row[0] for row in rows):
        steps[f"ours {precision}"] = build_our_step(ours, IMG_SIZE, precision)
    for reference in dict.fromkeys(row[1] for row in rows):
        own, _, teacher = reference.partition(", teacher ")
        steps[reference] = build_plain_step(plain, IMG_SIZE, own, teacher or "fp32")
    seconds = take_turns(steps, repeats)
    print("| ours | reference | ours, s/step | reference, s/step | ratio | target |")
    print("|---|---|---|---|---|---|")
    for precision, reference, target in rows:
        fast, slow = seconds[f"ours {precision}"], seconds[reference]
        print(
            f"| {precision} | {reference} | {statistics.median(fast):.3f} | "
            f"{statistics.median(slow):.3f} | {median_ratio(slow, fast):.2f} | {target} |"
        )
