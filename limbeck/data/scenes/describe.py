"""Read every scene once and tell what is there: classes and their balance, examples, problems."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from limbeck.data.scenes.scene import Scenes
from limbeck.data.source import BadImage
from limbeck.data.workers import run_workers
from limbeck.files import printable
from limbeck.limits import num_cores
from limbeck.records import IGNORE

CHUNK = 8  # scenes per message of a worker
NUM_EXAMPLES = 5
RARE = 0.001  # of the pixels


@dataclass(frozen=True)
class SceneReport:
    """What scenes hold, as plain data.

    ``pixels`` and ``scenes``: how many of a class, by name, and in how many scenes. ``sizes`` are
    the smallest and the largest (width, height). ``examples`` are (image, mask), ``problems`` (key,
    sentence) of what can't be used, images without a mask too.
    """

    layout: str
    num_scenes: int
    pixels: dict[str, int]
    scenes: dict[str, int]
    num_ignored: int
    sizes: tuple[tuple[int, int], tuple[int, int]]
    examples: tuple[tuple[str, str], ...]
    problems: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The report for people."""
        yield (
            f"{self.num_scenes} scenes of {len(self.pixels)} classes, recognised as {self.layout} "
            "(if that is wrong: --data.layout, --data.masks)."
        )
        for image, mask in self.examples:
            yield f"  {printable(image)} with {printable(mask)}"
        (width, height), (max_width, max_height) = self.sizes
        yield f"Sizes from {width} x {height} to {max_width} x {max_height} pixels."
        whole = max(1, sum(self.pixels.values()))
        space = max(map(len, self.pixels), default=0)
        yield f"{'class':<{space}}  pixels  scenes (other names: --data.class-names)"
        for name, count in self.pixels.items():
            yield f"{name:<{space}}  {count / whole:6.1%}  {self.scenes[name]}"
        share = self.num_ignored / (whole + self.num_ignored)
        yield f"{share:.1%} of all pixels are ignored (--data.ignore-values, --data.merge)."
        absent = [name for name, count in self.pixels.items() if not count]
        if absent:
            yield f"No pixel is of {', '.join(absent)}: nothing can be learnt of that."
        rare = [name for name, count in self.pixels.items() if 0 < count < RARE * whole]
        if rare:
            yield f"Fewer than one pixel in {1 / RARE:,.0f} is of {', '.join(rare)}."
        for key, reason in self.problems:
            yield f"Can't be used: {printable(key)}: {reason}."


class _Seen(NamedTuple):
    key: str
    reason: str  # "" of a good one
    size: tuple[int, int]
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


def describe(
    scenes: Scenes,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SceneReport:
    """Read all scenes in ``num_workers`` processes (one per core if None).

    ``progress`` is told (scenes done, scenes in all) from time to time.
    """
    starts = range(0, len(scenes), CHUNK)
    chunks = [range(start, min(start + CHUNK, len(scenes))) for start in starts]
    wanted = num_cores() if num_workers is None else num_workers
    seen: list[_Seen] = []
    for part in run_workers(_Examine(scenes), chunks, min(wanted, len(chunks) - 1)):
        seen += part
        if progress is not None:
            progress(len(seen), len(scenes))
    good = [one for one in seen if not one.reason]
    counts = sum((one.counts for one in good), np.zeros(256, np.int64))
    having = sum((one.counts > 0 for one in good), np.zeros(256, np.int64))
    sizes = sorted((one.size for one in good), key=lambda size: size[0] * size[1])
    places = range(min(NUM_EXAMPLES, len(scenes)))
    return SceneReport(
        layout=scenes.layout,
        num_scenes=len(good),
        pixels={name: int(counts[place]) for place, name in enumerate(scenes.classes)},
        scenes={name: int(having[place]) for place, name in enumerate(scenes.classes)},
        num_ignored=int(counts[IGNORE]),
        sizes=(sizes[0], sizes[-1]) if sizes else ((0, 0), (0, 0)),
        examples=tuple((scenes.key(place), scenes.mask_name(place)) for place in places),
        problems=(*scenes.problems, *((one.key, one.reason) for one in seen if one.reason)),
        notes=scenes.notes,
    )
