"""The scenes of a run: images with a label map each, those that are held out, their batches."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from limbeck.data.options import DataOptions
from limbeck.data.scenes.loader import scene_batches
from limbeck.data.scenes.objects.source import ObjectSource
from limbeck.data.scenes.open import open_both
from limbeck.data.scenes.options import SceneOptions, SceneViewOptions
from limbeck.data.scenes.scene import Scenes
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import Subset
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.recipes.run.images import FEW_TEST_IMAGES, Images, open_images
from limbeck.records import Batch

log = logging.getLogger("limbeck")

Annotated = Scenes | ObjectSource


def open_scene_images(data: SceneOptions) -> Images:
    """Open what the options name; raises UserError where there are no scenes to train on."""
    return annotated_images(data.root, *open_both(data), "scene")


def annotated_images(root: str, train: Annotated, holdout: Annotated, what: str) -> Images:
    """The images of a run, told as ``what`` they are; raises UserError for fewer than two."""
    if len(train) < 2:
        raise UserError(f"{root} has {len(train)} {what} to train on; name more of them.")
    log.info("%d %ss to train on, %d held out.", len(train), what, len(holdout))
    fingerprint = train.fingerprint() + holdout.fingerprint()
    return Images(
        whole=train,
        train=train,
        holdout=holdout,
        fingerprint=fingerprint,
        lineage={
            "root": root,
            "layout": train.layout,
            "num_images": len(train) + len(holdout),
            "num_train": len(train),
            "num_holdout": len(holdout),
            "classes": list(train.classes),
            "fingerprint": fingerprint,
        },
    )


def without_masks(images: Images) -> Images:
    """The images of scenes alone; what are none have no masks, and stay as they are."""
    if not isinstance(images.train, Scenes):
        return images
    train, holdout = (Subset(each, range(len(each))) for each in (images.train, images.holdout))
    train.classes = holdout.classes = ()
    return replace(images, whole=train, train=train, holdout=holdout)


def open_for_distilling(data: DataOptions) -> Images:
    """Images of any kind, to learn from a teacher; raises UserError as what opens them."""
    is_scenes = isinstance(data, SceneOptions)
    return without_masks(open_scene_images(data)) if is_scenes else open_images(data)


def scene_stream(
    scenes: Scenes,
    img_size: int,
    ranks: Ranks,
    config: Any,
    skipped: SkippedLog,
    start_step: int,
    total_steps: int,
) -> Iterator[Batch]:
    """This rank's micro-batches of crops, in ``config.views``, from a step on."""
    views: SceneViewOptions = config.views
    return scene_batches(
        scenes, data=config.data, views=views, img_size=img_size, run_seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        accumulate_steps=config.train.accumulate_steps, rank=ranks.rank,
        world_size=ranks.world_size, start_step=start_step, total_steps=total_steps,
        device=ranks.device, skipped=skipped,
    )  # fmt: skip


def few_scenes(num_test: int) -> str:
    """A sentence to append (with a leading space) where few images were scored, or ''."""
    return "" if num_test >= FEW_TEST_IMAGES else f" {num_test} held-out images can't tell much."
