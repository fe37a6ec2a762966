"""Drawn images with boxes that a tiny detector learns in seconds, and its options."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from limbeck.data.scenes.objects.options import ObjectOptions, ObjectViewOptions
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.models.options import DetectorOptions
from limbeck.recipes.train.options import DetectConfig

SHAPE = "vit_tiny:img_size=48:patch_size=8:embed_dim=32:depth=2:num_heads=2"
NAMES = ("bright", "red")


def draw_objects(folder: Path, count: int = 24, outlines: bool = True) -> Path:
    """A bright and a red block in each, COCO's annotations; every eighth has none."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(count):
        image = rng.integers(0, 60, (40, 48, 3)).astype(np.uint8)
        for kind, colour in enumerate(((255, 255, 255), (255, 0, 0))):
            if index % 8 == 7:
                continue
            y, x = int(rng.integers(1, 20)), int(rng.integers(1, 10)) + 22 * kind
            h, w = (int(side) for side in rng.integers(10, 18, 2))
            w = min(w, 47 - x)
            image[y : y + h, x : x + w] = colour
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]] if outlines else None
            annotations.append({
                "id": len(annotations) + 1, "image_id": index, "category_id": 3 + 5 * kind,
                "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": outline,
            })  # fmt: skip
        name = f"{index:03d}.png"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
        images.append({"id": index, "file_name": name, "height": 40, "width": 48})
    categories = [{"id": 3 + 5 * kind, "name": name} for kind, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def detect_config(objects: Path, out: Path, /, **changes: object) -> DetectConfig:
    """Some steps from scratch."""
    values = {
        "out": out,
        "student": SHAPE,
        "img_size": 48,
        "data": ObjectOptions(root=str(objects), holdout_ratio=0.25, num_workers=0),
        "views": ObjectViewOptions(scale=(0.9, 1.2), distort_prob=0.0),
        "detector": DetectorOptions(width=24),
        "optim": OptimOptions(base_lr=0.15, clip_grad=5.0),
        "train": TrainOptions(
            epochs=10, global_batch_size=8, log_every=1, precision="fp32", device="cpu",
            probe_every=1_000_000, ema_decay=0.9,
        ),
    }  # fmt: skip
    return DetectConfig(**values | changes)
