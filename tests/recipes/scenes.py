"""Drawn scenes that a tiny segmenter learns in a second, and its options."""

from pathlib import Path

import numpy as np
from PIL import Image

from limbeck.data.scenes.options import SceneOptions, SceneViewOptions
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.recipes.train.options import SegmentConfig

SHAPE = "vit_tiny:img_size=32:patch_size=8:embed_dim=24:depth=2:num_heads=3"
NAMES = ("ground", "box")


def draw_scenes(folder: Path, count: int = 24) -> Path:
    """Bright boxes on dark ground, and their masks."""
    rng = np.random.default_rng(0)
    for index in range(count):
        image = rng.integers(0, 60, (40, 48, 3)).astype(np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        top, left = rng.integers(2, 16, 2)
        box = slice(top, top + 18), slice(left, left + 20)
        image[box] = rng.integers(160, 255, (18, 20, 3))
        mask[box] = 1
        for name, pixels in (("images", image), ("masks", mask)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
    (folder / "classes.txt").write_text("\n".join(NAMES))
    return folder


def segment_config(scenes: Path, out: Path, /, **changes: object) -> SegmentConfig:
    """Some thirty steps from scratch."""
    values = {
        "out": out,
        "student": SHAPE,
        "data": SceneOptions(root=str(scenes), holdout_ratio=0.25, num_workers=0),
        "views": SceneViewOptions(scale=(0.8, 1.25), max_class_share=1.0),
        "optim": OptimOptions(base_lr=0.15, schedule="poly", cosine_from="start"),
        "train": TrainOptions(
            epochs=14, global_batch_size=8, log_every=1, precision="fp32", device="cpu",
            probe_every=1_000_000,
        ),
    }  # fmt: skip
    return SegmentConfig(**values | changes)
