"""How long the detectors of this experiment take for one image, on one thread.

    python -m experiments.bccd.speeds --runs runs/bccd/arms --yolo runs/bccd/yolo26n_320.onnx

In PyTorch (fp32, answers picked), and by ONNX Runtime where it can be exported; in turns, medians.
The file of YOLO26n is made by its makers' command: yolo export model=... format=onnx imgsz=320
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

import limbeck
from experiments.bccd import detr
from experiments.bccd.rivals import SIDE
from experiments.bccd.run import KINDS, folder_of
from limbeck.evaluation.report import table
from limbeck.exports.formats import module_of
from limbeck.exports.graph import Graph
from limbeck.exports.silent import import_onnxruntime

CLASSES = ("RBC", "WBC", "Platelets")
Pass = Callable[[], object]


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--runs", type=Path, required=True, help="of run.py")
    parser.add_argument("--yolo", type=Path, help="an ONNX file; left out if not given")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        passes = _passes(arguments, Path(folder))
        turns = [
            {name: _turn(run) for name, run in passes.items()} for _ in range(arguments.repeats)
        ]
    rows: dict[str, dict[str, str]] = {}
    for name, runtime in passes:
        ms = 1e3 * statistics.median(turn[name, runtime] for turn in turns[1:])
        rows.setdefault(name, {"detector": name, "PyTorch ms": "", "ONNX Runtime ms": ""})
        rows[name][f"{runtime} ms"] = f"{ms:.1f}"
    print(table([*rows.values()]))


def _passes(arguments: argparse.Namespace, folder: Path) -> dict[tuple[str, str], Pass]:
    found: dict[tuple[str, str], Pass] = {}
    for kind, about in KINDS.items():
        network = limbeck.load(folder_of(arguments.runs, kind, "from scratch", 0))
        image, size = torch.rand(1, 3, about.side, about.side), [(about.side, about.side)]
        found[kind, "PyTorch"] = lambda n=network, x=image, s=size: n.detect(x, s)  # type: ignore[misc]
        if kind == "light":
            said = module_of("onnx").write(Graph(network), folder / "light.onnx", "fp32")
            run = module_of("onnx").load(folder / "light.onnx", said, 1)
            found[kind, "ONNX Runtime"] = lambda r=run, x=image: r(x.numpy())  # type: ignore[misc]
    for head in detr.HEADS:
        other, image = detr.build(head, CLASSES, 0).eval(), torch.rand(1, 3, detr.SIDE, detr.SIDE)
        found[head, "PyTorch"] = lambda n=other, x=image: detr.answers_of(n, x)  # type: ignore[misc]
    ssdlite = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=1 + len(CLASSES)
    ).eval()
    found["SSDlite-MobileNetV3", "PyTorch"] = lambda: ssdlite([torch.rand(3, SIDE, SIDE)])
    if arguments.yolo is not None:
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        session = runtime.InferenceSession(str(arguments.yolo), options)
        feed = {session.get_inputs()[0].name: np.zeros((1, 3, SIDE, SIDE), np.float32)}
        found["YOLO26n", "ONNX Runtime"] = lambda: session.run(None, feed)
    return found


def _turn(run: Pass) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
