"""Read every image with objects once and tell what is there: classes, sizes, problems."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from limbeck.data.scenes.describe import NUM_EXAMPLES, Size, examined, extremes
from limbeck.data.scenes.objects.source import ObjectSource
from limbeck.data.source import BadImage

LIMITS = (32**2, 96**2)  # pixels of area: COCO's small, medium and large


@dataclass(frozen=True)
class ObjectReport:
    """What images with objects hold, as plain data.

    ``objects`` and ``images``: how many of a class, by name, and in how many of the ``num_images``
    that are good; crowds, ``num_crowds`` of them, are in neither. ``num_negatives``: images without
    any. ``sizes`` are the smallest and the largest (width, height). ``most``: the image with the
    most objects, and how many. ``by_area``: small, medium and large objects, as COCO has them.
    ``bad`` lists (key, sentence) of what can't be read, ``left_out`` that of images and objects
    that were left out in opening it.
    """

    layout: str
    num_images: int
    num_negatives: int
    num_crowds: int
    objects: dict[str, int]
    images: dict[str, int]
    sizes: tuple[Size, Size]
    most: tuple[str, int]
    by_area: tuple[int, int, int]
    examples: tuple[tuple[str, int], ...]
    bad: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]

    def absent(self) -> list[str]:
        """Classes without an object."""
        return [name for name, count in self.objects.items() if not count]

    def lines(self) -> Iterator[str]:
        """The report for people: after the twelfth letter comes what the word before it names."""
        whole = sum(self.objects.values())
        yield (
            f"images      {self.num_images:,} with {whole:,} objects of {len(self.objects)} "
            f"classes, recognised as {self.layout} (if that is wrong: --data.layout)"
        )
        yield f"negatives   {self.num_negatives:,} images without objects"
        for key, number in self.examples:
            yield f"example     {key} with {number}"
        (width, height), (max_width, max_height) = self.sizes
        yield f"size        {width} x {height} to {max_width} x {max_height} px"
        small, medium, large = (100 * count / max(1, whole) for count in self.by_area)
        yield (
            f"objects     {small:.0f} % small (to 32 px), {medium:.0f} % medium (to 96 px), "
            f"{large:.0f} % large; most in one image: {self.most[1]:,} ({self.most[0]})"
        )
        for name, count in self.objects.items():
            images = f"in {self.images[name]:,} images" if count else "nowhere"
            yield f"class       {name}: {count:,} objects, {images} (--data.merge)"
        if self.num_crowds:
            yield f"crowds      {self.num_crowds:,}: not learnt, and no mistake where found"


class _Seen(NamedTuple):
    key: str
    reason: str  # "" of a good one
    size: Size
    counts: np.ndarray  # (C,) objects of each class
    by_area: np.ndarray  # (3,)
    num_crowds: int


class _Examine(Dataset[list[_Seen]]):
    def __init__(self, source: ObjectSource) -> None:
        self.source = source

    def __getitem__(self, indices: range) -> list[_Seen]:
        return [self._examine(index) for index in indices]

    def _examine(self, index: int) -> _Seen:
        key, number = self.source.key(index), len(self.source.classes)
        try:
            image, found = self.source.read_objects(index)
        except BadImage as error:
            none = np.zeros(number, np.int64)
            return _Seen(key, str(error), (0, 0), none, np.zeros(3, np.int64), 0)
        own = ~found.is_crowd
        counts = np.bincount(found.classes[own], minlength=number)
        by_area = np.bincount(np.digitize(found.areas[own], LIMITS), minlength=3)
        return _Seen(key, "", image.shape[1::-1], counts, by_area, int(found.is_crowd.sum()))


def describe_objects(
    source: ObjectSource,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ObjectReport:
    """Read all images in ``num_workers`` processes (one per core if None), one at a time in each.

    ``progress`` is told (images done, images in all) from time to time.
    """
    seen: list[tuple[str, int]] = []  # of good ones: key, how many objects
    counts = np.zeros((2, len(source.classes)), np.int64)
    by_area, num_crowds = np.zeros(3, np.int64), 0
    sizes: list[Size] = []
    bad: list[tuple[str, str]] = []
    for part in examined(_Examine(source), len(source), num_workers, progress):
        for one in part:
            if one.reason:
                bad.append((one.key, one.reason))
            else:
                seen.append((one.key, int(one.counts.sum())))
                counts += one.counts, one.counts > 0
                by_area += one.by_area
                num_crowds += one.num_crowds
                sizes = extremes([*sizes, one.size])
    objects, images = (dict(zip(source.classes, each.tolist(), strict=True)) for each in counts)
    return ObjectReport(
        layout=source.layout,
        num_images=len(seen),
        num_negatives=sum(not number for _, number in seen),
        num_crowds=num_crowds,
        objects=objects,
        images=images,
        sizes=(sizes[0], sizes[-1]) if sizes else ((0, 0), (0, 0)),
        most=max(seen, key=lambda each: each[1], default=("", 0)),
        by_area=tuple(by_area.tolist()),
        examples=tuple(seen[:NUM_EXAMPLES]),
        bad=tuple(bad),
        left_out=source.problems,
    )
