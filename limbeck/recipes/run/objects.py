"""The images with objects of a run, those that are held out, their batches."""

import logging
from collections.abc import Iterator
from typing import Any

from limbeck.data.scenes.objects.loader import object_batches
from limbeck.data.scenes.objects.open import open_both_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.data.scenes.objects.source import ObjectSource
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.recipes.run.images import Images
from limbeck.records import Batch

log = logging.getLogger("limbeck")


def open_object_images(data: ObjectOptions) -> Images:
    """Open what the options name; raises UserError where there is nothing to train on."""
    train, holdout = open_both_objects(data)
    if len(train) < 2:
        raise UserError(f"{data.root} has {len(train)} image to train on; name more of them.")
    log.info("%d images to train on, %d held out.", len(train), len(holdout))
    fingerprint = train.fingerprint() + holdout.fingerprint()
    return Images(
        whole=train,
        train=train,
        holdout=holdout,
        fingerprint=fingerprint,
        lineage={
            "root": data.root,
            "layout": train.layout,
            "num_images": len(train) + len(holdout),
            "num_train": len(train),
            "num_holdout": len(holdout),
            "classes": list(train.classes),
            "fingerprint": fingerprint,
        },
    )


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
