"""The records of a store for the samples of one source."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.data.source import Source
from limbeck.data.target_store.manifest import ArraySpec
from limbeck.data.target_store.reader import TargetReader
from limbeck.data.views import view_seed
from limbeck.errors import RunError

VIEW_SEEDS = "view_seeds"
"""The array of a record that is no target: the seed of its view, where no other seed tells it."""

SEED_SPEC = ArraySpec((), "int32")
"""Of the array VIEW_SEEDS, where each record brings its own view's."""

RGB = tuple[float, float, float]


class LocatedTargets:
    """A store's records by the place of a sample in ``source``; ``seed`` is that of its views.

    It is None where each record brings its own view's, in the array VIEW_SEEDS. All keys are looked
    up once, here. The rows lie in shared memory, so that a worker that is started with them has no
    copy of its own.
    """

    def __init__(self, reader: TargetReader, source: Source, seed: int | None) -> None:
        self.reader = reader
        self.seed = seed
        self.num_views = reader.num_views
        if seed is None:
            _check_seeded(reader)
        rows = reader.locate(source.key(index) for index in range(len(source)))
        self.rows = torch.from_numpy(rows).share_memory_()

    @property
    def noise(self) -> tuple[RGB, RGB] | None:
        """Mean and std of what erased boxes hold, as stored; None where the recipe has none."""
        recipe = self.reader.manifest.recipe
        if "erase_mean" not in recipe:
            return None
        return tuple(recipe["erase_mean"]), tuple(recipe["erase_std"])

    def __contains__(self, index: int) -> bool:
        return bool(self.rows[index] >= 0)

    def read(self, indices: Sequence[int], view: int) -> dict[str, Tensor]:
        """The records of one view of samples, by name, (B, ...) each."""
        rows: np.ndarray = self.rows[list(indices)].numpy()
        return {
            name: torch.from_numpy(array) for name, array in self.reader.read(rows, view).items()
        }


def seed_of_view(reader: TargetReader, key: str, view: int) -> int:
    """The seed of one view of a sample that has records."""
    seed = reader.manifest.recipe["seed"]
    if seed is not None:
        return view_seed(seed, view, key)
    _check_seeded(reader)
    rows = reader.locate([key])
    if rows[0] < 0:
        raise RunError(
            f"{reader.place.address} has a fingerprint of {key} and no record of it; convert the "
            "released set again."
        )
    return int(reader.read(rows, view)[VIEW_SEEDS][0])


def _check_seeded(reader: TargetReader) -> None:
    if reader.manifest.arrays.get(VIEW_SEEDS) != SEED_SPEC:
        raise RunError(
            f"{reader.place.address} states no seed of its views, and its records bring none; "
            "convert the released set again."
        )
