"""The images with objects of a run, those that are held out, their batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.scenes.objects.loader import object_batches
from limbeck.data.scenes.objects.open import open_both_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.data.scenes.objects.source import ObjectSource, ObjectSubset
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import BadImage, Source
from limbeck.engine.distributed import Ranks
from limbeck.evaluation.overlay import draw_boxes, palette
from limbeck.files import disk_errors
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.scenes import annotated_images
from limbeck.records import Batch


def open_object_images(data: ObjectOptions) -> Images:
    """Open what the options name; raises UserError where there is nothing to train on."""
    return annotated_images(data.root, *open_both_objects(data), "image")


def object_stream(
    source: ObjectSource,
    img_size: int,
    has_masks: bool,
    ranks: Ranks,
    config: Any,
    skipped: SkippedLog,
    start_step: int,
    total_steps: int,
) -> Iterator[Batch]:
    """This rank's micro-batches of squares, in ``config.views``, from a step on."""
    return object_batches(
        source, data=config.data, views=config.views, img_size=img_size, has_masks=has_masks,
        run_seed=config.seed, global_batch_size=config.train.global_batch_size,
        accumulate_steps=config.train.accumulate_steps, rank=ranks.rank,
        world_size=ranks.world_size, start_step=start_step, total_steps=total_steps,
        device=ranks.device, skipped=skipped,
    )  # fmt: skip


def fullest(source: Source, count: int) -> ObjectSource:
    """As many images of a source as ``count``, those with the most objects."""
    assert isinstance(source, ObjectSource)
    numbers = np.array([len(source.objects(index).classes) for index in range(len(source))])
    return ObjectSubset(source, np.argsort(-numbers, kind="stable")[:count])


def draw_examples(source: ObjectSource, folder: Path, count: int = 5) -> None:
    """Images of a source, spread over it, with their boxes drawn in. Raises RunError where the
    folder can't be written."""
    colors = dict(zip(source.classes, palette(len(source.classes)), strict=True))
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for index in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int).tolist():
            try:
                image, found = source.read_objects(index)
            except BadImage:
                continue  # it is named elsewhere
            pairs = zip(found.classes.tolist(), found.boxes.tolist(), strict=True)
            drawn = [
                {"class": source.classes[kind], "score": 1.0, "box": [x, y, x1 - x, y1 - y]}
                for kind, (x, y, x1, y1) in pairs
            ]
            draw_boxes(image, drawn, colors, 0.0).save(folder / f"example_{index}.png")
