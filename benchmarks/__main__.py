"""Run one benchmark, or all: ``python -m benchmarks [NAME] [--data FOLDER] [--repeats 5]``.

Each prints its results as ratios to a plain version (``reference.py``; the loader to torchvision's
transforms), measured in turn in one run, medians over the repeats. Rows in bf16 are left out on a
CPU that has no instructions for it.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.photos import open_photos
from benchmarks.timing import describe_machine, kind_and_precision

BENCHMARKS = (
    *("loader", "step", "relation", "tokens", "d_mae", "g2sd", "masked"),
    *(
        "soft_labels",
        "target_store",
        "stored_step",
        "segment",
        "detect",
        "export",
        "compile",
        "gpu",
    ),
)
"""Modules of this folder; ``main(source, repeats)`` of each prints its table."""
WITHOUT_PHOTOS = ("relation", "masked", "target_store", "segment", "detect", "export")
"""Their ``main`` takes the repeats alone."""


def main(arguments: list[str]) -> None:
    """Run the benchmark that the arguments name, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, help="all if not given")
    parser.add_argument("--data", type=Path, help="a folder of photos; generated if not given")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that are measured")
    parser.add_argument("--yolo", type=Path, help="an ONNX file of YOLO26n at 640 px, of detect")
    chosen = parser.parse_args(arguments)
    if chosen.name in WITHOUT_PHOTOS and chosen.data:
        parser.error(f"--data has no effect on {chosen.name}; leave it out")
    if chosen.yolo and chosen.name != "detect":
        parser.error("--yolo is for detect alone; leave it out")
    if chosen.repeats < 1:
        parser.error("--repeats needs at least one round")
    print(describe_machine())
    with open_photos(chosen.data) as source:
        for name in (chosen.name,) if chosen.name else BENCHMARKS:
            print(f"\n## {name} ({kind_and_precision()})\n", flush=True)
            run = import_module(f"benchmarks.{name}").main
            rivals = {"yolo": chosen.yolo} if name == "detect" else {}
            run(*(() if name in WITHOUT_PHOTOS else (source,)), chosen.repeats, **rivals)


if __name__ == "__main__":
    main(sys.argv[1:])
