"""What readers of objects hand over, and what becomes of it: checked once, packed, by class."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from limbeck.data.scenes.objects.source import Annotated
from limbeck.data.scenes.raster import decode_runs, fill_runs
from limbeck.data.source import BadImage, Names, Source
from limbeck.documents import parse_json, to_json
from limbeck.errors import UserError, did_you_mean

TOLERANCE = 1.0  # pixels that a box may stand out of its image: of rounding
LEAST_SIDE = 1e-3  # pixels; what is narrower is no box


class RawObject(NamedTuple):
    """An object as a reader found it: its class's ``name``, its ``box`` (left, top, right, bottom
    in pixels), COCO's outlines or runs if it has such, its area if that is stated."""

    name: str
    box: tuple[float, float, float, float]
    shape: Any = None
    area: float | None = None
    is_crowd: bool = False


class RawImage(NamedTuple):
    """An image of a reader: its ``key`` in the reader's source, its size (H, W) as annotated."""

    key: str
    size: tuple[int, int]
    objects: list[RawObject]


@dataclass(frozen=True)
class FoundObjects:
    """What a reader found: the ``images`` of a source and of each, in its order, what it has.

    ``classes`` are in the order of the layout; ``is_counted``: they are but numbers, without names.
    ``problems``: (key, sentence) of what was left out.
    """

    images: Source
    annotated: list[RawImage]
    classes: tuple[str, ...]
    layout: str
    problems: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    is_counted: bool = False


class Packed:
    """The objects of many images in a few arrays, cheap to send to a worker.

    Objects of Python would be gigabytes, and copied into every worker by reading them.
    """

    def __init__(self, images: Sequence[RawImage], value_of: dict[str, int]) -> None:
        kept = [[each for each in image.objects if each.name in value_of] for image in images]
        flat = [each for objects in kept for each in objects]
        self.ends = np.cumsum([0, *map(len, kept)])
        self.sizes = np.array([image.size for image in images], np.int64).reshape(-1, 2)
        self.boxes = np.array([each.box for each in flat], np.float64).reshape(-1, 4)
        self.classes = np.array([value_of[each.name] for each in flat], np.int64)
        self.is_crowd = np.array([each.is_crowd for each in flat], bool)
        self.areas = np.array([_area(each) for each in flat], np.float64)
        self.has_shapes = any(each.shape is not None for each in flat)
        self._shapes = Names([
            to_json([each.shape for each in objects], indent=None) if self.has_shapes else ""
            for objects in kept
        ])  # fmt: skip

    def of(self, index: int) -> Annotated:
        """The objects of an image."""
        part = slice(self.ends[index], self.ends[index + 1])
        shapes = [None] * (part.stop - part.start)
        if self.has_shapes:
            shapes = parse_json(self._shapes[index], list[Any])
        return Annotated(
            self.boxes[part], self.classes[part], self.is_crowd[part], self.areas[part],
            tuple(shapes),
        )  # fmt: skip


def merged(classes: Sequence[str], merges: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes after ``merges``, and the class of each old name; "ignore" has none.

    Raises UserError for a class that there is not.
    """
    name_of = {name: name for name in classes}
    for entry in merges:
        new, _, parts = entry.partition("=")
        for old in (part.strip() for part in parts.split(",")):
            if old not in name_of:
                raise UserError(
                    f"data.merge: there is no class '{old}'.{did_you_mean(old, classes)} "
                    f"There are {', '.join(classes)}."
                )
            name_of[old] = new.strip()
    kept = tuple(dict.fromkeys(name for name in name_of.values() if name != "ignore"))
    return kept, {old: kept.index(new) for old, new in name_of.items() if new in kept}


def checked(images: Iterable[RawImage]) -> tuple[list[RawImage], list[tuple[str, str]]]:
    """The images with sound objects alone, and (key, sentence) of what was left out of them.

    Boxes that stand out of their image are cut to it, and named where that is more than rounding.
    """
    kept: list[RawImage] = []
    problems: list[tuple[str, str]] = []
    for image in images:
        height, width = image.size
        sound: dict[tuple[object, ...], RawObject] = {}
        counts: Counter[str] = Counter()
        for each in image.objects:
            left, top, right, bottom = each.box
            cut = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
            if not all(map(math.isfinite, each.box)):
                counts["of no numbers left out"] += 1
            elif min(right - left, bottom - top) < LEAST_SIDE:
                counts["without area left out"] += 1
            elif min(cut[2] - cut[0], cut[3] - cut[1]) < LEAST_SIDE:
                counts["outside it left out"] += 1
            elif (each.name, *each.box) in sound:
                counts["that it has twice left out"] += 1
            else:
                if max(abs(a - b) for a, b in zip(each.box, cut, strict=True)) > TOLERANCE:
                    counts["standing out of it cut"] += 1
                sound[each.name, *each.box] = each._replace(box=cut)
        problems += [
            (image.key, f"{count} box{'es' * (count > 1)} {what}") for what, count in counts.items()
        ]
        kept.append(image._replace(objects=[*sound.values()]))
    return kept, problems


def extent(shape: Any) -> tuple[float, float, float, float]:
    """The box around COCO's outlines or runs; zeros of what is damaged."""
    if isinstance(shape, list):
        xs, ys = (sum((outline[start::2] for outline in shape), []) for start in (0, 1))
        return min(xs), min(ys), max(xs), max(ys)
    try:
        counts = shape["counts"]
        runs = decode_runs(counts) if isinstance(counts, str) else counts
        patch = fill_runs(runs, *shape["size"])
    except (BadImage, TypeError):
        return 0.0, 0.0, 0.0, 0.0
    height, width = patch.is_inside.shape
    return patch.left, patch.top, patch.left + width, patch.top + height


def _area(each: RawObject) -> float:
    """As stated, or else of its outlines, or of its box."""
    if each.area is not None:
        return each.area
    if not isinstance(each.shape, list):
        return (each.box[2] - each.box[0]) * (each.box[3] - each.box[1])
    total = 0.0
    for outline in each.shape:
        xs, ys = outline[::2], outline[1::2]
        corners = zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
        total += abs(sum(x * y2 - x2 * y for x, y, x2, y2 in corners)) / 2
    return total
