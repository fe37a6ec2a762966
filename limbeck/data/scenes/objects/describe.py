"""What images with objects hold: counts for people, and what is bad, found by reading all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from limbeck.data.scenes.objects.source import ObjectSource
from limbeck.data.source import BadImage
from limbeck.data.workers import run_workers
from limbeck.limits import num_cores

CHUNK = 8  # images per message of a worker
SMALL, LARGE = 32**2, 96**2  # pixels: COCO's bounds of areas

Size = tuple[int, int]


@dataclass(frozen=True)
class ObjectReport:
    """What images hold, as plain data.

    ``objects`` and ``images``: how many of a class, by name, and in how many of the ``num_images``
    that are good; ``num_negatives`` of these have none. ``most`` is (key, count) of the fullest.
    ``by_size`` counts small, medium and large ones (COCO's: below 32 x 32, below 96 x 96 pixels).
    ``sizes`` are the smallest and the largest (width, height). ``bad`` and ``left_out`` as in
    ``SceneReport``.
    """

    layout: str
    num_images: int
    num_negatives: int
    objects: dict[str, int]
    images: dict[str, int]
    by_size: tuple[int, int, int]
    most: tuple[str, int]
    sizes: tuple[Size, Size]
    bad: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]

    def absent(self) -> list[str]:
        """Classes without an object."""
        return [name for name, count in self.objects.items() if not count]

    def lines(self) -> Iterator[str]:
        """The report for people, in the form of ``SceneReport.lines``."""
        total = sum(self.objects.values())
        yield (
            f"images      {self.num_images:,} with {total:,} objects of {len(self.objects)} "
            f"classes, recognised as {self.layout} (if that is wrong: --data.layout)"
        )
        yield f"negatives   {self.num_negatives:,} images have no object"
        (width, height), (max_width, max_height) = self.sizes
        yield f"size        {width} x {height} to {max_width} x {max_height} px"
        yield f"most        {self.most[1]:,} objects in {self.most[0]}"
        shares = [f"{100 * count / max(1, total):.0f} %" for count in self.by_size]
        yield f"areas       {shares[0]} small, {shares[1]} medium, {shares[2]} large (COCO's sizes)"
        for name, count in self.objects.items():
            yield f"class       {name}: {count:,} objects in {self.images[name]:,} images"


class _Seen(NamedTuple):
    key: str
    reason: str  # "" of a good one
    size: Size
    classes: np.ndarray
    areas: np.ndarray


class _Examine(Dataset[list[_Seen]]):
    def __init__(self, source: ObjectSource) -> None:
        self.source = source

    def __getitem__(self, indices: range) -> list[_Seen]:
        return [self._examine(index) for index in indices]

    def _examine(self, index: int) -> _Seen:
        key, none = self.source.key(index), np.zeros(0)
        try:
            image, found = self.source.read_objects(index)
        except BadImage as error:
            return _Seen(key, str(error), (0, 0), none, none)
        return _Seen(key, "", (image.shape[1], image.shape[0]), found.classes, found.areas)


def describe_objects(
    source: ObjectSource,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ObjectReport:
    """Read all images in ``num_workers`` processes (one per core if None), one at a time in each.

    ``progress`` is told (images done, images in all) from time to time.
    """
    starts = range(0, len(source), CHUNK)
    chunks = [range(start, min(start + CHUNK, len(source))) for start in starts]
    wanted = num_cores() if num_workers is None else num_workers
    count = len(source.classes)
    objects, having, by_size = np.zeros(count, int), np.zeros(count, int), np.zeros(3, int)
    sizes: list[Size] = []
    bad: list[tuple[str, str]] = []
    most, negatives, done = ("", -1), 0, 0
    for part in run_workers(_Examine(source), chunks, min(wanted, len(chunks) - 1)):
        for one in part:
            if one.reason:
                bad.append((one.key, one.reason))
                continue
            own = np.bincount(one.classes.astype(int), minlength=count)
            objects += own
            having += own > 0
            by_size += np.bincount(np.digitize(one.areas, (SMALL, LARGE)), minlength=3)
            negatives += not len(one.classes)
            most = max(most, (one.key, len(one.classes)), key=lambda each: each[1])
            sizes = sorted({*sizes, one.size}, key=lambda size: size[0] * size[1])
            sizes = [sizes[0], sizes[-1]]
        done += len(part)
        if progress is not None:
            progress(done, len(source))
    return ObjectReport(
        layout=source.layout,
        num_images=done - len(bad),
        num_negatives=negatives,
        objects=dict(zip(source.classes, objects.tolist(), strict=True)),
        images=dict(zip(source.classes, having.tolist(), strict=True)),
        by_size=tuple(by_size.tolist()),
        most=(most[0], max(0, most[1])),
        sizes=(sizes[0], sizes[-1]) if sizes else ((0, 0), (0, 0)),
        bad=tuple(bad),
        left_out=source.problems,
    )
