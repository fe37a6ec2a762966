"""Exported files beside PyTorch: one image of 224 px at a time, on all cores.

    python -m benchmarks export [--repeats 5]

ViT-Tiny and TinyViT-5M with 1000 classes and random weights, which int8 rounds by the ranges of
random images: speeds do not hang on them. All variants of a network take turns in one run; a turn
is half a second of passes, of which the median counts. PyTorch is eager, in fp32.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.timing import measure_seconds, median_ratio, runs_well
from limbeck.exports.formats import FORMATS, FormatName, Precision, module_of
from limbeck.exports.graph import Graph
from limbeck.limits import num_cores
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions

NETWORKS = {"ViT-Tiny": "vit_tiny", "TinyViT-5M": "tiny_vit_5m"}
VARIANTS: tuple[tuple[FormatName, Precision], ...] = (
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("torch", "bf16"),
    ("openvino", "bf16"),
    ("onnx", "int8"),
    ("openvino", "int8"),
)
TARGETS = {
    "ViT-Tiny": {"fp32": 1.25, "bf16": 1.9, "int8": 2.6},
    "TinyViT-5M": {"fp32": 1.7, "bf16": 2.6, "int8": 3.5},
}
"""Of the fastest file of each precision, on a CPU with AVX-512 VNNI and bf16."""
TURN_SECONDS = 0.5
Pass = Callable[[], object]


def main(repeats: int) -> None:
    """Time all variants of both networks in turn and print a Markdown table."""
    print("| network | runtime | precision | ms | ratio | target of the fastest |")
    print("|---|---|---|---|---|---|")
    torch.set_num_threads(num_cores())
    for network, name in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            passes = _passes(name, Path(folder))
            rounds = [
                {variant: _turn(run) for variant, run in passes.items()} for _ in range(repeats + 1)
            ]
        seconds = {variant: [each[variant] for each in rounds[1:]] for variant in passes}
        eager = seconds["PyTorch", "fp32"]
        for (runtime, precision), own in seconds.items():
            ratio = median_ratio(eager, own)
            target = TARGETS[network][precision] if runtime != "PyTorch" else ""
            ms = 1e3 * statistics.median(own)
            print(f"| {network} | {runtime} | {precision} | {ms:.2f} | {ratio:.2f} | {target} |")


def _passes(name: str, folder: Path) -> dict[tuple[str, str], Pass]:
    graph = Graph(build_student(StudentOptions(name=name), num_classes=1000, seed=0))
    images = graph.example(1)
    feeds = torch.rand(16, 1, *images.shape[1:]).numpy()

    def eager() -> None:
        with torch.inference_mode():
            graph(images)

    found: dict[tuple[str, str], Pass] = {("PyTorch", "fp32"): eager}
    for to, precision in VARIANTS:
        if precision == "bf16" and not runs_well(("bf16",)):
            continue
        module, file = module_of(to), folder / f"{to}-{precision}{FORMATS[to].suffix}"
        if precision == "int8":
            plain = folder / f"{to}-fp32{FORMATS[to].suffix}"  # by the table's order written before
            said = module.quantise(plain, file, feeds, ())
        else:
            said = module.write(graph, file, precision)
        run = module.load(file, said, num_cores())
        found[FORMATS[to].title, precision] = lambda run=run: run(images.numpy())  # type: ignore[misc]
    return found


def _turn(run: Pass) -> float:
    run()
    first = measure_seconds(run)
    return statistics.median(
        [first, *(measure_seconds(run) for _ in range(int(TURN_SECONDS / first)))]
    )
