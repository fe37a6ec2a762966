"""The order of samples, a pure function of (run seed, epoch), cut into steps and micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from limbeck.errors import UserError


def steps_per_epoch(num_images: int, global_batch_size: int) -> int:
    """Whole batches per epoch; what is left over is dropped, another part of it each epoch.

    Raises UserError if there are fewer images than one batch.
    """
    if num_images < global_batch_size:
        raise UserError(
            f"There are {num_images} images to train on, fewer than one batch of "
            f"{global_batch_size}; add images or set --train.global-batch-size to {num_images} or "
            "less."
        )
    return num_images // global_batch_size


def epoch_order(num_images: int, run_seed: int, epoch: int) -> np.ndarray:
    """The order (num_images,) int64 of the samples in one epoch."""
    digest = blake2b(f"order/{run_seed}/{epoch}".encode(), digest_size=8).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))
    return rng.permutation(num_images)


@dataclass(frozen=True)
class StepOrder:
    """Which samples each micro-batch of each step takes on one rank.

    The global batch of a step depends on none of ``accumulate_steps``, ``rank`` and ``world_size``;
    they only cut it into contiguous shares. Raises UserError where it can't be cut evenly.
    """

    num_images: int
    run_seed: int
    global_batch_size: int
    accumulate_steps: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        shares = self.world_size * self.accumulate_steps
        if self.global_batch_size % shares:
            near = max(shares, round(self.global_batch_size / shares) * shares)
            raise UserError(
                f"A global batch of {self.global_batch_size} can't be cut into {self.world_size} "
                f"processes x {self.accumulate_steps} accumulation steps; "
                f"set --train.global-batch-size {near}."
            )
        steps_per_epoch(self.num_images, self.global_batch_size)

    @property
    def micro_batch_size(self) -> int:
        """Samples of each micro-batch on one rank."""
        return self.global_batch_size // (self.world_size * self.accumulate_steps)

    def micro_batches(self, start_step: int, total_steps: int) -> Iterator[tuple[int, list[int]]]:
        """(epoch, indices) of each micro-batch of the steps ``start_step..total_steps - 1``."""
        per_epoch = steps_per_epoch(self.num_images, self.global_batch_size)
        size = self.micro_batch_size
        order, order_epoch = np.empty(0, np.int64), -1
        for step in range(start_step, total_steps):
            epoch, step_in_epoch = divmod(step, per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.num_images, self.run_seed, epoch), epoch
            for micro_step in range(self.accumulate_steps):
                share = micro_step * self.world_size + self.rank
                first = step_in_epoch * self.global_batch_size + share * size
                yield epoch, order[first : first + size].tolist()
