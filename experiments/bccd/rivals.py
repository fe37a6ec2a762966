"""BCCD: what a user would pick instead, trained from scratch for the same processor time.

    python -m venv runs/bccd/yolo && runs/bccd/yolo/bin/pip install ultralytics
    python -m experiments.bccd.rivals --data BCCD --yolo runs/bccd/yolo/bin/yolo \\
        --out runs/bccd/rivals

SSDlite-MobileNetV3 is torchvision's, and the heads of DETR's kind are transformers' (detr.py), with
our views and a short loop of this file. YOLO26n is trained and asked by its makers' command alone,
in an environment of its own; its settings are told to send nothing. All are scored by our
``AveragePrecision``; YOLO26n and SSDlite see images of 320 px, the others those of our student.
"""

import argparse
import json
import math
import os
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from experiments.bccd import detr
from experiments.bccd.run import row
from limbeck.data.options import DataOptions
from limbeck.data.scenes.objects.loader import eval_objects, object_batches
from limbeck.data.scenes.objects.open import open_objects
from limbeck.data.scenes.objects.options import ObjectOptions, ObjectViewOptions
from limbeck.data.scenes.objects.source import ObjectSource
from limbeck.data.skipped import SkippedLog
from limbeck.documents import read_json, write_json
from limbeck.evaluation.average_precision import AveragePrecision
from limbeck.evaluation.report import table
from limbeck.recipes.run.boxes import on_image
from limbeck.records import Batch, Detections

SECONDS = 240.0
"""Of one processor, for each training: a third more than our student takes from scratch."""
SIDE, BATCH_SIZE, STEPS = 320, 16, 10**6
CPU = torch.device("cpu")
PEAK_LR = 1e-3
YOLO_EPOCHS = 12
"""Which take as long, the command's start left out."""
SENDERS = ("clearml", "comet", "dvc", "mlflow", "raytune", "sync")


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO's JSON, three splits")
    parser.add_argument("--yolo", type=Path, help="its makers' command; left out if not given")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="test", help="which is scored")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rivals: dict[str, Callable[[int], AveragePrecision]] = {
        "SSDlite-MobileNetV3": lambda seed: run_ssdlite(seed, arguments)
    }
    for head in detr.HEADS:
        rivals[head] = partial(run_detr, head, arguments=arguments)
    if arguments.yolo is not None:
        prepare_yolo(arguments)
        rivals["YOLO26n"] = lambda seed: run_yolo(seed, arguments)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in rivals}
    for seed in range(arguments.seeds):
        for name, run in rivals.items():
            file = arguments.out / f"{name}_{arguments.split}_{seed}.json"
            if not file.is_file():
                started = time.monotonic()
                found = run(seed).score().plain()
                write_json(file, found | {"wall_seconds": time.monotonic() - started})
            scores[name].append(read_json(file))
            print(name, seed, scores[name][-1], flush=True)
    print(table([row(name, found) for name, found in scores.items()]))


def open_split(root: Path, split: str) -> ObjectSource:
    return open_objects(str(root), ObjectOptions(root=str(root)), split, is_known=True)


def run_ssdlite(seed: int, arguments: argparse.Namespace) -> AveragePrecision:
    """torchvision's, from scratch."""

    def losses(batch: Batch) -> Tensor:
        assert batch.objects is not None
        truth = [{"boxes": each.boxes, "labels": each.classes + 1} for each in batch.objects]
        return torch.stack([*network([*batch.images], truth).values()]).sum()

    def answers(images: Tensor) -> list[Detections]:
        found = network([*images])
        return [Detections(each["boxes"], each["scores"], each["labels"] - 1) for each in found]

    torch.manual_seed(seed)
    source = open_split(arguments.data, "train")
    network = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=1 + len(source.classes)
    ).train()
    train(network, losses, source, seed, SIDE)
    torch.save(network.state_dict(), arguments.out / f"ssdlite_{seed}.pt")
    return scored(network, answers, open_split(arguments.data, arguments.split), SIDE)


def run_detr(head: str, seed: int, arguments: argparse.Namespace) -> AveragePrecision:
    """transformers' heads on the light detector's backbone, from scratch."""
    source = open_split(arguments.data, "train")
    network = detr.build(head, source.classes, seed)
    train(network, partial(detr.loss_of, network), source, seed, detr.SIDE)
    held_out = open_split(arguments.data, arguments.split)
    return scored(network, partial(detr.answers_of, network), held_out, detr.SIDE)


def train(
    network: nn.Module,
    losses: Callable[[Batch], Tensor],
    source: ObjectSource,
    seed: int,
    side: int,
) -> None:
    """AdamW and a cosine over the processor time."""
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_LR, weight_decay=0.05)
    batches = object_batches(
        source, data=DataOptions(num_workers=0), views=ObjectViewOptions(vertical_flip_prob=0.5),
        img_size=side, has_masks=False, run_seed=seed, global_batch_size=BATCH_SIZE,
        accumulate_steps=1, rank=0, world_size=1, start_step=0, total_steps=STEPS, device=CPU,
        skipped=SkippedLog(None, len(source), 0.0),
    )  # fmt: skip
    started, steps = time.process_time(), 0
    while (share := (time.process_time() - started) / SECONDS) < 1:
        for group in optimizer.param_groups:
            warm_up = min(1.0, share / 0.05)
            group["lr"] = PEAK_LR * warm_up * (1 + math.cos(math.pi * share)) / 2
        loss = losses(next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        steps += 1
    print(f"{type(network).__name__} {seed}: {steps} steps, the last loss {loss.item():.2f}")


def scored(
    network: nn.Module, answers: Callable[[Tensor], list[Detections]], held_out: ObjectSource,
    side: int,
) -> AveragePrecision:  # fmt: skip
    """What the last weights say of whole images."""
    found = AveragePrecision(held_out.classes)
    batches = eval_objects(
        held_out, data=DataOptions(num_workers=0), img_size=side, batch_size=8, device=CPU,
        skipped=SkippedLog(None, len(held_out), 0.0),
    )  # fmt: skip
    network.eval()
    with torch.inference_mode():
        for batch, shown in batches:
            for each, said in zip(shown, answers(batch.images), strict=True):
                found.add(each.own_size, each.truth, on_image(said, each.size, each.own_size))
    return found


def prepare_yolo(arguments: argparse.Namespace) -> None:
    """Nothing is sent, and the images and boxes lie as that command wants them."""
    yolo(arguments, "settings", *(f"{name}=False" for name in SENDERS))
    root = (arguments.out / "yolo").resolve()
    for split in ("train", arguments.split):
        source = open_split(arguments.data, split)
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(len(source)):
            image, truth = source.read_objects(index)
            name = Path(source.key(index)).name
            copy = root / "images" / split / name
            copy.write_bytes(source.read(index).data)
            size = np.array([image.shape[1], image.shape[0]])
            low, high = truth.boxes[:, :2] / size, truth.boxes[:, 2:] / size
            boxes = np.concatenate([(low + high) / 2, high - low], 1).tolist()
            lines = [
                f"{kind} {' '.join(f'{value:.6f}' for value in box)}\n"
                for kind, box in zip(truth.classes.tolist(), boxes, strict=True)
            ]
            (root / "labels" / split / name).with_suffix(".txt").write_text("".join(lines))
    about = {"path": str(root), "train": "images/train", "val": f"images/{arguments.split}"}
    # JSON is YAML.
    (root / "data.yaml").write_text(json.dumps(about | {"names": list(source.classes)}))


def run_yolo(seed: int, arguments: argparse.Namespace) -> AveragePrecision:
    """Its makers' own recipe, but for the number of epochs."""
    root = (arguments.out / "yolo").resolve()
    yolo(
        arguments, "detect", "train", "model=yolo26n.yaml", f"data={root / 'data.yaml'}",
        f"epochs={YOLO_EPOCHS}", f"imgsz={SIDE}", f"batch={BATCH_SIZE}", f"seed={seed}",
        "pretrained=False", "workers=0", "device=cpu", "val=False", "plots=False", "amp=False",
        f"project={root / 'runs'}", f"name=train_{seed}", "exist_ok=True",
    )  # fmt: skip
    weights = root / "runs" / f"train_{seed}" / "weights" / "last.pt"
    yolo(
        arguments, "detect", "predict", f"model={weights}",
        f"source={root / 'images' / arguments.split}", f"imgsz={SIDE}", "conf=0.001",
        "max_det=100", "device=cpu", "save=False", "save_txt=True", "save_conf=True",
        f"project={root / 'runs'}", f"name=predict_{seed}", "exist_ok=True",
    )  # fmt: skip
    held_out = open_split(arguments.data, arguments.split)
    found = AveragePrecision(held_out.classes)
    for index in range(len(held_out)):
        image, truth = held_out.read_objects(index)
        size = (image.shape[0], image.shape[1])
        found.add(size, truth, answers_of_yolo(arguments.out, seed, held_out.key(index), size))
    return found


def answers_of_yolo(out: Path, seed: int, key: str, size: tuple[int, int]) -> Detections:
    """What ``run_yolo`` found in an image of (H, W)."""
    name = Path(key).with_suffix(".txt").name
    file = out / "yolo" / "runs" / f"predict_{seed}" / "labels" / name
    lines = file.read_text().split("\n") if file.is_file() else []
    said = np.array([line.split() for line in lines if line], np.float64).reshape(-1, 6)
    said = said[np.argsort(-said[:, 5], kind="stable")]
    factors = [size[1], size[0]]
    centre, half = said[:, 1:3] * factors, said[:, 3:5] * factors / 2
    boxes = torch.from_numpy(np.concatenate([centre - half, centre + half], 1))
    return Detections(boxes, torch.from_numpy(said[:, 5]), torch.from_numpy(said[:, 0]).long())


def yolo(arguments: argparse.Namespace, *words: str) -> None:
    """Run the command on one thread, without what it would install or send."""
    home = (arguments.out / "yolo" / "settings").resolve()
    home.mkdir(parents=True, exist_ok=True)
    own = {"YOLO_CONFIG_DIR": str(home), "YOLO_AUTOINSTALL": "false", "OMP_NUM_THREADS": "1"}
    with (arguments.out / "yolo" / "log.txt").open("a") as log:
        subprocess.run(
            [str(arguments.yolo), *words], check=True, env=os.environ | own, stdout=log,
            stderr=subprocess.STDOUT, cwd=home,
        )  # fmt: skip


if __name__ == "__main__":
    main()
