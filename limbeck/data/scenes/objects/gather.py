"""What readers of objects hand over, and what becomes of it: checked once, packed, by class."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.data.scenes.objects.source import Annotated
from limbeck.data.source import Names, Source
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
    """An image of a reader: its ``index`` in the reader's source, its size (H, W) as annotated."""

    key: str
    size: tuple[int, int]
    objects: list[RawObject]


@dataclass(frozen=True)
class FoundObjects:
    """What a reader found: the ``images`` of a source and of each, in its order, what it has.

    ``classes`` are in the order of the layout. ``problems``: (key, sentence) of what was left out.
    """

    images: Source
    annotated: list[RawImage]
    classes: tuple[str, ...]
    layout: str
    problems: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()


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
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        areas = [each.area for each in flat]
        own = np.array([np.nan if area is None else area for area in areas], np.float64)
        self.areas = np.where(np.isnan(own), sides.prod(axis=1), own)
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
        sound, seen = [], set()
        counts: Counter[str] = Counter()
        for each in image.objects:
            whole = np.asarray(each.box, np.float64)
            cut = np.clip(whole, 0, (width, height, width, height))
            if not np.isfinite(whole).all():
                counts["that are no numbers"] += 1
            elif (cut[2:] - cut[:2] < LEAST_SIDE).any():
                is_flat = (whole[2:] - whole[:2] < LEAST_SIDE).any()
                counts["without area" if is_flat else "outside it"] += 1
            elif (each.name, *each.box) in seen:
                counts["that it has twice"] += 1
            else:
                if np.abs(whole - cut).max() > TOLERANCE:
                    problems.append((image.key, "a box that stands out of it is cut"))
                sound.append(each._replace(box=tuple(cut.tolist())))
                seen.add((each.name, *each.box))
        problems += [
            (image.key, f"{count} boxes {what} are left out") for what, count in counts.items()
        ]
        kept.append(image._replace(objects=sound))
    return kept, problems


def check_merges(options: ObjectOptions) -> None:
    """Raise UserError for merges that are none."""
    for entry in options.merge:
        name, equals, parts = entry.partition("=")
        if not (name.strip() and equals and all(part.strip() for part in parts.split(","))):
            raise UserError(f"data.merge: '{entry}' is not of the form vehicle=car,truck,bus.")
