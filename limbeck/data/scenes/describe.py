"""Read every scene once and tell what is there: classes and their balance, examples, problems."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from torch.utils.data import Dataset

from limbeck.data.scenes.scene import Scenes
from limbeck.data.source import BadImage
from limbeck.data.workers import run_workers
from limbeck.limits import num_cores
from limbeck.records import IGNORE

CHUNK = 8  # scenes per message of a worker
NUM_EXAMPLES = 5
NUM_LISTED = 10
RARE = 0.001  # of the pixels

Size = tuple[int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class SceneReport:
    """What scenes hold, as plain data.

    ``pixels`` and ``scenes``: how many of a class, by name, and in how many of the ``num_scenes``
    that are good. ``sizes`` are the smallest and the largest (width, height). ``examples`` are
    (image, mask). ``bad`` lists (key, sentence) of what can't be read or used, ``left_out`` that of
    images that were left out in opening it, such as those without a mask.
    """

    layout: str
    num_scenes: int
    pixels: dict[str, int]
    scenes: dict[str, int]
    num_ignored: int
    sizes: tuple[Size, Size]
    examples: tuple[tuple[str, str], ...]
    bad: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]

    def absent(self) -> list[str]:
        """Classes without a pixel."""
        return [name for name, count in self.pixels.items() if not count]

    def rare(self) -> list[str]:
        """Classes with hardly a pixel."""
        least = RARE * sum(self.pixels.values())
        return [name for name, count in self.pixels.items() if 0 < count < least]

    def lines(self) -> Iterator[str]:
        """The report for people: after the twelfth letter comes what the word before it names."""
        yield (
            f"scenes      {self.num_scenes:,} of {len(self.pixels)} classes, recognised as "
            f"{self.layout} (if that is wrong: --data.layout, --data.masks)"
        )
        for image, mask in self.examples:
            yield f"example     {image} with {mask}"
        (width, height), (max_width, max_height) = self.sizes
        yield f"size        {width} x {height} to {max_width} x {max_height} px"
        whole = max(1, sum(self.pixels.values()))
        for name, count in self.pixels.items():
            scenes = f"in {self.scenes[name]:,} scenes" if count else "nowhere"
            yield f"class       {name}: {100 * count / whole:.1f} % of the pixels, {scenes}"
        share = 100 * self.num_ignored / (whole + self.num_ignored)
        yield f"ignored     {share:.1f} % of all pixels (--data.ignore-values, --data.merge)"


def kinds_of(problems: Iterable[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """(key, sentence) by what the sentences have in common, the most frequent first."""
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for key, reason in problems:
        kinds[re.sub(r"\d+", "0", reason.replace(key, ""))].append((key, reason))
    return sorted(kinds.values(), key=len, reverse=True)


def troubles(problems: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Lines of what is wrong with scenes: each kind of trouble once, with those that have it."""
    for (key, reason), *others in kinds_of(problems):
        yield f"bad         {key}: {reason}"
        if others:
            names = ", ".join(name for name, _ in others[:NUM_LISTED])
            more = f" and {len(others) - NUM_LISTED:,} more" if len(others) > NUM_LISTED else ""
            yield f"            likewise {len(others):,} others: {names}{more}"


class _Seen(NamedTuple):
    key: str
    reason: str  # "" of a good one
    size: Size
    counts: np.ndarray  # (256,) pixels of each class


class _Examine(Dataset[list[_Seen]]):
    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __getitem__(self, indices: range) -> list[_Seen]:
        return [self._examine(index) for index in indices]

    def _examine(self, index: int) -> _Seen:
        key = self.scenes.key(index)
        try:
            _, labels = self.scenes.read_scene(index)
        except BadImage as error:
            return _Seen(key, str(error), (0, 0), np.zeros(256, np.int64))
        size = (labels.shape[1], labels.shape[0])
        return _Seen(key, "", size, np.bincount(labels.ravel(), minlength=256))


def examined(
    dataset: Dataset[list[T]],
    number: int,
    num_workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[list[T]]:
    """What a data set of ranges says of so many samples, ``CHUNK`` of them at a time."""
    chunks = [range(start, min(start + CHUNK, number)) for start in range(0, number, CHUNK)]
    wanted = num_cores() if num_workers is None else num_workers
    done = 0
    for part in run_workers(dataset, chunks, min(wanted, len(chunks) - 1)):
        yield part
        done += len(part)
        if progress is not None:
            progress(done, number)


def extremes(sizes: Iterable[Size]) -> list[Size]:
    """The smallest and the largest of some sizes, of none none."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    return [*ordered[:1], *ordered[-1:]]


def describe(
    scenes: Scenes,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SceneReport:
    """Read all scenes in ``num_workers`` processes (one per core if None), one at a time in each.

    ``progress`` is told (scenes done, scenes in all) from time to time.
    """
    counts, having = np.zeros(256, np.int64), np.zeros(256, np.int64)
    sizes: list[Size] = []
    bad: list[tuple[str, str]] = []
    for part in examined(_Examine(scenes), len(scenes), num_workers, progress):
        good = [one for one in part if not one.reason]
        for one in good:
            counts += one.counts
            having += one.counts > 0
        bad += [(one.key, one.reason) for one in part if one.reason]
        sizes = extremes([*sizes, *(one.size for one in good)])
    return SceneReport(
        layout=scenes.layout,
        num_scenes=len(scenes) - len(bad),
        pixels={name: int(counts[place]) for place, name in enumerate(scenes.classes)},
        scenes={name: int(having[place]) for place, name in enumerate(scenes.classes)},
        num_ignored=int(counts[IGNORE]),
        sizes=(sizes[0], sizes[-1]) if sizes else ((0, 0), (0, 0)),
        examples=tuple(
            (scenes.key(place), scenes.mask_name(place))
            for place in range(min(NUM_EXAMPLES, len(scenes)))
        ),
        bad=tuple(bad),
        left_out=scenes.problems,
    )
