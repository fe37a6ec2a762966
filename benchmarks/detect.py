"""Detectors: one image at a time beside small rivals, a training step, and the scores.

    python -m benchmarks detect [--repeats 5] [--yolo yolo26n.onnx]

Inference is fp32 in ONNX Runtime and OpenVINO, on one thread and on all cores, with random weights
and 80 classes. SSDlite-MobileNetV3 is torchvision's, in PyTorch alone, its suppression of doubles
included; YOLO26n at 640 px is measured where an ONNX file of it is named, as its makers export it.
Training is a step of eight images of 320 px with 14 boxes each, against torchvision's Faster R-CNN
on a MobileNetV3. The scores are of made-up answers, a hundred an image, against pycocotools.
"""

import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_320_fpn,
    ssdlite320_mobilenet_v3_large,
)

from benchmarks.timing import measure_seconds, median_ratio, take_turns
from limbeck.data.scenes.objects.source import Annotated
from limbeck.evaluation.average_precision import AveragePrecision
from limbeck.exports.formats import FORMATS, FormatName, module_of
from limbeck.exports.graph import Graph
from limbeck.limits import num_cores
from limbeck.models.build import build_student
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.dense.detector import Detector
from limbeck.models.options import DetectorOptions, StudentOptions
from limbeck.records import Detections, Objects

NETWORKS = {
    "TinyViT-5M": ("tiny_vit_5m", 256),
    "ViT-Tiny": ("vit_tiny", 288),
    "TinyViT, widths 32 to 192": ("tiny_vit_5m:embed_dims=32-64-128-192:depths=2-2-4-2", 448),
}
YOLO, YOLO_SIZE = "YOLO26n", 640
RUNTIMES: tuple[FormatName, ...] = ("onnx", "openvino")
NUM_CLASSES, TRAINED, BATCH, NUM_BOXES, SIZE = 80, "TinyViT-5M", 8, 14, 320
NUM_SCORED = 1000
TARGET, SCORES_TARGET = 1.0, 5.0
"""Of the networks, times as fast as YOLO26n; of the scores, as pycocotools."""
TURN_SECONDS = 0.5
Pass = Callable[[], object]


def main(repeats: int, yolo: Path | None = None) -> None:
    """Print three Markdown tables."""
    if yolo is None:
        print(f"{YOLO} is left out: name an ONNX file of it with --yolo.\n")
    measure_inference(repeats, yolo)
    print()
    measure_training(repeats)
    print()
    measure_scores(repeats)


def build(name: str, size: int) -> Detector:
    """A detector of random weights."""
    encoder = build_student(StudentOptions(name=name), seed=0)
    return build_detector(encoder, NUM_CLASSES, DetectorOptions(), 0, (size, size))


def measure_inference(repeats: int, yolo: Path | None) -> None:
    """Milliseconds of one image, and the ratio to YOLO26n's on the same threads and runtime."""
    print("| network | px | runtime | threads | ms | times as fast as YOLO26n | target |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        files = _files(Path(folder), yolo)
        for threads in sorted({1, num_cores()}):
            passes = _passes(files, threads)
            rounds = [{key: _turn(run) for key, run in passes.items()} for _ in range(repeats + 1)]
            seconds = {key: [each[key] for each in rounds[1:]] for key in passes}
            for (name, size, runtime), own in seconds.items():
                rival = seconds.get((YOLO, YOLO_SIZE, runtime))
                ratio = "" if rival is None else f"{median_ratio(rival, own):.2f}"
                ms = 1e3 * statistics.median(own)
                target = TARGET if name in NETWORKS else ""
                print(
                    f"| {name} | {size} | {runtime} | {threads} | {ms:.1f} | {ratio} | {target} |",
                    flush=True,
                )


def _files(folder: Path, yolo: Path | None) -> dict[tuple[str, int, FormatName], Any]:
    """Of each network and runtime what loads it, and an image."""
    found: dict[tuple[str, int, FormatName], Any] = {}
    for name, (student, size) in NETWORKS.items():
        graph = Graph(build(student, size))
        for to in RUNTIMES:
            file = folder / f"{size}{FORMATS[to].suffix}"
            said = module_of(to).write(graph, file, "fp32")
            found[name, size, to] = file, said, graph.example(1).numpy()
    if yolo is not None:
        image = np.random.default_rng(0).random((1, 3, YOLO_SIZE, YOLO_SIZE), np.float32)
        found |= {(YOLO, YOLO_SIZE, to): (yolo, {}, image) for to in RUNTIMES}
    return found


def _passes(
    files: dict[tuple[str, int, FormatName], Any], threads: int
) -> dict[tuple[str, int, str], Pass]:
    runs: dict[tuple[str, int, str], Pass] = {}
    for (name, size, to), (file, said, image) in files.items():
        load = _load_other if name == YOLO else module_of(to).load
        run = load(file, said | {"runtime": to}, threads)
        runs[name, size, FORMATS[to].title] = lambda run=run, image=image: run(image)  # type: ignore[misc]
    plain = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()

    def eager() -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            plain([torch.zeros(3, 320, 320)])

    return runs | {("SSDlite-MobileNetV3", 320, "PyTorch"): eager}


def _load_other(file: Path, said: dict[str, Any], threads: int) -> Callable[[Any], object]:
    """A file of somebody else's, in the same runtimes with the same settings."""
    if said["runtime"] == "onnx":
        from limbeck.exports.silent import import_onnxruntime

        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        session = runtime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda image: session.run(None, {name: image})
    from limbeck.exports.openvino import core

    asked = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    network = core().compile_model(str(file), "CPU", asked)
    return lambda image: network([image])


def _turn(run: Pass) -> float:
    run()
    first = measure_seconds(run)
    return statistics.median(
        [first, *(measure_seconds(run) for _ in range(int(TURN_SECONDS / first)))]
    )


def measure_training(repeats: int) -> None:
    """Images a second of a whole step, and the ratio to torchvision's."""
    torch.set_num_threads(num_cores())
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, SIZE, SIZE, generator=rng)
    low = torch.rand(BATCH, NUM_BOXES, 2, generator=rng) * (SIZE - 60)
    boxes = torch.cat([low, low + 40], 2)
    classes = torch.randint(0, NUM_CLASSES, (BATCH, NUM_BOXES), generator=rng)
    objects = [Objects(*each, (SIZE, SIZE)) for each in zip(boxes, classes, strict=True)]
    own = build(NETWORKS[TRAINED][0], SIZE).train()
    other = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1, min_size=SIZE,
        max_size=SIZE,
    ).train()  # fmt: skip
    truth = [
        {"boxes": each, "labels": kinds + 1} for each, kinds in zip(boxes, classes, strict=True)
    ]

    def ours() -> torch.Tensor:
        features = own(images, None, own.loss_taps)
        return own.losses(features, objects, torch.arange(BATCH)).total

    def theirs() -> torch.Tensor:
        return torch.stack([*other(list(images), truth).values()]).sum()

    runs = {f"{TRAINED}, light": _step(own, ours), "Faster R-CNN MobileNetV3": _step(other, theirs)}
    seconds = take_turns(runs, repeats)
    print(f"| training, {SIZE} px, fp32 | images/s | ratio |")
    print("|---|---|---|")
    for name, times in seconds.items():
        ratio = median_ratio(seconds["Faster R-CNN MobileNetV3"], times)
        print(f"| {name} | {BATCH / statistics.median(times):.1f} | {ratio:.2f} |")


def _step(module: torch.nn.Module, losses: Callable[[], torch.Tensor]) -> Pass:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)

    def run() -> None:
        optimizer.zero_grad()
        losses().backward()
        optimizer.step()

    return run


def measure_scores(repeats: int) -> None:
    """Seconds of the scores of made-up answers, and the ratio to pycocotools'."""
    kept = made_up(NUM_SCORED)
    seconds = take_turns(
        {"AveragePrecision": kept.score, "pycocotools": lambda: plain(kept)}, repeats
    )
    print(f"| scores of {NUM_SCORED} images, {NUM_CLASSES} classes | s | ratio | target |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        ratio = median_ratio(seconds["pycocotools"], times)
        target = SCORES_TARGET if name != "pycocotools" else ""
        print(f"| {name} | {statistics.median(times):.2f} | {ratio:.1f} | {target} |")


def made_up(count: int) -> AveragePrecision:
    """Objects and a hundred answers for each of some images."""
    rng = np.random.default_rng(0)
    kept = AveragePrecision([str(kind) for kind in range(NUM_CLASSES)])
    for _ in range(count):
        boxes = rng.uniform(0, 400, (NUM_BOXES, 2))
        boxes = np.concatenate([boxes, boxes + rng.uniform(10, 200, (NUM_BOXES, 2))], 1)
        kinds = rng.integers(NUM_CLASSES, size=NUM_BOXES)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        truth = Annotated(boxes, kinds, np.zeros(NUM_BOXES, bool), areas, (None,) * NUM_BOXES)
        chosen = rng.integers(NUM_BOXES, size=100)
        noise = rng.normal(0, 8, (100, 2)).repeat(2, 0).reshape(100, 4)
        said = np.where(rng.random(100) < 0.7, kinds[chosen], rng.integers(NUM_CLASSES, size=100))
        kept.add((640, 640), truth, Detections(
            torch.from_numpy(boxes[chosen] + noise), torch.from_numpy(rng.random(100)),
            torch.from_numpy(said),
        ))  # fmt: skip
    return kept


def plain(kept: AveragePrecision) -> list[float]:
    """COCO's own tool on the same answers, from them to its twelve numbers."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, truths, answers = [], [], []
    for index, image in enumerate(kept.images, 1):
        images.append({"id": index, "height": image.size[0], "width": image.size[1]})
        parts = (
            (truths, SimpleNamespace(boxes=image.truth.boxes, classes=image.truth.classes), None),
            (answers, SimpleNamespace(boxes=image.boxes, classes=image.classes), image.scores),
        )
        for entries, each, scores in parts:
            for place, (left, top, right, bottom) in enumerate(each.boxes.tolist()):
                box = [left, top, right - left, bottom - top]
                entry = {
                    "image_id": index,
                    "category_id": int(each.classes[place]) + 1,
                    "bbox": box,
                }
                if scores is None:
                    entry |= {"id": len(truths) + 1, "area": box[2] * box[3], "iscrowd": 0}
                else:
                    entry |= {"score": float(scores[place])}
                entries.append(entry)
    categories = [{"id": kind + 1, "name": name} for kind, name in enumerate(kept.classes)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "annotations": truths, "categories": categories}
        truth.createIndex()
        found = COCOeval(truth, truth.loadRes(answers), "bbox")
        found.evaluate()
        found.accumulate()
        found.summarize()
    stats: list[float] = found.stats.tolist()
    return stats
