"""Values that follow from the config and the data, resolved once, shown and saved."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from limbeck.data.order import StepOrder, steps_per_epoch
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.ops.schedules import peak_lr
from limbeck.recipes.run.precision import settled_plain

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks
    from limbeck.models.encoder import EncoderFacts
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.run.options import TrainingOptions

log = logging.getLogger("limbeck")

Identity = tuple[dict[str, Any], dict[str, Any]]
"""The resolved config and the fingerprint of a run, plain data: what ``open_run`` compares."""


@dataclass(frozen=True)
class Resolved:
    """``peak_lr`` from base_lr and the global batch; steps from the epochs and the images."""

    num_images: int
    steps_per_epoch: int
    total_steps: int
    peak_lr: float
    warmup_epochs: float
    img_size: int
    student: dict[str, object]

    def sentence(self) -> str:
        """For people."""
        return (
            f"{self.num_images:,} images, {self.steps_per_epoch:,} steps per epoch, "
            f"{self.total_steps:,} steps in all, peak learning rate {self.peak_lr:.3g} "
            f"after {self.warmup_epochs:g} epochs of warm-up, {self.img_size} px"
        )


def fit_batch(train: TrainOptions, num_images: int, option: str = "--train") -> TrainOptions:
    """The loop's options with a batch that so few images fill; as they are, where they fill it.

    ``option``: the section in words, for the warning.
    """
    batch = fitting_batch(num_images, train)
    if batch == train.global_batch_size:
        return train
    log.warning(
        "%d training images do not fill a batch of %d: a step has %d of them "
        "(%s.global-batch-size %d).",
        num_images, train.global_batch_size, batch, option, batch,
    )  # fmt: skip
    return replace(train, global_batch_size=batch)


def fitting_batch(num_images: int, train: TrainOptions) -> int:
    """The batch, or of images that don't fill it at most a quarter, so that there are some steps.

    A power of two for each accumulation step, and at least pairs, which mixing takes. Whatever the
    number of processes: a run may go on with another.
    """
    smallest = 2 * train.accumulate_steps
    if num_images >= train.global_batch_size or num_images < smallest:
        return train.global_batch_size
    batch = smallest
    while 2 * batch <= num_images // 4:
        batch *= 2
    return batch


def resolve(
    num_images: int,
    img_size: int,
    student: dict[str, object],
    optim: OptimOptions,
    train: TrainOptions,
    world_size: int = 1,
) -> Resolved:
    """Resolve the automatic values.

    Raises UserError where no step would be left to do, and for a global batch that can't be cut.
    """
    batch_size = train.global_batch_size
    StepOrder(num_images, 0, batch_size, train.accumulate_steps, world_size=world_size)
    per_epoch = steps_per_epoch(num_images, batch_size)
    total = round(train.epochs * per_epoch)
    if total < 1:
        raise UserError(
            f"train.epochs {train.epochs} of {per_epoch} steps each is less than one step; "
            "raise it."
        )
    return Resolved(
        num_images=num_images,
        steps_per_epoch=per_epoch,
        total_steps=total,
        peak_lr=peak_lr(optim.base_lr, batch_size),
        warmup_epochs=optim.warmup_for(train.epochs),
        img_size=img_size,
        student=student,
    )


def identity_of(
    verb: str,
    config: TrainingOptions,
    student: EncoderFacts,
    images: Images,
    ranks: Ranks,
    **others: Any,
) -> Identity:
    """The resolved config of a run and its fingerprint, plain data: what ``open_run`` compares.

    ``others``: what the fingerprint has beside the images and the weights that the student starts
    from. Raises as ``resolve``.
    """
    resolved = resolve(
        len(images.train), student.img_size[0], student.architecture, config.optim, config.train,
        ranks.world_size,
    )  # fmt: skip
    fingerprint = {"data": images.fingerprint, "student": student.origin.get("weight_hash")}
    own = {"verb": verb, **settled_plain(config), "resolved": asdict(resolved)}
    return own, fingerprint | others
